"""Describe a folder in nnU-Net's raw format: beside its imagesTr, labelsTr, ... dataset.json and splits_final.json.

The layout is the one of nnU-Net v2's documentation (dataset format). Instance maps, which nnU-Net does not know, lie
beside it in instancesTr and instancesTs and do not disturb it. Recipes write the cases.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

from xlstm_unet_lab.data.files import check_pairs, files_by_name
from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.ops.stored import fits, read_json

FOLDS = 5
PARTS = {"training": "Tr", "test": "Ts"}
Fold = Mapping[str, tuple[str, ...]]  # "train" and "val" -> names of cases


def case_names(folder: Path, part: str, file_ending: str) -> list[str]:
    """The names of the cases of one part, in order, read from its label files.

    Raises ValueError when an image has no label or a label no image.
    """
    images, labels = (set(files_by_name(folder / f"{what}{part}", [file_ending])) for what in ("images", "labels"))
    check_pairs(f"{folder.name}, part {part}", {image[: -len("_0000")] for image in images}, labels)
    return sorted(labels)


def write_dataset_json(folder: Path, recipe: Recipe) -> dict[str, int]:
    """Write dataset.json for the cases that lie in `folder`; returns how many there are to train on and to test on."""
    counts = {what: len(case_names(folder, part, recipe.file_ending)) for what, part in PARTS.items()}
    facts: dict[str, object] = {"name": recipe.name, "description": recipe.title, "reference": recipe.citation}
    facts |= {"licence": recipe.licence, "numTraining": counts["training"], "file_ending": recipe.file_ending}
    # JSON writes the numbers of the channels as text, as nnU-Net wants them.
    facts |= {"channel_names": dict(enumerate(recipe.channel_names)), "labels": dict(recipe.labels)}
    if recipe.flip_axes is not None:  # read by our trainers; nnU-Net counts the axes of a picture from 1
        facts["mirror_axes"] = [axis + 3 - recipe.spatial_dims for axis in recipe.flip_axes]
    if recipe.regions:  # nnU-Net's region-based training
        facts["labels"] = {"background": 0} | {name: list(values) for name, values in recipe.regions.items()}
        facts["regions_class_order"] = list(recipe.painted)
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n")
    return counts


class Described(TypedDict):
    """What is read of a dataset.json."""

    labels: Mapping[str, int | tuple[int, ...]]  # the values of a region
    channel_names: Mapping[str, str]
    file_ending: str


def read_splits(folder: Path) -> list[dict[str, list[str]]]:
    """The folds in the splits_final.json of a folder; ValueError, naming it, where there is none or one is no fold."""
    path, folds = folder / "splits_final.json", read_json(folder / "splits_final.json", list)
    if not folds or not all(fits(fold, Fold) and fold.keys() == {"train", "val"} for fold in folds):
        raise ValueError(f'{path} must hold folds, each with the case names of "train" and of "val"')
    return folds


def write_splits(folder: Path, file_ending: str, group: Callable[[str], str] = str) -> None:
    """Write five folds, every fifth group of cases in name order to each: the same on every machine.

    Cases for which `group` gives the same name (one patient's, one video's) stay together; `str` keeps each by itself.
    Raises ValueError for fewer groups than folds.
    """
    names = case_names(folder, "Tr", file_ending)
    fold_of = {one: place % FOLDS for place, one in enumerate(sorted(set(map(group, names))))}
    if len(fold_of) < FOLDS:
        together = "" if len(fold_of) == len(names) else f" in {len(fold_of)} groups that must stay together"
        raise ValueError(f"{len(names)} training cases{together} were found; {FOLDS} folds need at least {FOLDS}")
    validated = [[name for name in names if fold_of[group(name)] == fold] for fold in range(FOLDS)]
    folds = [{"train": sorted(set(names) - set(val)), "val": val} for val in validated]
    (folder / "splits_final.json").write_text(json.dumps(folds, indent=2) + "\n")
