"""A task for which a network must look far: the class of a disc is that of whichever of two marks lies nearer to it.

Along the image's long axis lie discs, a long stretch of ground, one mark, as long a stretch, the other mark, as long a
stretch, and discs again. One mark is as much brighter than the ground as the other is darker; which of them comes first
decides the class of the discs at either end. All discs look the same, every image holds the same two marks and discs of
both classes. So a window too small to hold two of these things at once looks the same in either order, and so does
every statistic over all such windows of an image, instance norm's included: the order of the marks remains, and only a
network that relates far places sees it. Mirrored or turned, an image keeps its meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_recipes.shared.phantom_physics import checked_size, numbered, smooth_field, streams, uniform, whole_levels
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.recipe import Recipe, Track

SEED = 9050
TRAINING, TEST = 480, 96  # many, and small: from few a network can learn by heart instead
SIZE = (384, 32)
DISC_BAND = 24  # rows at either end that hold discs
DISCS = 3  # in each band
DISC_RADIUS, DISC_DISTANCE = 2.6, 7.0  # pixels; the second is between centres, at least
MARK_REACH = 6  # pixels from a mark's middle to its edge
JITTER = 14  # rows over which the marks move together, from image to image
ALIGNMENT = 8  # the marks' distance is a multiple of it, so strides up to it see both marks alike
GROUND, DISC, CONTRAST, GREY_LEVELS = 110.0, 185.0, 70.0, 255

LABELS = {"background": 0, "disc, bright nearer": 1, "disc, dark nearer": 2}


class Layout(NamedTuple):
    discs: np.ndarray  # (n, dims), pixels
    bright: np.ndarray  # (dims,), the middle of a mark
    dark: np.ndarray  # (dims,)


def clear_rows(size: tuple[int, ...] = SIZE) -> int:
    """How many rows lie at least between discs and marks: a window that sees two of them at once is larger."""
    return _mark_distance(size) - 2 * MARK_REACH - 1


def scene(seed: int, size: tuple[int, ...] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8, and its label, uint8, of this size, (y, x) or (z, y, x), with y the long axis.

    Even seeds have the bright mark first along y, odd seeds the dark one.
    Raises ValueError for a negative seed or a size below (24, 128, 24).
    """
    shapes, picture = streams(seed)
    size = checked_size(size, (24, 128, 24))
    image, label = paint(draw_layout(shapes, size, bright_first=seed % 2 == 0), size)
    return photograph(picture, image), label


def draw_layout(random: np.random.Generator, size: tuple[int, ...], bright_first: bool) -> Layout:
    """Where discs and marks lie; nothing but the order of the marks along y depends on `bright_first`."""
    across = [axis for axis in range(len(size)) if axis != len(size) - 2]
    discs = np.concatenate([_draw_discs(random, size), _draw_discs(random, size)])
    discs[len(discs) // 2 :, -2] += size[-2] - DISC_BAND
    distance = _mark_distance(size)
    first = DISC_BAND + distance - MARK_REACH - 1 + int(JITTER * random.random())
    bright, dark = np.zeros((2, len(size)), int)
    for mark, is_first in ((bright, bright_first), (dark, not bright_first)):
        mark[-2] = first if is_first else first + distance
        mark[across] = [MARK_REACH + int((size[axis] - 2 * MARK_REACH) * random.random()) for axis in across]
    return Layout(discs, bright, dark)


def _draw_discs(random: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """The middles of the discs of one band, counted from its low end, none too near another."""
    low, high = np.full(len(size), 4.0), np.array(size) - 5.0
    high[-2] = DISC_BAND - 5
    while True:  # all anew each time: early discs must not leave the last one without a place
        discs = low + (high - low) * random.random((DISCS, len(size)))
        squares = ((discs[:, None] - discs) ** 2).sum(axis=-1)
        if squares[np.triu_indices(DISCS, 1)].min() >= DISC_DISTANCE**2:
            return discs


def _mark_distance(size: tuple[int, ...]) -> int:
    # Three stretches of clear ground and two marks lie between the bands; a stretch and a mark are one distance.
    room = size[-2] - 2 * DISC_BAND - JITTER + 2 * (MARK_REACH + 1)
    return room // 3 // ALIGNMENT * ALIGNMENT


def paint(layout: Layout, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The discs and marks on even ground, float64, and the label of the discs, uint8."""
    grid = np.stack(np.meshgrid(*(np.arange(length) for length in size), indexing="ij"), axis=-1)
    label = np.zeros(size, np.uint8)
    for centre in layout.discs:
        bright, dark = (abs(mark[-2] - centre[-2]) for mark in (layout.bright, layout.dark))
        nearer = "bright" if bright < dark else "dark"
        label[_ball(grid, centre, DISC_RADIUS)] = LABELS[f"disc, {nearer} nearer"]
    image = np.where(label > 0, DISC, GROUND)
    image[_ball(grid, layout.bright, MARK_REACH + 0.5)] += CONTRAST
    image[_ball(grid, layout.dark, MARK_REACH + 0.5)] -= CONTRAST
    return image, label


def _ball(grid: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    return ((grid - centre) ** 2).sum(axis=-1) < radius**2


def photograph(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Blur, uneven ground, noise and a random exposure, none of which knows the class; uint8."""
    blurred = ndimage.gaussian_filter(image, 0.5) + 3 * smooth_field(random, image.shape, 5.0)
    noisy = blurred + 5 * np.sqrt(12) * uniform(random, -0.5, 0.5, image.shape)
    levels = uniform(random, 0.85, 1.15) * noisy + uniform(random, -10, 20)
    return whole_levels(levels, GREY_LEVELS).astype(np.uint8)


def convert(source: Path | None, out: Path, track: Track = iter) -> dict:
    """Make the images and write them to `out`; `source` is None, there is nothing to read. Returns facts to record."""
    for number, part in numbered(RECIPE.name, source, TRAINING, TEST, track):
        write_case(out, part, f"discs_{number:03d}", *scene(SEED + number, SIZE))
    return {"seed": SEED, "clear_rows": clear_rows(SIZE)}


RECIPE = Recipe(
    name="phantom_long_range",
    dataset_id=905,
    title="Discs whose class is decided by which of two far marks is nearer",
    modality="drawing (made here)",
    spatial_dims=2,
    channel_names=("light",),
    labels=LABELS,
    colours={"disc, bright nearer": "#0072B2", "disc, dark nearer": "#E69F00"},  # told apart by colour-blind readers
    metrics=("dice",),
    tolerances={"disc, bright nearer": 1.0, "disc, dark nearer": 1.0},  # pixels
    spacing_unit="pixel",
    file_ending=".png",
    licence="CC0 1.0",
    citation="xLSTM-UNet Lab, data_recipes.phantom_long_range",
    homepage="",
    convert=convert,
)
