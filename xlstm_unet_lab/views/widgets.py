"""Widgets for the notebooks. They show what package functions compute and hold no mathematics of their own."""

import time
from collections.abc import Iterable, Iterator

try:
    import ipywidgets
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("widgets need ipywidgets: pip install -e '.[notebooks]'") from error

from xlstm_unet_lab.views.figures import learning_curve

REDRAW_SECONDS = 2.0  # between two drawings of the curve: drawing takes time from training
MANY_STEPS = 5  # steps before the first drawing; a curve of one point says nothing


class TrainingPlot:
    """A progress bar, a line of text and the learning curve, kept up to date while records pass through `watch`.

    plot = TrainingPlot(steps=config.steps); display(plot.widget); records = list(plot.watch(lab.fit(...)))
    """

    def __init__(self, steps: int):
        if steps < 1:
            raise ValueError(f"steps is {steps}, expected the number of training steps, 1 or more")
        self.records: list = []
        self.bar = ipywidgets.IntProgress(max=steps, description="training", layout={"width": "100%"})
        self.text = ipywidgets.HTML("waiting for the first step", layout={"width": "100%"})
        self.curve = ipywidgets.HTML(layout={"width": "100%"})
        self.widget = ipywidgets.VBox([self.bar, self.text, self.curve])

    def watch(self, records: Iterable) -> Iterator:
        """Pass every record on and show it."""
        drawn = time.monotonic()
        try:
            for record in records:
                self.records.append(record)
                self._write(record)
                if len(self.records) >= MANY_STEPS and time.monotonic() - drawn > REDRAW_SECONDS:
                    self._draw()
                    drawn = time.monotonic()
                self.bar.bar_style = "success" if record.step == self.bar.max else "info"
                yield record
        except BaseException:
            self.bar.bar_style = "danger"  # the run failed, or whoever reads the records stopped early
            raise
        finally:
            if self.records:
                self._draw()

    def _write(self, record) -> None:
        self.bar.value = record.step
        remaining = (self.bar.max - record.step) * record.seconds / record.step
        dice = next((r.metrics["mean"] for r in reversed(self.records) if r.metrics), None)
        self.text.value = (
            f"step {record.step} of {self.bar.max}, loss {record.loss:.3f}"
            + (f", validation Dice {dice:.3f}" if dice is not None else "")
            + f", {record.images_per_second:.0f} patches a second, {record.seconds:.0f} s so far, "
            + (f"about {remaining:.0f} s to go" if record.step < self.bar.max else "done")
        )

    def _draw(self) -> None:
        self.curve.value = learning_curve(self.records).html()
