"""What an instructor sees of a class: tables that count right, a figure with words, one page that loads nothing."""

import re

import pytest

from xlstm_unet_lab.course.authoring import class_report
from xlstm_unet_lab.course.authoring.accessibility import problems
from xlstm_unet_lab.course.authoring.class_report import (
    class_picture,
    exercise_table,
    read_class,
    report,
    student_table,
)
from xlstm_unet_lab.course.checks import all_exercises
from xlstm_unet_lab.course.progress_file import Attempts, note

ADA = {"00.1": Attempts(tries=1, right="2026-01-01T10:00:00+00:00"), "00.2": Attempts(tries=3, hints=2)}
BOB = {"00.1": Attempts(tries=4, hints=1, right="2026-01-01T11:00:00+00:00"), "00.2": Attempts(reveals=1)}
CLASS = {"ada": ADA, "bob": BOB, "eve": {}}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Files as they come in: one by name, one in a student's folder, and some that are something else."""
    for place in ("ada.json", "bob <b>/progress.json"):
        monkeypatch.setenv("LAB_PROGRESS", str(tmp_path / place))
        note("00.1", tries=1, right=True), note("00.2", hints=1)
    (tmp_path / "notes.json").write_text("[]")
    (tmp_path / "readme.txt").write_text("no progress")
    return tmp_path


def test_files_are_found_and_strangers_named(folder):
    students, unread = read_class(folder)
    assert list(students) == ["ada", "bob <b>"]
    assert all(entries["00.1"].right and entries["00.2"].hints == 1 for entries in students.values())
    (sentence,) = unread
    assert sentence.startswith("notes.json was left out: notes.json is no progress file")


def test_two_files_of_one_student_are_refused(folder):
    (folder / "ada").mkdir()
    (folder / "ada" / "progress.json").write_bytes((folder / "ada.json").read_bytes())
    with pytest.raises(ValueError, match="two progress files of 'ada'"):
        read_class(folder)


@pytest.mark.parametrize("content", [None, "[]"])
def test_an_empty_class_is_refused(tmp_path, content, capsys):
    if content:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="no progress file"):
        report(tmp_path)
    assert class_report.main([str(tmp_path)]) == 1
    assert "no progress file" in capsys.readouterr().err


def test_exercises_are_counted():
    table = exercise_table(CLASS).set_index("exercise")
    assert list(table.index) == list(all_exercises())
    first, second = table.loc["00.1"], table.loc["00.2"]
    assert (first["right"], first["not right yet"], first["not attempted"], first["median_tries"]) == (2, 0, 1, 1)
    assert (second["right"], second["not right yet"], second["not attempted"]) == (0, 1, 2)
    assert second.isna()["median_tries"] and (second["hints"], second["reveals"]) == (1, 1)


def test_students_are_counted():
    table = student_table(CLASS)
    assert table.to_numpy().tolist() == [
        ["ada", 1, 1, 2, 0, "00.1"],
        ["bob", 1, 0, 1, 1, "00.1"],
        ["eve", 0, 0, 0, 0, ""],
    ]


def test_the_figure_says_in_words_what_it_shows():
    picture = class_picture(exercise_table(CLASS))
    assert "00.1 2 right, 0 not right yet, 1 not attempted; 00.2 0 right, 1 not right yet" in picture.description
    assert problems(picture) == []


def test_the_page_stands_alone(folder, capsys):
    assert class_report.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "00.1" in out and "wrote " in out
    page = (folder / "class_report.html").read_text(encoding="utf-8")
    assert "2 students." in page and "bob &lt;b&gt;" in page and "<b>" not in page
    assert "notes.json was left out" in page and '<html lang="en">' in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert report(folder, folder / "other.html").name == "other.html"
