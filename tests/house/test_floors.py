"""The house keeps its order: imports go down and never in circles, the library is silent and quick to import."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
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
# An overlay shows itself, and a predictor goes from files to files: one-line doors lead from the overlay's description
# to its viewers, which import it, and from the predictor to what reads and writes files with it.
DOORS = {
    (f"{PACKAGE}.overlays.description", f"{PACKAGE}.overlays.{viewer}")
    for viewer in ("viewer", "screenshot", "slicer", "show")
} | {(f"{PACKAGE}.inference.predictor", f"{PACKAGE}.inference.files")}
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


def import_graph(paths: list[Path], root: Path = REPOSITORY) -> dict[str, set[str]]:
    """Module -> the modules among these files that it imports, the doors left out."""
    modules = {module_name(path, root): path for path in paths}
    return {
        module: {
            imported
            for _, imported in imported_modules(path, root)
            if imported in modules and imported != module and (module, imported) not in DOORS
        }
        for module, path in modules.items()
    }


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Every group of modules that reach each other through their imports."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = tuple(error.args[1])
        rest = {module: imported - {circle[0]} for module, imported in graph.items() if module != circle[0]}
        return [circle, *circles(rest)]
    return []


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


def test_imports_go_down() -> None:
    assert upward_imports(python_files(PACKAGE, "data_recipes", "benchmarks")) == []


def test_the_library_does_not_reach_for_what_recipes_share() -> None:
    modules = {imported for path in python_files(PACKAGE) for _, imported in imported_modules(path, REPOSITORY)}
    assert [module for module in modules if is_within(module, "data_recipes.shared")] == []


def test_imports_run_in_no_circles() -> None:
    assert circles(import_graph(python_files(PACKAGE, "data_recipes"))) == []


def test_every_door_is_used() -> None:
    files = {module_name(path, REPOSITORY): path for path in python_files(PACKAGE)}
    used = {(module, imported) for module, path in files.items() for _, imported in imported_modules(path)}
    assert used >= DOORS


def test_a_circle_is_seen_however_long_and_wherever_its_imports_stand(tmp_path: Path) -> None:
    lines = {
        "a": "from . import b",
        "b": "def late():\n    from xlstm_unet_lab.ops.c import x",
        "c": "import xlstm_unet_lab.ops.a",
    }
    for name, line in (lines | {"d": "from xlstm_unet_lab.ops import a"}).items():
        (tmp_path / PACKAGE / "ops").mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / "ops" / f"{name}.py").write_text(line)
    graph = import_graph(python_files(PACKAGE, root=tmp_path), tmp_path)
    ((*circle,),) = circles(graph)
    assert {name.rpartition(".")[2] for name in circle} == {"a", "b", "c"}


def test_every_module_has_a_floor() -> None:
    """A new folder of the package must be given its place; beside the package's face stands only what runs it."""
    placed = {name for floor in FLOORS for name in floor} - {PACKAGE} | {f"{PACKAGE}.__main__"}
    modules = {module_name(path, REPOSITORY) for path in python_files(PACKAGE)} - {PACKAGE}
    assert [module for module in modules if not any(is_within(module, name) for name in placed)] == []


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
        ("inference/load.py", "from xlstm_unet_lab.training import fit", "xlstm_unet_lab.training.fit"),
        ("evaluation/metrics.py", "from ..training.fit import fit", "xlstm_unet_lab.training.fit"),
        ("../data_recipes/nuclei.py", "from xlstm_unet_lab.training import fit", "xlstm_unet_lab.training.fit"),
        ("figures/cases.py", "from xlstm_unet_lab.course import lesson", "xlstm_unet_lab.course.lesson"),
        ("cli/app.py", "import benchmarks", "benchmarks"),
        ("../benchmarks/__main__.py", "from tests import conftest", "tests.conftest"),
    ],
)
def test_walker_sees_an_upward_import(tmp_path: Path, file: str, line: str, target: str) -> None:
    existing = (f"{PACKAGE}/nn/vil.py", f"{PACKAGE}/training/fit.py")
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
        (f"{PACKAGE}/evaluation/report.py", "from .metrics import dice\nfrom ..inference import load"),
        (f"{PACKAGE}/data/registry.py", "import data_recipes"),
        ("data_recipes/nuclei.py", "from xlstm_unet_lab.data.recipe import Recipe"),
        (f"{PACKAGE}/cli/app.py", "import xlstm_unet_lab as lab"),
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


def test_library_does_not_print() -> None:
    assert [found for path in python_files(PACKAGE, "data_recipes") for found in prints(path)] == []


def test_print_is_found(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("# print(1)\ndef f():\n    print('print(2)')\n")
    assert prints(tmp_path / "loud.py") == ["loud.py:3"]


def test_import_is_light() -> None:
    assert heavy_modules_after(f"import {PACKAGE}") == set()


def test_a_heavy_import_is_seen() -> None:
    assert "pandas" in heavy_modules_after("import pandas")
