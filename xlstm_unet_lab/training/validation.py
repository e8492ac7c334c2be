"""How well the model does on whole held-out cases, between training steps."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from xlstm_unet_lab.data.cases import Cases, evenly_spaced
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.trained import DONE
from xlstm_unet_lab.ops.checks import tracked
from xlstm_unet_lab.training.config import TrainConfig

Scored = Mapping[str, tuple[int, ...]]  # what is scored: name -> the label values that belong to it


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
