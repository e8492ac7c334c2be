"""Lesson 02: the mLSTM as one matrix; lesson_02_chunks.py holds the exercises on cutting it."""

import math

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import mlstm_inputs, random_tensors
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake
from xlstm_unet_lab.ops import mlstm

# ------------------------------------------------------------------------------------ 02.1, the decay matrix


def decay_matrix(i, f):
    summed = F.logsigmoid(f).cumsum(0)
    exponents = summed[:, None] - summed[None, :] + i[None, :]
    future = torch.ones_like(exponents, dtype=torch.bool).triu(1)
    return exponents.masked_fill(future, -torch.inf)


DECAY_MATRIX = Exercise(
    number="02.1",
    title="the decay matrix",
    goal="Write `decay_matrix(i, f)`: the logarithm of the weight of token s (column) in the answer of token t (row).",
    minutes=12,
    difficulty=2,
    reference=decay_matrix,
    cases=(
        Case("one token", random_tensors((1,), (1,))),
        Case("three tokens, all input gates 0", (torch.zeros(3).double(), torch.tensor([5.0, 1.0, -1.0]).double())),
        Case("six tokens", random_tensors((6,), (6,), seed=1)),
        Case("six tokens with large gates", tuple(300 * x for x in random_tensors((6,), (6,), seed=2))),
    ),
    hints=(
        "Let B be the running sum of a = logsigmoid(f). The sum of a over the tokens after s up to t is B_t - B_s.",
        "`B[:, None] - B[None, :]` has entry B_t - B_s in row t and column s. Add i_s, which belongs to the column.",
        "Above the diagonal s comes after t: those weights are 0, their logarithms minus infinity. "
        "`masked_fill` with a mask made by `.triu(1)` does it.",
    ),
    mistakes=(
        Mistake(
            "the token's own forget gate",
            "summed[None, :]",
            "(summed - F.logsigmoid(f))[None, :]",
            "the diagonal should be i itself: a token's own forget gate acted before it was stored. Sum a over "
            "s < j <= t, which is B_t - B_s.",
        ),
        Mistake(
            "no mask",
            "exponents.masked_fill(future, -torch.inf)",
            "exponents",
            "the future is not masked. Where s > t the weight is 0, so its logarithm is minus infinity.",
        ),
        Mistake(
            "the diagonal masked",
            "triu(1)",
            "triu(0)",
            "you masked the diagonal as well. A token hears itself: start the mask one above, `.triu(1)`.",
        ),
        Mistake(
            "rows and columns exchanged",
            "-torch.inf)",
            "-torch.inf).mT",
            "rows and columns are exchanged: row t must hold the weights of all the tokens that t hears.",
        ),
        Mistake(
            "the input gate of the hearer",
            "i[None, :]",
            "i[:, None]",
            "you add i_t, the gate of the token that answers. What counts is how strongly token s was written: i_s, "
            "which belongs to the column.",
        ),
        Mistake(
            "f itself summed",
            "F.logsigmoid(f)",
            "f",
            "you sum `f` itself. What multiplies the memory is sigmoid(f); its logarithm is `F.logsigmoid(f)`.",
        ),
    ),
    not_tested="batches and heads; sequences so long that B loses digits in float32 (the package sums in float64).",
)

# ------------------------------------------------------------------------------------------- 02.2, the parallel form


def parallel(q, k, v, exponents):
    m = exponents.max(1).values
    attention = (q @ k.T) / math.sqrt(k.shape[1]) * torch.exp(exponents - m[:, None])
    size = torch.maximum(attention.sum(1).abs(), torch.exp(-m))
    return attention @ v / size[:, None]


def _with_exponents(q, k, v, i, f) -> tuple[torch.Tensor, ...]:
    return q, k, v, mlstm.decay_matrix(i, f)


PARALLEL = Exercise(
    number="02.2",
    title="all tokens at once",
    goal="Write `parallel(q, k, v, exponents)`: the answers of all tokens from the decay matrix, without a loop.",
    minutes=20,
    difficulty=3,
    reference=parallel,
    cases=(
        Case("one token", _with_exponents(*mlstm_inputs(1, 0))),
        Case("two tokens", _with_exponents(*mlstm_inputs(2, 1))),
        Case("nine tokens", _with_exponents(*mlstm_inputs(9, 2))),
        Case(
            "nine tokens with weak input gates, where the floor acts", _with_exponents(*mlstm_inputs(9, 3, shift=-3.0))
        ),
        Case("nine tokens with gates so large that exp overflows", _with_exponents(*mlstm_inputs(9, 4, gates=900.0))),
    ),
    hints=(
        "`exponents` are the logarithms of the weights. Their largest value in row t is m_t: subtract it before exp.",
        "With W the matrix of exp(log weight - m_t) and A = (q k^T / sqrt(D)) * W, entry by entry, the numerators are "
        "A v and the q_t . n_t are the sums of A's rows.",
        "Divide row t by the larger of |sum of row t of A| and exp(-m_t).",
    ),
    mistakes=(
        Mistake(
            "no absolute value",
            ".abs()",
            "",
            "the absolute value around the row sums is missing: q . n can be negative.",
        ),
        Mistake(
            "a floor of 1",
            "torch.exp(-m)",
            "torch.ones_like(m)",
            "your floor is 1. All weights of row t were divided by exp(m_t), and the floor must be too: exp(-m_t).",
        ),
        Mistake(
            "no floor",
            "torch.maximum(attention.sum(1).abs(), torch.exp(-m))",
            "attention.sum(1).abs()",
            "the floor exp(-m_t) is missing: where the weighted products cancel, you divide by nearly nothing.",
        ),
        Mistake(
            "a softmax",
            "attention @ v / size[:, None]",
            "torch.softmax((q @ k.T) / math.sqrt(k.shape[1]) + exponents, 1) @ v",
            "that is attention with a softmax: exp acts on q . k as well. In the mLSTM only the gates are "
            "exponentiated; q . k enters as it is, and may be negative.",
        ),
        Mistake(
            "no stabiliser",
            "exponents.max(1).values",
            "torch.zeros_like(exponents[0])",
            "right for small gates; exp overflows for large ones. Subtract the largest exponent of each row.",
        ),
        Mistake(
            "no 1/sqrt(D)",
            " / math.sqrt(k.shape[1])",
            "",
            "q . k is not divided by sqrt(D), the root of the keys' length.",
        ),
        Mistake(
            "sum of absolute values",
            "sum(1).abs()",
            "abs().sum(1)",
            "you sum the absolute values of each row. The normaliser is the absolute value of the sum: |q . n|.",
        ),
    ),
    not_tested="batches and heads; lengths at which an S x S matrix does not fit into memory.",
    tolerance=1e-5,
)

EXERCISES = (DECAY_MATRIX, PARALLEL)
