"""Lesson 07, third part: a distance in millimetres, and cells counted."""

import numpy as np

from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ---------------------------------------------------------------------------------- 07.5, a distance in millimetres


def hausdorff95(first, second, spacing):
    steps = (first[:, None, :] - second[None, :, :]) * np.array(spacing)
    distances = np.sqrt((steps**2).sum(axis=2))
    there = np.percentile(distances.min(axis=1), 95)
    back = np.percentile(distances.min(axis=0), 95)
    return max(there, back)


def _points(count: int, dims: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 20, (count, dims))


def _with_an_outlier() -> np.ndarray:
    """The points of a straight line, and one stray point: less than 5% of them."""
    line = np.stack([np.full(40, 3), np.arange(40)], 1)
    return np.concatenate([line, [[30, 5]]])


HAUSDORFF95 = exercise(
    "07.5",
    hausdorff95,
    cases=(
        Case("one point each, one step apart in z", (np.array([[1, 0, 0]]), np.array([[0, 0, 0]]), (8.0, 3.0, 2.0))),
        Case(
            "the same with a step in every direction", (np.array([[1, 1, 1]]), np.array([[0, 0, 0]]), (8.0, 3.0, 2.0))
        ),
        Case("12 and 30 points in a plane", (_points(12, 2, 1), _points(30, 2, 2), (2.0, 0.5))),
        Case("25 and 9 points in space", (_points(25, 3, 3), _points(9, 3, 4), (5.0, 1.0, 0.7))),
        Case(
            "a line, and the same line with one stray point",
            (np.stack([np.full(40, 3), np.arange(40)], 1), _with_an_outlier(), (1.0, 1.0)),
        ),
    ),
    mistakes={
        "in voxels": (" * np.array(spacing)", ""),
        "spacing backwards": ("np.array(spacing)", "np.array(spacing)[::-1]"),
        "scaled afterwards": (
            (" * np.array(spacing)", ""),
            ("max(there, back)", "max(there, back) * np.mean(spacing)"),
        ),
        "one way only": ("max(there, back)", "there"),
        "the mean of both ways": ("max(there, back)", "(there + back) / 2"),
        "pooled": (
            "max(there, back)",
            "np.percentile(np.concatenate([distances.min(axis=1), distances.min(axis=0)]), 95)",
        ),
        "the largest": ("max(there, back)", "max(distances.min(axis=1).max(), distances.min(axis=0).max())"),
        "squared": ("np.sqrt((steps**2).sum(axis=2))", "(steps**2).sum(axis=2)"),
        "along the axes": ("np.sqrt((steps**2).sum(axis=2))", "np.abs(steps).sum(axis=2)"),
    },
)

# ------------------------------------------------------------------------------------------- 07.6, cells counted


def cell_f1(prediction, truth):
    found, wanted = np.unique(prediction[prediction > 0]), np.unique(truth[truth > 0])
    if len(found) + len(wanted) == 0:
        return 1.0
    matched = 0
    for cell in wanted:
        for other in found:
            union = np.sum((truth == cell) | (prediction == other))
            overlap = np.sum((truth == cell) & (prediction == other))
            matched += int(overlap / union > 0.5)
    return 2 * matched / (len(found) + len(wanted))


def _cells(*boxes: tuple[int, int, int, int, int], size: tuple[int, int] = (9, 12)) -> np.ndarray:
    """A label image of rectangles (number, top, bottom, left, right)."""
    image = np.zeros(size, np.int32)
    for number, top, bottom, left, right in boxes:
        image[top:bottom, left:right] = number
    return image


_THREE = _cells((1, 1, 4, 1, 5), (2, 1, 4, 6, 10), (3, 5, 8, 2, 9))

CELL_F1 = exercise(
    "07.6",
    cell_f1,
    cases=(
        Case(
            "the same cells under other numbers", (_cells((7, 1, 4, 1, 5), (3, 1, 4, 6, 10), (9, 5, 8, 2, 9)), _THREE)
        ),
        Case("two cells melted into one", (_cells((1, 1, 4, 1, 10), (2, 5, 8, 2, 9)), _THREE)),
        Case("a cell cut exactly in half", (_cells((1, 1, 4, 1, 3), (4, 1, 4, 3, 5), (2, 1, 4, 6, 10)), _THREE)),
        Case(
            "one cell shifted a little, one too small, one too many",
            (_cells((1, 2, 5, 1, 5), (2, 1, 4, 7, 10), (3, 6, 7, 3, 8), (5, 0, 1, 11, 12)), _THREE),
        ),
        Case("a cell of which hardly anything is met", (_cells((1, 1, 4, 4, 8), (2, 5, 8, 2, 9)), _THREE)),
        Case("cells are there and none is predicted", (_THREE * 0, _THREE)),
        Case("no cell is there and none is predicted", (_THREE * 0, _THREE * 0)),
    ),
    mistakes={
        "at one half": ("> 0.5", ">= 0.5"),
        "any overlap": ("> 0.5", "> 0"),
        "the background is a cell": (("prediction[prediction > 0]", "prediction"), ("truth[truth > 0]", "truth")),
        "divided by the smaller": (
            "overlap / union",
            "overlap / min(np.sum(truth == cell), np.sum(prediction == other))",
        ),
        "Dice above one half": ("overlap / union", "2 * overlap / (union + overlap)"),
        "by number": ("in found:", "in found[found == cell]:"),
        "precision": ("2 * matched / (len(found) + len(wanted))", "matched / max(1, len(found))"),
        "recall": ("2 * matched / (len(found) + len(wanted))", "matched / max(1, len(wanted))"),
        "the critical success index": (
            "2 * matched / (len(found) + len(wanted))",
            "matched / (len(found) + len(wanted) - matched)",
        ),
        "nothing there scores 0": ("return 1.0", "return 0.0"),
        "the largest number": (
            "2 * matched / (len(found) + len(wanted))",
            "2 * matched / (prediction.max() + truth.max())",
        ),
        "pixels": (
            "2 * matched / (len(found) + len(wanted))",
            "2 * np.sum((prediction > 0) & (truth > 0)) / (np.sum(prediction > 0) + np.sum(truth > 0))",
        ),
    },
)

EXERCISES = (HAUSDORFF95, CELL_F1)
