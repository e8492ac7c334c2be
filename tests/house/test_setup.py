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
from conftest import required_folder
from imports import OURS, imported_modules, python_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = (
    "notebooks",
    "napari",
    "nnunet",
    "dev",
)  # the extras that `make lab`, `make test` and environment.yml install
NOT_FOR_PIP_ALONE = {"jupyterlab", "ipykernel", "ipywidgets", "napari", "nnunetv2", "pytest", "PyQt6"}


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
    assert set(EXTRAS) == {"notebooks", "napari", "nnunet", "dev", "all"}
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"all"}


def test_base_install_has_neither_jupyter_nor_napari() -> None:
    assert not by_name(PROJECT["dependencies"]).keys() & {canonicalize_name(name) for name in NOT_FOR_PIP_ALONE}


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
        (("xlstm_unet_lab", "data_recipes"), ("notebooks", "napari", "nnunet")),
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
    assert undeclared - {"triton"} == set()  # comes with PyTorch where there is one, and nothing needs it


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines() == [
        "#!/usr/bin/env bash",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "CI=true make test",
    ]


def test_make_lab() -> None:
    install_in_order(
        dry_run("lab", "LAB_ARGS=--no-browser --port 9999"),
        "make lab: ",
        "-m venv",
        f"pip install --disable-pip-version-check --editable '.[{','.join(INSTALLED)}]' --constraint constraints.txt",
        "ipykernel install --sys-prefix --name xlstm-unet-lab",
        "touch .venv/.stamp-",
        "-m jupyterlab",
        "--no-browser --port 9999",
    )


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
        "pytest -k mlstm",
    )


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
        '    *"pip install"*) test ! -e broken ;;\n'
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
    assert len(list((small_house / ".venv").glob(".stamp*"))) == 1


def test_failed_install_leaves_no_stamp(small_house: Path) -> None:
    (small_house / "broken").touch()
    code, calls = make_in(small_house, "lint")
    assert code != 0 and "ruff" not in calls
    assert not list((small_house / ".venv").glob(".stamp*"))
    (small_house / "broken").unlink()
    code, calls = make_in(small_house, "lint")
    assert code == 0 and "pip install" in calls


def test_old_python_is_refused_by_name(small_house: Path) -> None:
    (small_house / "old_python").write_text("#!/bin/sh\nexit 1\n")
    (small_house / "old_python").chmod(0o755)
    command = ["make", "lint", "PYTHON=./old_python"]
    run = subprocess.run(command, cwd=small_house, capture_output=True, text=True)
    assert run.returncode != 0
    assert "./old_python is older than Python 3.11 or missing" in run.stdout
    assert not (small_house / ".venv").exists()


SYSTEM = REPOSITORY / "tools" / "system_packages.sh"


def system_packages(argument: str, folder: Path, *, user: int, installed: str) -> subprocess.CompletedProcess:
    """Run tools/system_packages.sh on a pretended machine where only the stand-ins in `folder` are commands."""
    programs = {
        "dpkg-query": f"echo '{installed}'",
        "id": f"echo {user}",
        "apt-get": 'echo "apt-get $*" >> "$RECORD"',
        "apt-cache": 'test "$2" != xauth',
    }
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return run_system_packages(argument, folder)


def run_system_packages(argument: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {"PATH": str(folder), "RECORD": str(folder / "record")}
    command = [shutil.which("bash"), str(SYSTEM), argument]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_system_installs_what_is_missing_as_root(tmp_path: Path) -> None:
    run = system_packages("install", tmp_path, user=0, installed="xvfb=installed xauth=config-files ")
    first, second = (tmp_path / "record").read_text().splitlines()
    assert first == "apt-get update -qq"
    assert second.startswith("apt-get install -y") and " chromium" in second and " xvfb" not in second
    # The pretended distribution has no package xauth: the others are installed and the gap is named.
    assert " xauth" not in second and "no package named xauth" in run.stdout and run.returncode == 1


def test_system_prints_the_command_for_others(tmp_path: Path) -> None:
    run = system_packages("install", tmp_path, user=1000, installed="xvfb=installed ")
    assert run.returncode == 1 and not (tmp_path / "record").exists()
    assert "sudo apt-get update && sudo apt-get install --no-install-recommends xauth " in run.stdout


def test_make_test_goes_on_without_system_libraries(tmp_path: Path) -> None:
    run = system_packages("install-if-root", tmp_path, user=1000, installed="xvfb=installed ")
    assert run.returncode == 0 and "missing: xauth " in run.stdout and "Going on without them" in run.stdout


def test_system_without_apt_says_so(tmp_path: Path) -> None:
    run = run_system_packages("install", tmp_path)
    assert run.returncode == 1 and "this machine has no apt-get" in run.stdout and "libegl1" in run.stdout


def test_nothing_missing_is_silent_in_make_test(tmp_path: Path) -> None:
    listed = system_packages("missing", tmp_path, user=1000, installed="").stdout.split()
    everything = "".join(f"{name}=installed " for name in listed)
    run = system_packages("install-if-root", tmp_path, user=1000, installed=everything)
    assert len(listed) > 10 and run.returncode == 0 and run.stdout + run.stderr == ""


@pytest.mark.parametrize(("continuous_integration", "outcome"), [("true", pytest.fail), ("", pytest.skip)])
def test_absent_data_fails_in_ci_and_skips_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, continuous_integration: str, outcome
) -> None:
    monkeypatch.setenv("CI", continuous_integration)
    monkeypatch.setenv("LAB_DEMO", str(tmp_path / "nowhere"))
    with pytest.raises(outcome.Exception, match=r"no demo data in .*nowhere: set LAB_DEMO to the folder that holds it"):
        required_folder("LAB_DEMO", tmp_path, "demo data")
    monkeypatch.delenv("LAB_DEMO")
    assert required_folder("LAB_DEMO", tmp_path, "demo data") == tmp_path
