"""An overlay in napari: its layers as data, a viewer that shows them and follows edits, several cases side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xlstm_unet_lab.views.figures import ERRORS, PERCENTILES
from xlstm_unet_lab.views.overlay import Overlay
from xlstm_unet_lab.views.overlay_checks import label_values
from xlstm_unet_lab.views.overlay_text import with_score
from xlstm_unet_lab.views.picture import GREY
from xlstm_unet_lab.views.triton_first import load_triton
from xlstm_unet_lab.views.virtual_display import has_screen

if TYPE_CHECKING:
    import napari

LayerData = tuple[np.ndarray, dict, str]  # what napari makes a layer of: data, keywords, kind
UNITS = {"mm": "mm", "px": "pixel"}  # as napari calls them
SAMPLED = 10**6  # voxels are enough to estimate percentiles; sorting all of a large volume takes seconds
# How array indices run on the screen. Anatomical axes run towards (superior, anterior, right): radiologists look from
# the feet, so that right is at the left and superior is farther away, which leaves the patient unmirrored in 3-D.
ORIENTATION = {True: ("away", "up", "left"), False: ("towards", "down", "right")}


def layers(overlay: Overlay, prefix: str = "") -> list[LayerData]:
    """What napari shows of an overlay, lowest layer first: (data, keywords, "image" or "labels"); needs no napari.

    Every layer has a name (after `prefix`), the overlay's scale and units, and says in its metadata to which "overlay"
    (its title) and "part" it belongs: "image 0", ..., "entropy", "truth", "prediction", "outlines", "errors". Label
    maps are copies: what is painted in a viewer leaves the overlay as it was.
    """
    found: list[LayerData] = []

    def add(part: str, data: np.ndarray, kind: str, name: str = "", **keywords) -> None:
        common = {
            "name": prefix + (name or part),
            "scale": overlay.spacing,
            "units": (UNITS[overlay.unit],) * len(overlay.shape),
            "metadata": {"overlay": overlay.title, "part": part, "labels": overlay.labels},
        }
        found.append((data, common | keywords, kind))

    if overlay.is_colour:
        add("image 0", _as_rgb(overlay.image), "image", "image", rgb=True)
    else:
        for channel, (name, image) in enumerate(zip(overlay.channel_names, overlay.image, strict=True)):
            # One channel at a time: the sequences of an MRI lie exactly on top of each other.
            look = {"contrast_limits": _contrast(image), "colormap": "gray", "visible": channel == 0}
            look |= {"blending": "translucent_no_depth"}  # in 3-D the labels inside stay visible
            add(f"image {channel}", image, "image", name, **look)
    if overlay.entropy is not None:
        look = {"contrast_limits": (0.0, 1.0), "colormap": "viridis", "opacity": 0.7, "visible": False}
        add("entropy", overlay.entropy, "image", **look)
    shown = {"colormap": {None: GREY, 0: "transparent"} | overlay.colours, "features": hover_text(overlay)}
    if overlay.prediction is not None:
        add("prediction", overlay.prediction.copy(), "labels", opacity=0.5, **shown)
    if overlay.truth is not None:  # beside a prediction it is drawn as a line, see `_add`
        add("truth", overlay.truth.copy(), "labels", opacity=0.5, visible=overlay.prediction is None, **shown)
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

    What the viewer shows of this overlay already (same title) is brought up to date, with the user's settings and view
    kept; what it shows of another overlay is replaced. Other layers stay.
    Raises RuntimeError without a screen, and ImportError without napari.
    """
    viewer = _new_viewer(overlay.title) if viewer is None else viewer
    if not layers_of(viewer, overlay):
        for layer in [layer for layer in viewer.layers if "overlay" in layer.metadata]:
            viewer.layers.remove(layer)
        _add(viewer, layers(overlay))
        arrange(viewer, overlay)
        return viewer
    before = layers_of(viewer, overlay)
    missing = []
    for data, keywords, kind in layers(overlay):
        layer = before.get(keywords["metadata"]["part"])
        if layer is None or layer.data.shape != data.shape or tuple(layer.scale) != overlay.spacing:
            missing.append((data, keywords, kind))
            continue
        del before[keywords["metadata"]["part"]]
        if not np.array_equal(layer.data, data):
            layer.data = data
        if "features" in keywords:
            layer.features = keywords["features"]
    for layer in before.values():
        viewer.layers.remove(layer)
    _add(viewer, missing)
    return viewer


def layers_of(viewer: napari.Viewer, overlay: Overlay) -> dict[str, napari.layers.Layer]:
    """The layers that a viewer shows of an overlay (of its title): part -> layer."""
    ours = (layer for layer in viewer.layers if layer.metadata.get("overlay") == overlay.title)
    return {layer.metadata["part"]: layer for layer in ours}


def arrange(viewer: napari.Viewer, overlay: Overlay) -> None:
    """Turn axes and camera as the overlay is to be looked at, go to its initial slice, show the scale bar.

    The prediction (or the truth) becomes the active layer: the status line reads it, and painting changes it.
    """
    camera, _, scale_bar = parts(viewer)
    camera.orientation = ORIENTATION[overlay.anatomical]
    count = len(overlay.shape)  # the overlay's axes are the last ones: a layer of the user's may have more
    viewer.dims.axis_labels = (*viewer.dims.axis_labels[:-count], *"zyx"[-count:])
    if count == 3:
        viewer.dims.set_point(viewer.dims.ndim - 3, overlay.initial_slice * overlay.spacing[0])
    viewer.reset_view()
    if viewer.dims.ndisplay == 3:
        camera.angles, camera.center = overlay.camera["angles"], overlay.camera["centre"]
        camera.zoom *= overlay.camera["zoom"]
    scale_bar.visible = True
    if not hasattr(viewer, "scene"):  # later versions of napari read it off the layers
        scale_bar.unit = UNITS[overlay.unit]
    shown = layers_of(viewer, overlay)
    viewer.layers.selection.active = shown.get("prediction", shown.get("truth", viewer.layers[-1]))


def rescore(overlay: Overlay, viewer: napari.Viewer | None = None) -> Overlay:
    """Take over the prediction as edited in the viewer, and bring errors, scores and hover text up to date there.

    viewer None: the one used last. Returns the new overlay. Raises ValueError when none is open, when it shows no
    prediction of this overlay (another title), or when a value was painted that is no label.
    """
    if viewer is None:
        import napari

        viewer = napari.current_viewer()
        if viewer is None:
            raise ValueError("no viewer is open, so nothing was edited: call overlay.napari() first")
    layer = layers_of(viewer, overlay).get("prediction")
    if layer is None:
        raise ValueError(f"the viewer shows no prediction of {overlay.title!r}: open it with overlay.napari(viewer)")
    if unknown := sorted(label_values(layer.data) - set(overlay.colours)):
        raise ValueError(
            f"the values {unknown} were painted; labels are {overlay.value_names}: paint with one of these"
        )
    edited = replace(overlay, prediction=np.array(layer.data))
    open_viewer(edited, viewer)
    return edited


def grid(overlays: Sequence[Overlay], viewer: napari.Viewer | None = None) -> napari.Viewer:
    """Several cases, or models of one case, side by side under one camera and one slice slider; returns the viewer.

    Shown are the parts that all of them have. Raises ValueError for titles that are missing or alike, and for 2-D
    beside 3-D; further as `open_viewer`.
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
        _add(viewer, [layer for layer in one if layer[1]["metadata"]["part"] in shared])
    cells = parts(viewer).grid
    cells.stride, cells.enabled = len(shared), True
    for overlay in overlays:
        lowest = layers_of(viewer, overlay)["image 0"]
        if hasattr(lowest, "name_overlay"):  # which cell shows what; older versions of napari have none
            lowest.name_overlay.visible = True
    arrange(viewer, overlays[0])
    return viewer


def _add(viewer: napari.Viewer, wanted: Sequence[LayerData]) -> None:
    from napari.layers import Layer

    for data in wanted:
        layer = viewer.add_layer(Layer.create(*data))
        if layer.metadata["part"] == "truth" and not layer.visible:
            # As a line beside the prediction: where it leaves the coloured area, the prediction is wrong. A layer takes
            # its contour only when it is made already.
            layer.contour, layer.opacity, layer.visible = 1, 1.0, True


def _new_viewer(title: str) -> napari.Viewer:
    if not has_screen():  # Qt would end the whole process
        raise RuntimeError(
            "napari needs a screen, and there is none: overlay.screenshot(path) and overlay.widget() do not"
        )
    load_triton()  # before the first canvas is there
    try:
        import napari
    except ImportError as error:
        raise ImportError(f"napari cannot be imported ({error}): pip install 'xlstm-unet-lab[napari]'") from error
    return napari.Viewer(title=title or "xLSTM-UNet Lab")
