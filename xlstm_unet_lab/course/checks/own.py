"""Whose answer an answer is."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from xlstm_unet_lab.course.checks import find_exercise

PACKAGE = Path(__file__).parents[2]


def is_own(answer: object, reference: Callable) -> bool:
    """Whether an answer is a student's: neither code of this package nor a detour to the reference."""
    while isinstance(answer, partial):
        answer = answer.func
    with suppress(ValueError):  # what is wrapped in itself
        answer = inspect.unwrap(answer)
    code, reached = getattr(answer, "__code__", None), [answer, *getattr(answer, "__mro__", ())]
    if inspect.isfunction(answer):
        with suppress(ValueError):  # a name of the function around it that has no value
            names = inspect.getclosurevars(answer)
            reached += [*names.nonlocals.values(), *names.globals.values()]
    if code and reference.__name__ in code.co_names:
        reached += [getattr(value, reference.__name__, None) for value in reached if inspect.ismodule(value)]
    in_package = code and PACKAGE in Path(code.co_filename).parents
    in_package = in_package or str(getattr(answer, "__module__", "")).startswith(f"{PACKAGE.name}.")
    return not in_package and not any(value is reference or value is find_exercise for value in reached)
