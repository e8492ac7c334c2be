"""Read a prepared data set: normalised tensors for training, arrays as stored for looking at."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from xlstm_unet_lab.data.cases import Facts
from xlstm_unet_lab.data.files import fingerprint
from xlstm_unet_lab.data.images import VOLUMES, read_case, read_label, whole_label
from xlstm_unet_lab.data.kept_cases import KeptCases, Place
from xlstm_unet_lab.data.nnunet_raw import read_splits
from xlstm_unet_lab.data.normalise import NORMALISED, normalise
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.recipe import Recipe, Root, data_root
from xlstm_unet_lab.data.registry import find_recipe, prepared_folder
from xlstm_unet_lab.ops.checks import one_of, whole_number
from xlstm_unet_lab.ops.files import plain_name

SPLITS = ("train", "val", "test", "all")


class SegmentationDataset(KeptCases):
    """The cases of one split, in a fixed order.

    dataset[i] is a dict: image float32 tensor (C, *spatial), normalised; label int64 tensor (*spatial); spacing, a
    tuple in (z, y, x) order, in `recipe.spacing_unit`; name. Cases stay in memory until they fill `cache_bytes`
    (in each worker process); the others are kept as files in a folder "kept" beside the prepared set (in
    `data_root()` where that may not be written), which may be deleted at any time, and are mapped into memory.
    `fold` says which of the five splits the cases come from. Raises ValueError when image and label differ in shape, or
    a label value or channel count is not the recipe's,
    and for a name of a case that leads out of the folder.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, part: str, names: list[str], cache_bytes: int = 2**30, fold: int = 0
    ):
        super().__init__(cache_bytes)
        self.recipe, self.folder, self.part = recipe, folder, part
        self.names = [plain_name(f"the name of a case of {folder}", name) for name in names]
        self.facts = Facts(recipe, fold)

    def raw(self, index: int) -> np.ndarray:
        """The image of one case as stored, (C, *spatial), not normalised: to look at."""
        return read_case(self._image_paths(self._position(index))).image

    def instances(self, index: int) -> np.ndarray:
        """The instance map of one case, int32 (*spatial): 0 background, every object its own number.

        Raises FileNotFoundError when the data set has no instance maps.
        """
        path = self._path("instances", self._position(index))
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{self.recipe.name} has no instance maps: {path.parent} does not exist")
        return read_label(path)[0]

    def _path(self, what: str, position: int, channel: str = "") -> Path:
        return self.folder / f"{what}{self.part}" / f"{self.names[position]}{channel}{self.recipe.file_ending}"

    def _image_paths(self, position: int) -> list[Path]:
        # nnU-Net's reader of natural images wants all channels in one file, or a file for each.
        one = self.recipe.file_ending not in VOLUMES and not self._path("images", position, "_0001").exists()
        return [
            self._path("images", position, f"_{n:04d}") for n in range(1 if one else len(self.recipe.channel_names))
        ]

    def _found(self, position: int) -> tuple[Place, Callable[[], dict]]:
        beside = self.recipe.splits is None and os.access(self.folder.parent, os.W_OK)
        root = self.folder.parent if beside else data_root()
        folder = root / "kept" / self.folder.name / self.part / self.names[position]
        files = [*self._image_paths(position), self._path("labels", position)]
        settings = (NORMALISED, len(self.recipe.channel_names), list(self.recipe.labels.values()))
        return Place(folder, [[fingerprint(file) for file in files], *settings]), lambda: self._read(position)

    def _read(self, position: int) -> dict:
        case, path = read_case(self._image_paths(position)), self._path("labels", position)
        image, (label, _) = case.image, read_label(path)
        channels = len(self.recipe.channel_names)
        if image.shape != (channels, *label.shape):
            expected = f"expected the same grid and {channels} channels"
            raise ValueError(f"{path} has shape {label.shape} and its image {image.shape}; {expected}")
        known = whole_label(str(path), label, set(self.recipe.labels.values()))
        tensors = {"image": torch.from_numpy(normalise(image)), "label": torch.from_numpy(known)}
        return tensors | {"spacing": case.spacing, "name": self.names[position]}


def load_dataset(
    recipe: str | Path | Recipe, split: str = "train", root: Root = None, fold: int = 0, cache_bytes: int = 2**30
) -> SegmentationDataset:
    """Open a data set: split "train" or "val" of one of its folds, five mostly, "all" (both together), or "test".

    recipe: the name of a prepared data set, or the path of a folder in nnU-Net's raw format, which is only read.
    A phantom is made here when it is not there yet; other sets must be prepared first.
    Raises ValueError for an unknown split or fold and for a folder that does not fit, KeyError for an unknown recipe,
    FileNotFoundError when not prepared.
    """
    one_of("split", split, SPLITS)
    recipe, root = (recipe, root) if isinstance(recipe, Recipe) else find_recipe(recipe, root)
    whole_number("cache_bytes", cache_bytes, 0)
    folder = prepared_folder(recipe, root)
    if folder is None and not recipe.made_here:
        how = f"{recipe.calls()}, with source= or --source if you have its folder or archive"
        raise FileNotFoundError(f"{recipe.name} is not prepared in {recipe.folder(root)}; to get it {how}")
    folder = folder or prepare(recipe, root=root, progress=False)
    folds = (recipe.splits or read_splits)(folder)
    names = folds[whole_number("fold", fold, 0, len(folds) - 1)]
    names["all"] = sorted({*names["train"], *names["val"]})
    held_out = (folder / "labelsTs").glob(f"[!.]*{recipe.file_ending}")
    names["test"] = sorted(path.name.removesuffix(recipe.file_ending) for path in held_out)
    return SegmentationDataset(recipe, folder, "Ts" if split == "test" else "Tr", names[split], cache_bytes, fold)
