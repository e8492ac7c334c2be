"""The live training plot. It shows what `fit` reports and holds no mathematics of its own."""

import threading
import time
from collections.abc import Iterable, Iterator

try:
    import ipywidgets
    from IPython import get_ipython
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("widgets need ipywidgets: pip install -e '.[notebooks]'") from error

from xlstm_unet_lab.figures.cases import learning_curve
from xlstm_unet_lab.ops.checks import whole_number

REDRAW_SECONDS = 2.0  # between two drawings of the curve: drawing takes time from training
MANY_STEPS = 5  # steps before the first drawing; a curve of one point says nothing
LISTEN_SECONDS = 0.1  # between two looks for clicks while training is held


class TrainingPlot:
    """A progress bar, buttons, a line of text and the learning curve, kept up to date by the records `watch` passes on.

    plot = TrainingPlot(steps=config.steps); display(plot.widget); records = list(plot.watch(lab.fit(...)))

    The button "pause" holds the training before its next step until "resume" is pressed. "stop" ends it there: the
    records so far are handed on, and the model keeps what it has learnt. JupyterLab 4.4 and later with ipykernel 7
    bring clicks to a thread beside the running cell; of ipykernel 6 they are taken here (see `take_clicks`). Elsewhere
    the buttons come too late: interrupt the kernel instead, which `fit` survives.
    """

    def __init__(self, steps: int):
        steps = whole_number("steps", steps)
        self.records: list = []
        self.bar = ipywidgets.IntProgress(max=steps, description="training", layout={"width": "100%"})
        hint = "hold the training, or go on with it"
        self.pause = ipywidgets.Button(description="pause", disabled=True, tooltip=hint)
        self.stop = ipywidgets.Button(description="stop", disabled=True, tooltip="end the training after this step")
        self.text = ipywidgets.HTML("waiting for the first step", layout={"width": "100%"})
        self.curve = ipywidgets.HTML(layout={"width": "100%"})
        self.widget = ipywidgets.VBox([self.bar, ipywidgets.HBox([self.pause, self.stop]), self.text, self.curve])
        for button in (self.pause, self.stop):
            # ipykernel 7.4 would answer where the button was shown, behind the cell that trains, and not where the
            # browser sends its clicks: to the thread beside it.
            button.comm._reply_subshell_for = lambda _, chosen_by_browser: chosen_by_browser
        # Events, as clicks may come from another thread than the one that trains.
        self._going, self._stopped = threading.Event(), threading.Event()
        self.pause.on_click(lambda _: self._hold() if self._going.is_set() else self._resume())
        self.stop.on_click(lambda _: (self._stopped.set(), self._resume()))

    def watch(self, records: Iterable) -> Iterator:
        """Pass every record on and show it; between two of them obey the buttons."""
        drawn = time.monotonic()
        self._stopped.clear()
        self._resume()
        self.pause.disabled = self.stop.disabled = False
        try:
            for record in records:
                self.records.append(record)
                self._write(record)
                if len(self.records) >= MANY_STEPS and time.monotonic() - drawn > REDRAW_SECONDS:
                    self._draw()
                    drawn = time.monotonic()
                self.bar.bar_style = "success" if record.step == self.bar.max else "info"
                yield record
                if record.step < self.bar.max and not self._may_go_on(record):
                    break
        except BaseException:
            self.bar.bar_style = "danger"  # the run failed, or whoever reads the records stopped early
            raise
        finally:
            self.pause.disabled = self.stop.disabled = True
            if hasattr(records, "close"):
                records.close()  # a generator, as `fit` is, puts the model in order when it is closed
            if self.records:
                self._draw()

    def _may_go_on(self, record) -> bool:
        """Wait while the training is held; False once it is stopped."""
        take_clicks()
        if not self._going.is_set():
            self.bar.bar_style = "warning"
            self.text.value = f"held after step {record.step} of {self.bar.max}: press resume or stop"
            self._draw()
        while not self._going.wait(LISTEN_SECONDS):
            take_clicks()
        if self._stopped.is_set():
            self.bar.bar_style = "warning"
            self.text.value = f"stopped after step {record.step} of {self.bar.max}, loss {record.loss:.3f}"
        return not self._stopped.is_set()

    def _hold(self) -> None:
        self._going.clear()
        self.pause.description = "resume"

    def _resume(self) -> None:
        self._going.set()
        self.pause.description = "pause"

    def _write(self, record) -> None:
        self.bar.value = record.step
        remaining = (self.bar.max - record.step) * record.seconds / record.step
        dice = next((r.metrics["mean"] for r in reversed(self.records) if r.metrics), None)
        score = f", validation Dice {dice:.3f}" if dice is not None else ""
        pace = f"{record.images_per_second:.0f} patches a second, {record.seconds:.0f} s so far"
        left = f"about {remaining:.0f} s to go" if record.step < self.bar.max else "done"
        self.text.value = f"step {record.step} of {self.bar.max}, loss {record.loss:.3f}{score}, {pace}, {left}"

    def _draw(self) -> None:
        self.curve.value = learning_curve(self.records).html()


def take_clicks() -> None:
    """Handle what widgets in the browser have sent since the cell began, where ipykernel 6 runs it.

    That kernel puts messages into a queue behind the running cell. Those of widgets are taken out and handled; others,
    such as the next cell to run, stay in their order. Other kernels, and no kernel at all, need nothing.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    queue = getattr(kernel, "msg_queue", None)
    if queue is None:
        return
    kernel.shell_stream.flush()  # from the socket into the queue
    for entry in [queue.get_nowait() for _ in range(queue.qsize())]:
        _, _, (frames, *_) = entry  # number, function, its arguments
        identity, parts = kernel.session.feed_identities(frames, copy=False)
        if kernel.session.unpack(parts[1].bytes)["msg_type"] == "comm_msg":
            message = kernel.session.deserialize(parts, copy=False)
            kernel.comm_manager.comm_msg(kernel.shell_stream, identity, message)
        else:
            queue.put_nowait(entry)
