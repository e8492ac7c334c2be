"""The pages of the site, gathered and generated for Sphinx: `make site` calls it with the folder to write to.

The folder mirrors the repository, so that links lead where they lead there: the README first, the guides in docs/, the
lessons in notebooks/; beside them a data sheet for each recipe and a page of the API reference for each floor.
"""

import pkgutil
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from inspect import cleandoc, getdoc
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

import xlstm_unet_lab as lab
from xlstm_unet_lab.course.authoring.lesson import NOT_FOR_STUDENTS
from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.data.registry import get_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("CONTRIBUTING.md", "CHANGELOG.md")
FILES = ("LICENSE", "NOTICE", "CITATION.cff")  # offered as they are
SOURCE = re.compile(r"\]\(\.\./([\w/]+\.py)\)")  # a link to a file of ours, which the site offers too
# The floors whose modules are a library; cli, plugin and course are programs over it.
FLOORS = {
    "ops": "Pure functions on tensors.",
    "nn": "Modules that hold weights.",
    "models": "Networks: by config, by name, published, and to compare with.",
    "data": "Data sets: facts, files, patches, augmentation, phantoms.",
    "inference": "From an image to labels.",
    "evaluation": "How good labels are.",
    "training": "From data to weights.",
    "overlays": "What there is to see of a case.",
    "figures": "Pictures of cases and trainings, and the page of scores.",
    "nnunet": "This package inside nnU-Net, and nnU-Net's results folders here.",
}


def lesson_page(student: NotebookNode, solved: NotebookNode) -> NotebookNode:
    """A lesson as students get it, with the pictures that the solution's cells drew, but those of exercises."""
    kept = [cell for cell in solved.cells if not NOT_FOR_STUDENTS & set(cell.metadata.get("tags", ()))]
    cells = []
    for cell, answer in zip(student.cells, kept, strict=True):
        page = NotebookNode(cell, metadata={"tags": cell.metadata.get("tags", [])})
        if cell.cell_type == "code" and "exercise" not in cell.metadata:
            page.outputs = [output for output in answer.outputs if "image/png" in output.get("data", {})]
        cells.append(page)
    return NotebookNode(student, cells=cells)


def data_sheet(recipe: Recipe, about: str | None, conversion: str | None, picture: str = "") -> str:
    """What is known of a data set, as a page: `about` and `conversion` are docstrings of its module."""
    parts = [f"# {recipe.name}", about or "", picture]
    if not recipe.of_own_files:
        parts += ["| | |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in _facts(recipe))]
        parts += ["## What is learned\n\n" + _targets(recipe)]
    parts += [f"## How it is converted\n\n{conversion}"] if conversion else []
    return "\n\n".join(parts) + "\n"


def _facts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield "data", recipe.title
    yield "prepared by", f'`xlstm-unet-lab prepare {recipe.name}`, `lab.prepare("{recipe.name}")`'
    yield "modality", f"{recipe.modality}, {recipe.spatial_dims}-D"
    yield "channels", ", ".join(recipe.channel_names)
    yield "scores", ", ".join(recipe.metrics)
    axes = range(recipe.spatial_dims) if recipe.flip_axes is None else recipe.flip_axes
    yield "mirror images as likely along", ", ".join("zyx"[-recipe.spatial_dims :][axis] for axis in axes) or "no axis"
    yield "how it comes", _source(recipe)
    yield "nnU-Net's number", str(recipe.dataset_id)
    yield "licence", recipe.licence
    yield "cite", recipe.citation
    if recipe.homepage:
        yield "home", recipe.homepage


def _source(recipe: Recipe) -> str:
    if recipe.made_here:
        return "made here from a seed"
    if recipe.registration:
        return f"after registering at {recipe.registration}, with `--source`"
    files = ", ".join(
        f"{file.name} ({file.size / 1e6:,.0f} MB, {'checksum known' if file.sha256 else 'no checksum published'})"
        for file in recipe.files
    )
    return f"download of {files}, or `--source`"


def _targets(recipe: Recipe) -> str:
    rows = [
        f"| {number} | {name} | {recipe.colours.get(name, '')} | {_tolerance(recipe, name)} |"
        for name, number in recipe.labels.items()
    ]
    text = "| label | name | colour | tolerance of the surface Dice |\n|---|---|---|---|\n" + "\n".join(rows)
    for name, values in recipe.regions.items():
        text += f"\n\n* region **{name}**: labels {', '.join(map(str, values))}, tolerance {_tolerance(recipe, name)}"
    return text


def _tolerance(recipe: Recipe, name: str) -> str:
    value = recipe.tolerances.get(name)
    return "" if value is None else f"{value:g} {recipe.spacing_unit}"


def api_page(floor: str, about: str, modules: Iterable[str]) -> str:
    """A page of the API reference: every public name of these modules, from the docstrings."""
    sections = [f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {lab.__name__}.{floor}.{name}\n```" for name in modules]
    return "\n\n".join([f"# {lab.__name__}.{floor}", about, *sections]) + "\n"


def api_index() -> str:
    """The names that `import xlstm_unet_lab as lab` offers, each with the first sentence of its docstring."""
    rows = []
    for name in lab.__all__:
        thing = getattr(lab, name)
        sentence = cleandoc(thing.__doc__).split("\n\n")[0].replace("\n", " ").replace("|", r"\|")
        rows.append(f"| {{py:obj}}`lab.{name} <{thing.__module__}.{name}>` | {sentence} |")
    return "# API reference\n\n| name | what it is |\n|---|---|\n" + "\n".join(rows) + "\n"


def contents(title: str, pages: Iterable[str]) -> str:
    """A hidden table of contents, which the navigation of the site shows."""
    lines = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n:maxdepth: 1\n\n{lines}\n```\n"


def modules_of(floor: str) -> list[str]:
    folder = ROOT / lab.__name__ / floor
    return [module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_")]


def guides() -> dict[str, str]:
    """The pages of docs/; where they lead to a solution, here they lead to the lesson."""
    texts = {f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
    return {name: text.replace("](../solutions/", "](../notebooks/") for name, text in texts.items()}


def lessons() -> dict[str, str]:
    pages = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        student, solved = (nbformat.read(ROOT / folder / path.name, 4) for folder in ("notebooks", "solutions"))
        pages[f"notebooks/{path.name}"] = nbformat.writes(lesson_page(student, solved))
    return pages


def data_sheets() -> dict[str, str]:
    pages = {}
    for recipe in map(get_recipe, recipe_names()):
        module = sys.modules[recipe.convert.__module__]
        picture = ROOT / "docs" / f"overlay_{recipe.name}.png"
        shown = f"![{Image.open(picture).info['Description']}](../docs/{picture.name})" if picture.is_file() else ""
        pages[f"data_sheets/{recipe.name}.md"] = data_sheet(recipe, getdoc(module), getdoc(module.convert), shown)
    return pages


def reference() -> dict[str, str]:
    pages = {f"api/{floor}.md": api_page(floor, about, modules_of(floor)) for floor, about in FLOORS.items()}
    return {"api/index.md": api_index()} | pages


def all_pages() -> dict[str, str]:
    """File name -> text of every page; the first is the README, with the navigation of the site."""
    project = {name: (ROOT / name).read_text(encoding="utf-8") for name in TEXTS}
    parts = {"Guides": guides(), "Lessons": lessons(), "Data sheets": data_sheets(), "Reference": reference()}
    parts["Project"] = project
    navigation = [contents(title, pages) for title, pages in parts.items()]
    first = (ROOT / "README.md").read_text(encoding="utf-8") + "".join(navigation)
    return {"index.md": first} | {name: text for pages in parts.values() for name, text in pages.items()}


def main(folder: Path) -> None:
    """Write all pages into `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    texts = all_pages()
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    linked = {name for text in texts.values() for name in SOURCE.findall(text)}
    for path in [*(ROOT / "docs").glob("*.png"), *(ROOT / name for name in (*FILES, *linked))]:
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
