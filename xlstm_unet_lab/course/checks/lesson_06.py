"""Lesson 06: a grid through a sequence block, and what the mixer costs."""

import math

import torch

from xlstm_unet_lab.course.checks.random_cases import random_tensors
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ----------------------------------------------------------------------------------- 06.1, a grid through a block


def mix(grid, block, backwards):
    tokens = grid.flatten(2).mT
    walked = block(tokens.flip(1)).flip(1) if backwards else block(tokens)
    return walked.mT.reshape(grid.shape)


def _running_sum(tokens):
    """Along the walk; every channel by itself."""
    return tokens.cumsum(1)


def _leaky_sum(tokens):
    """Every channel forgets at its own pace."""
    state, outputs = torch.zeros_like(tokens[:, 0]), []
    kept = torch.linspace(0.5, 0.9, tokens.shape[2], dtype=tokens.dtype)
    for token in tokens.unbind(1):
        state = kept * state + token
        outputs.append(state)
    return torch.stack(outputs, 1)


def _counting(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64).view(shape)


MIX = exercise(
    "06.1",
    mix,
    cases=(
        Case("one channel of 2 x 3 positions", (_counting(1, 1, 2, 3), _running_sum, False)),
        Case("two channels of 2 x 3 positions", (_counting(1, 2, 2, 3), _leaky_sum, False)),
        Case("the same backwards", (_counting(1, 2, 2, 3), _leaky_sum, True)),
        Case("two images", (*random_tensors((2, 3, 3, 4)), _leaky_sum, False)),
        Case("a volume", (*random_tensors((1, 2, 2, 3, 4), seed=1), _leaky_sum, False)),
        Case("two volumes, backwards", (*random_tensors((2, 3, 2, 3, 2), seed=2), _running_sum, True)),
    ),
    mistakes={
        "reshaped both ways": (
            ("grid.flatten(2).mT", "grid.reshape(len(grid), -1, grid.shape[1])"),
            ("walked.mT", "walked"),
        ),
        "reshaped on the way back": ("walked.mT", "walked"),
        "never backwards": ("block(tokens.flip(1)).flip(1) if backwards else block(tokens)", "block(tokens)"),
        "not turned back": ("block(tokens.flip(1)).flip(1)", "block(tokens.flip(1))"),
        "channels turned round": ("block(tokens.flip(1)).flip(1)", "block(tokens.flip(2)).flip(2)"),
        "every line mirrored": (
            "    tokens = grid",
            "    if backwards:\n        return mix(grid.flip(-1), block, False).flip(-1)\n    tokens = grid",
        ),
        "images only": ("    tokens = grid", "    batch, channels, rows, columns = grid.shape\n    tokens = grid"),
        "the input added": ("return walked", "return grid + walked"),
    },
)

# --------------------------------------------------------------------------------- 06.2, the weights of a ViL layer


def vil_parameters(width):
    inner = 2 * width
    block = 4 if width % 4 == 0 else 2
    up, down = width * 2 * inner, inner * width
    convolution = 4 * inner + inner
    q_k_v = 3 * inner * block
    gates = 2 * block * (3 * inner + 1)
    norm_and_skip = 2 * inner
    return up + convolution + q_k_v + gates + norm_and_skip + down


VIL_PARAMETERS = exercise(
    "06.2",
    vil_parameters,
    cases=tuple(Case(f"width {width}", (width,)) for width in (8, 4, 6, 30, 32, 320)),
    mistakes={
        "as many heads as blocks": ("gates = 2 * block", "gates = 2 * (inner // block)"),
        "dense q, k, v": ("q_k_v = 3 * inner * block", "q_k_v = 3 * inner * inner"),
        "a convolution without bias": ("4 * inner + inner", "4 * inner"),
        "no second half": ("width * 2 * inner", "width * inner"),
        "gates from one of three": ("(3 * inner + 1)", "(inner + 1)"),
        "gates without bias": ("(3 * inner + 1)", "3 * inner"),
        "blocks of four always": ("4 if width % 4 == 0 else 2", "4"),
        "vectors forgotten": (" + norm_and_skip", ""),
        "not twice as wide": ("inner = 2 * width", "inner = width"),
    },
)

# ------------------------------------------------------------------ 06.3, multiply-adds against the number of tokens


def mixer_cost(tokens, width):
    inner = 2 * width
    block = 4 if width % 4 == 0 else 2
    projections = width * 2 * inner + inner * width
    convolution = 4 * inner
    q_k_v = 3 * inner * block
    gates = 2 * 3 * inner * block
    linear = tokens * (projections + convolution + q_k_v + gates)
    square = 2 * tokens**2 * inner
    return linear, square


MIXER_COST = exercise(
    "06.3",
    mixer_cost,
    cases=(
        Case("one token of width 4", (1, 4)),
        Case("16 tokens of width 8", (16, 8)),
        Case("15 tokens of width 6, in blocks of two", (15, 6)),
        Case("a 20 x 20 map of width 256", (400, 256)),
        Case("an 80 x 80 map of width 128", (6400, 128)),
    ),
    mistakes={
        "half the matrix": ("2 * tokens**2", "tokens * (tokens + 1)"),
        "one product of two": ("2 * tokens**2", "tokens**2"),
        "every head as wide as the layer": ("tokens**2 * inner", "tokens**2 * inner * block"),
        "dense q, k, v": ("q_k_v = 3 * inner * block", "q_k_v = 3 * inner * inner"),
        "projections alone": ("convolution + q_k_v + gates", "q_k_v"),
        "not twice as wide": ("inner = 2 * width", "inner = width"),
        "the two exchanged": ("linear, square", "square, linear"),
    },
)

EXERCISES = (MIX, VIL_PARAMETERS, MIXER_COST)
