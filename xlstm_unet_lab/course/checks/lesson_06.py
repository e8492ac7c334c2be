"""Lesson 06: a grid through a sequence block, and what the mixer costs."""

import math

import torch

from xlstm_unet_lab.course.checks.random_cases import random_tensors
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

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


MIX = Exercise(
    number="06.1",
    title="a grid through a block",
    goal="Write `mix(grid, block, backwards)`: lay a feature map (B, C, *size) out as tokens (B, S, C), row by row, "
    "let the block read them first to last or last to first, and give back a feature map of the same shape.",
    minutes=10,
    difficulty=2,
    reference=mix,
    cases=(
        Case("one channel of 2 x 3 positions", (_counting(1, 1, 2, 3), _running_sum, False)),
        Case("two channels of 2 x 3 positions", (_counting(1, 2, 2, 3), _leaky_sum, False)),
        Case("the same backwards", (_counting(1, 2, 2, 3), _leaky_sum, True)),
        Case("two images", (*random_tensors((2, 3, 3, 4)), _leaky_sum, False)),
        Case("a volume", (*random_tensors((1, 2, 2, 3, 4), seed=1), _leaky_sum, False)),
        Case("two volumes, backwards", (*random_tensors((2, 3, 2, 3, 2), seed=2), _running_sum, True)),
    ),
    hints=(
        "`flatten(2)` joins all spatial axes, however many there are: (B, C, S). It walks the last axis fastest.",
        "Tokens come before channels in (B, S, C), so the last two axes change places, `.mT`; on the way back again.",
        "Backwards: flip axis 1 before the block and flip its answer back. At the end `.mT.reshape(grid.shape)`.",
    ),
    mistakes=(
        Mistake(
            "reshaped both ways",
            ("grid.flatten(2).mT", "walked.mT"),
            ("grid.reshape(len(grid), -1, grid.shape[1])", "walked"),
            "you reshape (B, C, ...) to (B, S, C) without moving an axis. Numbers keep their order in memory then, and "
            "a token is made of several positions of one channel. Exchange the axes first.",
        ),
        Mistake(
            "reshaped on the way back",
            "walked.mT",
            "walked",
            "the way there is right, the way back is a bare reshape: (B, S, C) has to become (B, C, S) before the "
            "spatial axes come back.",
        ),
        Mistake(
            "never backwards",
            "block(tokens.flip(1)).flip(1) if backwards else block(tokens)",
            "block(tokens)",
            "you walk forward whatever `backwards` says.",
        ),
        Mistake(
            "not turned back",
            "block(tokens.flip(1)).flip(1)",
            "block(tokens.flip(1))",
            "going backwards, the answers come out last token first. Flip them back, or every position gets the answer "
            "of the one opposite.",
        ),
        Mistake(
            "channels turned round",
            "block(tokens.flip(1)).flip(1)",
            "block(tokens.flip(2)).flip(2)",
            "you flip the channels. The tokens are axis 1 of (B, S, C).",
        ),
        Mistake(
            "every line mirrored",
            "    tokens = grid",
            "    if backwards:\n        return mix(grid.flip(-1), block, False).flip(-1)\n    tokens = grid",
            "going backwards you mirror every line and still begin with the first one. The last token of all "
            "comes first.",
        ),
        Mistake(
            "images only",
            "    tokens = grid",
            "    batch, channels, rows, columns = grid.shape\n    tokens = grid",
            "right for images; a volume has one axis more. Do not name the spatial axes: `flatten(2)` takes all "
            "there are.",
        ),
        Mistake(
            "the input added",
            "return walked",
            "return grid + walked",
            "you add the input to the result. The block has its own residual connection; with yours there are two.",
        ),
    ),
    not_tested="walks with another axis fastest; whether the result is contiguous in memory.",
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


VIL_PARAMETERS = Exercise(
    number="06.2",
    title="the weights of a ViL layer",
    goal="Write `vil_parameters(width)`: how many weights a ViL layer of version 1 has, biases and scales included.",
    minutes=12,
    difficulty=2,
    reference=vil_parameters,
    cases=tuple(Case(f"width {width}", (width,)) for width in (8, 4, 6, 30, 32, 320)),
    hints=(
        "Go down the list of parts above and write one number for each. The inner width is twice the width.",
        "A block-diagonal map of the inner width has inner / block matrices of block x block numbers: inner * block.",
        "The gates: two linear maps from q, k and v side by side, 3 * inner numbers, to one number a head, with bias. "
        "There are as many heads as a block has channels.",
    ),
    mistakes=(
        Mistake(
            "as many heads as blocks",
            "gates = 2 * block",
            "gates = 2 * (inner // block)",
            "you have as many heads as there are blocks. In the published layer it is the other way round: as many "
            "heads as a block has channels, 4 or 2.",
        ),
        Mistake(
            "dense q, k, v",
            "q_k_v = 3 * inner * block",
            "q_k_v = 3 * inner * inner",
            "q, k and v are full matrices in your count. They are block-diagonal: channels mix within blocks of 4 "
            "(or 2).",
        ),
        Mistake(
            "a convolution without bias",
            "4 * inner + inner",
            "4 * inner",
            "the causal convolution has a bias, one number a channel of the inner width.",
        ),
        Mistake(
            "no second half",
            "width * 2 * inner",
            "width * inner",
            "the first projection makes two things of the inner width, the token for the memory and the gate z: its "
            "matrix has 2 * inner rows.",
        ),
        Mistake(
            "gates from one of three",
            "(3 * inner + 1)",
            "(inner + 1)",
            "your gates read one vector of the inner width. They read q, k and v side by side: 3 * inner numbers.",
        ),
        Mistake(
            "gates without bias",
            "(3 * inner + 1)",
            "3 * inner",
            "the gates' maps have biases, one a head: they decide how long a fresh network remembers.",
        ),
        Mistake(
            "blocks of four always",
            "4 if width % 4 == 0 else 2",
            "4",
            "right where 4 divides the width; elsewhere blocks have 2 channels, and there are 2 heads.",
        ),
        Mistake(
            "vectors forgotten",
            " + norm_and_skip",
            "",
            "two vectors of the inner width are missing: the scale of the norm over each head, and the learnable skip.",
        ),
        Mistake(
            "not twice as wide",
            "inner = 2 * width",
            "inner = width",
            "your layer is as wide inside as outside. The first projection doubles the width: inner = 2 * width.",
        ),
    ),
    not_tested="version 2, with biases everywhere and a 3 x 3 convolution; the norm of the block around the layer.",
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


MIXER_COST = Exercise(
    number="06.3",
    title="where the cost grows",
    goal="Write `mixer_cost(tokens, width)`: the multiply-adds of a ViL layer whose mLSTM is computed in the parallel "
    "form, as two numbers: what grows with the number of tokens, and what grows with its square.",
    minutes=15,
    difficulty=3,
    reference=mixer_cost,
    cases=(
        Case("one token of width 4", (1, 4)),
        Case("16 tokens of width 8", (16, 8)),
        Case("15 tokens of width 6, in blocks of two", (15, 6)),
        Case("a 20 x 20 map of width 256", (400, 256)),
        Case("an 80 x 80 map of width 128", (6400, 128)),
    ),
    hints=(
        "A matrix of m x n numbers takes m * n multiply-adds a token: of the linear part you have counted nearly all "
        "in 06.2. Biases, scales and the skip are no matrix products and are not counted.",
        "The parallel form multiplies queries with keys, (S, D) by (D, S), and the weights with the values, (S, S) by "
        "(S, D): 2 * S * S * D for a head.",
        "All heads together are as wide as the layer inside, H * D = inner: the second number is 2 * S * S * inner.",
    ),
    mistakes=(
        Mistake(
            "half the matrix",
            "2 * tokens**2",
            "tokens * (tokens + 1)",
            "you count the half of the matrix that is not masked. It would be enough, but a matrix product computes "
            "all of it and the mask comes afterwards.",
        ),
        Mistake(
            "one product of two",
            "2 * tokens**2",
            "tokens**2",
            "there are two products with S * S numbers: queries with keys, and the weights with the values.",
        ),
        Mistake(
            "every head as wide as the layer",
            "tokens**2 * inner",
            "tokens**2 * inner * block",
            "every head has only its share of the width, D = inner / H. All heads together cost as much as one of the "
            "whole width.",
        ),
        Mistake(
            "dense q, k, v",
            "q_k_v = 3 * inner * block",
            "q_k_v = 3 * inner * inner",
            "q, k and v are block-diagonal: inner * block multiply-adds each for a token.",
        ),
        Mistake(
            "projections alone",
            "convolution + q_k_v + gates",
            "q_k_v",
            "the convolution (4 a channel) and the maps to the two gates are missing.",
        ),
        Mistake(
            "not twice as wide",
            "inner = 2 * width",
            "inner = width",
            "inside, the layer is twice as wide: inner = 2 * width, in both numbers.",
        ),
        Mistake(
            "the two exchanged",
            "linear, square",
            "square, linear",
            "the two numbers are exchanged: what grows with the number of tokens comes first.",
        ),
    ),
    not_tested="the chunkwise form, which has no square of the number of tokens; time, which is another matter.",
)

EXERCISES = (MIX, VIL_PARAMETERS, MIXER_COST)
