"""The course as it is shipped: notebooks are what their masters give, and run from top to bottom in profile ci."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from kernel_watch import Seen, seen_by, watched
from places import REPOSITORY

from xlstm_unet_lab.course import PROFILES
from xlstm_unet_lab.course.authoring import build
from xlstm_unet_lab.course.authoring.lesson import check_outputs, read_master
from xlstm_unet_lab.course.authoring.times import Budget, Watch, budget
from xlstm_unet_lab.course.checks import all_exercises

PROFILE = PROFILES["ci"]
LARGEST_COURSE = 20_000_000  # bytes, all notebooks together
ENDLESS = 1800  # seconds: a cell that takes as long on the slowest machine will never end
MASTERS = sorted((REPOSITORY / "solutions").glob("[0-9][0-9]_*.py"))
STUDENT = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SOLUTION = sorted((REPOSITORY / "solutions").glob("*.ipynb"))


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def run_nbval(notebook: Path, folder: Path) -> subprocess.CompletedProcess:
    """Run a notebook under nbval in a pytest of its own, without this one's settings, plugins and cache."""
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\n")
    # Not this run's Matplotlib backend: the notebook's kernel brings its own.
    ours = ("MPLBACKEND", "PYTEST_ADDOPTS")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | watched(folder)
    environment |= {"LAB_PROFILE": PROFILE.name, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment["LAB_PROGRESS"] = str(folder / "progress.json")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(settings), "--rootdir", str(folder)]
    command += ["-p", "nbval.plugin", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--nbval-cell-timeout", str(ENDLESS), str(notebook)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


class Run(NamedTuple):
    """A notebook, what nbval said of it, what it took and what the kernel showed."""

    notebook: Path
    done: subprocess.CompletedProcess
    took: Watch
    allowed: Budget
    seen: Seen


@pytest.fixture(scope="module", params=[*STUDENT, *SOLUTION], ids=name_of)
def run(request, tmp_path_factory) -> Run:
    """Each notebook once, for all tests that ask something of it. Most time of all tests goes here."""
    folder = tmp_path_factory.mktemp("notebook")
    with Watch() as took:
        done = run_nbval(request.param, folder)
    allowed = budget(read_master(REPOSITORY / "solutions" / f"{request.param.stem}.py"), PROFILE.name)
    return Run(request.param, done, took, allowed, seen_by(folder))


def test_a_notebook_runs(run: Run) -> None:
    assert run.done.returncode == 0, run.done.stdout + run.done.stderr
    cells = nbformat.read(run.notebook, as_version=4).cells
    assert run.seen.cells == sum(cell.cell_type == "code" for cell in cells), "as many cells were watched as there are"


def test_a_notebook_stays_within_its_budget(run: Run) -> None:
    """Memory fails. Time depends on the machine: it is a warning here, and `make course-times` judges it."""
    assert run.took.too_large(run.allowed) == []
    for fault in run.took.too_slow(run.allowed):
        warnings.warn(f"{name_of(run.notebook)} {fault}; see `make course-times`", stacklevel=1)


def test_every_picture_and_widget_of_a_notebook_is_accessible(run: Run) -> None:
    assert run.seen.faults == []
    assert run.seen.pictures > 0


def test_every_lesson_is_built() -> None:
    assert [name_of(path) for master in MASTERS for path in build.notebook_paths(master) if not path.is_file()] == []
    assert MASTERS[0].stem == "00_start_here"


@pytest.mark.parametrize("master", MASTERS, ids=name_of)
def test_notebooks_are_what_the_master_gives(master: Path) -> None:
    assert build.differences(REPOSITORY, [master], everything=False) == []


def test_every_notebook_has_a_master() -> None:
    expected = {path for master in MASTERS for path in build.notebook_paths(master)}
    assert [name_of(path) for path in (*STUDENT, *SOLUTION) if path not in expected] == []


@pytest.mark.parametrize("master", MASTERS, ids=name_of)
def test_a_lesson_has_all_its_exercises(master: Path) -> None:
    written = [cell.metadata["exercise"] for cell in read_master(master).cells if "exercise" in cell.metadata]
    assert written == [number for number in all_exercises() if number.startswith(f"{master.name[:2]}.")]


@pytest.mark.parametrize("notebook", STUDENT, ids=name_of)
def test_student_notebooks_have_no_outputs(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("notebook", SOLUTION, ids=name_of)
def test_solutions_pass_their_checks(notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4).cells
    shown = "\n".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for cell in cells
        for output in cell.get("outputs", ())
    )
    for number in [cell.metadata["exercise"] for cell in cells if "exercise" in cell.metadata]:
        assert f"Exercise {number}, {all_exercises()[number].title}: right" in shown


@pytest.mark.parametrize("notebook", SOLUTION, ids=name_of)
def test_outputs_can_be_shipped(notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4).cells
    assert [fault for cell in cells for fault in check_outputs(cell, notebook.parent)] == []


def test_the_course_is_small() -> None:
    assert sum(path.stat().st_size for path in (*STUDENT, *SOLUTION)) < LARGEST_COURSE


def test_a_broken_notebook_is_seen(tmp_path: Path) -> None:
    cells = [
        ("import os\nassert os.environ['LAB_PROFILE'] == 'ci'", "something else, which is not compared"),
        ("# NBVAL_CHECK_OUTPUT\nprint(2)", "2\n"),
        ("# NBVAL_CHECK_OUTPUT\nprint(2)", "3\n"),
        ("raise ValueError", ""),
    ]
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"display_name": "Python 3", "name": "python3"}})
    for count, (source, stored) in enumerate(cells, start=1):
        outputs = [nbformat.v4.new_output("stream", text=stored)] if stored else []
        notebook.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=count))
    nbformat.write(notebook, tmp_path / "a.ipynb")
    run = run_nbval(tmp_path / "a.ipynb", tmp_path)
    assert run.returncode == 1
    assert "2 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert seen_by(tmp_path) == Seen(len(cells), 0, 0, [])
