"""The exercises of every lesson: each module lesson_NN, or lesson_NN_topic where one gets long, holds `EXERCISES`.

What students read of them stands in lesson_NN.toml.
"""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from xlstm_unet_lab.course.exercise import Exercise


@functools.cache
def all_exercises() -> Mapping[str, Exercise]:
    """Every exercise by its number, in the order of the lessons.

    Raises ValueError when a number is used twice or stands in another lesson's module.
    """
    found: dict[str, Exercise] = {}
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("lesson_"))
    for name in names:
        for exercise in importlib.import_module(f"{__name__}.{name}").EXERCISES:
            if exercise.number in found or exercise.number.split(".")[0] != name.split("_")[1]:
                raise ValueError(f"{name}.py: exercise number {exercise.number!r} is taken or of another lesson")
            found[exercise.number] = exercise
    in_order = sorted(found, key=lambda number: [int(part) for part in number.split(".")])
    return MappingProxyType({number: found[number] for number in in_order})


def find_exercise(number: str) -> Exercise:
    """The exercise of this number; KeyError with the nearest number and the whole list when there is none."""
    exercises = all_exercises()
    if number not in exercises:
        nearest = difflib.get_close_matches(str(number), exercises, n=1, cutoff=0.0)[0]
        raise KeyError(f"there is no exercise {number!r}; the nearest is {nearest!r}, all are {', '.join(exercises)}")
    return exercises[number]
