"""Lesson 05: how a skip is joined, and the U-Net's whole way down and up."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.course.checks.random_cases import random_tensor
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# --------------------------------------------------------------------------------------------- 05.5, joining a skip


def join(deep, skip, stride):
    for axis, step in enumerate(stride, start=2):
        deep = deep.repeat_interleave(step, axis).narrow(axis, 0, skip.shape[axis])
    return torch.cat([deep, skip], 1)


def _joined(deep_channels: int, coarse: tuple[int, ...], channels: int, size: tuple[int, ...], stride) -> tuple:
    return random_tensor(2, deep_channels, *coarse, seed=6), random_tensor(2, channels, *size, seed=7), stride


JOIN = exercise(
    "05.5",
    join,
    cases=(
        Case("a 2 x 3 map beside a skip of 4 x 6", _joined(3, (2, 3), 3, (4, 6), (2, 2))),
        Case("odd sizes: 3 x 4 comes from 5 x 7", _joined(2, (3, 4), 4, (5, 7), (2, 2))),
        Case("a volume", _joined(2, (2, 3, 2), 2, (4, 5, 3), (2, 2, 2))),
        Case("a volume whose slices were not halved", _joined(2, (3, 3, 2), 3, (3, 6, 3), (1, 2, 2))),
        Case("stride 3", _joined(1, (2, 2), 1, (5, 4), (3, 3))),
    ),
    mistakes={
        "tiled": ("deep.repeat_interleave(step, axis)", "torch.cat([deep] * step, axis)"),
        "the beginning is cut off": ("narrow(axis, 0,", "narrow(axis, -skip.shape[axis],"),
        "skip first": ("[deep, skip]", "[skip, deep]"),
        "added": ("torch.cat([deep, skip], 1)", "deep + skip"),
        "the skip is padded": (
            ".narrow(axis, 0, skip.shape[axis])",
            "\n        skip = F.pad(skip, [0, 0] * (skip.ndim - axis - 1) + [0, deep.shape[axis] - skip.shape[axis]])",
        ),
        "always twice": ("(step, axis)", "(2, axis)"),
        "interpolated": (
            "deep.repeat_interleave(step, axis).narrow(axis, 0, skip.shape[axis])",
            "F.interpolate(deep, skip.shape[2:], mode='bilinear' if skip.ndim == 4 else 'trilinear')",
        ),
    },
)

# ------------------------------------------------------------------------------------------ 05.6, the whole way through


def unet(image, encoder, joins, decoder, head):
    features, x = [], image
    for stage in encoder:
        x = stage(x)
        features.append(x)
    for join, stage, skip in zip(joins, decoder, features[-2::-1], strict=True):
        x = stage(join(x, skip))
    return head(x)


def _toy_stage(number: int, stride: int = 1) -> Callable:
    """Every `stride`-th position, and a function of its value that no other number has."""
    return lambda x: torch.sin((2 + number) * x[(..., *[slice(None, None, stride)] * (x.ndim - 2))])


def _toy_join(x: Tensor, skip: Tensor) -> Tensor:
    return F.interpolate(x, size=skip.shape[2:], mode="nearest") / 2 + skip


def _unet_case(stages: int, *size: int) -> tuple:
    encoder = tuple(_toy_stage(s, 2 if s else 1) for s in range(stages))
    decoder = tuple(_toy_stage(10 + s) for s in reversed(range(stages - 1)))
    return random_tensor(2, 1, *size, seed=8), encoder, (_toy_join,) * (stages - 1), decoder, _toy_stage(20)


UNET = exercise(
    "05.6",
    unet,
    cases=(
        Case("two stages", _unet_case(2, 8, 8)),
        Case("three stages", _unet_case(3, 8, 12)),
        Case("four stages, odd sizes", _unet_case(4, 13, 11)),
        Case("a volume, three stages", _unet_case(3, 5, 8, 6)),
    ),
    mistakes={
        "skips from the top": ("features[-2::-1]", "features[:-1]"),
        "the deepest joins itself": ("features[-2::-1], strict=True", "features[::-1], strict=False"),
        "kept before the stage": (
            "x = stage(x)\n        features.append(x)",
            "features.append(x)\n        x = stage(x)",
        ),
        "always from the bottom": ("join(x, skip)", "join(features[-1], skip)"),
        "no skips": ("join(x, skip)", "join(x, torch.zeros_like(skip))"),
        "every stage sees the image": ("x = stage(x)", "x = stage(image)"),
        "no head": ("head(x)", "x"),
    },
)

EXERCISES = (JOIN, UNET)
