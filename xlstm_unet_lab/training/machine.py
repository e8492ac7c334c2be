"""What training needs to know of the machine: devices, memory, versions."""

import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import distributions

import torch
from torch import Tensor, nn

from xlstm_unet_lab.data.cases import Cases
from xlstm_unet_lab.nn.conv import CHANNELS_LAST
from xlstm_unet_lab.ops import devices
from xlstm_unet_lab.training.config import TrainConfig
from xlstm_unet_lab.training.not_finite import wrong_in_bfloat16

LIBRARIES = ("xlstm-unet-lab", "torch", "lightning", "monai", "numpy", "safetensors", "triton")


def make_fabric(config: TrainConfig):
    """Lightning's Fabric for the devices and precision of `config`; ValueError for what this machine does not have."""
    from lightning.fabric import Fabric

    device = chosen_device(config)
    if device.type == "cpu":
        devices.keep_freed_memory()
        devices.share_cores()
    settings = {name: getattr(config, name) for name in ("accelerator", "devices", "num_nodes", "precision")}
    try:
        with quiet_lightning():
            fabric = Fabric(**settings)
    except Exception as error:  # Lightning has its own for what a machine does not have
        raise ValueError(f"{settings} do not fit this machine: {error}") from error
    if config.precision == "16-mixed" and device.type == "cpu":
        raise ValueError("precision='16-mixed' needs a GPU and this run is on the CPU: use 'bf16-mixed' or '32-true'")
    return fabric


def chosen_device(config: TrainConfig) -> torch.device:
    """The device, or the first of several, that `config` asks for; ValueError where it is not here."""
    names = {"auto": devices.available_devices()[0], "gpu": "cuda"}
    return devices.checked_device(names.get(config.accelerator, config.accelerator), "accelerator")


def chosen_precision(config: TrainConfig, model: nn.Module, train: Cases) -> str:
    """The precision to train in on these cases, where `config` leaves it open.

    Warns of bfloat16 on a processor that only emulates it; ValueError where it was asked for and would go wrong.
    """
    device, auto = chosen_device(config), config.precision == "auto"
    precision = devices.best_precision(device) if auto else config.precision
    if precision != "bf16-mixed" or device.type != "cpu":
        return precision
    if not devices.bfloat16_units(device):
        # A step of `unet` took 11.7 s of one AVX2 core against 0.74 s in float32, on another one 18.6 s against 0.80 s.
        warnings.warn("this processor emulates bfloat16, about 16 times as slow: use precision='auto'", stacklevel=4)
    if len(config.patch_size) == 2:
        return precision
    problem = wrong_in_bfloat16(model, torch.zeros(1, len(train.view(0)["image"]), *config.patch_size))
    if problem and not auto:
        raise ValueError(problem)
    return "32-true" if problem else precision


def settled(config: TrainConfig, model: nn.Module, train: Cases, recorded: Mapping) -> TrainConfig:
    """The settings with nothing left open: layout and workers as `recorded` of a run that goes on, else by device."""
    chosen = devices.layout_and_workers(chosen_device(config))
    there = {name: recorded.get(name, value) for name, value in chosen.items() if getattr(config, name) is None}
    return replace(config, precision=chosen_precision(config, model, train), **there)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Announcements and advice, Lightning's among them, switched off inside the block; errors still get through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logging.disable(before)


def memory_format(config: TrainConfig) -> torch.memory_format:
    """The layout of images and weights that `config` asks for."""
    return CHANNELS_LAST[2 + len(config.patch_size)] if config.channels_last else torch.contiguous_format


def sum_over_processes(fabric) -> Callable[[Tensor], Tensor]:
    """What makes batch Dice the Dice of all processes' patches, with the right gradient."""

    def add_up(sums: Tensor) -> Tensor:
        total = fabric.all_reduce(sums.detach().clone(), reduce_op="sum")
        # The second term is 0. Its gradient is this process's part of the whole, times the number of processes, since
        # gradients are averaged over processes afterwards.
        return total + fabric.world_size * (sums - sums.detach())

    return add_up


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the highest: on the CUDA device, else of the whole process; None where the system hides it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def environment(fabric) -> dict:
    """What a run was computed with: versions, devices, processor. Nothing that names a person or a machine."""
    on_gpu = fabric.device.type == "cuda"
    facts: dict[str, object] = {"python": platform.python_version(), "processor": devices.processor_name()}
    facts |= {"system": f"{platform.system()} {platform.machine()}"}
    facts |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    facts |= {"device": torch.cuda.get_device_name(fabric.device) if on_gpu else fabric.device.type}
    facts |= {"cuda": torch.version.cuda if on_gpu else None, "processes": fabric.world_size}
    return facts | {"versions": {name: found.version for name in LIBRARIES for found in distributions(name=name)}}
