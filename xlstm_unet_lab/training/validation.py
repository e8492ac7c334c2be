"""How well the model does on whole held-out cases, between training steps."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from xlstm_unet_lab.data.kept_cases import view_case
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.resample import resampled_size, resized
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.inference.sliding_window import joined, resized_slabs, sliding_slabs
from xlstm_unet_lab.training.config import TrainConfig

Scored = Mapping[str, tuple[int, ...]]  # what is scored: name -> the label values that belong to it


def validate(fabric, model: nn.Module, val: Dataset, scored: Scored, config: TrainConfig) -> dict[str, float]:
    """Dice of everything scored, averaged over the validation cases, and the "mean" of these; devices share the cases.

    Scored is what `lab.predict` with the case's spacing gives (there in full precision): the image is brought to
    `model.training_spacing`, predicted whole, slab by slab, and the probabilities are brought back to the case's own
    grid, where `model.targets` turns them into labels. Something that a case neither holds nor is given counts 1 there.
    """
    cases = _cases(val, config)
    totals = torch.zeros(len(scored))
    for case in cases[fabric.global_rank :: fabric.world_size]:
        item = view_case(val, case)
        with fabric.autocast():
            slabs = _label_slabs(model, item["image"], item["spacing"], config)
            prediction = joined(slabs, rows=item["label"].shape[0], axis=0).numpy()
        truth = item["label"].numpy()
        totals += torch.tensor([dice(np.isin(prediction, v), np.isin(truth, v)) for v in scored.values()])
    means = (fabric.all_reduce(totals, reduce_op="sum") / len(cases)).tolist()
    return dict(zip(scored, means, strict=True)) | {"mean": sum(means) / len(means)}


def _label_slabs(model: nn.Module, image: Tensor, spacing: tuple[float, ...], config: TrainConfig) -> Iterator[Tensor]:
    """The labels of a normalised image (C, *spatial) on its own grid, slab by slab along its first spatial axis."""
    size, targets = tuple(image.shape[1:]), getattr(model, "targets", None)
    working = resampled_size(size, spacing, model.training_spacing)
    if working != size:  # normalised anew, for prediction resamples before it normalises
        image = torch.from_numpy(normalise(resized(image, working).numpy()))
    slabs = sliding_slabs(model, image, patch_size=config.patch_size, batch_size=config.batch_size)
    slabs = map(partial(torch.softmax, dim=0) if targets is None else targets.probabilities, slabs)
    slabs = slabs if working == size else resized_slabs(slabs, working, size)
    return map(partial(torch.argmax, dim=0) if targets is None else targets.labels, slabs)


def foreground(val: Dataset, targets: Targets | None, config: TrainConfig) -> Scored:
    """What to score: the targets' foreground, or without targets every label that occurs; ValueError for none."""
    if targets is not None:
        return targets.foreground
    values = {value for case in _cases(val, config) for value in view_case(val, case)["label"].unique().tolist()} - {0}
    if not values:
        raise ValueError("val holds background only, so that there is nothing to score: pass val=None or other cases")
    return {f"label {value}": (value,) for value in sorted(values)}


def spread(total: int, wanted: int | None) -> list[int]:
    """Indices of `wanted` items, evenly spread over `total`; all of them if there are fewer or `wanted` is None."""
    count = total if wanted is None else min(total, wanted)
    return [index * total // count for index in range(count)]


def _cases(val: Dataset, config: TrainConfig) -> list[int]:
    return spread(len(val), config.validation_cases)
