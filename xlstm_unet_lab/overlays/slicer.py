"""A slicer for notebooks: one slice of a case in the browser, with labels, errors and read-out.

Why anywidget: its widgets run in JupyterLab, VS Code and Colab alike, their state travels through the notebook's own
connection and so reaches a remote server, and the browser's half is one file of plain JavaScript without a build. The
case is sent once, when the widget opens, and slices are drawn by the browser, so that a new slice waits for no network
and works while the kernel trains. ipympl sends a new picture from the kernel for every slice; ipycanvas sends drawing
commands; napari needs a screen where Python runs.
"""

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

try:
    import anywidget
    import traitlets
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the slicer needs anywidget: pip install -e '.[notebooks]'") from error

from xlstm_unet_lab.data.colours import OPACITY, in_colour
from xlstm_unet_lab.evaluation.metrics import ERROR_COLOURS, ERRORS
from xlstm_unet_lab.ops.checks import did_you_mean
from xlstm_unet_lab.overlays.contrast import contrast
from xlstm_unet_lab.overlays.description import Overlay

LEVELS = 4096  # brightness steps of a channel of floats, as many as scanners store; the noise below does not compress
LARGEST = 255  # label value; label maps travel as bytes
AXES = {True: ("axial (z)", "coronal (y)", "sagittal (x)"), False: ("z", "y", "x")}  # anatomical or not


class Slicer(anywidget.AnyWidget):
    """The widget that `slicer` makes. Its traits may be set from Python and follow what is done in the browser.

    window and level hold one number a channel, in the image's values: from level - window / 2, black, to level +
    window / 2, white. layers: the names of the maps laid over the image. TraitError for values that do not fit.
    """

    _esm = Path(__file__).with_name("slicer.js")

    scene = traitlets.Dict().tag(sync=True)  # what `scene` gives; the browser reads it once
    axis = traitlets.Int().tag(sync=True)
    slice = traitlets.Int().tag(sync=True)
    channel = traitlets.Int().tag(sync=True)
    opacity = traitlets.Float(OPACITY).tag(sync=True)
    window = traitlets.List(traitlets.Float()).tag(sync=True)
    level = traitlets.List(traitlets.Float()).tag(sync=True)
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)

    @traitlets.validate("axis", "slice", "channel", "opacity")
    def _within(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        counts = {"axis": len(self.scene["axes"]), "channel": len(self.scene["channels"])}
        highest = 1 if name == "opacity" else counts.get(name, self.scene["shape"][self.axis]) - 1
        if not 0 <= value <= highest:
            raise traitlets.TraitError(f"{name} is {value}; it goes from 0 to {highest} here")
        return value

    @traitlets.validate("window", "level")
    def _one_a_channel(self, proposal):
        name, values = proposal["trait"].name, proposal["value"]
        lowest = 0 if name == "window" else -np.inf
        names = [channel["name"] for channel in self.scene["channels"]]
        if len(values) != len(names) or not all(lowest < value < np.inf for value in values):
            kind = "finite number" + (" above 0" if name == "window" else "")
            raise traitlets.TraitError(f"{name} is {values}; give one {kind} for each of {', '.join(names)}")
        return values

    @traitlets.validate("layers")
    def _known(self, proposal):
        known = [layer["name"] for layer in self.scene["layers"]]
        for name in proposal["value"]:
            if name not in known:
                raise traitlets.TraitError(f"no layer is called {name!r}: {did_you_mean(name, known)}")
        return proposal["value"]

    @traitlets.observe("layers")
    def _errors_by_themselves(self, change):
        # Errors and labels share colours, so what was painted of labels makes way for them; it can be called back.
        if "errors" in change["new"] and "errors" not in change["old"]:
            painted = {"truth", "prediction"}.intersection(change["old"])
            self.layers = [name for name in change["new"] if name not in painted]

    @traitlets.observe("axis")
    def _stay_inside(self, _change):
        self.slice = min(self.slice, self.scene["shape"][self.axis] - 1)

    def _repr_mimebundle_(self, **options):
        # Where the widget cannot be shown (a page made from the notebook), its description stands in.
        data, metadata = super()._repr_mimebundle_(**options)
        return data | {"text/plain": self.scene["description"]}, metadata


def slicer(overlay: Overlay) -> Slicer:
    """The slicer of a case, at its initial slice, with the prediction, or else the truth, over the image.

    Raises ValueError for label values over 255.
    """
    shown = scene(overlay)
    present = [layer["name"] for layer in shown["layers"]]
    windows = [channel["window"] for channel in shown["channels"]]
    return Slicer(
        scene=shown,
        slice=overlay.initial_slice,
        window=[high - low for low, high in windows],
        level=[(low + high) / 2 for low, high in windows],
        layers=[name for name in ("prediction", "truth") if name in present][:1]
        + ["outlines"] * (overlay.instances is not None),
    )


def scene(overlay: Overlay) -> dict:
    """Everything the browser draws: plain values and bytes. A 2-D image is a volume of one slice, seen along axis 0.

    Volumes are gzipped in C order (z, y, x): channels as little-endian uint16 codes (value = low + step * code), layers
    as uint8. A layer's table has 256 rows of red, green, blue and opacity, uint8. Errors as in `slicer`.
    """
    if max(overlay.colours, default=0) > LARGEST:
        raise ValueError(
            f"label value {max(overlay.colours)}, the slicer shows values up to {LARGEST}: give objects as instances"
        )
    flat = len(overlay.shape) == 2
    colour = [("colour", overlay.image)] if overlay.is_colour else None
    channels = colour or zip(overlay.channel_names, overlay.image[:, None], strict=True)
    names = AXES[overlay.anatomical][overlay.cut :][: 1 if flat else 3]
    legend = [
        {"name": name, "colour": overlay.colours[value], "dice": overlay.scores.get(name)}
        for value, name in overlay.value_names.items()
    ]
    if overlay.errors is not None:
        legend += [{"name": name, "colour": shade, "layer": "errors"} for name, shade in ERRORS.items()]
    sent = {"title": overlay.title, "description": overlay.describe(), "credit": overlay.credit, "unit": overlay.unit}
    sent |= {"shape": [1] * flat + list(overlay.shape), "spacing": [1.0] * flat + list(overlay.spacing)}
    sent["axes"] = [{"name": name, "turned": [overlay.anatomical] * 2} for name in names]  # rows, columns, as `shown`
    sent["channels"] = [_channel(name, planes) for name, planes in channels]
    return sent | {"layers": list(_layers(overlay)), "legend": legend}


def _channel(name: str, planes: np.ndarray) -> dict:
    """planes (P, *spatial): one plane to be shown in grey, or red, green and blue."""
    as_bytes = planes.dtype == np.uint8
    low, high = (0.0, 255.0) if as_bytes else (float(planes.min()), float(planes.max()))
    step = 1.0 if as_bytes or high == low else (high - low) / (LEVELS - 1)
    codes = np.rint((planes - np.float32(low)) / np.float32(step)).astype("<u2")
    finished = as_bytes and len(planes) == 3  # a photograph, shown as it was taken
    window = (low, high) if finished else contrast(planes)
    packed = [_pack(plane) for plane in codes]
    return {"name": name, "low": low, "high": high, "step": step, "planes": packed, "window": window}


def _layers(overlay: Overlay) -> Iterator[dict]:
    for name in ("truth", "prediction"):
        if getattr(overlay, name) is not None:
            yield _layer(name, getattr(overlay, name), overlay.colours, {0: "background"} | overlay.value_names)
    if overlay.errors is not None:
        yield _layer("errors", overlay.errors, ERROR_COLOURS, dict(enumerate(ERRORS, start=1)))
    if overlay.outlines is not None:
        yield _layer("outlines", overlay.outlines, {1: "#ffffff"}, {})
    if overlay.probabilities is not None:
        from matplotlib import colormaps

        table = np.rint(255 * colormaps["viridis"](np.arange(256))).astype(np.uint8)
        for name in ("entropy", "probability"):
            table[:, 3] = np.arange(256)[:: 1 if name == "entropy" else -1]  # what is certain stays clear
            layer = _layer(name, np.rint(255 * getattr(overlay, name).clip(0, 1)), {}, {})
            yield layer | {"table": table.tobytes(), "step": 1 / 255}


def _layer(name: str, values: np.ndarray, colours: Mapping[int, str], names: Mapping[int, str]) -> dict:
    table = np.zeros((256, 4), np.uint8)
    table[:, :3] = in_colour(np.arange(256), colours)
    table[list(colours), 3] = 255
    words = {str(value): word for value, word in names.items()}
    return {"name": name, "data": _pack(values.astype(np.uint8)), "table": table.tobytes(), "names": words}


def _pack(values: np.ndarray) -> bytes:
    return gzip.compress(values.tobytes(), compresslevel=1, mtime=0)
