"""Lesson 05: what a stage of the U-Net is made of, the instance norm and the residual block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

SLOPE = 0.01  # of the leaky ReLU


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------- 05.3, instance norm by hand


def instance_norm(x, weight, bias, eps):
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    one_per_channel = (-1, *(1 for _ in axes))
    normalised = (x - mean) / torch.sqrt(variance + eps)
    return normalised * weight.reshape(one_per_channel) + bias.reshape(one_per_channel)


def _norm(x, weight, bias, eps, *, axes=None, correction=0, divide=None, affine=True):
    axes = axes(x) if axes else tuple(range(2, x.ndim))
    divide = divide or (lambda variance: torch.sqrt(variance + eps))
    variance = x.var(axes, correction=correction, keepdim=True)
    normalised = (x - x.mean(axes, keepdim=True)) / divide(variance)
    shape = (-1, *(1 for _ in x.shape[2:]))
    return normalised * weight.reshape(shape) + bias.reshape(shape) if affine else normalised


def _eps_outside(x, weight, bias, eps):
    return _norm(x, weight, bias, eps, divide=lambda variance: variance.sqrt() + eps)


def _by_the_variance(x, weight, bias, eps):
    return _norm(x, weight, bias, eps, divide=lambda variance: variance + eps)


def _without_eps(x, weight, bias, eps):
    return _norm(x, weight, bias, eps, divide=torch.sqrt)


def _in_place(x, weight, bias, eps):
    x -= x.mean(tuple(range(2, x.ndim)), keepdim=True)
    return instance_norm(x, weight, bias, eps)


_WEIGHT, _BIAS = torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([0.0, 1.0, -3.0]).double()
_CONTRASTS = torch.tensor([[1.0, 10.0, 0.1], [5.0, 2.0, 1.0]]).double()
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
        Case(
            "two images of three channels, 4 x 5, of very different contrast",
            (_random(2, 3, 4, 5) * _CONTRASTS[..., None, None] + 3, _WEIGHT, _BIAS, 1e-5),
        ),
        Case(
            "a volume, by the same code",
            (_random(2, 3, 3, 4, 5, seed=1) * _CONTRASTS[..., None, None, None], _WEIGHT, _BIAS, 1e-5),
        ),
        Case("a large eps, so that one sees where it is added", (_random(1, 3, 3, 3, seed=2), _WEIGHT, _BIAS, 0.5)),
        Case("a channel that is the same everywhere: nothing but the bias is left", (_FLAT, _WEIGHT, _BIAS, 1e-5)),
        Case("a map of a single position", (_FLAT[..., :1, :1], _WEIGHT, _BIAS, 1e-5)),
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
        Mistake(
            "over the whole batch",
            lambda *inputs: _norm(*inputs, axes=lambda x: (0, *range(2, x.ndim))),
            "you take the mean over the batch as well. That is batch norm: what comes out for an image depends on the "
            "others beside it.",
        ),
        Mistake(
            "over the channels",
            lambda *inputs: _norm(*inputs, axes=lambda x: tuple(range(1, x.ndim))),
            "you take the mean over the channels as well. That is layer norm: a strong channel drowns a weak one.",
        ),
        Mistake(
            "the last two axes",
            lambda *inputs: _norm(*inputs, axes=lambda x: (-2, -1)),
            "your images are right and your volumes are not: you name the last two axes, and a volume has three. Take "
            "all axes from 2 on.",
        ),
        Mistake(
            "divided by one fewer",
            lambda *inputs: _norm(*inputs, correction=1),
            "your variance divides by one position fewer than there are, as `x.var()` does by itself. The norm takes "
            "the plain mean of the squares: `correction=0`. For a single position yours divides 0 by 0.",
        ),
        Mistake(
            "eps outside the root",
            _eps_outside,
            "you add eps to the standard deviation. It belongs under the root, to the variance.",
        ),
        Mistake(
            "divided by the variance",
            _by_the_variance,
            "you divide by the variance. Its root is what has the unit of x.",
        ),
        Mistake(
            "without eps",
            _without_eps,
            "you leave out eps. Where a channel is the same everywhere you divide 0 by 0.",
        ),
        Mistake(
            "weight and bias left out",
            lambda *inputs: _norm(*inputs, affine=False),
            "weight and bias are missing: every channel comes out with mean 0 and variance 1.",
        ),
        Mistake(
            "writes into x",
            _in_place,
            "you subtract the mean in place (`x -= ...`). The caller still needs its x: a residual block adds it.",
        ),
    ),
    not_tested="float16, in which the squares overflow above 255; the gradient.",
)

# ------------------------------------------------------------------------------------------- 05.4, the residual block


def residual_block(x, conv1, norm1, conv2, norm2, projection):
    y = torch.nn.functional.leaky_relu(norm1(conv1(x)), 0.01)
    y = norm2(conv2(y))
    straight = x if projection is None else projection(x)
    return torch.nn.functional.leaky_relu(y + straight, 0.01)


def _block(x, conv1, norm1, conv2, norm2, projection, *, first=True, last=True, where="sum", slope=SLOPE):
    """The block with an activation left out or changed, or with the sum in another place."""
    straight = x if projection is None or where == "unprojected" else projection(x)
    first_half = norm1(conv1(x))
    if first:
        first_half = F.leaky_relu(first_half, slope)
    y = conv2(first_half)
    if where == "before the norm":
        y = norm2(y + straight)
    elif where == "after the activation":
        return F.leaky_relu(norm2(y), slope) + straight
    else:
        y = norm2(y) + {"first half": first_half, "nowhere": 0.0}.get(where, straight)
    return F.leaky_relu(y, slope) if last else y


def _block_with(**changes) -> Callable:
    return lambda *inputs: _block(*inputs, **changes)


def _convolution(come: int, go: int, kernel: int, stride: int = 1, dims: int = 2, seed: int = 0) -> Callable:
    weight = _random(go, come, *(kernel,) * dims, seed=seed) / (come * kernel**dims) ** 0.5
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    return lambda x: convolve(x, weight, stride=stride, padding=kernel // 2)


def _block_norm(seed: int) -> Callable:
    shift, scale = _random(2, seed=seed)
    return lambda x: F.instance_norm(x) * (1.5 + 0.1 * scale) + 0.3 * shift


def _block_case(come: int, go: int, size: tuple[int, ...], stride: int = 1) -> tuple:
    dims, changes = len(size), come != go or stride != 1
    first = _convolution(come, go, 3, stride, dims, seed=1)
    second = _convolution(go, go, 3, 1, dims, seed=2)
    projection = _convolution(come, go, 1, stride, dims, seed=3) if changes else None
    return _random(2, come, *size), first, _block_norm(4), second, _block_norm(5), projection


RESIDUAL_BLOCK = Exercise(
    number="05.4",
    title="the residual block",
    goal="Write `residual_block(x, conv1, norm1, conv2, norm2, projection)`: convolution, norm, activation, "
    "convolution, norm, plus the input, then the activation; `projection` is None where the input fits as it is.",
    minutes=8,
    difficulty=2,
    reference=residual_block,
    cases=(
        Case("a block that keeps 4 channels and the size", _block_case(4, 4, (6, 5))),
        Case("from 2 channels to 5: the input is projected", _block_case(2, 5, (6, 5))),
        Case("stride 2 on odd sizes", _block_case(3, 6, (7, 5), stride=2)),
        Case("the same number of channels, but half the size", _block_case(3, 3, (6, 8), stride=2)),
        Case("a volume", _block_case(2, 4, (4, 5, 3), stride=2)),
    ),
    hints=(
        "Write the main road first, line by line as the sentence says it. Keep x: you need it once more at the end.",
        "There are two activations, `F.leaky_relu(..., 0.01)`: one between the two halves, one after the sum.",
        "`F.leaky_relu(norm2(conv2(y)) + straight, 0.01)`, where `straight` is x, or `projection(x)` if there is one.",
    ),
    mistakes=(
        Mistake(
            "no activation between",
            _block_with(first=False),
            "there is no activation between the two convolutions. Two convolutions in a row are one convolution with a "
            "larger kernel; only the activation between them makes a difference.",
        ),
        Mistake(
            "no activation at the end",
            _block_with(last=False),
            "the activation after the sum is missing.",
        ),
        Mistake(
            "activation before the sum",
            _block_with(where="after the activation"),
            "you apply the second activation before the sum. Here it comes after: the sum itself is activated.",
        ),
        Mistake(
            "plain ReLU",
            _block_with(slope=0.0),
            "negative values become 0 in yours. The leaky ReLU lets a hundredth of them through, and a gradient: "
            "`F.leaky_relu(..., 0.01)`.",
        ),
        Mistake(
            "the sum before the norm",
            _block_with(where="before the norm"),
            "you add the input before the second norm, which then takes its mean and contrast away. The straight road "
            "passes no norm.",
        ),
        Mistake(
            "the first half added",
            _block_with(where="first half"),
            "you add what came out of the first half. The *input* of the block is added, projected where it must be.",
        ),
        Mistake(
            "not projected",
            _block_with(where="unprojected"),
            "you add x as it is even where the block changes its channels or its size. There `projection(x)` fits.",
        ),
        Mistake(
            "no sum",
            _block_with(where="nowhere"),
            "the input is not added. Without it the block is two convolutions in a row.",
        ),
    ),
    not_tested="the gradient; blocks of more than two convolutions; dropout.",
)

EXERCISES = (INSTANCE_NORM, RESIDUAL_BLOCK)
