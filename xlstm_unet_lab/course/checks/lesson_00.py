"""Lesson 00: how well two masks agree, and where they do not."""

import numpy as np

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# ---------------------------------------------------------------------------------------------- 00.1, the Dice score


def dice(prediction, truth):
    total = prediction.sum() + truth.sum()
    if total == 0:
        return 1.0
    return 2 * (prediction & truth).sum() / total


_TEST = "    if total == 0:\n        return 1.0\n"
_SCORE = "2 * (prediction & truth).sum() / total"

_DICE_MISTAKES = (
    Mistake(
        "intersection over union",
        _SCORE,
        "(prediction & truth).sum() / (prediction | truth).sum()",
        "you divide by the union, so this is intersection over union (the Jaccard index). Dice divides twice the "
        "intersection by the two sizes added together.",
    ),
    Mistake(
        "the factor 2 is missing",
        "2 * (prediction",
        "(prediction",
        "the factor 2 is missing: two equal masks give 0.5 in place of 1. The pixels in common stand in both sizes "
        "below, so they count twice above.",
    ),
    Mistake(
        "two empty masks give 0",
        "return 1.0",
        "return 0.0",
        "two empty masks give 0 in your function, the worst score, though nothing was missed and nothing invented. "
        "That is agreement: return 1.0. Any tiny number added below only would do the same harm.",
    ),
    Mistake(
        "two empty masks give NaN",
        _TEST,
        "",
        "for two empty masks you divide 0 by 0, which NumPy turns into NaN, and one NaN makes a whole average NaN. "
        "Test for this case first and return 1.0.",
    ),
    Mistake(
        "two empty masks stop with an error",
        (_TEST, _SCORE),
        ("", "2 * int((prediction & truth).sum()) / int(total)"),
        "for two empty masks you divide by zero. Test for this case first and return 1.0.",
    ),
    Mistake(
        "share of equal pixels",
        _SCORE,
        "np.mean(prediction == truth)",
        "you count every pixel where the masks are equal, background included. That is accuracy, and it is high for "
        "an empty prediction wherever the object is small. Dice looks at the foreground only.",
    ),
    Mistake(
        "adds the masks, then counts",
        "prediction.sum() + truth.sum()",
        "(prediction + truth).sum()",
        "for boolean arrays `+` means `or`: True + True is True, so pixels in both masks are counted once. Count each "
        "mask by itself, then add the counts.",
    ),
    Mistake(
        "share of the truth that was found",
        _SCORE,
        "(prediction & truth).sum() / truth.sum()",
        "you divide by the size of the truth alone. That is recall (sensitivity), which a prediction of foreground "
        "everywhere makes perfect. Dice also counts what was predicted.",
    ),
    Mistake(
        "smoothed by 1",
        _SCORE,
        "(2 * (prediction & truth).sum() + 1) / (total + 1)",
        "you add 1 above and below, as loss functions do to keep their gradient finite. In a score this favours small "
        "objects. Leave it out, and treat two empty masks by themselves.",
    ),
)


def _mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def _two_boxes_in_3d() -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.zeros((3, 5, 6), dtype=bool), np.zeros((3, 5, 6), dtype=bool)
    prediction[:2, 1:4, 1:6] = True
    truth[1:, 1:5, 2:5] = True
    return prediction, truth


_EMPTY = np.zeros((3, 4), dtype=bool)

DICE = Exercise(
    number="00.1",
    title="the Dice score",
    goal="Write `dice(prediction, truth)`: how well two boolean masks agree, from 0.0 to 1.0.",
    minutes=5,
    difficulty=2,
    reference=dice,
    cases=(
        Case("two masks that overlap in part", (_mask("##..", "##..", "...."), _mask(".##.", ".##.", ".##."))),
        Case("two equal masks", (_mask("##..", ".#.."), _mask("##..", ".#.."))),
        Case("two masks that do not touch", (_mask("#...", "#..."), _mask("...#", "...#"))),
        Case("a volume, two boxes that overlap in part", _two_boxes_in_3d()),
        Case("a row of pixels in one dimension", (np.array([True, True, False]), np.array([False, True, True]))),
        Case("an empty prediction of an object", (_EMPTY, _mask("....", ".##.", "...."))),
        Case("both masks empty", (_EMPTY, _EMPTY)),
    ),
    hints=(
        "Three counts are enough: pixels in the prediction, pixels in the truth, pixels in both. "
        "For boolean arrays `prediction & truth` is the mask of the pixels in both, and `.sum()` counts.",
        "Dice is 2 x (pixels in both) / (pixels in the prediction + pixels in the truth). "
        "What happens to the fraction when both masks are empty?",
        "When the sum of the two sizes is 0 return 1.0; otherwise return "
        "`2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())`.",
    ),
    mistakes=_DICE_MISTAKES,
    not_tested="masks of different shapes, which should be refused; masks that are not boolean; large volumes.",
)

# --------------------------------------------------------------------------------------------- 00.2, a map of errors


def error_map(prediction, truth):
    codes = np.zeros(truth.shape, dtype=np.uint8)
    codes[(truth != 0) & (prediction == 0)] = 1
    codes[(truth == 0) & (prediction != 0)] = 2
    codes[(truth != 0) & (prediction != 0) & (truth != prediction)] = 3
    return codes


_ERROR_MAP_MISTAKES = (
    Mistake(
        "missed and extra swapped",
        "error_map(prediction, truth)",
        "error_map(truth, prediction)",
        "1 and 2 are swapped. Missed (1) is where the truth has an object and the prediction has background; extra "
        "(2) is the other way round.",
    ),
    Mistake(
        "confused counted as missed",
        "] = 3",
        "] = 1",
        "where both have an object but of different labels you write 1 (missed). The object was seen and given the "
        "wrong name: that is 3.",
    ),
    Mistake(
        "confused counted as extra",
        "] = 3",
        "] = 2",
        "where both have an object but of different labels you write 2 (extra), perhaps because a later line writes "
        "over an earlier one. Such pixels are 3.",
    ),
    Mistake(
        "compares foreground only",
        "(truth != prediction)",
        "((truth != 0) != (prediction != 0))",
        "you compare only whether there is an object, never which one, so 3 (confused) cannot appear. Compare the "
        "labels themselves where both are foreground.",
    ),
    Mistake(
        "only where they differ",
        "return codes",
        "return prediction != truth",
        "you return only whether the two differ. The map must say in which way: 1 missed, 2 extra, 3 confused, as "
        "`uint8`.",
    ),
    Mistake(
        "right pixels marked as confused",
        " & (truth != prediction)",
        "",
        "you write 3 wherever both have an object, even where the labels agree. Only different labels are confused; "
        "equal ones are 0.",
    ),
    Mistake(
        "writes into the prediction",
        "return codes",
        "prediction[...] = codes\n    return prediction.astype(np.uint8)",
        "the codes are right but you wrote them into `prediction`, and the caller has lost its labels. Start from a "
        "new array, `np.zeros(truth.shape, dtype=np.uint8)`.",
    ),
)

_TRUTH = np.array([[0, 1, 1, 0], [2, 2, 0, 3], [0, 0, 3, 3]])
_PREDICTION = np.array([[0, 1, 0, 1], [2, 1, 0, 3], [2, 0, 3, 1]])
_DEPTH = np.arange(3)[:, None, None]

ERROR_MAP = Exercise(
    number="00.2",
    title="a map of errors",
    goal="Write `error_map(prediction, truth)`: for every pixel of two label images 0 right, 1 missed, 2 extra or 3 "
    "confused, as `uint8`.",
    minutes=7,
    difficulty=2,
    reference=error_map,
    cases=(
        Case("two small label images with every sort of error", (_PREDICTION, _TRUTH)),
        Case("the two images exchanged", (_TRUTH, _PREDICTION)),
        Case("a prediction without errors", (_TRUTH, _TRUTH)),
        Case("an empty prediction, labels stored as uint8", (np.zeros((3, 4), np.uint8), _TRUTH.astype(np.uint8))),
        Case("a volume with labels up to 300", (_TRUTH * (100 - _DEPTH % 2), _PREDICTION * (100 - _DEPTH // 2))),
    ),
    hints=(
        "Background is label 0 and everything else is foreground. Write the three sorts of error as boolean masks "
        "first, each from comparisons joined with `&`.",
        "Missed: `(truth != 0) & (prediction == 0)`. Extra is the mirror image. Confused needs three conditions: both "
        "are foreground, and the labels differ.",
        "Start from `codes = np.zeros(truth.shape, dtype=np.uint8)`, write with `codes[missed] = 1` and so on, and "
        "return `codes`.",
    ),
    mistakes=_ERROR_MAP_MISTAKES,
    not_tested="images of different shapes, which should be refused; negative labels; labels stored as floats.",
)

EXERCISES = (DICE, ERROR_MAP)
