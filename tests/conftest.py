"""Fixtures every test can use (seeds, a private data folder, the real data, a screen, a browser), and how tests run.

With `--numprocesses 2`, as `make test` asks, two processes work at a time. What is slow comes first, so that none waits
long for the other at the end.
"""

import os
import random
import shutil
from pathlib import Path
from typing import NoReturn

# Set before anything imports PyTorch, and for every process that a test starts: one thread each where two tests run
# at a time, else as many as there are cores and at most two, for the tensors of tests are too small to gain from more.
os.environ["OMP_NUM_THREADS"] = str(min(1 if "PYTEST_XDIST_WORKER" in os.environ else 2, os.cpu_count() or 1))
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # a thread that waits for another leaves the core to those that work
# Set before anything imports Matplotlib: figures are drawn without a window.
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
from places import REPOSITORY, SHARED

WORKER = "PYTEST_XDIST_WORKER" in os.environ
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
REQUIRABLE = ("shared", "opengl", "browser")  # what the variable LAB_REQUIRE may name, separated by commas
SLOW = (REPOSITORY / "tests" / "slow.txt").read_text(encoding="utf-8").split()
# Screens are taken by one process only: `xvfb-run` looks for a free number, and two might take the same.
TOGETHER = ("tests/overlays/", "tests/plugin/")

# No test fails because a machine is slow.
hypothesis.settings.register_profile(
    "patient", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a name in LAB_REQUIRE that stands for nothing."""
    if unknown := required() - set(REQUIRABLE):
        raise pytest.UsageError(f"LAB_REQUIRE names {', '.join(unknown)}: it may name {', '.join(REQUIRABLE)}")


def required() -> set[str]:
    """What must be there, by the variable LAB_REQUIRE."""
    return {name for name in os.environ.get("LAB_REQUIRE", "").split(",") if name}


def absent(thing: str, what: str, remedy: str) -> NoReturn:
    """Fail the test where LAB_REQUIRE names the thing; skip it elsewhere, saying what is missing and what to do."""
    if thing in required():
        pytest.fail(f"{what}, and LAB_REQUIRE names {thing}: {remedy}", pytrace=False)
    pytest.skip(f"{what}: {remedy}")


def required_folder(variable: str, default: Path, holds: str) -> Path:
    """The folder that an environment variable names, or `default`; part of "shared" where it is missing."""
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        absent("shared", f"no {holds} in {folder}", f"set {variable} to the folder that holds it")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what tests/slow.txt lists, whole files or single tests; a worker begins with it."""
    for item in items:
        if item.nodeid.partition("[")[0] in SLOW or item.nodeid.partition("::")[0] in SLOW:
            item.add_marker("slow")
    if WORKER:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    """Two processes take whole files in turn, of the notebooks one each, and folders that open windows as one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = next((folder for folder in TOGETHER if nodeid.startswith(folder)), None)
            _, _, parameter = nodeid.partition("[")
            return folder or (parameter if ".ipynb" in parameter else nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def a_processor_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that precision "auto" is float32 here wherever tests run, and they all compute the same."""
    from xlstm_unet_lab.ops import devices

    monkeypatch.setattr(devices, "processor_flags", set)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start every test from the same state of the global random generators."""
    import numpy as np  # here, so that the process that only hands out the tests does not wait for them
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Tensors of tiny networks take longer to share out than to compute, above all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def private_data_folder(tmp_path_factory: pytest.TempPathFactory):
    """Point LAB_DATA and LAB_PROGRESS at folders of this run: no test touches the user's data or progress."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_PROGRESS", str(tmp_path_factory.mktemp("lab_progress") / "progress.json"))
        patch.setenv("LAB_DATA", str(tmp_path_factory.mktemp("lab_data")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images (nuclei/, hippocampus/, ...)."""
    return required_folder("LAB_REAL_DATA", SHARED / "data", "real data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder of reference tensors computed with the published networks."""
    return required_folder("LAB_GOLDEN", SHARED / "golden", "reference tensors")


@pytest.fixture(scope="session")
def require_display() -> list[str]:
    """The start of a command line for a program that needs a screen; empty where there is a screen already."""
    if os.environ.get("DISPLAY"):
        return []
    if shutil.which("xvfb-run") is None:
        absent("opengl", "no screen and no xvfb-run", "run `make system`")
    return ["xvfb-run", "--auto-servernum"]


@pytest.fixture(scope="session")
def require_browser() -> str:
    """The path of the system's Chromium."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        absent("browser", f"none of {', '.join(BROWSERS)} is installed", "run `make system`")
    return found
