"""Which libraries the Triton kernels run with, found out without a GPU."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from xlstm_unet_lab.ops import mlstm_triton


def pretend_installed(monkeypatch, name: str, version: str) -> None:
    module = ModuleType(name)
    module.__version__, module.__spec__ = version, ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(("version", "fits"), [("3.8.1", True), ("3.9.0", False), ("3.10.0", False), ("4.0", False)])
def test_a_triton_without_block_pointers_is_none_for_the_kernels(monkeypatch, version, fits):
    for name in ("triton", "mlstm_kernels"):
        pretend_installed(monkeypatch, name, version)
    reason = mlstm_triton.library_obstacle.__wrapped__()
    assert reason is None if fits else f"Triton is {version}" in reason


def test_libraries_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = mlstm_triton.library_obstacle.__wrapped__()
    assert reason == "triton and mlstm_kernels not installed: pip install triton mlstm_kernels"
