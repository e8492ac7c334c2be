"""A device is one that is here, or an error says which are."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from xlstm_unet_lab.ops import devices
from xlstm_unet_lab.ops.devices import available_devices, checked_device


def test_the_processor_is_always_there():
    assert available_devices()[-1] == "cpu"
    for device in ("cpu", "cpu:0", torch.device("cpu"), *available_devices()):
        assert checked_device(device).type in ("cpu", "cuda", "mps")


def test_gpus_come_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert available_devices() == ["cuda", "cuda:1", "cpu"]
    assert [str(checked_device(name)) for name in ("cuda", "cuda:0", "cuda:1")] == ["cuda", "cuda:0", "cuda:1"]
    with pytest.raises(ValueError, match=r"device is 'cuda:2', .* there is cuda, cuda:1, cpu"):
        checked_device("cuda:2")


@pytest.mark.parametrize(
    "device", ["cuda:99", "gpu", "x", "", None, -1, 1.5, True, ["cpu"], "cpu:7", "meta", torch.device("meta"), "meta:0"]
)
def test_others_are_refused_with_those_that_are_there(device):
    with pytest.raises(ValueError, match=r"--device is .*, which PyTorch does not find here: there is .*cpu"):
        checked_device(device, "--device")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx2"}, "32-true"), (set(), "32-true"), ({"avx2", "amx_bf16"}, "bf16-mixed"), ({"bf16"}, "bf16-mixed")],
)
def test_a_processor_trains_in_bfloat16_where_it_has_units_for_it(monkeypatch, flags, precision):
    monkeypatch.setattr(devices, "processor_flags", lambda: flags)
    assert devices.best_precision(torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("capability", "hip", "precision"),
    [
        ((9, 0), None, "bf16-mixed"),
        ((8, 0), None, "bf16-mixed"),
        ((7, 5), None, "16-mixed"),
        ((7, 0), "6.0", "bf16-mixed"),
    ],
)
def test_a_gpu_trains_in_the_shortest_numbers_it_has_units_for(monkeypatch, capability, hip, precision):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.best_precision(torch.device("cuda")) == precision


def test_apples_gpu_trains_in_float32():
    assert devices.best_precision(torch.device("mps")) == "32-true"


KEPT = """
import resource, torch
from xlstm_unet_lab.ops.devices import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
{call}
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_what_comes_next():
    usual, kept = (
        int(subprocess.run([sys.executable, "-c", KEPT.format(call=call)], capture_output=True, check=True).stdout)
        for call in ("", "keep_freed_memory()")
    )
    assert usual > 1000 and kept < usual / 10  # pages of 4 KB that the system had to hand over again


def test_another_c_library_is_left_alone(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    devices.keep_freed_memory()


@pytest.mark.parametrize(
    ("share", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("", 8), (None, 8)]
)
def test_a_container_s_share_bounds_the_cores(monkeypatch, tmp_path, share, cores):
    if share is not None:
        (tmp_path / "cpu.max").write_text(share)
    monkeypatch.setattr(devices, "SHARE_OF_CORES", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert devices.available_cores() == cores


@pytest.mark.parametrize(("chosen", "threads"), [(None, 2), ("7", 7)])
def test_no_more_threads_than_cores_but_for_who_asks_for_them(monkeypatch, chosen, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    monkeypatch.setattr(devices, "available_cores", lambda: 2)
    torch.set_num_threads(7)
    try:
        devices.share_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("start", "workers"), [("fork", 5), ("spawn", 0)])
def test_workers_beside_a_gpu_are_forked_or_none(monkeypatch, start, workers):
    monkeypatch.setattr(devices, "available_cores", lambda: 6)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda **_: start)
    assert devices.layout_and_workers(torch.device("cuda")) == {"channels_last": False, "workers": workers}
    assert devices.layout_and_workers(torch.device("cpu")) == {"channels_last": True, "workers": 0}
