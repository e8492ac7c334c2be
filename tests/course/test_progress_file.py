"""Progress is noted step by step in one file that survives damage, a full disk and two notebooks at once."""

import dataclasses
import functools
import inspect
import json
import os
import sys
import threading
import types
from html.parser import HTMLParser

import pytest

from xlstm_unet_lab.course import check, hint, progress, progress_file, reveal
from xlstm_unet_lab.course.checks import all_exercises, find_exercise, lesson_00
from xlstm_unet_lab.course.checks.own import Watched
from xlstm_unet_lab.course.exercise import run
from xlstm_unet_lab.course.progress_file import Attempts, note, progress_path, read_progress

NOTHING = Attempts()


def dice(prediction, truth):
    """A student's own answer to 00.1."""
    total = prediction.sum() + truth.sum()
    return 1.0 if total == 0 else 2 * (prediction * truth).sum() / total


@pytest.fixture(autouse=True)
def path(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_PROGRESS", str(tmp_path / "mine" / "progress.json"))
    return tmp_path / "mine" / "progress.json"


def test_nothing_done_yet_writes_nothing(path):
    shown = progress()
    assert set(shown.attempts.values()) == {NOTHING} and list(shown.attempts) == list(all_exercises())
    assert shown.heading.startswith(f"0 of {len(all_exercises())} exercises are right")
    assert not path.exists()


def test_steps_add_up_until_the_first_right_answer(path):
    check("00.1", lambda prediction, truth: None)
    assert not path.exists(), "a blank answer is no try"
    check("00.1", lambda prediction, truth: 0.5)
    hint("00.1"), hint("00.1"), reveal("00.1")
    check("00.1", dice)
    first = read_progress(path)["00.1"]
    assert dataclasses.replace(first, right="") == Attempts(tries=2, hints=2, reveals=1, how="revealed")
    assert first.right.endswith("+00:00")
    before = path.stat().st_mtime_ns
    check("00.1", dice), check("00.1", lambda prediction, truth: 0.5)
    assert read_progress(path)["00.1"] == first and path.stat().st_mtime_ns == before


REFERENCE = lesson_00.dice


class Called:
    """What looks like an answer and calls the reference."""

    @staticmethod
    def answer(prediction, truth):
        return REFERENCE(prediction, truth)


EXERCISE = find_exercise("00.1")


class CalledObject:
    def __call__(self, *arguments):
        return REFERENCE(*arguments)


def nested(*arguments):
    def inner(*others):
        return REFERENCE(*others)

    return inner(*arguments)


DETOURS = {
    "itself": REFERENCE,
    "found": find_exercise("00.1").reference,
    "in part": functools.partial(REFERENCE),
    "in part of a part": functools.partial(functools.partial(REFERENCE)),
    "in a lambda": lambda prediction, truth: REFERENCE(prediction, truth),
    "by its module": lambda prediction, truth: lesson_00.dice(prediction, truth),
    "found when called": lambda prediction, truth: find_exercise("00.1").reference(prediction, truth),
    "in a method": Called.answer,
    "with its code": types.FunctionType(REFERENCE.__code__, REFERENCE.__globals__ | {"__name__": "mine"}),
    "wrapped": functools.wraps(REFERENCE)(lambda *arguments: REFERENCE(*arguments)),
    "by its exercise": lambda *arguments: EXERCISE.reference(*arguments),
    "as a default": lambda prediction, truth, answer=REFERENCE: answer(prediction, truth),
    "in a dictionary": lambda *arguments: {"kept": REFERENCE}["kept"](*arguments),
    "in an object that is called": CalledObject(),
    "in an object's method": CalledObject().__call__,
    "in a function in a function": nested,
    "among all": lambda *arguments: all_exercises()["00.1"].reference(*arguments),
    "by getattr": lambda *arguments: getattr(lesson_00, "di" + "ce")(*arguments),
    "with its code under another name": types.FunctionType(
        REFERENCE.__code__.replace(co_filename="mine.py"), REFERENCE.__globals__ | {"__name__": "__main__"}
    ),
    "on a list that is mapped": lambda *arguments: next(map(REFERENCE, *([one] for one in arguments))),
}


@pytest.mark.parametrize("answer", DETOURS.values(), ids=DETOURS)
def test_the_packages_own_answer_passes_and_does_not_count(path, answer):
    result = check("00.1", answer)
    assert result.passed and "It is the package's own answer, and so it is not counted as yours." in result.sentences
    assert read_progress(path)["00.1"] == Attempts(how="package")
    assert str(progress("00")).splitlines()[0].startswith("0 of 4 exercises are right")
    assert "only the package's own answer was checked, own tries: 0" in str(progress("00"))
    check("00.1", dice)
    assert dataclasses.replace(read_progress(path)["00.1"], right="") == Attempts(tries=1, how="own")


def odd_answers():
    """Answers that are a student's, whatever they are made of."""

    def with_an_empty_name(prediction, truth):
        return never if truth is None else dice(prediction, truth)

    def around_itself(prediction, truth):
        return dice(prediction, truth)

    around_itself.__wrapped__ = around_itself
    if with_an_empty_name is None:
        never = 1

    class Callable:
        def __call__(self, prediction, truth):
            return dice(prediction, truth)

    return {"empty": with_an_empty_name, "itself": around_itself, "called": Callable(), "part": functools.partial(dice)}


@pytest.mark.parametrize("name", odd_answers())
def test_odd_answers_are_a_students_own(path, name):
    assert check("00.1", odd_answers()[name]).passed
    assert read_progress(path)["00.1"].how == "own"


@pytest.mark.parametrize("number", [number for number in all_exercises() if number < "07"])
def test_an_answer_written_like_the_solution_is_a_students_own(number):
    exercise = find_exercise(number)
    names = dict(vars(inspect.getmodule(exercise.reference))) | {"__name__": "__main__"}
    exec(exercise.solution, names)
    result = check(number, names[exercise.reference.__name__])
    assert result.passed and len(result.sentences) == 2
    with Watched(exercise.reference) as watched:
        run(exercise.reference, exercise)
    assert watched.called


def test_a_profiler_at_work_is_back_after_a_check():
    def profiler(*_):
        return None

    sys.setprofile(profiler)
    check("00.1", dice)
    found = sys.getprofile()
    sys.setprofile(None)
    assert found is profiler


def test_after_an_own_answer_nothing_changes_how_it_came(path):
    check("00.1", dice)
    before = read_progress(path)["00.1"]
    reveal("00.1"), check("00.1", REFERENCE), check("00.1", dice)
    assert read_progress(path)["00.1"] == dataclasses.replace(before, reveals=1) and before.how == "own"


def test_files_of_before_answers_said_how_they_came_are_read(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"format": 1, "exercises": {"00.1": {"tries": 1, "right": "2026-01-01"}}}))
    assert str(progress("00")).splitlines()[1].startswith("00.1 the Dice score: right;")


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_pipe_in_place_of_the_file_is_left_alone(path):
    path.parent.mkdir()
    os.mkfifo(path)
    result = check("00.1", dice)
    assert result.passed and "is no regular file" in str(result) and path.is_fifo()
    assert "is no regular file" in progress("00").trouble


def test_progress_shows_the_states_as_text_and_table():
    check("00.1", dice), check("00.2", lambda prediction, truth: 0), hint("00.2")
    lines = str(progress("00")).splitlines()
    assert lines[1:3] == [
        "00.1 the Dice score: right; hints: 0; solution seen: no",
        "00.2 a map of errors: not right yet, tries: 1; hints: 1; solution seen: no",
    ]
    assert "not attempted yet" in lines[3] and len(lines) == 5
    page = progress("00")._repr_html_()
    parser, tags = HTMLParser(), []
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes).get("scope")))
    parser.feed(page)
    assert tags.count(("caption", None)) == 1 and tags.count(("th", "col")) == 5 and tags.count(("th", "row")) == 4
    assert "1 of 4 exercises are right" in page


def test_an_unknown_lesson_names_the_known():
    with pytest.raises(ValueError, match="no exercises of lesson '99': give one of 00"):
        progress("99")


def test_the_file_is_named_by_the_variable_or_in_the_home_folder(monkeypatch, tmp_path, path):
    assert progress_path() == path
    monkeypatch.setenv("LAB_PROGRESS", "")
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    assert progress_path() == tmp_path / ".xlstm-unet-lab" / "progress.json"


DAMAGE = [
    b"",
    b'{"format": 1, "exercises": {"00.1": {"tri',
    b"\xff\x00",
    b"[]",
    b"{}",
    b"1",
    b"[" * 100_000,
    b'{"format": 2, "exercises": {}}',
    b'{"format": 1, "exercises": []}',
    b'{"format": 1, "exercises": {"00.1": {"tries": "3"}}}',
    b'{"format": 1, "exercises": {"00.1": {"tries": -1}}}',
    b'{"format": 1, "exercises": {"00.1": {"tries": true}}}',
    b'{"format": 1, "exercises": {"00.1": {"marks": 3}}}',
    b'{"format": 1, "exercises": {"00.1": 3}}',
    b'{"format": 1, "exercises": {"00.1": {"how": "banana"}}}',
    b'{"format": 1, "exercises": {"00.1": {"how": "own", "right": "<script>never"}}}',
    b'{"format": 1, "exercises": {"00.1": {"how": "own", "right": "0001-01-01"}}}',
    b'{"format": 1, "exercises": {"00.1": {"how": "package", "right": "2026-01-01"}}}',
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    (tmp_path / "ada.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"^ada\.json is no progress file of this course: "):
        read_progress(tmp_path / "ada.json")


@pytest.mark.parametrize("damage", DAMAGE[:3])
def test_damage_costs_the_last_step_and_the_file_is_kept(path, damage):
    note("00.1", tries=1), note("00.1", tries=1), note("00.2", tries=1)
    path.write_bytes(damage)
    assert note("00.3", hints=1) == "Your progress file was damaged; all but the last step was restored."
    assert read_progress(path) == {"00.1": Attempts(tries=2), "00.3": Attempts(hints=1)}
    assert path.with_name("progress.json.damaged").read_bytes() == damage
    assert note("00.3", hints=1) == ""


def test_without_a_copy_a_new_file_begins_and_says_so(path):
    path.parent.mkdir()
    path.write_bytes(b"?")
    result = check("00.1", dice)
    assert result.passed and "it is now progress.json.damaged, and a new one begins" in str(result)
    assert read_progress(path)["00.1"].right
    path.write_bytes(b"?")
    path.with_name("progress.json.before").write_bytes(b"?")
    assert "damaged" in str(progress())


def test_a_file_that_cannot_be_written_stops_no_check(path, monkeypatch):
    path.parent.write_text("a file where a folder is wanted")
    result = check("00.1", dice)
    assert result.passed and "Your progress was not kept: " in str(result) and "LAB_PROGRESS" in str(result)
    assert "cannot be read" in str(progress())
    for function in (hint, reveal):
        assert "Your progress was not kept" in str(function("00.1"))


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    note("00.1", tries=1)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "No space left on device" in note("00.1", tries=1)
    assert path.read_bytes() == before


def test_a_lock_that_is_not_given_up_is_waited_for_and_then_named(path, monkeypatch):
    note("00.1", tries=1)
    monkeypatch.setattr(progress_file, "PATIENCE", 0.1)
    with progress_file.FileLock(f"{path}.lock"):
        assert "Your progress was not kept" in note("00.1", tries=1)


def test_notebooks_that_note_at_once_lose_nothing(path):
    threads = [threading.Thread(target=lambda: [note("00.1", hints=1) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_progress(path)["00.1"].hints == 20
    assert json.loads(path.read_bytes())["format"] == 1


@pytest.mark.skipif(os.name != "posix", reason="links and modes as POSIX has them")
def test_the_copy_before_follows_no_link_and_shows_no_more_than_the_file(path, tmp_path):
    (tmp_path / "victim").write_text("precious")
    note("00.1", tries=1)
    path.chmod(0o600)
    path.with_name("progress.json.before").symlink_to(tmp_path / "victim")
    note("00.1", tries=1)
    assert (tmp_path / "victim").read_text() == "precious"
    for file, tries in ((path, 2), (path.with_name("progress.json.before"), 1)):
        assert read_progress(file)["00.1"].tries == tries
        assert not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600
