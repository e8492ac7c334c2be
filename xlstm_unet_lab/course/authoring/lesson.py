"""From the master of a lesson to its two notebooks: what students get, and the solution with its outputs.

A master is a Python file in jupytext's percent format. The cell of an exercise holds what students see, with a line
`GAP` where the solution belongs; that comes from the exercise's reference. The functions here are pure but for
`read_master`, `execute` and `write_notebook`; the same master always gives the same bytes.
"""

import copy
import hashlib
import html
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import jupytext
import nbclient.output_widget
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from xlstm_unet_lab.course.checks import all_exercises, find_exercise
from xlstm_unet_lab.ops.files import write_whole

GAP = "pass  ### SOLUTION"  # in a master; ruff keeps `pass` on a line of its own
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"  # around what comes there, as nbgrader asks
STUB = "...  # your code here"
GAP_LINE = re.compile(rf"^( *){GAP}$", re.MULTILINE)
SOLUTION_LINES = re.compile(rf"^( *){BEGIN}\n.*?^ *{END}$", re.MULTILINE | re.DOTALL)
FROM_THE_EXERCISE = ("minutes", "difficulty")
NOT_FOR_STUDENTS = {"instructor", "solution"}
# A student's notebook has no outputs to compare with, so nbval must not be asked to.
COMPARE_COMMENT, COMPARE_TAG = re.compile(r"\s*#\s*NBVAL_CHECK_OUTPUT\s*"), "nbval-check-output"
# The kernel that comes with ipykernel, under the name that JupyterLab, nbclient and nbval all find.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

PICTURE_LIMIT = 150_000  # bytes
PATIENCE = 4  # a busy machine may take this many times the budget before a cell is given up
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
REFERENCE = "IPY_MODEL_"
COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")  # as Python colours its tracebacks in a terminal
EMBEDDED_PICTURE = re.compile(r"data:image/[\w.+-]+;base64,([A-Za-z0-9+/=\s]+)")


def read_master(path: str | Path) -> NotebookNode:
    """Read a master NN_slug.py and put solutions, minutes and difficulty into its exercises.

    Raises ValueError, naming file and cell, for a file name without a lesson number, a file that is not in percent
    format, exercises whose number is unknown or used twice, and cells that are not the reference with gaps.
    """
    path = Path(path)
    if not re.fullmatch(r"\d\d_\w+\.py", path.name):
        raise ValueError(f"{path.name} is no name of a master: expected NN_slug.py, like 00_start_here.py")
    text = path.read_text(encoding="utf-8")
    if not re.search(r"^# %%", text, flags=re.MULTILINE):
        raise ValueError(f"{path.name} has no cells: start each with a line `# %%` or `# %% [markdown]`")
    try:
        cells = jupytext.reads(text, fmt="py:percent").cells
    except Exception as error:  # jupytext promises no types: YAML, JSON and schema errors all come through
        raise ValueError(f"{path.name} cannot be read as a notebook: {error}") from error
    numbers = Counter(cell.metadata.get("exercise") for cell in cells)
    for position, cell in enumerate(cells):
        for fault in _cell_faults(cell, path.name[:2], numbers):
            raise ValueError(f"{path.name}, {cell_name(position, cell)}: {fault}")
        if "exercise" in cell.metadata:
            exercise = find_exercise(cell.metadata["exercise"])
            cell.source = _solved(cell.source, exercise.solution)
            cell.metadata.update({name: getattr(exercise, name) for name in FROM_THE_EXERCISE})
    return _notebook(cells)


def student_notebook(master: NotebookNode) -> NotebookNode:
    """What students get: stubs for solutions, no cells for instructors, no outputs."""
    cells = cells_for_students(master)
    for cell in cells:
        if "exercise" in cell.metadata:
            cell.source = SOLUTION_LINES.sub(rf"\1{STUB}", cell.source)
    return _notebook(cells)


def cells_for_students(master: NotebookNode) -> list[NotebookNode]:
    """Copies of the cells that students get, with the solutions still in them; nbval is not asked to compare them."""
    kept = [copy.deepcopy(cell) for cell in master.cells if not NOT_FOR_STUDENTS & set(cell.metadata.get("tags", ()))]
    for cell in kept:
        if cell.cell_type == "code":
            cell.source = "\n".join(line for line in cell.source.split("\n") if not COMPARE_COMMENT.fullmatch(line))
        if COMPARE_TAG in cell.metadata.get("tags", ()):
            cell.metadata["tags"].remove(COMPARE_TAG)
    return kept


def solution_notebook(master: NotebookNode) -> NotebookNode:
    """The whole lesson, with solutions and without outputs: what is handed to `execute`."""
    return _notebook(master.cells)


class OutputWidget(nbclient.output_widget.OutputWidget):
    """What stands in for an output widget while a notebook is executed, without making the cell's end go unnoticed."""

    def send(self, *message, **options) -> None:
        """Tell the kernel what the widget shows."""
        super().send(*message, **options)
        # A socket says only once that something has come in, to whoever uses it next. The reply to the running cell is
        # awaited on the asyncio socket that this message went past: had it come just then, it would not be seen before
        # the cell's timeout (nbclient's issue 312). Asked for its events, the asyncio socket looks again.
        _ = self.kernel_client.shell_channel.socket.events


def execute(
    notebook: NotebookNode,
    folder: str | Path,
    profile: str,
    timeout: float,
    variables: Mapping[str, str] | None = None,
    record_timing: bool = False,
) -> NotebookNode:
    """Run every cell in `folder`, in a new kernel of this environment, and return a copy with the outputs.

    profile: value of LAB_PROFILE in the kernel; variables: further environment variables. timeout: seconds a cell may
    take. Widgets give way to what they show (see `without_widgets`). record_timing: keep in every cell's metadata when
    it began and ended. The kernel notes no progress where the user's own is kept.
    Raises RuntimeError naming the cell that failed, ValueError for outputs that must not be kept (see
    `check_outputs`).
    """
    executed = copy.deepcopy(notebook)
    # Not the caller's Matplotlib backend: the kernel shows figures in the notebook by itself.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    started = [0]
    client = NotebookClient(
        executed,
        kernel_name=METADATA["kernelspec"]["name"],
        timeout=timeout,
        resources={"metadata": {"path": str(folder)}},
        record_timing=record_timing,
        coalesce_streams=True,
        on_cell_start=lambda cell_index, **_: started.append(cell_index),
    )
    client.widget_registry["@jupyter-widgets/output"]["OutputModel"] = OutputWidget
    try:
        with tempfile.TemporaryDirectory() as private:
            environment |= {"LAB_PROFILE": profile, "LAB_PROGRESS": f"{private}/progress.json"}
            client.execute(env=environment | dict(variables or {}))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        name, reason = cell_name(started[-1], executed.cells[started[-1]]), COLOUR_CODE.sub("", str(error))
        raise RuntimeError(f"{name} failed: {reason}") from error
    executed = without_widgets(executed)
    executed.metadata = nbformat.from_dict(METADATA)
    # All of them at once: an author who mends one would otherwise wait for a whole run to hear of the next.
    faults = [
        f"{cell_name(position, cell)}: {fault}"
        for position, cell in enumerate(executed.cells)
        for fault in check_outputs(cell, Path(folder))
    ]
    if faults:
        raise ValueError("\n".join(faults))
    return executed


def notebook_bytes(notebook: NotebookNode) -> bytes:
    """A notebook as it stands in its file: keys sorted, lines split, a newline at the end."""
    return (nbformat.writes(notebook, version=4) + "\n").encode()


def write_notebook(notebook: NotebookNode, path: str | Path) -> Path:
    """Write a notebook whole or not at all: beside its place, flushed to the disk, then renamed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, notebook_bytes(notebook))


def cell_name(position: int, cell: NotebookNode) -> str:
    """What an author finds a cell by: its position from 1, its exercise if it has one, and its first line."""
    first_line = cell.source.strip().partition("\n")[0][:60]
    exercise = f", exercise {cell.metadata['exercise']}" if "exercise" in cell.metadata else ""
    return f"cell {position + 1}{exercise} ({first_line!r})"


def _notebook(cells: list[NotebookNode]) -> NotebookNode:
    """A notebook of copies of these cells without outputs; ids follow from position and content alone."""
    fresh = []
    for position, cell in enumerate(cells):
        digest = hashlib.sha256(f"{position}\n{cell.cell_type}\n{cell.source}".encode()).hexdigest()
        # jupytext notes the blank lines between cells, which mean nothing in a notebook
        metadata = {name: value for name, value in cell.metadata.items() if not name.startswith("lines_to_")}
        create = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        fresh.append(create(cell.source, id=digest[:12], metadata=copy.deepcopy(metadata)))
    return nbformat.v4.new_notebook(cells=fresh, metadata=nbformat.from_dict(METADATA))


def _solved(source: str, solution: str) -> str | None:
    """The cell of an exercise with the solution in its gaps; None where the cell is anything but parts of it."""
    kept = GAP_LINE.split(source)[::2]  # every other part is the indentation of a gap
    whole = re.fullmatch("(.+?)".join(map(re.escape, kept)), solution, re.DOTALL)
    if whole is None:
        return None
    left_out = iter(whole.groups())
    return GAP_LINE.sub(lambda gap: f"{gap[1]}{BEGIN}\n{next(left_out)}\n{gap[1]}{END}", source)


def _cell_faults(cell: NotebookNode, lesson: str, numbers: Counter) -> Iterator[str]:
    """Say what is wrong with a cell; `numbers` counts the exercise numbers of the whole master."""
    number, has_gap = cell.metadata.get("exercise"), GAP_LINE.search(cell.source)
    if number is None:
        if has_gap and cell.cell_type == "code":
            yield f'`{GAP}` outside an exercise: add exercise="{lesson}.1" to `# %%`'
        return
    if cell.cell_type != "code":
        yield "an exercise must be a code cell"
    if not has_gap:
        yield f"an exercise without gap: write `{GAP}` where the solution belongs"
    if numbers[number] > 1:
        yield f"exercise {number!r} stands in this master {numbers[number]} times: give every exercise its own number"
    known = {one: exercise for one, exercise in all_exercises().items() if one.startswith(f"{lesson}.")}
    if number not in known:
        yield f"exercise {number!r} is unknown: course/checks/lesson_{lesson}.py has {', '.join(known) or 'none'}"
        return
    for name in FROM_THE_EXERCISE:
        if name in cell.metadata:
            yield f"{name}={cell.metadata[name]} here: leave it out, it comes from course/checks/lesson_{lesson}.toml"
    if _solved(cell.source, known[number].solution) is None:
        first = known[number].solution.partition("\n")[0]
        yield (
            f"expected the lines of the reference in course/checks/lesson_{lesson}.py, which begins {first!r}, "
            f"with `{GAP}` in place of its solution"
        )


def without_widgets(notebook: NotebookNode) -> NotebookNode:
    """A copy in which every widget has given way to what it showed last, or to its text where it showed nothing.

    A stored widget needs its state, thousands of lines of it, and does not live without the kernel anyway.
    """
    notebook = copy.deepcopy(notebook)
    models = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs for kept in _static(output, models)]
    return notebook


def _static(output: NotebookNode, models: dict) -> list[NotebookNode]:
    view = output.get("data", {}).pop(WIDGET_VIEW, None)
    if view is None:
        return [output]
    shown = list(_shown_by(view["model_id"], models))
    return shown or ([output] if output.data else [])


def _shown_by(model_id: str, models: dict) -> Iterator[NotebookNode]:
    """What a widget and those inside it show: captured outputs, pictures, text, from first to last."""
    model = models.get(model_id, {"model_name": "", "state": {}})
    state = model["state"]
    if model["model_name"] == "OutputModel":
        for output in state.get("outputs", ()):
            yield from _static(nbformat.from_dict(output), models)
    elif model["model_name"] == "ImageModel":
        for buffer in model.get("buffers", ()):
            if buffer["path"] == ["value"]:
                data = {f"image/{state['format']}": buffer["data"], "text/plain": "a picture"}
                yield nbformat.v4.new_output("display_data", data=data)
    elif model["model_name"] in ("HTMLModel", "LabelModel") and state.get("value", "").strip():
        data = {"text/html": state["value"], "text/plain": _text_of_html(state["value"])}
        yield nbformat.v4.new_output("display_data", data=data)
    for child in state.get("children", ()):
        yield from _shown_by(child.removeprefix(REFERENCE), models)


def _text_of_html(source: str) -> str:
    """The words of a piece of HTML, with the description of a picture in its place."""
    described = re.sub(r'<img\b[^>]*\balt="([^"]*)"[^>]*>', r"\1", source)
    return html.unescape(re.sub(r"<[^>]*>", "", described)).strip()


def check_outputs(cell: NotebookNode, folder: Path) -> Iterator[str]:
    """Say what must not be kept of a cell's outputs: a picture over 150 kB, a path of this machine.

    folder: where the notebook ran; paths into the folder above it, and into the user's home, belong to this machine.
    """
    private = [str(path) for path in (Path.home(), folder.resolve().parent) if len(path.parts) > 1]
    for output in cell.get("outputs", ()):
        text = output.get("text", "\n".join(output.get("traceback", ())))
        for kind, content in output.get("data", {"text/plain": text}).items():
            for size in _picture_sizes(kind, str(content)):
                if size > PICTURE_LIMIT:
                    yield f"a picture of {size:,} bytes, over {PICTURE_LIMIT:,}: make the figure smaller or lower dpi"
            for path in private:
                if kind.startswith("text/") and re.search(re.escape(path) + r"(?![\w.-])", content):
                    yield f"the output shows a path of this machine, {path}: show `path.name` in place of the path"


def _picture_sizes(kind: str, content: str) -> Iterator[int]:
    """The bytes of every picture in one representation of an output."""
    if kind == "image/svg+xml":
        yield len(content.encode())
    elif kind.startswith("image/"):
        yield _decoded_size(content)
    elif kind == "text/html":
        yield from (_decoded_size(match.group(1)) for match in EMBEDDED_PICTURE.finditer(content))


def _decoded_size(base64_text: str) -> int:
    """How many bytes a base64 text stands for: three for every four characters, less the padding."""
    letters = "".join(base64_text.split())
    return len(letters) * 3 // 4 - letters[-2:].count("=")
