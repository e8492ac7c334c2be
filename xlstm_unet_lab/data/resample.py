"""Bring the cases of a data set to one spacing, so that a voxel means the same length everywhere."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from xlstm_unet_lab.data.cases import Cases, as_cases
from xlstm_unet_lab.data.kept_cases import KeptCases, Place
from xlstm_unet_lab.data.patches import Foreground
from xlstm_unet_lab.ops.checks import checked_spacing

SAME_SPACING = 0.01  # spacings that differ by less than this share are taken as equal
# Voxels that resampling makes of an image: at most so many, and where they are many, so many times those it has.
MOST_VOXELS, MANY_VOXELS, MOST_TIMES = 2**31, 2**26, 64
RESAMPLED = 1  # count up when resampling gives other numbers: cases kept on disk are then made anew


def resampled_size(size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """The grid size at which an image of this size and spacing has the spacing wanted, at least 1 an axis.

    Raises ValueError for one at which it would be far larger than it is, or than a memory.
    """
    ratios = [own / other for own, other in zip(spacing, wanted, strict=True)]
    if all(abs(ratio - 1) < SAME_SPACING for ratio in ratios):
        return tuple(size)
    new = tuple(max(1, round(length * ratio)) for length, ratio in zip(size, ratios, strict=True))
    allowed = min(MOST_VOXELS, max(MANY_VOXELS, MOST_TIMES * math.prod(size)))
    if math.prod(new) > max(allowed, math.prod(size)):
        words = f"would be brought to {new} at {tuple(wanted)}, expected {allowed:,} voxels at most: a spacing is wrong"
        raise ValueError(f"an image of size {tuple(size)} at spacing {tuple(spacing)} {words}")
    return new


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image (C, *spatial), 1-D to 3-D, at another grid size, by linear interpolation."""
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(image[None], size=tuple(size), mode=mode, align_corners=False)[0]


def resized_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """The label (B, *spatial) at another grid size, each position taking the nearest value; dtype int64."""
    if tuple(label.shape[1:]) == tuple(size):
        return label.long()
    # float32 holds every integer up to 2^24 exactly, far above any label value
    return F.interpolate(label[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


class ResampledDataset(KeptCases):
    """The cases of `dataset` at one spacing: images by linear interpolation, labels by their nearest value.

    `spacing` is in the order (z, y, x), in the data set's unit. Items are as before, image float32 (C, *spatial), label
    int64 (*spatial), with the new spacing. Resampled cases stay in memory until they fill `cache_bytes` (in each
    worker process); those of a `SegmentationDataset` are then kept on disk, beside its own. Raises ValueError for a
    spacing of another rank or not above 0.
    """

    def __init__(self, dataset: Cases | Sequence[dict], spacing: Sequence[float], cache_bytes: int = 2**30):
        super().__init__(cache_bytes)
        self.dataset = as_cases(dataset)
        self.facts, self.names = self.dataset.facts, self.dataset.names
        self.spacing = checked_spacing(spacing, self.dataset.view(0)["label"].ndim)

    def __len__(self) -> int:
        return len(self.dataset)

    def raw(self, index: int) -> np.ndarray:
        """The image as stored, (C, *spatial), on the grid it was stored on."""
        return self.dataset.raw(index)

    def _found(self, position: int) -> tuple[Place | None, Callable[[], dict]]:
        """Where the resampled case may be kept: beside the original, if that may be and is another one at all."""
        original = self.dataset.view(position)
        place, shape = original.get("place"), tuple(original["label"].shape)
        size = resampled_size(shape, original["spacing"], self.spacing)
        if size == shape:
            return None, lambda: original | {"spacing": self.spacing}
        if place is not None:
            part = place.folder.parent
            folder = part.with_name(f"{part.name}_spacing_{'_'.join(map(str, self.spacing))}") / place.folder.name
            place = Place(folder, [*place.made_of, RESAMPLED, list(self.spacing)])
        return place, lambda: self._resampled(original, size)

    def _resampled(self, original: dict, size: tuple[int, ...]) -> dict:
        label = resized_label(original["label"][None], size)[0].to(original["label"].dtype)
        changed = {"image": resized(original["image"], size), "label": label, "foreground": Foreground.of(label)}
        return original | changed | {"spacing": self.spacing}
