"""What the napari plugin computes, without a viewer: layers in, layer tuples, tables and words out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from xlstm_unet_lab.data.label_evidence import numbers_found
from xlstm_unet_lab.evaluation.report import evaluate
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.inference.load import load_predictor
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.ops.checks import array_of
from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.layers import LayerData, layer_data, lies_like
from xlstm_unet_lab.overlays.triton_first import load_triton

if TYPE_CHECKING:
    import pandas

load_triton()  # napari imports this module while its canvas is open


class Comparison(NamedTuple):
    """Predictions held against the truth."""

    table: pandas.DataFrame  # prediction, then the columns of `evaluate`
    layers: list[LayerData]  # an error map a prediction
    worst: int  # the slice along axis 0 with most errors, of the prediction with the lowest Dice; 0 in 2-D


class Place(NamedTuple):
    """Where a layer lies."""

    spacing: tuple[float, ...]  # from one voxel to the next along every axis, in `unit`, as all of it
    translate: tuple[float, ...]
    unit: str  # "mm" or "pixel"


def data_of(layer) -> np.ndarray:
    """The voxels of a napari layer, of one with several levels the finest."""
    return np.asarray(_finest(layer))


def _finest(layer):
    """The same as napari holds them, which may be a promise to compute them."""
    return layer.data[0] if layer.multiscale else layer.data


def file_of(layer) -> Path | None:
    """The file of an image layer that shows it as this package reads it; None where nobody knows.

    Readers of other plugins may turn the axes of a volume, and napari's own leaves photographs as the camera lay.
    """
    path = layer.source.path or ""
    as_stored = layer.source.reader_plugin == "napari" and not path.lower().endswith((".jpg", ".jpeg"))
    return layer.metadata.get("file") or (Path(path) if as_stored else None)


def _corners(layer) -> tuple[np.ndarray, str]:
    """Where the first voxel of a napari layer and its neighbour along every axis lie, in mm where its units are
    lengths, else in pixels; and that unit."""
    in_mm = all(unit.is_compatible_with("mm") for unit in layer.units)
    factors = [float((1 * unit).to("mm").magnitude) if in_mm else 1.0 for unit in layer.units]
    corners = [layer.data_to_world(at) for at in np.eye(layer.ndim + 1, layer.ndim, -1)]
    return np.multiply(corners, factors), "mm" if in_mm else "pixel"


def place_of(layer) -> Place:
    """Where a napari layer lies, in mm where its units are lengths, else in pixels."""
    (origin, *nexts), unit = _corners(layer)
    spacing = tuple(float(f"{np.linalg.norm(at - origin):.6g}") for at in nexts)  # also where the layer is turned
    return Place(spacing, tuple(origin.tolist()), unit)


def is_turned(layer) -> bool:
    """Whether a napari layer does more than scaling and moving its voxels."""
    places = np.eye(layer.ndim + 1, layer.ndim, -1)
    return not np.allclose([layer.data_to_world(at) for at in places], places * layer.scale + layer.translate)


def parts_of(layers: Sequence, spatial_dims: int) -> list[np.ndarray]:
    """Napari image layers as parts of one image, (C, *spatial) each: a channel, or red, green and blue.

    Raises ValueError, naming the layer, for none, another number of dimensions and layers on different grids.
    """
    if not layers:
        raise ValueError("no image layer is chosen: choose one, or one for each channel of the network")
    parts = []
    for layer in layers:
        _check_kind(layer, "Image")
        if layer.ndim != spatial_dims:
            raise ValueError(
                f"layer {layer.name!r} is {layer.ndim}-D, the network was trained on {spatial_dims}-D images: use those"
            )
        _check_grid(layers[0], layer)
        data = array_of(f"layer {layer.name!r}", data_of(layer), "iufb", spatial_dims + layer.rgb)
        parts.append(np.moveaxis(data[..., :3], -1, 0) if layer.rgb else data[None])
    return parts


def read_image(predictor: Predictor, layers: Sequence) -> np.ndarray:
    """The layers as the network reads them; ValueError for another number of channels."""
    image, wanted = predictor.as_prepared(*parts_of(layers, predictor.spatial_dims)), predictor.in_channels
    if len(image) != wanted:
        names = f" ({', '.join(predictor.channel_names)})" if predictor.channel_names else ""
        reads = f"{wanted} {'channel' if wanted == 1 else 'channels'}{names}"
        raise ValueError(f"the network reads {reads}, the chosen layers have {len(image)}: choose as many layers")
    return image


def _check_kind(layer, *kinds: str) -> None:
    """ValueError for a napari layer of a kind that is none of these."""
    if (kind := type(layer).__name__) not in kinds:
        raise ValueError(f"layer {layer.name!r} is of the kind {kind}: choose one of the kind {' or '.join(kinds)}")


def _check_grid(first, layer) -> None:
    """ValueError unless two napari layers have their voxels in the same places."""
    (one, unit), (other, other_unit) = map(_corners, (first, layer))
    shapes = [_finest(each).shape[: each.ndim] for each in (first, layer)]
    if shapes[0] != shapes[1] or unit != other_unit or not np.allclose(one, other):
        raise ValueError(
            f"layers {first.name!r} and {layer.name!r} lie on different grids: choose layers of one size and place"
        )


def segment(run_directory: str | Path, layers: Sequence, *, uncertainty: bool = False, **options) -> list[LayerData]:
    """What a run, or a network in one file, predicts for image layers: labels that are named, where the image lies.

    Objects get outlines where the network learnt interiors and boundaries; `uncertainty` adds entropy and probability
    of the prediction. A layer in mm is resampled to the spacing of training when that is in mm too, any other is used
    as it is. Options (mirror, device, track, ...) are those of a call of `Predictor`. Raises FileNotFoundError for a
    folder that is no run directory, and ValueError for layers that do not fit the network.
    """
    predictor = load_predictor(run_directory)
    image, place = read_image(predictor, layers), place_of(layers[0])
    spacing = place.spacing if (place.unit, predictor.unit) == ("mm", "mm") else None
    found = (predictor.probabilities if uncertainty else predictor)(image, spacing, **options)
    label = predictor.labels_of(torch.from_numpy(found)).numpy() if uncertainty else found
    facts = {"prediction": label, "probabilities": found if uncertainty else None, "label_names": predictor.label_names}
    facts |= {"spacing": place.spacing, "unit": place.unit}
    name = Path(run_directory).resolve().name.removesuffix(".safetensors")
    parts = ["prediction", *["entropy", "probability"] * uncertainty]
    if predictor.finds_objects:
        facts["instances"] = instances_from_classes(label)
        parts.append("outlines")
    shown = replace(overlay(image, title=name, colours=predictor.colours or None, **facts), file=file_of(layers[0]))
    return layer_data(shown, parts, suffix=f" of {name}", **lies_like(layers[0]))


def compare(truth, predictions: Sequence) -> Comparison:
    """Hold napari label layers against one that is true.

    Labels have the names that the plugin gave the truth, or else, where that was drawn by hand, the first prediction
    that has any; otherwise "label 1", ... Raises ValueError for no prediction, layers on different grids, no label at
    all, and values without a name.
    """
    from pandas import concat

    if not predictions:
        raise ValueError("no prediction is chosen: choose one to three label layers beside the truth")
    for layer in (truth, *predictions):
        _check_kind(layer, "Labels", "Image")  # of whole numbers
        _check_grid(truth, layer)
    every, place = [truth, *predictions], place_of(truth)
    label_names = next(filter(None, (layer.metadata.get("labels") for layer in every)), None)
    if label_names is None:
        values = numbers_found((f"layer {layer.name!r}", data_of(layer)) for layer in every)
        label_names = {f"label {value}": value for value in values}
    if not label_names:
        raise ValueError(f"{truth.name!r} and the predictions are empty: draw a label first, there is none to compare")
    known = {"spacing": place.spacing, "unit": place.unit}
    tables, maps, slices, true = {}, [], {}, data_of(truth)
    nothing = np.broadcast_to(np.uint8(0), (1, *true.shape))
    for layer in predictions:
        name, found = layer.name, data_of(layer)
        shown = overlay(nothing, truth=true, prediction=found, label_names=label_names, title=name, **known)
        tables[name] = evaluate(found, true, labels=label_names, **known)
        maps += layer_data(shown, ["errors"], suffix=f" of {name}", visible=True, **lies_like(truth))
        slices[name] = shown.initial_slice
    worst = min(tables, key=lambda name: tables[name]["dice"].mean())
    table = concat(tables, names=["prediction"]).reset_index("prediction").reset_index(drop=True)
    return Comparison(table, maps, slices[worst])
