"""A progress bar for what takes longer than nobody minds; where no terminal shows it, a plain line now and then."""

import math
import sys
import time

from xlstm_unet_lab.ops.words import printable

PATIENCE = 2  # seconds without a sign of life that nobody minds
INTERVAL = 30  # seconds between lines, in the log of a job that runs for hours
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} so far, {remaining} to go{postfix}"


class Lines:
    """A file for tqdm to draw on: of all that it draws over itself it prints a line an interval, and the last one."""

    def __init__(self) -> None:
        self.printed, self.waiting = -math.inf, ""

    def write(self, text: str) -> None:
        self.waiting = text.strip() or self.waiting
        if self.waiting and (time.monotonic() >= self.printed + INTERVAL or text == "\n"):  # with which a bar ends
            sys.stderr.write(f"{self.waiting}\n")
            self.printed, self.waiting = time.monotonic(), ""

    def flush(self) -> None:
        """What tqdm asks for after each drawing."""
        sys.stderr.flush()


def bar(items=None, *, desc: str, unit: str, **options):
    """The items of a list, or a bar to update by hand: tqdm, which appears when `PATIENCE` has passed.

    On standard error; options are tqdm's. A notebook shows its own kind of bar.
    """
    from tqdm.auto import tqdm

    shown = {"desc": printable(desc), "unit": unit, "delay": PATIENCE} | options
    in_notebook = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not (sys.stderr.isatty() or in_notebook):
        shown |= {"file": Lines(), "bar_format": LINE, "mininterval": PATIENCE, "position": 0}
    return tqdm(items, **shown)
