"""How well the model does on whole held-out cases, between training steps."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.training.config import TrainConfig
from xlstm_unet_lab.training.sliding_window import sliding_window

Scored = Mapping[str, tuple[int, ...]]  # what is scored: name -> the label values that belong to it


def validate(fabric, model: nn.Module, val: Dataset, scored: Scored, config: TrainConfig) -> dict[str, float]:
    """Dice of everything scored, averaged over the validation cases, and the "mean" of these; devices share the cases.

    Cases are predicted whole, on their own grid, and `model.targets` turns logits into labels. Something that a case
    neither holds nor is given counts 1 there.
    """
    cases, targets = _cases(val, config), getattr(model, "targets", None)
    totals = torch.zeros(len(scored))
    for case in cases[fabric.global_rank :: fabric.world_size]:
        item = val[case]
        with fabric.autocast():
            logits = sliding_window(model, item["image"], patch_size=config.patch_size, batch_size=config.batch_size)
        prediction = logits.argmax(0) if targets is None else targets.labels(targets.probabilities(logits))
        prediction, truth = prediction.numpy(), item["label"].numpy()
        totals += torch.tensor([dice(np.isin(prediction, v), np.isin(truth, v)) for v in scored.values()])
    means = (fabric.all_reduce(totals, reduce_op="sum") / len(cases)).tolist()
    return dict(zip(scored, means, strict=True)) | {"mean": sum(means) / len(means)}


def foreground(val: Dataset, targets: Targets | None, config: TrainConfig) -> Scored:
    """What to score: the targets' foreground, or without targets every label that occurs; ValueError for none."""
    if targets is not None:
        return targets.foreground
    values = {value for case in _cases(val, config) for value in val[case]["label"].unique().tolist()} - {0}
    if not values:
        raise ValueError("val holds background only, so that there is nothing to score: pass val=None or other cases")
    return {f"label {value}": (value,) for value in sorted(values)}


def spread(total: int, wanted: int | None) -> list[int]:
    """Indices of `wanted` items, evenly spread over `total`; all of them if there are fewer or `wanted` is None."""
    count = total if wanted is None else min(total, wanted)
    return [index * total // count for index in range(count)]


def _cases(val: Dataset, config: TrainConfig) -> list[int]:
    return spread(len(val), config.validation_cases)
