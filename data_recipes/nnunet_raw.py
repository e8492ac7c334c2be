"""A folder in nnU-Net's raw format that others made: a data set as it stands, which is read and never written to.

    DatasetNNN_NAME/dataset.json                 channel_names, labels or regions, file_ending
    DatasetNNN_NAME/imagesTr/CASE_0000.nii.gz    a file for each channel; pictures have one, or one for each channel
    DatasetNNN_NAME/labelsTr/CASE.nii.gz         imagesTs and labelsTs are the cases to test on, where there are labels

Its folds are those in splits_final.json: in the folder, or where nnU-Net keeps what it has preprocessed. Without such a
file they are the five that nnU-Net would draw. Volumes are flipped in training along the axes that "mirror_axes" names
in dataset.json, counted from 0 in the order (z, y, x), and else not at all, for left and right of a body differ;
pictures are flipped along both axes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from data_recipes.shared.problems import check_none
from xlstm_unet_lab.data.colours import LABEL_COLOURS as COLOURS
from xlstm_unet_lab.data.files import channels_of, files_by_name
from xlstm_unet_lab.data.images import VOLUMES, read_case
from xlstm_unet_lab.data.nnunet_raw import FOLDS, case_names, read_splits
from xlstm_unet_lab.data.recipe import DESCRIBED, ENDINGS, Recipe, Track
from xlstm_unet_lab.data.volumes import check_grid, load_volume, spacing_of
from xlstm_unet_lab.ops.checks import is_whole, members, one_of
from xlstm_unet_lab.ops.files import plain_name
from xlstm_unet_lab.ops.stored import read_json

SPLITS = "splits_final.json"
PREPROCESSED = "nnUNet_preprocessed"  # nnU-Net's environment variable, and how the folder is usually called
SEED = 12345  # with which nnU-Net draws its folds
LONGEST = 300  # letters of a licence or a reference
MOST_VALUES = 255  # label values beside background
OLD = "labels by their numbers, as nnU-Net 1 and the Medical Segmentation Decathlon do"


def recipe_for(source: Path, known: Mapping[str, Recipe] | None = None) -> Recipe:
    """The recipe of a folder, called as the folder: what dataset.json says, held against the headers of all files.

    Raises FileNotFoundError for a missing file or folder, ValueError, naming the file, for a dataset.json that is none
    or asks for what there is not here (an ignore label, other file endings), and with a list of the cases whose
    channels or grids do not fit.
    """
    path, name = source / DESCRIBED, plain_name("the name of a data set", source.name)
    if Path(__file__).with_name(f"{name}.py").is_file():
        raise ValueError(f"{source} is called as a recipe here: rename it, as nnU-Net does, to Dataset777_{name}")
    facts = read_json(path)
    if "dataset" in facts:
        raise ValueError(f'{path} lists its files under "dataset": put or link them into imagesTr and labelsTr')
    ending = one_of(f"file_ending in {path}", facts.get("file_ending"), ENDINGS)
    channels, (labels, regions, painted) = _channels(path, facts), _labels(path, facts)
    flat = ending not in VOLUMES
    voxel = _checked(source, ending, len(channels))
    number = re.match(r"Dataset(\d{3})_", name)
    said = {what: str(facts.get(what) or "")[:LONGEST] for what in ("licence", "reference")}
    return replace(
        RECIPE,
        name=name,
        dataset_id=int(number[1]) if number and int(number[1]) else RECIPE.dataset_id,
        title=f"{name}, a folder in nnU-Net's raw format",
        modality=", ".join(channels),
        spatial_dims=2 if flat else 3,
        channel_names=channels,
        labels=labels,
        colours={label: COLOURS[place % len(COLOURS)] for place, label in enumerate([*labels][1:])},
        regions=regions,
        painted=painted,
        tolerances=dict.fromkeys(regions or [*labels][1:], voxel),
        spacing_unit="pixel" if flat else "mm",
        flip_axes=_flip_axes(path, facts, 2 if flat else 3),
        file_ending=ending,
        licence=said["licence"] or "not stated",
        citation=said["reference"],
        read_by=RECIPE.name,
        from_source=None,
    )


def convert(source: Path | None, out: Path, track: Track = iter) -> dict:
    """Nothing is converted: the folder is used as it stands. Raises ValueError."""
    raise ValueError(f"{source} is in nnU-Net's raw format already: give its path to load_dataset or train")


def folds_of(folder: Path) -> list[dict[str, list[str]]]:
    """The folds that nnU-Net uses for a folder: those of a splits_final.json, else those that it would draw.

    Fewer than five cases have a fold each, and a single one has none to validate on. Raises ValueError, naming the
    file, for a case that is not there, and for one that is trained and validated on.
    """
    names = case_names(folder, "Tr", read_json(folder / DESCRIBED)["file_ending"])
    beside = [above / PREPROCESSED for above in folder.absolute().parents[1:2]]
    preprocessed = [*filter(None, [os.environ.get(PREPROCESSED)]), *beside]
    places = [folder, *(Path(place) / folder.name for place in preprocessed)]
    place = next((place for place in places if (place / SPLITS).is_file()), None)
    if place is None:
        return drawn(names)
    folds = read_splits(place)
    for fold in folds:
        listed = [*fold["train"], *fold["val"]]
        if strangers := sorted(set(listed) - set(names)):
            raise ValueError(f"{place / SPLITS} names {strangers[:3]}, which {folder / 'labelsTr'} does not hold")
        if len(set(listed)) < len(listed):
            raise ValueError(f"{place / SPLITS} names a case twice in one fold: each is to train or to validate on")
    return folds


def drawn(names: list[str]) -> list[dict[str, list[str]]]:
    """Folds of these names, in their order, as nnU-Net draws them: scikit-learn's KFold, shuffled with its seed."""
    if len(names) < 2:
        return [{"train": names, "val": []}]
    order = np.arange(len(names))
    np.random.RandomState(SEED).shuffle(order)  # the older generator, as there
    parts = [set(part.tolist()) for part in np.array_split(order, min(FOLDS, len(names)))]
    folds = []
    for part in parts:
        train = [name for place, name in enumerate(names) if place not in part]
        folds.append({"train": train, "val": [names[place] for place in sorted(part)]})
    return folds


def _channels(path: Path, facts: Mapping) -> tuple[str, ...]:
    """The names of the channels, in the order of their numbers."""
    named = facts.get("channel_names", facts.get("modality"))
    if not isinstance(named, dict) or {*named} != {str(place) for place in range(len(named))} or not named:
        raise ValueError(f'{path} has channel_names {named!r}, expected a name for each number, as {{"0": "CT"}}')
    return tuple(str(named[str(place)]) for place in range(len(named)))


def _labels(path: Path, facts: Mapping) -> tuple[dict[str, int], dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Name -> number of the labels; region -> numbers, and the number that each region paints, or nothing of both."""
    named = facts.get("labels")
    if not isinstance(named, dict) or not named:
        raise ValueError(f'{path} has labels {named!r}, expected a number for each name, as {{"background": 0}}')
    if any(isinstance(number, str) for number in named.values()):
        raise ValueError(f"{path} names {OLD}: nnUNetv2_convert_MSD_dataset brings it to today's format")
    if "ignore" in named:
        why = "marks what nobody labelled, and losses and scores here cannot leave that out"
        raise ValueError(f'{path} has the label "ignore", which {why}: train on it inside nnU-Net, or leave those out')
    values = {name: members(f"{name!r} of labels in {path}", number) for name, number in named.items()}
    if values.pop("background", None) != (0,) or any(0 in numbers for numbers in values.values()):
        raise ValueError(f'{path} has labels {named}, expected "background": 0, and 0 for nothing else')
    there = sorted({number for numbers in values.values() for number in numbers})
    if there != [*range(1, len(there) + 1)] or not 0 < len(there) <= MOST_VALUES:
        raise ValueError(
            f"{path} has the label numbers {there[:9]}, expected 1, 2, ... without a gap, {MOST_VALUES} at most"
        )
    alone = {numbers[0]: name for name, numbers in values.items() if len(numbers) == 1}
    labels = {"background": 0} | {alone.get(number, f"label {number}"): number for number in there}
    if all(len(numbers) == 1 for numbers in values.values()):
        if len(labels) <= len(values):
            raise ValueError(f"{path} has labels {named}, expected another number for each name")
        return labels, {}, ()
    order = facts.get("regions_class_order")
    fitting = isinstance(order, list) and len(order) == len(values) and all(is_whole(n) and n in there for n in order)
    if not fitting:
        raise ValueError(
            f"{path} has regions_class_order {order!r}, expected the label that each of {[*values]} paints"
        )
    return labels, values, tuple(order)


def _flip_axes(path: Path, facts: Mapping, dims: int) -> tuple[int, ...] | None:
    """Axes as a Recipe counts them: nnU-Net counts those of a picture from 1."""
    axes = facts.get("mirror_axes")
    if axes is None:
        return None if dims == 2 else ()
    if not isinstance(axes, list) or not all(is_whole(axis, 3 - dims, 2) for axis in axes):
        raise ValueError(f"{path} has mirror_axes {axes!r}, expected a list of axes from {3 - dims} to 2")
    return tuple(sorted({axis - 3 + dims for axis in axes}))


def _checked(source: Path, ending: str, channels: int) -> float:
    """The longest side of a voxel, median over the cases; ValueError, with a list, for cases that do not fit."""
    problems, sides = [], []
    cases = {"Tr": case_names(source, "Tr", ending)}
    if not cases["Tr"]:
        raise ValueError(f"{source / 'labelsTr'} holds no file that ends in {ending}, as {DESCRIBED} says labels do")
    tested = files_by_name(source / "labelsTs", [ending]) if (source / "labelsTs").is_dir() else {}
    for part, names in (cases | {"Ts": [*tested]}).items():
        images = files_by_name(source / f"images{part}", [ending]) if names else {}
        for name in names:
            try:
                files = channels_of(name, images)
                sides.append(_side(files, source / f"labels{part}" / f"{name}{ending}", channels, not sides))
            except (ValueError, OSError) as error:
                problems.append(f"{name}: {error}")
    check_none(f"{source} cannot be used", problems)
    return float(median(sides))


def _side(files: list[Path], label: Path, channels: int, look_inside: bool) -> float:
    """The longest side of a voxel of one case. Of volumes the headers are read, for they may be many and large."""
    if label.name.endswith(VOLUMES):
        if len(files) != channels:
            raise ValueError(
                f"it has {len(files)} image files, expected _0000 and on, one for each of {channels} channels"
            )
        volumes = [load_volume(path) for path in (*files, label)]
        for path, volume in zip((*files, label), volumes, strict=True):
            check_grid(f"{path.parent.name}/{path.name}", volume, volumes[0])
        return max(spacing_of(volumes[0].affine))
    if len(files) not in (1, channels) or (look_inside and len(read_case(files, spatial_dims=2).image) != channels):
        raise ValueError(f"its image does not have the {channels} channels that {DESCRIBED} names")
    return 1.0


RECIPE = Recipe(
    name="nnunet_raw",
    dataset_id=499,
    title="A folder in nnU-Net's raw format, used as it stands: give its path in place of a name",
    modality="your own",
    spatial_dims=3,
    channel_names=("image",),
    labels={"background": 0, "label 1": 1},
    colours={"label 1": COLOURS[0]},
    metrics=("dice", "surface_dice"),
    tolerances={"label 1": 1.0},
    spacing_unit="mm",
    file_ending=".nii.gz",
    licence="your own",
    citation="",
    homepage="",
    from_source=recipe_for,
    convert=convert,
    splits=folds_of,
)
