"""Notebooks, times and assignments from the masters: `python -m xlstm_unet_lab.course.authoring.build [NN ...]`."""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from xlstm_unet_lab.course.authoring.assignments import export
from xlstm_unet_lab.course.authoring.lesson import (
    PATIENCE,
    execute,
    notebook_bytes,
    read_master,
    solution_notebook,
    student_notebook,
    write_notebook,
)
from xlstm_unet_lab.course.authoring.times import measure, write_times
from xlstm_unet_lab.course.profiles import PROFILES

MASTERS, NOTEBOOKS = "solutions", "notebooks"
PROFILE = PROFILES["ci"]


def find_masters(root: Path, numbers: Sequence[str] = ()) -> list[Path]:
    """The masters under root/solutions, all or those of the given lesson numbers ("00").

    Raises ValueError when there are none, or none of a number.
    """
    found = {path.name[:2]: path for path in sorted((root / MASTERS).glob("[0-9][0-9]_*.py"))}
    if not found:
        raise ValueError(f"no masters NN_slug.py in {root / MASTERS}: run this in the repository's folder")
    for number in numbers:
        if number not in found:
            raise ValueError(f"there is no lesson {number!r}; the lessons are {', '.join(found)}")
    return [found[number] for number in sorted(set(numbers) or found)]


def notebook_paths(master: Path) -> tuple[Path, Path]:
    """Where the student notebook and the solution notebook of a master stand."""
    name = master.with_suffix(".ipynb").name
    return master.parent.parent / NOTEBOOKS / name, master.parent / name


def stored_notebook(solution: Path) -> NotebookNode | None:
    """The solution notebook that is there; None where there is none that can be read."""
    try:
        return nbformat.read(solution, as_version=4)
    except Exception:  # not there, or whatever is in the file, it is no notebook: build it again
        return None


def with_outputs(expected: NotebookNode, stored: NotebookNode | None) -> NotebookNode | None:
    """The expected notebook with the outputs of the stored one; None where the code is another or was not executed.

    So a change of words needs no second run.
    """
    if stored is None:
        return None
    filled = copy.deepcopy(expected)
    fresh, old = ([cell for cell in one.cells if cell.cell_type == "code"] for one in (filled, stored))
    if [cell.source for cell in fresh] != [cell.source for cell in old]:
        return None
    if not all(cell.execution_count for cell in old if cell.source.strip()):
        return None
    for cell, before in zip(fresh, old, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return filled


def differences(root: Path, masters: Sequence[Path], everything: bool = True) -> list[str]:
    """Name every notebook that is not what its master gives; with `everything` also those that have no master."""
    found = []
    for master in masters:
        notebook = read_master(master)
        student, solution = notebook_paths(master)
        if not student.is_file() or student.read_bytes() != notebook_bytes(student_notebook(notebook)):
            found.append(f"{student.relative_to(root)} is not what {master.name} gives")
        # Outputs and counts come from the stored notebook; ids, metadata and text are compared as they are stored.
        expected = with_outputs(solution_notebook(notebook), stored_notebook(solution))
        if expected is None or solution.read_bytes() != notebook_bytes(expected):
            found.append(f"{solution.relative_to(root)} is not what {master.name} gives, or was not executed")
    if everything:
        wanted = {path for master in masters for path in notebook_paths(master)}
        stored = [path for folder in (NOTEBOOKS, MASTERS) for path in sorted((root / folder).glob("*.ipynb"))]
        found += [f"{path.relative_to(root)} has no master" for path in stored if path not in wanted]
    return found


def build_lesson(master: Path, again: bool, say: Callable[[str], None]) -> None:
    """Write both notebooks of a lesson; execute the solution when its code has changed, or `again`.

    Raises ValueError or RuntimeError naming file and cell; the notebooks in place are then left as they are.
    """
    notebook = read_master(master)
    student, solution = notebook_paths(master)
    whole = solution_notebook(notebook)
    filled = None if again else with_outputs(whole, stored_notebook(solution))
    if filled is None:
        say(f"{master.stem}: running the solution in profile {PROFILE.name}, at most {PROFILE.seconds} seconds")
        start = time.perf_counter()
        try:
            filled = execute(whole, solution.parent, PROFILE.name, PATIENCE * PROFILE.seconds)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{master.name}: {error}") from error
        say(f"{master.stem}: took {time.perf_counter() - start:.0f} seconds")
    else:
        say(f"{master.stem}: the solution's code is up to date")
    write_notebook(filled, solution)
    write_notebook(student_notebook(notebook), student)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def time_lesson(master: Path, say: Callable[[str], None]) -> bool:
    """Run a lesson in profile cpu and write the minutes into its header; returns whether all is as it should be."""
    try:
        watch, faults = measure(master, "cpu")
        write_times(master, watch)
    except (ValueError, RuntimeError) as error:  # the other lessons are measured all the same
        say(f"{master.stem}: {error}")
        return False
    say(f"{master.stem}: {watch.seconds:.0f} s, {watch.gigabytes:.2f} GB in profile cpu")
    for fault in faults:
        say(f"  {fault}")
    return not faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the four; returns the exit status: 0, or 1 when something differs, fails or takes too much."""
    parser = argparse.ArgumentParser(prog="python -m xlstm_unet_lab.course.authoring.build", description=__doc__)
    parser.add_argument("lessons", nargs="*", metavar="NN", help="lesson numbers, like 00; all when left out")
    parser.add_argument("--execute", action="store_true", help="run solutions again even if their code is the same")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository (default: the current folder)")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--check", action="store_true", help="write nothing; list the notebooks that differ")
    others.add_argument("--times", action="store_true", help="measure in profile cpu, write minutes into headers")
    others.add_argument("--nbgrader", type=Path, metavar="FOLDER", help="write a course for nbgrader into FOLDER")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    try:
        masters = find_masters(root, options.lessons)
        if options.check:
            found = differences(root, masters, everything=not options.lessons)
            _say("\n".join([*found, "run `make course`"]) if found else f"{len(masters)} lessons are up to date")
            return int(bool(found))
        if options.times:
            return min(1, sum(not time_lesson(master, _say) for master in masters))
        for master in masters:
            if options.nbgrader:
                _say(f"wrote {export(master, options.nbgrader)}")
            else:
                build_lesson(master, options.execute, _say)
        if options.nbgrader:
            programs = Path(sys.executable).parent  # nbgrader calls another program (alembic) by its name alone
            command = f"PATH={programs}:$PATH nbgrader generate_assignment {masters[0].stem}"
            _say(f"next: cd {options.nbgrader} && {command}")
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
