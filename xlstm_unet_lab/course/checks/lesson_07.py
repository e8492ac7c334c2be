"""Lesson 07, first part: two losses and their gradients."""

import torch
from torch.nn import functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensors
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ----------------------------------------------------------------------------- 07.1, the gradient of cross-entropy


def cross_entropy_gradient(logits, label):
    probabilities = torch.softmax(logits, dim=1)
    truth = F.one_hot(label, logits.shape[1])
    return (probabilities - truth) / len(label)


CROSS_ENTROPY_GRADIENT = exercise(
    "07.1",
    cross_entropy_gradient,
    cases=(
        Case(
            "one pixel that knows nothing: two classes, both logits 0", (torch.zeros(1, 2).double(), torch.tensor([1]))
        ),
        Case("five pixels, three classes", (*random_tensors((5, 3)), torch.tensor([0, 2, 1, 1, 0]))),
        Case("three pixels, five classes", (*random_tensors((3, 5), seed=1), torch.tensor([4, 0, 2]))),
        Case(
            "four pixels that are very sure, two of them wrongly",
            (torch.tensor([[800.0, 0], [0, 800], [800, 0], [0, 800]]).double(), torch.tensor([0, 1, 1, 0])),
        ),
    ),
    mistakes={
        "the sum over pixels": (" / len(label)", ""),
        "divided by all entries": ("len(label)", "logits.numel()"),
        "uphill": ("probabilities - truth", "truth - probabilities"),
        "the wrong axis": ("dim=1", "dim=0"),
        "only the true class": ("(probabilities - truth)", "(probabilities - 1) * truth"),
        "without the truth": ("(probabilities - truth)", "probabilities"),
        "the slope twice": ("(probabilities - truth)", "(probabilities - truth) * probabilities * (1 - probabilities)"),
        "a sigmoid for each class": ("torch.softmax(logits, dim=1)", "torch.sigmoid(logits)"),
        "softmax that overflows": (
            "torch.softmax(logits, dim=1)",
            "logits.exp() / logits.exp().sum(dim=1, keepdim=True)",
        ),
    },
)

# ------------------------------------------------------------------------------------------ 07.2, the soft Dice loss


def soft_dice_loss(probabilities, truth):
    axes, smoothing = (0, 2), 1e-5  # sums run over patches and pixels
    overlap = (probabilities * truth).sum(axes)
    sizes = (probabilities + truth).sum(axes)
    return 1 - ((2 * overlap + smoothing) / (sizes + smoothing)).mean()


def _patches(batch: int, classes: int, pixels: int, seed: int, absent: tuple = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Random probabilities and a random truth, where (patch, class) pairs in `absent` are taken out of the truth."""
    shape = (batch, classes, pixels)
    drawn, signs = random_tensors(shape, shape, seed=seed)
    probabilities, truth = torch.sigmoid(drawn), (signs > 0).double()
    for patch, kind in absent:
        truth[patch, kind] = 0
    return probabilities, truth


_HALF_EMPTY = _patches(3, 2, 8, 3, absent=((0, 1), (2, 1)))
_NOWHERE = _patches(2, 2, 8, 4, absent=((0, 0), (1, 0)))

SOFT_DICE_LOSS = exercise(
    "07.2",
    soft_dice_loss,
    cases=(
        Case("one patch, one class", _patches(1, 1, 8, 1)),
        Case("three patches, two classes", _patches(3, 2, 8, 2)),
        Case("a class that two of three patches do not have", _HALF_EMPTY),
        Case("a class that is nowhere, and is predicted a little", _NOWHERE),
        Case("a class that is nowhere and is predicted nowhere: it costs nothing", (_NOWHERE[1] * 1.0, _NOWHERE[1])),
    ),
    mistakes={
        "each patch by itself": ("(0, 2)", "2"),
        "all classes in one": ("(0, 2)", "(0, 1, 2)"),
        "no smoothing": ("1e-5", "0"),
        "smoothing below only": ("2 * overlap + smoothing", "2 * overlap"),
        "squares": ("(probabilities + truth)", "(probabilities**2 + truth)"),
        "a half too little": ("2 * overlap", "overlap"),
        "the score": ("1 - ", ""),
        "thresholded": ("truth):\n", "truth):\n    probabilities = (probabilities > 0.5).double()\n"),
    },
)

# ------------------------------------------------------------------------------------------ 07.3, its gradient


def dice_gradient(probabilities, truth):
    sizes = probabilities.sum() + truth.sum()
    dice = 2 * (probabilities * truth).sum() / sizes
    return (dice - 2 * truth) / sizes


DICE_GRADIENT = exercise(
    "07.3",
    dice_gradient,
    cases=(
        Case("two pixels, one of them true", (torch.tensor([0.5, 0.5]).double(), torch.tensor([1.0, 0.0]).double())),
        Case("eight pixels in a row", tuple(x.flatten() for x in _patches(1, 1, 8, 7))),
        Case("an image of 4 x 5 pixels", tuple(x.reshape(4, 5) for x in _patches(1, 1, 20, 8))),
        Case(
            "a class that is not in this image", (torch.sigmoid(*random_tensors((6,), seed=9)), torch.zeros(6).double())
        ),
    ),
    mistakes={
        "the sizes held fixed": ("dice - 2 * truth", "-2 * truth"),
        "uphill": ("dice - 2 * truth", "2 * truth - dice"),
        "not divided": ("(dice - 2 * truth) / sizes", "dice - 2 * truth"),
        "a 2 lost": ("dice - 2 * truth", "dice - truth"),
        "the overlap's 2 twice": ("(dice - 2", "(2 * dice - 2"),
        "the loss for Dice": ("dice = 2", "dice = 1 - 2"),
    },
)

EXERCISES = (CROSS_ENTROPY_GRADIENT, SOFT_DICE_LOSS, DICE_GRADIENT)
