"""What several phantoms share: random streams, smooth fields, anatomy painted shape by shape, MRI signal and noise.

Everything is drawn from uniform numbers in float64. Positions are in mm, in the order (z, y, x) of the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from xlstm_unet_lab.ops.checks import is_whole, tracked, whole_number

Box = tuple[slice, ...]


def streams(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Two independent random streams of one seed: for the shapes, and for the picture taken of them.

    Raises ValueError for a negative seed.
    """
    shapes, noise = np.random.SeedSequence(whole_number("seed", seed, at_least=0)).spawn(2)
    return np.random.Generator(np.random.PCG64(shapes)), np.random.Generator(np.random.PCG64(noise))


def numbered(
    name: str, source: Path | None, training: int, test: int, track: Callable[[Iterable], Iterable]
) -> Iterator[tuple[int, str]]:
    """The number of every case to make and the part it belongs to, "Tr" first, then "Ts".

    Raises ValueError when there is a source: what is made here reads nothing.
    """
    if source is not None:
        raise ValueError(f"{name} is made here and reads nothing; got source {source}")
    for number in tracked(track, [*range(training + test)]):
        yield number, "Tr" if number < training else "Ts"


def checked_size(size: Sequence[int], least: tuple[int, int, int]) -> tuple[int, ...]:
    """The size (y, x) or (z, y, x) as a tuple; ValueError unless each length is at least that of `least` (z, y, x)."""
    size = tuple(size)
    if len(size) not in (2, 3) or not all(map(is_whole, size, least[-len(size) :])):
        z, y, x = least
        rows = f"y and x at least {y}" if y == x else f"y at least {y}, x at least {x}"
        raise ValueError(f"size is {size}; give (y, x) or (z, y, x) with {rows} and z at least {z}")
    return tuple(map(int, size))


@overload
def uniform(random: np.random.Generator, low: float, high: float) -> float: ...
@overload
def uniform(random: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]) -> np.ndarray: ...
def uniform(
    random: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...] = ()
) -> np.ndarray | float:
    """Uniform numbers: the one distribution whose stream NumPy keeps from version to version."""
    return low + (high - low) * random.random(shape)


def orthogonal(rows: np.ndarray) -> np.ndarray:
    """The rows (dims, dims) made unit vectors at right angles, the first keeping its direction (Gram and Schmidt)."""
    rows = rows.copy()
    for row in range(len(rows)):
        for earlier in range(row):
            rows[row] -= (rows[row] @ rows[earlier]) * rows[earlier]
        rows[row] /= np.sqrt((rows[row] ** 2).sum())
    return rows


def smooth_field(random: np.random.Generator, size: tuple[int, ...], grain: float | Sequence[float]) -> np.ndarray:
    """A smooth random field of mean 0 and standard deviation 1 whose spots are `grain` pixels wide."""
    field = ndimage.gaussian_filter(random.random(size), grain, mode="wrap")
    return (field - field.mean()) / field.std()


def positions(size: tuple[int, ...], spacing: Sequence[float]) -> np.ndarray:
    """Where each voxel lies, (*size, dims) in the unit of `spacing`, counted from the middle of the grid."""
    axes = [(np.arange(length) - (length - 1) / 2) * step for length, step in zip(size, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def spacing_of(size: Sequence[int], field_of_view: Sequence[float]) -> tuple[float, ...]:
    """The lengths of a voxel when a grid of this size, (y, x) or (z, y, x), covers the last axes of a field of view."""
    return tuple(extent / length for extent, length in zip(field_of_view[-len(size) :], size, strict=True))


def affine_of(size: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """NIfTI's affine (4, 4) of a volume (z, y, x) whose x, y, z run right, anterior, superior, with 0 in its middle."""
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = [-(length - 1) / 2 * step for length, step in zip(size[::-1], spacing[::-1], strict=True)]
    return affine


def _waves(
    random: np.random.Generator, points: np.ndarray, wavelengths: tuple[float, float], count: int
) -> Iterator[np.ndarray]:
    """Sine waves in random directions at points (*size, dims), one at a time, for they are large."""
    directions = uniform(random, -1, 1, (count, points.shape[-1]))
    directions /= np.sqrt((directions**2).sum(axis=-1, keepdims=True))
    directions *= 2 * np.pi / uniform(random, *wavelengths, (count, 1))
    phases = uniform(random, 0, 2 * np.pi, count)
    return (np.sin(points @ direction + phase) for direction, phase in zip(directions, phases, strict=True))


def ripples(
    random: np.random.Generator, points: np.ndarray, wavelengths: tuple[float, float], count: int = 4
) -> np.ndarray:
    """The mean of `count` sine waves at points (*size, dims): (*size), smooth, between -1 and 1."""
    return sum(_waves(random, points, wavelengths, count), np.zeros(points.shape[:-1])) / count


def displacement(
    random: np.random.Generator, points: np.ndarray, amplitude: float, wavelengths: tuple[float, float], count: int = 4
) -> np.ndarray:
    """A smooth movement of points (*size, dims), about `amplitude` long: no two patients are shaped alike."""
    ways = uniform(random, -amplitude, amplitude, (count, points.shape[-1]))
    waves = zip(_waves(random, points, wavelengths, count), ways, strict=True)
    return sum((wave[..., None] * way for wave, way in waves), np.zeros(points.shape))


class Anatomy:
    """Tissue and label of every point of a grid, uint8; what is painted later covers what was painted earlier.

    points (*size, dims): the positions to look the shapes up at, displaced or not. Shapes answer with the box of the
    grid they may reach into and, in it, the distance from their centre or centre line: 1 on the surface.
    """

    def __init__(self, points: np.ndarray):
        self.points = points
        self.tissue = np.zeros(points.shape[:-1], np.uint8)
        self.label = np.zeros(points.shape[:-1], np.uint8)
        grid = range(points.ndim - 1)
        others = [tuple(other for other in grid if other != axis) for axis in grid]
        self._lows = [points[..., axis].min(axis=others[axis]) for axis in grid]
        self._highs = [points[..., axis].max(axis=others[axis]) for axis in grid]

    def box(self, low: np.ndarray, high: np.ndarray) -> Box:
        """The part of the grid outside which no point lies between the corners `low` and `high`."""
        box = []
        for lows, highs, start, stop in zip(self._lows, self._highs, low, high, strict=True):
            hit = np.flatnonzero((highs >= start) & (lows <= stop))
            box.append(slice(hit[0], hit[-1] + 1) if len(hit) else slice(0, 0))
        return tuple(box)

    def ellipsoid(
        self, centre: ArrayLike, half_lengths: ArrayLike, axes: np.ndarray | None = None
    ) -> tuple[Box, np.ndarray]:
        """An ellipsoid; axes (dims, dims) are the unit vectors that its half lengths (dims) go along."""
        middle, lengths = np.asarray(centre, float), np.asarray(half_lengths, float)
        axes = np.eye(len(middle)) if axes is None else axes
        reach = lengths.max()
        box = self.box(middle - reach, middle + reach)
        scaled = (self.points[box] - middle) @ (axes / lengths[:, None]).T
        return box, np.sqrt((scaled**2).sum(axis=-1))

    def tube(self, path: ArrayLike, radii: ArrayLike) -> tuple[Box, np.ndarray]:
        """A tube along straight pieces between the points of `path` (n, dims), its radii (n) change evenly between."""
        stops, widths = np.asarray(path, float), np.asarray(radii, float)
        box = self.box(stops.min(axis=0) - widths.max(), stops.max(axis=0) + widths.max())
        points = self.points[box]
        nearest = np.full(points.shape[:-1], np.inf)
        for start, stop, first, last in zip(stops[:-1], stops[1:], widths[:-1], widths[1:], strict=True):
            step = stop - start
            share = np.clip((points - start) @ step / (step @ step), 0, 1)
            distance = np.sqrt(((points - start - share[..., None] * step) ** 2).sum(axis=-1))
            nearest = np.minimum(nearest, distance / (first + share * (last - first)))
        return box, nearest

    def paint(self, box: Box, inside: np.ndarray, tissue: int, label: int = 0) -> None:
        """Give the points of `box` that are `inside` a tissue and a label."""
        self.tissue[box][inside] = tissue
        self.label[box][inside] = label


def mri_signal(tissues: np.ndarray, repetition: float, echo: float, inversion: float | None = None) -> np.ndarray:
    """The spin-echo signal (n) of tissues (n, 3): proton density, T1 and T2; all times in ms.

    With an inversion time: the magnitude after an inversion pulse, as in FLAIR. Source: the Bloch equations,
    S = PD (1 - exp(-TR/T1)) exp(-TE/T2), and S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2).
    """
    density, t1, t2 = tissues.T
    recovered = 1 - np.exp(-repetition / t1)
    if inversion is not None:
        recovered = np.abs(1 - 2 * np.exp(-inversion / t1) + np.exp(-repetition / t1))
    return density * recovered * np.exp(-echo / t2)


def bias_field(random: np.random.Generator, size: tuple[int, ...], strength: float) -> np.ndarray:
    """How bright a receive coil sees each place, (*size): smooth, between exp(-strength) and exp(strength)."""
    points = positions(size, [2 / length for length in size])  # the grid is 2 wide on every axis
    return np.exp(strength * ripples(random, points, (3.0, 6.0), count=2))


def complex_noise(random: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Complex noise whose real and imaginary parts are independent and normal, standard deviation 1 (Box, Muller)."""
    return np.sqrt(-2 * np.log(1 - random.random(size))) * np.exp(2j * np.pi * random.random(size))


def rician(random: np.random.Generator, signal: np.ndarray, deviation: float) -> np.ndarray:
    """The magnitude of the signal after a scanner adds normal noise to both its parts: never negative, no zero mean."""
    return np.abs(signal + deviation * complex_noise(random, signal.shape))


def whole_levels(image: np.ndarray, highest: int) -> np.ndarray:
    """The image rounded to whole grey levels from 0 to `highest`."""
    return np.clip(np.rint(image), 0, highest)
