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
    """The largest connected piece where one label stands in place of another, corners do not connect; None where
    nothing is wrong.

    Raises ValueError for an overlay without truth or prediction.
    """
    from skimage.measure import label

    if case.errors is None:
        raise ValueError("this overlay has no errors: they need both truth= and prediction=")
    if not case.errors.any():
        return None
    # Both labels as one number, so that errors of other labels that touch are pieces of their own.
    extra, missing = case.differences
    pieces = label(extra.astype(np.int64) * (len(case.labels) + 1) + missing, connectivity=1)
    sizes = np.bincount(pieces[pieces > 0])  # 0 is right
    inside = (pieces == sizes.argmax()).nonzero()
    first = tuple(places[0] for places in inside)
    return LargestError(
        kind=list(ERRORS)[case.errors[first] - 1],
        labels=" for ".join([*case.labels][place - 1] for place in (extra[first], missing[first]) if place),
        voxels=int(sizes.max()),
        extent=tuple(float(np.ptp(at) + 1) * step for at, step in zip(inside, case.spacing, strict=True)),
        centre=tuple(float(places.mean()) for places in inside),
        slice=int(np.bincount(inside[0]).argmax()) if len(inside) == 3 else 0,
    )


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
