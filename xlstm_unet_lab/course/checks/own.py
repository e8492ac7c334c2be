"""Whose answer an answer is."""

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, FunctionType

PACKAGE = Path(__file__).parents[2]


class Watched:
    """Inside the block, notes in `called` whether code of the reference runs, whoever calls it and by whatever name.

    Of a class its methods count. A profiler that was at work is back after the block.
    """

    def __init__(self, reference: Callable):
        parts = [reference, *getattr(reference, "__dict__", {}).values()]
        self.codes = {inspect.unwrap(part).__code__ for part in parts if isinstance(part, FunctionType)}
        self.called = False

    def __enter__(self) -> "Watched":
        self.before = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self.before)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        self.called = self.called or (event == "call" and frame.f_code in self.codes)


def is_packages(answer: object) -> bool:
    """Whether an answer is code of this package, as it stands there."""
    while isinstance(answer, partial):
        answer = answer.func
    with suppress(ValueError):  # what is wrapped in itself
        answer = inspect.unwrap(answer)
    file = getattr(getattr(answer, "__code__", None), "co_filename", "")
    return PACKAGE in Path(file).parents or str(getattr(answer, "__module__", "")).startswith(f"{PACKAGE.name}.")
