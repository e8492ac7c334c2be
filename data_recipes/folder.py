"""A user's own images and labels, 2-D or 3-D: what other recipes know beforehand is read off the files.

    FOLDER/images/NAME.png         pictures: png, jpg, bmp, tif; or volumes: nii.gz, nii
    FOLDER/labels/NAME.png         one number a pixel, 0 is background; not as jpg, which changes the numbers
    FOLDER/labels.json             optional, what the numbers mean: {"nucleus": 1, "debris": 2}

Several channels of a case are files of their own, NAME_0000, NAME_0001, ...

Prepared labels count on from 1, as networks and nnU-Net need them, whatever the numbers in the files are. `predict`
writes the numbers of the files again, so its labels can be scored against labels/ as well as against the prepared ones.

Pictures are flipped along both axes in training, for nothing is known of what they show. Volumes are not flipped: left
and right of a body differ. "flip_axes" in labels.json names the axes along which a mirror image is as likely, counted
from 0 in the order (z, y, x) or (y, x), z from foot to head and x from left to right: {"tumour": 1, "flip_axes": [2]}.

"regions" in labels.json names unions of labels to learn in place of the labels, larger ones first, for later ones are
painted over earlier ones: {"oedema": 1, "core": 2, "regions": {"tumour": ["oedema", "core"], "core": ["core"]}}.

splits.json may also list several folds, as nnU-Net's splits_final.json does; cases it does not name are held out to
test on. Without it every fifth case is held out where there are ten or more, and each of five folds validates on a
fifth of the others. Any number of cases will do: of fewer than five each has a fold, and one alone is trained on only.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from data_recipes.shared.conversion import Job, convert_cases
from data_recipes.shared.declared import Folds, declared_folds, declared_labels, folds_of_few, painted_by
from data_recipes.shared.problems import check_none
from data_recipes.shared.writing import write_case, write_volume
from xlstm_unet_lab.data import pictures
from xlstm_unet_lab.data.colours import LABEL_COLOURS as COLOURS
from xlstm_unet_lab.data.files import files_by_name
from xlstm_unet_lab.data.images import VOLUMES, Case, read_case, read_label, whole_numbers
from xlstm_unet_lab.data.label_evidence import check_hard_edges, check_one_convention
from xlstm_unet_lab.data.recipe import Recipe, Track
from xlstm_unet_lab.data.volumes import check_grid, load_volume, spacing_of, voxels

MOST_VALUES = 255  # label values that fit beside background into 8 bits
TEST_EVERY, FEWEST_TO_HOLD_OUT = 5, 10  # every fifth case in name order is held out, where there are ten or more


@dataclass(frozen=True)
class Survey:
    """What the files of a folder are, all of them checked against each other."""

    cases: dict[str, tuple[list[Path], Path]]  # name -> the files of its channels, and of its label
    spatial_dims: int
    channels: int
    values: dict[str, int]  # label name -> number in the files, in the order of the numbers, background left out
    voxel: float  # the longest side of a voxel, in mm, median over the cases; 1 in pictures
    flip_axes: tuple[int, ...] | None  # axes along which a mirror image is as likely; None: all of them
    regions: dict[str, tuple[int, ...]]  # unions of labels to learn instead, by their numbers in the files
    folds: Folds | None  # None: the usual five
    held_out: set[str]  # cases to test on


def recipe_for(source: Path, known: Mapping[str, Recipe] | None = None) -> Recipe:
    """The recipe of a user's folder, called as the folder, with the facts that its files show.

    Every image and label is looked at, unless `known` holds a recipe of this name and the files are those it was read
    off: its version is a checksum of their names, sizes and dates.
    Raises ValueError with a list of all that does not fit: missing partners, shapes, grids, channels, label values that
    are no whole numbers or not in labels.json, no case; FileNotFoundError for a missing folder.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder; unpack it and give the folder that holds images and labels")
    name = re.sub(r"[^A-Za-z0-9]+", "_", source.name).strip("_")
    if not name:
        raise ValueError(f"the folder's name {source.name!r} becomes the data set's; it needs letters or digits")
    version = _checksum(source)
    if known and name in known and known[name].version == version:
        return known[name]
    survey = look_through(source)
    labels = {"background": 0} | {label: position for position, label in enumerate(survey.values, start=1)}
    place = {number: labels[label] for label, number in survey.values.items()}
    regions = {region: tuple(place[number] for number in numbers) for region, numbers in survey.regions.items()}
    flat = survey.spatial_dims == 2
    one_file = all(len(files) == 1 for files, _ in survey.cases.values())
    several = ("R", "G", "B") if one_file else tuple(f"channel {channel}" for channel in range(survey.channels))
    return replace(
        RECIPE,
        name=name,
        title=f"Your own images and labels in {source.name}",
        spatial_dims=survey.spatial_dims,
        channel_names=("image",) if survey.channels == 1 else several,
        labels=labels,
        label_numbers={} if list(survey.values.values()) == list(labels.values())[1:] else survey.values,
        colours={label: COLOURS[position % len(COLOURS)] for position, label in enumerate(survey.values)},
        regions=regions,
        painted=painted_by(regions),
        tolerances=dict.fromkeys(regions or survey.values, survey.voxel),
        spacing_unit="pixel" if flat else "mm",
        flip_axes=survey.flip_axes,
        file_ending=".png" if flat else ".nii.gz",
        version=version,
        convert=partial(_convert, survey),
        from_source=None,
    )


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the cases of a user's folder to `out`; returns facts to record. Raises what `recipe_for` raises."""
    return recipe_for(source).convert(source, out, track)


def look_through(source: Path) -> Survey:
    """Pair images with labels and check every case; ValueError with a list of all that does not fit."""
    problems: list[str] = []
    flat, cases = _pair_up(source, problems)
    names, flip_axes, regions = declared_labels(source / "labels.json", spatial_dims=2 if flat else 3)
    try:
        folds, held_out = declared_folds(source / "splits.json", cases) or planned_folds([*cases])
    except ValueError as error:
        problems.append(str(error))
    look_at = _look_at_pictures if flat else _look_at_volumes
    channels, voxels_mm, numbers = {}, [], {}
    for name, (files, label) in cases.items():
        try:
            channels[name], voxel, found = look_at(files, label)
            if names is None:
                check_hard_edges("the label", found)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        voxels_mm.append(voxel)
        present = numbers[label.name] = set(np.unique(found).tolist()) - {0}
        if names is not None and present - set(names.values()):
            problems.append(f"{name}: the label holds {sorted(present - set(names.values()))[:5]}, not in labels.json")
    values = set().union(*numbers.values())
    if names is None:
        try:
            check_one_convention(numbers)
        except ValueError as error:
            problems.append(str(error))
    usual = Counter(channels.values()).most_common(1)[0][0] if channels else 0
    problems += [f"{name} has {n} channels, most have {usual}" for name, n in channels.items() if n != usual]
    if not cases and not problems:
        problems.append("no image has a label; one case at least is needed")
    if channels and not values:
        problems.append("the labels hold background (0) only")
    if len(values) > MOST_VALUES:
        problems.append(f"the labels hold {len(values)} numbers; give every class, not every object, its number")
    check_none(f"{source} cannot be prepared", problems)
    names = names or {f"label {value}": value for value in sorted(values)}
    return Survey(cases, 2 if flat else 3, usual, names, float(median(voxels_mm)), flip_axes, regions, folds, held_out)


def _pair_up(source: Path, problems: list[str]) -> tuple[bool, dict[str, tuple[list[Path], Path]]]:
    """Whether the images are pictures, and the complete cases in name order; what is left over is a problem."""
    for what in ("images", "labels"):
        if not (source / what).is_dir():
            raise FileNotFoundError(
                f"{source / what} is missing; a folder of pictures or NIfTI volumes is expected there"
            )
    kinds = {endings: files_by_name(source / "images", endings) for endings in (pictures.ENDINGS, VOLUMES)}
    kinds = {endings: files for endings, files in kinds.items() if files}
    if len(kinds) != 1:
        what = "both pictures and volumes" if kinds else "neither pictures nor volumes"
        raise ValueError(
            f"{source / 'images'} holds {what}; put files of one kind there: {', '.join(pictures.ENDINGS)}"
            f" for 2-D or {', '.join(VOLUMES)} for 3-D"
        )
    ((endings, images),) = kinds.items()
    labels = files_by_name(source / "labels", endings)
    files: dict[str, list[Path]] = {name: [] for name in labels}
    for stem, path in images.items():  # in name order, so that channels come in the order of their numbers
        numbered = re.fullmatch(r"(.+)_(\d{4})", stem)
        if stem in files:
            name, number = stem, 0
        elif numbered and numbered[1] in files:
            name, number = numbered[1], int(numbered[2])
        else:
            problems.append(f"images/{path.name} has no label: labels/{path.name} is expected")
            continue
        if number != len(files[name]):
            problems.append(f"images/{path.name} is channel {number}, after {len(files[name])} others: count from 0000")
        files[name].append(path)
    problems += [f"labels/{labels[name].name} has no image" for name in labels if not files[name]]
    return endings is pictures.ENDINGS, {name: (files[name], labels[name]) for name in labels if files[name]}


def _look_at_pictures(files: list[Path], label: Path) -> tuple[int, float, np.ndarray]:
    image, found = _read_picture(files).image, read_label(label)[0]
    if found.shape != image.shape[1:]:
        raise ValueError(f"the label has shape {found.shape}, its image {image.shape[1:]}; a label covers its image")
    return len(image), 1.0, found


def _look_at_volumes(files: list[Path], label: Path) -> tuple[int, float, np.ndarray]:
    """Of the images only the headers are read, for volumes may be many and large."""
    volumes = [load_volume(path) for path in (*files, label)]
    for path, volume in zip((*files, label), volumes, strict=True):
        check_grid(f"{path.parent.name}/{path.name}", volume, volumes[0])
    return len(files), max(spacing_of(volumes[0].affine)), read_label(label)[0]


def _read_picture(files: list[Path]) -> Case:
    case = read_case(files, spatial_dims=2)
    if len(case.image) not in (1, 3):
        raise ValueError(f"it has {len(files)} files; a picture is one grey or colour file, or three grey ones")
    return case


def _checksum(source: Path) -> int:
    files = sorted(
        path for what in ("images/*", "labels/*", "labels.json", "splits.json") for path in source.glob(what)
    )
    facts = [(str(path.relative_to(source)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return zlib.crc32(repr(facts).encode())


def _convert(survey: Survey, _source: Path, out: Path, track: Track = iter) -> dict:
    """Write the cases that were looked through; returns what to count of them."""
    jobs = []
    for name, (files, label) in survey.cases.items():
        jobs.append(Job("Ts" if name in survey.held_out else "Tr", name, (*files, label)))
    counts = convert_cases(out, jobs, partial(_write, survey), track)
    if survey.folds is not None:
        (out / "splits_final.json").write_text(json.dumps(survey.folds, indent=2) + "\n")
    return counts


def planned_folds(names: list[str]) -> tuple[Folds | None, set[str]]:
    """Folds, None for the usual five, and the cases to test on, where the user says nothing of both."""
    held_out = set(names[TEST_EVERY - 1 :: TEST_EVERY]) if len(names) >= FEWEST_TO_HOLD_OUT else set()
    return (folds_of_few(names) if names else None), held_out


def _write(survey: Survey, job: Job, out: Path) -> dict[str, int]:
    import nibabel

    known, (*files, label) = np.array([0, *survey.values.values()]), job.files
    if survey.spatial_dims == 2:
        case, numbers = _read_picture(files), np.searchsorted(known, read_label(label)[0])
        image = pictures.in_eight_bits(case.parts)
        image = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        write_case(out, job.part, job.name, image, numbers.astype(np.uint8))
        return {"images_scaled_to_8_bits": int(any(part.dtype != np.uint8 for part in case.parts))}
    *images, original = (load_volume(path) for path in job.files)
    what = f"case {job.name}: label"
    numbers = np.searchsorted(known, whole_numbers(what, voxels(what, original)))
    renumbered = nibabel.Nifti1Image(numbers.astype(np.uint8), original.affine)
    write_volume(out, job.part, job.name, images, renumbered, set(range(len(known))))
    return {"images_scaled_to_8_bits": 0}


RECIPE = Recipe(
    name="folder",
    dataset_id=500,
    title="A folder of your own images and labels, 2-D or 3-D",
    modality="your own",
    spatial_dims=2,
    channel_names=("image",),
    labels={"background": 0, "label 1": 1},
    colours={"label 1": COLOURS[0]},
    metrics=("dice", "surface_dice"),
    tolerances={"label 1": 1.0},
    spacing_unit="pixel",
    file_ending=".png",
    licence="your own",
    citation="",
    homepage="",
    from_source=recipe_for,
    convert=convert,
)
