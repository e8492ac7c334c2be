"""Lesson 07, third part: a distance in millimetres, and cells counted."""

import numpy as np

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

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


HAUSDORFF95 = Exercise(
    number="07.5",
    title="HD95 in millimetres",
    goal="Write `hausdorff95(first, second, spacing)`: the distance that 95% of each set of points keeps to the other.",
    minutes=15,
    difficulty=3,
    reference=hausdorff95,
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
    hints=(
        "`first[:, None] - second[None]` holds the steps from each point to each other, in voxels: (N, M, dimensions).",
        "Multiply each step by its spacing *before* squaring. The nearest point of the other set is a minimum over one "
        "of the two axes: over the one for the way there, over the other for the way back.",
        "`np.percentile(distances.min(axis=1), 95)`, the same with axis 0, and the larger of the two.",
    ),
    mistakes=(
        Mistake(
            "in voxels",
            " * np.array(spacing)",
            "",
            "`spacing` is not used: these are voxels. A step along z may be many times as long as one along x.",
        ),
        Mistake(
            "spacing backwards",
            "np.array(spacing)",
            "np.array(spacing)[::-1]",
            "the spacing is taken in the order (x, y, z). Arrays here are (z, y, x), and so is the spacing.",
        ),
        Mistake(
            "scaled afterwards",
            (" * np.array(spacing)", "max(there, back)"),
            ("", "max(there, back) * np.mean(spacing)"),
            "you measured in voxels and multiplied by the mean spacing. That is right only where all sides of a voxel "
            "are equal: scale each step before the distance is taken.",
        ),
        Mistake(
            "one way only",
            "max(there, back)",
            "there",
            "you look from the first set only. A part that the first set lacks is then never noticed: look from the "
            "second set too, and take the larger.",
        ),
        Mistake(
            "the mean of both ways",
            "max(there, back)",
            "(there + back) / 2",
            "you average the two directions. The Hausdorff distance is the worse of them: the larger.",
        ),
        Mistake(
            "pooled",
            "max(there, back)",
            "np.percentile(np.concatenate([distances.min(axis=1), distances.min(axis=0)]), 95)",
            "you pooled both directions before taking the percentile. Some programs do; here each direction has its "
            "own percentile, and the larger counts. A large set cannot then outvote a small one.",
        ),
        Mistake(
            "the largest",
            "max(there, back)",
            "max(distances.min(axis=1).max(), distances.min(axis=0).max())",
            "this is the plain Hausdorff distance: one stray voxel decides it. Take the 95th percentile in place of "
            "the maximum.",
        ),
        Mistake(
            "squared",
            "np.sqrt((steps**2).sum(axis=2))",
            "(steps**2).sum(axis=2)",
            "the square root is missing: these are squared millimetres.",
        ),
        Mistake(
            "along the axes",
            "np.sqrt((steps**2).sum(axis=2))",
            "np.abs(steps).sum(axis=2)",
            "you add the steps along the axes, which is the way along the grid. The straight distance is the root of "
            "the sum of squares.",
        ),
    ),
    not_tested="empty sets; surfaces whose points stand for different areas; sets so large that N x M does not fit.",
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

CELL_F1 = Exercise(
    number="07.6",
    title="cells counted",
    goal="Write `cell_f1(prediction, truth)`: the F1 score of objects that overlap a partner by an IoU above 1/2.",
    minutes=20,
    difficulty=4,
    reference=cell_f1,
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
    hints=(
        "The numbers of the cells that are there are `np.unique(truth[truth > 0])`; 0 is background and no cell.",
        "Compare every cell with every predicted one: overlap divided by union. Above one half nothing can match "
        "twice, so no bookkeeping of partners is needed.",
        "F1 = 2 matched / (cells predicted + true cells). Think of the image where both numbers are 0.",
    ),
    mistakes=(
        Mistake(
            "at one half",
            "> 0.5",
            ">= 0.5",
            "you match at an IoU of exactly one half. Two halves of one cell then both match it, and a cell would be "
            "counted twice: above one half, or pair them off one to one.",
        ),
        Mistake(
            "any overlap",
            "> 0.5",
            "> 0",
            "any overlap counts as a match. A blob over everything would find every cell: ask for an IoU above 1/2.",
        ),
        Mistake(
            "the background is a cell",
            ("prediction[prediction > 0]", "truth[truth > 0]"),
            ("prediction", "truth"),
            "background, number 0, is matched as if it were a cell. It is always found, and so it flatters.",
        ),
        Mistake(
            "divided by the smaller",
            "overlap / union",
            "overlap / min(np.sum(truth == cell), np.sum(prediction == other))",
            "you divide the overlap by the smaller of the two. A speck inside a cell then counts as found: divide by "
            "the union.",
        ),
        Mistake(
            "Dice above one half",
            "overlap / union",
            "2 * overlap / (union + overlap)",
            "you compare the Dice of each pair with one half. That is milder than IoU: Dice 1/2 is IoU 1/3.",
        ),
        Mistake(
            "by number",
            "in found:",
            "in found[found == cell]:",
            "you compare cell 1 with cell 1. The numbers mean nothing; a prediction counts its cells in an order of "
            "its own. Compare every cell with every other.",
        ),
        Mistake(
            "precision",
            "2 * matched / (len(found) + len(wanted))",
            "matched / max(1, len(found))",
            "this is the precision, the share of predicted cells that are right. Cells that were missed do not lower "
            "it.",
        ),
        Mistake(
            "recall",
            "2 * matched / (len(found) + len(wanted))",
            "matched / max(1, len(wanted))",
            "this is the recall, the share of true cells that were found. Cells that were made up do not lower it.",
        ),
        Mistake(
            "the critical success index",
            "2 * matched / (len(found) + len(wanted))",
            "matched / (len(found) + len(wanted) - matched)",
            "you divide the matches by matches plus both kinds of error. F1 counts a match twice above the line and "
            "below.",
        ),
        Mistake(
            "nothing there scores 0",
            "return 1.0",
            "return 0.0",
            "an empty image predicted as empty is right: by convention 1, not 0.",
        ),
        Mistake(
            "the largest number",
            "2 * matched / (len(found) + len(wanted))",
            "2 * matched / (prediction.max() + truth.max())",
            "you take the largest number for the count. Numbers may be missing: count those that occur.",
        ),
        Mistake(
            "pixels",
            "2 * matched / (len(found) + len(wanted))",
            "2 * np.sum((prediction > 0) & (truth > 0)) / (np.sum(prediction > 0) + np.sum(truth > 0))",
            "this counts pixels. Two cells melted into one lose hardly a pixel, and one cell of two.",
        ),
    ),
    not_tested="cells cut by the image's edge, which the package leaves out; thresholds of one half and below, where "
    "partners have to be paired off.",
)

EXERCISES = (HAUSDORFF95, CELL_F1)
