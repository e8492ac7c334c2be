"""Lesson 00: two masks compared, windows that overlap, and two methods over the same cases."""

import numpy as np

from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ---------------------------------------------------------------------------------------------- 00.1, the Dice score


def dice(prediction, truth):
    total = prediction.sum() + truth.sum()
    if total == 0:
        return 1.0
    return 2 * (prediction & truth).sum() / total


_TEST = "    if total == 0:\n        return 1.0\n"
_SCORE = "2 * (prediction & truth).sum() / total"


def _mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def _two_boxes_in_3d() -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.zeros((3, 5, 6), dtype=bool), np.zeros((3, 5, 6), dtype=bool)
    prediction[:2, 1:4, 1:6] = True
    truth[1:, 1:5, 2:5] = True
    return prediction, truth


_EMPTY = np.zeros((3, 4), dtype=bool)

DICE = exercise(
    "00.1",
    dice,
    cases=(
        Case("two masks that overlap in part", (_mask("##..", "##..", "...."), _mask(".##.", ".##.", ".##."))),
        Case("two equal masks", (_mask("##..", ".#.."), _mask("##..", ".#.."))),
        Case("two masks that do not touch", (_mask("#...", "#..."), _mask("...#", "...#"))),
        Case("a volume, two boxes that overlap in part", _two_boxes_in_3d()),
        Case("a row of pixels in one dimension", (np.array([True, True, False]), np.array([False, True, True]))),
        Case("an empty prediction of an object", (_EMPTY, _mask("....", ".##.", "...."))),
        Case("both masks empty", (_EMPTY, _EMPTY)),
    ),
    mistakes={
        "intersection over union": (_SCORE, "(prediction & truth).sum() / (prediction | truth).sum()"),
        "the factor 2 is missing": ("2 * (prediction", "(prediction"),
        "two empty masks give 0": ("return 1.0", "return 0.0"),
        "two empty masks give NaN": (_TEST, ""),
        "two empty masks stop with an error": (
            (_TEST, ""),
            (_SCORE, "2 * int((prediction & truth).sum()) / int(total)"),
        ),
        "share of equal pixels": (_SCORE, "np.mean(prediction == truth)"),
        "adds the masks, then counts": ("prediction.sum() + truth.sum()", "(prediction + truth).sum()"),
        "share of the truth that was found": (_SCORE, "(prediction & truth).sum() / truth.sum()"),
        "smoothed by 1": (_SCORE, "(2 * (prediction & truth).sum() + 1) / (total + 1)"),
    },
)

# --------------------------------------------------------------------------------------------- 00.2, a map of errors


def error_map(prediction, truth):
    codes = np.zeros(truth.shape, dtype=np.uint8)
    codes[(truth != 0) & (prediction == 0)] = 1
    codes[(truth == 0) & (prediction != 0)] = 2
    codes[(truth != 0) & (prediction != 0) & (truth != prediction)] = 3
    return codes


_TRUTH = np.array([[0, 1, 1, 0], [2, 2, 0, 3], [0, 0, 3, 3]])
_PREDICTION = np.array([[0, 1, 0, 1], [2, 1, 0, 3], [2, 0, 3, 1]])
_DEPTH = np.arange(3)[:, None, None]

ERROR_MAP = exercise(
    "00.2",
    error_map,
    cases=(
        Case("two small label images with every sort of error", (_PREDICTION, _TRUTH)),
        Case("the two images exchanged", (_TRUTH, _PREDICTION)),
        Case("a prediction without errors", (_TRUTH, _TRUTH)),
        Case("an empty prediction, labels stored as uint8", (np.zeros((3, 4), np.uint8), _TRUTH.astype(np.uint8))),
        Case("a volume with labels up to 300", (_TRUTH * (100 - _DEPTH % 2), _PREDICTION * (100 - _DEPTH // 2))),
    ),
    mistakes={
        "missed and extra swapped": ("error_map(prediction, truth)", "error_map(truth, prediction)"),
        "confused counted as missed": ("] = 3", "] = 1"),
        "confused counted as extra": ("] = 3", "] = 2"),
        "compares foreground only": ("(truth != prediction)", "((truth != 0) != (prediction != 0))"),
        "only where they differ": ("return codes", "return prediction != truth"),
        "right pixels marked as confused": (" & (truth != prediction)", ""),
        "writes into the prediction": (
            "return codes",
            "prediction[...] = codes\n    return prediction.astype(np.uint8)",
        ),
    },
)

# --------------------------------------------------------------------------- 00.3, windows that overlap


def blend(pieces, starts, weights, length):
    total, shares = np.zeros(length), np.zeros(length)
    for piece, start in zip(pieces, starts, strict=True):
        place = slice(start, start + len(piece))
        total[place] += weights * piece
        shares[place] += weights
    return total / shares


_MIDDLE_FIRST = np.array([0.5, 1.0, 2.0, 1.0, 0.5])

BLEND = exercise(
    "00.3",
    blend,
    cases=(
        Case(
            "two windows that overlap in part",
            (np.array([[1.0, 1, 1, 1, 1], [3, 3, 3, 3, 3]]), np.array([0, 3]), _MIDDLE_FIRST, 8),
        ),
        Case("one window", (np.array([[4.0, 3, 2, 1, 0]]), np.array([0]), _MIDDLE_FIRST, 5)),
        Case(
            "three windows at uneven distances",
            (np.arange(15.0).reshape(3, 5) ** 2, np.array([0, 2, 6]), _MIDDLE_FIRST, 11),
        ),
        Case(
            "windows side by side, without overlap",
            (np.array([[1.0, 2], [3, 4]]), np.array([0, 2]), np.array([0.25, 4.0]), 4),
        ),
    ),
    mistakes={
        "the last window wins": (("+= weights * piece", "= piece"), ("total / shares", "total")),
        "the sum is never divided": ("total / shares", "total"),
        "divided by the number of windows": ("shares[place] += weights", "shares[place] += 1"),
        "every window counts the same": (
            ("weights * piece", "piece"),
            ("shares[place] += weights", "shares[place] += 1"),
        ),
        "the weights of the last window alone": ("shares[place] += weights", "shares[place] = weights"),
        "scales the pieces themselves": (
            "total[place] += weights * piece",
            "piece *= weights\n        total[place] += piece",
        ),
    },
    tolerance=1e-9,
)

# --------------------------------------------------------------------- 00.4, is the one really better than the other?


def compare_scores(first, second):
    differences = first - second
    return differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))


_FIRST = np.array([0.91, 0.42, 0.77, 0.88, 0.64, 0.95])
_GAIN = np.array([0.02, 0.01, -0.005, 0.03, 0.015, 0.01])

COMPARE = exercise(
    "00.4",
    compare_scores,
    cases=(
        Case("six cases, some much harder than others", (_FIRST + _GAIN, _FIRST)),
        Case("the two methods exchanged", (_FIRST, _FIRST + _GAIN)),
        Case("the same gain in every case", (_FIRST + 0.25, _FIRST)),
        Case("two cases", (np.array([0.5, 0.75]), np.array([0.25, 0.875]))),
    ),
    mistakes={
        "second minus first": ("first - second", "second - first"),
        "the spread of the cases": (" / np.sqrt(len(differences))", ""),
        "divided by n": ("np.sqrt(len(differences))", "len(differences)"),
        "divided by n, not by n - 1": ("ddof=1", ""),
        "the cases are not paired": (
            "differences.std(ddof=1) / np.sqrt(len(differences))",
            "np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))",
        ),
        "the size of the differences": ("first - second", "np.abs(first - second)"),
    },
)

EXERCISES = (DICE, ERROR_MAP, BLEND, COMPARE)
