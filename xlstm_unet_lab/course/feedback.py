"""`check`, `hint` and `reveal`: what a student hears about an answer, in plain words. All three note the progress."""

import html
import re
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xlstm_unet_lab.course.checks import find_exercise
from xlstm_unet_lab.course.checks.own import Watched, is_packages
from xlstm_unet_lab.course.exercise import (
    COMPARABLE,
    NUMBER,
    Exercise,
    Outcome,
    as_numbers,
    close,
    inside,
    kind,
    run,
    same_outcome,
    same_values,
)
from xlstm_unet_lab.course.progress_file import note

RIGHT, WRONG, NOT_ATTEMPTED = "right", "not right yet", "not attempted yet"

# Edge colours that stand out on white and on black alike; the heading says the same in words. Right is blue: readers
# who do not tell red from green would not tell a green edge from the orange one.
COLOURS = {RIGHT: "#3b82c4", WRONG: "#c2700a"}
OTHER_COLOUR = "#808080"

NOT_YOURS = "It is the package's own answer, and so it is not counted as yours."

_hints_given: Counter[str] = Counter()


@dataclass(frozen=True)
class Result:
    """An answer of the course; shows itself as HTML in JupyterLab and as text elsewhere."""

    heading: str
    status: str
    sentences: tuple[str, ...]
    code: str = ""
    trace: str = ""  # what Python said when the answer stopped with an error

    @property
    def passed(self) -> bool:
        """Whether a check found the answer right."""
        return self.status == RIGHT

    def __str__(self) -> str:
        parts = [f"{self.heading}: {self.status}", *self.sentences]
        parts += [self.code] if self.code else []
        parts += [f"What Python said:\n{self.trace}"] if self.trace else []
        return "\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colour = COLOURS.get(self.status, OTHER_COLOUR)
        label = html.escape(f"{self.heading}: {self.status}")
        paragraphs = "".join(f"<p>{_with_code(sentence)}</p>" for sentence in self.sentences)
        code = f"<pre><code>{html.escape(self.code)}</code></pre>" if self.code else ""
        trace = html.escape(self.trace)
        trace = trace and f"<details><summary>What Python said</summary><pre>{trace}</pre></details>"
        style = f"border-left: 4px solid {colour}; padding-left: 12px"
        return f'<div role="status" style="{style}"><h4>{label}</h4>{paragraphs}{code}{trace}</div>'


def check(number: str, answer: object) -> Result:
    """Compare an answer with the reference on every case of an exercise and say in plain words what is wrong first.

    answer: the student's function itself. A wrong answer never raises; KeyError is raised for an unknown number.
    """
    exercise = find_exercise(number)
    watched = Watched(exercise.reference)
    result = _compare(exercise, answer, watched)
    if result.status == NOT_ATTEMPTED:
        return result
    own = not (watched.called or is_packages(answer))
    result = _noted(result, NOT_YOURS if result.passed and not own else "")
    return _noted(result, note(number, tries=1, right=result.passed, own=own))


def _compare(exercise: Exercise, answer: object, watched: Watched) -> Result:
    number = exercise.number
    if answer is None or answer is Ellipsis:
        return _not_attempted(exercise)
    if not callable(answer):
        given = f"What was checked is {kind(answer)}, not a function."
        name = exercise.reference.__name__
        return _result(
            exercise, WRONG, given, f'Pass the function itself, without calling it: `check("{number}", {name})`.'
        )
    with watched:
        outcomes = run(answer, exercise)
    if all(outcome.is_empty for outcome in outcomes):
        return _not_attempted(exercise)
    expected = run(exercise.reference, exercise)
    faults = [fault(right, got, exercise.tolerance) for right, got in zip(expected, outcomes, strict=True)]
    if not any(faults):
        agree = f"All {len(faults)} cases agree with the reference."
        return _result(exercise, RIGHT, agree, f"Not tested: {exercise.not_tested}")
    first = next(position for position, words in enumerate(faults) if words)
    count = f"{faults.count('')} of {len(faults)} cases are right."
    sentences = [f"{count} The first that is not: {exercise.cases[first].description}.", faults[first]]
    sentences += [f"A likely reason: {reason}" for reason in _known_mistake(exercise, outcomes)]
    sentences.append(f'More help: `hint("{number}")`, and at the end `reveal("{number}")`.')
    return _result(exercise, WRONG, *sentences, trace=_trace(outcomes[first].error))


def hint(number: str) -> Result:
    """The next hint of an exercise: the first on the first call, and so on; the last one again after that.

    Raises KeyError for an unknown number.
    """
    exercise = find_exercise(number)
    total = len(exercise.hints)
    position = min(_hints_given[number], total - 1)
    _hints_given[number] = position + 1
    more = f"the next call gives hint {position + 2}" if position + 1 < total else "this is the last hint"
    ending = f'{more[0].upper()}{more[1:]}; `reveal("{number}")` shows a solution.'
    result = _result(exercise, f"hint {position + 1} of {total}", exercise.hints[position], ending)
    return _noted(result, note(number, hints=1))


def reveal(number: str) -> Result:
    """The source of a solution of an exercise; KeyError for an unknown number."""
    exercise = find_exercise(number)
    advice = "Read it, close it, and write it again in your own words."
    result = _result(exercise, "a solution", exercise.goal, advice, code=exercise.solution)
    return _noted(result, note(number, reveals=1))


def fault(expected: Outcome, got: Outcome, tolerance: float) -> str:
    """Say in words the first thing that is wrong with one outcome; an empty text when nothing is."""
    if got.error is not None:
        return f"Your function stopped with {type(got.error).__name__}: {got.error}"
    if got.changed:
        names = " and ".join(f"`{name}`" for name in got.changed)
        copying = "work on a copy, made with `.copy()`, of a tensor with `.clone()`"
        return f"Argument changed in place: {names}. The caller still needs it; {copying}."
    if got.is_empty:
        return "Your function returned nothing here: every way through it must end with `return`."
    return _wrong_value(expected.value, got.value, tolerance, "")


def _wrong_value(expected: object, got: object, tolerance: float, at: str) -> str:
    """What is wrong first, going through tuples and dictionaries; `at` says where in the result we are."""
    if kind(got) != kind(expected):
        return f"Wrong type{at}: expected {kind(expected)}, got {kind(got)}."
    if held := inside(expected):
        others, start = inside(got), at or " in result"
        words = (_wrong_value(value, others[key], tolerance, f"{start}[{key!r}]") for key, value in held.items())
        return next(filter(None, words), "")
    if kind(expected) not in COMPARABLE:  # the right word is not told: finding it is the exercise
        return "" if same_values(expected, got, tolerance) else f"Wrong answer{at}: {got!r}."
    expected_shape, shape = tuple(np.shape(expected)), tuple(np.shape(got))
    if shape != expected_shape:
        turned = " The axes are all there, in another order." if sorted(shape) == sorted(expected_shape) else ""
        return f"Wrong shape{at}: expected {expected_shape}, got {shape}.{turned}"
    if kind(expected) != NUMBER and got.dtype != expected.dtype:
        return f"Wrong dtype{at}: expected {expected.dtype}, got {got.dtype}."
    return _wrong_numbers(as_numbers(expected), as_numbers(got), tolerance, at)


def _wrong_numbers(expected: np.ndarray, got: np.ndarray, tolerance: float, at: str) -> str:
    wrong = ~close(expected, got, tolerance)
    if not wrong.any():
        return ""
    kinds = {"NaN (not a number)": np.isnan(got), "Not finite": ~np.isfinite(got), "Wrong values": wrong}
    name, marked = next((name, wrong & those) for name, those in kinds.items() if (wrong & those).any())
    first = tuple(np.argwhere(marked)[0])
    pair = f"expected {expected[first]:.6g}, got {got[first]:.6g}"
    if expected.ndim == 0:
        return f"{name}{at}: {pair}."
    place = "[" + ", ".join(map(str, first)) + "]"
    words = f"{name}{at}: {marked.sum()} of {marked.size} values, the first at {place}: {pair}."
    largest = np.abs(got[wrong] - expected[wrong]).max()  # elsewhere both may be infinite, and their difference NaN
    return f"{words} The largest difference is {largest:.6g}." if np.isfinite(largest) else words


def _known_mistake(exercise: Exercise, outcomes: list[Outcome]) -> list[str]:
    """The hint of the planted mistake that gives the same outcome on every case, if there is one."""
    for mistake in exercise.mistakes:
        pairs = zip(outcomes, run(exercise.answer_of(mistake), exercise), strict=True)
        if all(same_outcome(got, planted, exercise.tolerance) for got, planted in pairs):
            return [mistake.hint]
    return []


def _not_attempted(exercise: Exercise) -> Result:
    what_to_do = "Put your code in place of the line `...`, run that cell, then run this one again."
    return _result(exercise, NOT_ATTEMPTED, exercise.goal, what_to_do, "The lesson goes on without it.")


def _result(exercise: Exercise, status: str, *sentences: str, code: str = "", trace: str = "") -> Result:
    return Result(f"Exercise {exercise.number}, {exercise.title}", status, sentences, code, trace)


def _noted(result: Result, trouble: str) -> Result:
    """The result, with a sentence about the progress file where something is wrong with it."""
    return replace(result, sentences=(*result.sentences, trouble)) if trouble else result


def _trace(error: Exception | None) -> str:
    """The traceback from the student's own code on, without the frames of this course that called it."""
    frames = error.__traceback__ if error else None
    while frames and Path(__file__).parent in Path(frames.tb_frame.f_code.co_filename).parents:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip() if error else ""


def _with_code(sentence: str) -> str:
    """Escape a sentence for HTML and set what stands between backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(sentence))
