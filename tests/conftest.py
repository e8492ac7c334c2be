"""Fixtures every test can use: seeds, a private data folder, the real data, a screen and a browser."""

import os
import random
import shutil
from pathlib import Path
from typing import NoReturn

# Set before anything imports Matplotlib: figures are drawn without a window.
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from places import SHARED

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def absent(what: str, remedy: str) -> NoReturn:
    """Fail the test in CI, where everything must be there; skip it elsewhere, saying what is missing and what to do."""
    reason = f"{what}: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def required_folder(variable: str, default: Path, holds: str) -> Path:
    """Return the folder named by an environment variable, or `default`; skip (in CI: fail) where it is missing."""
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        absent(f"no {holds} in {folder}", f"set {variable} to the folder that holds it")
    return folder


def pytest_configure() -> None:
    """Use no more threads than the machine has, and at most two: the tests' tensors are too small to gain from more."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start every test from the same state of the global random generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Tensors of tiny networks take longer to share out than to compute, above all on a busy machine."""
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
        absent("no screen and no xvfb-run", "run `make system`")
    return ["xvfb-run", "--auto-servernum"]


@pytest.fixture(scope="session")
def require_browser() -> str:
    """The path of the system's Chromium."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        absent(f"none of {', '.join(BROWSERS)} is installed", "run `make system`")
    return found
