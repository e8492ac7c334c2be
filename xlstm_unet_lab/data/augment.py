"""Vary patches at random, reproducibly: every draw comes from a generator that the caller hands in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from xlstm_unet_lab.data.cases import Cases, as_cases
from xlstm_unet_lab.data.patches import Pair, check_pair, sample_patch
from xlstm_unet_lab.data.resample import resized
from xlstm_unet_lab.ops.checks import flag, is_number, number, sizes, whole_number


@dataclass(frozen=True)
class Augmentation:
    """How much to vary. Ranges are (low, high); intensities are those of a normalised image (deviation 1)."""

    flip_axes: tuple[int, ...] | None = None  # spatial axes to flip with chance 1/2 each; None: all of them
    rotate: bool = True  # quarter turns in the plane of the last two axes; half turns only where it is not square
    turn_probability: float = 0.3  # the chance of a turn by any angle together with a change of size
    angle: float = 30.0  # degrees, at most this much either way
    scale: tuple[float, float] = (0.8, 1.25)  # factor on the size of everything in the patch
    in_plane: bool = True  # 3-D: turn and scale the last two axes only, right for thick slices and cheap; False: all
    probability: float = 0.5  # the chance of each of brightness, contrast, gamma and noise
    brightness: float = 0.3  # added, at most this much either way
    contrast: tuple[float, float] = (0.75, 1.3)  # factor on the distance from the patch's mean
    gamma: tuple[float, float] = (0.7, 1.5)  # exponent, on the patch stretched to 0..1
    noise: float = 0.15  # standard deviation of added noise, at most
    invert_probability: float = 0.0  # dark on light becomes light on dark; for sets in which both occur
    blur_probability: float = 0.15
    blur: tuple[float, float] = (0.5, 1.0)  # standard deviation in pixels
    low_resolution_probability: float = 0.15
    low_resolution: tuple[float, float] = (0.5, 1.0)  # the share of its pixels an axis keeps before they are blown up

    def __post_init__(self) -> None:
        for what in ("rotate", "in_plane"):
            flag(what, getattr(self, what))
        for what in ("probability", *(f"{k}_probability" for k in ("turn", "invert", "blur", "low_resolution"))):
            number(what, getattr(self, what), at_least=0, at_most=1)
        for what in ("contrast", "gamma", "scale", "blur", "low_resolution"):
            pair = getattr(self, what)
            is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and is_number(pair[0], above=0)
            if not is_pair or not is_number(pair[1], at_least=pair[0]):
                raise ValueError(f"{what} is {pair!r}, expected a low and a high number, both above 0")
        for what in ("brightness", "noise", "angle"):
            number(what, getattr(self, what), at_least=0)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def draw_turn(settings: Augmentation, spatial_dims: int, generator: torch.Generator) -> Tensor | None:
    """A random turn and change of size, or None where there is none this time.

    A float32 matrix: applied to a position in the turned patch, counted from its middle, it gives the position in the
    original. 2 x 2 for a turn in the plane of the last two axes, 3 x 3 for one about all three axes.
    """
    if _uniform(0, 1, generator) >= settings.turn_probability:
        return None
    from monai.transforms import create_rotate

    axes = 2 if settings.in_plane else spatial_dims
    angles = [math.radians(_uniform(-settings.angle, settings.angle, generator)) for _ in range(3 if axes == 3 else 1)]
    matrix = torch.as_tensor(create_rotate(axes, angles)[:axes, :axes], dtype=torch.float32)
    low, high = map(math.log, settings.scale)  # so that twice as large is as likely as half
    return matrix / math.exp(_uniform(low, high, generator))


def margin_of(turn: Tensor, patch_size: Sequence[int]) -> tuple[int, ...]:
    """How many pixels beyond a patch's sides a turn reaches for, an axis each."""
    turned = torch.tensor(patch_size[-len(turn) :], dtype=turn.dtype)
    # Whole pixels, and one for interpolation; never negative, so that the middle stays the middle.
    reach = ((turn.abs() @ turned - turned) / 2).ceil().int() + 1
    return (0,) * (len(patch_size) - len(turn)) + tuple(reach.clamp_min(0).tolist())


def turned(image: Tensor, label: Tensor, turn: Tensor, patch_size: Sequence[int]) -> Pair:
    """Turn image (C, *spatial) and label (*spatial) alike about their middle and cut out `patch_size`.

    The image is interpolated linearly, the label takes the nearest value; beyond the edge both are 0.
    """
    from monai.transforms import Affine

    axes = len(turn)
    affine, size = torch.block_diag(turn, torch.ones(1, 1)), tuple(patch_size[-axes:])
    results = []
    for tensor, mode in ((image, "bilinear"), (label[None], "nearest")):
        move = Affine(affine=affine, spatial_size=size, mode=mode, padding_mode="zeros", image_only=True)
        # Planes of a volume that are turned alike are channels of one picture: a single grid serves them all.
        moved = cast(Tensor, move(tensor.flatten(0, -axes - 1).float()))  # image_only: without the affine map
        results.append(moved.as_subclass(Tensor).view(tensor.shape[0], *patch_size).to(tensor.dtype))
    return results[0], results[1][0]


def augment(image: Tensor, label: Tensor, generator: torch.Generator, settings: Augmentation | None = None) -> Pair:
    """Flip and quarter-turn image and label alike, then vary the intensities of the image; the input stays as it was.

    image (C, *spatial) floating and normalised, label (*spatial) integer; shapes and dtypes stay. Turns by any angle
    come before, because they need more of the case than the patch: see `draw_turn` and `PatchDataset`. Intensities of
    all channels change together, so that grey stays grey. Raises ValueError for an unknown flip axis.
    """
    check_pair(image, label)
    settings = settings or Augmentation()
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
    return _recolour(image.contiguous(), generator, settings), label.contiguous()


def _recolour(image: Tensor, generator: torch.Generator, settings: Augmentation) -> Tensor:
    from monai.transforms import GaussianSmooth

    s, draw = settings, partial(_uniform, generator=generator)
    changes: tuple[tuple[float, Callable[[Tensor], Tensor]], ...] = (
        (s.invert_probability, lambda x: -x),
        (s.blur_probability, lambda x: GaussianSmooth(draw(*s.blur))(x).as_subclass(Tensor).to(x.dtype)),
        (s.low_resolution_probability, lambda x: _coarse(x, draw(*s.low_resolution))),
        (s.probability, lambda x: _bend(x, draw(*s.gamma))),
        (s.probability, lambda x: (x - x.mean()) * draw(*s.contrast) + x.mean()),
        (s.probability, lambda x: x + draw(-s.brightness, s.brightness)),
        (s.probability, lambda x: x + draw(0, s.noise) * torch.randn(x.shape, generator=generator, dtype=x.dtype)),
    )
    for probability, change in changes:
        image = change(image) if draw(0, 1) < probability else image
    return image


def _coarse(image: Tensor, share: float) -> Tensor:
    """Every axis down to this share of its pixels by picking the nearest, and up again linearly."""
    size = image.shape[1:]
    small = F.interpolate(image[None], size=[max(1, round(share * length)) for length in size], mode="nearest-exact")
    return resized(small[0], size)


def _bend(image: Tensor, exponent: float) -> Tensor:
    """Raise intensities, stretched to 0..1, to a power, and give them back the mean and deviation they had."""
    # MONAI's AdjustContrast is the same, but takes three times as long and makes NaN of an image of a single value.
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
        dataset: Cases | Sequence[dict],
        patch_size: tuple[int, ...],
        length: int,
        seed: int,
        augment: bool | Augmentation = True,
        foreground_probability: float = 1 / 3,
    ):
        if len(dataset) == 0:
            raise ValueError("the data set has no cases; patches need at least one")
        self.dataset = as_cases(dataset)
        self.length, self.seed = whole_number("length", length), whole_number("seed", seed, at_least=0)
        self.patch_size = sizes("patch_size", patch_size, self.dataset.view(0)["label"].ndim)
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
        case = self.dataset.view(int(torch.randint(len(self.dataset), (), generator=generator)))
        settings, size = self.augmentation, self.patch_size
        turn = draw_turn(settings, len(size), generator) if settings else None
        margin = None if turn is None else margin_of(turn, size)
        share, foreground = self.foreground_probability, case.get("foreground")
        image, label = sample_patch(case["image"], case["label"], size, generator, share, margin, foreground)
        if turn is not None:
            image, label = turned(image, label, turn, size)
        if settings is not None:
            image, label = augment(image, label, generator, settings)
        return {"image": image, "label": label.long(), "name": case.get("name", "")}
