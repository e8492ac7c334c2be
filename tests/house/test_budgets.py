"""The budgets of the house: lines of code a floor, lines of a file, and what counts as a line of code."""

import ast
import io
import tokenize
from pathlib import Path

import pytest
from imports import PACKAGE, python_files
from places import REPOSITORY

LONGEST_FILE = 350  # lines, with everything in it
CHECKS = f"{PACKAGE}/course/checks"
# Of the library the floors share one budget: where a line of it stands is for the floors to decide. Not to be moved:
# what is new is paid for by what goes.
LIBRARY = ("ops", "nn", "models", "data", "inference", "evaluation", "training", "cli")
BUDGETS = {LIBRARY: 6400, ("nnunet",): 350, ("overlays", "figures", "plugin"): 1950, ("course",): 1950}
A_LESSON = 330  # lines of its checks, on average
LAYOUT = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}


def code_line_count(path: Path) -> int:
    """Lines that hold code: blank lines, comments and docstrings, which the house asks for, are left out."""
    source = path.read_text(encoding="utf-8")
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [
        node.body[0] for node in ast.walk(ast.parse(source)) if isinstance(node, holders) and ast.get_docstring(node)
    ]
    documentation = {line for text in texts for line in range(text.lineno, text.end_lineno + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {line for token in tokens if token.type not in LAYOUT for line in range(token.start[0], token.end[0] + 1)}
    return len(code - documentation)


def lines_of(*folders: str) -> int:
    """Lines of code in these folders of the package; checks of lessons have a budget of their own."""
    checks = REPOSITORY / CHECKS
    files = python_files(*(f"{PACKAGE}/{folder}" for folder in folders))
    return sum(code_line_count(path) for path in files if checks not in path.parents)


def test_code_lines_are_counted_without_words(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        '"""Words\nand words."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """Words."""\n    return x\n'
    )
    assert code_line_count(tmp_path / "some.py") == 5


@pytest.mark.parametrize(
    ("folders", "budget"), BUDGETS.items(), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_a_floor_keeps_to_its_budget(folders: tuple[str, ...], budget: int) -> None:
    assert lines_of(*folders) <= budget


def test_checks_keep_to_their_budget() -> None:
    lessons = {path.stem for path in (REPOSITORY / "solutions").glob("[0-9][0-9]_*.py")}
    assert sum(map(code_line_count, python_files(CHECKS))) <= A_LESSON * len(lessons)


def test_every_folder_has_a_budget() -> None:
    counted = {folder for folders in BUDGETS for folder in folders}
    there = {path.parent.name for path in (REPOSITORY / PACKAGE).glob("*/__init__.py")}
    assert there <= counted, f"give {there - counted} a place in BUDGETS"


def test_files_are_short() -> None:
    files = python_files(PACKAGE, "data_recipes", "benchmarks", "tests", "tools")
    lines = {path.relative_to(REPOSITORY): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {str(path): count for path, count in lines.items() if count > LONGEST_FILE} == {}
