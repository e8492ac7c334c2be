"""Lesson 05: how a skip is joined, and the U-Net's whole way down and up."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.course.checks.random_cases import random_tensor
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# --------------------------------------------------------------------------------------------- 05.5, joining a skip


def join(deep, skip, stride):
    for axis, step in enumerate(stride, start=2):
        deep = deep.repeat_interleave(step, axis).narrow(axis, 0, skip.shape[axis])
    return torch.cat([deep, skip], 1)


def _joined(deep_channels: int, coarse: tuple[int, ...], channels: int, size: tuple[int, ...], stride) -> tuple:
    return random_tensor(2, deep_channels, *coarse, seed=6), random_tensor(2, channels, *size, seed=7), stride


JOIN = Exercise(
    number="05.5",
    title="grow, crop, join",
    goal="Write `join(deep, skip, stride)`: repeat every value of the coarse map `stride` times along each axis, cut "
    "the result to the size of the skip, and put both side by side, the grown channels first.",
    minutes=12,
    difficulty=3,
    reference=join,
    cases=(
        Case("a 2 x 3 map beside a skip of 4 x 6", _joined(3, (2, 3), 3, (4, 6), (2, 2))),
        Case("odd sizes: 3 x 4 comes from 5 x 7", _joined(2, (3, 4), 4, (5, 7), (2, 2))),
        Case("a volume", _joined(2, (2, 3, 2), 2, (4, 5, 3), (2, 2, 2))),
        Case("a volume whose slices were not halved", _joined(2, (3, 3, 2), 3, (3, 6, 3), (1, 2, 2))),
        Case("stride 3", _joined(1, (2, 2), 1, (5, 4), (3, 3))),
    ),
    hints=(
        "Do one axis at a time. The spatial axes are 2, 3 and perhaps 4; `enumerate(stride, start=2)` names them.",
        "0, 1, 2 must become 0, 0, 1, 1, 2, 2: that is `repeat_interleave`. The coarse map came from position 0 on, so "
        "what is too much is at the end.",
        "`deep.repeat_interleave(step, axis).narrow(axis, 0, skip.shape[axis])` for every axis, then "
        "`torch.cat([deep, skip], 1)`.",
    ),
    mistakes=(
        Mistake("tiled", "deep.repeat_interleave(step, axis)", "torch.cat([deep] * step, axis)").says(
            "you repeat the whole map: 0, 1 becomes 0, 1, 0, 1. Every value must stay in its place and grow there: "
            "0, 0, 1, 1."
        ),
        Mistake("the beginning is cut off", "narrow(axis, 0,", "narrow(axis, -skip.shape[axis],").says(
            "with odd sizes you cut off the beginning. The window of output 0 lay on position 0, so the first grown "
            "position belongs to the skip's first: cut at the end."
        ),
        Mistake("skip first", "[deep, skip]", "[skip, deep]").says(
            "the skip comes first in yours. Weights trained for the other order would read the wrong channels."
        ),
        Mistake("added", "torch.cat([deep, skip], 1)", "deep + skip").says(
            "you add the two. Adding mixes them for good; side by side, the next convolution decides what to take from "
            "which."
        ),
        Mistake(
            "the skip is padded",
            ".narrow(axis, 0, skip.shape[axis])",
            "\n        skip = F.pad(skip, [0, 0] * (skip.ndim - axis - 1) + [0, deep.shape[axis] - skip.shape[axis]])",
        ).says(
            "you pad the skip to the grown size. Then the output is larger than the image: cut the grown map instead."
        ),
        Mistake("always twice", "(step, axis)", "(2, axis)").says(
            "you repeat twice whatever `stride` says. An axis with stride 1 was not made smaller and must not grow."
        ),
        Mistake(
            "interpolated",
            "deep.repeat_interleave(step, axis).narrow(axis, 0, skip.shape[axis])",
            "F.interpolate(deep, skip.shape[2:], mode='bilinear' if skip.ndim == 4 else 'trilinear')",
        ).says(
            "you interpolate between neighbours. That is a possible network, and another one: here each value is "
            "repeated."
        ),
    ),
    not_tested="maps that are too small even when grown; the 1 x 1 convolution before.",
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


UNET = Exercise(
    number="05.6",
    title="the U-Net",
    goal="Write `unet(image, encoder, joins, decoder, head)`: down through the stages of `encoder`, up through `joins` "
    "and `decoder` (deepest first), each with the skip of its level, then `head`.",
    minutes=20,
    difficulty=4,
    reference=unet,
    cases=(
        Case("two stages", _unet_case(2, 8, 8)),
        Case("three stages", _unet_case(3, 8, 12)),
        Case("four stages, odd sizes", _unet_case(4, 13, 11)),
        Case("a volume, three stages", _unet_case(3, 5, 8, 6)),
    ),
    hints=(
        "On the way down keep the output of every stage in a list. What is the first thing the way up joins, and with "
        "what?",
        "The deepest map is what you carry up. The skips are the others, from the deepest to the first: "
        "`features[-2::-1]`.",
        "`for join, stage, skip in zip(joins, decoder, features[-2::-1]): x = stage(join(x, skip))`, and at the end "
        "`head(x)`.",
    ),
    mistakes=(
        Mistake("skips from the top", "features[-2::-1]", "features[:-1]").says(
            "you hand out the skips in the order they were made. The way up begins at the bottom: the last skip is "
            "needed first."
        ),
        Mistake("the deepest joins itself", "features[-2::-1], strict=True", "features[::-1], strict=False").says(
            "your first skip is the deepest map itself, so every level gets the skip of the one below. Begin with the "
            "last but one."
        ),
        Mistake(
            "kept before the stage",
            "x = stage(x)\n        features.append(x)",
            "features.append(x)\n        x = stage(x)",
        ).says("you keep what goes *into* a stage. The skip of a level is what comes out of its stage."),
        Mistake("always from the bottom", "join(x, skip)", "join(features[-1], skip)").says(
            "every level of yours starts from the deepest map again. Hand on what the level below made."
        ),
        Mistake("no skips", "join(x, skip)", "join(x, torch.zeros_like(skip))").says(
            "the skips hold zeros. Join what the encoder's stages made."
        ),
        Mistake("every stage sees the image", "x = stage(x)", "x = stage(image)").says(
            "every stage of your encoder starts from the image. Each reads what the stage before it made."
        ),
        Mistake("no head", "head(x)", "x").says("the head is missing: it turns channels into one number a class."),
    ),
    not_tested="deep supervision, where every level of the decoder has a head; a last level without a skip.",
)

EXERCISES = (JOIN, UNET)
