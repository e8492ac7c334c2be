"""Abdominal MRI made here: eight organs, thick slices, changing contrast; only position tells the kidneys apart.

Positions are mm in the order (z, y, x), which run superior, anterior, right: an array index that grows along x goes
from the patient's left to the right, as NIfTI's axes do here, so liver and right kidney lie at the larger x.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from data_recipes.shared import phantom_physics as physics
from data_recipes.shared.phantom_physics import Anatomy, uniform
from data_recipes.shared.writing import write_volume
from xlstm_unet_lab.data.recipe import Recipe, Track

SEED = 9010
TRAINING, TEST = 24, 8
SIZE = (24, 96, 128)
FIELD_OF_VIEW = (192.0, 288.0, 384.0)  # mm
SLICE = 8.0  # mm, thickness of the one slice of a 2-D image
SUBSLICES = 3  # the signal of a thick slice is the mean of so many thin ones: partial volume
LOWEST_LEVEL, HIGHEST_LEVEL = 200, 900  # grey levels of bright tissue: an MRI has no unit

ORGANS = {  # colour (Okabe and Ito's, and Tol's wine), and tolerance in mm (of the AMOS protocol)
    "liver": ("#D55E00", 5.0),
    "right kidney": ("#0072B2", 3.0),
    "spleen": ("#CC79A7", 3.0),
    "pancreas": ("#F0E442", 5.0),
    "aorta": ("#56B4E9", 2.0),
    "gallbladder": ("#009E73", 2.0),
    "stomach": ("#882255", 5.0),
    "left kidney": ("#E69F00", 3.0),
}
LABELS = {name: value for value, name in enumerate(("background", *ORGANS))}
# Proton density, T1 and T2 in ms. Solid tissues at 3.0 T: de Bazelaire et al., Radiology 230 (2004). Fluids, blood,
# lung and gas are rough, and the densities as well.
TISSUES = {
    "air": (0.0, 1.0, 1.0),
    "fat": (1.0, 382.0, 68.0),
    "muscle": (0.8, 898.0, 29.0),
    "lung": (0.15, 1200.0, 30.0),
    "marrow": (0.8, 586.0, 49.0),
    "liver": (0.8, 809.0, 34.0),
    "spleen": (0.85, 1328.0, 61.0),
    "pancreas": (0.8, 725.0, 43.0),
    "cortex": (0.85, 1142.0, 76.0),
    "medulla": (0.9, 1545.0, 81.0),
    "wall": (0.8, 1000.0, 50.0),
    "blood": (0.9, 1700.0, 150.0),
    "bile": (1.0, 2000.0, 400.0),
    "juice": (1.0, 2800.0, 500.0),
    "nerve water": (1.0, 4000.0, 1500.0),
}
TISSUE = {name: number for number, name in enumerate(TISSUES)}


def scene(seed: int, size: tuple[int, ...] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One patient: image int16 and label uint8 of this size, (z, y, x), or (y, x) for a slice through the kidneys.

    The field of view stays the same, so the size decides the voxels. Contrast is T1- or T2-weighted,
    with or without fat suppression; the receive coil is uneven, noise is Rician.
    Raises ValueError for a negative seed or a size below (8, 48, 64).
    """
    shapes, picture = physics.streams(seed)
    size = physics.checked_size(size, (8, 48, 64))
    grid = (size[0] if len(size) == 3 else 1, *size[-2:])
    spacing = (SLICE, *physics.spacing_of(size, FIELD_OF_VIEW))[-3:]
    middles = physics.positions(grid, spacing)
    moved = physics.displacement(shapes, middles, 6.0, (120, 300)) + physics.displacement(
        shapes, middles, 2.0, (35, 80)
    )
    points = physics.positions((SUBSLICES * grid[0], *grid[1:]), (spacing[0] / SUBSLICES, *spacing[1:]))
    body = Anatomy(points + np.repeat(moved, SUBSLICES, axis=0))
    inside = _paint_trunk(shapes, body)
    _paint_organs(shapes, body, inside)
    _paint_midline(shapes, body)
    for side in (1, -1):
        _paint_kidney(shapes, body, side)
    label = body.label[SUBSLICES // 2 :: SUBSLICES]
    return _scan(picture, body.tissue, grid).reshape(size), label.reshape(size).copy()


def _around(random: np.random.Generator, centre: tuple, jitter: float = 6.0) -> np.ndarray:
    return np.array(centre, float) + uniform(random, -jitter, jitter, 3)


def _lengths(random: np.random.Generator, half_lengths: tuple) -> np.ndarray:
    return np.array(half_lengths) * uniform(random, 0.85, 1.15, 3)


def _tilt(random: np.random.Generator, most: float = 0.3) -> np.ndarray:
    return physics.orthogonal(np.eye(3) + uniform(random, -most, most, (3, 3)))


def _paint_trunk(random: np.random.Generator, body: Anatomy) -> np.ndarray:
    """Fat, muscle wall, lungs, bowel; returns where organs have room: inside the wall and under the diaphragm."""
    z, y, x = np.moveaxis(body.points, -1, 0)
    width, depth = uniform(random, 150, 172), uniform(random, 98, 116)
    outline = ((np.abs(x) / width) ** 2.4 + (np.abs(y) / depth) ** 2.4) ** (1 / 2.4)
    skin = 1 - uniform(random, 0.08, 0.17)  # how thick the fat under the skin is differs most between people
    cavity = outline < skin - 0.07
    everywhere = (slice(None),) * 3
    for within, tissue in ((outline < 1, "fat"), (outline < skin, "muscle"), (cavity, "fat")):
        body.paint(everywhere, within, TISSUE[tissue])
    dome = np.sqrt(((z + 50) / uniform(random, 112, 132)) ** 2 + (y / 115) ** 2 + (x / 165) ** 2) < 1
    body.paint(everywhere, cavity & ~dome & (z > 0), TISSUE["lung"])
    for _ in range(24):
        centre = np.array([uniform(random, *span) for span in ((-100, 5), (-5, 65), (-100, 100))])
        box, distance = body.ellipsoid(centre, uniform(random, 12, 26, 3), _tilt(random, 1.0))
        room = cavity[box] & dome[box]
        body.paint(box, room & (distance < 1), TISSUE["wall"])
        content = ("juice", "air", "wall")[int(3 * random.random())]
        body.paint(box, room & (distance < 0.8), TISSUE[content])
    return cavity & dome


def _paint_organs(random: np.random.Generator, body: Anatomy, inside: np.ndarray) -> None:
    """Spleen, stomach, pancreas, liver and gallbladder."""

    def paint(shape: tuple, tissue: str, organ: str, threshold: float = 1.0) -> None:
        box, distance = shape
        body.paint(box, (distance < threshold) & inside[box], TISSUE[tissue], LABELS[organ])

    spleen = body.ellipsoid(_around(random, (35, -28, -108)), _lengths(random, (46, 40, 23)), _tilt(random))
    paint(spleen, "spleen", "spleen")
    # The stomach: two pouches; the patient lies on the back, so gas gathers at the front over a level of juice.
    pouches = [
        body.ellipsoid(_around(random, (48, 12, -72)), _lengths(random, (36, 36, 38)), _tilt(random)),
        body.ellipsoid(_around(random, (8, 42, -28)), _lengths(random, (24, 22, 46)), _tilt(random)),
    ]
    level = uniform(random, 25, 50)
    for pouch in pouches:
        paint(pouch, "wall", "stomach")
    for box, distance in pouches:
        for content, side in (("juice", 1), ("air", -1)):
            within = (distance < 0.85) & inside[box] & (side * body.points[box][..., 1] < side * level)
            body.paint(box, within, TISSUE[content], LABELS["stomach"])
    path = [_around(random, centre, 4) for centre in ((-14, 10, 40), (4, 20, 8), (14, 6, -35), (26, -12, -80))]
    box, distance = body.tube(path, uniform(random, 0.9, 1.2) * np.array([14, 9, 10, 8]))
    lobules = 1 + 0.25 * physics.ripples(random, body.points[box], (10, 22))
    paint((box, distance / lobules), "pancreas", "pancreas")
    lobes = [
        body.ellipsoid(_around(random, (24, 0, 76)), _lengths(random, (72, 74, 66)), _tilt(random, 0.15)),
        body.ellipsoid(_around(random, (40, 40, 0)), _lengths(random, (34, 30, 64)), _tilt(random, 0.15)),
    ]
    for lobe in lobes:
        paint(lobe, "liver", "liver")
    # Where two surfaces cross they leave lines: branching vessels.
    box = lobes[0][0]
    first, second = (physics.ripples(random, body.points[box], (28, 60), 6) for _ in range(2))
    vessel = (np.sqrt(first**2 + second**2) < 0.09) & (body.label[box] == LABELS["liver"])
    body.paint(box, vessel, TISSUE["blood"], LABELS["liver"])
    gallbladder = body.ellipsoid(_around(random, (-14, 42, 62)), _lengths(random, (28, 17, 15)), _tilt(random))
    paint(gallbladder, "wall", "gallbladder")
    paint(gallbladder, "bile", "gallbladder", 0.85)


def _paint_midline(random: np.random.Generator, body: Anatomy) -> None:
    """Spine, muscles of the back, aorta, and the vena cava: it looks like the aorta and is not labelled."""
    y, x = uniform(random, -62, -54), uniform(random, -4, 4)

    def column(y: float, x: float, radius: float, tissue: str, label: int = 0) -> None:
        path = [(level, y + uniform(random, -3, 3), x + uniform(random, -3, 3)) for level in (-160, 0, 160)]
        box, distance = body.tube(path, [radius] * 3)
        body.paint(box, distance < 1, TISSUE[tissue], label)

    for side in (-1, 1):
        column(y - 16, x + side * uniform(random, 33, 38), uniform(random, 20, 25), "muscle")
    column(y, x, uniform(random, 18, 22), "marrow")
    column(y - 24, x, 14, "muscle")
    column(y - 22, x, uniform(random, 7, 9), "nerve water")
    column(y + 33, x + uniform(random, 14, 20), uniform(random, 9, 12), "blood")
    column(y + 34, x - uniform(random, 6, 12), uniform(random, 8, 11), "blood", LABELS["aorta"])


def _paint_kidney(random: np.random.Generator, body: Anatomy, side: int) -> None:
    """The kidney of the right (side 1) or left (-1): both are drawn alike, mirrored, so that only the side differs."""
    mirror = np.array([1, 1, side])
    label = LABELS["right kidney" if side > 0 else "left kidney"]
    centre = _around(random, (-22, -42, 64), 8.0)
    half_lengths, axes = _lengths(random, (52, 25, 27)), _tilt(random)
    box, distance = body.ellipsoid(centre * mirror, half_lengths, axes * mirror)
    body.paint(box, distance < 1, TISSUE["cortex"], label)
    pyramids = physics.ripples(random, body.points[box] * mirror, (14, 24)) > -0.05
    body.paint(box, (distance < 0.78) & pyramids, TISSUE["medulla"], label)
    sinus, depth = body.ellipsoid((centre - (0, 0, 8)) * mirror, half_lengths * (0.5, 0.38, 0.45), axes * mirror)
    body.paint(sinus, (depth < 1) & (body.label[sinus] == label), TISSUE["fat"], label)


def _scan(random: np.random.Generator, tissue: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """What a scanner makes of the tissues: a spin-echo sequence of random times, coil, blur and noise; int16."""
    table = np.array(list(TISSUES.values())) * uniform(random, 0.9, 1.1, (len(TISSUES), 3))
    table[TISSUE["blood"], 0] *= uniform(random, 0.1, 1)  # flowing blood may leave the slice before its echo
    table[TISSUE["bile"], 1] *= uniform(random, 0.2, 1)  # bile thickens while fasting
    if random.random() < 0.5:
        table[TISSUE["fat"], 0] *= uniform(random, 0.1, 0.3)  # fat suppression
    t1_weighted = random.random() < 0.5
    repetition = uniform(random, *((300, 600) if t1_weighted else (2500, 4500)))
    echo = uniform(random, *((8, 15) if t1_weighted else (55, 85)))
    thin = physics.mri_signal(table, repetition, echo)[tissue]
    signal = thin.reshape(grid[0], SUBSLICES, *grid[1:]).mean(axis=1)
    signal *= 1 + 0.05 * physics.smooth_field(random, grid, (0.5, 1.0, 1.0))
    signal = ndimage.gaussian_filter(signal, (0, 0.5, 0.5)) * physics.bias_field(
        random, grid, uniform(random, 0.2, 0.5)
    )
    signal *= uniform(random, LOWEST_LEVEL, HIGHEST_LEVEL) / np.quantile(signal, 0.98)
    noisy = physics.rician(random, signal, np.quantile(signal, 0.98) * uniform(random, 0.015, 0.06))
    return physics.whole_levels(noisy, np.iinfo(np.int16).max).astype(np.int16)


def convert(source: Path | None, out: Path, track: Track = iter) -> dict:
    """Make the volumes and write them to `out`; `source` is None, there is nothing to read. Returns facts to record."""
    import nibabel

    spacing = physics.spacing_of(SIZE, FIELD_OF_VIEW)
    affine = physics.affine_of(SIZE, spacing)
    for number, part in physics.numbered(RECIPE.name, source, TRAINING, TEST, track):
        image, label = (nibabel.Nifti1Image(array.T, affine) for array in scene(SEED + number, SIZE))
        write_volume(out, part, f"abdomen_{number:03d}", [image], label, set(LABELS.values()))
    return {"seed": SEED, "spacing": list(spacing)}


RECIPE = Recipe(
    name="phantom_abdomen",
    dataset_id=901,
    title="Abdominal MRI made here: 8 organs, thick slices, left and right that only position tells apart",
    modality="MRI (made here)",
    spatial_dims=3,
    channel_names=("MRI",),
    labels=LABELS,
    colours={name: colour for name, (colour, _) in ORGANS.items()},
    metrics=("dice", "surface_dice"),
    tolerances={name: tolerance for name, (_, tolerance) in ORGANS.items()},
    spacing_unit="mm",
    file_ending=".nii.gz",
    licence="CC0 1.0",
    citation="xLSTM-UNet Lab, data_recipes.phantom_abdomen",
    homepage="",
    convert=convert,
    flip_axes=(),  # no mirror image of a patient is a patient: liver right, spine behind, lungs above
)
