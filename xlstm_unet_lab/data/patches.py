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
    margin: tuple[int, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut one random patch, in a share of the draws around a random pixel of a random class that is there.

    image (C, *spatial) floating and normalised, label (*spatial) integer, on the CPU; returns patches of `patch_size`,
    never views of the input's memory. An image smaller than the patch is padded evenly on both sides.
    Classes are drawn with equal chances, so that a small structure is seen as often as a large one. `margin` adds so
    many pixels on either side of the patch, for a caller who turns it before cutting out its middle; where the patch
    lies does not depend on it.
    Raises ValueError for a patch size of another rank or below 1 and for a probability outside 0 to 1.
    """
    check_pair(image, label)
    patch_size = check_patch_size(patch_size, label.ndim)
    if not 0 <= foreground_probability <= 1:
        raise ValueError(f"foreground_probability is {foreground_probability}; give a share from 0 to 1")
    # The first and the last place to start, an axis each; a patch larger than the image starts outside of it.
    room = [there - wanted for wanted, there in zip(patch_size, label.shape, strict=True)]
    places = [(0, free) if free >= 0 else (-(-free // 2),) * 2 for free in room]
    start = None
    if torch.rand((), generator=generator) < foreground_probability:
        start = _start_on_foreground(label, patch_size, places, generator)
    if start is None:
        start = [first + _random_below(last - first + 1, generator) for first, last in places]
    margin = margin or (0,) * label.ndim
    box = [(s - m, s + n + m) for s, n, m in zip(start, patch_size, margin, strict=True)]
    return _cut(image, box, PAD_IMAGE), _cut(label, box, PAD_LABEL)


def _cut(tensor: torch.Tensor, box: list[tuple[int, int]], fill: float) -> torch.Tensor:
    """A copy of the box on the last axes, filled where it reaches beyond the tensor."""
    sizes = tensor.shape[-len(box) :]
    inside = [slice(max(low, 0), max(high, 0)) for low, high in box]
    # F.pad counts axes from the last one.
    pads = [
        side
        for (low, high), size in reversed(list(zip(box, sizes, strict=True)))
        for side in (max(-low, 0), max(high - size, 0))
    ]
    piece = tensor[(..., *inside)]
    return F.pad(piece, pads, value=fill) if any(pads) else piece.clone()


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
    label: torch.Tensor, patch_size: tuple[int, ...], places: list[tuple[int, int]], generator: torch.Generator
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
        min(max(int(middle) - length // 2, first), last)
        for middle, length, (first, last) in zip(centre, patch_size, places, strict=True)
    ]
