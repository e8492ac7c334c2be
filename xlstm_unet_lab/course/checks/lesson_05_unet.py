"""Lesson 05: how a skip is joined, and the U-Net's whole way down and up."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --------------------------------------------------------------------------------------------- 05.5, joining a skip


def join(deep, skip, stride):
    for axis, step in enumerate(stride, start=2):
        deep = deep.repeat_interleave(step, axis).narrow(axis, 0, skip.shape[axis])
    return torch.cat([deep, skip], 1)


def _grown(deep: Tensor, stride: tuple[int, ...]) -> Tensor:
    for axis, step in enumerate(stride, start=2):
        deep = deep.repeat_interleave(step, axis)
    return deep


def _cropped(grown: Tensor, size: tuple[int, ...], at_the_end: bool = False) -> Tensor:
    for axis, extent in enumerate(size, start=2):
        grown = grown.narrow(axis, grown.shape[axis] - extent if at_the_end else 0, extent)
    return grown


def _tiled(deep, skip, stride):
    return torch.cat([_cropped(deep.repeat(1, 1, *stride), skip.shape[2:]), skip], 1)


def _cropped_at_the_wrong_end(deep, skip, stride):
    return torch.cat([_cropped(_grown(deep, stride), skip.shape[2:], at_the_end=True), skip], 1)


def _skip_first(deep, skip, stride):
    return torch.cat([skip, _cropped(_grown(deep, stride), skip.shape[2:])], 1)


def _added(deep, skip, stride):
    return _cropped(_grown(deep, stride), skip.shape[2:]) + skip


def _skip_padded(deep, skip, stride):
    grown = _grown(deep, stride)
    missing = [after - have for have, after in zip(skip.shape[2:], grown.shape[2:], strict=True)]
    return torch.cat([grown, F.pad(skip, [n for one in reversed(missing) for n in (0, one)])], 1)


def _always_twice(deep, skip, stride):
    return join(deep, skip, (2,) * len(stride))


def _interpolated(deep, skip, stride):
    mode = {2: "bilinear", 3: "trilinear"}[len(stride)]
    return torch.cat([F.interpolate(deep, size=skip.shape[2:], mode=mode), skip], 1)


def _joined(deep_channels: int, coarse: tuple[int, ...], channels: int, size: tuple[int, ...], stride) -> tuple:
    return _random(2, deep_channels, *coarse, seed=6), _random(2, channels, *size, seed=7), stride


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
        Mistake(
            "tiled",
            _tiled,
            "you repeat the whole map: 0, 1 becomes 0, 1, 0, 1. Every value must stay in its place and grow there: "
            "0, 0, 1, 1.",
        ),
        Mistake(
            "the beginning is cut off",
            _cropped_at_the_wrong_end,
            "with odd sizes you cut off the beginning. The window of output 0 lay on position 0, so the first grown "
            "position belongs to the skip's first: cut at the end.",
        ),
        Mistake(
            "skip first",
            _skip_first,
            "the skip comes first in yours. Weights trained for the other order would read the wrong channels.",
        ),
        Mistake(
            "added",
            _added,
            "you add the two. Adding mixes them for good; side by side, the next convolution decides what to take from "
            "which.",
        ),
        Mistake(
            "the skip is padded",
            _skip_padded,
            "you pad the skip to the grown size. Then the output is larger than the image: cut the grown map instead.",
        ),
        Mistake(
            "always twice",
            _always_twice,
            "you repeat twice whatever `stride` says. An axis with stride 1 was not made smaller and must not grow.",
        ),
        Mistake(
            "interpolated",
            _interpolated,
            "you interpolate between neighbours. That is a possible network, and another one: here each value is "
            "repeated.",
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


def _maps(image: Tensor, encoder: tuple[Callable, ...]) -> list[Tensor]:
    features = []
    for stage in encoder:
        features.append(stage(features[-1] if features else image))
    return features


def _way_up(features, skips, joins, decoder, head, *, forget=False):
    x = features[-1]
    for join, stage, skip in zip(joins, decoder, skips, strict=False):
        x = stage(join(features[-1] if forget else x, skip))
    return head(x)


def _with_skips(choose: Callable, **options) -> Callable:
    """A wrong answer from what it takes for the skips, given the image and the feature maps."""

    def answer(image, encoder, joins, decoder, head):
        features = _maps(image, encoder)
        return _way_up(features, choose(image, features), joins, decoder, head, **options)

    return answer


def _all_from_the_image(image, encoder, joins, decoder, head):
    features = [stage(image) for stage in encoder]
    return _way_up(features, features[-2::-1], joins, decoder, head)


def _headless(image, encoder, joins, decoder, head):
    return unet(image, encoder, joins, decoder, lambda x: x)


def _toy_stage(width: int, stride: int = 1, seed: float = 0.0) -> Callable:
    """Any number of channels -> `width`, every `stride`-th position."""

    def stage(x: Tensor) -> Tensor:
        taken = x[(..., *(slice(None, None, stride),) * (x.ndim - 2))]
        mix = torch.sin(seed + torch.arange(1.0, width * x.shape[1] + 1, dtype=x.dtype)).view(width, x.shape[1])
        return torch.tanh(torch.einsum("oc,bc...->bo...", mix, taken))

    return stage


def _toy_join(x: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], 1)


def _unet_case(size: tuple[int, ...], stages: int) -> tuple:
    image = _random(2, 1, *size, seed=8)
    encoder = tuple(_toy_stage(s + 2, 1 if s == 0 else 2, seed=s) for s in range(stages))
    decoder = tuple(_toy_stage(s + 2, seed=10.0 + s) for s in range(stages - 2, -1, -1))
    return image, encoder, (_toy_join,) * (stages - 1), decoder, _toy_stage(3, seed=20.0)


UNET = Exercise(
    number="05.6",
    title="the U-Net",
    goal="Write `unet(image, encoder, joins, decoder, head)`: down through the stages of `encoder`, up through `joins` "
    "and `decoder` (deepest first), each with the skip of its level, then `head`.",
    minutes=20,
    difficulty=4,
    reference=unet,
    cases=(
        Case("two stages", _unet_case((8, 8), 2)),
        Case("three stages", _unet_case((8, 12), 3)),
        Case("four stages, odd sizes", _unet_case((13, 11), 4)),
        Case("a volume, three stages", _unet_case((5, 8, 6), 3)),
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
        Mistake(
            "skips from the top",
            _with_skips(lambda image, features: features[:-1]),
            "you hand out the skips in the order they were made. The way up begins at the bottom: the last skip is "
            "needed first.",
        ),
        Mistake(
            "the deepest joins itself",
            _with_skips(lambda image, features: features[::-1]),
            "your first skip is the deepest map itself, so every level gets the skip of the one below. Begin with the "
            "last but one.",
        ),
        Mistake(
            "kept before the stage",
            _with_skips(lambda image, features: [image, *features[:-2]][::-1]),
            "you keep what goes *into* a stage. The skip of a level is what comes out of its stage.",
        ),
        Mistake(
            "always from the bottom",
            _with_skips(lambda image, features: features[-2::-1], forget=True),
            "every level of yours starts from the deepest map again. Hand on what the level below made.",
        ),
        Mistake(
            "no skips",
            _with_skips(lambda image, features: [torch.zeros_like(one) for one in features[-2::-1]]),
            "the skips hold zeros. Join what the encoder's stages made.",
        ),
        Mistake(
            "every stage sees the image",
            _all_from_the_image,
            "every stage of your encoder starts from the image. Each reads what the stage before it made.",
        ),
        Mistake(
            "no head",
            _headless,
            "the head is missing: it turns channels into one number a class.",
        ),
    ),
    not_tested="deep supervision, where every level of the decoder has a head; a last level without a skip.",
)

EXERCISES = (JOIN, UNET)
