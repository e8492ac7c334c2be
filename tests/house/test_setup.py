"""What a newcomer meets first: the dependency lists agree, and the two commands do what the README says."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from imports import OURS, imported_modules, python_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_STUDENTS = ("notebooks", "napari", "nnunet")  # the extras that `make lab` installs
INSTALLED = (*FOR_STUDENTS, "dev", "site")  # those that `make test` and environment.yml install
FOR_TESTS_ALONE = {"nbgrader", "nbval", "hypothesis", "pytest", "pytest-xdist", "playwright", "ruff"}
COMES_WITH = {"triton": "torch", "mlstm_kernels": "xlstm"}  # imported only where it is there
NOT_FOR_PIP_ALONE = {"jupyterlab", "ipykernel", "ipywidgets", "napari", "nnunetv2", "pytest", "PyQt6", "xlstm"}


@pytest.fixture(autouse=True)
def not_inside_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` runs these tests; the make they run must not notice, or it reports entering directories."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


def by_name(requirements: list[str]) -> dict[str, tuple]:
    """Index requirement strings by name, each with its version range, extras and marker."""
    parsed = [Requirement(line) for line in requirements]
    names = {canonicalize_name(one.name): (one.specifier, frozenset(one.extras), str(one.marker)) for one in parsed}
    assert len(names) == len(requirements), f"a package is listed twice in {requirements}"
    return names


def pins() -> dict[str, str]:
    """Read constraints.txt as name -> version."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def dry_run(*arguments: str) -> str:
    """Return what make would do for the arguments with nothing installed yet."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def install_in_order(output: str, *expected: str) -> None:
    places = [output.find(text) for text in expected]
    assert -1 not in places, f"{expected[places.index(-1)]!r} is not in:\n{output}"
    assert places == sorted(places), f"not in the order {expected}:\n{output}"


def test_environment_file_has_the_dependencies_of_the_project() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    (pip_section,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    options = [line for line in pip_section if line.startswith("-")]
    listed = [line for line in pip_section if not line.startswith("-")]
    declared = [*PROJECT["dependencies"], *(line for extra in INSTALLED for line in EXTRAS[extra])]
    assert by_name(listed) == by_name(declared)
    assert options == ["--constraint constraints.txt", "--editable ."]
    (python,) = [Requirement(line) for line in environment["dependencies"] if str(line).startswith("python")]
    assert "3.11" in python.specifier and "3.10" not in python.specifier
    assert PROJECT["requires-python"] == ">=3.11"


def test_extras() -> None:
    assert set(EXTRAS) == {*INSTALLED, "all"}
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"all"}


def test_base_install_has_neither_jupyter_nor_napari() -> None:
    assert not by_name(PROJECT["dependencies"]).keys() & {canonicalize_name(name) for name in NOT_FOR_PIP_ALONE}


def test_students_get_no_test_tools() -> None:
    declared = by_name([*PROJECT["dependencies"], *(line for extra in FOR_STUDENTS for line in EXTRAS[extra])])
    assert not declared.keys() & {canonicalize_name(name) for name in FOR_TESTS_ALONE}
    assert {canonicalize_name(name) for name in FOR_TESTS_ALONE} <= by_name(EXTRAS["dev"]).keys()


def test_constraints_hold_plain_versions_only() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)] == []
    assert any("make constraints" in line for line in lines if line.startswith("#"))
    assert canonicalize_name(PROJECT["name"]) not in pins()


@pytest.mark.parametrize("group", ["dependencies", *INSTALLED])
def test_constraints_pin_every_dependency_within_its_range(group: str) -> None:
    requirements = by_name(PROJECT["dependencies"] if group == "dependencies" else EXTRAS[group])
    pinned = pins()
    wrong = {name: str(one[0]) for name, one in requirements.items() if pinned.get(name, "none") not in one[0]}
    assert wrong == {}


def test_constraints_writer_refuses_what_has_no_version() -> None:
    writer = runpy.run_path(str(REPOSITORY / "tools" / "write_constraints.py"))
    assert writer["pinned_lines"]("# note\nnumpy==2.0\n\ntorch==2.8.0\n") == ["numpy==2.0", "torch==2.8.0"]
    with pytest.raises(ValueError, match=r"'demo @ file:///demo'.*install it by name and version"):
        writer["pinned_lines"]("numpy==2.0\ndemo @ file:///demo")


def third_party_imports(*folders: str) -> set[str]:
    """The top-level names of everything imported under the folders that is neither ours nor Python's."""
    imported = {name.partition(".")[0] for path in python_files(*folders) for _, name in imported_modules(path)}
    local = OURS | {path.stem for path in python_files(*folders)}
    return imported - local - set(sys.stdlib_module_names) - {""}


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("xlstm_unet_lab", "data_recipes"), FOR_STUDENTS),
        (("solutions",), ("notebooks", "napari")),
        (("tests", "benchmarks"), INSTALLED),
    ],
)
def test_every_import_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    declared = by_name([*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])])
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        name
        for name in third_party_imports(*folders)
        if not {canonicalize_name(one) for one in distributions.get(name, [name])} & declared.keys()
    }
    assert undeclared <= COMES_WITH.keys(), undeclared
    for name in undeclared:
        required = map(Requirement, importlib.metadata.requires(COMES_WITH[name]))
        assert canonicalize_name(name) in {canonicalize_name(one.name) for one in required}


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines() == [
        "#!/usr/bin/env bash",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "CI=true LAB_REQUIRE=shared,opengl,browser make test",
    ]


@pytest.mark.parametrize(("target", "extras"), [("lab", FOR_STUDENTS), ("demo", FOR_STUDENTS), ("lint", INSTALLED)])
def test_two_set_ups(target: str, extras: tuple[str, ...]) -> None:
    what = f"--editable '.[{','.join(extras)}]' --constraint constraints.txt"
    install_in_order(
        dry_run(target),
        "-m venv",
        "pip install --disable-pip-version-check --quiet uv --constraint constraints.txt",
        f".venv/bin/uv pip install --python .venv/bin/python {what} || ",
        f"pip install --disable-pip-version-check {what}",
        "ipykernel install --sys-prefix --name xlstm-unet-lab",
        "touch .venv/.stamp-",
    )


def test_make_lab() -> None:
    output = dry_run("lab", "LAB_ARGS=--no-browser --port 9999")
    install_in_order(output, "make lab: ", "-m venv", "-m jupyterlab", "--no-browser --port 9999")


def test_another_build_of_torch_can_be_asked_for() -> None:
    output = dry_run("lab", "TORCH=cpu")
    install_in_order(output, "uv pip install --python .venv/bin/python --torch-backend cpu --editable")
    assert "||" not in output[output.index("--torch-backend") :].splitlines()[0], "pip knows no other build"


def test_make_lab_keeps_the_token() -> None:
    assert "token" not in dry_run("lab").lower()
    assert "password" not in dry_run("lab").lower()


def test_make_test() -> None:
    install_in_order(
        dry_run("test", "TEST_ARGS=-k mlstm"),
        "make test: ",
        "tools/system_packages.sh install-if-root",
        "pip install",
        "ruff check .",
        "ruff format --check .",
        "pytest --numprocesses 2 -k mlstm",
    )


def test_make_check_leaves_out_what_is_slow() -> None:
    steps = ("make check: ", "ruff check .", "ruff format --check .", 'pytest --numprocesses 4 -m "not slow" -x')
    install_in_order(dry_run("check", "TEST_ARGS=-x", "WORKERS=4"), *steps)


def test_the_types_are_checked_last() -> None:
    for target in ("check", "test"):
        install_in_order(dry_run(target, "TYPES=a-type-checker"), "pytest", "a-type-checker")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["course"], "xlstm_unet_lab.course.authoring.build"),
        (["course", "CHECK=1"], "xlstm_unet_lab.course.authoring.build --check"),
        (["course-times"], "xlstm_unet_lab.course.authoring.build && exit $status"),
        (["nbgrader"], "xlstm_unet_lab.course.authoring.build --nbgrader runs/nbgrader"),
        (["bench"], "-m benchmarks"),
        (["site"], "build/site_source build/site"),
        (["system"], "tools/system_packages.sh install"),
        (["lint"], "ruff check ."),
        (["format"], "ruff format ."),
        (["constraints"], "tools/write_constraints.py constraints.txt"),
    ],
)
def test_make_targets(arguments: list[str], expected: str) -> None:
    assert any(line.rstrip().endswith(expected) for line in dry_run(*arguments).splitlines())


def test_plain_make_lists_every_public_target() -> None:
    listed = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    rules = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", rules, flags=re.MULTILINE)
    hidden = {"system-if-missing", *(name for name in phony.split() if name.startswith("say-"))}
    public = set(phony.split()) - hidden
    assert {line.split()[1] for line in listed.splitlines()} == public


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """A folder with this Makefile and a stand-in for Python that records its calls and fails where told to."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    stand_in = tmp_path / "stand_in"
    stand_in.write_text(
        "#!/bin/sh\n"
        'echo "$*" >> calls\n'
        'case "$*" in\n'
        '    *"-m venv"*) mkdir -p .venv/bin; cp stand_in .venv/bin/python ;;\n'
        '    *"pip install"*" uv "*) test ! -e no_uv && cp stand_in .venv/bin/uv ;;\n'
        '    *"--editable"*) test ! -e broken ;;\n'
        "esac\n"
    )
    stand_in.chmod(0o755)
    return tmp_path


def make_in(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run make in a small house; return its exit code and the calls of Python that it made."""
    (folder / "calls").unlink(missing_ok=True)
    run = subprocess.run(["make", "PYTHON=./stand_in", *arguments], cwd=folder, capture_output=True, text=True)
    calls = folder / "calls"
    return run.returncode, calls.read_text() if calls.exists() else ""


def test_second_run_installs_nothing_until_a_list_changes(small_house: Path) -> None:
    code, calls = make_in(small_house, "lint")
    assert code == 0 and "pip install" in calls
    code, calls = make_in(small_house, "lint")
    assert code == 0 and "pip" not in calls and "ruff check ." in calls
    later = (small_house / "constraints.txt").stat().st_mtime + 60
    os.utime(small_house / "constraints.txt", (later, later))
    code, calls = make_in(small_house, "lint")
    assert code == 0 and "pip" not in calls, "a newer file with the same content installs nothing"
    (small_house / "constraints.txt").write_text("some==1\n")
    code, calls = make_in(small_house, "lint")
    assert code == 0 and "pip install" in calls and "-m venv" not in calls
    assert len(stamps(small_house)) == 2


def test_what_developers_have_is_enough_for_students_but_not_the_other_way_round(small_house: Path) -> None:
    code, calls = make_in(small_house, "course")
    assert code == 0 and ".[notebooks,napari,nnunet]" in calls and len(stamps(small_house)) == 1
    code, calls = make_in(small_house, "lint")
    assert code == 0 and ".[notebooks,napari,nnunet,dev,site]" in calls and len(stamps(small_house)) == 2
    code, calls = make_in(small_house, "course")
    assert code == 0 and "pip" not in calls and "authoring.build" in calls


def test_uv_installs_once(small_house: Path) -> None:
    code, calls = make_in(small_house, "lint")
    assert code == 0 and calls.count("--editable") == 1
    assert "pip install --python .venv/bin/python --editable" in calls, "as uv is asked"


def test_pip_installs_where_uv_cannot_be_had(small_house: Path) -> None:
    (small_house / "no_uv").touch()
    code, calls = make_in(small_house, "lint")
    assert code == 0 and calls.count("--editable") == 1
    assert "-m pip install --disable-pip-version-check --editable" in calls
    (small_house / "constraints.txt").write_text("some==1\n")
    code, calls = make_in(small_house, "lint", "TORCH=cpu")
    assert code != 0 and "--editable" not in calls, "pip would install another build of PyTorch"


def test_python_may_keep_what_it_compiles(small_house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    stand_in = small_house / "stand_in"
    stand_in.write_text(stand_in.read_text().replace('"$*" >>', '"$PYTHONDONTWRITEBYTECODE:$*" >>'))
    _, calls = make_in(small_house, "lint")
    assert calls and all(line.startswith(":") for line in calls.splitlines())


def test_failed_install_leaves_no_stamp(small_house: Path) -> None:
    (small_house / "broken").touch()
    code, calls = make_in(small_house, "lint")
    assert code != 0 and "ruff" not in calls and calls.count("--editable") == 2, "pip tries after uv"
    assert stamps(small_house) == []
    (small_house / "broken").unlink()
    code, calls = make_in(small_house, "lint")
    assert code == 0 and "pip install" in calls


def stamps(folder: Path) -> list[Path]:
    return sorted((folder / ".venv").glob(".stamp*"))


def test_old_python_is_refused_by_name(small_house: Path) -> None:
    (small_house / "old_python").write_text("#!/bin/sh\nexit 1\n")
    (small_house / "old_python").chmod(0o755)
    command = ["make", "lint", "PYTHON=./old_python"]
    run = subprocess.run(command, cwd=small_house, capture_output=True, text=True)
    assert run.returncode != 0
    assert "./old_python is older than Python 3.11 or missing" in run.stdout
    assert not (small_house / ".venv").exists()
