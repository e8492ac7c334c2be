"""Lesson 05: what a stage of the U-Net is made of, the instance norm and the residual block."""

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensor, redrawn
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case
from xlstm_unet_lab.nn.conv import CONV, InstanceNorm

# ----------------------------------------------------------------------------------------- 05.3, instance norm by hand


def instance_norm(x, weight, bias, eps):
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    normalised = (x - mean) / torch.sqrt(variance + eps)
    one_per_channel = (-1, *(1 for _ in x.shape[2:]))
    return normalised * weight.reshape(one_per_channel) + bias.reshape(one_per_channel)


def _norm_case(x: torch.Tensor, eps: float = 1e-5) -> tuple:
    return x, torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([0.0, 1.0, -3.0]).double(), eps


def _contrasts(*size: int, seed: int = 0) -> torch.Tensor:
    """Two images of three channels (2, 3, *size) of very different contrast, away from 0."""
    contrast = torch.tensor([[1.0, 10.0, 0.1], [5.0, 2.0, 1.0]]).reshape(2, 3, *(1 for _ in size))
    return random_tensor(2, 3, *size, seed=seed) * contrast + 3


_FLAT = torch.full((1, 3, 4, 4), 7.0).double()

INSTANCE_NORM = exercise(
    "05.3",
    instance_norm,
    cases=(
        Case("two images of three channels, 4 x 5, of very different contrast", _norm_case(_contrasts(4, 5))),
        Case("a volume, by the same code", _norm_case(_contrasts(3, 4, 5, seed=1))),
        Case("a large eps, so that one sees where it is added", _norm_case(random_tensor(1, 3, 3, 3, seed=2), eps=0.5)),
        Case("a channel that is the same everywhere: nothing but the bias is left", _norm_case(_FLAT)),
        Case("a map of a single position", _norm_case(_FLAT[..., :1, :1])),
    ),
    mistakes={
        "over the whole batch": ("tuple(range(2, x.ndim))", "(0, *range(2, x.ndim))"),
        "over the channels": ("range(2, x.ndim)", "range(1, x.ndim)"),
        "the last two axes": ("tuple(range(2, x.ndim))", "(-2, -1)"),
        "divided by one fewer": ("((x - mean) ** 2).mean(axes, keepdim=True)", "x.var(axes, keepdim=True)"),
        "eps outside the root": ("torch.sqrt(variance + eps)", "(torch.sqrt(variance) + eps)"),
        "divided by the variance": ("torch.sqrt(variance + eps)", "(variance + eps)"),
        "without eps": ("variance + eps", "variance"),
        "weight and bias left out": (
            "normalised * weight.reshape(one_per_channel) + bias.reshape(one_per_channel)",
            "normalised",
        ),
        "writes into x": ("normalised = (x - mean)", "x -= mean\n    normalised = x"),
    },
)

# ------------------------------------------------------------------------------------------- 05.4, the residual block


def residual_block(x, conv1, norm1, conv2, norm2, projection):
    y = F.leaky_relu(norm1(conv1(x)), 0.01)
    y = norm2(conv2(y))
    straight = x if projection is None else projection(x)
    return F.leaky_relu(y + straight, 0.01)


def _block_case(come: int, go: int, *size: int, stride: int = 1) -> tuple:
    convolution = CONV[len(size)]
    layers = (
        convolution(come, go, 3, stride, padding=1),
        InstanceNorm(go),
        convolution(go, go, 3, padding=1),
        InstanceNorm(go),
    )
    fits = come == go and stride == 1
    projection = None if fits else redrawn(convolution(come, go, 1, stride), seed=5)
    return random_tensor(2, come, *size), *(redrawn(layer, seed) for seed, layer in enumerate(layers, 1)), projection


RESIDUAL_BLOCK = exercise(
    "05.4",
    residual_block,
    cases=(
        Case("a block that keeps 4 channels and the size", _block_case(4, 4, 6, 5)),
        Case("from 2 channels to 5: the input is projected", _block_case(2, 5, 6, 5)),
        Case("stride 2 on odd sizes", _block_case(3, 6, 7, 5, stride=2)),
        Case("the same number of channels, but half the size", _block_case(3, 3, 6, 8, stride=2)),
        Case("a volume", _block_case(2, 4, 4, 5, 3, stride=2)),
    ),
    mistakes={
        "no activation between": ("F.leaky_relu(norm1(conv1(x)), 0.01)", "norm1(conv1(x))"),
        "no activation at the end": ("F.leaky_relu(y + straight, 0.01)", "y + straight"),
        "activation before the sum": ("F.leaky_relu(y + straight, 0.01)", "F.leaky_relu(y, 0.01) + straight"),
        "plain ReLU": (
            ("F.leaky_relu(norm1(conv1(x)), 0.01)", "F.relu(norm1(conv1(x)))"),
            ("F.leaky_relu(y + straight, 0.01)", "F.relu(y + straight)"),
        ),
        "the sum before the norm": (("norm2(conv2(y))", "conv2(y)"), ("y + straight", "norm2(y + straight)")),
        "the first half added": (("norm2(conv2(y))", "norm2(conv2(y)) + y"), ("y + straight", "y")),
        "not projected": ("x if projection is None else projection(x)", "x"),
        "no sum": ("y + straight", "y"),
    },
)

EXERCISES = (INSTANCE_NORM, RESIDUAL_BLOCK)
