"""Lesson 00: blending windows that overlap, and comparing two methods over the same cases."""

import numpy as np

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# --------------------------------------------------------------------------- 00.3, windows that overlap


def blend(pieces, starts, weights, length):
    total, shares = np.zeros(length), np.zeros(length)
    for piece, start in zip(pieces, starts, strict=True):
        place = slice(start, start + len(piece))
        total[place] += weights * piece
        shares[place] += weights
    return total / shares


_BLEND_MISTAKES = (
    Mistake(
        "the last window wins",
        ("+= weights * piece", "total / shares"),
        ("= piece", "total"),
        "where windows overlap you keep the last one only: `=` writes over what was there. Add with `+=`, and divide "
        "at the end.",
    ),
    Mistake(
        "the sum is never divided",
        "total / shares",
        "total",
        "you add the weighted pieces and stop there. Where two windows meet, their weights add up to something other "
        "than 1: divide by the sum of the weights at each position.",
    ),
    Mistake(
        "divided by the number of windows",
        "shares[place] += weights",
        "shares[place] += 1",
        "you divide by how many windows cover a position. A weighted mean is divided by the sum of the weights.",
    ),
    Mistake(
        "every window counts the same",
        ("weights * piece", "shares[place] += weights"),
        ("piece", "shares[place] += 1"),
        "you leave out `weights`, so a window's uncertain edge counts as much as its middle.",
    ),
    Mistake(
        "the weights of the last window alone",
        "shares[place] += weights",
        "shares[place] = weights",
        "the weighted pieces are added up but the weights are not: `shares[place] = weights` keeps those of the last "
        "window. Use `+=` for both.",
    ),
    Mistake(
        "scales the pieces themselves",
        "total[place] += weights * piece",
        "piece *= weights\n        total[place] += piece",
        "the result is right, but `piece *= weights` changes the caller's array. `weights * piece` makes a new one.",
    ),
)

_MIDDLE_FIRST = np.array([0.5, 1.0, 2.0, 1.0, 0.5])

BLEND = Exercise(
    number="00.3",
    title="windows that overlap",
    goal="Write `blend(pieces, starts, weights, length)`: at each position the mean of the windows that cover it, each "
    "counted by its weight there.",
    minutes=8,
    difficulty=3,
    reference=blend,
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
    hints=(
        "Go through the windows one by one and keep two rows of numbers as long as the image: the weighted sum of the "
        "scores, and the sum of the weights.",
        "A window that starts at `start` covers the positions `slice(start, start + len(piece))`.",
        "In the loop: `total[place] += weights * piece` and `shares[place] += weights`. After it: `total / shares`.",
    ),
    mistakes=_BLEND_MISTAKES,
    not_tested="positions that no window covers, where you divide 0 by 0; images, which take one loop in place of two.",
    tolerance=1e-9,
)

# --------------------------------------------------------------------- 00.4, is the one really better than the other?


def compare_scores(first, second):
    differences = first - second
    return differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))


_COMPARE_MISTAKES = (
    Mistake(
        "second minus first",
        "first - second",
        "second - first",
        "the sign is turned: you take second minus first. A positive mean must say that the first is better.",
    ),
    Mistake(
        "the spread of the cases",
        " / np.sqrt(len(differences))",
        "",
        "your second number is the standard deviation of the differences: how much a single case varies. How well the "
        "mean is known is that divided by the square root of the number of cases.",
    ),
    Mistake(
        "divided by n",
        "np.sqrt(len(differences))",
        "len(differences)",
        "you divide by the number of cases. Variances of independent cases add, so the mean's variance is theirs "
        "divided by n, and its standard deviation theirs divided by the square root of n.",
    ),
    Mistake(
        "divided by n, not by n - 1",
        "ddof=1",
        "",
        "NumPy's `std` divides by n unless told otherwise, which is too small when the mean comes from the same "
        "numbers. Use `ddof=1`.",
    ),
    Mistake(
        "the cases are not paired",
        "differences.std(ddof=1) / np.sqrt(len(differences))",
        "np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))",
        "your error is that of two independent groups. Both networks saw the same cases, and a hard case is hard for "
        "both: take the difference case by case first, and its spread is much smaller.",
    ),
    Mistake(
        "the size of the differences",
        "first - second",
        "np.abs(first - second)",
        "you take the absolute value of the differences, so cases in which the second is better count for the first.",
    ),
)

_FIRST = np.array([0.91, 0.42, 0.77, 0.88, 0.64, 0.95])
_GAIN = np.array([0.02, 0.01, -0.005, 0.03, 0.015, 0.01])

COMPARE = Exercise(
    number="00.4",
    title="is the one really better?",
    goal="Write `compare_scores(first, second)`: the mean difference of the scores of two methods over the same cases, "
    "and the standard error of that mean.",
    minutes=10,
    difficulty=3,
    reference=compare_scores,
    cases=(
        Case("six cases, some much harder than others", (_FIRST + _GAIN, _FIRST)),
        Case("the two methods exchanged", (_FIRST, _FIRST + _GAIN)),
        Case("the same gain in every case", (_FIRST + 0.25, _FIRST)),
        Case("two cases", (np.array([0.5, 0.75]), np.array([0.25, 0.875]))),
    ),
    hints=(
        "Both methods saw the same cases. Begin with one difference a case: `first - second`.",
        "The standard error of a mean is the standard deviation of one value divided by the square root of how many "
        "there are. Which `ddof` does a standard deviation need whose mean comes from the same values?",
        "Return two numbers: `differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))`.",
    ),
    mistakes=_COMPARE_MISTAKES,
    not_tested="a single case, which has no spread; scores that are far from normally distributed, for which lesson 10 "
    "uses the bootstrap; several labels looked at together.",
)

EXERCISES = (BLEND, COMPARE)
