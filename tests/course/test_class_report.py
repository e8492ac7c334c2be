"""What an instructor sees of a class: tables that count right, a figure with words, one page that loads nothing."""

import html
import json
import os
import pathlib
import re
import sys

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


def test_of_two_files_of_one_student_the_first_counts_and_the_other_is_named(folder):
    before = read_class(folder)[0]["ada"]
    (folder / "ada").mkdir()
    (folder / "ada" / "progress.json").write_text('{"format": 1, "exercises": {}}')
    students, unread = read_class(folder)
    assert students.keys() == {"ada", "bob <b>"}
    assert students["ada"] in (before, {})
    assert sum("there is another file of 'ada'" in sentence for sentence in unread) == 1


def progress_of(**steps):
    return json.dumps({"format": 1, "exercises": {"00.1": {"tries": 1} | steps}})


def deep(folder):
    (folder / "x.json").write_text("[" * 100_000)


ODD = {
    "a pipe": lambda folder: os.mkfifo(folder / "x.json"),
    "a link to a device": lambda folder: (folder / "x.json").symlink_to("/dev/zero"),
    "a link to a file elsewhere": lambda folder: (folder / "x.json").symlink_to(folder.parent / "secret"),
    "a link to itself": lambda folder: (folder / "x.json").symlink_to(folder / "x.json"),
    "a folder": lambda folder: (folder / "x.json").mkdir(),
    "a gigabyte": lambda folder: (folder / "x.json").touch() or os.truncate(folder / "x.json", 2**30),
    "ten to the thirty tries": lambda folder: (folder / "x.json").write_text(progress_of(tries=10**30)),
    "a number of many digits": lambda folder: (folder / "x.json").write_text('{"format": ' + "9" * 9000 + "}"),
    "tries below 0": lambda folder: (folder / "x.json").write_text(progress_of(tries=-1)),
    "tries that are true": lambda folder: (folder / "x.json").write_text(progress_of(tries=True)),
    "a date that is a list": lambda folder: (folder / "x.json").write_text(progress_of(right=[1])),
    "words of half a megabyte": lambda folder: (folder / "x.json").write_text(progress_of(hints="x" * 500_000)),
    "a date that is none": lambda folder: (folder / "x.json").write_text(progress_of(right="<script>never")),
    "a date of half a megabyte": lambda folder: (folder / "x.json").write_text(progress_of(right="9" * 500_000)),
    "a way that no answer comes": lambda folder: (folder / "x.json").write_text(progress_of(how="banana" * 9999)),
    "a long unknown fact": lambda folder: (folder / "x.json").write_text(progress_of(**{"x" * 500_000: 1})),
    "brackets in brackets": deep,
    "bytes that are no text": lambda folder: (folder / "x.json").write_bytes(bytes(range(256))),
    "nothing": lambda folder: (folder / "x.json").touch(),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.skipif(os.name != "posix", reason="pipes and links as POSIX has them")
def test_one_odd_file_is_named_and_the_others_are_read(folder, make):
    (folder.parent / "secret").write_text(progress_of())
    make(folder)
    students, unread = read_class(folder)
    assert list(students) == ["ada", "bob <b>"]
    (sentence,) = [sentence for sentence in unread if sentence.startswith("x.json was left out: ")]
    assert len(sentence) < 400


def test_exercises_that_do_not_exist_are_left_out_and_counted(folder):
    numbers = [
        "00.1",
        *(f"{lesson}.{number}" for lesson in range(90, 100) for number in range(50)),
        "../../x",
        "\x1b[1m",
    ]
    entries = {number: {"tries": 1, "right": "2026-01-01"} for number in numbers}
    (folder / "eve.json").write_text(json.dumps({"format": 1, "exercises": entries}))
    students, unread = read_class(folder)
    assert list(students["eve"]) == ["00.1"]
    assert "eve.json names exercises that do not exist, 502 of them: they were left out" in unread
    assert student_table(students).set_index("student").loc["eve", "right"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names of files as bytes")
@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"\x1b[31mred", b"\xe2\x80\xaeevil", b"<script>"])
def test_names_that_cannot_be_printed_are_shown_safely(folder, name):
    for ending in (b".json", b"-bad.json"):
        content = b"[]" if b"bad" in ending else progress_of().encode()
        pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/" + name + ending)).write_bytes(content)
    students, unread = read_class(folder)
    assert len(students) == 3
    for text in (*students, *unread):
        assert not set(text) & set("\x1b\u202e") and "a\nb" not in text
        text.encode()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files as bytes")
def test_the_page_names_what_was_left_out_however_it_is_called(folder):
    pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/\xff<b>.json")).touch()
    assert r"\udcff<b>.json was left out" in html.unescape(report(folder).read_text(encoding="utf-8"))


def test_how_right_answers_came_is_counted():
    students = {
        "ada": {"00.1": Attempts(tries=1, right="2026", how="own")},
        "bob": {"00.1": Attempts(tries=1, right="2026", how="revealed", reveals=1)},
        "eve": {"00.1": Attempts(how="package")},
    }
    first = exercise_table(students).set_index("exercise").loc["00.1"]
    assert [first[what] for what in ("right", "not attempted", "revealed", "package")] == [2, 1, 1, 1]
    table = student_table(students).set_index("student")
    assert table["right"].to_dict() == {"ada": 1, "bob": 1, "eve": 0}
    assert table["package"].to_dict() == {"ada": 0, "bob": 0, "eve": 1}


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
        ["ada", 1, 1, 2, 0, 0, 0, "00.1"],
        ["bob", 1, 0, 1, 1, 0, 0, "00.1"],
        ["eve", 0, 0, 0, 0, 0, 0, ""],
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


@pytest.mark.skipif(sys.platform != "linux", reason="names of files as bytes")
def test_a_class_in_a_folder_of_an_odd_name_is_reported_without_orders_to_the_terminal(tmp_path, capsys):
    odd = tmp_path / "es\x1b[31mc\nd"
    odd.mkdir()
    assert class_report.main([str(odd)]) == 1
    (odd / "ann.json").write_text(progress_of())
    assert class_report.main([str(odd)]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "c\\nd" in said.out and "c\\nd" in said.err
