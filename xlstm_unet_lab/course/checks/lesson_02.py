"""Lesson 02: the mLSTM as one matrix, two memories made one, what chunks cost, and the chunkwise form."""

import math

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import mlstm_inputs, random_tensors
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case
from xlstm_unet_lab.ops import mlstm

# ------------------------------------------------------------------------------------ 02.1, the decay matrix


def decay_matrix(i, f):
    summed = F.logsigmoid(f).cumsum(0)
    exponents = summed[:, None] - summed[None, :] + i[None, :]
    future = torch.ones_like(exponents, dtype=torch.bool).triu(1)
    return exponents.masked_fill(future, -torch.inf)


DECAY_MATRIX = exercise(
    "02.1",
    decay_matrix,
    cases=(
        Case("one token", random_tensors((1,), (1,))),
        Case("three tokens, all input gates 0", (torch.zeros(3).double(), torch.tensor([5.0, 1.0, -1.0]).double())),
        Case("six tokens", random_tensors((6,), (6,), seed=1)),
        Case("six tokens with large gates", tuple(300 * x for x in random_tensors((6,), (6,), seed=2))),
    ),
    mistakes={
        "the token's own forget gate": ("summed[None, :]", "(summed - F.logsigmoid(f))[None, :]"),
        "no mask": ("exponents.masked_fill(future, -torch.inf)", "exponents"),
        "the diagonal masked": ("triu(1)", "triu(0)"),
        "rows and columns exchanged": ("-torch.inf)", "-torch.inf).mT"),
        "the input gate of the hearer": ("i[None, :]", "i[:, None]"),
        "f itself summed": ("F.logsigmoid(f)", "f"),
    },
)

# ------------------------------------------------------------------------------------------- 02.2, the parallel form


def parallel(q, k, v, exponents):
    m = exponents.max(1).values
    attention = (q @ k.T) / math.sqrt(k.shape[1]) * torch.exp(exponents - m[:, None])
    size = torch.maximum(attention.sum(1).abs(), torch.exp(-m))
    return attention @ v / size[:, None]


def _parallel_case(length: int, seed: int, **gates: float) -> tuple[torch.Tensor, ...]:
    q, k, v, i, f = mlstm_inputs(length, seed, **gates)
    return q, k, v, mlstm.decay_matrix(i, f)


PARALLEL = exercise(
    "02.2",
    parallel,
    cases=(
        Case("one token", _parallel_case(1, 0)),
        Case("two tokens", _parallel_case(2, 1)),
        Case("nine tokens", _parallel_case(9, 2)),
        Case("nine tokens with weak input gates, where the floor acts", _parallel_case(9, 3, shift=-3.0)),
        Case("nine tokens with gates so large that exp overflows", _parallel_case(9, 4, gates=900.0)),
    ),
    mistakes={
        "no absolute value": (".abs()", ""),
        "a floor of 1": ("torch.exp(-m)", "torch.ones_like(m)"),
        "no floor": ("torch.maximum(attention.sum(1).abs(), torch.exp(-m))", "attention.sum(1).abs()"),
        "a softmax": (
            "attention @ v / size[:, None]",
            "torch.softmax((q @ k.T) / math.sqrt(k.shape[1]) + exponents, 1) @ v",
        ),
        "no stabiliser": ("exponents.max(1).values", "torch.zeros_like(exponents[0])"),
        "no 1/sqrt(D)": (" / math.sqrt(k.shape[1])", ""),
        "sum of absolute values": ("sum(1).abs()", "abs().sum(1)"),
    },
    tolerance=1e-5,
)

# ------------------------------------------------------------------------------------- 02.3, two memories made one


def join(first, m_first, second, m_second, decay):
    m = torch.maximum(decay + m_first, m_second)
    return torch.exp(decay + m_first - m) * first + torch.exp(m_second - m) * second


def _memories(shape: tuple[int, int], m_first: float, m_second: float, decay: float) -> tuple[torch.Tensor, ...]:
    first, second = random_tensors(shape, shape)
    if m_first == -math.inf:  # nothing is stored yet
        first.zero_()
    m_first, m_second, decay = torch.tensor([m_first, m_second, decay], dtype=torch.float64)
    return first, m_first, second, m_second, decay


JOIN = exercise(
    "02.3",
    join,
    cases=(
        Case("two memories in the same units, no decay", _memories((2, 2), 0, 0, 0)),
        Case("a decay of log(1/2)", _memories((2, 3), 1, 0.5, math.log(0.5))),
        Case("the first in larger units", _memories((3, 3), 4, -2, -1)),
        Case("an empty first memory", _memories((2, 2), -math.inf, 3, -1)),
        Case("units so large that exp overflows", _memories((2, 2), 900, 898, -1)),
    ),
    mistakes={
        "no decay": (
            ("torch.maximum(decay + m_first", "torch.maximum(m_first"),
            ("torch.exp(decay + m_first", "torch.exp(m_first"),
        ),
        "both decay": ("torch.exp(m_second", "torch.exp(decay + m_second"),
        "units ignored": (
            "torch.exp(decay + m_first - m) * first + torch.exp(m_second - m) * second",
            "torch.exp(decay) * first + second",
        ),
        "not scaled": (("m_first - m)", "m_first)"), ("m_second - m)", "m_second)")),
        "m without the decay": ("torch.maximum(decay + m_first", "torch.maximum(m_first"),
    },
)

# --------------------------------------------------------------------------------------- 02.4, count multiplications


def multiplications(length, width, chunk_size):
    return 2 * length * chunk_size * width + 2 * length * width**2


MULTIPLICATIONS = exercise(
    "02.4",
    multiplications,
    cases=(
        Case("8 tokens of width 4 in chunks of 2", (8, 4, 2)),
        Case(
            "64 tokens of width 16 in one chunk: the parallel form, and a memory for whoever comes next", (64, 16, 64)
        ),
        Case("6400 tokens of width 64 in chunks of 128", (6400, 64, 128)),
        Case("6400 tokens of width 64 one by one", (6400, 64, 1)),
    ),
    mistakes={
        "inside only": (" + 2 * length * width**2", ""),
        "the whole square": ("chunk_size * width", "length * width"),
        "one product of each kind": (
            "2 * length * chunk_size * width + 2 * length",
            "length * chunk_size * width + length",
        ),
        "the memory once a chunk": ("length * width**2", "(length // chunk_size) * width**2"),
        "chunk size squared": ("chunk_size * width", "chunk_size**2 * width"),
    },
)

# ------------------------------------------------------------------------------------------ 02.5, the chunkwise form


def chunkwise(q, k, v, i, f, chunk_size):
    k = k / math.sqrt(k.shape[1])
    C, n = q.new_zeros(k.shape[1], v.shape[1]), q.new_zeros(k.shape[1])
    m = q.new_tensor(-torch.inf)
    outputs = []
    for start in range(0, len(q), chunk_size):
        here = slice(start, start + chunk_size)
        b = F.logsigmoid(f[here]).cumsum(0)
        inside = mlstm.decay_matrix(i[here], f[here])
        unit = torch.maximum(inside.max(1).values, b + m)  # the m_t of the chunk's tokens
        attention = (q[here] @ k[here].T) * torch.exp(inside - unit[:, None])
        carried = torch.exp(b + m - unit)
        overlap = attention.sum(1) + carried * (q[here] @ n)
        numerator = attention @ v[here] + carried[:, None] * (q[here] @ C)
        outputs.append(numerator / torch.maximum(overlap.abs(), torch.exp(-unit))[:, None])
        stored = torch.exp(inside[-1] - unit[-1])[:, None] * k[here]
        C = carried[-1] * C + stored.T @ v[here]
        n = carried[-1] * n + stored.sum(0)
        m = unit[-1]
    return torch.cat(outputs)


CHUNKWISE = exercise(
    "02.5",
    chunkwise,
    cases=(
        Case("one chunk that holds everything", (*mlstm_inputs(5, 0), 8)),
        Case("two chunks of three tokens", (*mlstm_inputs(6, 1), 3)),
        Case("three full chunks and a last one of two tokens", (*mlstm_inputs(11, 2), 3)),
        Case("chunks of one token, which is the recurrence", (*mlstm_inputs(5, 3), 1)),
        Case("weak input gates, where the floor acts", (*mlstm_inputs(10, 4, shift=-3.0), 4)),
        Case("gates so large that exp overflows", (*mlstm_inputs(10, 5, gates=900.0), 4)),
    ),
    mistakes={
        "the last tokens dropped": (
            "range(0, len(q), chunk_size)",
            "range(0, len(q) - len(q) % chunk_size, chunk_size)",
        ),
        "nothing carried": ("m = unit[-1]", "C, n, m = 0 * C, 0 * n, q.new_tensor(-torch.inf)"),
        "the carried memory does not decay": (
            ("b + m)", "m)"),
            ("b + m - unit", "m - unit"),
            ("        stored =", "        carried = carried * torch.exp(b)\n        stored ="),
        ),
        "units of the inside only": ("torch.maximum(inside.max(1).values, b + m)", "inside.max(1).values"),
        "normaliser of the inside only": ("attention.sum(1) + carried * (q[here] @ n)", "attention.sum(1)"),
        "only the last chunk remembered": (("C = carried[-1] * C + ", "C = "), ("n = carried[-1] * n + ", "n = ")),
    },
    tolerance=1e-5,
)

EXERCISES = (DECAY_MATRIX, PARALLEL, JOIN, MULTIPLICATIONS, CHUNKWISE)
