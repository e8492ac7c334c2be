"""Endoscopy made here: wet tissue with vessels, instruments of three types whose tips tell them apart."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_recipes.shared.phantom_physics import (
    checked_size,
    complex_noise,
    numbered,
    positions,
    smooth_field,
    streams,
    uniform,
    whole_levels,
)
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.recipe import Recipe, Track

SEED = 9020
TRAINING, TEST = 40, 12
SIZE = (192, 256)
GREY_LEVELS = 255
FULL_WELL = 2500.0  # electrons of a saturated pixel: what decides how noisy the rest is
GAMMA = 1 / 2.2

LABELS = {"background": 0, "grasper": 1, "scissors": 2, "needle driver": 3}
TISSUE_RED, TISSUE_PALE, VESSEL = np.array([(0.52, 0.11, 0.09), (0.72, 0.36, 0.24), (0.30, 0.02, 0.03)])
SHAFT, STEEL, GOLD = np.array([(0.035, 0.035, 0.04), (0.42, 0.43, 0.46), (0.55, 0.38, 0.12)])  # linear light


class Jaws(NamedTuple):
    """The shape of a tip; lengths in half widths of the shaft."""

    length: tuple[float, float]
    thickness: float  # half of it, at the joint
    sharpness: float  # 0 keeps the thickness to the round end, 1 runs evenly to a point
    bend: float  # how far the end curves inwards, as a share of the length
    opening: tuple[float, float]  # half the angle between the jaws, radians


JAWS = {
    "grasper": Jaws((4.2, 5.0), 0.50, 0.25, 0.05, (0.12, 0.42)),
    "scissors": Jaws((4.4, 5.4), 0.46, 1.0, 0.10, (0.22, 0.55)),
    "needle driver": Jaws((2.2, 2.8), 0.62, 0.12, 0.0, (0.03, 0.22)),
}


class Instrument(NamedTuple):
    kind: str
    joint: np.ndarray  # (2,), pixels from the middle of the image (y, x)
    along: np.ndarray  # (2,), unit vector from the shaft to the tip
    half_width: float  # pixels, of the shaft
    opening: float  # radians
    length: float  # pixels, of the jaws


def scene(seed: int, size: tuple[int, ...] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One frame: image uint8 (y, x, 3) and label uint8 (y, x), each instrument labelled whole with its type.

    One to three instruments enter from the border. The lamp sits beside the lens, so light falls off outwards and wet
    surfaces that face the lens glare; near or far is out of focus; the frame may be blurred by motion.
    Raises ValueError for a negative seed, a size that is not (y, x), or one below (96, 96).
    """
    shapes, picture = streams(seed)
    size = checked_size(size, (1, 96, 96))
    if len(size) != 2:
        raise ValueError(f"size is {size}; an endoscope sees no third dimension, give (y, x)")
    points = positions(size, (1.0, 1.0))
    instruments = _draw_instruments(shapes, size)
    label = np.zeros(size, np.uint8)
    light = _tissue(picture, points)
    focus = uniform(picture, 0, 1)  # 0: the instruments are sharp, 1: the tissue behind them
    light = ndimage.gaussian_filter(light, (1.6 * (1 - focus), 1.6 * (1 - focus), 0))
    for instrument in instruments:
        colour, covered = _instrument(picture, instrument, points)
        label[covered] = LABELS[instrument.kind]
        light = _composed(light, colour, covered, 0.4 + 1.2 * focus, shadow=0.5 * instrument.half_width)
    return _photograph(picture, light, points), label


def _draw_instruments(random: np.random.Generator, size: tuple[int, ...]) -> list[Instrument]:
    """Up to three instruments, from directions that keep them apart; their joints lie around the middle."""
    count, short = 1 + int(3 * random.random()), min(size)
    turn = uniform(random, 0, 2 * np.pi)
    instruments = []
    for position in range(count):
        kind = list(JAWS)[int(len(JAWS) * random.random())]
        angle = turn + 2 * np.pi * (position + uniform(random, -0.25, 0.25)) / count
        outwards = np.array([np.sin(angle), np.cos(angle)])
        joint = outwards * uniform(random, 0.1, 0.26) * short + uniform(random, -0.08, 0.08, 2) * short
        swing = uniform(random, -0.35, 0.35)
        along = -outwards @ np.array([[np.cos(swing), -np.sin(swing)], [np.sin(swing), np.cos(swing)]])
        half_width = uniform(random, 0.036, 0.056) * short
        opening, length = uniform(random, *JAWS[kind].opening), uniform(random, *JAWS[kind].length) * half_width
        instruments.append(Instrument(kind, joint, along, half_width, opening, length))
    return instruments


def _tissue(random: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Folded, wet tissue lit from the lens: linear light (y, x, 3)."""
    size = points.shape[:-1]
    scale = min(size) / 192
    height = sum(
        weight * scale * smooth_field(random, size, grain * scale)
        for weight, grain in ((13.0, 26.0), (2.2, 9.0), (0.18, 2.0))
    )
    slopes = np.stack(np.gradient(height), axis=-1)
    facing = 1 / np.sqrt(1 + (slopes**2).sum(axis=-1))  # the cosine between the surface and the direction of the lens
    pale = 1 / (1 + np.exp(-2.5 * smooth_field(random, size, 20 * scale) + 1))[..., None]
    colour = TISSUE_RED + (TISSUE_PALE - TISSUE_RED) * pale
    # Vessels run where a smooth field is zero; a second field thins them out and ends them.
    for grain, width in ((15.0, 0.10), (6.5, 0.14)):
        line = np.abs(smooth_field(random, size, grain * scale))
        widths = width * np.clip(0.7 + 0.7 * smooth_field(random, size, 2 * grain * scale), 0, 1.5)
        vessel = np.clip(1.5 - line / np.maximum(widths, 1e-6), 0, 1)[..., None]
        colour = colour + 0.75 * vessel * (VESSEL - colour)
    colour = colour * (1 + 0.07 * smooth_field(random, size, 1.2 * scale))[..., None]
    # Glare: a film of fluid mirrors the lamp wherever the finer relief happens to face the lens.
    film = np.stack(np.gradient(height + 0.5 * scale * smooth_field(random, size, 3.5 * scale)), axis=-1)
    glare = np.exp(-(film**2).sum(axis=-1) / 0.011) * (smooth_field(random, size, 14 * scale) > 0.35)
    return colour * facing[..., None] ** 1.5 + 1.3 * ndimage.gaussian_filter(glare, 0.6)[..., None]


def _instrument(
    random: np.random.Generator, instrument: Instrument, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Its light (y, x, 3) and the pixels it covers (y, x), seen from above: a dark shaft, a steel wrist, two jaws."""
    along, width, jaws = instrument.along, instrument.half_width, JAWS[instrument.kind]
    across = np.array([-along[1], along[0]])
    s, t = (points - instrument.joint) @ along / width, (points - instrument.joint) @ across / width
    colour, covered = np.zeros((*s.shape, 3)), np.zeros(s.shape, bool)
    lamp = uniform(random, -0.4, 0.4)  # where across a round bar the lamp is mirrored
    brushed = 1 + 0.12 * smooth_field(random, s.shape, 1.0)

    def add(inside: np.ndarray, offset: np.ndarray, metal: np.ndarray, gloss: float) -> None:
        """A round bar: `offset` runs from -1 to 1 across it, and decides how far its surface turns away."""
        offset = offset[inside]
        shade = 0.3 + 0.7 * np.sqrt(np.maximum(1 - offset**2, 0))
        mirrored = gloss * np.exp(-(((offset - lamp) / 0.16) ** 2))
        colour[inside] = (metal * shade[:, None] + mirrored[:, None]) * brushed[inside][:, None]
        covered[inside] = True

    for side in (-1, 1):
        turned = side * instrument.opening
        u = (s * np.cos(turned) + t * np.sin(turned)) * width / instrument.length  # 0 at the joint, 1 at the end
        v = t * np.cos(turned) - s * np.sin(turned) + side * jaws.bend * u**2 * instrument.length / width
        end = np.sqrt(np.clip((1 - u) / 0.12, 0, 1))
        half = jaws.thickness * (1 - jaws.sharpness * np.clip(u, 0, 1)) * end
        half = np.maximum(half, 0.7 / width)  # a point thinner than a pixel would fall to pieces
        blade = (u > -0.1) & (u < 1) & (np.abs(v) < half)
        add(blade, v / half, STEEL, 0.9)
        if instrument.kind == "grasper":  # a window in each jaw
            colour[blade & (np.abs(u - 0.55) < 0.22) & (np.abs(v) < 0.45 * half)] *= 0.12
        if instrument.kind == "needle driver":  # hard inserts where the needle is held
            colour[blade & (u > 0.2) & (side * v < -0.1 * half)] *= GOLD / STEEL
    add((s > -2.6) & (s < 0.25) & (np.abs(t) < 0.86), t / 0.86, STEEL, 0.8)
    colour[(np.abs(s + 0.35) < 0.14) & (np.abs(t) < 0.86)] *= 0.25  # the joint of the wrist
    add((s <= -2.6) & (np.abs(t) < 1), t, SHAFT, 0.28)
    return colour, covered


def _composed(behind: np.ndarray, colour: np.ndarray, covered: np.ndarray, blur: float, shadow: float) -> np.ndarray:
    """An instrument laid over what is behind it, out of focus by `blur` pixels, with the shadow it throws."""
    cover = covered.astype(float)
    dark = ndimage.gaussian_filter(ndimage.shift(cover, (shadow, shadow), order=1), shadow)
    behind = behind * (1 - 0.5 * dark[..., None])
    cover = ndimage.gaussian_filter(cover, blur)[..., None]
    return behind * (1 - cover) + ndimage.gaussian_filter(colour * covered[..., None], (blur, blur, 0))


def _photograph(random: np.random.Generator, light: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Light fall-off, smoke, motion blur, sensor noise, gamma: uint8 (y, x, 3)."""
    size = light.shape[:2]
    half = np.array(size).max() / 2
    centre = uniform(random, -0.15, 0.15, 2) * half
    radius = np.sqrt(((points - centre) ** 2).sum(axis=-1)) / half
    light = light * (1 + (uniform(random, 0.6, 1.1) * radius) ** 2)[..., None] ** -2
    smoke = uniform(random, 0, 0.08) * (1 + 0.5 * smooth_field(random, size, 0.15 * half))
    light = light * (1 - smoke[..., None]) + smoke[..., None] * 0.6
    length, angle = uniform(random, 0, 3.0), uniform(random, 0, np.pi)
    steps = np.linspace(-0.5, 0.5, 3)[:, None] * length * np.array([np.sin(angle), np.cos(angle)])
    light = sum(ndimage.shift(light, (*step, 0), order=1, mode="nearest") for step in steps) / len(steps)
    tint = uniform(random, 0.92, 1.08, 3)  # how the white balance was set
    electrons = np.clip(light * tint * uniform(random, 1.0, 1.7), 0, 1) * FULL_WELL
    # Photons arrive one by one: the variance of a count is the count. The read-out adds some of its own.
    electrons = electrons + np.sqrt(electrons + 8.0**2) * complex_noise(random, electrons.shape).real
    return whole_levels(np.clip(electrons / FULL_WELL, 0, 1) ** GAMMA * GREY_LEVELS, GREY_LEVELS).astype(np.uint8)


def convert(source: Path | None, out: Path, track: Track = iter) -> dict:
    """Make the frames and write them to `out`; `source` is None, there is nothing to read. Returns facts to record."""
    for number, part in numbered(RECIPE.name, source, TRAINING, TEST, track):
        write_case(out, part, f"frame_{number:03d}", *scene(SEED + number, SIZE))
    return {"seed": SEED}


RECIPE = Recipe(
    name="phantom_endoscopy",
    dataset_id=902,
    title="Endoscopy made here: instruments of three types over wet tissue",
    modality="endoscopy (made here)",
    spatial_dims=2,
    channel_names=("R", "G", "B"),
    labels=LABELS,
    colours={"grasper": "#0072B2", "scissors": "#E69F00", "needle driver": "#009E73"},  # told apart by the colour-blind
    metrics=("dice", "surface_dice"),
    tolerances={"grasper": 2.0, "scissors": 2.0, "needle driver": 2.0},  # pixels
    spacing_unit="pixel",
    file_ending=".png",
    licence="CC0 1.0",
    citation="xLSTM-UNet Lab, data_recipes.phantom_endoscopy",
    homepage="",
    convert=convert,
)
