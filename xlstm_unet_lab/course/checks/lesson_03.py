"""Lesson 03: the sLSTM and why its loop cannot be cut; lesson_03_blocks.py holds the exercises on parity and blocks."""

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensor
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ------------------------------------------------------------------------- 03.1, how many recurrent weights there are


def recurrent_parameters(width, heads):
    return 4 * width * width // heads


RECURRENT_PARAMETERS = exercise(
    "03.1",
    recurrent_parameters,
    cases=(
        Case("8 units in one head", (8, 1)),
        Case("8 units in 4 heads", (8, 4)),
        Case("768 units in 4 heads", (768, 4)),
        Case("as many heads as units: every unit hears itself alone", (6, 6)),
    ),
    mistakes={
        "heads ignored": (" // heads", ""),
        "one gate": ("4 * width", "width"),
        "one head": ("width * width // heads", "(width // heads) ** 2"),
        "three gates": ("4 * width", "3 * width"),
        "not square": ("width * width", "width"),
    },
)

# --------------------------------------------------------------------------------------------- 03.2, the sLSTM's step


def slstm_sequence(z, i, f, o, weights):
    c = n = h = torch.zeros(z.shape[1], dtype=z.dtype)
    m = torch.full_like(c, -torch.inf)
    outputs = []
    for t in range(len(z)):
        zhat, ihat, fhat, ohat = (gate[t] + R @ h for gate, R in zip((z, i, f, o), weights, strict=True))
        a = F.logsigmoid(fhat)
        new_m = torch.maximum(a + m, ihat)
        forget, store = torch.exp(a + m - new_m), torch.exp(ihat - new_m)
        c = forget * c + store * torch.tanh(zhat)
        n = forget * n + store
        h, m = torch.sigmoid(ohat) * c / n, new_m
        outputs.append(h)
    return torch.stack(outputs)


def _case(length: int, width: int, seed: int, gates: float = 1.0) -> tuple[torch.Tensor, ...]:
    z, i, f, o = random_tensor(4, length, width, seed=seed)
    return z, gates * i, gates * f + 1, o, random_tensor(4, width, width, seed=seed + 10)


SLSTM = exercise(
    "03.2",
    slstm_sequence,
    cases=(
        Case("one token", _case(1, 3, 0)),
        Case("three tokens", _case(3, 3, 1)),
        Case("eight tokens, five units", _case(8, 5, 2)),
        Case("eight tokens with gates so large that exp overflows", _case(8, 2, 3, gates=800.0)),
    ),
    mistakes={
        "no memory mixing": (" + R @ h", ""),
        "the memory fed back": ("R @ h", "R @ c"),
        "z not squashed": ("torch.tanh(zhat)", "zhat"),
        "no output gate": ("torch.sigmoid(ohat) * c", "c"),
        "no stabiliser": ("torch.maximum(a + m, ihat)", "torch.zeros_like(m)"),
        "weights transposed": ("R @ h", "R.T @ h"),
        "tanh in place of the normaliser": ("c / n", "torch.tanh(c)"),
    },
)

# -------------------------------------------------------------------------------- 03.3, why a linear loop can be cut


def join_steps(first, second):
    return torch.stack([second[0] * first[0], second[0] * first[1] + second[1]])


def _steps(*numbers: list[float]) -> tuple[torch.Tensor, ...]:
    return torch.tensor(numbers, dtype=torch.float64).unbind()


JOIN_STEPS = exercise(
    "03.3",
    join_steps,
    cases=(
        Case("two steps that only add", _steps([1, 2], [1, 5])),
        Case("keep half, add 1; then keep a quarter, add 2", _steps([0.5, 1], [0.25, 2])),
        Case("a step that forgets all", _steps([3, 4], [0, 7])),
        Case("random steps", tuple(random_tensor(2, 2))),
    ),
    mistakes={
        "the wrong order": ("(first, second)", "(second, first)"),
        "sums added up": ("second[0] * first[1] +", "first[1] +"),
        "factors added up": ("second[0] * first[0]", "second[0] + first[0]"),
        "everything multiplied": ("second[0] * first[1] + second[1]", "second[1] * first[1]"),
        "only the second": ("torch.stack([second[0] * first[0], second[0] * first[1] + second[1]])", "second.clone()"),
    },
)

EXERCISES = (RECURRENT_PARAMETERS, SLSTM, JOIN_STEPS)
