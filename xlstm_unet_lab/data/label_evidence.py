"""Whether numbers that nobody declared are labels: what their places and the other files of a folder say."""

from collections.abc import Iterable, Mapping, Set

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

FEWEST = 2  # numbers found on edges only that are taken for shades: one may be a class of borders
THIN = 0.05  # of the places of a number: if fewer lie inside of it, it is as thin as an edge
BLOCK = 15  # pixels across: what JPEG, in blocks of 8 x 8, does to an edge lies no further off
FLAT = 0.2  # part of a label that compression leaves flat
SMALL = 1 / 8  # of the height of an edge: what compression does beside it
# Of JPEG, what programs write by default and are asked for; different blocks with an edge that it takes to tell, and
# that are looked at; how much less JPEG must change, and the part of their pixels that it must change elsewhere.
# Measured on 500 labels of random shapes and 178 of polyps: never below 0.55; where it had been at work, half at 0.33.
QUALITIES = (50, 60, 70, 75, 80, 85, 90, 92, 95, 96, 97, 98)
BLOCKS, MOST_BLOCKS, LESS, CHANGED = 16, 256, 0.5, 0.03
MOST_PLACES = 2**18  # of numbers that may be shades, that are looked at
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
    with loss (JPEG, also where it was saved as PNG afterwards) made soft. Whatever the numbers are: places decide.
    """
    shades = _shades(label)
    if shades or _is_jpeg(label):
        some = f", of which {len(shades)} lie on edges only, such as {shades[:SHOWN]}" if shades else ""
        found = f"{what} holds {np.count_nonzero(np.unique(label))} numbers beside 0{some}"
        cause = "soft edges, which resampling, blurring or JPEG makes" if shades else "what JPEG makes in its blocks"
        fix = "save it with hard edges and without loss, or, if they are classes, name them in labels.json beside the"
        raise ValueError(f'{found}: {cause}, are no labels; {fix} folders of images and labels, as {{"nucleus": 1}}')


def _shades(label: np.ndarray) -> list[int]:
    """The numbers of soft edges, if there are any.

    They are thin, most of their places lie between lower and higher ones, and some of them change along the edge from
    place to place as well, where a layer of cells, however thin, keeps its number, and noise falls and rises again. Of
    compression, they lie beside every number, a small step off (`_beside_edges`).
    """
    numbers = np.unique(label)
    lowest, highest = (take(label, size=3) for take in (ndimage.minimum_filter, ndimage.maximum_filter))
    thin = (ndimage.mean(lowest == highest, label, numbers) < THIN) & (numbers > 0)
    # Where nothing is flat, numbers are those of objects, or noise: soft edges are those of something.
    if np.count_nonzero(thin) < FEWEST or np.mean(lowest == highest) < THIN:
        return []
    between = (lowest < label) & (label < highest)
    soft = numbers[thin & (ndimage.mean(between, label, numbers) > 0.5)]
    if len(soft) >= len(numbers) // 2 and _broken(label, soft) >= max(FEWEST, len(numbers) // 8):
        return soft.tolist()
    return _beside_edges(label, numbers, thin, between)


def _broken(label: np.ndarray, soft: np.ndarray) -> int:
    """How many of these numbers rise or fall along every axis at most of their places (MOST_PLACES are looked at), with
    fewer than two places around that have the same number."""
    places = np.argwhere(np.isin(label, soft))
    places = places[:: len(places) // MOST_PLACES + 1]
    windows = sliding_window_view(np.pad(label, 1, mode="edge"), (3,) * label.ndim)
    around = windows[tuple(places.T)].reshape(len(places), -1)
    middle = around.shape[1] // 2
    own, steps = around[:, middle], 3 ** np.arange(label.ndim)
    sides = around[:, middle - steps], around[:, middle + steps]
    rises = ((own >= np.minimum(*sides).T) & (own <= np.maximum(*sides).T)).all(axis=0)
    alone = np.count_nonzero(own == around.T, axis=0) < 3  # itself among them
    return int(np.count_nonzero(ndimage.mean(rises & alone, own, soft) > 0.5))


def _beside_edges(label: np.ndarray, numbers: np.ndarray, thin: np.ndarray, between: np.ndarray) -> list[int]:
    """Of numbers painted to be seen, those that compression makes: no further off an edge than BLOCK, a small step off
    their neighbours, and such ones beside every number."""
    filters = ndimage.minimum_filter, ndimage.maximum_filter
    lowest, highest, floor, ceiling = (take(label, size=size) for size in (3, BLOCK) for take in filters)
    if numbers[-1] < 32 or np.mean(lowest == highest) < FLAT:
        return []
    height = ceiling - floor
    steps = [np.where(step > 0, step, height) for step in (label - lowest, highest - label)]
    near = between | (np.minimum(*steps) < SMALL * height)
    shades = numbers[thin & (ndimage.mean(near, label, numbers) > 0.5)]
    off = np.abs(np.setdiff1d(numbers, shades)[:, None] - shades).min(axis=1, initial=numbers[-1])
    beside_all = len(shades) >= max(FEWEST, len(numbers) // 2) and (off < SMALL * numbers[-1]).all()
    return shades.tolist() if beside_all else []


def _is_jpeg(label: np.ndarray) -> bool:
    """Whether JPEG of some quality changes much less in blocks of 8 x 8 as they lie than in blocks that lie elsewhere:
    then it has been at work in these already. Only blocks that hold an edge say anything, equal ones but once."""
    if label.ndim != 2 or label.max() > 255 or min(label.shape) < 16:
        return False
    blocks = [_edge_blocks(label.astype(np.uint8), start) for start in (0, 3, 4)]
    for quality in QUALITIES if min(map(len, blocks)) >= 8 * BLOCKS else ():
        here, *elsewhere = (np.mean(_through_jpeg(some, quality) != some) for some in blocks)
        if here < LESS * min(elsewhere) and min(elsewhere) > CHANGED:
            return True
    return False


def _edge_blocks(label: np.ndarray, start: int) -> np.ndarray:
    """Blocks of 8 x 8 that hold an edge, at most MOST_BLOCKS, one below the other; the first begins at start, start."""
    blocks = np.unique(sliding_window_view(label[start:, start:], (8, 8))[::8, ::8].reshape(-1, 64), axis=0)
    blocks = blocks[np.ptp(blocks, axis=1) > 0]
    return blocks[:: len(blocks) // MOST_BLOCKS + 1].reshape(-1, 8)


def _through_jpeg(label: np.ndarray, quality: int) -> np.ndarray:
    from imageio.v3 import imread, imwrite

    return imread(imwrite("<bytes>", label, extension=".jpg", plugin="pillow", quality=quality), extension=".jpg")


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
