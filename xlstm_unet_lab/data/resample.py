"""Bring the cases of a data set to one spacing, so that a voxel means the same length everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

SAME_SPACING = 0.01  # spacings that differ by less than this share are taken as equal


def checked_spacing(spacing: Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    """The spacing as a tuple of floats; ValueError unless it has `spatial_dims` finite sizes above 0."""
    sizes = tuple(spacing) if isinstance(spacing, Sequence) else (spacing,)
    numbers = all(isinstance(size, (int, float)) and math.isfinite(size) and size > 0 for size in sizes)
    if len(sizes) != spatial_dims or not numbers:
        raise ValueError(f"spacing={spacing!r} must have {spatial_dims} finite sizes above 0, one a spatial axis")
    return tuple(map(float, sizes))


def resampled_size(size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """The grid size at which an image of this size and spacing has the spacing wanted, at least 1 an axis."""
    ratios = [own / other for own, other in zip(spacing, wanted, strict=True)]
    if all(abs(ratio - 1) < SAME_SPACING for ratio in ratios):
        return tuple(size)
    return tuple(max(1, round(length * ratio)) for length, ratio in zip(size, ratios, strict=True))


class ResampledDataset(Dataset):
    """The cases of `dataset` at one spacing: images by linear interpolation, labels by their nearest value.

    `spacing` is in the order (z, y, x), in the data set's unit. Items are as before, image float32 (C, *spatial), label
    int64 (*spatial), with the new spacing. Resampled cases stay in memory until they fill `cache_bytes` (in each
    worker process). Raises ValueError for a spacing of another rank or not above 0.
    """

    def __init__(self, dataset: Sequence[dict], spacing: Sequence[float], cache_bytes: int = 2**30):
        self.dataset, self.recipe = dataset, getattr(dataset, "recipe", None)
        self.spacing = checked_spacing(spacing, dataset[0]["label"].ndim)
        self._cache: dict[int, dict] = {}
        self._cache_left = cache_bytes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        item = self._cache.get(index)
        if item is None:
            item = self._resample(self.dataset[index])
            size = item["image"].nbytes + item["label"].nbytes
            if size <= self._cache_left:
                self._cache[index] = item
                self._cache_left -= size
        # Copies: who changes an item must not change what the next epoch sees.
        return item | {"image": item["image"].clone(), "label": item["label"].clone()}

    def _resample(self, item: dict) -> dict:
        image, label = item["image"], item["label"]
        size = resampled_size(label.shape, item["spacing"], self.spacing)
        if size != tuple(label.shape):
            mode = "bilinear" if len(size) == 2 else "trilinear"
            image = F.interpolate(image[None], size=size, mode=mode, align_corners=False)[0]
            # float32 holds every integer up to 2^24 exactly, far above any label value
            label = F.interpolate(label[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(torch.int64)
        return item | {"image": image, "label": label, "spacing": self.spacing}
