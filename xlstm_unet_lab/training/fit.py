"""The training loop: it changes the model in place, yields a record a step and prints nothing."""

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xlstm_unet_lab.data.augment import PatchDataset
from xlstm_unet_lab.training.config import TrainConfig, learning_rate_at
from xlstm_unet_lab.training.losses import deep_supervision_loss
from xlstm_unet_lab.training.validation import foreground_labels, spread, validate

SPACING_CASES = 20  # training cases that are read for the median spacing


@dataclass(frozen=True)
class Record:
    """What happened in one training step."""

    step: int  # optimiser steps done so far, this one included
    loss: float  # mean over the devices, of the batch this step saw, before the weights changed
    learning_rate: float
    seconds: float  # spent training and validating so far; what the caller does between records is not counted
    images_per_second: float  # patches of this step, over all devices, validation left out
    memory: int | None  # peak bytes: on the CUDA device, else of the whole process; None if the system hides it
    metrics: dict[str, float] | None  # at a validation: mean Dice over cases for each label, and their "mean"


def fit(model: nn.Module, train: Dataset, val: Dataset | None, config: TrainConfig) -> Iterator[Record]:
    """Train the model in place and yield a `Record` after every step.

    `train` and `val` give dicts of image (C, *spatial), normalised, label (*spatial) and spacing; patches are cut from
    `train` at random, cases of `val` are predicted whole; `val=None` validates nothing. The model ends on the device it
    was trained on, in the mode (train or eval) it came in, also when the caller stops early, and carries the data's
    median spacing as `training_spacing`. Sets PyTorch's random seed.
    Raises ValueError at once for settings that do not fit the data or the machine, FloatingPointError from the step in
    which a loss or gradient is not finite, before that step changes the weights.
    """
    _check_data("train", train, model, config)
    labels = {}
    if val is not None:
        _check_data("val", val, model, config)
        labels = foreground_labels(val, config)
    from lightning.fabric import Fabric

    with _quiet_lightning():
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,
        )
    if config.precision == "16-mixed" and fabric.device.type == "cpu":
        raise ValueError("precision='16-mixed' needs a GPU and this run is on the CPU: use 'bf16-mixed' or '32-true'")
    return _train(fabric, model, train, val, labels, config)


def _train(
    fabric, model: nn.Module, train: Dataset, val: Dataset | None, labels: dict[str, int], config: TrainConfig
) -> Iterator[Record]:
    started = time.perf_counter()
    modes = [(module, module.training) for module in model.modules()]
    try:
        with _quiet_lightning():
            fabric.launch()
            torch.manual_seed(config.seed + fabric.global_rank)  # dropout must differ between devices
            model.training_spacing = _median_spacing(train)
            network, optimizer, batches = _set_up(fabric, model.train(), train, config)
        _reset_peak_memory(fabric.device)
        seconds = time.perf_counter() - started
        for step in range(1, config.steps + 1):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
            batch = next(batches)
            loss = _train_step(fabric, network, optimizer, batch, step, config)
            step_seconds = time.perf_counter() - started
            last = step == config.steps
            due = last or (config.validate_every is not None and step % config.validate_every == 0)
            metrics = validate(fabric, model, val, labels, config) if due and val is not None else None
            seconds += time.perf_counter() - started
            yield Record(
                step=step,
                loss=loss,
                learning_rate=optimizer.param_groups[0]["lr"],
                seconds=seconds,
                images_per_second=config.batch_size / step_seconds,
                memory=_peak_memory(fabric.device),
                metrics=metrics,
            )
    finally:  # also when the caller stops early
        model.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training


def _set_up(fabric, model: nn.Module, train: Dataset, config: TrainConfig) -> tuple:
    """The network and optimiser as Fabric wraps them, and the iterator over batches."""
    for parameter in model.parameters():
        if parameter.ndim == len(config.patch_size) + 2:  # the weights of convolutions
            parameter.data = parameter.data.contiguous(memory_format=_memory_format(config))
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    patches = PatchDataset(
        train,
        config.patch_size,
        length=config.steps * config.batch_size,
        seed=config.seed,
        augment=config.augment,
        foreground_probability=config.foreground_probability,
    )
    loader = DataLoader(  # in order: patch k is random already, and depends on nothing but the seed and k
        patches,
        batch_size=config.batch_size // fabric.world_size,
        num_workers=config.workers,
        pin_memory=fabric.device.type == "cuda",
    )
    network, optimizer = fabric.setup(model, optimizer)
    return network, optimizer, iter(fabric.setup_dataloaders(loader))


def _train_step(fabric, network: nn.Module, optimizer, batch: dict, step: int, config: TrainConfig) -> float:
    """One optimiser step; returns the loss, averaged over the devices."""
    image = batch["image"].contiguous(memory_format=_memory_format(config))
    optimizer.zero_grad(set_to_none=True)
    outputs = network(image)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    loss = deep_supervision_loss(outputs, batch["label"])
    mean_loss = fabric.all_reduce(loss.detach(), reduce_op="mean").item()
    if not math.isfinite(mean_loss):
        tensors = [("the image", image), *network.module.named_parameters()]
        tensors += [(f"output {level}", output) for level, output in enumerate(outputs)]
        raise _not_finite(step, _first_not_finite(tensors) or "the loss", config)
    fabric.backward(loss)
    largest = math.inf if config.gradient_clip is None else config.gradient_clip
    norm = fabric.clip_gradients(network, optimizer, max_norm=largest, error_if_nonfinite=False)
    # In float16 the loss is scaled up; a step that overflows is skipped and the scale halved. Only when nothing is
    # left to halve are the gradients themselves at fault.
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if not math.isfinite(norm) and (scaler is None or scaler.get_scale() <= 1):
        # backwards, as gradients are computed: the last layer comes first
        named = reversed([(name, parameter.grad) for name, parameter in network.module.named_parameters()])
        culprit = _first_not_finite((name, gradient) for name, gradient in named if gradient is not None)
        raise _not_finite(step, f"the gradient of {culprit}" if culprit else "the norm of all gradients", config)
    optimizer.step()
    return mean_loss


def _median_spacing(dataset: Dataset) -> tuple[float, ...]:
    spacings = [dataset[case]["spacing"] for case in spread(len(dataset), SPACING_CASES)]
    return tuple(float(median(sizes)) for sizes in zip(*spacings, strict=True))


def _check_data(name: str, dataset: Dataset, model: nn.Module, config: TrainConfig) -> None:
    if len(dataset) == 0:
        raise ValueError(f"{name} holds no cases: at least one is needed")
    image, label = dataset[0]["image"], dataset[0]["label"]
    if image.ndim != len(config.patch_size) + 1 or image.shape[1:] != label.shape:
        raise ValueError(
            f"the first case of {name} has image {tuple(image.shape)} and label {tuple(label.shape)}; patch_size="
            f"{config.patch_size} needs (C, *spatial) and (*spatial) with {len(config.patch_size)} spatial dimensions"
        )
    built, recipe = getattr(model, "config", None), getattr(dataset, "recipe", None)
    needed = {"spatial_dims": len(config.patch_size), "in_channels": len(image)}
    if recipe is not None:
        needed["num_classes"] = max(recipe.labels.values()) + 1
    for option, value in needed.items():
        if getattr(built, option, value) != value:
            raise ValueError(
                f"the model was built with {option}={getattr(built, option)}, {name} needs {option}={value}"
            )


def _first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    return next((name for name, tensor in named if not torch.isfinite(tensor).all()), None)


def _not_finite(step: int, what: str, config: TrainConfig) -> FloatingPointError:
    return FloatingPointError(
        f"step {step}: {what} is not finite, and the step was not taken. Check the images for extreme values, lower "
        f"learning_rate={config.learning_rate}, or compute in '32-true' (now precision={config.precision!r})"
    )


def _memory_format(config: TrainConfig) -> torch.memory_format:
    if not config.channels_last:
        return torch.contiguous_format
    return torch.channels_last if len(config.patch_size) == 2 else torch.channels_last_3d


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's own announcements and advice switched off inside the block; its errors still get through."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
