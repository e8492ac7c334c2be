"""What every data set is to those who train and predict: named cases that can be looked into, and facts about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.ops.checks import checked_spacing, of_kind

SPACING_CASES = 20  # that are read for the median spacing


@dataclass(frozen=True)
class Facts:
    """What is known of a data set as a whole: nothing, where it is a plain list of cases."""

    recipe: Recipe | None = None  # of slices: that of the volumes they are cut from
    fold: int | None = None
    slice_axis: int | None = None  # across which slices were cut: 0, 1 or 2 of (z, y, x)

    @property
    def targets(self) -> Targets | None:
        """What a network learns here; None where no recipe says."""
        return None if self.recipe is None else self.recipe.targets

    @property
    def flip_axes(self) -> tuple[int, ...] | None:
        """The axes of what the network sees along which a mirror image is as likely; None: all of them."""
        flips = None if self.recipe is None else self.recipe.flip_axes
        if flips is None or self.slice_axis is None:
            return flips
        return tuple(axis - (axis > self.slice_axis) for axis in flips if axis != self.slice_axis)


class Cases(Dataset):
    """What every data set of this package is. `view(i)` is a dict of image (C, *spatial) float32, normalised, label
    (*spatial), spacing (*spatial, in the recipe's unit) and name: to read pieces from and never to change, for it may
    be the data set's own memory. Its label may have a small integer dtype, and "foreground" may say where that is not
    0. `self[i]` is the same, the caller's own."""

    facts: Facts
    names: Sequence[str] = ()  # of the cases; empty where they are known by number only

    def __len__(self) -> int:
        return len(self.names)

    def view(self, index: int) -> dict:
        return self[index]

    def raw(self, index: int) -> np.ndarray:
        """The image as stored, (C, *spatial), not normalised."""
        return np.asarray(self.view(index)["image"])


class Listed(Cases):
    """A sequence of cases that knows nothing of itself: each is as `Cases.view` says, and as it is stored."""

    def __init__(self, cases: Sequence[dict], facts: Facts | None = None):
        self.cases, self.facts = cases, facts or Facts()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict:
        return self.cases[index]


class Chosen(Subset, Cases):
    """Some cases of a data set, as torch's Subset chooses them, which still know their names and facts."""

    dataset: Cases

    def __init__(self, subset: Subset):
        super().__init__(as_cases(subset.dataset), subset.indices)
        self.facts = self.dataset.facts
        self.names = [self.dataset.names[index] for index in self.indices] if self.dataset.names else ()

    def view(self, index: int) -> dict:
        return self.dataset.view(self.indices[index])

    def raw(self, index: int) -> np.ndarray:
        return self.dataset.raw(self.indices[index])


def as_cases(dataset: Cases | Dataset | Sequence[dict]) -> Cases:
    """A data set of this package as it is; a Subset of one, and any other sequence of dicts, behind the protocol."""
    if isinstance(dataset, Cases):
        return dataset
    of_kind("the data set", dataset, Dataset, list, tuple, fix=" of cases, a dict each")
    # Any other Dataset is a sequence too, by its __len__ and __getitem__.
    return Chosen(dataset) if isinstance(dataset, Subset) else Listed(cast(Sequence[dict], dataset))


def evenly_spaced(total: int, wanted: int | None) -> list[int]:
    """Indices of `wanted` items, evenly spread over `total`; all of them if there are fewer or `wanted` is None."""
    count = total if wanted is None else min(total, wanted)
    return [index * total // count for index in range(count)]


def median_spacing(cases: Cases) -> tuple[float, ...]:
    """The median spacing of the cases along each axis, read off some of them, evenly spread."""
    spacings = [cases.view(index)["spacing"] for index in evenly_spaced(len(cases), SPACING_CASES)]
    return tuple(np.median(spacings, axis=0).tolist())


def check_cases(name: str, cases: Cases, patch_size: Sequence[int], network_config: object, targets: Targets | None):
    """ValueError unless there are cases, and the first one, the patch, the targets and the network fit together.

    network_config: an object with spatial_dims, in_channels and num_classes, as networks of this package carry it;
    what it does not state is not compared.
    """
    if len(cases) == 0:
        raise ValueError(f"{name} holds no cases: at least one is needed")
    first = cases.view(0)
    of_kind(f"the first case of {name}", first, Mapping)
    for what in ("image", "label"):
        of_kind(f"the {what} of the first case of {name}", first.get(what), torch.Tensor)
    image, label = first["image"], first["label"]
    if image.ndim != len(patch_size) + 1 or image.shape[1:] != label.shape:
        found = f"the first case of {name} has image {tuple(image.shape)} and label {tuple(label.shape)}"
        raise ValueError(f"{found}; patch_size={tuple(patch_size)} needs {len(patch_size)} spatial dimensions, alike")
    checked_spacing(first.get("spacing"), len(patch_size), f" in the first case of {name}")
    needed = {"spatial_dims": len(patch_size), "in_channels": len(image)}
    if targets is not None:
        needed["num_classes"] = len(targets.names)
        if targets.exclusive and targets.values != tuple((value,) for value in range(len(targets.names))):
            raise ValueError(f"targets has the values {targets.values}; classes must have (0,), (1,), ... in order")
    check_built(network_config, needed, f"{name} needs")


def check_built(network_config: object, needed: Mapping[str, int], who: str) -> None:
    """ValueError where a network was built with another number of dimensions, channels or classes; see check_cases."""
    for option, value in needed.items():
        built = getattr(network_config, option, value)
        if built != value:
            raise ValueError(f"the model was built with {option}={built}, {who} {option}={value}")
