"""What reaches one pixel through a network's mixers: image layers that lie on the image, and words. Needs no viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xlstm_unet_lab.data.colours import BLUE, ORANGE
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.patches import PAD_IMAGE, cut_box, start_around
from xlstm_unet_lab.inference.load import load_predictor
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.ops.devices import checked_device
from xlstm_unet_lab.overlays.layers import LayerData
from xlstm_unet_lab.plugin.mixer_rows import MixerRows, explore
from xlstm_unet_lab.plugin.tasks import Place, is_turned, place_of, read_image

HALF = 0.5  # of a token: where the forget gates have let go of it
SIGNED = {"name": "blue, black, orange", "colors": [BLUE, "#000000", ORANGE]}  # below, at, above 0: 0 does not show
PERCENTILE = 99.5  # of a receptive field: its centre would leave the rest black


class Patch(NamedTuple):
    """What the network sees around a pixel."""

    pixels: Tensor  # (C, *spatial), normalised; of slices without the axis they are cut across
    position: list[int]  # of the pixel in it
    start: list[int]  # where it starts in the image, by axis of the image
    size: list[int]  # likewise; 1 along the axis that slices are cut across
    cut: list[int]  # that axis, or none


def explore_layers(
    run_directory: str | Path, layers: Sequence, position: Sequence[int], *, device: str = "cpu"
) -> tuple[list[LayerData], str]:
    """What reaches one pixel through a run's mixers, as image layers, and the same in words.

    position: of the pixel, whole numbers in the order of the layers' axes. The network sees one patch around it, on the
    layers' own grid; one trained on slices sees a patch of the slice through it. Every mixer has two layers (direction,
    head, *grid): the weights of the row, and the decay of the forget gates. The effective receptive field has the
    image's grid. Raises FileNotFoundError for a folder that is no run directory and ValueError for layers, a position
    or a network that do not fit.
    """
    predictor = load_predictor(run_directory)
    image, place = read_image(predictor, layers), place_of(layers[0])
    if is_turned(layers[0]):
        raise ValueError(f"layer {layers[0].name!r} is turned, sheared or registered: choose one that lies straight")
    patch = _patch_at(predictor, image, position)
    rows, field = explore(predictor.network.to(checked_device(device)), patch.pixels, patch.position)
    bright = _above_0(np.percentile(field, PERCENTILE))
    found = [_on_image(field, "receptive field", patch, place, contrast_limits=(0, bright), colormap="magma")]
    for number, (name, row) in enumerate(rows.items(), start=1):
        largest = _above_0(np.abs(row.weights).max())
        decay = {"contrast_limits": (0, 1), "colormap": "viridis"}
        weights = {"contrast_limits": (-largest, largest), "colormap": SIGNED, "visible": number == len(rows)}
        found.append(_on_image(row.decay, f"decay, {name}", patch, place, **decay))
        found.append(_on_image(row.weights, f"weights, {name}", patch, place, **weights))
    seen = np.delete(list("zyx"[-len(patch.size) :]), patch.cut)
    return found, "\n".join(_in_words(name, row, seen) for name, row in rows.items())


def _patch_at(predictor: Predictor, image: np.ndarray, position: Sequence[int]) -> Patch:
    """The patch around a position of the image (C, *spatial), padded as in prediction; ValueError for one outside."""
    size, cut = image.shape[1:], [] if predictor.slice_axis is None else [predictor.slice_axis]
    if len(position) != len(size) or not all(0 <= p < length for p, length in zip(position, size, strict=True)):
        raise ValueError(f"position {tuple(position)} lies outside the image of size {size}")
    for axis in cut:  # the network knows nothing of other slices: this one is normalised by itself
        image = image.take(position[axis], axis + 1)
    place, seen = (np.delete(numbers, cut).tolist() for numbers in (position, size))
    start, lengths = start_around(place, predictor.patch_size, seen), list(predictor.patch_size)
    box = [(first, first + length) for first, length in zip(start, lengths, strict=True)]
    pixels, inside = cut_box(torch.from_numpy(normalise(image)), box, PAD_IMAGE), np.subtract(place, start).tolist()
    for axis in cut:
        start.insert(axis, position[axis])
        lengths.insert(axis, 1)
    return Patch(pixels, inside, start, lengths, cut)


def _on_image(data: np.ndarray, name: str, patch: Patch, place: Place, **style) -> LayerData:
    """A layer of data whose last axes are a grid over the patch, put where the patch lies."""
    ahead = data.ndim - len(patch.position)  # direction and head
    data = np.expand_dims(data, [ahead + axis for axis in patch.cut])
    factors = np.divide(patch.size, data.shape[ahead:])
    # The middle of a coarse position lies between the middles of the pixels it stands for.
    corner = np.add(patch.start, (factors - 1) / 2) * place.spacing + place.translate
    count = len(patch.size)
    keywords = {
        "name": name,
        "metadata": {"part": name},
        "scale": (*(1,) * ahead, *factors * place.spacing),
        "translate": (*(0,) * ahead, *corner),
        "units": (*("pixel",) * ahead, *(place.unit,) * count),
        "axis_labels": (*("direction", "head")[:ahead], *"zyx"[-count:]),
        "blending": "additive",
        "visible": False,
    }
    return data, keywords | style, "image"


def _above_0(limit: float) -> float:
    return float(limit) or 1.0


def _in_words(name: str, row: MixerRows, axes: Sequence[str]) -> str:
    grid = " x ".join(map(str, row.weights.shape[2:]))
    lines = [f"{name}, {grid} tokens, row of token {row.position}; half of it is left after that many tokens, by head:"]
    for number, (traversal, decay) in enumerate(zip(row.traversals, row.decay, strict=True)):
        way = "backward" if traversal.reverse else "forward"
        kept = ", ".join(str(np.count_nonzero(head >= HALF)) for head in decay)
        lines.append(f"  direction {number} ({way}, {axes[traversal.fastest]} fastest): {kept}")
    return "\n".join(lines)
