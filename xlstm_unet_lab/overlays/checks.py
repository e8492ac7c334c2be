"""What an overlay asks of the arrays, names and colours it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def is_hex_colour(colour: str) -> bool:
    """Whether a colour is written as "#0072B2"."""
    return len(colour) == 7 and colour[0] == "#" and set(colour[1:].lower()) <= set("0123456789abcdef")


def checked_image(image: np.ndarray) -> np.ndarray:
    """The image as uint8 or float32; ValueError or TypeError for what is no image (C, *spatial)."""
    image = np.asarray(image)
    if image.dtype.kind not in "iuf":
        raise TypeError(f"image has dtype {image.dtype}; give integers or floats")
    if image.ndim not in (3, 4) or not image.size:
        raise ValueError(f"image has shape {image.shape}; give (C, y, x) or (C, z, y, x): image[None] adds the channel")
    if not np.isfinite(image).all():
        raise ValueError("image holds NaN or infinity: replace them, for instance with np.nan_to_num")
    return image if image.dtype == np.uint8 else image.astype(np.float32, copy=False)


def checked_map(what: str, array: np.ndarray | None, size: tuple[int, ...]) -> np.ndarray | None:
    """A map of whole numbers (*spatial), or None; ValueError or TypeError, naming it, for anything else."""
    if array is None:
        return None
    array = np.asarray(array)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{what} has dtype {array.dtype}; give integers, the value of the label at every position")
    if array.shape != size:
        raise ValueError(f"{what} has shape {array.shape}, the image's spatial shape is {size}: they must be equal")
    if array.min() < 0:
        raise ValueError(f"{what} holds {array.min()}; labels are 0 (background) or above")
    return array.astype(np.uint8) if array.dtype == bool else array


def label_values(label: np.ndarray | None) -> set[int]:
    """The label values found, without background."""
    return set() if label is None else set(np.unique(label).tolist()) - {0}


def checked_labels(
    names: Mapping[str, int | Sequence[int]] | None, found: set[int], probabilities: np.ndarray | None
) -> dict[str, tuple[int, ...]]:
    """Name -> the values it covers, without background; ValueError where probabilities have other channels."""
    if names is None:
        channels = set() if probabilities is None else set(range(1, len(probabilities)))
        names = {f"label {value}": value for value in sorted(found | channels)}
    every = {name: tuple(int(value) for value in np.atleast_1d(values)) for name, values in names.items()}
    labels = {name: values for name, values in every.items() if values != (0,)}
    if wrong := {name: values for name, values in labels.items() if not values or min(values) < 1}:
        raise ValueError(f"label_names {wrong} do not fit: a label covers values from 1 on, 0 alone is background")
    if probabilities is not None and len(probabilities) not in (len(labels), len(labels) + 1):
        raise ValueError(
            f"probabilities have {len(probabilities)} channels; expected {len(labels) + 1} (background and "
            f"{', '.join(labels)}) or {len(labels)} (these alone)"
        )
    return labels
