"""The house keeps its order: imports go down, files stay short, the library is silent and quick to import."""

import ast
import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from imports import OURS, PACKAGE, imported_modules, is_within, module_name, python_files
from places import REPOSITORY

# Lowest first. A file imports from its own floor or a lower one. The package's face (`xlstm_unet_lab/__init__.py`)
# shows every floor, so it stands on the top one; a recipe stands beside the data floor that runs it.
FLOORS = (
    (f"{PACKAGE}.ops",),
    (f"{PACKAGE}.nn",),
    (f"{PACKAGE}.models",),
    (f"{PACKAGE}.data", "data_recipes"),
    (f"{PACKAGE}.inference",),
    (f"{PACKAGE}.evaluation",),
    (f"{PACKAGE}.training",),
    (f"{PACKAGE}.overlays", f"{PACKAGE}.figures"),
    (f"{PACKAGE}.plugin", f"{PACKAGE}.nnunet"),
    (f"{PACKAGE}.course",),
    (f"{PACKAGE}.cli", PACKAGE),
    ("benchmarks",),
    ("tests",),
)
LONGEST_FILE, LARGEST_PACKAGE = 350, 10_000  # lines of a file with everything in it, lines of code of the package
LAYOUT = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}
HEAVY = {
    *("IPython", "PyQt6", "ipywidgets", "lightning", "matplotlib", "monai", "napari", "nnunetv2", "pandas"),
    *("pytorch_lightning", "qtpy", "skimage", "timm"),
}


def floor_of(module: str) -> int:
    """The floor of a module, decided by the longest name that covers it."""
    covering = [(len(name), floor) for floor, names in enumerate(FLOORS) for name in names if is_within(module, name)]
    return max(covering)[1]


def upward_imports(paths: list[Path], root: Path = REPOSITORY) -> list[str]:
    """Name every import that goes to a higher floor."""
    return [
        f"{path.relative_to(root)}:{line} imports {imported}, which stands on a higher floor"
        for path in paths
        for line, imported in imported_modules(path, root)
        if imported.partition(".")[0] in OURS and floor_of(imported) > floor_of(module_name(path, root))
    ]


def prints(path: Path) -> list[str]:
    """Name every call of `print` in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [f"{path.name}:{call.lineno}" for call in calls if call.func.id == "print"]


def heavy_modules_after(statement: str) -> set[str]:
    """Run a statement in a fresh Python and return which heavy libraries it loaded."""
    program = f"import json, sys\n{statement}\nsys.stdout.write(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    return {name for name in loaded if name in HEAVY or name.startswith("jupyter")}


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_imports_go_down() -> None:
    assert upward_imports(python_files(PACKAGE, "data_recipes", "benchmarks")) == []


def test_every_module_has_a_floor() -> None:
    """A new folder of the package must be given its place; only the top may stand beside the package's face."""
    top = floor_of(PACKAGE)
    unplaced = {
        module_name(path, REPOSITORY)
        for path in python_files(PACKAGE)
        if floor_of(module_name(path, REPOSITORY)) == top
    }
    allowed = tuple(f"{PACKAGE}.{name}" for name in ("course", "nnunet", "cli", "__main__"))
    assert [name for name in unplaced if name != PACKAGE and not any(is_within(name, one) for one in allowed)] == []


@pytest.mark.parametrize(
    ("file", "line", "target"),
    [
        ("ops/mlstm.py", "import xlstm_unet_lab.nn.vil", "xlstm_unet_lab.nn.vil"),
        ("ops/mlstm.py", "from xlstm_unet_lab.nn import vil", "xlstm_unet_lab.nn.vil"),
        ("ops/mlstm.py", "from ..nn.vil import Mixer", "xlstm_unet_lab.nn.vil"),
        ("ops/mlstm.py", "from .. import nn", "xlstm_unet_lab.nn"),
        ("ops/__init__.py", "from ..nn import vil", "xlstm_unet_lab.nn.vil"),
        ("ops/mlstm.py", "def late():\n    from xlstm_unet_lab.nn.vil import Mixer", "xlstm_unet_lab.nn.vil"),
        ("ops/mlstm.py", "import importlib\nimportlib.import_module('data_recipes.nuclei')", "data_recipes.nuclei"),
        ("ops/mlstm.py", "import xlstm_unet_lab", "xlstm_unet_lab"),
        ("training/fit.py", "from xlstm_unet_lab.evaluation import predict", "xlstm_unet_lab.inference.predict"),
        ("evaluation/metrics.py", "from .predict import predict", "xlstm_unet_lab.inference.predict"),
        ("../data_recipes/nuclei.py", "from xlstm_unet_lab.training import fit", "xlstm_unet_lab.training.fit"),
        ("views/figures.py", "from xlstm_unet_lab.course import lesson", "xlstm_unet_lab.course.authoring.lesson"),
        ("cli.py", "import benchmarks", "benchmarks"),
        ("../benchmarks/__main__.py", "from tests import conftest", "tests.conftest"),
    ],
)
def test_walker_sees_an_upward_import(tmp_path: Path, file: str, line: str, target: str) -> None:
    existing = (f"{PACKAGE}/nn/vil.py", f"{PACKAGE}/evaluation/predict.py", f"{PACKAGE}/training/fit.py")
    for name in (*existing, f"{PACKAGE}/course/lesson.py", "tests/conftest.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    path = (tmp_path / PACKAGE / file).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    (found,) = upward_imports([path], tmp_path)
    assert f"imports {target}," in found
    assert found.startswith(f"{path.relative_to(tmp_path)}:{1 + line.count(chr(10))} ")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (f"{PACKAGE}/nn/vil.py", "import torch\nfrom xlstm_unet_lab.ops import mlstm\nfrom . import layers"),
        (f"{PACKAGE}/training/fit.py", "from xlstm_unet_lab.evaluation.metrics import dice"),
        (f"{PACKAGE}/evaluation/predict.py", "from .metrics import dice\nfrom ..training import fit"),
        (f"{PACKAGE}/data/recipe.py", "import data_recipes"),
        ("data_recipes/nuclei.py", "from xlstm_unet_lab.data.prepare import Recipe"),
        (f"{PACKAGE}/cli.py", "import xlstm_unet_lab as lab"),
        ("benchmarks/__main__.py", "import xlstm_unet_lab as lab\nfrom benchmarks import memory"),
        (f"{PACKAGE}/ops/mlstm.py", "import xlstm_unet_lab_of_someone_else"),
    ],
)
def test_walker_lets_downward_imports_pass(tmp_path: Path, file: str, line: str) -> None:
    metrics = tmp_path / PACKAGE / "evaluation" / "metrics.py"
    for path in (metrics, tmp_path / file):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / file).write_text(line)
    assert upward_imports([tmp_path / file], tmp_path) == []


def test_files_are_short() -> None:
    files = python_files(PACKAGE, "data_recipes", "benchmarks", "tests", "tools")
    too_long = {
        str(path.relative_to(REPOSITORY)): line_count(path) for path in files if line_count(path) > LONGEST_FILE
    }
    assert too_long == {}


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


def test_code_lines_are_counted_without_words(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        '"""Words\nand words."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """Words."""\n    return x\n'
    )
    assert code_line_count(tmp_path / "some.py") == 5


def test_package_is_small() -> None:
    checks = REPOSITORY / PACKAGE / "course" / "checks"
    assert sum(code_line_count(path) for path in python_files(PACKAGE) if checks not in path.parents) < LARGEST_PACKAGE


def test_library_does_not_print() -> None:
    files = [path for path in python_files(PACKAGE, "data_recipes") if path.name != "cli.py"]
    assert [found for path in files for found in prints(path)] == []


def test_print_is_found(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("# print(1)\ndef f():\n    print('print(2)')\n")
    assert prints(tmp_path / "loud.py") == ["loud.py:3"]


def test_import_is_light() -> None:
    assert heavy_modules_after(f"import {PACKAGE}") == set()


def test_a_heavy_import_is_seen() -> None:
    assert "pandas" in heavy_modules_after("import pandas")
