"""Write nnU-Net's raw format: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json, splits_final.json.

The layout is the one of nnU-Net v2's documentation (dataset format). Instance maps, which nnU-Net does not know, lie
beside it in instancesTr and instancesTs and do not disturb it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xlstm_unet_lab.data.recipe import Recipe

FOLDS = 5


def write_case(
    out: Path, part: str, name: str, image: np.ndarray, label: np.ndarray, instances: np.ndarray | None = None
) -> None:
    """Write one 2-D case as PNG files: an image (y, x) or (y, x, 3), its label (y, x), and its instance map if any.

    part: "Tr" for training, "Ts" for test. The image is stored as uint8, as label values are; instances as uint16.
    Raises ValueError for another dtype, a shape that does not fit, or more than 65,535 instances.
    """
    from imageio.v3 import imwrite

    if part not in ("Tr", "Ts"):
        raise ValueError(f'part is {part!r}; give "Tr" for training or "Ts" for test')
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


def case_names(folder: Path, part: str, file_ending: str) -> list[str]:
    """The names of the cases of one part, in order, read from its label files.

    Raises ValueError when an image has no label or a label no image.
    """
    labels = {path.name.removesuffix(file_ending) for path in (folder / f"labels{part}").glob(f"*{file_ending}")}
    images = {
        path.name.removesuffix(file_ending)[: -len("_0000")]
        for path in (folder / f"images{part}").glob(f"*{file_ending}")
    }
    if images != labels:
        raise ValueError(
            f"{folder.name}: images without a label {sorted(images - labels)[:3]}, "
            f"labels without an image {sorted(labels - images)[:3]} in part {part}"
        )
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
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n")
    return counts


def write_splits(folder: Path, file_ending: str) -> None:
    """Write five folds, every fifth case in name order to each: the same on every machine.

    Raises ValueError for fewer training cases than folds.
    """
    names = case_names(folder, "Tr", file_ending)
    if len(names) < FOLDS:
        raise ValueError(f"{len(names)} training cases were found; {FOLDS} folds need at least {FOLDS}")
    folds = [
        {"train": [name for k, name in enumerate(names) if k % FOLDS != fold], "val": names[fold::FOLDS]}
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
