"""Whether numbers that nobody declared are labels: what their places and the other files of a folder say."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np

FEWEST_BETWEEN = 2  # numbers found on edges only that are taken for shades: one may be a class of borders
WHITE = (255, 65535)
SHOWN = 5  # numbers or files that an error lists


def check_hard_edges(what: str, label: np.ndarray) -> None:
    """ValueError for a label (*spatial) whose numbers look like shades: edges made soft by resampling or blurring.

    A shade is a number that nowhere fills a neighbourhood, and beside most of whose places there are lower ones and
    higher ones. Numbers that count on from 0 are taken for labels, however thin.
    """
    from scipy import ndimage

    numbers = np.unique(label)
    if len(numbers) <= FEWEST_BETWEEN + 1 or numbers[-1] == len(numbers) - 1:
        return
    lowest, highest = (take(label, size=3) for take in (ndimage.minimum_filter, ndimage.maximum_filter))
    thin = np.setdiff1d(numbers[numbers > 0], label[lowest == highest])
    between = (lowest < label) & (label < highest)
    edges = thin[np.asarray(ndimage.mean(between, label, thin)) > 0.5].tolist()
    if len(edges) >= max(FEWEST_BETWEEN, np.count_nonzero(numbers) / 2):
        raise ValueError(
            f"{what} holds {np.count_nonzero(numbers)} numbers beside 0, of which {len(edges)} lie on edges only, such "
            f"as {edges[:SHOWN]}: soft edges, which resampling or blurring makes, are no labels. Save it with hard "
            "edges, or name the numbers if they are classes"
        )


def check_one_convention(values: Mapping[str, Set[int]]) -> None:
    """ValueError for files, name -> numbers beside 0, of which some count their labels and others paint them white.

    Masks of 0 and 1 beside masks of 0 and 255 would become two classes.
    """
    white = {name for name, numbers in values.items() if numbers & set(WHITE)}
    counted = {name for name, numbers in values.items() if numbers and name not in white}
    painted = set().union(*(values[name] for name in white))
    numbers = set().union(*(values[name] for name in counted))
    if white and counted and not painted & numbers:
        raise ValueError(
            f"some labels hold {sorted(painted)[:SHOWN]}, such as {min(white)}, others {sorted(numbers)[:SHOWN]}, such "
            f"as {min(counted)}, and none both: one thing seems to have two numbers. Save all with the same numbers, "
            "or name the numbers if they are classes"
        )
