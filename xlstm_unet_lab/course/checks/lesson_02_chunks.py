"""Lesson 02: two memories made one, what chunks cost, and the chunkwise form."""

import math

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import mlstm_inputs, random_tensors
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake
from xlstm_unet_lab.ops import mlstm

# ------------------------------------------------------------------------------------- 02.3, two memories made one


def join(first, m_first, second, m_second, decay):
    m = torch.maximum(decay + m_first, m_second)
    return torch.exp(decay + m_first - m) * first + torch.exp(m_second - m) * second


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


JOIN = Exercise(
    number="02.3",
    title="two memories made one",
    goal="Write `join(first, m_first, second, m_second, decay)`: the memory after two stretches of tokens, from the "
    "memories of each, stored divided by exp(m), in the same way.",
    minutes=10,
    difficulty=3,
    reference=join,
    cases=(
        Case(
            "two memories in the same units, no decay",
            (*random_tensors((2, 2)), _number(0), *random_tensors((2, 2), seed=1), _number(0), _number(0)),
        ),
        Case(
            "a decay of log(1/2)",
            (*random_tensors((2, 3)), _number(1), *random_tensors((2, 3), seed=1), _number(0.5), _number(-0.7)),
        ),
        Case(
            "the first in larger units",
            (*random_tensors((3, 3)), _number(4), *random_tensors((3, 3), seed=1), _number(-2), _number(-1)),
        ),
        Case(
            "an empty first memory",
            (torch.zeros(2, 2).double(), _number(-math.inf), *random_tensors((2, 2)), _number(3), _number(-1)),
        ),
        Case(
            "units so large that exp overflows",
            (*random_tensors((2, 2)), _number(900), *random_tensors((2, 2), seed=1), _number(898), _number(-1)),
        ),
    ),
    hints=(
        "Unscaled, the first memory is exp(m_first) * first. The second stretch multiplies it by exp(decay), then adds "
        "its own.",
        "So the sum is exp(decay + m_first) first + exp(m_second) second. Divide by exp(m) with an m that leaves both "
        "exponents at 0 or below.",
        "m = max(decay + m_first, m_second): it is the rule of one token, with stretches in place of tokens.",
    ),
    mistakes=(
        Mistake(
            "no decay",
            ("torch.maximum(decay + m_first", "torch.exp(decay + m_first"),
            ("torch.maximum(m_first", "torch.exp(m_first"),
            "the first memory has to pass through the second stretch, whose forget gates multiply it by exp(decay).",
        ),
        Mistake(
            "both decay",
            "torch.exp(m_second",
            "torch.exp(decay + m_second",
            "you let both memories decay. The second was made during that stretch: its own gates are in it already.",
        ),
        Mistake(
            "units ignored",
            "torch.exp(decay + m_first - m) * first + torch.exp(m_second - m) * second",
            "torch.exp(decay) * first + second",
            "the two memories are stored in different units, divided by exp(m_first) and exp(m_second). Bring both to "
            "one before adding.",
        ),
        Mistake(
            "not scaled",
            ("m_first - m)", "m_second - m)"),
            ("m_first)", "m_second)"),
            "this is the memory itself, which can overflow; it should be stored divided by exp(m), with "
            "m = max(decay + m_first, m_second).",
        ),
        Mistake(
            "m without the decay",
            "torch.maximum(decay + m_first",
            "torch.maximum(m_first",
            "you chose m = max(m_first, m_second). The first memory has shrunk by exp(decay); its unit is "
            "decay + m_first now.",
        ),
    ),
    not_tested="the normaliser, which is joined in the same way.",
)

# --------------------------------------------------------------------------------------- 02.4, count multiplications


def multiplications(length, width, chunk_size):
    return 2 * length * chunk_size * width + 2 * length * width**2


MULTIPLICATIONS = Exercise(
    number="02.4",
    title="count the multiplications",
    goal="Write `multiplications(length, width, chunk_size)`: how many the matrix products of the chunkwise form need.",
    minutes=10,
    difficulty=3,
    reference=multiplications,
    cases=(
        Case("8 tokens of width 4 in chunks of 2", (8, 4, 2)),
        Case(
            "64 tokens of width 16 in one chunk: the parallel form, and a memory for whoever comes next", (64, 16, 64)
        ),
        Case("6400 tokens of width 64 in chunks of 128", (6400, 64, 128)),
        Case("6400 tokens of width 64 one by one", (6400, 64, 1)),
    ),
    hints=(
        "There are four products a chunk of c tokens: Q K^T, weights times V, Q C, and K^T V for the memory. "
        "A product of (a, b) and (b, c) takes a b c multiplications.",
        "Q K^T and weights times V take c c D each; Q C and K^T V take c D D each. There are S / c chunks.",
        "(S / c) (2 c c D + 2 c D D) = 2 S c D + 2 S D D.",
    ),
    mistakes=(
        Mistake(
            "inside only",
            " + 2 * length * width**2",
            "",
            "the memory is missing: reading it (Q C) and writing it (K^T V).",
        ),
        Mistake(
            "the whole square",
            "chunk_size * width",
            "length * width",
            "you count the S x S matrix of the parallel form. A chunk's matrix is only c x c, and there are S / c.",
        ),
        Mistake(
            "one product of each kind",
            "2 * length * chunk_size * width + 2 * length",
            "length * chunk_size * width + length",
            "there are two products of each kind: Q K^T and weights times V inside; Q C and K^T V with the memory.",
        ),
        Mistake(
            "the memory once a chunk",
            "length * width**2",
            "(length // chunk_size) * width**2",
            "every token reads the memory and is written into it: c D D a chunk and product, not D D.",
        ),
        Mistake(
            "chunk size squared",
            "chunk_size * width",
            "chunk_size**2 * width",
            "a chunk's matrix has c c entries, but there are only S / c chunks: one factor c cancels.",
        ),
    ),
    not_tested="lengths that are no multiple of the chunk size; the exponentials, of which there are S c.",
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


CHUNKWISE = Exercise(
    number="02.5",
    title="the chunkwise form",
    goal="Write `chunkwise(q, k, v, i, f, chunk_size)`: matrices inside chunks, a memory carried from chunk to chunk.",
    minutes=45,
    difficulty=5,
    reference=chunkwise,
    cases=(
        Case("one chunk that holds everything", (*mlstm_inputs(5, 0), 8)),
        Case("two chunks of three tokens", (*mlstm_inputs(6, 1), 3)),
        Case("three full chunks and a last one of two tokens", (*mlstm_inputs(11, 2), 3)),
        Case("chunks of one token, which is the recurrence", (*mlstm_inputs(5, 3), 1)),
        Case("weak input gates, where the floor acts", (*mlstm_inputs(10, 4, shift=-3.0), 4)),
        Case("gates so large that exp overflows", (*mlstm_inputs(10, 5, gates=900.0), 4)),
    ),
    hints=(
        "Inside a chunk do as in 02.2. What came before the chunk is summed up in (C, n, m); token t of the chunk sees "
        "it through the chunk's forget gates up to t, so with the exponent b_t + m.",
        "The m_t of row t is the largest of its exponents inside the chunk and b_t + m. Numerator and q . n are "
        "each a sum of two parts: from inside, and exp(b_t + m - m_t) times what the memory answers.",
        "At the end of a chunk, join as in 02.3: the last row of the weights says how strongly each token of the chunk "
        "is stored, and exp(b_last + m - m_last) how much of the old memory is left.",
    ),
    mistakes=(
        Mistake(
            "the last tokens dropped",
            "range(0, len(q), chunk_size)",
            "range(0, len(q) - len(q) % chunk_size, chunk_size)",
            "the tokens after the last full chunk are missing. The last chunk may be shorter.",
        ),
        Mistake(
            "nothing carried",
            ("C = carried[-1] * C + stored.T @ v[here]", "n = carried[-1] * n + stored.sum(0)", "m = unit[-1]"),
            ("pass", "pass", "pass"),
            "every chunk begins with an empty memory: nothing is carried from one to the next.",
        ),
        Mistake(
            "the carried memory does not decay",
            ("b + m)", "b + m - unit", "        stored ="),
            ("m)", "m - unit", "        carried = carried * torch.exp(b)\n        stored ="),
            "inside a chunk you read the carried memory as it was at the chunk's beginning. By token t the chunk's "
            "own forget gates have weakened it by exp(b_t).",
        ),
        Mistake(
            "units of the inside only",
            "torch.maximum(inside.max(1).values, b + m)",
            "inside.max(1).values",
            "your m_t looks at the exponents inside the chunk alone; when the carried memory is stronger, its factor "
            "overflows. Take the larger of the two.",
        ),
        Mistake(
            "normaliser of the inside only",
            "attention.sum(1) + carried * (q[here] @ n)",
            "attention.sum(1)",
            "the carried memory is in your numerator and not in your normaliser: add its part of q . n.",
        ),
        Mistake(
            "only the last chunk remembered",
            ("C = carried[-1] * C + ", "n = carried[-1] * n + "),
            ("C = ", "n = "),
            "at the end of a chunk you replace the memory by the chunk's own; older chunks are lost. Join the two.",
        ),
    ),
    not_tested="batches and heads; gradients, which the package computes chunk by chunk as well.",
    tolerance=1e-5,
)

EXERCISES = (JOIN, MULTIPLICATIONS, CHUNKWISE)
