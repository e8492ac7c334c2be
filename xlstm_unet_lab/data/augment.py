"""Vary patches at random, reproducibly: every draw comes from a generator that the caller hands in."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from xlstm_unet_lab.data.patches import check_pair, check_patch_size, sample_patch


@dataclass(frozen=True)
class Augmentation:
    """How much to vary. Ranges are (low, high); intensities are those of a normalised image (deviation 1)."""

    flip_axes: tuple[int, ...] | None = None  # spatial axes to flip with chance 1/2 each; None: all of them
    rotate: bool = True  # quarter turns in the plane of the last two axes; half turns only where it is not square
    probability: float = 0.5  # the chance of each change of intensity below
    brightness: float = 0.3  # added, at most this much either way
    contrast: tuple[float, float] = (0.75, 1.3)  # factor on the distance from the patch's mean
    gamma: tuple[float, float] = (0.7, 1.5)  # exponent, on the patch stretched to 0..1
    noise: float = 0.15  # standard deviation of added noise, at most
    invert_probability: float = 0.0  # dark on light becomes light on dark; for sets in which both occur

    def __post_init__(self) -> None:
        for what in ("probability", "invert_probability"):
            if not 0 <= getattr(self, what) <= 1:
                raise ValueError(f"{what} is {getattr(self, what)}; give a share from 0 to 1")
        for what in ("contrast", "gamma"):
            low, high = getattr(self, what)
            if not 0 < low <= high:
                raise ValueError(f"{what} is {getattr(self, what)}; give a low and a high value above 0")
        for what in ("brightness", "noise"):
            if getattr(self, what) < 0:
                raise ValueError(f"{what} is {getattr(self, what)}; give 0 or more")


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def augment(
    image: torch.Tensor, label: torch.Tensor, generator: torch.Generator, settings: Augmentation | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn and flip image and label alike, then vary the intensities of the image; the input is left as it was.

    image (C, *spatial) floating and normalised, label (*spatial) integer; shapes and dtypes stay.
    Intensities of all channels change together, so that grey stays grey. Raises ValueError for an unknown flip axis.
    """
    check_pair(image, label)
    settings = settings or Augmentation()
    image, label = _move(image, label, generator, settings)
    return _recolour(image, generator, settings), label


def _move(
    image: torch.Tensor, label: torch.Tensor, generator: torch.Generator, settings: Augmentation
) -> tuple[torch.Tensor, torch.Tensor]:
    axes = tuple(range(label.ndim)) if settings.flip_axes is None else settings.flip_axes
    if not set(axes) <= set(range(label.ndim)):
        raise ValueError(f"flip_axes is {axes}; a label of {label.ndim} axes has axes 0 to {label.ndim - 1}")
    # Counted from the end, an axis is the same one in the image, which has a channel axis in front.
    flipped = [axis - label.ndim for axis in axes if torch.rand((), generator=generator) < 0.5]
    image, label = image.flip(flipped), label.flip(flipped)
    if settings.rotate:
        turns = int(torch.randint(4, (), generator=generator))
        turns -= turns % 2 if label.shape[-1] != label.shape[-2] else 0
        image, label = torch.rot90(image, turns, (-2, -1)), torch.rot90(label, turns, (-2, -1))
    return image.contiguous(), label.contiguous()


def _recolour(image: torch.Tensor, generator: torch.Generator, settings: Augmentation) -> torch.Tensor:
    def happens(probability: float) -> bool:
        return bool(torch.rand((), generator=generator) < probability)

    if happens(settings.invert_probability):
        image = -image
    if happens(settings.probability):
        image = _bend(image, _uniform(*settings.gamma, generator))
    if happens(settings.probability):
        mean = image.mean()
        image = (image - mean) * _uniform(*settings.contrast, generator) + mean
    if happens(settings.probability):
        image = image + _uniform(-settings.brightness, settings.brightness, generator)
    if happens(settings.probability):
        deviation = _uniform(0, settings.noise, generator)
        image = image + deviation * torch.randn(image.shape, generator=generator, dtype=image.dtype)
    return image


def _bend(image: torch.Tensor, exponent: float) -> torch.Tensor:
    """Raise intensities, stretched to 0..1, to a power, and give them back the mean and deviation they had."""
    smallest = torch.finfo(image.dtype).tiny  # a constant image is divided by this and stays what it is
    low, high = image.min(), image.max()
    bent = ((image - low) / (high - low).clamp_min(smallest)) ** exponent
    deviation = bent.std(correction=0).clamp_min(smallest)
    return (bent - bent.mean()) / deviation * image.std(correction=0) + image.mean()


class PatchDataset(Dataset):
    """`length` random patches of a data set's cases; patch k depends on (seed, k) alone, whoever loads it and when.

    dataset: any sequence of dicts with image (C, *spatial), label (*spatial) and name, as SegmentationDataset gives.
    Items are dicts: image float32 (C, *patch_size), label int64 (*patch_size), name. `augment` is True for the default
    Augmentation, False for none, or an Augmentation. Raises ValueError for an empty data set or a length below 1.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        patch_size: tuple[int, ...],
        length: int,
        seed: int,
        augment: bool | Augmentation = True,
        foreground_probability: float = 1 / 3,
    ):
        if len(dataset) == 0:
            raise ValueError("the data set has no cases; patches need at least one")
        if operator.index(length) < 1 or operator.index(seed) < 0:
            raise ValueError(f"length is {length} and seed {seed}; give a length of at least 1 and a seed of 0 or more")
        self.dataset, self.length, self.seed = dataset, length, seed
        self.patch_size = check_patch_size(patch_size, dataset[0]["label"].ndim)
        self.augmentation = augment if isinstance(augment, Augmentation) else Augmentation() if augment else None
        self.foreground_probability = foreground_probability

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(f"patch {index} was asked for; there are {self.length}, counted from 0")
        # SeedSequence mixes the two numbers so that neighbouring patches have unrelated streams.
        state = int(np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state >> 1)
        case = self.dataset[int(torch.randint(len(self.dataset), (), generator=generator))]
        image, label = sample_patch(
            case["image"], case["label"], self.patch_size, generator, self.foreground_probability
        )
        if self.augmentation is not None:
            image, label = augment(image, label, generator, self.augmentation)
        return {"image": image, "label": label, "name": case["name"]}
