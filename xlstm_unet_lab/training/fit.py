"""The training loop: it changes the model in place, yields a record a step and prints nothing."""

import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from xlstm_unet_lab.data.augment import Augmentation, PatchDataset
from xlstm_unet_lab.data.kept_cases import view_case
from xlstm_unet_lab.data.registry import own_facts
from xlstm_unet_lab.data.resample import ResampledDataset
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.sliding_window import modes_kept
from xlstm_unet_lab.training.config import TrainConfig, learning_rate_at
from xlstm_unet_lab.training.losses import deep_supervision_loss
from xlstm_unet_lab.training.machine import (
    environment,
    make_fabric,
    memory_format,
    peak_memory,
    quiet_lightning,
    reset_peak_memory,
)
from xlstm_unet_lab.training.not_finite import bad_gradient, bad_in_forward, check_bfloat16, not_finite
from xlstm_unet_lab.training.run_directory import RunDirectory
from xlstm_unet_lab.training.state import Progress, TrainingState
from xlstm_unet_lab.training.validation import Scored, foreground, spread, validate

CHECKPOINTS = 20  # of a run that neither validates in between nor says how often to save
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


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset | None,
    config: TrainConfig,
    run_directory: str | Path | None = None,
) -> Iterator[Record]:
    """Train the model in place and yield a `Record` after every step.

    `train` and `val` give dicts of image (C, *spatial), normalised, label (*spatial) and spacing; patches are cut from
    `train` at random, cases of `val` are predicted whole, as `lab.predict` does; `val=None` validates nothing. The
    model ends on the device it was trained on, in the mode (train or eval) it came in, also when the caller stops
    early, and carries the data's median spacing as `training_spacing` and what its channels stand for as `targets`.
    Sets PyTorch's random seed.
    With a `run_directory` settings, log and checkpoints go there (see `training.run_directory`), and a run that was
    stopped there, however it was, goes on from its last checkpoint to the same end; a finished one yields nothing more.
    One process at a time may train there: another one gets a BlockingIOError at its first step.
    Raises ValueError at once for settings that do not fit the data, the machine or the run in that folder, OSError when
    the folder cannot be written, FloatingPointError from the step in which a loss or gradient is not finite, before
    that step changes the weights.
    """
    origin, names = _origin(train), _names(train)  # read here: of a resampled set they could not be
    recipe = getattr(origin, "recipe", None)
    targets = config.targets or getattr(recipe, "targets", None)
    if config.spacing is not None:
        train = ResampledDataset(train, config.spacing) if train else train
    _check_data("train", train, model, config, targets)
    scored: Scored = {}
    if val is not None:
        _check_data("val", val, model, config, targets)
        scored = foreground(val, targets, config)
    fabric = make_fabric(config)
    if config.precision == "bf16-mixed" and fabric.device.type == "cpu" and len(config.patch_size) == 3:
        check_bfloat16(model, torch.zeros(1, len(view_case(train, 0)["image"]), *config.patch_size))
    run = None
    if run_directory is not None:
        data = {"recipe": getattr(recipe, "name", None), "fold": getattr(origin, "fold", None), "cases": len(train)}
        if hasattr(origin, "axis"):  # slices of volumes: cut across it
            data["slice_axis"] = origin.axis
        if getattr(recipe, "read_by", None):  # where the run predicts, a user's own data set may be unknown
            own = own_facts(getattr(origin, "dataset", origin).recipe)  # of slices: their volumes'
            data["own"] = {what: fact for what, fact in own.items() if what not in ("dataset_id", "version")}
        data["names"] = zlib.crc32("\n".join(names).encode())  # other cases are another run
        columns = [f"dice {name}" for name in (*scored, "mean")] if val is not None else []
        run = RunDirectory(run_directory, config, model, data, columns)
    return _train(fabric, model, train, val, targets, scored, config, run)


def _train(
    fabric,
    model: nn.Module,
    train: Dataset,
    val: Dataset | None,
    targets: Targets | None,
    scored: Scored,
    config: TrainConfig,
    run: RunDirectory | None,
) -> Iterator[Record]:
    started = time.perf_counter()
    state = None
    with modes_kept(model):
        try:
            with quiet_lightning():
                fabric.launch()
                torch.manual_seed(config.seed + fabric.global_rank)  # dropout must differ between devices
                model.training_spacing = config.spacing or _median_spacing(train)
                model.targets = targets
                state = TrainingState.create(fabric, model.train(), config)
            progress = Progress() if run is None else run.start(state, environment(fabric))
            batches = _batches(fabric, train, config, progress.step)
            reset_peak_memory(fabric.device)
            progress.seconds += time.perf_counter() - started
            for step in range(progress.step + 1, config.steps + 1):
                started = time.perf_counter()
                for group in state.optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, config)
                loss = _train_step(state, next(batches), targets, step, config, run and run.path)
                step_seconds = time.perf_counter() - started
                last = step == config.steps
                due = last or (config.validate_every is not None and step % config.validate_every == 0)
                metrics = validate(fabric, state.result, val, scored, config) if due and val is not None else None
                progress.step, progress.seconds = step, progress.seconds + time.perf_counter() - started
                record = Record(
                    step=step,
                    loss=loss,
                    learning_rate=state.optimizer.param_groups[0]["lr"],
                    seconds=progress.seconds,
                    images_per_second=config.batch_size / step_seconds,
                    memory=peak_memory(fabric.device),
                    metrics=metrics,
                )
                if run is not None:
                    run.keep(record, state, progress, due=last or _checkpoint_due(step, metrics, config))
                yield record
        finally:  # also when the caller stops early
            if state is not None and state.average is not None:
                model.load_state_dict(state.average.module.state_dict())
            model.zero_grad(set_to_none=True)
            if run is not None:
                run.release()


def _batches(fabric, train: Dataset, config: TrainConfig, done: int) -> Iterator[dict]:
    """Batches of the steps after `done`. Patch k depends on the seed and k alone, and step s has the same patches
    however many processes share them and whenever it runs."""
    augment, flip_axes = config.augment, getattr(getattr(_origin(train), "recipe", None), "flip_axes", None)
    if augment is True and flip_axes is not None:  # where left is not right, a quarter turn is as wrong as a mirror
        augment = Augmentation(flip_axes=flip_axes, rotate=False)
    total = config.steps * config.batch_size
    patches = PatchDataset(
        train,
        config.patch_size,
        length=total,
        seed=config.seed,
        augment=augment,
        foreground_probability=config.foreground_probability,
    )
    starts = range(done * config.batch_size, total, config.batch_size)
    loader = DataLoader(
        patches,
        batch_sampler=[range(s + fabric.global_rank, s + config.batch_size, fabric.world_size) for s in starts],
        num_workers=config.workers,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),  # a loader draws a number when it starts; dropout's must not depend on that
    )
    return iter(fabric.setup_dataloaders(loader, use_distributed_sampler=False))


def _train_step(
    state: TrainingState, batch: dict, targets: Targets | None, step: int, config: TrainConfig, folder: Path | None
) -> float:
    """One optimiser step; returns the loss, averaged over the devices."""
    fabric, model, optimizer = state.fabric, state.model, state.optimizer
    image = batch["image"].contiguous(memory_format=memory_format(config))
    optimizer.zero_grad(set_to_none=True)
    outputs = state.network(image)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    loss = deep_supervision_loss(outputs, batch["label"], targets, _sum_over_processes(fabric))
    mean_loss = fabric.all_reduce(loss.detach().clone(), reduce_op="mean").item()
    if not math.isfinite(mean_loss):
        what = bad_in_forward(fabric, model, image, outputs)
        raise not_finite(fabric, model, batch, step, what, config, folder)
    fabric.backward(loss)
    largest = math.inf if config.gradient_clip is None else config.gradient_clip
    norm = fabric.clip_gradients(state.network, optimizer, max_norm=largest, error_if_nonfinite=False)
    # In float16 the loss is scaled up; a step that overflows is skipped and the scale halved. Only when nothing is
    # left to halve are the gradients themselves at fault.
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if not math.isfinite(norm) and (scaler is None or scaler.get_scale() <= 1):
        raise not_finite(fabric, model, batch, step, bad_gradient(model), config, folder)
    optimizer.step()
    if state.average is not None:
        state.average.update_parameters(model)
    return mean_loss


def _sum_over_processes(fabric) -> Callable[[Tensor], Tensor] | None:
    """What makes batch Dice the Dice of all processes' patches, with the right gradient; None for one process."""
    if fabric.world_size == 1:
        return None

    def add_up(sums: Tensor) -> Tensor:
        total = fabric.all_reduce(sums.detach().clone(), reduce_op="sum")
        # The second term is 0. Its gradient is this process's part of the whole, times the number of processes, since
        # gradients are averaged over processes afterwards.
        return total + fabric.world_size * (sums - sums.detach())

    return add_up


def _checkpoint_due(step: int, metrics: dict | None, config: TrainConfig) -> bool:
    """At every validation, or a twentieth of the steps where there are none in between; `save_every` overrides both."""
    if config.save_every is None and config.validate_every is not None:
        return metrics is not None
    return step % (config.save_every or max(1, config.steps // CHECKPOINTS)) == 0


def _origin(dataset: Dataset) -> Dataset:
    """The data set that knows its recipe, beneath those that wrap it, as torch's Subset does."""
    while not hasattr(dataset, "recipe") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def _names(dataset: Dataset) -> list[str]:
    """The names of its cases, of a Subset's too; empty where cases are known by number only."""
    if isinstance(dataset, Subset):
        names = _names(dataset.dataset)
        return [names[index] for index in dataset.indices] if names else []
    return list(getattr(dataset, "names", []))


def _median_spacing(dataset: Dataset) -> tuple[float, ...]:
    spacings = [view_case(dataset, case)["spacing"] for case in spread(len(dataset), SPACING_CASES)]
    return tuple(float(median(sizes)) for sizes in zip(*spacings, strict=True))


def _check_data(name: str, dataset: Dataset, model: nn.Module, config: TrainConfig, targets: Targets | None) -> None:
    if len(dataset) == 0:
        raise ValueError(f"{name} holds no cases: at least one is needed")
    image, label = (view_case(dataset, 0)[what] for what in ("image", "label"))
    if image.ndim != len(config.patch_size) + 1 or image.shape[1:] != label.shape:
        raise ValueError(
            f"the first case of {name} has image {tuple(image.shape)} and label {tuple(label.shape)}; patch_size="
            f"{config.patch_size} needs (C, *spatial) and (*spatial) with {len(config.patch_size)} spatial dimensions"
        )
    needed = {"spatial_dims": len(config.patch_size), "in_channels": len(image)}
    if targets is not None:
        needed["num_classes"] = len(targets.names)
        if targets.exclusive and targets.values != tuple((value,) for value in range(len(targets.names))):
            raise ValueError(f"targets has the values {targets.values}; classes must have (0,), (1,), ... in order")
    built = getattr(model, "config", None)
    for option, value in needed.items():
        if getattr(built, option, value) != value:
            raise ValueError(
                f"the model was built with {option}={getattr(built, option)}, {name} needs {option}={value}"
            )
