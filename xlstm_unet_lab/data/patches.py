"""Cut patches for training."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.ops.checks import number, sizes

Pair = tuple[Tensor, Tensor]  # an image (C, *spatial) and its label (*spatial)
PAD_IMAGE = 0.0  # the mean of a normalised image, and what sliding-window prediction pads with
PAD_LABEL = 0  # background, not "ignore": prediction pads too, and there the network must answer that nothing is there


class Foreground(NamedTuple):
    """Where the foreground of a label lies, class by class: found once, it spares every patch a search."""

    classes: tuple[int, ...]  # those that are there, ascending, background left out
    ends: tuple[int, ...]  # where the places of each class end
    places: Tensor  # positions in the flattened label, ascending within a class

    @classmethod
    def of(cls, label: Tensor) -> Self:
        """Look through a label (*spatial), integers from 0 on."""
        flat = label.flatten()
        places = flat.nonzero().flatten()
        values, order = flat[places].sort(stable=True)
        classes, counts = values.unique_consecutive(return_counts=True)
        smallest = torch.int32 if len(flat) < 2**31 else torch.int64
        return cls(tuple(classes.tolist()), tuple(counts.cumsum(0).tolist()), places[order].to(smallest))

    def draw(self, generator: torch.Generator) -> Tensor:
        """A position of a class of its own, all classes with equal chances; there must be one."""
        chosen = _random_below(len(self.classes), generator)
        first = self.ends[chosen - 1] if chosen else 0
        return self.places[first + _random_below(self.ends[chosen] - first, generator)].long()


def check_pair(image: Tensor, label: Tensor) -> None:
    """Raise TypeError or ValueError unless image is floating (C, *spatial) and label integer (*spatial), 2-D or 3-D."""
    if not image.is_floating_point() or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"image is {image.dtype} and label {label.dtype}; give a floating image and an integer label")
    if label.ndim not in (2, 3) or image.ndim != label.ndim + 1 or image.shape[1:] != label.shape:
        shapes = f"{tuple(image.shape)} and label {tuple(label.shape)}"
        raise ValueError(f"image has shape {shapes}; expected (C, *spatial) and (*spatial), two or three spatial axes")


def padding(patch_size: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """What an image of this size needs before and after it, an axis each, to be as large as the patch."""
    missing = [max(wanted - there, 0) for wanted, there in zip(patch_size, size, strict=True)]
    return [(margin // 2, margin - margin // 2) for margin in missing]


def _random_below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def sample_patch(
    image: Tensor,
    label: Tensor,
    patch_size: tuple[int, ...],
    generator: torch.Generator,
    foreground_probability: float = 1 / 3,
    margin: tuple[int, ...] | None = None,
    foreground: Foreground | None = None,
) -> Pair:
    """Cut one random patch, in a share of the draws around a random pixel of a random class that is there.

    image (C, *spatial) floating and normalised, label (*spatial) integer, on the CPU; returns patches of `patch_size`,
    never views of the input's memory. An image smaller than the patch is padded evenly on both sides.
    Classes are drawn with equal chances, so that a small structure is seen as often as a large one. `margin` adds so
    many pixels on either side of the patch, for a caller who turns it before cutting out its middle; where the patch
    lies does not depend on it. `foreground` is the label's where it is known already; without it the whole label is
    searched.
    Raises ValueError for a patch size of another rank or below 1 and for a probability outside 0 to 1.
    """
    check_pair(image, label)
    patch_size = sizes("patch_size", patch_size, label.ndim)
    number("foreground_probability", foreground_probability, at_least=0, at_most=1)
    on_foreground = torch.rand((), generator=generator) < foreground_probability
    foreground = (foreground or Foreground.of(label)) if on_foreground else None
    if foreground and foreground.classes:
        middle = torch.unravel_index(foreground.draw(generator), label.shape)
        start = start_around([int(place) for place in middle], patch_size, label.shape)
    else:
        places = _places_to_start(patch_size, label.shape)
        start = [first + _random_below(last - first + 1, generator) for first, last in places]
    margin = margin or (0,) * label.ndim
    box = [(s - m, s + n + m) for s, n, m in zip(start, patch_size, margin, strict=True)]
    return cut_box(image, box, PAD_IMAGE), cut_box(label, box, PAD_LABEL)


def start_around(middle: Sequence[int], patch_size: Sequence[int], size: Sequence[int]) -> list[int]:
    """Where a patch starts that has `middle` near its middle: inside the image of that size as far as that goes."""
    wanted = [place - length // 2 for place, length in zip(middle, patch_size, strict=True)]
    places = _places_to_start(patch_size, size)
    return [min(max(place, first), last) for place, (first, last) in zip(wanted, places, strict=True)]


def _places_to_start(patch_size: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last place to start, an axis each; a patch larger than the image starts outside of it."""
    room = [max(there - wanted, 0) for wanted, there in zip(patch_size, size, strict=True)]
    return [(-before, free - before) for (before, _), free in zip(padding(patch_size, size), room, strict=True)]


def cut_box(tensor: Tensor, box: Sequence[tuple[int, int]], fill: float) -> Tensor:
    """A copy of the box, (start, stop) for each of the last axes, filled where it reaches beyond the tensor."""
    beyond = [(-low, high - size) for (low, high), size in zip(box, tensor.shape[-len(box) :], strict=True)]
    # F.pad begins at the last axis, cuts off where a side is negative, and copies in any case.
    return F.pad(tensor, [side for sides in reversed(beyond) for side in sides], value=fill)
