"""Brain MRI made here: four contrasts of one head with a tumour of nested regions.

Positions are mm in the order (z, y, x), which run superior, anterior, right.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_recipes.shared import phantom_physics as physics
from data_recipes.shared.phantom_physics import Anatomy, ripples, uniform
from data_recipes.shared.writing import write_volume
from xlstm_unet_lab.data.recipe import Recipe, Track

SEED = 9040
TRAINING, TEST = 24, 8
SIZE = (32, 96, 80)
FIELD_OF_VIEW = (64.0, 192.0, 160.0)  # mm: a slab of the head, 2 mm voxels at SIZE
LOWEST_LEVEL, HIGHEST_LEVEL = 300, 1500  # grey levels of bright tissue: an MRI has no unit

LABELS = {"background": 0, "necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
# Proton density, T1 and T2 in ms, about those at 1.5 T; textbook values, rough for the tumour.
TISSUES = {
    "air": (0.0, 1.0, 1.0),
    "fat": (1.0, 260.0, 70.0),
    "bone": (0.06, 400.0, 20.0),
    "water": (1.0, 4000.0, 1800.0),
    "grey": (0.82, 1150.0, 95.0),
    "white": (0.7, 600.0, 80.0),
    "blood": (0.25, 1500.0, 40.0),  # it flows away before its echo
    "core": (0.95, 2300.0, 300.0),
    "oedema": (0.92, 1350.0, 170.0),
    "rim": (0.88, 1250.0, 115.0),
}
TISSUE = {name: number for number, name in enumerate(TISSUES)}
ENHANCED = {"blood": (0.9, 250.0, 60.0), "rim": (0.88, 350.0, 100.0)}  # with contrast agent: a short T1


class Sequence(NamedTuple):
    repetition: float  # ms
    echo: float  # ms
    inversion: float | None = None  # ms
    contrast_agent: bool = False


SEQUENCES = {
    "t1n": Sequence(550, 12),
    "t1c": Sequence(550, 12, contrast_agent=True),
    "t2w": Sequence(4500, 95),
    "t2f": Sequence(9000, 110, inversion=2400),  # water's signal is nothing 2,400 ms after it was turned over
}


class Tumour(NamedTuple):
    centre: np.ndarray  # mm
    half_lengths: np.ndarray  # mm, of the enhancing rim's outside
    axes: np.ndarray


def scene(seed: int, size: tuple[int, ...] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One patient: image int16 (4, *size) and label uint8 of this size, (z, y, x), or (y, x) for a slice.

    The channels are t1n, t1c, t2w and t2f; a 2-D slice passes through the middle of the tumour. The field of view
    stays the same, so the size decides the voxels. The tumour pushes what is around it aside.
    Raises ValueError for a negative seed or a size below (8, 48, 40).
    """
    shapes, picture = physics.streams(seed)
    size = physics.checked_size(size, (8, 48, 40))
    grid = (size[0] if len(size) == 3 else 1, *size[-2:])
    tumour = _draw_tumour(shapes)
    spacing = (2.0, *physics.spacing_of(size, FIELD_OF_VIEW))[-3:]
    middle = (8.0 if len(size) == 3 else tumour.centre[0], 0, 0)
    points = physics.positions(grid, spacing) + middle
    before = _pushed_back(shapes, points, tumour)
    head = Anatomy(before + physics.displacement(shapes, before, 2.0, (80, 240)))
    inside = _paint_head(shapes, head)
    _paint_tumour(shapes, head, points, tumour, inside)
    return _scan(picture, head.tissue, spacing).reshape(4, *size), head.label.reshape(size)


def _draw_tumour(random: np.random.Generator) -> Tumour:
    side = 1 if random.random() < 0.5 else -1
    centre = np.array([uniform(random, 0, 24), uniform(random, -38, 36), side * uniform(random, 20, 38)])
    half_lengths = uniform(random, 11, 20) * uniform(random, 0.8, 1.2, 3)
    return Tumour(centre, half_lengths, physics.orthogonal(uniform(random, -1, 1, (3, 3))))


def _pushed_back(random: np.random.Generator, points: np.ndarray, tumour: Tumour) -> np.ndarray:
    """Where the tissue now at each point was before the tumour grew: nearer to the tumour's centre (mass effect)."""
    away = points - tumour.centre
    squares = (away**2).sum(axis=-1, keepdims=True) / (2 * tumour.half_lengths.max()) ** 2
    return points - uniform(random, 0.0, 0.4) * np.exp(-squares) * away


def _paint_head(random: np.random.Generator, head: Anatomy) -> np.ndarray:
    """Scalp, skull, folded cortex, white matter, deep grey matter, ventricles; returns where the brain is."""
    everywhere = (slice(None),) * 3
    outer = np.array([96, 91, 74]) * uniform(random, 0.95, 1.0, 3)
    for inward, tissue in ((0, "fat"), (6, "bone"), (12, "water")):
        box, distance = head.ellipsoid((0, 0, 0), outer - inward)
        head.paint(box, distance < 1, TISSUE[tissue])
    half_lengths = outer - uniform(random, 14, 17)
    _, distance = head.ellipsoid((0, 0, 0), 2 * half_lengths)  # the double one, so that its box is the whole grid
    depth = (1 - 2 * distance) * half_lengths.mean()  # mm under the surface of the brain, about
    x = head.points[..., 2]
    # Cortex lies along the surface and along furrows that reach inwards: lines where a smooth field is zero.
    furrow = np.abs(ripples(random, head.points, (16, 34), 10)) / 0.2
    fissure = (np.abs(x) < 1.2) & (depth < 45)
    brain = (depth > 0) & ~fissure
    head.paint(everywhere, brain, TISSUE["white"])
    cortex = (depth < 3.5) | ((furrow < 0.75) & (depth < 17)) | ((np.abs(x) < 4) & (depth < 45))
    head.paint(everywhere, brain & cortex, TISSUE["grey"])
    head.paint(everywhere, brain & (furrow < 0.2) & (depth < 14), TISSUE["water"])
    box, distance = head.tube([(60, 14 - outer[1], 0), (-40, 14 - outer[1], 0)], [4, 4])
    head.paint(box, distance < 1, TISSUE["blood"])  # the great vein behind: it takes up contrast agent as the rim does
    swelling = uniform(random, 0.8, 1.5)
    for side in (-1, 1):
        for centre, lengths in (((3, -10, 13), (9, 14, 9)), ((6, 10, 25), (13, 19, 6)), ((14, 18, 14), (9, 10, 5))):
            box, distance = head.ellipsoid(np.multiply(centre, (1, 1, side)), lengths)
            head.paint(box, distance < 1, TISSUE["grey"])
        path = [(14, 34, 10), (20, 12, 7), (22, -14, 9), (14, -34, 20), (6, -50, 24)]
        box, distance = head.tube(np.multiply(path, (1, 1, side)), swelling * np.array([3.5, 5, 5, 6, 3]))
        head.paint(box, (distance < 1) & brain[box], TISSUE["water"])
    box, distance = head.ellipsoid((0, -4, 0), (12, 13, 1.5 + swelling))
    head.paint(box, distance < 1, TISSUE["water"])
    return brain


def _paint_tumour(
    random: np.random.Generator, head: Anatomy, points: np.ndarray, tumour: Tumour, brain: np.ndarray
) -> None:
    """Oedema along the white matter, in it the enhancing rim, in it the necrotic core, each with its own outline."""
    scaled = (points - tumour.centre) @ (tumour.axes / tumour.half_lengths[:, None]).T
    distance = np.sqrt((scaled**2).sum(axis=-1))
    rough, fingers, hollow = (ripples(random, points, span) for span in ((14, 40), (18, 45), (10, 30)))
    everywhere = (slice(None),) * 3
    swollen = distance < uniform(random, 1.6, 2.3) * (1 + 0.7 * fingers)
    head.paint(everywhere, swollen & (head.tissue == TISSUE["white"]), TISSUE["oedema"], LABELS["oedema"])
    solid = distance / (1 + 0.3 * rough)
    head.paint(everywhere, brain & (solid < 1), TISSUE["rim"], LABELS["enhancing tumour"])
    dead = solid < uniform(random, 0.45, 0.72) * (1 + 0.35 * hollow)
    dead &= ndimage.binary_erosion(brain & (solid < 1), np.ones((1, 3, 3)), border_value=1)
    head.paint(everywhere, dead, TISSUE["core"], LABELS["necrotic core"])


def _scan(random: np.random.Generator, tissue: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """The four sequences as a scanner gives them: one coil, and a scale and noise of each; int16 (4, *grid)."""
    grid = tissue.shape
    table = np.array(list(TISSUES.values())) * uniform(random, 0.94, 1.06, (len(TISSUES), 3))
    table[TISSUE["water"], 1] = TISSUES["water"][1]  # water is the same in every head: t2f can be tuned to it
    enhanced = table.copy()
    for name, values in ENHANCED.items():
        enhanced[TISSUE[name]] = np.array(values) * uniform(random, 0.9, 1.1)
    coil = physics.bias_field(random, grid, uniform(random, 0.15, 0.4))
    grain = 1 + 0.05 * physics.smooth_field(random, grid, 1.0)
    channels = []
    for repetition, echo, inversion, contrast_agent in SEQUENCES.values():
        brightness = physics.mri_signal(enhanced if contrast_agent else table, repetition, echo, inversion)
        # Voxels at a border hold a mixture, and the scanner's own resolution is about one of them.
        signal = ndimage.gaussian_filter(brightness[tissue] * grain, [1.0 / step for step in spacing]) * coil
        bright = np.quantile(signal, 0.98)
        noisy = physics.rician(random, signal, bright * uniform(random, 0.015, 0.04))
        channels.append(noisy * (uniform(random, LOWEST_LEVEL, HIGHEST_LEVEL) / bright))
    return physics.whole_levels(np.stack(channels), np.iinfo(np.int16).max).astype(np.int16)


def convert(source: Path | None, out: Path, track: Track = iter) -> dict:
    """Make the volumes and write them to `out`; `source` is None, there is nothing to read. Returns facts to record."""
    import nibabel

    spacing = physics.spacing_of(SIZE, FIELD_OF_VIEW)
    affine = physics.affine_of(SIZE, spacing)
    for number, part in physics.numbered(RECIPE.name, source, TRAINING, TEST, track):
        image, label = scene(SEED + number, SIZE)
        volumes = [nibabel.Nifti1Image(channel.T, affine) for channel in image]
        truth = nibabel.Nifti1Image(label.T, affine)
        write_volume(out, part, f"brain_{number:03d}", volumes, truth, set(LABELS.values()))
    return {"seed": SEED, "spacing": list(spacing)}


RECIPE = Recipe(
    name="phantom_brain",
    dataset_id=904,
    title="Brain MRI made here: four contrasts, a tumour of nested regions",
    modality="MRI (made here)",
    spatial_dims=3,
    channel_names=tuple(SEQUENCES),
    labels=LABELS,
    colours={"necrotic core": "#D55E00", "oedema": "#009E73", "enhancing tumour": "#F0E442"},
    regions={"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)},
    painted=(2, 1, 3),
    metrics=("dice", "surface_dice"),
    tolerances={"whole tumour": 2.0, "tumour core": 2.0, "enhancing tumour": 2.0},  # mm, one voxel
    spacing_unit="mm",
    file_ending=".nii.gz",
    licence="CC0 1.0",
    citation="xLSTM-UNet Lab, data_recipes.phantom_brain",
    homepage="",
    convert=convert,
    flip_axes=(2,),  # x: heads are nearly the same on both sides, and a tumour may grow on either
)
