"""What napari shows of an overlay, as plain data: arrays, keywords and kinds of layers. Needs no napari."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from operator import attrgetter

import numpy as np

from xlstm_unet_lab.data.colours import GREY
from xlstm_unet_lab.evaluation.metrics import ERROR_COLOURS, ERRORS
from xlstm_unet_lab.inference.surfaces import surface
from xlstm_unet_lab.overlays.contrast import contrast
from xlstm_unet_lab.overlays.description import Overlay
from xlstm_unet_lab.overlays.text import with_score

LIGHT, SHADE = (
    (0.5, 0.75, 0.43),
    0.35,
)  # where it comes from, (z, y, x), mostly from the front; what is bright without it
LayerData = tuple[np.ndarray, dict, str]  # what napari makes a layer of: data, keywords, kind
# What tells overlays apart in a viewer: copies of one are the same as long as title, grid and channels are.
overlay_key = attrgetter("identity", "title", "shape", "spacing", "unit", "channel_names", "anatomical")


def layer_data(
    overlay: Overlay, parts: Collection[str] | None = None, *, prefix: str = "", suffix: str = "", **keywords
) -> list[LayerData]:
    """What napari shows of an overlay, lowest layer first: (data, keywords, "image" or "labels").

    Every layer has a name (after `prefix`, before `suffix`), the overlay's scale and units, and says in its metadata to
    which "overlay" and "part" it belongs: "image 0", ..., "entropy", "probability", "prediction", "truth", "outlines",
    "errors". parts: those wanted, None for all; keywords: further ones of each layer. Lines instead of areas, and the
    looks of a volume, are up to `viewer.restyle`. Label maps are copies: what is painted in a viewer leaves the overlay
    as it was.
    """
    facts = {"overlay": overlay_key(overlay), "labels": overlay.labels, "names": overlay.value_names}
    facts |= {"camera": overlay.camera, "file": overlay.file}
    common = {"scale": overlay.spacing, "units": (overlay.unit,) * len(overlay.shape)}
    found = []
    for part, data, kind, style in (*_images(overlay), *_label_maps(overlay)):
        if parts is None or part in parts:
            name = f"{prefix}{style.pop('name', part)}{suffix}"
            own = {"name": name, "metadata": facts | {"part": part}}
            found.append((data, common | own | style | keywords, kind))
    return found


def _images(overlay: Overlay) -> Iterator[tuple[str, np.ndarray, str, dict]]:
    """Part, data, kind, and the keywords that are its own."""
    if overlay.is_colour:
        yield "image 0", _as_rgb(overlay.image), "image", {"name": "image", "rgb": True}
    else:
        for channel, (name, image) in enumerate(zip(overlay.channel_names, overlay.image, strict=True)):
            style = {"name": name, "contrast_limits": contrast(image), "colormap": "gray"}
            style["visible"] = channel == 0  # the sequences of an MRI lie exactly on top of each other
            style["blending"] = "translucent_no_depth"  # in 3-D the labels inside stay visible
            yield f"image {channel}", image, "image", style
    if overlay.probabilities is not None:
        for part in ("entropy", "probability"):
            style = {"contrast_limits": (0.0, 1.0), "colormap": "viridis", "opacity": 0.7, "visible": False}
            yield part, getattr(overlay, part), "image", style


def _label_maps(overlay: Overlay) -> Iterator[tuple[str, np.ndarray, str, dict]]:
    for part in ("prediction", "truth"):
        if (label := getattr(overlay, part)) is not None:
            style = {"colormap": _colormap(overlay.colours), "features": hover_text(overlay), "opacity": 0.5}
            yield part, label.copy(), "labels", style
    if overlay.outlines is not None:
        style = {"colormap": {None: "white", 0: "transparent"}, "visible": overlay.instances is not None}
        yield "outlines", overlay.outlines.astype(np.uint8), "labels", style | {"opacity": 0.8}
    if overlay.errors is not None:
        kinds = {"index": range(len(ERRORS) + 1), "error": [None, *ERRORS]}
        style = {"colormap": _colormap(ERROR_COLOURS), "features": kinds, "opacity": 0.9, "visible": False}
        yield "errors", overlay.errors, "labels", style


def _colormap(colours: dict[int, str]) -> dict[int | None, str]:
    return {None: GREY, 0: "transparent"} | colours


def hover_text(overlay: Overlay) -> dict[str, list]:
    """Napari's table of features such that its status line reads "label 5: aorta, Dice 0.83" over label 5.

    The status line joins "column: entry" of all that is not empty, so every label has a column to itself.
    """
    index = [0, *overlay.value_names]
    words = {value: with_score(overlay, name) for value, name in overlay.value_names.items()}
    columns = {f"label {value}": [text if row == value else None for row in index] for value, text in words.items()}
    return {"index": index} | columns


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """(3, *spatial) -> (*spatial, 3) as napari wants it: uint8, or float between 0 and 1."""
    colour = np.moveaxis(image, 0, -1)
    if image.dtype == np.uint8:
        return colour
    low, high = contrast(image)
    return ((colour - low) / (high - low)).clip(0, 1)


def lies_like(layer) -> dict:
    """The keywords that lay another layer of napari's exactly on this one."""
    turned = {"rotate": layer.rotate, "shear": layer.shear, "affine": layer.affine.affine_matrix}
    return {"scale": layer.scale, "translate": layer.translate, "units": layer.units} | turned


def surfaces_of(layer) -> Iterator[LayerData]:
    """A smooth mesh around every label of a label layer of napari's, in its colour: (data, keywords, "surface").

    Light and shade are in the colours: napari's own lamp stands behind what lies on turned axes (seen in napari 0.9).
    """
    from scipy.ndimage import find_objects

    for value, box in enumerate(find_objects(layer.data), start=1):
        if box is not None:
            corners, triangles = surface(layer.data[box] == value, layer.scale)
            colours = np.tile(layer.get_color(value), (len(corners), 1))
            colours[:, :3] *= _brightness(corners, triangles)
            places = corners / layer.scale + [side.start for side in box]
            # Beyond the middles of the outer voxels, sliders would become longer.
            mesh = places.clip(0, np.subtract(layer.data.shape, 1)), triangles
            own = {"name": f"{layer.metadata['names'].get(value, value)}, {layer.name}", "metadata": {"surface": True}}
            yield mesh, lies_like(layer) | own | {"vertex_colors": colours, "shading": "none"}, "surface"


def _brightness(corners: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """How bright each corner is, (N, 1): brightest where the surface faces the light, from either side."""
    first, second, third = corners[triangles].swapaxes(0, 1)
    facing = np.zeros_like(corners)
    np.add.at(facing, triangles, np.cross(second - first, third - first)[:, None])  # of all triangles that meet there
    return SHADE + (1 - SHADE) * np.abs(facing @ LIGHT)[:, None] / np.linalg.norm(facing, axis=1, keepdims=True)
