"""What napari opens through the plugin: cases of prepared data sets, training runs, and a case of every phantom."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from xlstm_unet_lab.data.colours import GREY
from xlstm_unet_lab.data.dataset import SegmentationDataset, load_dataset
from xlstm_unet_lab.data.images import read_case, read_label, whole_label
from xlstm_unet_lab.data.nnunet_raw import Described
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.registry import recipe_in
from xlstm_unet_lab.inference.files import case_name, find_cases
from xlstm_unet_lab.inference.load import facts_of_run, is_run, load_predictor
from xlstm_unet_lab.ops.devices import available_devices
from xlstm_unet_lab.ops.files import plain_name
from xlstm_unet_lab.ops.stored import read_fields
from xlstm_unet_lab.overlays.description import Overlay, overlay, overlay_case
from xlstm_unet_lab.overlays.layers import LayerData, layer_data
from xlstm_unet_lab.overlays.viewer import arrange


def reader(path: str | list[str]) -> Callable[[str], list[LayerData]] | None:
    """napari's question whether the plugin opens a path: the function that does, or None.

    It opens an image in imagesTr or imagesTs of a folder in nnU-Net's raw format, with its label, and a run directory:
    the first test case of its data set, with truth and prediction.
    """
    if isinstance(path, list):  # several files, to be stacked
        return None
    if is_run(path):
        return lambda path: _opened(run_overlay(path, track=_napari_progress))
    folder = Path(path).absolute().parent
    if folder.name in ("imagesTr", "imagesTs") and (folder.parent / "dataset.json").is_file():
        return lambda path: _opened(case_overlay(path))
    return None


def case_overlay(path: str | Path) -> Overlay:
    """The case an image file belongs to, in a folder in nnU-Net's raw format, with its label where there is one.

    Names and colours come from the recipe that prepared the folder, else from dataset.json, whose label "ignore" is
    grey. Raises ValueError for files that cannot be read or do not fit.
    """
    path = Path(path).absolute()
    folder, part, name = path.parents[1], path.parent.name[-2:], case_name(path)
    if recipe := recipe_in(folder):
        return overlay_case(SegmentationDataset(recipe, folder, part, [name]), 0)
    facts = read_fields(folder / "dataset.json", Described)
    named = {label: values for label, values in facts["labels"].items() if label != "background"}
    case, truth = read_case(find_cases(path.parent)[name]), None
    label = folder / f"labels{part}" / plain_name("the name of a label file", f"{name}{facts['file_ending']}")
    if label.is_file():
        known = {int(value) for values in facts["labels"].values() for value in np.atleast_1d(values)}
        truth = whole_label(str(label), read_label(label)[0], known)
    return overlay(
        case.image,
        truth=truth,
        spacing=case.spacing,
        unit=case.unit,
        channel_names=tuple(facts["channel_names"].values()),
        label_names=named,
        colours={named["ignore"]: GREY} if "ignore" in named else None,  # what nobody labelled
        title=name,
        anatomical=case.unit == "mm",
    )


def run_overlay(run_directory: str | Path, *, track: Track = iter) -> Overlay:
    """The first test case of the data set a run was trained on, with its truth and what the run predicts for it.

    A data set without test cases shows the first on which the run was validated. Raises ValueError for a run on data
    without a recipe, and as `load_predictor` and `load_dataset` do.
    """
    facts = facts_of_run(run_directory)
    if facts.recipe is None:
        raise ValueError(f"{run_directory} does not name its data set: open an image and use the widget Segment")
    name = facts.recipe.name
    cases = load_dataset(name, "test") or load_dataset(name, "val", fold=facts.fold)
    device = available_devices()[0]
    label = load_predictor(run_directory)(cases.raw(0), cases[0]["spacing"], device=device, track=track)
    return overlay_case(cases, 0, prediction=label)


def _napari_progress(batches):
    from napari.utils import progress

    return progress(batches, desc="predicting")


def _phantom(name: str) -> list[LayerData]:
    return _opened(overlay_case(load_dataset(name, "test"), 0))


def _opened(overlay: Overlay) -> list[LayerData]:
    """The layers, for napari to add; right after that axes, slice and camera are set as for any overlay."""
    import napari
    from qtpy.QtCore import QTimer

    if (viewer := napari.current_viewer()) is not None:
        QTimer.singleShot(0, partial(arrange, viewer, overlay))
    return layer_data(overlay)


phantom_abdomen, phantom_brain, phantom_endoscopy, phantom_long_range, phantom_microscopy = (
    partial(_phantom, f"phantom_{name}") for name in ("abdomen", "brain", "endoscopy", "long_range", "microscopy")
)
