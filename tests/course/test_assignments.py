"""Lessons as nbgrader assignments: nbgrader itself accepts them, and what it releases is what our notebooks give."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from example_lesson import LESSON, NUMBERS, write_lesson
from nbgrader.nbgraderformat import MetadataValidator
from nbgrader.utils import determine_grade, is_grade
from places import REPOSITORY

from xlstm_unet_lab.course.authoring import assignments, build
from xlstm_unet_lab.course.authoring.lesson import execute, read_master, student_notebook
from xlstm_unet_lab.course.checks import all_exercises

MASTERS = sorted((REPOSITORY / "solutions").glob("[0-9][0-9]_*.py"))


def marked(notebook):
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


def release(course, name):
    """What nbgrader's own command makes of an exported assignment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for alembic, which nbgrader calls
    command = [sys.executable, "-m", "nbgrader", "generate_assignment", name]
    run = subprocess.run(command, cwd=course, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small course exported and released."""
    root, course = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("course")
    write_lesson(root)
    assert build.main(["--root", str(root), "--nbgrader", str(course)]) == 0
    return release(course, "00_example")


def test_nbgrader_releases_our_stubs(released, tmp_path):
    ours = student_notebook(read_master(write_lesson(tmp_path)))
    stubs = [cell.source for cell in ours.cells if "exercise" in cell.metadata]
    theirs = [cell.source for name, cell in marked(released).items() if name.startswith("exercise_")]
    assert theirs == stubs and len(stubs) == len(NUMBERS)
    text = "\n".join(cell.source for cell in released.cells)
    assert "SOLUTION" not in text and "Takes ten minutes" not in text and assignments.ANSWER in text


def test_cells_are_marked_for_grading(released):
    marks = {name: cell.metadata.nbgrader for name, cell in marked(released).items()}
    kinds = {name: (one.grade, one.solution, one.locked, one.get("points")) for name, one in marks.items()}
    for number, exercise in list(all_exercises().items())[:4]:
        name = number.replace(".", "_")
        assert kinds.pop(f"exercise_{name}") == (False, True, False, None)
        assert kinds.pop(f"check_{name}") == (True, False, True, exercise.difficulty)
    assert kinds == {"open_question": (True, True, False, assignments.OPEN_POINTS)}


def test_an_unsolved_assignment_runs_and_solved_exercises_get_their_points(released, tmp_path):
    cells = marked(released)
    cells["exercise_00_1"].source = cells["exercise_00_1"].source.replace(
        "...", "return metrics.dice(prediction, truth)"
    )
    executed = execute(released, tmp_path, "ci", timeout=600)
    graded = {cell.metadata.nbgrader.grade_id: determine_grade(cell) for cell in executed.cells if is_grade(cell)}
    assert graded["check_00_1"] == (2, 2) and graded["check_00_2"] == (0, 2) and graded["check_00_4"] == (0, 3)
    assert graded["open_question"][0] == 0, "not answered"


def test_linked_pages_come_along(tmp_path):
    source = assignments.export(write_lesson(tmp_path), tmp_path / "course")
    assert (source.parent / "docs" / "glossary.md").read_text(encoding="utf-8").startswith("# Glossary")
    notebook = nbformat.read(source, as_version=4)
    assert "](docs/glossary.md#mask)" in notebook.cells[0].source and "../docs" not in notebook.cells[0].source


def test_nbgrader_releases_the_longest_lesson(tmp_path):
    assert build.main(["07", "--root", str(REPOSITORY), "--nbgrader", str(tmp_path)]) == 0
    (master,) = (master for master in MASTERS if master.name.startswith("07"))
    stubs = [cell.source for cell in student_notebook(read_master(master)).cells if "exercise" in cell.metadata]
    theirs = marked(release(tmp_path, master.stem)).items()
    assert [cell.source for name, cell in theirs if name.startswith("exercise_")] == stubs


@pytest.mark.parametrize("master", MASTERS, ids=lambda master: master.stem)
def test_links_lead_somewhere_from_the_assignment(master, tmp_path):
    source = assignments.export(master, tmp_path)
    cells = nbformat.read(source, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    found = {link.partition("#")[0] for text in texts for link in assignments.links(text)}
    assert "docs/glossary.md" in found
    assert [link for link in found if not (source.parent / link).is_file()] == []


def test_a_master_that_cannot_be_read_is_named(tmp_path, capsys):
    write_lesson(tmp_path, LESSON.replace("  ### SOLUTION", "", 1))
    assert build.main(["--root", str(tmp_path), "--nbgrader", str(tmp_path / "course")]) == 1
    assert "an exercise without gap" in capsys.readouterr().err


@pytest.mark.parametrize("master", MASTERS, ids=lambda master: master.stem)
def test_every_lesson_makes_a_valid_assignment(master):
    notebook = assignments.assignment(read_master(master))
    nbformat.validate(notebook)
    MetadataValidator().validate_nb(notebook)
    names = marked(notebook)
    numbers = [number for number in all_exercises() if number.startswith(f"{master.name[:2]}.")]
    for number in numbers:
        assert {f"{kind}_{number.replace('.', '_')}" for kind in ("exercise", "check")} <= set(names)
    assert len(names) == 2 * len(numbers) + 1
