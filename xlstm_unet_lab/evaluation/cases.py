"""What was predicted beside what is true, case by case: from folders of files, or from a run on its own data set."""

import functools
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from nibabel import as_closest_canonical

from xlstm_unet_lab.data.colours import label_colours
from xlstm_unet_lab.data.dataset import SPLITS, SegmentationDataset, load_dataset
from xlstm_unet_lab.data.files import channels_of, files_by_name
from xlstm_unet_lab.data.images import ENDINGS, VOLUMES, ending, read_case, read_label
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.data.label_evidence import numbers_found
from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.data.registry import get_recipe, recipe_in
from xlstm_unet_lab.data.volumes import check_grid, load_volume
from xlstm_unet_lab.evaluation.report import Outcome, evaluate_cases, warn_if_lenient
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.inference.load import facts_of_run, load_predictor
from xlstm_unet_lab.inference.predictor import Windows
from xlstm_unet_lab.ops.checks import one_of


@dataclass(frozen=True)
class Predictions:
    """The cases of one model, each read or predicted when it is asked for."""

    names: tuple[str, ...]
    outcome: Callable[[str], Outcome]
    image: Callable[[str], np.ndarray] | None  # (C, *spatial), as stored; None when no images were named
    scoring: Mapping  # labels, tolerance and unit, as `evaluate_cases` takes them
    colours: Mapping[int, str]  # label value -> "#RRGGBB"
    credit: str = ""  # licence and citation of the data, as the recipe has them
    channel_names: tuple[str, ...] = ()  # of a run's images

    def table(self) -> pandas.DataFrame:
        """The scores of all cases, as `evaluate_cases` gives them."""
        return evaluate_cases(map(self.outcome, self.names), **self.scoring)


def from_run(
    run_directory: str | Path,
    *,
    split: str = "test",
    fold: int | None = None,
    which: str = "best",
    root: str | Path | None = None,
    **options,
) -> Predictions:
    """What a run predicts for a split of the data set it was trained on; options as of `Predictor`.

    A run on slices predicts and is scored on the volumes they were cut from. `fold=None` is the run's own: of another
    fold, validation cases are cases it was trained on.
    Raises ValueError for a run on data without a recipe, a split without cases and a data set whose labels are others,
    and as `load_predictor` and `load_dataset` do.
    """
    windows = Windows(**options)  # what is refused is refused before files are opened
    one_of("split", split, SPLITS)
    predictor = load_predictor(run_directory, which)
    cases = cases_of_run(run_directory, split, fold, root)
    predictor.mirrored_along(windows.mirror)
    recipe, place = cases.recipe, {name: index for index, name in enumerate(cases.names)}
    counted = (cases.folder / f"instances{cases.part}").is_dir()

    def outcome(name: str) -> Outcome:
        case = cases[place[name]]
        try:
            label = predictor(cases.raw(place[name]), case["spacing"], **options)
        except ValueError as error:
            raise ValueError(f"case {name}: {error}") from error
        objects = cases.instances(place[name]) if counted else None
        return _outcome(recipe, name, label, case["label"].numpy(), case["spacing"], objects)

    names = tuple(cases.names)
    return Predictions(names, outcome, lambda name: cases.raw(place[name]), *_stated_by(recipe), recipe.channel_names)


def cases_of_run(
    run_directory: str | Path, split: str = "test", fold: int | None = None, root: str | Path | None = None
) -> SegmentationDataset:
    """A split of the data set that a run was trained on; errors as `from_run`."""
    facts = facts_of_run(run_directory)
    recipe = facts.recipe
    if recipe is None:
        raise ValueError(f"{run_directory} does not name its data set: predict its files, then compare two folders")
    cases = load_dataset(recipe.name, split, root, facts.fold if fold is None else fold)
    if not cases.names:
        raise ValueError(f"no {split} cases of {recipe.name} were held out: use --split val, in Python split='val'")
    if dict(cases.recipe.labels) != dict(recipe.labels):
        there = f"{cases.folder} has the labels {dict(cases.recipe.labels)}"
        raise ValueError(f"{there}, the run learnt {dict(recipe.labels)}: name where its data lies by root= or --root")
    return cases


def from_folders(
    predictions: str | Path,
    truth: str | Path,
    *,
    recipe: str | Recipe | None = None,
    images: str | Path | None = None,
    root: str | Path | None = None,
) -> Predictions:
    """Label files of the same names in two folders, in any orientation, and the folder of their images.

    Names and tolerances of labels come from the recipe, which a prepared data set names itself; without one every value
    found in either is a label. Prepared labels count on from 1; where a user's own have other numbers, files are
    taken to have those, as `predict` writes them, unless nnU-Net's dataset.json lies in their folder or in that above.
    Raises FileNotFoundError for a missing folder, KeyError for an unknown recipe and ValueError, with names, where one
    folder has cases that another lacks, and where NIfTI files of one case lie on different grids.
    """
    truth = Path(truth)
    found, wanted = (files_by_name(Path(folder), tuple(ENDINGS)) for folder in (predictions, truth))
    if not wanted:
        raise ValueError(f"{truth} holds no label files: known endings are {', '.join(ENDINGS)}")
    if alone := sorted(found.keys() ^ wanted.keys()):
        raise ValueError(f"only one of {predictions} and {truth} has labels of {alone[:3]}: give one for each truth")
    if recipe is None:
        recipe = recipe_in(truth.absolute().parent, root)
    recipe = get_recipe(recipe, root) if isinstance(recipe, str) else recipe
    there = {} if images is None else files_by_name(Path(images), tuple(ENDINGS))
    channels = {name: channels_of(name, there) for name in wanted}
    if images is not None and (missing := [name for name, files in channels.items() if not files]):
        raise ValueError(f"{images} holds no image of {missing[:3]}")
    objects = truth.parent / truth.name.replace("labels", "instances")
    numbered = files_by_name(objects, tuple(ENDINGS)) if objects != truth and objects.is_dir() else {}

    read = read_label if recipe else _read_once()  # without a recipe all are read before the first is scored

    def outcome(name: str) -> Outcome:
        (label, _), (true, spacing) = (read(files[name]) for files in (found, wanted))
        _check_same_grid(found[name], wanted[name])
        label, true = _as_prepared(label, found[name], recipe), _as_prepared(true, wanted[name], recipe)
        objects = read_label(numbered[name])[0] if name in numbered else None
        return _outcome(recipe, name, label, true, spacing, objects)

    known = _stated_by(recipe) if recipe else _read_off([*wanted.values(), *found.values()], read)
    image = (lambda name: read_case(channels[name]).image) if there else None
    return Predictions(tuple(wanted), outcome, image, *known)


def _outcome(
    recipe: Recipe | None, name: str, label: np.ndarray, truth: np.ndarray, spacing, objects: np.ndarray | None
) -> Outcome:
    numbered = objects is not None and set(np.unique(label).tolist()) <= set(LABELS.values())
    found = instances_from_classes(label) if numbered else None
    group = None if recipe is None or recipe.group is str else recipe.group(name)
    return Outcome(name, label, truth, spacing, found, objects, group)


def _check_same_grid(prediction: Path, truth: Path) -> None:
    """ValueError unless the voxels of two NIfTI files, in whatever order of axes, lie in the same places."""
    if all(ending(path).startswith(".nii") for path in (prediction, truth)):
        volumes = [as_closest_canonical(load_volume(path)) for path in (prediction, truth)]
        check_grid(str(prediction), *volumes, str(truth))


def _as_prepared(label: np.ndarray, path: Path, recipe: Recipe | None) -> np.ndarray:
    """The label of a file in numbers that count on from 1, which a user's own files may not do."""
    counts_on = any((folder / "dataset.json").is_file() for folder in path.absolute().parents[:2])
    if recipe is None or not recipe.label_numbers or counts_on:
        return label
    numbers = [0, *recipe.label_numbers.values()]
    if strangers := sorted(set(np.unique(label).tolist()) - set(numbers)):
        raise ValueError(f"{path} holds {strangers[:5]}; your files of {recipe.name} have {dict(recipe.label_numbers)}")
    return np.searchsorted(numbers, label)


def _stated_by(recipe: Recipe) -> tuple[dict, dict[int, str], str]:
    """What a recipe says of predictions: how to score them, the colours of labels, and the credit."""
    if recipe.of_own_files:  # whose tolerance is the size of a voxel, which nobody chose
        warn_if_lenient(max(recipe.tolerances.values()), recipe.spacing_unit)
    scoring = {"labels": recipe.targets.foreground, "tolerance": dict(recipe.tolerances), "unit": recipe.spacing_unit}
    scoring |= {"labelled_slices_only": recipe.labelled_slices_only}
    return scoring, recipe.shown_colours, recipe.credit


def _read_off(paths: Collection[Path], read: Callable) -> tuple[dict, dict[int, str]]:
    """The same but the credit, as label files show it: every value but 0 is a label."""
    values = numbers_found((str(path), read(path)[0]) for path in paths)
    names = {f"label {value}": value for value in values or [1]}  # where nothing is labelled, nothing is wrong
    return {"labels": names, "unit": ("mm" if ending(next(iter(paths))) in VOLUMES else "pixel")}, label_colours(names)


def _read_once() -> Callable[[Path], tuple[np.ndarray, tuple[float, ...]]]:
    """`read_label` for files that are asked for twice: kept packed, in which labels take about a hundredth."""

    @functools.cache
    def packed(path: Path) -> tuple:
        label, spacing = read_label(path)
        return zlib.compress(label, level=1), label.shape, spacing

    def read(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
        content, shape, spacing = packed(path)
        return np.frombuffer(zlib.decompress(content), np.int32).reshape(shape), spacing

    return read
