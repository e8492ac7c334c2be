"""An overlay in napari: its layers as data, a viewer that shows them and follows edits, several cases side by side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xlstm_unet_lab.figures.cases import ERRORS, PERCENTILES
from xlstm_unet_lab.figures.picture import GREY
from xlstm_unet_lab.overlays.checks import label_values
from xlstm_unet_lab.overlays.description import Overlay
from xlstm_unet_lab.overlays.text import with_score
from xlstm_unet_lab.overlays.triton_first import load_triton
from xlstm_unet_lab.overlays.virtual_display import has_screen

if TYPE_CHECKING:
    import napari

LayerData = tuple[np.ndarray, dict, str]  # what napari makes a layer of: data, keywords, kind
UNITS = {"mm": "mm", "px": "pixel"}  # as napari calls them
SAMPLED = 10**6  # voxels are enough to estimate percentiles; sorting all of a large volume takes seconds
# How array indices run on the screen. Anatomical axes run towards (superior, anterior, right): radiologists look from
# the feet, so that right is at the left and superior is farther away, which leaves the patient unmirrored in 3-D.
ORIENTATION = {True: ("away", "up", "left"), False: ("towards", "down", "right")}
IMAGE_OPACITY = 0.35  # in 3-D, where the image surrounds the labels
# What tells overlays apart in a viewer: copies of one are the same as long as title, grid and channels are.
_key = attrgetter("identity", "title", "shape", "spacing", "unit", "channel_names", "anatomical")


def layers(overlay: Overlay, prefix: str = "") -> list[LayerData]:
    """What napari shows of an overlay, lowest layer first: (data, keywords, "image" or "labels"); needs no napari.

    Every layer has a name (after `prefix`), the overlay's scale and units, and says in its metadata to which "overlay"
    and "part" it belongs: "image 0", ..., "entropy", "probability", "prediction", "truth", "outlines", "errors"; `look`
    does the rest. Label maps are copies: what is painted in a viewer leaves the overlay as it was.
    """
    found: list[LayerData] = []
    facts = {"overlay": _key(overlay), "labels": overlay.labels, "camera": overlay.camera}
    common = {"scale": overlay.spacing, "units": (UNITS[overlay.unit],) * len(overlay.shape)}

    def add(part: str, data: np.ndarray, kind: str, name: str = "", **keywords) -> None:
        own = {"name": prefix + (name or part), "metadata": facts | {"part": part}}
        found.append((data, common | own | keywords, kind))

    if overlay.is_colour:
        add("image 0", _as_rgb(overlay.image), "image", "image", rgb=True)
    else:
        for channel, (name, image) in enumerate(zip(overlay.channel_names, overlay.image, strict=True)):
            # One channel at a time: the sequences of an MRI lie exactly on top of each other.
            style = {"contrast_limits": _contrast(image), "colormap": "gray", "visible": channel == 0}
            style |= {"blending": "translucent_no_depth"}  # in 3-D the labels inside stay visible
            add(f"image {channel}", image, "image", name, **style)
    if overlay.probabilities is not None:
        style = {"contrast_limits": (0.0, 1.0), "colormap": "viridis", "opacity": 0.7, "visible": False}
        add("entropy", overlay.entropy, "image", **style)
        add("probability", overlay.probability, "image", **style)
    shown = {"colormap": {None: GREY, 0: "transparent"} | overlay.colours, "features": hover_text(overlay)}
    for part in ("prediction", "truth"):
        if (label := getattr(overlay, part)) is not None:
            add(part, label.copy(), "labels", opacity=0.5, **shown)
    if overlay.outlines is not None:
        white = {"colormap": {None: "white", 0: "transparent"}, "visible": overlay.instances is not None}
        add("outlines", overlay.outlines.astype(np.uint8), "labels", opacity=0.8, **white)
    if overlay.errors is not None:
        colours = {None: GREY, 0: "transparent"} | dict(enumerate(ERRORS.values(), start=1))
        kinds = {"index": range(len(ERRORS) + 1), "error": [None, *ERRORS]}
        add("errors", overlay.errors, "labels", opacity=0.9, colormap=colours, features=kinds, visible=False)
    return found


def hover_text(overlay: Overlay) -> dict[str, list]:
    """Napari's table of features such that its status line reads "label 5: aorta, Dice 0.83" over label 5.

    The status line joins "column: entry" of all that is not empty, so every label has a column to itself.
    """
    index = [0, *overlay.value_names]
    words = {value: with_score(overlay, name) for value, name in overlay.value_names.items()}
    columns = {f"label {value}": [text if row == value else None for row in index] for value, text in words.items()}
    return {"index": index} | columns


def _contrast(image: np.ndarray) -> tuple[float, float]:
    values = image.reshape(-1)
    low, high = np.percentile(values[:: max(1, values.size // SAMPLED)], PERCENTILES)
    return float(low), float(high if high > low else low + 1)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """(3, *spatial) -> (*spatial, 3) as napari wants it: uint8, or float between 0 and 1."""
    colour = np.moveaxis(image, 0, -1)
    if image.dtype == np.uint8:
        return colour
    low, high = _contrast(image)
    return ((colour - low) / (high - low)).clip(0, 1)


class Parts(NamedTuple):
    """What of a viewer is set up here; napari 0.9 keeps it elsewhere than earlier versions do."""

    camera: object
    grid: object
    scale_bar: object


def parts(viewer: napari.Viewer) -> Parts:
    """The camera, the grid and the scale bar of a viewer of napari 0.6 or later."""
    if hasattr(viewer, "scene"):
        return Parts(viewer.scene.camera, viewer.canvas.grid, viewer.canvas.overlays.scale_bar)
    return Parts(viewer.camera, viewer.grid, viewer.scale_bar)


def open_viewer(overlay: Overlay, viewer: napari.Viewer | None = None) -> napari.Viewer:
    """Open a viewer with the overlay, or show it in `viewer`; returns the viewer.

    What the viewer shows of this overlay already (of copies made by `dataclasses.replace`, of one title and grid) is
    brought up to date, with the user's settings and view kept; what was opened here of another overlay is replaced.
    Other layers stay. Raises RuntimeError without a screen, and ImportError without napari.
    """
    viewer = _new_viewer(overlay.title) if viewer is None else viewer
    before, active = layers_of(viewer, overlay), viewer.layers.selection.active
    for layer in [layer for layer in viewer.layers if "opened" in layer.metadata and not before]:
        viewer.layers.remove(layer)
    _show(viewer, layers(overlay), before)
    if not before:
        arrange(viewer, overlay)
    elif active in viewer.layers:  # and not the last one that was added
        viewer.layers.selection.active = active
    return viewer


def layers_of(viewer: napari.Viewer, overlay: Overlay) -> dict[str, napari.layers.Layer]:
    """The layers that a viewer shows of an overlay: part -> layer."""
    return {part: layer for (key, part), layer in _of_overlays(viewer).items() if key == _key(overlay)}


def _of_overlays(viewer: napari.Viewer) -> dict[tuple[tuple, str], napari.layers.Layer]:
    """What a viewer shows of all overlays: (`_key`, part) -> layer, the lower one where a user made a duplicate."""
    ours = [layer for layer in reversed(viewer.layers) if "overlay" in layer.metadata]
    return {(layer.metadata["overlay"], layer.metadata["part"]): layer for layer in ours}


def arrange(viewer: napari.Viewer, overlay: Overlay) -> None:
    """Turn axes and camera as the overlay is to be looked at, go to its initial slice, show the scale bar.

    The prediction (or the truth) becomes the active layer: the status line reads it, and painting changes it.
    """
    camera, _, scale_bar = parts(viewer)
    camera.orientation = ORIENTATION[overlay.anatomical]
    if hasattr(camera, "synced"):  # else the middle of the volume in 3-D would become the slice in 2-D
        camera.synced = False
    count = len(overlay.shape)  # the overlay's axes are the last ones: a layer of the user's may have more
    viewer.dims.axis_labels = (*viewer.dims.axis_labels[:-count], *overlay.axes)
    if count == 3:
        viewer.dims.set_point(viewer.dims.ndim - 3, overlay.initial_slice * overlay.spacing[0])
    viewer.reset_view()
    look(viewer)
    if viewer.dims.ndisplay == 3:
        _aim(viewer, overlay.camera)
    scale_bar.visible = True
    if not hasattr(viewer, "scene"):  # later versions of napari read it off the layers
        scale_bar.unit = UNITS[overlay.unit]
    shown = layers_of(viewer, overlay)
    viewer.layers.selection.active = shown.get("prediction", shown.get("truth", viewer.layers[-1]))


def look(viewer: napari.Viewer) -> None:
    """Draw the layers of overlays as suits slices or the volume, now and whenever that changes, or whether errors show.

    Lines instead of areas: the truth beside a prediction, for where it leaves the coloured area the prediction is
    wrong, and the prediction while errors show, for their colours are labels' colours too. The volume, which has no
    lines, is seen from the overlay's camera, without these layers and outlines, and with a faint image around the rest.
    What the user had set comes back afterwards.
    """
    volume, ours = viewer.dims.ndisplay == 3, _of_overlays(viewer)
    errors = {key: layer for (key, part), layer in ours.items() if part == "errors"}
    predicted = {key for key, part in ours if part == "prediction"}
    wrong = {key for key, layer in errors.items() if layer.visible}
    for change in (viewer.dims.events.ndisplay, *(layer.events.visible for layer in errors.values())):
        if not any(getattr(callback, "func", None) is look for callback in change.callbacks):
            change.connect(partial(look, viewer))
    for (key, part), layer in ours.items():
        line = key in {"truth": predicted, "prediction": wrong}.get(part, ())
        wanted = {"contour": 1, "opacity": 1.0} if line else {}
        if volume:
            opacity = IMAGE_OPACITY if part.startswith("image") else 1.0
            wanted = {"visible": False} if line or part == "outlines" else {"opacity": opacity}
        present, before = layer.metadata.get("look", ({}, {}))
        if wanted != present:
            layer.metadata["look"] = wanted, {what: before.get(what, getattr(layer, what)) for what in wanted}
            for what, value in (before | wanted).items():
                setattr(layer, what, value)
            if volume and part == "image 0":
                _aim(viewer, layer.metadata["camera"])


def _aim(viewer: napari.Viewer, seen_from: Mapping) -> None:
    viewer.reset_view()
    camera = parts(viewer).camera
    camera.angles, camera.center = seen_from["angles"], seen_from["centre"]
    camera.zoom *= seen_from["zoom"]


def rescore(overlay: Overlay, viewer: napari.Viewer | None = None) -> Overlay:
    """Take over truth and prediction as edited in the viewer, and bring what follows from them up to date there.

    viewer None: the one used last. Returns the new overlay. Objects (`instances`) are left out, with a warning, once
    the prediction was edited. Raises ValueError when no viewer is open, when it shows neither truth nor prediction of
    this overlay, or when a value was painted that is no label.
    """
    if viewer is None:
        import napari

        viewer = napari.current_viewer()
        if viewer is None:
            raise ValueError("no viewer is open, so nothing was edited: call overlay.napari() first")
    shown = layers_of(viewer, overlay)
    edited = {part: np.array(shown[part].data) for part in ("truth", "prediction") if part in shown}
    if not edited:
        raise ValueError(f"the viewer shows no truth or prediction of {overlay.title!r}: call overlay.napari(viewer)")
    if unknown := sorted({value for label in edited.values() for value in label_values(label)} - set(overlay.colours)):
        raise ValueError(f"the values {unknown} were painted: paint with one of the labels {overlay.value_names}")
    result = replace(overlay, **edited)
    if overlay.instances is not None and not np.array_equal(result.prediction, overlay.prediction):
        result = replace(result, instances=None)
        warnings.warn("the prediction was edited: its labels are outlined, objects are no longer known", stacklevel=3)
    _show(viewer, [layer for layer in layers(result) if layer[1]["metadata"]["part"] in shown], shown)
    return result


def grid(overlays: Sequence[Overlay], viewer: napari.Viewer | None = None) -> napari.Viewer:
    """Several cases, or models of one case, side by side under one camera and one slice slider; returns the viewer.

    Shown are the parts that all of them have. `viewer` is emptied first, of layers of the user's own too: every layer
    takes a place in the grid. Raises ValueError for titles that are missing or alike, and for 2-D beside 3-D; further
    as `open_viewer`.
    """
    titles = [overlay.title for overlay in overlays]
    if not all(titles) or len(set(titles)) != len(titles) or not titles:
        raise ValueError(f"titles are {titles}: give each its own, as in dataclasses.replace(overlay, title=...)")
    if len({len(overlay.shape) for overlay in overlays}) != 1:
        raise ValueError("some overlays are 2-D and some 3-D: a grid has one slice slider, show either kind by itself")
    viewer = _new_viewer(", ".join(titles)) if viewer is None else viewer
    viewer.layers.clear()
    every = [layers(overlay, f"{overlay.title}: ") for overlay in overlays]
    shared = set.intersection(*({keywords["metadata"]["part"] for _, keywords, _ in one} for one in every))
    for one in every:
        _show(viewer, [layer for layer in one if layer[1]["metadata"]["part"] in shared], {})
    cells = parts(viewer).grid
    cells.stride, cells.enabled = len(shared), True
    for overlay in overlays:
        lowest = layers_of(viewer, overlay)["image 0"]
        if hasattr(lowest, "name_overlay"):  # which cell shows what; older versions of napari have none
            lowest.name_overlay.visible = True
    arrange(viewer, overlays[0])
    return viewer


def _show(viewer: napari.Viewer, wanted: Sequence[LayerData], before: Mapping[str, napari.layers.Layer]) -> None:
    """Bring the layers of an overlay up to date, make what is missing in its place, remove what is no longer wanted."""
    from napari.layers import Layer

    place = min((viewer.layers.index(layer) for layer in before.values()), default=len(viewer.layers))
    for data, keywords, kind in wanted:
        layer = before.get(keywords["metadata"]["part"])
        if layer is None:
            layer = Layer.create(data, keywords, kind)
            layer.metadata["opened"] = True  # here: not one that a user or a widget of the plugin added
            viewer.layers.insert(place, layer)
        else:
            renewed = {"features", "colormap"} if kind == "labels" else set()
            if not np.array_equal(layer.data, data):
                layer.data = data
                renewed.add("contrast_limits")
            for what in renewed & keywords.keys():
                setattr(layer, what, keywords[what])
            layer.metadata.update(keywords["metadata"])
        place = viewer.layers.index(layer) + 1
    for part in before.keys() - {keywords["metadata"]["part"] for _, keywords, _ in wanted}:
        viewer.layers.remove(before[part])
    look(viewer)


def _new_viewer(title: str) -> napari.Viewer:
    if not has_screen():  # Qt would end the whole process
        raise RuntimeError("napari needs a screen, and there is none: use overlay.screenshot(path) or overlay.widget()")
    load_triton()  # before the first canvas is there
    try:
        import napari
    except ImportError as error:
        raise ImportError(f"napari cannot be imported ({error}): pip install 'xlstm-unet-lab[napari]'") from error
    return napari.Viewer(title=title or "xLSTM-UNet Lab")
