"""Exercises of every sort: results of several parts, classes, arguments with things inside; and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from xlstm_unet_lab.course import check
from xlstm_unet_lab.course.checks import all_exercises, find_exercise
from xlstm_unet_lab.course.checks.words import exercise, words
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake
from xlstm_unet_lab.course.feedback import NOT_ATTEMPTED, WRONG


@pytest.fixture(autouse=True)
def note_nothing(monkeypatch):
    monkeypatch.setattr("xlstm_unet_lab.course.feedback.note", lambda number, **steps: "")


def example(reference, arguments, **options):
    """An exercise about this reference, which must have one `return`, with whatever else an exercise must have."""
    mistakes = tuple(Mistake(str(n), "return ", f"return 'mistake {n}' or ", f"hint {n}") for n in range(4))
    parts = {"cases": (Case("the one case", arguments),) * 2, "hints": ("think",), "mistakes": mistakes} | options
    shared = {"number": "99.1", "title": "an example", "goal": "Write it.", "minutes": 5, "difficulty": 1}
    return Exercise(reference=reference, not_tested="much.", **shared, **parts)


def checked(monkeypatch, exercise, answer):
    monkeypatch.setattr("xlstm_unet_lab.course.feedback.find_exercise", lambda number: exercise)
    return check(exercise.number, answer)


STATE = {"h": torch.arange(6.0).reshape(2, 3), "state": (torch.ones(2), 3), "name": "leak", "stable": True}


def state():
    return STATE


def one(state, settings, name):
    return 1.0


def squares(numbers):
    total = 0
    for number in numbers:
        total += number**2
    return total


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "All 2 cases agree"),
        ({"state": [torch.ones(2), 3.0]}, "All 2 cases agree"),  # a list will do for a tuple
        ({"h": torch.arange(6.0).reshape(3, 2)}, "Wrong shape in result['h']: expected (2, 3), got (3, 2). The axes"),
        ({"h": STATE["h"].double()}, "Wrong dtype in result['h']: expected torch.float32, got torch.float64."),
        (
            {"h": STATE["h"].where(STATE["h"] != 4, torch.nan)},
            "NaN (not a number) in result['h']: 1 of 6 values, the first",
        ),
        ({"state": (torch.ones(2), 4)}, "Wrong values in result['state'][1]: expected 3, got 4."),
        (
            {"state": (torch.tensor([1.0, 3.0]), 3)},
            "result['state'][0]: 1 of 2 values, the first at [1]: expected 1, got 3.",
        ),
        (
            {"state": torch.ones(2)},
            "Wrong type in result['state']: expected a sequence of length 2, got a PyTorch tensor",
        ),
        ({"state": (1, 2, 3)}, "expected a sequence of length 2, got a sequence of length 3"),
        ({"name": "overflow"}, "Wrong answer in result['name']: 'overflow'."),
        ({"stable": np.False_}, "Wrong answer in result['stable']: np.False_."),
        ({"more": 1}, "got a dictionary with the keys ['h', 'more', 'name', 'stable', 'state']"),
    ],
)
def test_results_of_several_parts_are_compared_part_by_part(monkeypatch, change, words):
    exercise = example(state, ())
    result = checked(monkeypatch, exercise, lambda: STATE | change)
    assert words in str(result) and result.passed == words.startswith("All"), str(result)
    assert "leak" not in str(result), "the right word is for the student to find"


def test_a_planted_mistake_of_several_parts_is_known(monkeypatch):
    result = checked(monkeypatch, example(state, ()), lambda: "mistake 2")
    assert "A likely reason: hint 2" in str(result)


@pytest.mark.parametrize("empty", [(None, None), {"h": ..., "state": None}])
def test_parts_that_are_all_empty_are_no_attempt(monkeypatch, empty):
    assert checked(monkeypatch, example(state, ()), lambda: empty).status == NOT_ATTEMPTED


def test_a_change_inside_an_argument_is_seen(monkeypatch):
    def adds(state, settings, name):
        state[1].add_(1)
        return 1.0

    exercise = example(one, ((torch.zeros(1), torch.ones(2)), {"a": 1}, "name"))
    result = checked(monkeypatch, exercise, adds)
    assert "Argument changed in place: `state`. " in str(result) and ".clone()" in str(result)
    assert checked(monkeypatch, exercise, lambda state, settings, name: settings.clear() or 1.0).status == WRONG


class Doubler(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Unwritten(Doubler):
    def forward(self, x): ...


class Broken(Doubler):
    def forward(self, x):
        return x @ x


def test_a_class_is_used_as_the_exercise_says(monkeypatch):
    use = lambda answer, factor, x: answer(factor)(x)  # noqa: E731
    exercise = example(Doubler, (2.0, torch.ones(2, 3)), use=use)
    assert exercise.argument_names == ("factor", "x")
    assert exercise.solution.startswith("class Doubler(")
    assert checked(monkeypatch, exercise, Doubler).passed
    assert checked(monkeypatch, exercise, Unwritten).status == NOT_ATTEMPTED
    result = checked(monkeypatch, exercise, Broken)
    assert "stopped with RuntimeError" in str(result) and "return x @ x" in result.trace


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "0.1"}, "lesson, dot, position"),
        ({"difficulty": 6}, "difficulty must be 1 to 5"),
        ({"minutes": 0}, "minutes"),
        ({"cases": ()}, "at least 2 cases"),
        ({"mistakes": ()}, "at least 4 mistakes"),
        ({"hints": ()}, "at least one hint"),
        ({"mistakes": (Mistake("silent", "return ", "", ""),) * 4}, "every mistake its hint"),
        ({"not_tested": " "}, "not tested"),
    ],
)
def test_an_incomplete_exercise_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(find_exercise("00.1"), **change)


# ------------------------------------------------------------------------------------------------ planted mistakes


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("number**2", "number**3", 36),
        ("    for number in numbers:\n        total += number**2\n", "", 0),
        (("total = 0", "number**2"), ("total = 1", "2 * number"), 13),
        (("number**2", "number**3"), ("number**3", "number"), 6),  # the second edits what the first has left
        ("return total", "return round(float(np.sqrt(total)), 3)", 3.742),  # a name of the reference's module
    ],
)
def test_a_mistake_is_an_edit_of_the_reference(old, new, expected):
    exercise, mistake = example(squares, ([1, 2],)), Mistake("an edit", old, new, "think")
    answer = exercise.answer_of(mistake)
    assert answer([1, 2, 3]) == expected and squares([1, 2, 3]) == 14
    assert exercise.answer_of(mistake) is answer


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cube", "square", r"exercise 99\.1, mistake 'an edit': 'cube' occurs 0 times in the reference, expected once"),
        ("total", "sum", "'total' occurs 3 times in the reference, expected once"),
        (("number**2", "number**2"), ("number", "1"), r"'number\*\*2' occurs 0 times"),
        (("total = 0", "number**2"), ("total = 1",), "shorter"),
        (("total = 0",), ("total = 1", "total = 2"), "longer"),
    ],
)
def test_an_edit_that_cannot_be_made_is_an_error(old, new, message):
    with pytest.raises(ValueError, match=message):
        example(squares, ([1, 2],)).answer_of(Mistake("an edit", old, new, "think"))


def test_a_class_is_edited_too_and_a_traceback_shows_the_edit(monkeypatch):
    exercise = example(Doubler, (2.0, torch.ones(2, 3)), use=lambda answer, factor, x: answer(factor)(x))
    mistake = Mistake("breaks", "self.factor * x", "x @ x", "think")
    result = checked(monkeypatch, exercise, exercise.answer_of(mistake))
    assert "<exercise 99.1, mistake 'breaks'>" in result.trace and "return x @ x" in result.trace


# ---------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("lesson", sorted({number[:2] for number in all_exercises()}))
def test_words_and_exercises_are_of_the_same_numbers(lesson):
    assert set(words(lesson)) == {number for number in all_exercises() if number.startswith(lesson)}


def test_words_over_several_lines_are_one():
    texts = [hint for one in all_exercises().values() for hint in (*one.hints, *(wrong.hint for wrong in one.mistakes))]
    assert len(texts) > 400 and all(text == " ".join(text.split()) for text in texts)


def test_an_edit_without_words_and_words_without_an_edit_are_named():
    edits = dict.fromkeys(words("00")["00.1"]["mistakes"], ("return 1.0", "return 0.0"))
    edits["new"] = edits.pop("smoothed by 1")
    with pytest.raises(ValueError, match=r"exercise 00\.1: .*\['new', 'smoothed by 1'\]"):
        exercise("00.1", find_exercise("00.1").reference, cases=find_exercise("00.1").cases, mistakes=edits)
    with pytest.raises(KeyError, match=r"00\.9"):
        exercise("00.9", squares, cases=(), mistakes={})
