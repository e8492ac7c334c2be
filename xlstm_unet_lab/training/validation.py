"""How well the model does on whole held-out cases, between training steps."""

import torch
from torch import nn
from torch.utils.data import Dataset

from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.training.config import TrainConfig
from xlstm_unet_lab.training.sliding_window import sliding_window


def validate(fabric, model: nn.Module, val: Dataset, labels: dict[str, int], config: TrainConfig) -> dict[str, float]:
    """Dice of each label, averaged over the validation cases, and their "mean" over labels; devices share the cases.

    Cases are predicted whole, on their own grid. A label that a case neither holds nor is given counts 1 there.
    """
    cases = _cases(val, config)
    totals = torch.zeros(len(labels))
    for case in cases[fabric.global_rank :: fabric.world_size]:
        item = val[case]
        with fabric.autocast():
            logits = sliding_window(model, item["image"], patch_size=config.patch_size, batch_size=config.batch_size)
        prediction, truth = logits.argmax(0).numpy(), item["label"].numpy()
        totals += torch.tensor([dice(prediction == value, truth == value) for value in labels.values()])
    means = (fabric.all_reduce(totals, reduce_op="sum") / len(cases)).tolist()
    return dict(zip(labels, means, strict=True)) | {"mean": sum(means) / len(means)}


def foreground_labels(val: Dataset, config: TrainConfig) -> dict[str, int]:
    """Names and values of the labels to score: the recipe's, or those that occur where there is no recipe.

    Raises ValueError when there is none.
    """
    recipe = getattr(val, "recipe", None)
    if recipe is not None:
        return {name: value for name, value in recipe.labels.items() if value != 0}
    values = {value for case in _cases(val, config) for value in val[case]["label"].unique().tolist()} - {0}
    if not values:
        raise ValueError("val holds background only, so that there is nothing to score: pass val=None or other cases")
    return {f"label {value}": value for value in sorted(values)}


def spread(total: int, wanted: int | None) -> list[int]:
    """Indices of `wanted` items, evenly spread over `total`; all of them if there are fewer or `wanted` is None."""
    count = total if wanted is None else min(total, wanted)
    return [index * total // count for index in range(count)]


def _cases(val: Dataset, config: TrainConfig) -> list[int]:
    return spread(len(val), config.validation_cases)
