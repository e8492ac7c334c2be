"""Lesson 07, second part: a loss at every resolution."""

import torch
from torch.nn import functional as F

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake


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


DEEP_LOSS = Exercise(
    number="07.4",
    title="a loss at every resolution",
    goal="Write `deep_loss(outputs, label)`: cross-entropy at every resolution, each with half the weight of the one "
    "before, the weights adding up to 1.",
    minutes=12,
    difficulty=3,
    reference=deep_loss,
    cases=(
        Case("one resolution only", _outputs(1, (4, 6), 1)),
        Case("two resolutions", _outputs(2, (4, 6), 2)),
        Case("three resolutions of 12 x 8 pixels", _outputs(3, (12, 8), 3)),
        Case("four resolutions, two classes", _outputs(4, (16, 24), 4, classes=2)),
        Case("a line one pixel wide", _thin()),
    ),
    hints=(
        "Two things have to be found for each output: its weight, and a label of its size. The first follows from its "
        "place in the list, the second from `label.shape[1] // logits.shape[2]`.",
        "A label is made smaller by leaving pixels out, `label[:, start::factor, start::factor]`. Of each block keep "
        "number `factor // 2` along each axis.",
        "Add up `0.5**level * F.cross_entropy(logits, small)` over the outputs and divide by the sum of the weights.",
    ),
    mistakes=(
        Mistake(
            "weights that do not add up to 1",
            " / sum(weights)",
            "",
            "your weights are 1, 1/2, 1/4 and so on, and do not add up to 1. A network with more resolutions would "
            "have a larger loss, and with it a larger learning rate: divide by their sum.",
        ),
        Mistake(
            "divided by how many there are",
            "sum(weights)",
            "len(weights)",
            "you divide by how many outputs there are. The weights have to add up to 1: divide by the sum of the "
            "weights.",
        ),
        Mistake(
            "all alike",
            "0.5**level",
            "1.0",
            "all resolutions weigh the same here. The finest is the one that is used in the end: each coarser one has "
            "half the weight of the one before.",
        ),
        Mistake(
            "the coarsest weighs most",
            "range(len(outputs))",
            "reversed(range(len(outputs)))",
            "the order of your weights is turned round: the list begins with the finest, and that weighs most.",
        ),
        Mistake(
            "a quarter each time",
            "0.5**level",
            "0.25**level",
            "your weights fall to a quarter each time, as the number of pixels does. They are to halve; the mean over "
            "pixels has taken care of the pixels already.",
        ),
        Mistake(
            "one half, one third, one quarter",
            "0.5**level",
            "1 / (level + 1)",
            "your weights are 1, 1/2, 1/3, 1/4. Each has to be half of the one before: 1, 1/2, 1/4, 1/8.",
        ),
        Mistake(
            "the finest only",
            "0.5**level",
            "float(level == 0)",
            "only the finest resolution counts here. That is training without deep supervision.",
        ),
        Mistake(
            "the corner",
            "factor // 2",
            "0",
            "you keep the first pixel of every block. That is a possible choice (the encoder's features are centred "
            "there); this exercise and nnU-Net keep number `factor // 2`.",
        ),
        Mistake(
            "averaged labels",
            "label[:, middle::factor, middle::factor]",
            "F.avg_pool2d(label[:, None].double(), factor)[:, 0].round().long()",
            "you average labels and round. Between class 0 and class 2 that makes class 1, which was not there. Leave "
            "pixels out.",
        ),
        Mistake(
            "the highest label",
            "label[:, middle::factor, middle::factor]",
            "F.max_pool2d(label[:, None].double(), factor)[:, 0].long()",
            "you keep the highest label of every block: whatever has a high number grows. Keep one pixel by its place, "
            "number `factor // 2` along each axis.",
        ),
        Mistake(
            "enlarged logits",
            "(logits, small)",
            '(F.interpolate(logits, label.shape[1:], mode="bilinear"), label)',
            "you enlarge the logits to the size of the label. Then a coarse stage is blamed for detail that it cannot "
            "draw: make the label smaller.",
        ),
    ),
    not_tested="sizes that two does not divide; volumes; the Dice loss, which goes the same way.",
)

EXERCISES = (DEEP_LOSS,)
