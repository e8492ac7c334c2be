"""Cut patches for training."""

from __future__ import annotations

import torch
import torch.nn.functional as F

PAD_IMAGE = 0.0  # the mean of a normalised image, and what sliding-window prediction pads with
PAD_LABEL = 0  # background, not "ignore": prediction pads too, and there the network must answer that nothing is there


def check_pair(image: torch.Tensor, label: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless image is floating (C, *spatial) and label integer (*spatial), 2-D or 3-D."""
    if not image.is_floating_point() or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"image is {image.dtype} and label {label.dtype}; give a floating image and an integer label")
    if label.ndim not in (2, 3) or image.ndim != label.ndim + 1 or image.shape[1:] != label.shape:
        raise ValueError(
            f"image has shape {tuple(image.shape)} and label {tuple(label.shape)}; expected (C, *spatial) and "
            "(*spatial) with two or three spatial axes"
        )


def _random_below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def sample_patch(
    image: torch.Tensor,
    label: torch.Tensor,
    patch_size: tuple[int, ...],
    generator: torch.Generator,
    foreground_probability: float = 1 / 3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut one random patch, in a share of the draws around a random pixel of a random class that is there.

    image (C, *spatial) floating and normalised, label (*spatial) integer, on the CPU; returns patches of `patch_size`,
    never views of the input's memory. An image smaller than the patch is padded evenly on both sides.
    Classes are drawn with equal chances, so that a small structure is seen as often as a large one.
    Raises ValueError for a patch size of another rank or below 1 and for a probability outside 0 to 1.
    """
    check_pair(image, label)
    patch_size = check_patch_size(patch_size, label.ndim)
    if not 0 <= foreground_probability <= 1:
        raise ValueError(f"foreground_probability is {foreground_probability}; give a share from 0 to 1")
    missing = [max(0, wanted - there) for wanted, there in zip(patch_size, label.shape, strict=True)]
    if any(missing):
        # F.pad counts axes from the last one.
        pads = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
        image, label = F.pad(image, pads, value=PAD_IMAGE), F.pad(label, pads, value=PAD_LABEL)
    room = [there - wanted for wanted, there in zip(patch_size, label.shape, strict=True)]
    start = None
    if torch.rand((), generator=generator) < foreground_probability:
        start = _start_on_foreground(label, patch_size, room, generator)
    if start is None:
        start = [_random_below(free + 1, generator) for free in room]
    window = tuple(slice(first, first + length) for first, length in zip(start, patch_size, strict=True))
    return image[(slice(None), *window)].clone(), label[window].clone()


def check_patch_size(patch_size: tuple[int, ...], spatial_dims: int) -> tuple[int, ...]:
    """The patch size as a tuple of ints; ValueError unless it has `spatial_dims` numbers of at least 1."""
    try:
        sizes = tuple(int(length) for length in patch_size if length == int(length))
    except TypeError:
        sizes = ()
    if len(sizes) != spatial_dims or len(patch_size) != spatial_dims or min(sizes) < 1:
        raise ValueError(f"patch_size is {patch_size!r}; give {spatial_dims} whole numbers of at least 1, one an axis")
    return sizes


def _start_on_foreground(
    label: torch.Tensor, patch_size: tuple[int, ...], room: list[int], generator: torch.Generator
) -> list[int] | None:
    """Where a patch starts that has a foreground pixel in its middle, as far as the image's edge allows."""
    present = label.flatten().bincount().nonzero().flatten()
    present = present[present > 0]
    if len(present) == 0:
        return None
    chosen = present[_random_below(len(present), generator)]
    pixels = (label.flatten() == chosen).nonzero().flatten()
    flat = pixels[_random_below(len(pixels), generator)]
    centre = torch.unravel_index(flat, label.shape)
    return [
        min(max(int(middle) - length // 2, 0), free)
        for middle, length, free in zip(centre, patch_size, room, strict=True)
    ]
