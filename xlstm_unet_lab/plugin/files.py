"""What napari opens and saves through the plugin: cases, training runs, volumes, phantoms, and label layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from napari import current_viewer
from napari.utils import progress
from qtpy.QtCore import QTimer

from xlstm_unet_lab.data.colours import GREY
from xlstm_unet_lab.data.dataset import SegmentationDataset, load_dataset
from xlstm_unet_lab.data.images import LABEL_ENDINGS, VOLUMES, ending, read_case
from xlstm_unet_lab.data.nnunet_raw import Described
from xlstm_unet_lab.data.registry import recipe_in
from xlstm_unet_lab.inference.files import RAW, case_name, find_cases
from xlstm_unet_lab.inference.load import facts_of_run, is_run, load_predictor
from xlstm_unet_lab.ops.devices import available_devices
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.ops.stored import read_fields
from xlstm_unet_lab.overlays.description import Overlay, overlay_case, overlay_files
from xlstm_unet_lab.overlays.layers import LayerData, layer_data
from xlstm_unet_lab.overlays.viewer import arrange

KEPT = "_before"  # ends the name of the folder in which labels stay that corrections replace


def reader(path: str | list[str]) -> Callable[[str], list[LayerData]] | None:
    """napari's question whether the plugin opens a path: the function that does, or None.

    It opens an image in imagesTr or imagesTs of a folder in nnU-Net's raw format and any other NIfTI file, each with
    its label, and a run directory: the first test case of its data set, with truth and prediction.
    """
    if isinstance(path, list):  # several files, to be stacked
        return None
    if is_run(path):
        return lambda path: _opened(run_overlay(path, track=partial(progress, desc="predicting")))
    if _is_raw(Path(path).absolute()) or path.lower().endswith(VOLUMES):
        return lambda path: _opened(case_overlay(path))
    return None


def _is_raw(image: Path) -> bool:
    return image.parent.name in RAW and (image.parents[1] / "dataset.json").is_file()


def label_file(image: Path) -> Path:
    """Where the label of an image lies: in labelsTr beside imagesTr, in labels beside images, else in labels in there.

    In nnU-Net's raw format it ends as its image does, elsewhere as `predict` writes it.
    """
    folder, kind = image.parent, ending(image)
    beside = folder.with_name(folder.name.replace("images", "labels", 1))
    name = case_name(image) + (kind if _is_raw(image) else LABEL_ENDINGS[kind])
    return (folder / "labels" if beside == folder else beside) / name


def case_overlay(path: str | Path, prediction: np.ndarray | None = None) -> Overlay:
    """The case an image file belongs to, with its label where there is one, and what was predicted for it.

    In a folder in nnU-Net's raw format names and colours come from the recipe that prepared it, else from dataset.json,
    whose label "ignore" is grey. Raises ValueError for files that cannot be read or do not fit.
    """
    path = Path(path).absolute()
    folder, part, name = path.parents[1], path.parent.name[-2:], case_name(path)
    label = label_file(path) if label_file(path).is_file() else None
    if not _is_raw(path):
        shown = overlay_files(path, truth=label)
    elif label and (recipe := recipe_in(folder)):
        shown = overlay_case(SegmentationDataset(recipe, folder, part, [name]), 0)
    else:
        described = read_fields(folder / "dataset.json", Described)
        names = {name: values for name, values in described["labels"].items() if name != "background"}
        facts = {"title": name, "label_names": names, "channel_names": tuple(described["channel_names"].values())}
        facts["colours"] = {names["ignore"]: GREY} if "ignore" in names else None  # what nobody labelled
        shown = overlay_files(find_cases(path.parent)[name], truth=label, **facts)
    return replace(shown, prediction=prediction, file=path)


def run_overlay(run_directory: str | Path, **options) -> Overlay:
    """The first test case of the data set a run was trained on, with its truth and what the run predicts for it.

    Options of a call of `Predictor`, errors as `predicted_cases`.
    """
    file, _, label = next(predicted_cases(run_directory, **{"device": available_devices()[0]} | options))
    return case_overlay(file, label)


def predicted_cases(run_directory: str | Path, split: str = "test", **options) -> Iterator[tuple]:
    """What a run finds in the cases of a split of its data set, one after the other: image file, mean Dice, labels.

    Where there are none, such as test cases of some, those on which the run was validated. Raises ValueError for a run
    on data without a recipe, and as `load_predictor` and `load_dataset` do.
    """
    facts = facts_of_run(run_directory)
    if (recipe := facts.recipe) is None:
        raise ValueError(f"{run_directory} does not name its data set: open an image and use the widget Segment")
    load = partial(load_dataset, recipe.name, fold=facts.fold or 0)
    cases, predictor = load(split) or load("val"), load_predictor(run_directory)
    for index, name in enumerate(cases.names):
        label = predictor(cases.raw(index), cases.view(index)["spacing"], **options)
        scores = overlay_case(cases, index, label).scores.values()
        yield _image_file(cases, name), float(np.mean([*scores])), label


def _image_file(cases: SegmentationDataset, name: str) -> Path:
    return cases.folder / f"images{cases.part}" / f"{name}_0000{cases.recipe.file_ending}"


def cases_to_show(source: str | Path, split: str = "test", **options) -> list[tuple]:
    """The cases of a run, the worst first, as `predicted_cases` gives them; of a folder of images all, by
    name, with None for Dice and labels."""
    if is_run(source):
        return sorted(predicted_cases(source, split, **options), key=itemgetter(1))
    raw = Path(source) / RAW[0]
    return [(files[0].absolute(), None, None) for files in find_cases(raw if raw.is_dir() else source).values()]


def write_labels(path: str, data: np.ndarray, facts: dict) -> list[str]:
    """napari's Save of a label layer: a file on the grid of the image it was drawn on, whole or not at all.

    NIfTI has that image's affine, TIFF its resolution, PNG is grey; the numbers are the labels. Returns the path, in a
    list. Raises OSError, for napari takes a ValueError for a path that nobody writes: for a layer whose image nobody
    knows, another grid, a path that does not end as labels of that image do, and for values that are no labels.
    """
    known, layer, label = facts["metadata"], f"layer {facts['name']!r}", np.asarray(data)
    case = read_case(_image_of(layer, known), spatial_dims=label.ndim)
    if ending(Path(path)) != case.ending or label.shape != case.parts[0].shape[1:]:
        wanted = f"its image {known['file']} has {case.parts[0].shape[1:]}, and labels that end in {case.ending}"
        raise OSError(f"{layer} of shape {label.shape} cannot become {path}: {wanted}")
    painted = known["labels"].values() if known.get("part") in ("truth", "prediction") else [np.unique(label).tolist()]
    if strangers := sorted(set(np.unique(label).tolist()).difference({0}, *painted)):
        raise OSError(f"{layer} holds {strangers[:5]}: paint with one of the labels {known['names']}")
    return [str(write_whole(path, case.encode(label.astype(np.min_scalar_type(label.max())))))]


def save_label(layer) -> Path:
    """Save a label layer as the label of its image, where trainings find it; what was there first is kept.

    It stays beside the folder of labels, in one whose name ends in `KEPT`. Raises OSError as `write_labels`, and for a
    folder of labels that lies elsewhere than beside the images.
    """
    target = label_file(_image_of(f"layer {layer.name!r}", layer.metadata))
    folder, kept = target.parent, target.parent.with_name(f"{target.parent.name}{KEPT}") / target.name
    if folder.resolve().parent != folder.parent.resolve():
        raise OSError(f"{folder} is a link that leads elsewhere: save the layer there by napari's Save")
    folder.mkdir(exist_ok=True)
    if target.is_file() and not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, target.read_bytes())
    return Path(*write_labels(str(target), layer.data, {"name": layer.name, "metadata": layer.metadata}))


def _image_of(layer: str, known: Mapping) -> Path:
    if (image := known.get("file")) is None:
        raise OSError(
            f"nobody knows on which file {layer} was drawn: open the image by this plugin, it knows its place"
        )
    return image


def _phantom(name: str) -> list[LayerData]:
    cases = load_dataset(name, "test")
    return _opened(case_overlay(_image_file(cases, cases.names[0])))


def _opened(overlay: Overlay) -> list[LayerData]:
    """The layers, for napari to add; right after that axes, slice and camera are set as for any overlay."""
    if (viewer := current_viewer()) is not None:
        QTimer.singleShot(0, partial(arrange, viewer, overlay))
    return layer_data(overlay)


phantom_abdomen, phantom_brain, phantom_endoscopy, phantom_long_range, phantom_microscopy = (
    partial(_phantom, f"phantom_{name}") for name in ("abdomen", "brain", "endoscopy", "long_range", "microscopy")
)
