"""A live napari viewer that shows overlays: opened, arranged, following edits, several cases side by side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from xlstm_unet_lab.overlays.checks import label_values
from xlstm_unet_lab.overlays.description import Overlay
from xlstm_unet_lab.overlays.layers import LayerData, layer_data, overlay_key, surfaces_of
from xlstm_unet_lab.overlays.triton_first import load_triton
from xlstm_unet_lab.overlays.virtual_display import has_screen

if TYPE_CHECKING:
    import napari

# How array indices run on the screen. Anatomical axes run towards (superior, anterior, right): radiologists look from
# the feet, so that right is at the left and superior is farther away, which leaves the patient unmirrored in 3-D.
ORIENTATION = {True: ("away", "up", "left"), False: ("towards", "down", "right")}
IMAGE_OPACITY = 0.35  # in 3-D, where the image surrounds the labels


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
    _show(viewer, layer_data(overlay), before)
    if not before:
        arrange(viewer, overlay)
    elif active in viewer.layers:  # and not the last one that was added
        viewer.layers.selection.active = active
    return viewer


def layers_of(viewer: napari.Viewer, overlay: Overlay) -> dict[str, napari.layers.Layer]:
    """The layers that a viewer shows of an overlay: part -> layer."""
    return {part: layer for (key, part), layer in _of_overlays(viewer).items() if key == overlay_key(overlay)}


def _of_overlays(viewer: napari.Viewer) -> dict[tuple[tuple, str], napari.layers.Layer]:
    """What a viewer shows of all overlays: (`overlay_key`, part) -> layer, of a user's duplicates the lowest."""
    ours = [layer for layer in reversed(viewer.layers) if "overlay" in layer.metadata]
    return {(layer.metadata["overlay"], layer.metadata["part"]): layer for layer in ours}


def arrange(viewer: napari.Viewer, overlay: Overlay) -> None:
    """Turn axes and camera as the overlay is to be looked at, go to its initial slice, show the scale bar.

    The prediction (or the truth) becomes the active layer: the status line reads it, and painting changes it.
    """
    camera = viewer.scene.camera
    camera.orientation = ORIENTATION[overlay.anatomical]
    camera.synced = False  # else the middle of the volume in 3-D would become the slice in 2-D
    count = len(overlay.shape)  # the overlay's axes are the last ones: a layer of the user's may have more
    viewer.dims.axis_labels = (*viewer.dims.axis_labels[:-count], *overlay.axes)
    if count == 3:
        viewer.dims.set_point(viewer.dims.ndim - 3, overlay.initial_slice * overlay.spacing[0])
    viewer.reset_view()
    restyle(viewer)
    if viewer.dims.ndisplay == 3:
        _aim(viewer, overlay.camera)
    viewer.canvas.overlays.scale_bar.visible = True
    shown = layers_of(viewer, overlay)
    viewer.layers.selection.active = shown.get("prediction", shown.get("truth", viewer.layers[-1]))


def restyle(viewer: napari.Viewer) -> None:
    """Draw the layers of overlays as suits slices or the volume, now and whenever that changes, or whether errors show.

    Lines instead of areas: the truth beside a prediction, for where it leaves the coloured area the prediction is
    wrong, and the prediction while errors show, for their colours are labels' colours too. The volume, which has no
    lines, is seen from the overlay's camera, without these layers and outlines, and with a faint image around the rest:
    smooth surfaces, made anew each time, of the labels whose areas show in slices. Their voxels are hidden, and stay in
    a grid, whose cells hold the layers in turn. What the user had set comes back afterwards.
    """
    volume, ours = viewer.dims.ndisplay == 3, _of_overlays(viewer)
    errors = {key: layer for (key, part), layer in ours.items() if part == "errors"}
    for change in (viewer.dims.events.ndisplay, *(layer.events.visible for layer in errors.values())):
        if not any(getattr(callback, "func", None) is restyle for callback in change.callbacks):
            change.connect(partial(restyle, viewer))
    beside_prediction = {key for key, part in ours if part == "prediction"}
    beside_errors = {key for key, layer in errors.items() if layer.visible}
    smooth = volume and not viewer.canvas.grid.enabled
    meshes: list[LayerData] = []
    for (key, part), layer in ours.items():
        as_line = key in {"truth": beside_prediction, "prediction": beside_errors}.get(part, ())
        as_surface = smooth and not as_line and part in ("truth", "prediction") and layer.ndim == 3
        if as_surface and layer.metadata.get("style", ({}, {}))[1].get("visible", layer.visible):
            meshes += surfaces_of(layer)
        changed = _set_style(layer, _style_of(part, as_line, volume, as_surface))
        if changed and volume and part == "image 0":
            _aim(viewer, layer.metadata["camera"])
    _show_surfaces(viewer, meshes)


def _show_surfaces(viewer: napari.Viewer, meshes: Sequence[LayerData]) -> None:
    """These surfaces in place of all there were; the active layer stays, which painting changes."""
    active, over_canvas = viewer.layers.selection.active, viewer.mouse_over_canvas
    viewer.mouse_over_canvas = False  # where a mouse that has not moved in 3-D points to, napari 0.9 does not know
    for layer in [layer for layer in viewer.layers if "surface" in layer.metadata]:
        viewer.layers.remove(layer)
    for data, keywords, _ in meshes:
        viewer.add_surface(data, **keywords)
    if active in viewer.layers:
        viewer.layers.selection.active = active
    viewer.mouse_over_canvas = over_canvas


def _style_of(part: str, as_line: bool, volume: bool, as_surface: bool) -> dict:
    """What is to be otherwise with a layer than its maker or the user had it."""
    if volume and (as_line or as_surface or part == "outlines"):
        return {"visible": False}
    if volume:
        return {"opacity": IMAGE_OPACITY if part.startswith("image") else 1.0}
    return {"contour": 1, "opacity": 1.0} if as_line else {}


def _set_style(layer: napari.layers.Layer, style: dict) -> bool:
    """Give a layer a style, and back what it had before the last one; False where it wears this one already."""
    present, before = layer.metadata.get("style", ({}, {}))
    if style == present:
        return False
    # Noted first: hiding a layer of errors calls `restyle` again.
    layer.metadata["style"] = style, {what: before.get(what, getattr(layer, what)) for what in style}
    for what, value in (before | style).items():
        setattr(layer, what, value)
    return True


def _aim(viewer: napari.Viewer, seen_from: Mapping) -> None:
    viewer.reset_view()
    camera = viewer.scene.camera
    camera.angles, camera.center = seen_from["angles"], seen_from["centre"]


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
    _show(viewer, layer_data(result, shown), shown)
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
    every = [layer_data(overlay, prefix=f"{overlay.title}: ") for overlay in overlays]
    shared = set.intersection(*(set(map(_part, one)) for one in every))
    for one in every:
        _show(viewer, [layer for layer in one if _part(layer) in shared], {})
    cells = viewer.canvas.grid
    cells.stride, cells.enabled = len(shared), True
    for overlay in overlays:
        layers_of(viewer, overlay)["image 0"].name_overlay.visible = True  # which cell shows what
    arrange(viewer, overlays[0])
    return viewer


def _part(layer: LayerData) -> str:
    return layer[1]["metadata"]["part"]


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
            _renew(layer, data, keywords, kind)
        place = viewer.layers.index(layer) + 1
    for part in before.keys() - set(map(_part, wanted)):
        viewer.layers.remove(before[part])
    restyle(viewer)


def _renew(layer: napari.layers.Layer, data: np.ndarray, keywords: dict, kind: str) -> None:
    """Show new data in a layer that is there, with the user's settings kept but for what the data decides."""
    renewed = {"features", "colormap"} if kind == "labels" else set()
    if not np.array_equal(layer.data, data):
        layer.data = data
        renewed.add("contrast_limits")
    for what in renewed & keywords.keys():
        setattr(layer, what, keywords[what])
    layer.metadata.update(keywords["metadata"])


def _new_viewer(title: str) -> napari.Viewer:
    if not has_screen():  # Qt would end the whole process
        raise RuntimeError("napari needs a screen, and there is none: use overlay.screenshot(path) or overlay.widget()")
    load_triton()  # before the first canvas is there
    try:
        import napari
    except ImportError as error:
        raise ImportError(f"napari cannot be imported ({error}): pip install 'xlstm-unet-lab[napari]'") from error
    return napari.Viewer(title=title or "xLSTM-UNet Lab")
