"""The devices that PyTorch can compute on here, and what suits them."""

import ctypes
import multiprocessing
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from xlstm_unet_lab.ops.checks import of_kind

FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # what Linux calls it on Intel, AMD and ARM
BFLOAT16_SINCE = (8, 0)  # compute capability of an NVIDIA GPU
MOST_WORKERS = 8  # beside a GPU
SHARE_OF_CORES = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of a core in a period, and the period
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers what mallopt sets


def available_devices() -> list[str]:
    """Their names, the fastest first: GPUs, then "cpu"."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    found = [f"cuda:{index}" if index else "cuda" for index in gpus]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def checked_device(device: object, name: str = "device") -> torch.device:
    """The device, which is here; ValueError, with those that are, for any other, as "meta", which holds no numbers."""
    known = available_devices()
    try:
        found = torch.device(device)  # type: ignore[call-overload]  # it refuses what is none
    except (RuntimeError, TypeError, ValueError):
        found = None
    if found is None or str(found).removesuffix(":0") not in known:
        raise ValueError(f"{name} is {device!r}, which PyTorch does not find here: there is {', '.join(known)}")
    return found


def with_values(name: str, network: nn.Module) -> nn.Module:
    """The network; TypeError for what is none, ValueError where weights of it are on PyTorch's "meta" device."""
    of_kind(name, network, nn.Module)
    if empty := [key for key, x in network.state_dict(keep_vars=True).items() if x.is_meta]:
        words = f'of {name} {len(empty)} weights, such as {empty[0]}, are on the device "meta", which holds no numbers'
        raise ValueError(f"{words}: build it anew, or call its to_empty(device=...) and load its weights")
    return network


def bfloat16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware. On a processor without, a training step took 16 to 23 times as
    long as in float32 (a U-Net on an AVX2 core).
    """
    if device.type == "cuda":
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE
    return device.type == "cpu" and not processor_flags().isdisjoint(FAST_BFLOAT16)


def processor_flags() -> set[str]:
    """The words of /proc/cpuinfo, the instruction sets among them; empty where there is no such file."""
    return set(_processor_facts().split())


def processor_name() -> str:
    """What the processor is called."""
    named = re.search(r"^model name\s*: (.*)", _processor_facts(), re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _processor_facts() -> str:
    facts = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows the name
    return facts.read_text() if facts.is_file() else ""


def best_precision(device: torch.device) -> str:
    """The fastest precision to train in: "bf16-mixed", "16-mixed" on an older NVIDIA GPU, "32-true" elsewhere."""
    if bfloat16_units(device):
        return "bf16-mixed"
    return "16-mixed" if device.type == "cuda" else "32-true"


def layout_and_workers(device: torch.device) -> dict[str, int]:
    """What training takes where nobody chose: whether memory is laid out channels last, processes that cut patches."""
    if device.type == "cpu":
        # Channels last took 0.74 to 0.99 times as long in nine of ten training steps (2-D and 3-D, with mixers and
        # without, float32 on AVX2 and AVX-512, bfloat16), once 1.07. Cutting a patch took a core 3 to 27 ms, little
        # beside its part of a step, for which all cores are needed.
        return {"channels_last": True, "workers": 0}
    # Not measured there. A process that is not forked runs the caller's script anew, which may not be made for it.
    forked = (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork"
    return {"channels_last": False, "workers": min(available_cores() - 1, MOST_WORKERS) if forked else 0}


def available_cores() -> int:
    """How many cores this process may use: those it may run on, and no more than a container's share (Linux)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or "max" of a group without a limit
        share, period = map(int, SHARE_OF_CORES.read_text().split())
        cores = min(cores, max(1, round(share / period)))
    return cores


def share_cores() -> None:
    """Let PyTorch have no more threads than cores, as on a shared hub; what OMP_NUM_THREADS says is left alone."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cores():
        torch.set_num_threads(available_cores())


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is allocated next, instead of asking the system anew for every tensor.

    On 2 AVX2 cores that took 10 to 20 % of a training step, in page faults. Nothing happens under another C library.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        if any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):  # older ones refuse more than 32 MB
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
