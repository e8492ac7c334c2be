"""Fluorescent cells made here from a seed: the data set every notebook can run on, offline.

Shapes are drawn from uniform numbers only and in float64, and a label is decided by a comparison, so the label map of a
seed is the same on every machine. The noise has a random stream of its own and cannot disturb the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_recipes.shared.instances import COLOURS, METRICS, TOLERANCES, interior_and_boundary
from data_recipes.shared.phantom_physics import (
    checked_size,
    numbered,
    orthogonal,
    smooth_field,
    streams,
    uniform,
    whole_levels,
)
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.data.recipe import Recipe, Track

SEED = 2024
TRAINING, TEST = 48, 16
SIZE = (256, 256)

MEAN_RADIUS = 9.0  # pixels
COVERAGE = 0.22  # the share of the image that in-focus cells try to cover
TOUCHING = 0.5  # the share of cells that grow beside an earlier one
MOST_OVERLAP = 0.15  # a cell that would lose more than this share of itself to its neighbours is not placed
SMALLEST_CELL = 0.15  # cells left with less than this share of a mean cell (cut by the edge) are taken out
OUT_OF_FOCUS = 0.2  # blurred cells from other depths, for each cell in focus; they are light, not truth
BLUR = 1.1  # pixels, standard deviation of the point-spread function across the optical axis
AXIAL_BLUR = 2.5  # a microscope blurs along its axis (z) this many times more than across it
READ_NOISE = 2.0  # electrons, standard deviation
GREY_LEVELS = 255


class _Cell(NamedTuple):
    centre: np.ndarray  # (dims,), pixels
    axes: np.ndarray  # (dims, dims), rows: unit vectors of the ellipsoid divided by its half-lengths
    waves: np.ndarray  # (3, dims), directions and frequencies of the outline's bumps
    phases: np.ndarray  # (3,)
    heights: np.ndarray  # (3,), bumps as a share of the radius
    reach: float  # pixels, no point of the cell is farther from the centre


def microscopy(
    seed: int, size: tuple[int, ...] = (256, 256), radius: float = MEAN_RADIUS
) -> tuple[np.ndarray, np.ndarray]:
    """Fluorescent cells: deformed, textured, touching; uneven light, haze, blur, photon and read noise.

    size (y, x) or (z, y, x); radius: mean radius of a cell in pixels. Returns image float32 of this size, which holds
    whole grey levels 0 to 255, and instances int32: 0 background, cells counted from 1, each in one piece.
    A few cells out of focus shine in the image and are not in the instances. Raises ValueError for a negative seed, a
    size that is not two or three numbers of at least 32 (z: at least 8), or a radius outside 2 to a third of the size.
    """
    shapes, noise = streams(seed)
    size = checked_size(size, (8, 32, 32))
    if not 2 <= radius <= min(size[-2:]) / 3:
        raise ValueError(f"radius is {radius}; for size {size} give 2 to {min(size[-2:]) / 3:.0f} pixels")
    instances, depth = _grow(shapes, size, radius)
    return _photograph(shapes, noise, instances, depth, radius), instances


def _draw_cell(random: np.random.Generator, centre: np.ndarray, radius: float) -> _Cell:
    """A deformed ellipsoid of random size, elongation and orientation."""
    dims = len(centre)
    half_lengths = radius * 2.0 ** uniform(random, -0.7, 0.6) * uniform(random, 0.75, 1.25, dims)
    directions = orthogonal(uniform(random, -1, 1, (dims, dims)))
    heights = uniform(random, 0, 0.09, 3)
    return _Cell(
        centre=centre,
        axes=directions / half_lengths[:, None],
        waves=uniform(random, -3.5, 3.5, (3, dims)),
        phases=uniform(random, 0, 2 * np.pi, 3),
        heights=heights,
        reach=float(half_lengths.max() * (1 + heights.sum())),
    )


def _rasterise(cell: _Cell, size: tuple[int, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box a cell lies in, and there the distance from its centre, 1 on its outline."""
    low = np.maximum(np.floor(cell.centre - cell.reach), 0).astype(int)
    high = np.minimum(np.ceil(cell.centre + cell.reach) + 1, size).astype(int)
    box = tuple(slice(start, max(start, stop)) for start, stop in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(*(np.arange(part.start, part.stop) for part in box), indexing="ij"), axis=-1)
    point = (grid - cell.centre) @ cell.axes.T
    distance = np.sqrt((point**2).sum(axis=-1))
    direction = point / np.maximum(distance, 1e-9)[..., None]
    bumps = (np.cos(direction @ cell.waves.T + cell.phases) * cell.heights).sum(axis=-1)
    return box, distance / (1 + bumps)


def _candidates(random: np.random.Generator, size: tuple[int, ...], radius: float) -> Iterator[_Cell]:
    """Cells to try, a share of them beside one that was offered before: that is how clusters form."""
    offered: list[_Cell] = []
    while True:
        cell = _draw_cell(random, random.random(len(size)) * size, radius)
        if offered and random.random() < TOUCHING:
            parent = offered[int(random.random() * len(offered))]
            towards = uniform(random, -1, 1, len(size))
            towards /= np.sqrt((towards**2).sum())
            gap = 1 / np.sqrt(((parent.axes @ towards) ** 2).sum()) + 1 / np.sqrt(((cell.axes @ towards) ** 2).sum())
            cell = cell._replace(centre=parent.centre + 0.95 * gap * towards)
        offered.append(cell)
        yield cell


def _grow(random: np.random.Generator, size: tuple[int, ...], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Place cells until they cover enough; returns instances int32 and the distance from each pixel's cell centre.

    Where two cells press on each other the pixel goes to the one whose centre is nearer in its own units.
    """
    owner = np.zeros(size, np.int32)
    nearest = np.ones(size)
    mean_cell = (np.pi if len(size) == 2 else 4 / 3 * np.pi) * radius ** len(size)
    # At most eight tries for each cell that would fit: a crowded image stops there.
    tries = max(8, int(8 * COVERAGE * owner.size / mean_cell))
    for number, cell in zip(range(1, tries + 1), _candidates(random, size, radius), strict=False):
        box, distance = _rasterise(cell, size)
        inside = distance < 1
        if not inside.any() or (inside & (owner[box] > 0)).sum() > MOST_OVERLAP * inside.sum():
            continue
        mine = distance < nearest[box]
        nearest[box][mine] = distance[mine]
        owner[box][mine] = number
        if (owner > 0).mean() >= COVERAGE:
            break
    instances = np.zeros(size, np.int32)
    for number, box in enumerate(ndimage.find_objects(owner), start=1):
        if box is None:
            continue
        pieces, count = ndimage.label(owner[box] == number)
        areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        if areas.max() >= SMALLEST_CELL * mean_cell:
            instances[box][pieces == areas.argmax() + 1] = instances.max() + 1
    return instances, np.where(instances > 0, nearest, 1.0)


def _photograph(
    random: np.random.Generator, noise: np.random.Generator, instances: np.ndarray, depth: np.ndarray, radius: float
) -> np.ndarray:
    """What a camera behind a fluorescence microscope records of these cells, in whole grey levels."""
    size = instances.shape
    psf = np.array([BLUR * AXIAL_BLUR] * (len(size) - 2) + [BLUR, BLUR])
    brightness = 2.0 ** uniform(random, -1.3, 1.0, int(instances.max()) + 1)
    # A cell is thick in its middle and thin at its rim: the light collected follows that thickness.
    thickness = 0.45 + 0.55 * np.sqrt(np.maximum(1 - depth**2, 0))
    texture = np.maximum(
        1 + 0.16 * smooth_field(random, size, 1.0) + 0.12 * smooth_field(random, size, radius / 3), 0.1
    )
    light = np.where(instances > 0, brightness[instances], 0) * thickness * texture
    blurred = ndimage.gaussian_filter(light, psf)

    elsewhere = np.zeros(size)
    for _ in range(round(OUT_OF_FOCUS * instances.max())):
        box, distance = _rasterise(_draw_cell(random, random.random(len(size)) * size, 1.3 * radius), size)
        elsewhere[box] += (distance < 1) * uniform(random, 0.3, 0.8)
    blurred += ndimage.gaussian_filter(elsewhere, 4 * psf)

    # Haze: a dark current of light everywhere, and light scattered far from where it came from.
    haze = uniform(random, 0.04, 0.15) + 0.25 * ndimage.gaussian_filter(light, 2.5 * radius)
    position = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in size[-2:]), indexing="ij"))
    lamp = uniform(random, -0.6, 0.6, 2)[:, None, None]  # where the beam's centre fell
    lit = (blurred + haze) * np.exp(-0.35 * ((position - lamp) ** 2).sum(axis=0))

    photons = lit / np.quantile(lit, 0.995) * 2.0 ** uniform(random, 5.0, 8.5)  # dim exposures are the noisy ones
    electrons = noise.poisson(photons) + READ_NOISE * noise.standard_normal(size)
    # The camera's black level keeps read noise above zero; the brightest half per cent saturates.
    level = 0.04 + 0.9 * electrons / np.quantile(electrons, 0.995)
    return whole_levels(level * GREY_LEVELS, GREY_LEVELS).astype(np.float32)


def convert(source: Path | None, out: Path, track: Track = iter) -> dict:
    """Make the images and write them to `out`; `source` is None, there is nothing to read. Returns facts to record."""
    cells = 0
    for number, part in numbered(RECIPE.name, source, TRAINING, TEST, track):
        image, instances = microscopy(SEED + number, SIZE)
        label = interior_and_boundary(instances)
        write_case(out, part, f"cells_{number:03d}", image.astype(np.uint8), label, instances)
        cells += int(instances.max())
    return {"seed": SEED, "cells": cells}


RECIPE = Recipe(
    name="phantom_microscopy",
    dataset_id=903,
    title="Fluorescent cells made here: touching, unevenly lit, blurred, noisy",
    modality="fluorescence microscopy (made here)",
    spatial_dims=2,
    channel_names=("fluorescence",),
    labels=LABELS,
    colours=COLOURS,
    metrics=METRICS,
    tolerances=TOLERANCES,
    spacing_unit="pixel",
    file_ending=".png",
    licence="CC0 1.0",
    citation="xLSTM-UNet Lab, data_recipes.phantom_microscopy",
    homepage="",
    convert=convert,
)
