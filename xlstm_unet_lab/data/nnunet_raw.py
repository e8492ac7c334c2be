"""Write nnU-Net's raw format: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json, splits_final.json.

The layout is the one of nnU-Net v2's documentation (dataset format). Instance maps, which nnU-Net does not know, lie
beside it in instancesTr and instancesTs and do not disturb it.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import nibabel

    from xlstm_unet_lab.data.recipe import Recipe

FOLDS = 5
SAME_GRID = 0.1  # voxels that two grids may lie apart and still be one: headers are rounded
STORED_AS_THEY_ARE = (np.uint8, np.int16, np.uint16, np.int32)  # intensities of other types become float32


def write_case(
    out: Path, part: str, name: str, image: np.ndarray, label: np.ndarray, instances: np.ndarray | None = None
) -> None:
    """Write one 2-D case as PNG files: an image (y, x) or (y, x, 3), its label (y, x), and its instance map if any.

    part: "Tr" for training, "Ts" for test. The image is stored as uint8, as label values are; instances as uint16.
    Raises ValueError for another dtype, a shape that does not fit, or more than 65,535 instances.
    """
    from imageio.v3 import imwrite

    check_part(part)
    if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2:
        raise ValueError(f"case {name}: image is {image.dtype} {image.shape}; expected uint8 (y, x) or (y, x, 3)")
    if label.dtype != np.uint8 or label.shape != image.shape[:2]:
        raise ValueError(f"case {name}: label is {label.dtype} {label.shape}; expected uint8 {image.shape[:2]}")
    arrays = {f"images{part}/{name}_0000.png": image, f"labels{part}/{name}.png": label}
    if instances is not None:
        if instances.shape != label.shape or instances.min() < 0 or instances.max() > np.iinfo(np.uint16).max:
            raise ValueError(
                f"case {name}: instances of shape {instances.shape} and values {instances.min()} to {instances.max()}; "
                f"expected shape {label.shape} and values 0 to 65535"
            )
        arrays[f"instances{part}/{name}.png"] = instances.astype(np.uint16)
    for path, array in arrays.items():
        if (out / path).exists():
            raise ValueError(f"case {name} was written already: case names must differ")
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        imwrite(out / path, array, plugin="pillow")


def write_volume(
    out: Path, part: str, name: str, images: Sequence[nibabel.Nifti1Image], label: nibabel.Nifti1Image, values: set[int]
) -> None:
    """Write one 3-D case as NIfTI files, a channel each, turned so that the axes run right, anterior, superior.

    images: one volume a channel, in mm; label: whole numbers out of `values`, in any dtype (stored as uint8). All must
    lie on one grid; what rounding leaves between their headers is settled in favour of the first image.
    Raises ValueError, naming the case, for another rank or grid, a value that is not finite, and an unknown label.
    """
    import nibabel

    check_part(part)
    whats = [*(f"case {name}: channel {channel}" for channel in range(len(images))), f"case {name}: label"]
    for what, volume in zip(whats, [*images, label], strict=True):
        check_grid(what, volume, images[0])
    arrays = [_intensities(what, image) for what, image in zip(whats, images, strict=False)]
    arrays.append(whole_label(whats[-1], voxels(whats[-1], label), values))
    paths = [out / f"images{part}" / f"{name}_{channel:04d}.nii.gz" for channel in range(len(images))]
    paths.append(out / f"labels{part}" / f"{name}.nii.gz")
    for path, array in zip(paths, arrays, strict=True):
        if path.exists():
            raise ValueError(f"case {name} was written already: case names must differ")
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, images[0].affine))
        volume.header.set_xyzt_units("mm")
        nibabel.save(volume, path)


def load_volume(path: Path) -> nibabel.Nifti1Image:
    """Open a NIfTI file; its voxels are read when they are needed. ValueError, naming the file, when it is none."""
    import nibabel

    try:
        return nibabel.load(path)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(f"{path} is not a NIfTI file that can be read: {error}; get it again") from error


def voxels(what: str, volume: nibabel.Nifti1Image) -> np.ndarray:
    """The voxels of a volume as stored, (x, y, z); ValueError for a file that breaks off or holds no plain numbers."""
    try:
        array = np.asarray(volume.dataobj)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{what} cannot be read from {volume.get_filename()}: {error}; get the file again") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{what} holds values of type {array.dtype}; integers or floats are expected")
    return array


def _intensities(what: str, image: nibabel.Nifti1Image) -> np.ndarray:
    array = voxels(what, image)
    array = array if array.dtype in STORED_AS_THEY_ARE else array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds NaN or infinity; replace them in the original")
    return array


def check_grid(what: str, volume: nibabel.Nifti1Image, reference: nibabel.Nifti1Image) -> None:
    """ValueError unless `volume` is three-dimensional, has voxels of some size, and lies on the grid of `reference`."""
    from nibabel.affines import apply_affine, voxel_sizes

    sizes, unit = voxel_sizes(volume.affine), volume.header.get_xyzt_units()[0]
    if len(volume.shape) != 3 or 0 in volume.shape:
        raise ValueError(f"{what} has shape {volume.shape}; one three-dimensional volume is expected")
    if not np.isfinite(volume.affine).all() or np.linalg.det(volume.affine) == 0 or unit not in ("mm", "unknown"):
        raise ValueError(f"{what} has voxels of {sizes.tolist()} {unit}; sizes above 0 in mm are expected")
    if volume.shape != reference.shape:
        raise ValueError(
            f"{what} has shape {volume.shape}, the first image {reference.shape}; both must share one grid"
        )
    corners = np.array(list(itertools.product(*((0, length - 1) for length in volume.shape))))
    shifts = apply_affine(volume.affine, corners) - apply_affine(reference.affine, corners)
    furthest = np.linalg.norm(shifts, axis=1).max()
    if furthest > SAME_GRID * sizes.min():
        raise ValueError(
            f"{what} lies up to {furthest:.3g} mm off the first image (affine {volume.affine.round(3).tolist()}, the "
            f"first image's {reference.affine.round(3).tolist()}); resample it to the first image's grid"
        )


def whole_label(what: str, label: np.ndarray, values: set[int]) -> np.ndarray:
    """The label as uint8; ValueError when it holds anything but the whole numbers in `values`, all below 256."""
    with np.errstate(invalid="ignore"):  # NaN turns into some number and is found to differ from it
        whole = label.astype(np.uint8)
    present = np.flatnonzero(np.bincount(whole.ravel()))
    if not values.issuperset(present.tolist()) or not np.array_equal(whole, label):
        unknown = [value for value in np.unique(label).tolist() if value not in values]
        raise ValueError(f"{what} holds {unknown[:5]}; known are the whole numbers {sorted(values)}")
    return whole


def layout_root(source: Path, name: str, holds: str) -> Path:
    """`source`, or the folder called `name` in it: whichever has `holds` inside; FileNotFoundError when neither has."""
    found = next((folder for folder in (source, source / name) if (folder / holds).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{source} holds no {holds}; give {name} or the folder above it")
    return found


def files_by_name(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder that have one of these endings (in lower case), by name without it, in name order.

    Hidden files are left out: archives packed on a Mac carry one, "._NAME", beside each file.
    Raises FileNotFoundError for a missing folder, ValueError for two files that differ in their ending only.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; a folder of {', '.join(endings)} files is expected")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in endings if path.name.lower().endswith(ending)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.name[: -len(ending)]
        if name in found:
            raise ValueError(f"{folder} holds both {found[name].name} and {path.name}; keep one of them")
        found[name] = path
    return dict(sorted(found.items()))


def check_pairs(where: str, images: Set[str], labels: Set[str]) -> None:
    """ValueError, with the first names, unless every image has a label and every label an image."""
    if images != labels:
        raise ValueError(
            f"{where}: images without a label {sorted(images - labels)[:3]}, "
            f"labels without an image {sorted(labels - images)[:3]}"
        )


def check_part(part: str) -> None:
    """ValueError unless the part is one of the two that nnU-Net knows."""
    if part not in ("Tr", "Ts"):
        raise ValueError(f'part is {part!r}; give "Tr" for training or "Ts" for test')


def case_names(folder: Path, part: str, file_ending: str) -> list[str]:
    """The names of the cases of one part, in order, read from its label files.

    Raises ValueError when an image has no label or a label no image.
    """
    labels = {path.name.removesuffix(file_ending) for path in (folder / f"labels{part}").glob(f"*{file_ending}")}
    stems = {path.name.removesuffix(file_ending) for path in (folder / f"images{part}").glob(f"*{file_ending}")}
    check_pairs(f"{folder.name}, part {part}", {stem[: -len("_0000")] for stem in stems}, labels)
    return sorted(labels)


def write_dataset_json(folder: Path, recipe: Recipe) -> dict[str, int]:
    """Write dataset.json for the cases that lie in `folder`; returns how many there are to train on and to test on."""
    counts = {
        what: len(case_names(folder, part, recipe.file_ending)) for what, part in (("training", "Tr"), ("test", "Ts"))
    }
    facts = {
        "name": recipe.name,
        "description": recipe.title,
        "reference": recipe.citation,
        "licence": recipe.licence,
        "channel_names": {str(channel): name for channel, name in enumerate(recipe.channel_names)},
        "labels": dict(recipe.labels),
        "numTraining": counts["training"],
        "file_ending": recipe.file_ending,
    }
    if recipe.regions:  # nnU-Net's region-based training
        facts["labels"] = {"background": 0} | {name: list(values) for name, values in recipe.regions.items()}
        facts["regions_class_order"] = list(recipe.painted)
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n")
    return counts


def write_splits(folder: Path, file_ending: str, group: Callable[[str], str] = str) -> None:
    """Write five folds, every fifth group of cases in name order to each: the same on every machine.

    Cases for which `group` gives the same name (one patient's, one video's) stay together; `str` keeps each by itself.
    Raises ValueError for fewer groups than folds.
    """
    names = case_names(folder, "Tr", file_ending)
    groups = sorted({group(name) for name in names})
    if len(groups) < FOLDS:
        together = "" if len(groups) == len(names) else f" in {len(groups)} groups that must stay together"
        raise ValueError(f"{len(names)} training cases{together} were found; {FOLDS} folds need at least {FOLDS}")
    fold_of = {name: groups.index(group(name)) % FOLDS for name in names}
    folds = [
        {
            "train": [name for name in names if fold_of[name] != fold],
            "val": [name for name in names if fold_of[name] == fold],
        }
        for fold in range(FOLDS)
    ]
    (folder / "splits_final.json").write_text(json.dumps(folds, indent=2) + "\n")


def sync_tree(folder: Path, recurse: bool = True) -> None:
    """Have the system write a folder (and all it holds) to disk, so that a power cut cannot undo a later rename."""
    for path in sorted(folder.rglob("*")) if recurse else ():
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            sync_tree(path, recurse=False)
    if os.name == "posix":  # other systems cannot open a folder, and keep its entries safe themselves
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
