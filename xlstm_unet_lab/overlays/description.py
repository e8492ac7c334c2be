"""One description of what there is to see of a case, without any viewer; every view (napari, PNG, notebook) shows it.

overlay = lab.overlay(image, truth=truth, prediction=prediction, spacing=(3, 1, 1), label_names={"aorta": 1})
overlay.describe()      what is to be seen, in words
overlay.show()          in the best way there is here
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_recipes.folder import COLOURS
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.figures.cases import error_map
from xlstm_unet_lab.inference.uncertainty import entropy, predicted_probability
from xlstm_unet_lab.ops.checks import did_you_mean
from xlstm_unet_lab.overlays.checks import checked_image, checked_labels, checked_map, is_hex_colour, label_values
from xlstm_unet_lab.overlays.text import describe

if TYPE_CHECKING:
    from xlstm_unet_lab.data.dataset import SegmentationDataset

UNITS = ("mm", "px")
MAPS = ("truth", "prediction", "instances")
# Degrees, of the 3-D camera: anatomical volumes are seen from the front and a little from above, others along axis 0.
ANGLES = {True: (14.0, 0.0, 104.0), False: (0.0, 0.0, 0.0)}


@dataclass(frozen=True, eq=False)
class Overlay:
    """What there is to see of one case. Make it with `overlay` or `overlay_case`, which check everything."""

    image: np.ndarray  # (C, *spatial), 2-D or 3-D, float32 or uint8
    spacing: tuple[float, ...]  # (z, y, x) or (y, x)
    unit: str  # "mm" or "px"
    channel_names: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]  # name -> the label values it covers, without background; regions overlap
    colours: dict[int, str]  # label value -> "#rrggbb"
    truth: np.ndarray | None  # (*spatial), integers
    prediction: np.ndarray | None
    probabilities: np.ndarray | None  # (channels, *spatial)
    instances: np.ndarray | None  # (*spatial), every predicted object its own number
    title: str
    credit: str  # licence of the data, "" if there is none to name
    anatomical: bool  # axes run towards (superior, anterior, right), as those of prepared volumes
    cut: int = 0  # the axis of a volume across which a 2-D image was cut
    # By this a viewer knows what it shows already: `dataclasses.replace` keeps it, every call of `overlay` makes one.
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along the spatial axes."""
        return self.image.shape[1:]

    @property
    def axes(self) -> str:
        """Names of the spatial axes: "zyx", or those of a slice."""
        return "zyx" if len(self.shape) == 3 else "zyx".replace("zyx"[self.cut], "")

    @property
    def is_colour(self) -> bool:
        """Whether the channels are red, green and blue."""
        return len(self.image) == 3 and tuple(name[:1].lower() for name in self.channel_names) == ("r", "g", "b")

    @property
    def value_names(self) -> dict[int, str]:
        """Label value -> the name shown for it: that of the smallest label or region that covers it."""
        smallest_last = sorted(self.labels.items(), key=lambda item: -len(item[1]))
        names = {value: name for name, values in smallest_last for value in values}
        return dict(sorted(names.items()))

    @cached_property
    def errors(self) -> np.ndarray | None:
        """0 right, 1 missed, 2 extra, 3 confused, uint8 (*spatial); None without truth and prediction."""
        if self.truth is None or self.prediction is None:
            return None
        return error_map(self.prediction, self.truth)

    @cached_property
    def entropy(self) -> np.ndarray | None:
        """How unsure the prediction is, 0 certain to 1 a guess, float32 (*spatial); None without probabilities."""
        return self._of_probabilities(entropy)

    @cached_property
    def probability(self) -> np.ndarray | None:
        """Probability of what was predicted, float32 (*spatial), as `predicted_probability`; None without any."""
        return self._of_probabilities(predicted_probability)

    def _of_probabilities(self, measure: Callable[..., np.ndarray]) -> np.ndarray | None:
        if self.probabilities is None:
            return None
        exclusive = len(self.probabilities) == len(self.labels) + 1  # background too; regions overlap and have none
        return measure(self.probabilities, exclusive=exclusive)

    @cached_property
    def outlines(self) -> np.ndarray | None:
        """Where a predicted object, or label, meets another within a slice, bool (*spatial); None without any."""
        objects = self.prediction if self.instances is None else self.instances
        if objects is None:
            return None
        border = np.zeros(objects.shape, bool)
        for axis in (-1, -2):
            values, marked = np.moveaxis(objects, axis, 0), np.moveaxis(border, axis, 0)
            meets = values[1:] != values[:-1]
            marked[1:] |= meets
            marked[:-1] |= meets
        return border & (objects > 0)

    @cached_property
    def initial_slice(self) -> int:
        """The slice along axis 0 to look at first: most errors, else most foreground, else the middle; 0 in 2-D."""
        if len(self.shape) == 2:
            return 0
        for maps in ((self.errors,), (self.truth, self.prediction, self.instances)):
            counts = sum(np.count_nonzero(shown, axis=(1, 2)) for shown in maps if shown is not None)
            if np.any(counts):
                return int(np.argmax(counts))
        return self.shape[0] // 2

    @property
    def camera(self) -> dict[str, float | tuple[float, ...]]:
        """How to look at a volume: angles in degrees, zoom (1: all of it just fits), centre in the overlay's unit."""
        centre = tuple((size - 1) / 2 * step for size, step in zip(self.shape, self.spacing, strict=True))
        return {"angles": ANGLES[self.anatomical and len(self.shape) == 3], "zoom": 1.0, "centre": centre}

    @cached_property
    def scores(self) -> dict[str, float]:
        """Dice of every label or region; empty without truth and prediction."""
        truth, prediction = self.truth, self.prediction
        if truth is None or prediction is None:
            return {}
        return {name: dice(np.isin(prediction, values), np.isin(truth, values)) for name, values in self.labels.items()}

    def shown(self, name: str, axis: int = 0, index: int | None = None) -> np.ndarray:
        """One slice as it is to be looked at: (rows, columns), of "image" and "probabilities" (C, rows, columns).

        name: "image", "truth", "prediction", "instances", "errors", "outlines", "entropy", "probability" or
        "probabilities"; axis and index: which slice of a volume (None: the middle, of axis 0 the initial slice).
        Anatomical slices are turned as radiologists look at them: right at the left, front or top at the top, and front
        at the left from the side.
        Raises KeyError for an unknown map, ValueError for one this overlay lacks, IndexError for a slice outside.
        """
        known = ("image", *MAPS, "errors", "outlines", "entropy", "probability", "probabilities")
        if name not in known:
            raise KeyError(f"no map is called {name!r}: {did_you_mean(name, known)}")
        array = getattr(self, name)
        if array is None:
            raise ValueError(f"this overlay has no {name}: hand over what it is made of")
        if len(self.shape) == 3:
            if axis not in (0, 1, 2):
                raise IndexError(f"axis is {axis}; a volume has axes 0, 1 and 2")
            if index is None:
                index = self.initial_slice if axis == 0 else self.shape[axis] // 2
            if not 0 <= index < self.shape[axis]:
                raise IndexError(f"slice {index} of axis {axis} was asked for; there are {self.shape[axis]}, from 0")
            array = array.take(index, axis - 3)
        return array[..., ::-1, ::-1] if self.anatomical else array

    def describe(self) -> str:
        """What is to be seen, in sentences: grid, every label's size and Dice, where the largest error lies."""
        return describe(self)

    def napari(self, viewer=None):
        """Open a napari viewer, or bring `viewer` up to date with this overlay; returns it. Needs a screen."""
        from xlstm_unet_lab.overlays import viewer as overlay_napari

        return overlay_napari.open_viewer(self, viewer)

    def rescore(self, viewer=None) -> Overlay:
        """Read truth and prediction as they were edited in the viewer (None: the one used last): overlay =
        overlay.rescore(). Errors, scores, outlines and hover text follow there and in the overlay returned.

        This overlay stays as it was. Objects (`instances`) are left out, with a warning, once the prediction they were
        found in was edited. Raises ValueError where no viewer is open, it does not show this overlay, or a value was
        painted that is no label.
        """
        from xlstm_unet_lab.overlays import viewer as overlay_napari

        return overlay_napari.rescore(self, viewer)

    def screenshot(self, path: str | Path, ndisplay: int = 2, size: tuple[int, int] = (1000, 800)) -> Path:
        """Write a PNG of the napari canvas with a legend and the description; returns its path. Needs no screen.

        ndisplay: 2 for a slice, 3 for the volume; size: (width, height) in pixels. Raises ValueError for others, and
        RuntimeError, in one line, where napari, OpenGL or Xvfb is missing.
        """
        from xlstm_unet_lab.overlays.screenshot import screenshot

        return screenshot(self, path, ndisplay, size)

    def widget(self):
        """A slicer for notebooks, which needs no screen where Python runs."""
        from xlstm_unet_lab.overlays.slicer import slicer

        return slicer(self)

    def show(self):
        """Show it in the best way there is here; the result says which one and why in its `reason`."""
        from xlstm_unet_lab.overlays.show import show

        return show(self)


def overlay(
    image: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    label_names: Mapping[str, int | Sequence[int]] | None = None,
    probabilities: np.ndarray | None = None,
    instances: np.ndarray | None = None,
    colours: Mapping[int, str] | None = None,
    unit: str = "mm",
    title: str = "",
    credit: str = "",
    anatomical: bool = False,
    cut: int = 0,
) -> Overlay:
    """Describe a case to look at: image (C, *spatial), 2-D or 3-D, and whatever is known of it.

    truth, prediction, instances: integers (*spatial); probabilities (channels, *spatial): of background and every
    label, or of every label or region alone; spacing: distance between voxels in `unit` ("mm" or "px"), all 1 if not
    given; label_names: name -> label value, or values for regions that overlap (None: "label 1", ... for the values
    found); colours: label value -> "#rrggbb", a colour-blind safe one for each that is not given, with a warning where
    there are more labels than such colours.
    anatomical: the axes run towards the patient's (superior, anterior, right), as in prepared volumes; cut: the axis
    of the volume across which a 2-D image was cut, 0 for axial, 1 for coronal, 2 for sagittal slices.
    Raises ValueError for shapes, a spacing, label values or colours that do not fit, TypeError for another dtype.
    """
    image = checked_image(image)
    size = image.shape[1:]
    names = tuple(channel_names or (f"channel {channel}" for channel in range(len(image))))
    steps = tuple(float(step) for step in (spacing if spacing is not None else (1,) * len(size)))
    if len(names) != len(image) or len(set(names)) != len(names):
        raise ValueError(f"channel_names are {names}; the image has {len(image)} channels, give each its own name")
    if len(steps) != len(size) or not all(np.isfinite(step) and step > 0 for step in steps):
        raise ValueError(f"spacing is {spacing}; expected {len(size)} numbers above 0, for an image of size {size}")
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}: {did_you_mean(unit, UNITS)}")
    if cut not in range(3 if len(size) == 2 else 1):
        raise ValueError(f"cut is {cut}; a 2-D image was cut across axis 0, 1 or 2 of a volume, a volume is not cut")
    given = zip(MAPS, (truth, prediction, instances), strict=True)
    maps = {what: checked_map(what, array, size) for what, array in given}
    found = {value for what in ("truth", "prediction") for value in label_values(maps[what])}
    if probabilities is not None:
        probabilities = np.asarray(probabilities)
        if probabilities.shape[1:] != size or probabilities.dtype.kind != "f":
            raise ValueError(
                f"probabilities are {probabilities.dtype} {probabilities.shape}; expected floats (channels, {size})"
            )
    labels = checked_labels(label_names, found, probabilities)
    values = sorted({value for covered in labels.values() for value in covered})
    if unknown := sorted(found - set(values)):
        raise ValueError(f"truth or prediction hold the values {unknown}, which label_names {labels} do not name")
    if len(set(values) - set(colours or {})) > len(COLOURS):
        warnings.warn(f"{len(values)} labels share {len(COLOURS)} colours: hand over more as colours=", stacklevel=2)
    palette = {value: COLOURS[place % len(COLOURS)] for place, value in enumerate(values)} | dict(colours or {})
    wrong = {value: colour for value, colour in palette.items() if value not in values or not is_hex_colour(colour)}
    if wrong:
        raise ValueError(f'colours {wrong} do not fit: name label values out of {values}, and colours as "#0072B2"')
    words = {"title": title, "credit": credit, "anatomical": anatomical, "cut": cut}
    return Overlay(image, steps, unit, names, labels, palette, **maps, probabilities=probabilities, **words)


def overlay_case(
    dataset: SegmentationDataset,
    index: int,
    prediction: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    instances: np.ndarray | None = None,
) -> Overlay:
    """`overlay` of one case of a data set, with the names, colours, spacing and licence of its recipe."""
    case, recipe = dataset[index], dataset.recipe
    return overlay(
        dataset.raw(index),
        truth=case["label"].numpy(),
        prediction=prediction,
        probabilities=probabilities,
        instances=instances,
        spacing=case["spacing"],
        unit="px" if recipe.spacing_unit == "pixel" else "mm",
        channel_names=recipe.channel_names,
        label_names=recipe.targets.foreground,
        colours={recipe.labels[name]: colour for name, colour in recipe.colours.items()},
        title=case["name"],
        credit=recipe.credit,
        anatomical=recipe.file_ending == ".nii.gz",
        cut=getattr(dataset, "axis", 0),  # of a SliceDataset
    )
