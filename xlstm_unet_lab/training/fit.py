"""The training loop: it changes the model in place, yields a record a step, validates in between and prints nothing."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xlstm_unet_lab.data.augment import Augmentation, PatchDataset
from xlstm_unet_lab.data.cases import Cases, as_cases, check_cases, evenly_spaced, median_spacing
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.registry import own_facts
from xlstm_unet_lab.data.resample import ResampledDataset
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.sliding_window import modes_kept
from xlstm_unet_lab.inference.trained import DONE, known_of
from xlstm_unet_lab.ops.checks import of_kind, tracked
from xlstm_unet_lab.ops.devices import with_values
from xlstm_unet_lab.training import machine
from xlstm_unet_lab.training.config import TrainConfig, learning_rate_at
from xlstm_unet_lab.training.losses import deep_supervision_loss
from xlstm_unet_lab.training.not_finite import bad_gradient, bad_in_forward, not_finite
from xlstm_unet_lab.training.run_directory import RunDirectory, recorded_settings
from xlstm_unet_lab.training.state import Progress, TrainingState

Scored = Mapping[str, tuple[int, ...]]  # what is scored: name -> the label values that belong to it


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
    train: Cases | Dataset | Sequence[dict],
    val: Cases | Dataset | Sequence[dict] | None,
    config: TrainConfig,
    run_directory: str | Path | None = None,
    track: Track = iter,
) -> Iterator[Record]:
    """Train the model in place and yield a `Record` after every step.

    `train` and `val` are data sets (`data.cases.Cases`) or other sequences of dicts of image (C, *spatial), normalised,
    label (*spatial) and spacing; patches are cut from `train` at random, cases of `val` are predicted whole, as
    `lab.predict` does; `val=None` validates nothing. The model ends on the device it was trained on, in the mode (train
    or eval) it came in, also when the caller stops early; `lab.predict` knows what it was trained on from then on, and
    `Predictor.known(model, patch_size)` says it. Sets PyTorch's random seed.
    With a `run_directory` settings, log and checkpoints go there (see `training.run_directory`), and a run that was
    stopped there, however it was, goes on from its last checkpoint to the same end; a finished one yields nothing more.
    One process at a time may train there: another one gets a BlockingIOError at its first step.
    `track` wraps the cases of a validation, and the windows of each, to draw progress bars.
    Raises ValueError at once for settings that do not fit the data, the machine or the run in that folder, OSError when
    the folder cannot be written, FloatingPointError from the step in which a loss or gradient is not finite, before
    that step changes the weights.
    """
    with_values("model", model)
    of_kind("config", config, TrainConfig)
    train, val = as_cases(train), None if val is None else as_cases(val)
    targets = config.targets or train.facts.targets
    if config.spacing is not None and len(train):
        train = ResampledDataset(train, config.spacing)
    for name, cases in {"train": train, "val": val}.items():
        if cases is not None:
            check_cases(name, cases, config.patch_size, getattr(model, "config", None), targets)
    scored = {} if val is None else foreground(val, targets, config)
    config = machine.settled(config, model, train, recorded_settings(run_directory))
    fabric, run = machine.make_fabric(config), None
    if run_directory is not None:
        columns = [f"dice {name}" for name in (*scored, "mean")] if val is not None else []
        run = RunDirectory(run_directory, config, model, described(train), columns)
    return _train(fabric, model, train, val, scored, config, run, track)


def _train(
    fabric, model: nn.Module, train: Cases, val: Cases | None, scored: Scored, config: TrainConfig, run, track: Track
) -> Iterator[Record]:
    """`run`: a RunDirectory, or None."""
    started, folder = perf_counter(), None if run is None else run.path
    with modes_kept(model), ExitStack() as at_the_end:  # also when the caller stops early
        if run is not None:
            at_the_end.callback(run.release)
        with machine.quiet_lightning():
            fabric.launch()
            torch.manual_seed(config.seed + fabric.global_rank)  # dropout must differ between devices
            spacing = config.spacing or median_spacing(train)
            known = known_of(train.facts, config.targets)
            predictor = Predictor(model, config.patch_size, spacing, **known).remembered()
            state = TrainingState.create(fabric, model.train(), config)
            at_the_end.callback(state.release)
        predictor = replace(predictor, network=state.result)
        progress = Progress() if run is None else run.start(state, machine.environment(fabric))
        batches = _batches(fabric, train, config, progress.step)
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(fabric.device)
        progress.seconds += perf_counter() - started
        for step in range(progress.step + 1, config.steps + 1):
            started = perf_counter()  # what the caller did between records is not training
            rate = learning_rate_at(step, config)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            loss = _train_step(state, next(batches), predictor.targets, step, config, folder)
            step_seconds = perf_counter() - started
            due = step == config.steps or (config.validate_every is not None and step % config.validate_every == 0)
            metrics = validate(fabric, predictor, val, scored, config, track) if due and val is not None else None
            progress.step, progress.seconds = step, progress.seconds + perf_counter() - started
            speed, memory = config.batch_size / step_seconds, machine.peak_memory(fabric.device)
            record = Record(step, loss, rate, progress.seconds, speed, memory, metrics)
            if run is not None:
                run.keep(record, state, progress, predictor)
            yield record


def described(train: Cases) -> dict:
    """What a run directory notes of the data it is trained on: other data are another run."""
    facts, recipe = train.facts, train.facts.recipe
    own = recipe and own_facts(recipe)  # where the run predicts, a user's own data may be unknown
    own = own and {what: fact for what, fact in own.items() if what not in ("dataset_id", "version")}
    data = {"recipe": recipe and recipe.name, "own": own, "fold": facts.fold, "slice_axis": facts.slice_axis}
    return data | {"cases": len(train), "names": zlib.crc32("\n".join(train.names).encode())}


def _batches(fabric, train: Cases, config: TrainConfig, done: int) -> Iterator[dict]:
    """Batches of the steps after `done`. Patch k depends on the seed and k alone, and step s has the same patches
    however many processes share them and whenever it runs."""
    augment, flip_axes = config.augment, train.facts.flip_axes
    if augment is True and flip_axes is not None:  # where left is not right, a quarter turn is as wrong as a mirror
        augment = Augmentation(flip_axes=flip_axes, rotate=False)
    total = config.steps * config.batch_size
    drawn: dict[str, Any] = {"augment": augment, "foreground_probability": config.foreground_probability}
    patches = PatchDataset(train, config.patch_size, length=total, seed=config.seed, **drawn)
    starts = range(done * config.batch_size, total, config.batch_size)
    # Ranges stand for the lists that PyTorch names, and stay small in a long run.
    batches: Any = (range(s + fabric.global_rank, s + config.batch_size, fabric.world_size) for s in starts)
    pinned = fabric.device.type == "cuda"
    own = torch.Generator()  # a loader draws a number when it starts; dropout's must not depend on that
    workers = config.workers or 0
    loader = DataLoader(patches, batch_sampler=batches, num_workers=workers, pin_memory=pinned, generator=own)
    return iter(fabric.setup_dataloaders(loader, use_distributed_sampler=False))


def _train_step(
    state: TrainingState, batch: dict, targets: Targets | None, step: int, config: TrainConfig, folder: Path | None
) -> float:
    """One optimiser step; returns the loss, averaged over the devices."""
    fabric, model, optimizer = state.fabric, state.model, state.optimizer
    image = batch["image"].contiguous(memory_format=machine.memory_format(config))
    optimizer.zero_grad(set_to_none=True)
    outputs = state.network(image)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    loss = deep_supervision_loss(outputs, batch["label"], targets, machine.sum_over_processes(fabric))
    mean_loss = fabric.all_reduce(loss.detach().clone(), reduce_op="mean").item()
    if not math.isfinite(mean_loss):
        raise not_finite(fabric, model, batch, step, bad_in_forward(fabric, model, image, outputs), config, folder)
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


def validate(
    fabric, predictor: Predictor, val: Cases, scored: Scored, config: TrainConfig, track: Track
) -> dict[str, float]:
    """Dice of everything scored, averaged over the validation cases, and the "mean" of these; devices share the cases.

    Scored are the labels of the predictor, given each case's spacing, in the precision of training. Something that a
    case neither holds nor is given counts 1 there.
    """
    predict = replace(predictor, normalisation=DONE)
    cases = evenly_spaced(len(val), config.validation_cases)
    totals = torch.zeros(len(scored))
    for case in tracked(track, cases[fabric.global_rank :: fabric.world_size]):
        item = val.view(case)
        with fabric.autocast():
            prediction = predict(item["image"].numpy(), item["spacing"], batch_size=config.batch_size, track=track)
        truth = item["label"].numpy()
        totals += torch.tensor([dice(np.isin(prediction, v), np.isin(truth, v)) for v in scored.values()])
    means = (fabric.all_reduce(totals, reduce_op="sum") / len(cases)).tolist()
    return dict(zip(scored, means, strict=True)) | {"mean": sum(means) / len(means)}


def foreground(val: Cases, targets: Targets | None, config: TrainConfig) -> Scored:
    """What to score: the targets' foreground, or without targets every label that occurs; ValueError for none."""
    if targets is not None:
        return targets.foreground
    cases = evenly_spaced(len(val), config.validation_cases)
    values = {value for case in cases for value in val.view(case)["label"].unique().tolist()} - {0}
    if not values:
        raise ValueError("val holds background only, so that there is nothing to score: pass val=None or other cases")
    return {f"label {value}": (value,) for value in sorted(values)}
