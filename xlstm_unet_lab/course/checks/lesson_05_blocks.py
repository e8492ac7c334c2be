"""Lesson 05: what a stage of the U-Net is made of, the instance norm and the residual block."""

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensor, redrawn
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake
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

INSTANCE_NORM = Exercise(
    number="05.3",
    title="instance norm, by hand",
    goal="Write `instance_norm(x, weight, bias, eps)`: every channel of every image of (B, C, *size), 2-D or 3-D, to "
    "mean 0 and variance 1, then times its `weight` plus its `bias`.",
    minutes=10,
    difficulty=2,
    reference=instance_norm,
    cases=(
        Case("two images of three channels, 4 x 5, of very different contrast", _norm_case(_contrasts(4, 5))),
        Case("a volume, by the same code", _norm_case(_contrasts(3, 4, 5, seed=1))),
        Case("a large eps, so that one sees where it is added", _norm_case(random_tensor(1, 3, 3, 3, seed=2), eps=0.5)),
        Case("a channel that is the same everywhere: nothing but the bias is left", _norm_case(_FLAT)),
        Case("a map of a single position", _norm_case(_FLAT[..., :1, :1])),
    ),
    hints=(
        "Over which axes of (B, C, *size) do you take the mean, so that each channel of each image keeps its own? How "
        "do you write them down without knowing how many there are?",
        "All axes from 2 on: `tuple(range(2, x.ndim))`, with `keepdim=True`. The variance is the mean of the squared "
        "distances from the mean.",
        "`(x - mean) / torch.sqrt(variance + eps)`. To lie along the channels the weight needs the shape (C, 1, 1), or "
        "(C, 1, 1, 1).",
    ),
    mistakes=(
        Mistake("over the whole batch", "tuple(range(2, x.ndim))", "(0, *range(2, x.ndim))").says(
            "you take the mean over the batch as well. That is batch norm: what comes out for an image depends on the "
            "others beside it."
        ),
        Mistake("over the channels", "range(2, x.ndim)", "range(1, x.ndim)").says(
            "you take the mean over the channels as well. That is layer norm: a strong channel drowns a weak one."
        ),
        Mistake("the last two axes", "tuple(range(2, x.ndim))", "(-2, -1)").says(
            "your images are right and your volumes are not: you name the last two axes, and a volume has three. Take "
            "all axes from 2 on."
        ),
        Mistake("divided by one fewer", "((x - mean) ** 2).mean(axes, keepdim=True)", "x.var(axes, keepdim=True)").says(
            "your variance divides by one position fewer than there are, as `x.var()` does by itself. The norm takes "
            "the plain mean of the squares: `correction=0`. For a single position yours divides 0 by 0."
        ),
        Mistake("eps outside the root", "torch.sqrt(variance + eps)", "(torch.sqrt(variance) + eps)").says(
            "you add eps to the standard deviation. It belongs under the root, to the variance."
        ),
        Mistake("divided by the variance", "torch.sqrt(variance + eps)", "(variance + eps)").says(
            "you divide by the variance. Its root is what has the unit of x."
        ),
        Mistake("without eps", "variance + eps", "variance").says(
            "you leave out eps. Where a channel is the same everywhere you divide 0 by 0."
        ),
        Mistake(
            "weight and bias left out",
            "normalised * weight.reshape(one_per_channel) + bias.reshape(one_per_channel)",
            "normalised",
        ).says("weight and bias are missing: every channel comes out with mean 0 and variance 1."),
        Mistake("writes into x", "normalised = (x - mean)", "x -= mean\n    normalised = x").says(
            "you subtract the mean in place (`x -= ...`). The caller still needs its x: a residual block adds it."
        ),
    ),
    not_tested="float16, in which the squares overflow above 255; the gradient.",
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


RESIDUAL_BLOCK = Exercise(
    number="05.4",
    title="the residual block",
    goal="Write `residual_block(x, conv1, norm1, conv2, norm2, projection)`: convolution, norm, activation, "
    "convolution, norm, plus the input, then the activation; `projection` is None where the input fits as it is.",
    minutes=8,
    difficulty=2,
    reference=residual_block,
    cases=(
        Case("a block that keeps 4 channels and the size", _block_case(4, 4, 6, 5)),
        Case("from 2 channels to 5: the input is projected", _block_case(2, 5, 6, 5)),
        Case("stride 2 on odd sizes", _block_case(3, 6, 7, 5, stride=2)),
        Case("the same number of channels, but half the size", _block_case(3, 3, 6, 8, stride=2)),
        Case("a volume", _block_case(2, 4, 4, 5, 3, stride=2)),
    ),
    hints=(
        "Write the main road first, line by line as the sentence says it. Keep x: you need it once more at the end.",
        "There are two activations, `F.leaky_relu(..., 0.01)`: one between the two halves, one after the sum.",
        "`F.leaky_relu(norm2(conv2(y)) + straight, 0.01)`, where `straight` is x, or `projection(x)` if there is one.",
    ),
    mistakes=(
        Mistake("no activation between", "F.leaky_relu(norm1(conv1(x)), 0.01)", "norm1(conv1(x))").says(
            "there is no activation between the two convolutions. Two convolutions in a row are one convolution with a "
            "larger kernel; only the activation between them makes a difference."
        ),
        Mistake("no activation at the end", "F.leaky_relu(y + straight, 0.01)", "y + straight").says(
            "the activation after the sum is missing."
        ),
        Mistake(
            "activation before the sum", "F.leaky_relu(y + straight, 0.01)", "F.leaky_relu(y, 0.01) + straight"
        ).says("you apply the second activation before the sum. Here it comes after: the sum itself is activated."),
        Mistake(
            "plain ReLU",
            ("F.leaky_relu(norm1(conv1(x)), 0.01)", "F.leaky_relu(y + straight, 0.01)"),
            ("F.relu(norm1(conv1(x)))", "F.relu(y + straight)"),
        ).says(
            "negative values become 0 in yours. The leaky ReLU lets a hundredth of them through, and a gradient: "
            "`F.leaky_relu(..., 0.01)`."
        ),
        Mistake(
            "the sum before the norm", ("norm2(conv2(y))", "y + straight"), ("conv2(y)", "norm2(y + straight)")
        ).says(
            "you add the input before the second norm, which then takes its mean and contrast away. The straight road "
            "passes no norm."
        ),
        Mistake("the first half added", ("norm2(conv2(y))", "y + straight"), ("norm2(conv2(y)) + y", "y")).says(
            "you add what came out of the first half. The *input* of the block is added, projected where it must be."
        ),
        Mistake("not projected", "x if projection is None else projection(x)", "x").says(
            "you add x as it is even where the block changes its channels or its size. There `projection(x)` fits."
        ),
        Mistake("no sum", "y + straight", "y").says(
            "the input is not added. Without it the block is two convolutions in a row."
        ),
    ),
    not_tested="the gradient; blocks of more than two convolutions; dropout.",
)

EXERCISES = (INSTANCE_NORM, RESIDUAL_BLOCK)
