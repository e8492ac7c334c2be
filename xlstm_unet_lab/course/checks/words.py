"""An exercise from its code and its words. What students read stands in lesson_NN.toml, one table an exercise."""

import functools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

Edit = tuple[str, str]  # what is replaced in the reference, and what takes its place


@functools.cache
def words(lesson: str) -> Mapping[str, Mapping]:
    """The tables of lesson_NN.toml, by the numbers of their exercises."""
    return tomllib.loads(Path(__file__).with_name(f"lesson_{lesson}.toml").read_text(encoding="utf-8"))


def exercise(
    number: str,
    reference: Callable,
    *,
    cases: tuple[Case, ...],
    mistakes: Mapping[str, Edit | tuple[Edit, ...]],
    **options,
) -> Exercise:
    """The exercise of this number, with title, goal, minutes, difficulty and hints from the lesson's words.

    mistakes: by the name of each its edit, or several, made one after the other (see Mistake).
    options: `tolerance` and `use` of an Exercise.
    Raises KeyError where the words have no such exercise, ValueError where a mistake has only words or only an edit.
    """
    text = {name: _in_one_line(value) for name, value in words(number[:2])[number].items()}
    hints = text.pop("mistakes")
    if lonely := mistakes.keys() ^ hints.keys():
        raise ValueError(f"exercise {number}: mistakes with an edit but no words, or the reverse: {sorted(lonely)}")
    planted = tuple(Mistake(name, *_old_and_new(edits), hints[name]) for name, edits in mistakes.items())
    return Exercise(number=number, reference=reference, cases=cases, mistakes=planted, **text, **options)


def _old_and_new(edits: Edit | tuple[Edit, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    pairs = (edits,) if isinstance(edits[0], str) else edits
    return tuple(old for old, _ in pairs), tuple(new for _, new in pairs)


def _in_one_line(value: object) -> object:
    """A value of the file with its texts in one line: there they go over several."""
    if isinstance(value, Mapping):
        return {name: _in_one_line(one) for name, one in value.items()}
    if isinstance(value, list):
        return tuple(map(_in_one_line, value))
    return " ".join(value.split()) if isinstance(value, str) else value
