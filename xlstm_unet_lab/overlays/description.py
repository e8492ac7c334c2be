"""One description of what there is to see of a case, without any viewer; every view (napari, PNG, notebook) shows it.

overlay = lab.overlay(image, truth=truth, prediction=prediction, spacing=(3, 1, 1), label_names={"aorta": 1})
overlay.describe()      what is to be seen, in words
overlay.show()          in the best way there is here
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xlstm_unet_lab.data.cases import as_cases
from xlstm_unet_lab.data.images import read_case, read_label
from xlstm_unet_lab.data.label_evidence import numbers_found
from xlstm_unet_lab.ops.checks import UNITS, checked_spacing, did_you_mean, is_whole, one_of, whole_number
from xlstm_unet_lab.ops.stored import check_fields
from xlstm_unet_lab.ops.words import printable
from xlstm_unet_lab.overlays import checks
from xlstm_unet_lab.overlays.case_maps import CaseMaps
from xlstm_unet_lab.overlays.text import describe

if TYPE_CHECKING:
    from xlstm_unet_lab.data.cases import Cases
    from xlstm_unet_lab.evaluation.cases import Predictions

MAPS = ("truth", "prediction", "instances")
# Degrees, of the 3-D camera: anatomical volumes are seen from the front and a little from above, others along axis 0.
ANGLES = {True: (14.0, 0.0, 104.0), False: (0.0, 0.0, 0.0)}


class Overlay(CaseMaps):
    """What there is to see of one case. Make it with `overlay` or `overlay_case`, which check everything."""

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
        """How to look at a volume: angles in degrees, centre in the overlay's unit; all of it just fits."""
        centre = tuple((size - 1) / 2 * step for size, step in zip(self.shape, self.spacing, strict=True))
        return {"angles": ANGLES[self.anatomical and len(self.shape) == 3], "centre": centre}

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
            if not is_whole(axis, 0) or axis not in (0, 1, 2):
                raise IndexError(f"axis is {axis}; a volume has axes 0, 1 and 2")
            if index is None:
                index = self.initial_slice if axis == 0 else self.shape[axis] // 2
            if not is_whole(index, 0) or index >= self.shape[axis]:
                raise IndexError(f"slice {index} of axis {axis} was asked for; there are {self.shape[axis]}, from 0")
            array = array.take(index, axis - 3)
        return array[..., ::-1, ::-1] if self.anatomical else array

    def describe(self) -> str:
        """What is to be seen, in sentences: grid, every label's size and Dice, where the largest error lies."""
        return describe(self)

    def napari(self, viewer=None):
        """Open a napari viewer, or bring `viewer` up to date with this overlay; returns it. Needs a screen."""
        from xlstm_unet_lab.overlays.viewer import open_viewer

        return open_viewer(self, viewer)

    def rescore(self, viewer=None) -> Overlay:
        """Read truth and prediction as they were edited in the viewer (None: the one used last): overlay =
        overlay.rescore(). Errors, scores, outlines and hover text follow there and in the overlay returned.

        This overlay stays as it was. Objects (`instances`) are left out, with a warning, once the prediction they were
        found in was edited. Raises ValueError where no viewer is open, it does not show this overlay, or a value was
        painted that is no label.
        """
        from xlstm_unet_lab.overlays.viewer import rescore

        return rescore(self, viewer)

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
    label, or of every label or region alone; spacing: distance between voxels in `unit` ("mm" or "pixel"), all 1 if not
    given; label_names: name -> label value, or values for regions that overlap (None: "label 1", ... for the values
    found); colours: label value -> "#rrggbb", a colour-blind safe one for each that is not given, with a warning where
    there are more labels than such colours.
    anatomical: the axes run towards the patient's (superior, anterior, right), as in prepared volumes; cut: the axis
    of the volume across which a 2-D image was cut, 0 for axial, 1 for coronal, 2 for sagittal slices.
    Raises ValueError for shapes, a spacing, label values or colours that do not fit, TypeError for another dtype.
    """
    words = {"channel_names": channel_names, "label_names": label_names, "colours": colours, "title": title}
    check_fields(overlay, words | {"credit": credit, "anatomical": anatomical})
    image = checks.checked_image(image)
    size = image.shape[1:]
    one_of("unit", unit, UNITS)
    if not is_whole(cut, 0) or cut not in range(3 if len(size) == 2 else 1):
        raise ValueError(f"cut is {cut}; a 2-D image was cut across axis 0, 1 or 2 of a volume, a volume is not cut")
    given = zip(MAPS, (truth, prediction, instances), strict=True)
    maps = {what: checks.checked_map(what, array, size) for what, array in given}
    maps["probabilities"] = checks.checked_probabilities(probabilities, size)
    found = checks.label_values(maps["truth"]) | checks.label_values(maps["prediction"])
    labels = checks.checked_labels(label_names, found, maps["probabilities"])
    known = {"unit": unit, "anatomical": anatomical, "cut": cut, "title": printable(title), "credit": printable(credit)}
    known |= {"spacing": checked_spacing((1,) * len(size) if spacing is None else spacing, len(size))}
    known |= {"channel_names": checks.checked_channel_names(channel_names, len(image)), "labels": labels}
    return Overlay(image=image, colours=checks.checked_colours(colours, labels), **maps, **known)


def overlay_case(
    dataset: Cases,
    index: int,
    prediction: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    instances: np.ndarray | None = None,
) -> Overlay:
    """`overlay` of one case of a data set, with the names, colours, spacing and licence of its recipe."""
    dataset = as_cases(dataset)
    recipe = dataset.facts.recipe
    if recipe is None:
        raise ValueError("the data set has no recipe that says what its labels are: call overlay with its arrays")
    case = dataset.view(whole_number("index", index, 0, len(dataset) - 1))
    maps = {"truth": case["label"].numpy().copy()}  # which may be the data set's own memory
    maps |= {"prediction": prediction, "probabilities": probabilities, "instances": instances}
    known = {"title": case["name"], "spacing": case["spacing"], "unit": recipe.spacing_unit, "credit": recipe.credit}
    known |= {"label_names": recipe.targets.foreground, "colours": recipe.shown_colours}
    known |= {"channel_names": recipe.channel_names, "anatomical": recipe.file_ending.startswith(".nii")}
    return overlay(dataset.raw(index), **maps, **known, cut=dataset.facts.slice_axis or 0)


def overlay_files(
    image: Path | Sequence[Path], prediction: Path | None = None, truth: Path | None = None, **facts
) -> Overlay:
    """`overlay` of an image's file, or of one a channel, and of the files of labels that there are.

    facts: further arguments of `overlay`, in place of what the files say. Errors also as files are read, and for labels
    that look like shades where no label_names are given.
    """
    case, file = read_case(image), image if isinstance(image, Path) else image[0]
    given = {"prediction": prediction, "truth": truth}
    labels = {what: read_label(path)[0] for what, path in given.items() if path is not None}
    if "label_names" not in facts:
        numbers_found((str(given[what]), label) for what, label in labels.items())
    known = {"spacing": case.spacing, "unit": case.unit, "anatomical": case.unit == "mm", "title": file.name}
    known["channel_names"] = ("red", "green", "blue") if case.unit == "pixel" and len(case.image) == 3 else None
    return replace(overlay(case.image, **known | labels | facts), file=file)


def overlay_outcome(predictions: Predictions, name: str) -> Overlay:
    """`overlay` of one case of a model's predictions, whose images are known, beside the truth.

    Raises KeyError for a name that is none of them.
    """
    if name not in predictions.names:
        raise KeyError(f"no case is named {name!r}: {did_you_mean(name, predictions.names)}")
    outcome, unit = predictions.outcome(name), predictions.scoring["unit"]
    strangers = sorted(checks.label_values(outcome.prediction) - predictions.colours.keys())
    names = {**predictions.scoring["labels"], **{f"label {value}": value for value in strangers}}
    maps = {"truth": outcome.truth, "prediction": outcome.prediction, "instances": outcome.predicted_instances}
    known = {"title": name, "spacing": outcome.spacing, "unit": unit, "anatomical": unit == "mm"}
    known |= {"label_names": names, "colours": predictions.colours, "credit": predictions.credit}
    return overlay(predictions.image(name), **maps, **known, channel_names=predictions.channel_names or None)
