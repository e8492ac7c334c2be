"""Lesson 01, first part: what a gate forgets, what a weighted mean keeps, what a matrix remembers."""

import math

import numpy as np  # noqa: F401 - a mistake uses it
import torch

from xlstm_unet_lab.course.checks.random_cases import random_tensors
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# ------------------------------------------------------------------------------ 01.1, how long a forget gate remembers


def half_life(f):
    log_of_gate = -math.log1p(math.exp(-f))
    return math.log(0.5) / log_of_gate


HALF_LIFE = Exercise(
    number="01.1",
    title="the half-life of a memory",
    goal="Write `half_life(f)`: after how many tokens half of a stored number is left, for a forget gate that stays at "
    "the pre-activation `f`.",
    minutes=6,
    difficulty=2,
    reference=half_life,
    cases=(
        Case("a gate of one half, f = 0: half is left after 1 token", (0.0,)),
        Case("an open gate, f = 3", (3.0,)),
        Case("a gate that remembers for hundreds of tokens, f = 6", (6.0,)),
        Case("a gate that is nearly shut, f = -2", (-2.0,)),
        Case("a gate so open that float64 rounds it to 1, f = 40", (40.0,)),
    ),
    hints=(
        "After t tokens the share `gate ** t` is left. Set it to one half and solve for t.",
        "t = log(1/2) / log(gate), and the gate is 1 / (1 + exp(-f)). A number of tokens is positive.",
        "log(1 / (1 + exp(-f))) is -log(1 + exp(-f)), and `math.log1p(x)` computes log(1 + x) without rounding a small "
        "x away.",
    ),
    mistakes=(
        Mistake(
            "the gate rounded to 1",
            "-math.log1p(math.exp(-f))",
            "math.log(1 / (1 + math.exp(-f)))",
            "the formula is right and the arithmetic is not: for f = 40 the gate differs from 1 by 4e-18, float64 "
            "rounds it to exactly 1, and its logarithm to 0. Take the logarithm before rounding: "
            "log(gate) = -log(1 + exp(-f)), with `math.log1p`.",
        ),
        Mistake(
            "the gate rounded to 1, with NumPy",
            "-math.log1p(math.exp(-f))",
            "np.log(1 / (1 + np.exp(-f)))",
            "the formula is right, but NumPy divides by zero without stopping: for f = 40 the gate is rounded to "
            "exactly 1, and its logarithm to 0. Write the logarithm of the gate as -log(1 + exp(-f)), with `np.log1p`.",
        ),
        Mistake(
            "the time constant",
            "math.log(0.5)",
            "-1",
            "you computed when 1/e, about 37 %, is left: the time constant. The half-life has log(1/2) above the line.",
        ),
        Mistake(
            "half over one minus the gate",
            "math.log(0.5) / log_of_gate",
            "0.5 / (1 - math.exp(log_of_gate))",
            "you take away the same amount with each token, as if forgetting were a straight line. Each token takes a "
            "share of what is left: gate ** t.",
        ),
        Mistake(
            "sign of f",
            "exp(-f)",
            "exp(f)",
            "you have exp(f) where exp(-f) belongs. A large f keeps: the half-life must grow with f.",
        ),
        Mistake(
            "f taken as the gate",
            "-math.log1p(math.exp(-f))",
            "math.log(f)",
            "you use `f` itself as the gate. `f` is the pre-activation, any number; the gate is 1 / (1 + exp(-f)).",
        ),
        Mistake(
            "negative",
            "math.log(0.5)",
            "math.log(2)",
            "the size is right, the sign is not: both logarithms are negative, so their ratio is positive.",
        ),
    ),
    not_tested="arrays of gates; f below about -700, where exp(-f) overflows.",
)

# ------------------------------------------------------------------------- 01.2, exponential gate and normaliser


def weighted_memory(z, i, f):
    c = n = torch.zeros((), dtype=z.dtype)
    outputs = []
    for t in range(len(z)):
        forget, store = torch.sigmoid(f[t]), torch.exp(i[t])
        c = forget * c + store * z[t]
        n = forget * n + store
        outputs.append(c / n)
    return torch.stack(outputs)


WEIGHTED_MEMORY = Exercise(
    number="01.2",
    title="an exponential gate and its normaliser",
    goal="Write `weighted_memory(z, i, f)`: the answer c_t / n_t of a one-number memory after each token.",
    minutes=10,
    difficulty=2,
    reference=weighted_memory,
    cases=(
        Case("one token: whatever its gate, the answer is the token", random_tensors((1,), (1,), (1,))),
        Case("three tokens with gates of 0", (torch.tensor([1.0, 2.0, 4.0]).double(), *torch.zeros(2, 3).double())),
        Case("eight random tokens", random_tensors((8,), (8,), (8,), seed=1)),
        Case(
            "a token that shouts: its input gate is exp(9)",
            (torch.arange(5.0).double(), torch.tensor([0, 0, 9.0, 0, 0]).double(), torch.full((5,), 4.0).double()),
        ),
    ),
    hints=(
        "Two numbers are carried along: c, the weighted sum of tokens, and n, the sum of the weights. Both start at 0.",
        "Both obey the same rule: new = forget * old + store * (z_t for c, 1 for n), with forget = sigmoid(f_t) and "
        "store = exp(i_t). The answer is c / n after the update.",
        "`c = torch.sigmoid(f[t]) * c + torch.exp(i[t]) * z[t]`, the same for n with 1 in place of z[t], then append "
        "`c / n`; `torch.stack` makes a tensor of the list.",
    ),
    mistakes=(
        Mistake(
            "without the normaliser",
            "c / n",
            "c",
            "you return c itself. Exponential gates give it any size; divided by n, the sum of the same weights, it is "
            "a weighted mean of the tokens.",
        ),
        Mistake(
            "a sigmoid input gate",
            "torch.exp",
            "torch.sigmoid",
            "your input gate is a sigmoid, so no token can weigh more than 1: that is the LSTM's. Here it is exp(i_t).",
        ),
        Mistake(
            "an exponential forget gate",
            "torch.sigmoid",
            "torch.exp",
            "your forget gate is exp(f_t), which can exceed 1: the old memory would grow by itself. Use sigmoid(f_t).",
        ),
        Mistake(
            "the normaliser never forgets",
            "forget * n",
            "n",
            "c forgets and n does not, so the answers shrink. n is the sum of the weights as they are now: it is "
            "multiplied by the forget gate as well.",
        ),
        Mistake(
            "the newest token weakened",
            ("c + store * z[t]", "n + store"),
            ("(c + store * z[t])", "(n + store)"),
            "the forget gate of a token also weakens that token itself. It acts on what was there before: multiply "
            "first, then add the new token.",
        ),
    ),
    not_tested="input gates above about 700, where exp overflows even in float64: the next section mends that.",
)

# ------------------------------------------------------------------------------------ 01.3, write pairs and read them


def write_and_read(keys, values, queries):
    memory = keys.T @ values
    return queries @ memory


WRITE_AND_READ = Exercise(
    number="01.3",
    title="an associative memory",
    goal="Write `write_and_read(keys, values, queries)`: store all pairs in one matrix, then read it with every query.",
    minutes=8,
    difficulty=2,
    reference=write_and_read,
    cases=(
        Case("one pair, asked for with its own key", (*random_tensors((1, 4), (1, 3)), random_tensors((1, 4))[0])),
        Case("three pairs with perpendicular keys", (torch.eye(4).double()[:3], *random_tensors((3, 2), (2, 4)))),
        Case("five pairs, as wide as they are deep", random_tensors((5, 4), (5, 4), (5, 4))),
        Case("many pairs and one query", random_tensors((20, 6), (20, 5), (1, 6))),
    ),
    hints=(
        "One pair is written as the outer product of key and value: a matrix (D, V). Several pairs are added up.",
        "The sum of outer products of the rows of two matrices is one matrix product. Which of the two is transposed?",
        "`memory = keys.T @ values` has shape (D, V). Reading is `queries @ memory`.",
    ),
    mistakes=(
        Mistake(
            "only the last pair",
            "keys.T @ values",
            "keys[-1:].T @ values[-1:]",
            "only the last pair is in your memory. Writing adds to the matrix; it must not replace what is there.",
        ),
        Mistake(
            "memory transposed",
            "keys.T @ values",
            "values.T @ keys",
            "your memory is values times keys; reading it with a query then compares the query with values. Keys "
            "belong to the rows: shape (D, V).",
        ),
        Mistake(
            "softmax attention",
            "queries @ memory",
            "torch.softmax(queries @ keys.T, 1) @ values",
            "that is attention: it keeps all keys and compares the query with each. Here the pairs must be merged "
            "into one matrix first, of a size that does not grow with their number.",
        ),
        Mistake(
            "mean of the pairs",
            "keys.T @ values",
            "keys.T @ values / len(keys)",
            "you divide by the number of pairs. The plain memory is a sum; how to scale what is read comes later, with "
            "the normaliser.",
        ),
        Mistake(
            "read with the keys",
            "queries @ memory",
            "keys @ memory",
            "you read with `keys`; `queries` is not used. A query may differ from every key.",
        ),
        Mistake(
            "not read",
            "queries @ memory",
            "memory",
            "this is the memory itself, rightly written. Now read it: multiply each query with it.",
        ),
    ),
    not_tested="gates, which weaken old pairs; keys that are very long, or nearly the same.",
)

EXERCISES = (HALF_LIFE, WEIGHTED_MEMORY, WRITE_AND_READ)
