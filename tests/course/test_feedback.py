"""Every exercise: the stub, the solution and every planted mistake get the words they deserve."""

import inspect
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from xlstm_unet_lab.course import check, hint, reveal
from xlstm_unet_lab.course.checks import all_exercises, lesson_00
from xlstm_unet_lab.course.exercise import Outcome
from xlstm_unet_lab.course.feedback import COLOURS, NOT_ATTEMPTED, OTHER_COLOUR, RIGHT, WRONG, Result, fault
from xlstm_unet_lab.evaluation import metrics

EXERCISES = tuple(all_exercises().values())
MISTAKES = [
    pytest.param(exercise, mistake, id=f"{exercise.number}-{mistake.name}")
    for exercise in EXERCISES
    for mistake in exercise.mistakes
]
every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)
SHAPES = npst.array_shapes(min_dims=1, max_dims=3, max_side=5)


@pytest.fixture(autouse=True)
def no_hints_given_yet(monkeypatch):
    """Neither here nor, as writing files takes time, in a progress file; test_progress_file.py is about that."""
    monkeypatch.setattr("xlstm_unet_lab.course.feedback._hints_given", Counter())
    monkeypatch.setattr("xlstm_unet_lab.course.feedback.note", lambda number, **steps: "")


class Page(HTMLParser):
    """What a screen reader finds: headings and the whole text; refuses tags that are not closed in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.headings, self.text, self.roles = [], [], "", []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.roles += [value for name, value in attributes if name == "role"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "h4" in self.open:
            self.headings.append(data)


# --------------------------------------------------------------------------------------------- every exercise


@every_exercise
@pytest.mark.parametrize("stub", [None, ..., lambda *arguments: None, lambda *arguments: ...])
def test_a_blank_stub_is_not_attempted(exercise, stub):
    result = check(exercise.number, stub)
    assert result.status == NOT_ATTEMPTED
    assert not result.passed
    assert "not attempted yet" in str(result)
    assert exercise.goal in result.sentences


@every_exercise
def test_the_solution_passes_and_hears_what_was_not_tested(exercise):
    result = check(exercise.number, exercise.reference)
    assert result.passed
    assert result.status == RIGHT
    assert f"Not tested: {exercise.not_tested}" in result.sentences


@every_exercise
def test_the_revealed_source_is_a_solution(exercise):
    around = vars(inspect.getmodule(exercise.reference))
    namespace = {name: value for name, value in around.items() if inspect.ismodule(value)}  # np, torch, math, ...
    exec(reveal(exercise.number).code, namespace)
    assert check(exercise.number, namespace[exercise.reference.__name__]).passed


@every_exercise
def test_every_mistake_is_an_edit_of_the_reference(exercise):
    assert all(callable(exercise.answer_of(mistake)) for mistake in exercise.mistakes)


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
def test_a_planted_mistake_gets_its_own_hint_and_no_other(exercise, mistake):
    result = check(exercise.number, exercise.answer_of(mistake))
    assert result.status == WRONG
    assert [one.name for one in exercise.mistakes if one.hint in str(result)] == [mistake.name]


@every_exercise
def test_mistakes_and_hints_are_told_apart(exercise):
    hints = [mistake.hint for mistake in exercise.mistakes]
    assert len(set(hints)) == len(hints)
    assert len(set(exercise.hints)) == len(exercise.hints)


@every_exercise
def test_cases_are_left_as_they_were(exercise):
    before = repr(exercise.cases)
    for answer in (exercise.reference, *(exercise.answer_of(mistake) for mistake in exercise.mistakes)):
        check(exercise.number, answer)
    assert repr(exercise.cases) == before


@every_exercise
def test_hints_come_one_by_one_and_the_last_stays(exercise):
    total = len(exercise.hints)
    for position in [*range(total), total - 1]:
        result = hint(exercise.number)
        assert result.status == f"hint {position + 1} of {total}"
        assert result.sentences[0] == exercise.hints[position]
        assert "reveal(" in result.sentences[-1]


def test_hints_of_one_exercise_do_not_use_up_those_of_another():
    hint("00.1")
    assert hint("00.2").status.startswith("hint 1 ")


@pytest.mark.parametrize("function", [lambda number: check(number, None), hint, reveal])
def test_an_unknown_number_names_the_nearest(function):
    with pytest.raises(KeyError, match=r"no exercise '00\.11'; the nearest is '00\.1'"):
        function("00.11")


# -------------------------------------------------------------------------------------- what is wrong, in words


def raises(prediction, truth):
    return prediction / no_such_name  # noqa: F821


@pytest.mark.parametrize(
    ("number", "answer", "words"),
    [
        ("00.1", 0.5, r"is a number, not a function.* `check\(\"00\.1\", dice\)`"),
        ("00.1", lambda p, t: "0.5", "Wrong type: expected a number, got a value of type str"),
        ("00.1", lambda p, t: True, "Wrong type: expected a number, got True or False"),
        ("00.1", lambda p, t: np.ones(2), "Wrong type: expected a number, got a NumPy array"),
        ("00.1", lambda p, t: torch.ones(()), "Wrong type: expected a number, got a PyTorch tensor"),
        ("00.1", lambda p: 1.0, "stopped with TypeError"),
        ("00.1", lambda p, t: lesson_00.dice(p, t) if p.any() else None, "returned nothing here"),
        ("00.1", lambda p, t: float("nan"), r"NaN \(not a number\): expected 0\.4, got nan"),
        ("00.1", lambda p, t: np.inf, r"Not finite: expected 0\.4, got inf"),
        ("00.1", lambda p, t: 0.4, r"1 of 7 cases are right.*two equal masks.*expected 1, got 0\.4"),
        ("00.2", lambda p, t: [0], "Wrong type: expected a NumPy array, got a sequence of length 1"),
        ("00.2", lambda p, t: np.array([None]), "expected a NumPy array, got a NumPy array of dtype object"),
        ("00.2", lambda p, t: np.zeros(4, np.uint8), r"Wrong shape: expected \(3, 4\), got \(4,\)\.\n"),
        ("00.2", lambda p, t: lesson_00.error_map(p, t).T, r"expected \(3, 4\), got \(4, 3\)\. The axes are all there"),
        ("00.2", lambda p, t: lesson_00.error_map(p, t).astype(int), "Wrong dtype: expected uint8, got int64"),
        (
            "00.2",
            lambda p, t: lesson_00.error_map(p, t) * 0,
            r"5 of 12 values, the first at \[0, 2\]: expected 1, got 0",
        ),
        ("00.2", lambda p, t: t.__setitem__(..., 0) or lesson_00.error_map(p, t), "changed in place: `truth`"),
    ],
)
def test_a_wrong_answer_is_explained(number, answer, words):
    result = check(number, answer)
    assert result.status == WRONG
    assert re.search(words, str(result), flags=re.DOTALL), str(result)


@pytest.mark.parametrize("number_type", [float, np.float32, np.float64])
def test_any_type_of_number_is_a_number(number_type):
    assert check("00.1", lambda p, t: number_type(lesson_00.dice(p, t))).passed


def test_the_traceback_is_folded_and_starts_at_the_students_code():
    result = check("00.1", raises)
    assert "no_such_name" in result.trace
    assert "exercise.py" not in result.trace
    assert "<details><summary>" in result._repr_html_()
    assert result._repr_html_().index("stopped with NameError") < result._repr_html_().index("<details>")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_compared_too(dtype):
    right = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    wrong = right.detach().clone()
    wrong[1, 0] = torch.nan
    assert fault(Outcome(right), Outcome(right.detach()), 1e-6) == ""
    assert "NaN (not a number): 1 of 4 values, the first at [1, 0]" in fault(Outcome(right), Outcome(wrong), 1e-6)
    assert "Wrong dtype" in fault(Outcome(right), Outcome(wrong.double()), 1e-6)


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        ([np.inf, 1.0], [np.inf, 3.0], "expected 1, got 3. The largest difference is 2."),
        ([-np.inf, 1.0, 2.0], [-np.inf, 3.0, 2.5], "expected 1, got 3. The largest difference is 2."),
        ([np.inf, 1.0], [5.0, 1.0], "expected inf, got 5."),
        ([np.nan, 1.0], [5.0, 1.0], "expected nan, got 5."),
        ([np.inf, 1.0], [-np.inf, 3.0], "Not finite: 1 of 2 values, the first at [0]: expected inf, got -inf."),
        (
            [np.inf, 1.0],
            [np.nan, np.nan],
            "NaN (not a number): 2 of 2 values, the first at [0]: expected inf, got nan.",
        ),
        ([1.0, 1.0], [np.inf, np.nan], "NaN (not a number): 1 of 2 values, the first at [1]: expected 1, got nan."),
    ],
)
def test_infinite_values_are_compared_without_a_warning(expected, got, words, recwarn):
    assert fault(Outcome(np.array(expected)), Outcome(np.array(got)), 1e-6).endswith(words)
    assert not recwarn.list


def test_what_python_would_warn_about_is_said_once(recwarn):
    check("00.1", lambda p, t: np.float64(0) / np.float64((p & t).sum()))
    assert not recwarn.list


# ------------------------------------------------------------------------------------------------ what is shown


@every_exercise
@pytest.mark.parametrize("make", [reveal, hint, lambda number: check(number, raises), lambda number: check(number, 1)])
def test_html_says_all_that_the_text_says(exercise, make):
    result = make(exercise.number)
    page = Page(result._repr_html_())
    assert page.headings == [f"{result.heading}: {result.status}"]
    assert page.roles == ["status"]
    for part in (*result.sentences, result.code, result.trace):
        assert part.replace("`", "") in page.text.replace("`", "")
        assert part in str(result)


def test_html_escapes_what_students_write():
    page = Result("Exercise", WRONG, ("a < b & `c > d`",), trace="<module>")._repr_html_()
    assert "a &lt; b &amp; <code>c &gt; d</code>" in page
    assert "&lt;module&gt;" in page


@pytest.mark.parametrize("colour", [*COLOURS.values(), OTHER_COLOUR])
@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_edges_stand_out_in_both_themes(colour, background):
    def luminance(code):  # WCAG 2.2, relative luminance
        channels = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    darker, lighter = sorted((luminance(colour), luminance(background)))
    assert (lighter + 0.05) / (darker + 0.05) >= 3  # WCAG 2.2, 1.4.11: what is not text


# ------------------------------------------------------------------------------- references against known answers


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_dice_agrees_with_the_metric(data):
    shape = data.draw(SHAPES)
    prediction, truth = (data.draw(npst.arrays(bool, shape)) for _ in range(2))
    assert lesson_00.dice(prediction, truth) == pytest.approx(metrics.dice(prediction, truth), abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_error_map_agrees_pixel_by_pixel(data):
    shape = data.draw(SHAPES)
    prediction, truth = (data.draw(npst.arrays(int, shape, elements=st.integers(0, 3))) for _ in range(2))
    codes = lesson_00.error_map(prediction, truth)
    for p, t, code in zip(prediction.flat, truth.flat, codes.flat, strict=True):
        assert code == (0 if p == t else 1 if p == 0 else 2 if t == 0 else 3)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_blended_constants_stay_what_they_are(data):
    count, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    starts = np.cumsum([0, *data.draw(st.lists(st.integers(1, width), min_size=count - 1, max_size=count - 1))])
    weights = data.draw(npst.arrays(float, width, elements=st.floats(0.1, 2)))
    blended = lesson_00.blend(np.full((count, width), 3.0), starts, weights, int(starts[-1]) + width)
    np.testing.assert_allclose(blended, 3.0, rtol=1e-12)


def test_compared_scores_are_those_of_a_paired_t_test():
    first, second = np.random.default_rng(0).random((2, 20))
    mean, error = lesson_00.compare_scores(first, second)
    assert mean / error == pytest.approx(stats.ttest_rel(first, second).statistic, rel=1e-12)
