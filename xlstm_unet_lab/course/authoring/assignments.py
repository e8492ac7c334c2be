"""Lessons as assignments for nbgrader.

Exercises become solution cells, their checks auto-graded cells worth as many points as the exercise is difficult, and
the open question gets an answer cell that is graded by hand. Checks give points in place of an error, so an unsolved
assignment still runs from top to bottom.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from xlstm_unet_lab.course.authoring.lesson import (
    BEGIN,
    END,
    METADATA,
    STUB,
    cells_for_students,
    read_master,
    write_notebook,
)
from xlstm_unet_lab.course.checks import find_exercise
from xlstm_unet_lab.ops.files import write_whole

CHECK_CELL = re.compile(r'check\("(\d\d\.\d+)", \w+\)')
OPEN_QUESTION = "## An open question"
OPEN_POINTS = 5
LINK = re.compile(r'\]\(([^)\s]+)\)|<(?:img|a)\b[^>]*\b(?:src|href)="([^"]+)"')
ANSWER = "*Your answer here.*"
CONFIG = f"""# Settings of nbgrader for this course: the stubs are those of the course's own notebooks.
c = get_config()
c.CourseDirectory.course_id = "xlstm-unet-lab"
c.ClearSolutions.begin_solution_delimeter = {BEGIN!r}
c.ClearSolutions.end_solution_delimeter = {END!r}
c.ClearSolutions.code_stub = {{"python": {STUB!r}}}
c.ClearSolutions.text_stub = {ANSWER!r}
"""


def assignment(master: NotebookNode) -> NotebookNode:
    """The source of an assignment: a lesson with solutions and nbgrader's cell metadata, without outputs."""
    cells = []
    for cell in cells_for_students(master):
        cells.append(cell)
        if "exercise" in cell.metadata:
            cell.metadata["nbgrader"] = _marks(f"exercise_{cell.metadata['exercise']}", solution=True)
        elif match := CHECK_CELL.fullmatch(cell.source.strip()):
            points = find_exercise(match[1]).difficulty
            cell.source = f"result = {cell.source.strip()}\ndisplay(result)\n{points} * result.passed  # points"
            cell.metadata["nbgrader"] = _marks(f"check_{match[1]}", points=points, locked=True)
        elif cell.cell_type == "markdown" and cell.source.startswith(OPEN_QUESTION):
            marks = _marks("open_question", points=OPEN_POINTS, solution=True)
            cells.append(nbformat.v4.new_markdown_cell(ANSWER, id="open-question", metadata={"nbgrader": marks}))
    return nbformat.v4.new_notebook(cells=cells, metadata=nbformat.from_dict(METADATA))


def export(master: Path, folder: Path) -> Path:
    """Write folder/source/NN_slug/NN_slug.ipynb with the pages it links to, and nbgrader_config.py; returns the first.

    Raises ValueError as `read_master` does.
    """
    notebook = assignment(read_master(master))
    home = folder / "source" / master.stem
    home.mkdir(parents=True, exist_ok=True)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in {link.partition("#")[0] for link in links(cell.source) if link.startswith("../")}:
                page = home / target.removeprefix("../")
                page.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(master.parent / target, page)
                cell.source = cell.source.replace(target, target.removeprefix("../"))
    write_whole(folder / "nbgrader_config.py", CONFIG.encode())
    return write_notebook(notebook, home / f"{master.stem}.ipynb")


def links(text: str) -> Iterator[str]:
    """The links and pictures of a text that lead to files, not to the web."""
    targets = (match[1] or match[2] for match in LINK.finditer(re.sub(r"`[^`\n]*`", "", text)))
    yield from (target for target in targets if not re.match(r"[a-z]+:", target))


def _marks(name: str, *, points: int = 0, solution: bool = False, locked: bool = False) -> dict:
    marks = {"schema_version": 3, "grade_id": name.replace(".", "_"), "grade": points > 0, "solution": solution}
    return marks | {"locked": locked, "task": False} | ({"points": points} if points else {})
