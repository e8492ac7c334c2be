"""The pages that the site is built from: lessons without answers, data sheets of recipes, every floor's docstrings."""

import importlib.util
import runpy

import nbformat
import pytest
from conftest import absent
from places import REPOSITORY

from xlstm_unet_lab.course.authoring.lesson import BEGIN, END, NOT_FOR_STUDENTS, read_master
from xlstm_unet_lab.data.registry import get_recipe

SITE = runpy.run_path(str(REPOSITORY / "tools" / "site_pages.py"))
MASTERS = sorted((REPOSITORY / "solutions").glob("[0-9][0-9]_*.py"))
CONF = REPOSITORY / "docs" / "conf.py"
PROGRAMS = {"cli", "course", "plugin"}


@pytest.fixture(scope="module")
def lessons() -> dict[str, nbformat.NotebookNode]:
    return {name: nbformat.reads(text, as_version=4) for name, text in SITE["lessons"]().items()}


def answers(source: str) -> str:
    """What stands between the markers of a solution."""
    return "\n".join(part.split(END)[0] for part in source.split(BEGIN)[1:]).strip()


@pytest.mark.parametrize("master", MASTERS, ids=lambda master: master.stem)
def test_a_lesson_has_the_solution_s_pictures_and_no_answer(master, lessons) -> None:
    page = lessons[f"notebooks/{master.stem}.ipynb"]
    sources = "\n".join(cell.source for cell in page.cells)
    for cell in read_master(master).cells:
        hidden = answers(cell.source) if "exercise" in cell.metadata else cell.source
        if "exercise" in cell.metadata or NOT_FOR_STUDENTS & set(cell.metadata.get("tags", ())):
            assert hidden and hidden not in sources
    figures = [cell for cell in page.cells if "figure" in cell.metadata["tags"] and cell.cell_type == "code"]
    assert figures and all(cell.outputs for cell in figures)
    shown = [output for cell in page.cells for output in cell.get("outputs", ())]
    assert all("image/png" in output.data and 'alt="' in output.data["text/html"] for output in shown)


def test_outputs_of_an_exercise_are_left_out() -> None:
    drawn = nbformat.v4.new_output("display_data", data={"image/png": "A", "text/html": '<img alt="a">'})
    said = nbformat.v4.new_output("stream", text="the answer is 42")
    student = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("draw()", metadata={"tags": ["figure"]}),
            nbformat.v4.new_code_cell("...  # your code here", metadata={"exercise": "00.1"}),
        ]
    )
    solved = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("draw()", outputs=[said, drawn]),
            nbformat.v4.new_markdown_cell("for instructors", metadata={"tags": ["instructor"]}),
            nbformat.v4.new_code_cell("draw(42)", outputs=[drawn]),
        ]
    )
    first, second = SITE["lesson_page"](student, solved).cells
    assert first.outputs == [drawn] and second.outputs == []
    with pytest.raises(ValueError, match="shorter"):
        SITE["lesson_page"](student, nbformat.v4.new_notebook(cells=solved.cells[:2]))


def test_a_data_sheet_says_what_the_recipe_knows() -> None:
    text = SITE["data_sheet"](get_recipe("phantom_brain"), "What it is.", "How it is made.", "![a case](a.png)")
    rows = ["| modality | MRI (made here), 3-D |", "| how it comes | made here from a seed |"]
    rows += [
        "| 2 | oedema | #009E73 |",
        "| mirror images as likely along | x |",
        "region **whole tumour**: labels 1, 2, 3, tolerance 2 mm",
    ]
    assert [row for row in [*rows, "What it is.", "How it is made.", "![a case](a.png)"] if row not in text] == []
    assert "no checksum" not in SITE["data_sheet"](get_recipe("hippocampus"), "", "")
    assert "after registering at " in SITE["data_sheet"](get_recipe("brain_tumour"), "", "")
    assert "modality" not in SITE["data_sheet"](get_recipe("folder"), "", "")


def test_every_floor_is_in_the_reference_or_a_program() -> None:
    floors = {path.parent.name for path in (REPOSITORY / "xlstm_unet_lab").glob("*/__init__.py")}
    assert floors == set(SITE["FLOORS"]) | PROGRAMS
    assert ".. automodule:: xlstm_unet_lab.ops.mlstm\n" in SITE["reference"]()["api/ops.md"]


def test_guides_lead_to_lessons_not_to_solutions() -> None:
    pages = SITE["guides"]()
    assert "](../notebooks/00_start_here.ipynb)" in pages["docs/for_instructors.md"]
    assert [name for name, text in pages.items() if "](../solutions/" in text] == []


def test_every_page_is_in_the_navigation() -> None:
    first, *others = SITE["all_pages"]().items()
    assert first[0] == "index.md"
    assert [name for name, _ in others if f"\n{name}\n" not in first[1]] == []


def test_a_formula_becomes_mathml_or_is_refused() -> None:
    if importlib.util.find_spec("sphinx") is None:
        absent("Sphinx is not installed", "install the extra named site")
    mathml = runpy.run_path(str(CONF))["mathml"]
    assert "<mfrac>" in mathml(r"\Big\lfloor \frac{n}{s} \Big\rfloor", "block")
    assert "⌊" in mathml(r"\Big\lfloor \frac{n}{s} \Big\rfloor", "block")
    with pytest.raises(ValueError, match="does not know all of"):
        mathml(r"\gone{x}", "inline")
