"""An overlay in words: how large every label is, how well it was found, and where the largest error lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm_unet_lab.evaluation.metrics import ERRORS
from xlstm_unet_lab.overlays.case_maps import CaseMaps

SIDES = {"z": ("bottom", "top"), "y": ("back", "front"), "x": ("left", "right")}  # at low and high indices, anatomical
PICTURE = (("", ""), ("upper", "lower"), ("left", "right"))  # the same of slices, rows and columns
MIDDLE = 0.05  # share of the image on either side of its middle that still is the middle


class LargestError(NamedTuple):
    """One connected piece of the error map."""

    kind: str  # "missed", "extra" or "confused"
    labels: str  # the label it concerns; of confused ones the predicted for the true one
    voxels: int
    extent: tuple[float, ...]  # of its bounding box, in the overlay's unit
    centre: tuple[float, ...]  # mean index
    slice: int  # along axis 0, where it is largest; 0 in 2-D


def largest_error(case: CaseMaps) -> LargestError | None:
    """The largest connected piece of the error map, of one kind, corners do not connect; None where nothing is wrong.

    Raises ValueError for an overlay without truth or prediction.
    """
    from scipy import ndimage

    if case.errors is None:
        raise ValueError("this overlay has no errors: they need both truth= and prediction=")
    largest = None
    for code, kind in enumerate(ERRORS, start=1):
        pieces, _ = ndimage.label(case.errors == code)
        sizes = np.bincount(pieces.ravel())[1:]
        if not sizes.size or (largest is not None and sizes.max() <= largest.voxels):
            continue
        number = int(sizes.argmax()) + 1
        box = ndimage.find_objects(pieces, number)[-1]
        piece = pieces[box] == number
        labels = _labels(case, case.prediction[box][piece], case.truth[box][piece])
        extent = tuple(size * step for size, step in zip(piece.shape, case.spacing, strict=True))
        centre = tuple(float(place.mean()) + part.start for place, part in zip(piece.nonzero(), box, strict=True))
        level = box[0].start + int(piece.sum((1, 2)).argmax()) if piece.ndim == 3 else 0
        largest = LargestError(kind, labels, int(sizes.max()), extent, centre, level)
    return largest


def _labels(case: CaseMaps, prediction: np.ndarray, truth: np.ndarray) -> str:
    """The most frequent pair of predicted and true label, as words; background goes without."""
    pairs, counts = np.unique(np.stack([prediction, truth]), axis=1, return_counts=True)
    return " for ".join(case.value_names[int(value)] for value in pairs[:, counts.argmax()] if value)


def sides(case: CaseMaps, index: Sequence[float]) -> list[str]:
    """On which sides a place lies, seen from the image's middle: the patient's, such as ["top", "right"], or, of an
    overlay that is not anatomical, the picture's: ["upper", "left"]."""
    known = [SIDES[axis] for axis in case.axes] if case.anatomical else PICTURE[-len(case.shape) :]
    shares = [(place + 0.5) / size - 0.5 for place, size in zip(index, case.shape, strict=True)]
    words = [pair[share > 0] for pair, share in zip(known, shares, strict=True) if abs(share) > MIDDLE]
    return list(filter(None, words))


def with_score(case: CaseMaps, name: str) -> str:
    """A label's name, and its Dice where there is one: "aorta, Dice 0.83"."""
    return f"{name}, Dice {case.scores[name]:.2f}" if name in case.scores else name


def amount(case: CaseMaps, voxels: int) -> str:
    """So many voxels as volume or area in words: ml of a volume in mm, mm² of a slice, else voxels or pixels."""
    size, flat = voxels * float(np.prod(case.spacing)), len(case.shape) == 2
    if case.unit == "mm":
        return f"{size:,.0f} mm²" if flat else f"{size / 1000:,.2f} ml"
    one = "pixel" if flat else "voxel"
    return f"{voxels:,} {one if voxels == 1 else one + 's'}"


def describe(case: CaseMaps) -> str:
    """A sentence a line: the grid, every label's size and Dice, the objects, the largest error, the licence."""
    grid = f"{_times(case.shape)} {'pixels' if len(case.shape) == 2 else 'voxels'}"
    grid += f" of {_times(case.spacing)} mm" if case.unit == "mm" else ""
    lines = [f"{case.title or 'One case'}: {', '.join(case.channel_names)}, {grid}."]
    for name, values in case.labels.items():
        maps = {"true": case.truth, "predicted": case.prediction}
        counts = {what: np.isin(label, values).sum() for what, label in maps.items() if label is not None}
        facts = [f"{amount(case, int(count))} {what}" for what, count in counts.items()]
        facts += [f"Dice {case.scores[name]:.2f}"] if name in case.scores else []
        lines += [f"{name}: {', '.join(facts)}."] if facts else []
    if case.instances is not None:
        count = np.count_nonzero(np.unique(case.instances))
        lines.append("1 object is outlined." if count == 1 else f"{count:,} objects are outlined.")
    if case.errors is not None:
        lines.append(_largest_error_in_words(case))
    return "\n".join([*lines, *filter(None, [case.credit])])


def _largest_error_in_words(case: CaseMaps) -> str:
    found = largest_error(case)
    if found is None:
        return "Prediction and truth agree everywhere."
    place = [f"{_times(found.extent)} {case.unit} across"]
    place += [f"largest in slice {found.slice}"] if len(case.shape) == 3 else []
    words = sides(case, found.centre)
    place += words if case.anatomical else [f"{' '.join(words) or 'middle'} part of the picture"]
    middle = zip(case.axes, found.centre, case.spacing, strict=True)
    place.append(f"centre at {', '.join(f'{axis} {at * step:.4g}' for axis, at, step in middle)} {case.unit}")
    return f"The largest error is {found.labels} {found.kind}: {amount(case, found.voxels)}, {', '.join(place)}."


def _times(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
