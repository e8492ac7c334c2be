"""Grids to sequences and back: the order in which a recurrence walks over an image or a volume.

A traversal says which axis runs fastest and whether the walk goes backwards. Each is a permutation of the grid's
positions, so going there and back returns every value exactly.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xlstm_unet_lab.ops.checks import one_of, whole_number

DIRECTIONS = ("forward", "bidirectional", "axes")


class Traversal(NamedTuple):
    """One walk over a grid. The default is row-major: the last axis runs fastest, from the first corner to the last."""

    fastest: int = -1  # spatial axis along which successive tokens are neighbours
    reverse: bool = False  # from the last corner back to the first


ROW_MAJOR = Traversal()


def traversals(spatial_dims: int, directions: str) -> tuple[Traversal, ...]:
    """The walks behind a word: "forward" one, "bidirectional" both ways, "axes" both ways with every axis fastest once.

    Raises ValueError for an unknown word or fewer than 1 spatial dimension.
    """
    whole_number("spatial_dims", spatial_dims)
    if one_of("directions", directions, DIRECTIONS) == "forward":
        return (ROW_MAJOR,)
    fastest = range(spatial_dims - 1, -1, -1) if directions == "axes" else (-1,)
    return tuple(Traversal(axis, reverse) for axis in fastest for reverse in (False, True))


def _fastest_axis(spatial_dims: int, fastest: int) -> int:
    """The axis counted from 0; ValueError where the grid has none such."""
    if not -spatial_dims <= fastest < spatial_dims:
        raise ValueError(f"fastest axis is {fastest}, expected -{spatial_dims} to {spatial_dims - 1} for this grid")
    return fastest % spatial_dims


def walked_size(size: tuple[int, ...], traversal: Traversal) -> tuple[int, ...]:
    """The grid's size with its axes in the order walked, slowest first: the others keep their order."""
    axis = _fastest_axis(len(size), traversal.fastest)
    return (*size[:axis], *size[axis + 1 :], size[axis])


def has_open_size(size: Sequence[int]) -> bool:
    """Whether torch.export was asked to leave one of these sizes open. Every question about such a size becomes a
    condition on it, so nothing may be asked: not whether a view fits, but for the values at positions.
    """
    return any(isinstance(extent, torch.SymInt) for extent in size)


def _flatten(walked: Tensor) -> Tensor:
    """(B, *size, C) -> (B, S, C)."""
    size = walked.shape[1:-1]
    if not has_open_size(size):
        return walked.flatten(1, -2)
    places: list[slice | Tensor] = [slice(None)]
    rest = torch.arange(math.prod(size), device=walked.device)
    for extent in reversed(size):
        above = rest // extent
        rest, place = above, rest - above * extent  # ONNX has no remainder by an open size
        places.insert(1, place)
    return walked[tuple(places)]


def _unflatten(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, S, C) -> (B, *size, C)."""
    if not has_open_size(size):
        return tokens.unflatten(1, size)
    token = torch.zeros((), dtype=torch.long, device=tokens.device)
    for extent in size:
        token = token.unsqueeze(-1) * extent + torch.arange(extent, device=tokens.device)
    return tokens[:, token]


def to_sequence(grid: Tensor, traversal: Traversal = ROW_MAJOR) -> Tensor:
    """(B, C, *spatial) -> (B, S, C), tokens in the order walked. Raises ValueError where there is no spatial axis."""
    if grid.ndim < 3:
        raise ValueError(f"expected a grid (batch, channels, *spatial), got shape {tuple(grid.shape)}")
    axis = _fastest_axis(grid.ndim - 2, traversal.fastest)
    tokens = _flatten(grid.movedim((2 + axis, 1), (-2, -1)))
    return tokens.flip(1) if traversal.reverse else tokens


def to_grid(tokens: Tensor, size: tuple[int, ...], traversal: Traversal = ROW_MAJOR) -> Tensor:
    """(B, S, C) -> (B, C, *size), the inverse of `to_sequence`; ValueError when S is not the product of `size`."""
    if tokens.ndim != 3 or tokens.shape[1] != math.prod(size):
        wanted = f"(batch, {math.prod(size)}, channels) for a grid {size}"
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}, expected {wanted}")
    tokens = tokens.flip(1) if traversal.reverse else tokens
    walked = _unflatten(tokens, walked_size(size, traversal))  # (B, *walked, C)
    return walked.movedim((-2, -1), (2 + _fastest_axis(len(size), traversal.fastest), 1))
