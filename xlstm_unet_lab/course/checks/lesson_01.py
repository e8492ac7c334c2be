"""Lesson 01: from a gate that forgets to the mLSTM, what is left of every token, and the gradient on its way back."""

import math

import numpy as np  # noqa: F401 - a mistake uses it
import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import mlstm_inputs, random_tensors
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ------------------------------------------------------------------------------ 01.1, how long a forget gate remembers


def half_life(f):
    log_of_gate = -math.log1p(math.exp(-f))
    return math.log(0.5) / log_of_gate


HALF_LIFE = exercise(
    "01.1",
    half_life,
    cases=(
        Case("a gate of one half, f = 0: half is left after 1 token", (0.0,)),
        Case("an open gate, f = 3", (3.0,)),
        Case("a gate that remembers for hundreds of tokens, f = 6", (6.0,)),
        Case("a gate that is nearly shut, f = -2", (-2.0,)),
        Case("a gate so open that float64 rounds it to 1, f = 40", (40.0,)),
    ),
    mistakes={
        "the gate rounded to 1": ("-math.log1p(math.exp(-f))", "math.log(1 / (1 + math.exp(-f)))"),
        "the gate rounded to 1, with NumPy": ("-math.log1p(math.exp(-f))", "np.log(1 / (1 + np.exp(-f)))"),
        "the time constant": ("math.log(0.5)", "-1"),
        "half over one minus the gate": ("math.log(0.5) / log_of_gate", "0.5 / (1 - math.exp(log_of_gate))"),
        "sign of f": ("exp(-f)", "exp(f)"),
        "f taken as the gate": ("-math.log1p(math.exp(-f))", "math.log(f)"),
        "negative": ("math.log(0.5)", "math.log(2)"),
    },
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


WEIGHTED_MEMORY = exercise(
    "01.2",
    weighted_memory,
    cases=(
        Case("one token: whatever its gate, the answer is the token", random_tensors((1,), (1,), (1,))),
        Case("three tokens with gates of 0", (torch.tensor([1.0, 2.0, 4.0]).double(), *torch.zeros(2, 3).double())),
        Case("eight random tokens", random_tensors((8,), (8,), (8,), seed=1)),
        Case(
            "a token that shouts: its input gate is exp(9)",
            (torch.arange(5.0).double(), torch.tensor([0, 0, 9.0, 0, 0]).double(), torch.full((5,), 4.0).double()),
        ),
    ),
    mistakes={
        "without the normaliser": ("c / n", "c"),
        "a sigmoid input gate": ("torch.exp", "torch.sigmoid"),
        "an exponential forget gate": ("torch.sigmoid", "torch.exp"),
        "the normaliser never forgets": ("forget * n", "n"),
        "the newest token weakened": (("c + store * z[t]", "(c + store * z[t])"), ("n + store", "(n + store)")),
    },
)

# ------------------------------------------------------------------------------------ 01.3, write pairs and read them


def write_and_read(keys, values, queries):
    memory = keys.T @ values
    return queries @ memory


WRITE_AND_READ = exercise(
    "01.3",
    write_and_read,
    cases=(
        Case("one pair, asked for with its own key", (*random_tensors((1, 4), (1, 3)), random_tensors((1, 4))[0])),
        Case("three pairs with perpendicular keys", (torch.eye(4).double()[:3], *random_tensors((3, 2), (2, 4)))),
        Case("five pairs, as wide as they are deep", random_tensors((5, 4), (5, 4), (5, 4))),
        Case("many pairs and one query", random_tensors((20, 6), (20, 5), (1, 6))),
    ),
    mistakes={
        "only the last pair": ("keys.T @ values", "keys[-1:].T @ values[-1:]"),
        "memory transposed": ("keys.T @ values", "values.T @ keys"),
        "softmax attention": ("queries @ memory", "torch.softmax(queries @ keys.T, 1) @ values"),
        "mean of the pairs": ("keys.T @ values", "keys.T @ values / len(keys)"),
        "read with the keys": ("queries @ memory", "keys @ memory"),
        "not read": ("queries @ memory", "memory"),
    },
)

# ------------------------------------------------------------------------------------------- 01.4, the mLSTM


def mlstm(q, k, v, i, f):
    C = torch.zeros(k.shape[1], v.shape[1], dtype=q.dtype)
    n = torch.zeros(k.shape[1], dtype=q.dtype)
    m = torch.tensor(-torch.inf, dtype=q.dtype)
    outputs = []
    for t in range(len(q)):
        a = F.logsigmoid(f[t])
        new_m = torch.maximum(a + m, i[t])
        forget, store = torch.exp(a + m - new_m), torch.exp(i[t] - new_m)
        key = k[t] / math.sqrt(k.shape[1])
        C = forget * C + store * torch.outer(key, v[t])
        n = forget * n + store * key
        m = new_m
        outputs.append((q[t] @ C) / torch.maximum((q[t] @ n).abs(), torch.exp(-m)))
    return torch.stack(outputs)


_ANSWER = "        outputs.append((q[t] @ C) / torch.maximum((q[t] @ n).abs(), torch.exp(-m)))\n"

MLSTM = exercise(
    "01.4",
    mlstm,
    cases=(
        Case("one token", mlstm_inputs(1, 0)),
        Case("two tokens", mlstm_inputs(2, 1)),
        Case("nine tokens", mlstm_inputs(9, 2)),
        Case("nine tokens with weak input gates, where the floor exp(-m) acts", mlstm_inputs(9, 3, shift=-3.0)),
        Case("nine tokens with gates so large that exp overflows", mlstm_inputs(9, 4, gates=900.0)),
    ),
    mistakes={
        "no absolute value": ("(q[t] @ n).abs()", "q[t] @ n"),
        "no floor": ("torch.maximum((q[t] @ n).abs(), torch.exp(-m))", "(q[t] @ n).abs()"),
        "a floor of 1": ("torch.exp(-m)", "torch.ones_like(m)"),
        "no stabiliser": (("-torch.inf", "0.0"), ("torch.maximum(a + m, i[t])", "m")),
        "no 1/sqrt(D)": ("k[t] / math.sqrt(k.shape[1])", "k[t]"),
        "answers before it stores": ((_ANSWER, ""), ("        a =", _ANSWER + "        a =")),
        "m does not decay": ("torch.maximum(a + m, i[t])", "torch.maximum(m, i[t])"),
        "the plain forget gate": ("torch.exp(a + m - new_m)", "torch.exp(a)"),
    },
    tolerance=1e-5,
)

# ------------------------------------------------------------------------------- 01.5, what is left of every token


def influence(i, f):
    a = F.logsigmoid(f)
    after = a.flip(0).cumsum(0).flip(0) - a  # the sum over the tokens that come later
    exponent = after + i
    return torch.exp(exponent - exponent.max())


INFLUENCE = exercise(
    "01.5",
    influence,
    cases=(
        Case("one token", random_tensors((1,), (1,))),
        Case("four tokens with equal gates", (torch.zeros(4).double(), torch.full((4,), 1.0).double())),
        Case("ten tokens", random_tensors((10,), (10,), seed=5)),
        Case("ten tokens whose gates are so large that exp overflows", tuple(500 * random_tensors((2, 10), seed=6)[0])),
    ),
    mistakes={
        "its own forget gate": (".flip(0) - a", ".flip(0)"),
        "summed from the front": ("a.flip(0).cumsum(0).flip(0) - a", "a.cumsum(0)"),
        "not scaled": ("exponent - exponent.max()", "exponent"),
        "adding up to 1": ("torch.exp(exponent - exponent.max())", "torch.softmax(exponent, 0)"),
        "no input gate": ("after + i", "after"),
        "products of gates": (
            ("after + i", "torch.exp(after) * torch.exp(i)"),
            ("torch.exp(exponent - exponent.max())", "exponent / exponent.max()"),
        ),
    },
)

# ----------------------------------------------------------------------- 01.6, the gradient on its way back


def value_gradients(q, k, i, f, y_gradient):
    C_gradient = torch.zeros(k.shape[1], y_gradient.shape[1], dtype=q.dtype)
    gradients = []
    for t in reversed(range(len(q))):
        C_gradient = C_gradient + torch.outer(q[t], y_gradient[t])
        gradients.append(torch.exp(i[t]) / math.sqrt(k.shape[1]) * (k[t] @ C_gradient))
        C_gradient = torch.sigmoid(f[t]) * C_gradient
    return torch.stack(gradients[::-1])


def _gradient_case(length: int, seed: int, last_only: bool = False) -> tuple[torch.Tensor, ...]:
    q, k, i, f, y_gradient = random_tensors((length, 4), (length, 4), (length,), (length,), (length, 3), seed=seed)
    if last_only:
        y_gradient[:-1] = 0
    return q, k, i, f, y_gradient


VALUE_GRADIENTS = exercise(
    "01.6",
    value_gradients,
    cases=(
        Case("one token", _gradient_case(1, 0)),
        Case("two tokens", _gradient_case(2, 1)),
        Case("seven tokens", _gradient_case(7, 2)),
        Case("six tokens of which only the last is read", _gradient_case(6, 3, last_only=True)),
    ),
    mistakes={
        "not turned round": ("[::-1]", ""),
        "from the first token to the last": (("reversed(range(len(q)))", "range(len(q))"), ("[::-1]", "")),
        "the gate one token late": (
            ("C_gradient + torch", "torch.sigmoid(f[t]) * C_gradient + torch"),
            ("        C_gradient = torch.sigmoid(f[t]) * C_gradient\n", ""),
        ),
        "no forget gate": ("torch.sigmoid(f[t]) * C_gradient", "C_gradient"),
        "no input gate": ("torch.exp(i[t])", "1"),
        "only its own token": ("C_gradient + torch", "torch"),
        "query and key exchanged": ("(q, k, i", "(k, q, i"),
        "no 1/sqrt(D)": (" / math.sqrt(k.shape[1])", ""),
    },
)

EXERCISES = (HALF_LIFE, WEIGHTED_MEMORY, WRITE_AND_READ, MLSTM, INFLUENCE, VALUE_GRADIENTS)
