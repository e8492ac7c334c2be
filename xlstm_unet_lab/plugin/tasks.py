"""What the napari plugin computes, without a viewer: layers in, layer tuples, tables and words out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from xlstm_unet_lab.data.colours import BLUE, ORANGE
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.evaluation.report import evaluate
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.inference.load import load_predictor
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.layers import UNITS, LayerData, layer_data
from xlstm_unet_lab.overlays.triton_first import load_triton
from xlstm_unet_lab.plugin.mixer_rows import MixerRows, explore

if TYPE_CHECKING:
    import pandas

load_triton()  # napari imports this module while its canvas is open

HALF = 0.5  # of a token: where the forget gates have let go of it
SIGNED = {"name": "blue, black, orange", "colors": [BLUE, "#000000", ORANGE]}  # below, at, above 0: 0 does not show
PERCENTILE = 99.5  # of a receptive field: its centre would leave the rest black


class Place(NamedTuple):
    """Where a layer lies."""

    spacing: tuple[float, ...]  # in `unit`, as all of it
    translate: tuple[float, ...]
    unit: str  # "mm" or "px"


class Comparison(NamedTuple):
    """Predictions held against the truth."""

    table: pandas.DataFrame  # prediction, then the columns of `evaluate`
    layers: list[LayerData]  # an error map a prediction
    worst: int  # the slice along axis 0 with most errors, of the prediction with the lowest Dice; 0 in 2-D


def place_of(layer) -> Place:
    """Where a napari layer lies, in mm where its units are lengths, else in pixels."""
    in_mm = all(unit.is_compatible_with("mm") for unit in layer.units)
    factors = [float((1 * unit).to("mm").magnitude) if in_mm else 1.0 for unit in layer.units]
    spacing, translate = (tuple(np.multiply(sizes, factors).tolist()) for sizes in (layer.scale, layer.translate))
    return Place(spacing, translate, "mm" if in_mm else "px")


def image_of(layers: Sequence, spatial_dims: int) -> np.ndarray:
    """Napari image layers as one image (C, *spatial): a channel each, or one layer of red, green and blue.

    Raises ValueError, naming the layer, for none, another number of dimensions and layers on different grids.
    """
    if not layers:
        raise ValueError("no image layer is chosen: choose one, or one for each channel of the network")
    first, channels = layers[0], []
    for layer in layers:
        if layer.ndim != spatial_dims:
            raise ValueError(
                f"layer {layer.name!r} is {layer.ndim}-D, the network was trained on {spatial_dims}-D images: choose "
                "another layer or another run"
            )
        _check_grid(first, layer)
        data = np.asarray(layer.data)
        channels.append(np.moveaxis(data[..., :3], -1, 0) if layer.rgb else data[None])
    return np.concatenate(channels)


def _check_grid(first, layer) -> None:
    """ValueError unless two napari layers have their voxels in the same places."""
    one, other = place_of(first), place_of(layer)
    alike = first.data.shape[: first.ndim] == layer.data.shape[: layer.ndim] and one.unit == other.unit
    if not alike or not np.allclose(one[:2], other[:2]):
        raise ValueError(
            f"layers {first.name!r} and {layer.name!r} lie on different grids: choose layers of one size, scale and "
            "place"
        )


def segment(
    run_directory: str | Path,
    layers: Sequence,
    *,
    mirror: bool = False,
    device: str = "cpu",
    track: Track = iter,
) -> list[LayerData]:
    """What a run predicts for image layers: labels with the names and colours of its data set, where the image lies.

    Objects get outlines where the network learnt interiors and boundaries. A layer in mm is resampled to the spacing of
    training when that is in mm too, any other is used as it is. `mirror`, `device` and `track` are those of a call of
    `Predictor`. Raises FileNotFoundError for a folder that is no run directory, and ValueError for layers that do not
    fit the network.
    """
    predictor = load_predictor(run_directory)
    image, place = _read(predictor, layers), place_of(layers[0])
    spacing = place.spacing if (place.unit, predictor.unit) == ("mm", "mm") else None
    label = predictor(image, spacing, mirror=mirror, device=device, track=track)
    counted, name = predictor.finds_objects, Path(run_directory).resolve().name
    shown = overlay(
        image,
        prediction=label,
        instances=instances_from_classes(label) if counted else None,
        spacing=place.spacing,
        unit=place.unit,
        label_names=predictor.label_names,
        colours=predictor.colours or None,
        title=name,
    )
    parts = ("prediction", "outlines") if counted else ("prediction",)
    return layer_data(shown, parts, suffix=f" of {name}", translate=place.translate)


def compare(truth, predictions: Sequence) -> Comparison:
    """Hold napari label layers against one that is true.

    Labels have the names that the plugin gave the truth, or else, where that was drawn by hand, the first prediction
    that has any; otherwise "label 1", ... Raises ValueError for no prediction, layers on different grids, no label at
    all, and values without a name.
    """
    from pandas import concat

    if not predictions:
        raise ValueError("no prediction is chosen: choose one to three label layers beside the truth")
    for layer in predictions:
        _check_grid(truth, layer)
    every, place = [truth, *predictions], place_of(truth)
    label_names = next(filter(None, (layer.metadata.get("labels") for layer in every)), None)
    if label_names is None:
        values = {value for layer in every for value in np.unique(layer.data).tolist()} - {0}
        label_names = {f"label {value}": value for value in sorted(values)}
    if not label_names:
        raise ValueError(f"{truth.name!r} and the predictions are empty: draw a label first, there is none to compare")
    known = {"spacing": place.spacing, "unit": place.unit}
    tables, maps, slices, true = {}, [], {}, np.asarray(truth.data)
    nothing = np.broadcast_to(np.uint8(0), (1, *true.shape))
    for layer in predictions:
        name, found = layer.name, np.asarray(layer.data)
        shown = overlay(nothing, truth=true, prediction=found, label_names=label_names, title=name, **known)
        tables[name] = evaluate(found, true, labels=label_names, **known)
        maps += layer_data(shown, ["errors"], suffix=f" of {name}", translate=place.translate, visible=True)
        slices[name] = shown.initial_slice
    worst = min(tables, key=lambda name: tables[name]["dice"].mean())
    table = concat(tables, names=["prediction"]).reset_index("prediction").reset_index(drop=True)
    return Comparison(table, maps, slices[worst])


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
    image, (spacing, translate, unit) = _read(predictor, layers), place_of(layers[0])
    size, cut = image.shape[1:], [] if predictor.slice_axis is None else [predictor.slice_axis]
    if len(position) != len(size) or not all(0 <= p < length for p, length in zip(position, size, strict=True)):
        raise ValueError(f"position {tuple(position)} lies outside the image of size {size}")
    lowest = np.zeros(len(size), int)
    for axis in cut:  # the network knows nothing of other slices: this one is normalised by itself
        image, lowest[axis] = image.take([position[axis]], axis + 1), position[axis]
    patch_size = np.insert(predictor.patch_size, cut, 1)
    patch, start = _patch_around(normalise(image), position - lowest, patch_size)
    place, start = np.delete(position - lowest - start, cut).tolist(), start + lowest
    patch = np.squeeze(patch, tuple(axis + 1 for axis in cut))
    rows, field = explore(predictor.network.to(device), torch.from_numpy(patch), place)
    axes = "zyx"[-len(size) :]

    def layer(data: np.ndarray, name: str, limits: tuple[float, float], colormap, visible: bool = False) -> LayerData:
        ahead = data.ndim - len(place)  # direction and head
        data = np.expand_dims(data, [ahead + axis for axis in cut])
        factors = np.divide(patch_size, data.shape[ahead:])
        # The middle of a coarse position lies between the middles of the pixels it stands for.
        corner = np.add(start, (factors - 1) / 2) * spacing + translate
        keywords = {
            "name": name,
            "metadata": {"part": name},
            "scale": (*(1,) * ahead, *factors * spacing),
            "translate": (*(0,) * ahead, *corner),
            "units": (*("pixel",) * ahead, *(UNITS[unit],) * len(size)),
            "axis_labels": (*("direction", "head")[:ahead], *axes),
            "contrast_limits": limits,
            "colormap": colormap,
            "blending": "additive",
            "visible": visible,
        }
        return data, keywords, "image"

    found = [layer(field, "receptive field", (0, _above_0(np.percentile(field, PERCENTILE))), "magma")]
    for number, (name, row) in enumerate(rows.items(), start=1):
        largest = _above_0(np.abs(row.weights).max())
        found.append(layer(row.decay, f"decay, {name}", (0, 1), "viridis"))
        found.append(layer(row.weights, f"weights, {name}", (-largest, largest), SIGNED, visible=number == len(rows)))
    seen = np.delete(list(axes), cut)
    return found, "\n".join(_in_words(name, row, seen) for name, row in rows.items())


def _read(predictor: Predictor, layers: Sequence) -> np.ndarray:
    """The layers as the network reads them; ValueError for another number of channels."""
    image, wanted = image_of(layers, predictor.spatial_dims), predictor.in_channels
    if len(image) != wanted:
        names = f" ({', '.join(predictor.channel_names)})" if predictor.channel_names else ""
        raise ValueError(
            f"the network reads {wanted} {'channel' if wanted == 1 else 'channels'}{names}, the chosen layers have "
            f"{len(image)}: choose as many layers, or another run"
        )
    return image


def _patch_around(
    image: np.ndarray, position: Sequence[int], patch_size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The patch (C, *patch_size) with a position near its middle, inside the image as far as that goes, else padded
    with zeros on both sides as in prediction; and where in the image it starts."""
    start, margins, window = [], [], []
    for length, p, patch in zip(image.shape[1:], position, patch_size, strict=True):
        first = min(max(p - patch // 2, 0), length - patch) if length > patch else -((patch - length) // 2)
        before = max(-first, 0)
        start.append(first)
        margins.append((before, max(first + patch - length, 0)))
        window.append(slice(first + before, first + before + patch))
    return np.pad(image, [(0, 0), *margins])[(slice(None), *window)], np.array(start)


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
