"""Lesson 07, second part: a loss at every resolution."""

import torch
from torch.nn import functional as F

from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case


def deep_loss(outputs, label):
    weights = [0.5**level for level in range(len(outputs))]
    total = 0
    for weight, logits in zip(weights, outputs, strict=True):
        factor = label.shape[1] // logits.shape[2]
        middle = factor // 2
        small = label[:, middle::factor, middle::factor]
        total = total + weight * F.cross_entropy(logits, small)
    return total / sum(weights)


def _outputs(
    levels: int, size: tuple[int, int], seed: int, classes: int = 3
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random logits of two images at as many resolutions, the finest first, and a label of the finest."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [[length // 2**level for length in size] for level in range(levels)]
    outputs = [torch.randn(2, classes, *small, generator=generator, dtype=torch.float64) for small in sizes]
    return outputs, torch.randint(classes, (2, *size), generator=generator)


def _thin() -> tuple[list[torch.Tensor], torch.Tensor]:
    """A line one pixel wide, which falls between the pixels that a quarter of the resolution keeps."""
    outputs, label = _outputs(3, (8, 8), 5, classes=2)
    label.zero_()
    label[:, :, 3] = 1
    return outputs, label


DEEP_LOSS = exercise(
    "07.4",
    deep_loss,
    cases=(
        Case("one resolution only", _outputs(1, (4, 6), 1)),
        Case("two resolutions", _outputs(2, (4, 6), 2)),
        Case("three resolutions of 12 x 8 pixels", _outputs(3, (12, 8), 3)),
        Case("four resolutions, two classes", _outputs(4, (16, 24), 4, classes=2)),
        Case("a line one pixel wide", _thin()),
    ),
    mistakes={
        "weights that do not add up to 1": (" / sum(weights)", ""),
        "divided by how many there are": ("sum(weights)", "len(weights)"),
        "all alike": ("0.5**level", "1.0"),
        "the coarsest weighs most": ("range(len(outputs))", "reversed(range(len(outputs)))"),
        "a quarter each time": ("0.5**level", "0.25**level"),
        "one half, one third, one quarter": ("0.5**level", "1 / (level + 1)"),
        "the finest only": ("0.5**level", "float(level == 0)"),
        "the corner": ("factor // 2", "0"),
        "averaged labels": (
            "label[:, middle::factor, middle::factor]",
            "F.avg_pool2d(label[:, None].double(), factor)[:, 0].round().long()",
        ),
        "the highest label": (
            "label[:, middle::factor, middle::factor]",
            "F.max_pool2d(label[:, None].double(), factor)[:, 0].long()",
        ),
        "enlarged logits": ("(logits, small)", '(F.interpolate(logits, label.shape[1:], mode="bilinear"), label)'),
    },
)

EXERCISES = (DEEP_LOSS,)
