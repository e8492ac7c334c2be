"""Read a prepared data set: normalised tensors for training, arrays as stored for looking at."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from xlstm_unet_lab.data.cases import Facts
from xlstm_unet_lab.data.files import fingerprint
from xlstm_unet_lab.data.images import read_case, read_label, whole_label
from xlstm_unet_lab.data.kept_cases import KeptCases, Place
from xlstm_unet_lab.data.nnunet_raw import FOLDS, read_splits
from xlstm_unet_lab.data.normalise import NORMALISED, normalise
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.recipe import Recipe, data_root
from xlstm_unet_lab.data.registry import get_recipe, prepared_folder
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
        # nnU-Net's reader of natural images wants all channels in one file.
        files = 1 if self.recipe.file_ending == ".png" else len(self.recipe.channel_names)
        return [self._path("images", position, f"_{channel:04d}") for channel in range(files)]

    def _found(self, position: int) -> tuple[Place, Callable[[], dict]]:
        root = self.folder.parent if os.access(self.folder.parent, os.W_OK) else data_root()
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
    recipe: str | Recipe, split: str, root: str | Path | None = None, fold: int = 0, cache_bytes: int = 2**30
) -> SegmentationDataset:
    """Open a prepared data set: split "train" or "val" of one of five folds, "all" (both together), or "test".

    A phantom is made here when it is not there yet; other sets must be prepared first.
    Raises ValueError for an unknown split or fold, KeyError for an unknown recipe, FileNotFoundError when not prepared.
    """
    recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe, root)
    one_of("split", split, SPLITS)
    whole_number("fold", fold, 0, FOLDS - 1)
    whole_number("cache_bytes", cache_bytes, 0)
    folder = prepared_folder(recipe, root)
    if folder is None and not recipe.made_here:
        how = f"{recipe.calls()}, with source= or --source if you have its folder or archive"
        raise FileNotFoundError(f"{recipe.name} is not prepared in {recipe.folder(root)}; to get it {how}")
    folder = folder or prepare(recipe, root=root, progress=False)
    names = read_splits(folder)[fold]
    names["all"] = sorted(names["train"] + names["val"])
    names["test"] = sorted(path.name.removesuffix(recipe.file_ending) for path in (folder / "labelsTs").glob("*.*"))
    return SegmentationDataset(recipe, folder, "Ts" if split == "test" else "Tr", names[split], cache_bytes, fold)
