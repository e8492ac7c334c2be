"""Read a prepared data set: normalised tensors for training, arrays as stored for looking at."""

from __future__ import annotations

import json
import operator
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from xlstm_unet_lab.data.kept_cases import KeptCases, Origin, origin_of
from xlstm_unet_lab.data.normalise import NORMALISED, normalise
from xlstm_unet_lab.data.pictures import read_picture
from xlstm_unet_lab.data.prepare import FOLDS, data_root, get_recipe, prepare, prepared_folder
from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.data.volumes import load_volume, voxels
from xlstm_unet_lab.ops.checks import did_you_mean

SPLITS = ("train", "val", "test", "all")


def read_array(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read one file as stored: an array (y, x), (y, x, C) or (z, y, x), and the spacing of its spatial axes.

    .png has spacing 1 (pixels); .nii.gz and .nii that of the affine in mm, which alone says where voxels lie, in the
    order (z, y, x).
    Raises FileNotFoundError, and ValueError for another ending, a file that breaks off and a NIfTI file that is not
    three-dimensional.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; delete its data set folder and prepare the data set again")
    if path.name.endswith(".png"):
        return read_picture(path), (1.0, 1.0)
    if path.name.endswith((".nii.gz", ".nii")):
        from nibabel.affines import voxel_sizes

        volume = load_volume(path)
        if volume.ndim != 3:
            raise ValueError(f"{path} has shape {volume.shape}; one three-dimensional volume a file is expected")
        spacing = tuple(float(size) for size in reversed(voxel_sizes(volume.affine)))
        return voxels(path.name, volume).transpose(), spacing  # NIfTI stores (x, y, z)
    raise ValueError(f"{path.name} has an ending that cannot be read; .png, .nii.gz and .nii can")


def read_image(paths: list[Path]) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read the channel files of one case as an array (C, *spatial) and its spacing.

    A PNG file may hold all channels of a colour image. Raises ValueError when the files differ in shape or spacing.
    """
    arrays, spacings = zip(*(read_array(path) for path in paths), strict=True)
    for path, array, spacing in zip(paths, arrays, spacings, strict=True):
        if array.shape != arrays[0].shape or not np.allclose(spacing, spacings[0], rtol=1e-4):
            raise ValueError(
                f"{path} has shape {array.shape} and spacing {spacing}, the first channel {paths[0].name} has "
                f"{arrays[0].shape} and {spacings[0]}; the channels of one case must share one grid"
            )
    spatial_dims = len(spacings[0])
    channels = [np.moveaxis(array, -1, 0) if array.ndim > spatial_dims else array[None] for array in arrays]
    return np.concatenate(channels), spacings[0]


def read_label(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a label file as integers (*spatial), and its spacing; some sets store labels as floats.

    Raises ValueError when a value is not a whole number or the array has a channel axis.
    """
    label, spacing = read_array(path)
    if label.ndim != len(spacing):
        raise ValueError(f"{path} has shape {label.shape}; a label file holds one number for each pixel")
    whole = np.rint(label)
    if not np.array_equal(whole, label):
        raise ValueError(f"{path} holds label values that are not whole numbers, such as {label[whole != label][0]}")
    return whole.astype(np.int32), spacing


class SegmentationDataset(Dataset):
    """The cases of one split, in a fixed order.

    dataset[i] is a dict: image float32 tensor (C, *spatial), normalised; label int64 tensor (*spatial); spacing, a
    tuple in (z, y, x) order, in `recipe.spacing_unit`; name. Cases stay in memory until they fill `cache_bytes`
    (in each worker process); the others are kept as .npy files in a folder "kept" beside the prepared set (in
    `data_root()` where that may not be written), which may be deleted at any time, and are mapped into memory.
    `fold` says which of the five splits the cases come from. Raises ValueError when image and label differ in shape, or
    a label value or channel count is not the recipe's.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, part: str, names: list[str], cache_bytes: int = 2**30, fold: int = 0
    ):
        self.recipe, self.folder, self.part, self.names, self.fold = recipe, folder, part, list(names), fold
        self._kept = KeptCases(cache_bytes)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        case = self.view(index)
        # Copies: who changes an item must not change what the next epoch sees.
        image, label = case["image"].clone(), case["label"].long()
        return {"image": image, "label": label, "spacing": case["spacing"], "name": case["name"]}

    def view(self, index: int) -> dict:
        """`self[index]` without a copy, to read pieces from and never to change, for which see `view_case`.

        label is uint8 (int32 where values pass 255); "foreground" (`patches.Foreground`) says where it is not 0.
        """
        position = self._position(index)
        return self._kept.get(position, lambda: self._read(position), lambda: self._origin(position))

    def raw(self, index: int) -> np.ndarray:
        """The image of one case as stored, (C, *spatial), not normalised: to look at."""
        return read_image(self._image_paths(self._position(index)))[0]

    def instances(self, index: int) -> np.ndarray:
        """The instance map of one case, int32 (*spatial): 0 background, every object its own number.

        Raises FileNotFoundError when the data set has no instance maps.
        """
        folder = self.folder / f"instances{self.part}"
        if not folder.is_dir():
            raise FileNotFoundError(f"{self.recipe.name} has no instance maps: {folder} does not exist")
        return read_label(folder / f"{self.names[self._position(index)]}{self.recipe.file_ending}")[0]

    def _position(self, index: int) -> int:
        position = operator.index(index)
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"case {index} was asked for; the data set has {len(self)} cases, counted from 0")
        return position

    def _image_paths(self, position: int) -> list[Path]:
        stem = f"{self.folder}/images{self.part}/{self.names[position]}"
        first = Path(f"{stem}_0000{self.recipe.file_ending}")
        if self.recipe.file_ending == ".png":  # nnU-Net's reader of natural images: all channels in one file
            return [first]
        return [
            Path(f"{stem}_{channel:04d}{self.recipe.file_ending}") for channel in range(len(self.recipe.channel_names))
        ]

    def _label_path(self, position: int) -> Path:
        return self.folder / f"labels{self.part}" / f"{self.names[position]}{self.recipe.file_ending}"

    def _origin(self, position: int) -> Origin:
        beside = self.folder.parent
        root = beside if os.access(beside, os.W_OK) else data_root()
        folder = root / "kept" / self.folder.name / self.part / self.names[position]
        files = [*self._image_paths(position), self._label_path(position)]
        return origin_of(folder, files, NORMALISED, len(self.recipe.channel_names), list(self.recipe.labels.values()))

    def _read(self, position: int) -> dict:
        image, spacing = read_image(self._image_paths(position))
        path = self._label_path(position)
        label, _ = read_label(path)
        if image.shape != (len(self.recipe.channel_names), *label.shape):
            raise ValueError(
                f"{path} has shape {label.shape} and its image {image.shape}; expected the same grid and "
                f"{len(self.recipe.channel_names)} channels"
            )
        unknown = sorted(set(np.unique(label).tolist()) - set(self.recipe.labels.values()))
        if unknown:
            raise ValueError(f"{path} holds label values {unknown}; the recipe knows {dict(self.recipe.labels)}")
        # uint8 is enough in memory for the labels of any recipe here; items hand out int64.
        small = label.astype(np.uint8 if max(self.recipe.labels.values()) < 256 else np.int32)
        tensors = {"image": torch.from_numpy(normalise(image)), "label": torch.from_numpy(small)}
        return tensors | {"spacing": spacing, "name": self.names[position]}


def load_dataset(
    recipe: str | Recipe, split: str, root: str | Path | None = None, fold: int = 0, cache_bytes: int = 2**30
) -> SegmentationDataset:
    """Open a prepared data set: split "train" or "val" of one of five folds, "all" (both together), or "test".

    A phantom is made here when it is not there yet; other sets must be prepared first.
    Raises ValueError for an unknown split or fold, KeyError for an unknown recipe, FileNotFoundError when not prepared.
    """
    recipe = get_recipe(recipe, root) if isinstance(recipe, str) else recipe
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: {did_you_mean(split, SPLITS)}")
    if isinstance(fold, bool) or fold not in range(FOLDS):
        raise ValueError(f"fold {fold!r} is unknown; folds are the whole numbers 0 to {FOLDS - 1}")
    folder = prepared_folder(recipe, root)
    if folder is None:
        if not recipe.made_here:
            raise FileNotFoundError(
                f"{recipe.name} is not prepared in {recipe.folder(root)}; to get it call prepare({recipe.name!r}) in "
                f"Python or xlstm-unet-lab prepare {recipe.name} in a shell, with source= or --source if you have its "
                "folder or archive"
            )
        folder = prepare(recipe, root=root, progress=False)
    folds = json.loads((folder / "splits_final.json").read_text())
    if split == "test":
        names = sorted(path.name.removesuffix(recipe.file_ending) for path in (folder / "labelsTs").iterdir())
    elif split == "all":
        names = sorted(folds[fold]["train"] + folds[fold]["val"])
    else:
        names = folds[fold][split]
    return SegmentationDataset(recipe, folder, "Ts" if split == "test" else "Tr", names, cache_bytes, fold)
