"""Whether numbers that nobody declared are labels: what their places and the other files of a folder say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import numpy as np

FEWEST = 2  # numbers found on edges only that are taken for shades: one may be a class of borders
THIN = 0.05  # of the places of a number: if fewer lie inside of it, it is as thin as an edge
BLOCK = 15  # pixels across: what JPEG, in blocks of 8 x 8, does to an edge lies no further off
SMALL = 1 / 8  # of the height of an edge: what compression does beside it
WHITE = (255, 65535)
SHOWN = 5  # numbers or files that an error lists


def numbers_found(labels: Iterable[tuple[str, np.ndarray]]) -> list[int]:
    """The numbers beside 0 in labels that nobody declared, (what to call it, label) each; ValueError as the checks."""
    found = {}
    for what, label in labels:
        check_hard_edges(what, label)
        found[what] = set(np.unique(label).tolist()) - {0}
    check_one_convention(found)
    return sorted(set().union(*found.values()))


def check_hard_edges(what: str, label: np.ndarray) -> None:
    """ValueError for a label (*spatial) whose numbers look like shades: edges that resampling, blurring or compression
    with loss (JPEG, also where it was saved as PNG afterwards) made soft.

    A shade is a thin number, most of whose places lie between lower and higher ones, or beside an edge and a small step
    off their neighbours. Compression leaves such steps beside every number, classes of borders or points beside some.
    Numbers that count on from 0 are taken for labels, and so are small ones: white is none of them, and what an
    untrained network predicts is as thin.
    """
    from scipy import ndimage

    numbers = np.unique(label)
    fewest = max(FEWEST, np.count_nonzero(numbers) / 2)
    # From 32 on, a mask may have been painted to be seen.
    if len(numbers) <= FEWEST + 1 or numbers[-1] == len(numbers) - 1 or numbers[-1] < 32:
        return
    filters = ndimage.minimum_filter, ndimage.maximum_filter
    lowest, highest = (take(label, size=3) for take in filters)
    thin = numbers[(ndimage.mean(lowest == highest, label, numbers) < THIN) & (numbers > 0)]
    if len(thin) < fewest:
        return
    floor, ceiling = (take(label, size=BLOCK) for take in filters)
    steps = [np.where(step > 0, step, ceiling - floor) for step in (label - lowest, highest - label)]
    small = np.minimum(*steps) < SMALL * (ceiling - floor)
    between = (lowest < label) & (label < highest)
    soft, shades = (thin[ndimage.mean(shade, label, thin) > 0.5] for shade in (between, between | small))
    off = np.abs(np.setdiff1d(numbers, shades)[:, None] - shades)
    beside_all = len(shades) >= fewest and (off.min(axis=1) < SMALL * numbers[-1]).all()
    if len(soft) >= fewest or beside_all:
        some = f"{len(shades)} lie on edges only, such as {shades[:SHOWN].tolist()}"
        fix = "save it with hard edges and without loss, or name the numbers if they are classes"
        found = f"{what} holds {np.count_nonzero(numbers)} numbers beside 0, of which {some}"
        raise ValueError(f"{found}: soft edges, which resampling, blurring or JPEG makes, are no labels; {fix}")


def check_one_convention(values: Mapping[str, Set[int]]) -> None:
    """ValueError for files, name -> numbers beside 0, of which some count their labels and others paint them white.

    Masks of 0 and 1 beside masks of 0 and 255 would become two classes.
    """
    white = {name for name, numbers in values.items() if numbers & set(WHITE)}
    counted = {name for name, numbers in values.items() if numbers and name not in white}
    painted = set().union(*(values[name] for name in white))
    numbers = set().union(*(values[name] for name in counted))
    if white and counted and not painted & numbers:
        one, other = sorted(painted)[:SHOWN], sorted(numbers)[:SHOWN]
        found = f"some labels hold {one}, such as {min(white)}, others {other}, such as {min(counted)}, and none both"
        raise ValueError(f"{found}: save all with the same numbers, or name the numbers if they are classes")
