"""What an overlay asks of the arrays, names and colours it is made of."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from xlstm_unet_lab.data.colours import LABEL_COLOURS, label_colours
from xlstm_unet_lab.ops.checks import as_array, finite, members
from xlstm_unet_lab.ops.words import printable


def checked_image(image: np.ndarray) -> np.ndarray:
    """The image as uint8 or float32; ValueError or TypeError for what is no image (C, *spatial)."""
    image = as_array("image", image)
    if image.dtype.kind not in "iuf":
        raise TypeError(f"image has dtype {image.dtype}; give integers or floats")
    if image.ndim not in (3, 4) or not image.size:
        raise ValueError(f"image has shape {image.shape}; give (C, y, x) or (C, z, y, x): image[None] adds the channel")
    return image if image.dtype == np.uint8 else finite("image", image).astype(np.float32, copy=False)


def checked_channel_names(names: Sequence[str] | None, channels: int) -> tuple[str, ...]:
    """A name for each channel, "channel 0", ... where none are given; ValueError for others."""
    names = tuple(map(printable, names or [f"channel {channel}" for channel in range(channels)]))
    if len(names) != channels or len(set(names)) != channels:
        raise ValueError(f"channel_names are {names}; the image has {channels} channels, give each its own name")
    return names


def checked_map(what: str, array: np.ndarray | None, size: tuple[int, ...]) -> np.ndarray | None:
    """A map of whole numbers (*spatial), or None; ValueError or TypeError, naming it, for anything else."""
    if array is None:
        return None
    array = as_array(what, array)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{what} has dtype {array.dtype}; give integers, the value of the label at every position")
    if array.shape != size:
        raise ValueError(f"{what} has shape {array.shape}, the image's spatial shape is {size}: they must be equal")
    if array.min() < 0:
        raise ValueError(f"{what} holds {array.min()}; labels are 0 (background) or above")
    return array.astype(np.uint8) if array.dtype == bool else array


def checked_probabilities(probabilities: np.ndarray | None, size: tuple[int, ...]) -> np.ndarray | None:
    """Floats (channels, *spatial), or None; ValueError for anything else."""
    if probabilities is None:
        return None
    probabilities = as_array("probabilities", probabilities)
    if probabilities.shape[1:] != size or probabilities.dtype.kind != "f":
        given = f"{probabilities.dtype} {probabilities.shape}"
        raise ValueError(f"probabilities are {given}; expected floats (channels, {size})")
    return probabilities


def label_values(label: np.ndarray | None) -> set[int]:
    """The label values found, without background."""
    return set() if label is None else set(np.unique(label).tolist()) - {0}


def checked_labels(
    names: Mapping[str, int | Sequence[int]] | None, found: set[int], probabilities: np.ndarray | None
) -> dict[str, tuple[int, ...]]:
    """Name -> the values it covers, without background, "label 1", ... where none are given.

    Raises ValueError for values found that no name covers, and where probabilities have other channels.
    """
    if names is None:
        channels = set() if probabilities is None else set(range(1, len(probabilities)))
        names = {f"label {value}": value for value in sorted(found | channels)}
    every = {printable(name): members(f"the label {name!r}", values) for name, values in names.items()}
    labels = {name: values for name, values in every.items() if values != (0,)}
    if wrong := {name: values for name, values in labels.items() if 0 in values}:
        raise ValueError(f"label_names {wrong} do not fit: a label covers values from 1 on, 0 alone is background")
    if probabilities is not None and len(probabilities) not in (len(labels), len(labels) + 1):
        raise ValueError(
            f"probabilities have {len(probabilities)} channels; expected {len(labels) + 1} (background and "
            f"{', '.join(labels)}) or {len(labels)} (these alone)"
        )
    if unknown := sorted(found - {value for values in labels.values() for value in values}):
        raise ValueError(f"truth or prediction hold the values {unknown}, which label_names {labels} do not name")
    return labels


def checked_colours(colours: Mapping[int, str] | None, labels: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """Label value -> "#RRGGBB", of `label_colours` where none is given; a warning where these repeat.

    Raises ValueError for a colour of a value that no label has, and for one written in another way.
    """
    given, palette = dict(colours or {}), label_colours(labels)
    written = re.compile("#[0-9a-fA-F]{6}").fullmatch
    if wrong := {value: colour for value, colour in given.items() if value not in palette or not written(str(colour))}:
        raise ValueError(f'colours {wrong} do not fit: name label values out of {list(palette)}, colours as "#0072B2"')
    if len(palette.keys() - given.keys()) > len(LABEL_COLOURS):
        words = f"{len(palette)} labels share {len(LABEL_COLOURS)} colours: hand over more as colours="
        warnings.warn(words, stacklevel=3)  # of who calls `overlay`
    return palette | given
