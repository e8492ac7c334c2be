"""Build the notebooks of the course from their masters: `python -m xlstm_unet_lab.course.build [--check] [NN ...]`."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat

from xlstm_unet_lab.course.lesson import (
    execute,
    notebook_bytes,
    read_master,
    solution_notebook,
    student_notebook,
    write_notebook,
)
from xlstm_unet_lab.course.profiles import PROFILES

MASTERS, NOTEBOOKS = "solutions", "notebooks"
PROFILE = PROFILES["ci"]
PATIENCE = 4  # a busy machine may take this many times the budget before a cell is given up


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


def has_current_sources(solution: Path, expected: bytes) -> bool:
    """Whether an executed solution notebook is, but for what execution added, what the master gives."""
    if not solution.is_file():
        return False
    try:
        stored = nbformat.read(solution, as_version=4)
    except Exception:  # whatever is in the file, it is no notebook: build it again
        return False
    # Ids and metadata are compared as they are stored; only outputs and counts are left out.
    for cell in stored.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook_bytes(stored) == expected


def differences(root: Path, masters: Sequence[Path], everything: bool = True) -> list[str]:
    """Name every notebook that is not what its master gives; with `everything` also those that have no master."""
    found = []
    for master in masters:
        notebook = read_master(master)
        student, solution = notebook_paths(master)
        if not student.is_file() or student.read_bytes() != notebook_bytes(student_notebook(notebook)):
            found.append(f"{student.relative_to(root)} is not what {master.name} gives")
        if not has_current_sources(solution, notebook_bytes(solution_notebook(notebook))):
            found.append(f"{solution.relative_to(root)} is not what {master.name} gives")
        elif not _was_executed(solution):
            found.append(f"{solution.relative_to(root)} has cells that were not executed")
    if everything:
        expected = {path for master in masters for path in notebook_paths(master)}
        stored = [path for folder in (NOTEBOOKS, MASTERS) for path in sorted((root / folder).glob("*.ipynb"))]
        found += [f"{path.relative_to(root)} has no master" for path in stored if path not in expected]
    return found


def build_lesson(master: Path, again: bool, say: Callable[[str], None]) -> None:
    """Write both notebooks of a lesson; execute the solution when its sources have changed, or `again`.

    Raises ValueError or RuntimeError naming file and cell; the notebooks in place are then left as they are.
    """
    notebook = read_master(master)
    student, solution = notebook_paths(master)
    whole = solution_notebook(notebook)
    current = has_current_sources(solution, notebook_bytes(whole)) and _was_executed(solution)
    if again or not current:
        say(f"{master.stem}: running the solution in profile {PROFILE.name}, at most {PROFILE.seconds} seconds")
        start = time.perf_counter()
        try:
            executed = execute(whole, solution.parent, PROFILE.name, PATIENCE * PROFILE.seconds)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{master.name}: {error}") from error
        say(f"{master.stem}: took {time.perf_counter() - start:.0f} seconds")
        write_notebook(executed, solution)
    else:
        say(f"{master.stem}: the solution is up to date")
    write_notebook(student_notebook(notebook), student)


def _was_executed(solution: Path) -> bool:
    cells = nbformat.read(solution, as_version=4).cells
    return all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or compare; returns the exit status: 0, or 1 when something differs or fails."""
    parser = argparse.ArgumentParser(prog="python -m xlstm_unet_lab.course.build", description=__doc__)
    parser.add_argument("lessons", nargs="*", metavar="NN", help="lesson numbers, like 00; all when left out")
    parser.add_argument("--check", action="store_true", help="write nothing; list the notebooks that differ")
    parser.add_argument("--execute", action="store_true", help="run solutions again even if their sources are the same")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository (default: the current folder)")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    try:
        masters = find_masters(root, options.lessons)
        if options.check:
            found = differences(root, masters, everything=not options.lessons)
            _say("\n".join([*found, "run `make course`"]) if found else f"{len(masters)} lessons are up to date")
            return int(bool(found))
        for master in masters:
            build_lesson(master, options.execute, _say)
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
