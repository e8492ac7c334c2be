"""Lesson 01, second part: the mLSTM token by token, what is left of every token, and the gradient on its way back."""

import math

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.lesson_01 import random_tensors
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

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


def _mlstm(
    q, k, v, i, f, *, scale=True, size=torch.abs, floor=None, stabilise=True, early=False, decay=True, plain=False
):
    """The mLSTM with parts left out, for the planted mistakes."""
    C, n = torch.zeros(k.shape[1], v.shape[1], dtype=q.dtype), torch.zeros(k.shape[1], dtype=q.dtype)
    m, outputs = torch.tensor(-torch.inf if stabilise else 0.0, dtype=q.dtype), []
    for t in range(len(q)):
        a = F.logsigmoid(f[t])
        new_m = torch.maximum(a + m if decay else m, i[t]) if stabilise else m
        forget, store = torch.exp(a if plain else a + m - new_m), torch.exp(i[t] - new_m)
        key = k[t] / math.sqrt(k.shape[1]) if scale else k[t]
        before = C
        C, n, m = forget * C + store * torch.outer(key, v[t]), forget * n + store * key, new_m
        least = torch.exp(-m) if floor is None else torch.full_like(m, floor)
        outputs.append((q[t] @ (before if early else C)) / torch.maximum(size(q[t] @ n), least))
    return torch.stack(outputs)


def _token_case(length: int, seed: int, gates: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, ...]:
    q, k, v, i, f = random_tensors((length, 4), (length, 4), (length, 3), (length,), (length,), seed=seed)
    return q, k, v, gates * i + shift, gates * f + 2


MLSTM = Exercise(
    number="01.4",
    title="the mLSTM, token by token",
    goal="Write `mlstm(q, k, v, i, f)`: the stabilised recurrence over all tokens of one head.",
    minutes=25,
    difficulty=4,
    reference=mlstm,
    cases=(
        Case("one token", _token_case(1, 0)),
        Case("two tokens", _token_case(2, 1)),
        Case("nine tokens", _token_case(9, 2)),
        Case("nine tokens with weak input gates, where the floor exp(-m) acts", _token_case(9, 3, shift=-3.0)),
        Case("nine tokens with gates so large that exp overflows", _token_case(9, 4, gates=900.0)),
    ),
    hints=(
        "Write the update without the stabiliser first (m = 0 throughout) and see which cases pass. Then put in m.",
        "With m: forget = exp(a + m_old - m_new), store = exp(i - m_new), m_new = max(a + m_old, i), "
        "a = logsigmoid(f). The first m_old is minus infinity: nothing is stored yet, and exp(-inf) is 0.",
        "C and n follow the same rule, C with the outer product of key / sqrt(D) and value, n with key / sqrt(D). "
        "The answer is q @ C divided by the larger of |q . n| and exp(-m).",
    ),
    mistakes=(
        Mistake(
            "no absolute value",
            lambda *inputs: _mlstm(*inputs, size=lambda x: x),
            "the absolute value around q . n is missing. It can be negative; the larger of it and exp(-m) is then "
            "always the floor, and the answer has the wrong size.",
        ),
        Mistake(
            "no floor",
            lambda *inputs: _mlstm(*inputs, floor=0.0),
            "you divide by |q . n| alone. Where query and keys are nearly perpendicular it comes close to 0 and the "
            "answer explodes; the floor is exp(-m).",
        ),
        Mistake(
            "a floor of 1",
            lambda *inputs: _mlstm(*inputs, floor=1.0),
            "your floor is 1. It is 1 for the memory as defined; C and n are stored divided by exp(m), and so must the "
            "floor be: exp(-m).",
        ),
        Mistake(
            "no stabiliser",
            lambda *inputs: _mlstm(*inputs, stabilise=False),
            "the formula is right, but exp(i) overflows for large gates and infinity over infinity is NaN. Carry the "
            "scale m along as a logarithm.",
        ),
        Mistake(
            "no 1/sqrt(D)",
            lambda *inputs: _mlstm(*inputs, scale=False),
            "the key is not divided by sqrt(D), the root of its length. Without it, q . k grows with the width.",
        ),
        Mistake(
            "answers before it stores",
            lambda *inputs: _mlstm(*inputs, early=True),
            "you read the memory before the token is written. Update C and n first: a token can recall itself.",
        ),
        Mistake(
            "m does not decay",
            lambda *inputs: _mlstm(*inputs, decay=False),
            "the new m is the larger of the old m and i; the old memory has decayed meanwhile, so its scale has too: "
            "the larger of a + m and i, with a = logsigmoid(f). Up to rounding the answer would be the same, as the "
            "floor moves along; but m never comes down again, and weak later tokens are rounded away.",
        ),
        Mistake(
            "the plain forget gate",
            lambda *inputs: _mlstm(*inputs, plain=True),
            "you multiply the stored C and n by sigmoid(f). They are stored divided by exp(m_old), and must now be "
            "divided by exp(m_new): the factor is exp(a + m_old - m_new).",
        ),
    ),
    not_tested="several heads and batches; a memory that is not empty at first; gradients; float32 and bfloat16.",
    tolerance=1e-5,
)

# ------------------------------------------------------------------------------- 01.5, what is left of every token


def influence(i, f):
    a = F.logsigmoid(f)
    after = a.flip(0).cumsum(0).flip(0) - a  # the sum over the tokens that come later
    exponent = after + i
    return torch.exp(exponent - exponent.max())


def _with_its_own_forget_gate(i, f):
    exponent = F.logsigmoid(f).flip(0).cumsum(0).flip(0) + i
    return torch.exp(exponent - exponent.max())


def _from_the_front(i, f):
    exponent = F.logsigmoid(f).cumsum(0) + i
    return torch.exp(exponent - exponent.max())


def _not_scaled(i, f):
    a = F.logsigmoid(f)
    return torch.exp(a.flip(0).cumsum(0).flip(0) - a + i)


def _adds_up_to_1(i, f):
    weights = influence(i, f)
    return weights / weights.sum()


def _without_the_input_gate(i, f):
    return influence(torch.zeros_like(i), f)


def _product_of_gates(i, f):
    gates = torch.sigmoid(f)
    after = torch.stack([gates[s + 1 :].prod() for s in range(len(f))])
    weights = after * torch.exp(i)
    return weights / weights.max()


INFLUENCE = Exercise(
    number="01.5",
    title="what is left of every token",
    goal="Write `influence(i, f)`: with what weight each token is in the memory after the last one, the largest weight "
    "being 1.",
    minutes=15,
    difficulty=4,
    reference=influence,
    cases=(
        Case("one token", random_tensors((1,), (1,))),
        Case("four tokens with equal gates", (torch.zeros(4).double(), torch.full((4,), 1.0).double())),
        Case("ten tokens", random_tensors((10,), (10,), seed=5)),
        Case("ten tokens whose gates are so large that exp overflows", tuple(500 * random_tensors((2, 10), seed=6)[0])),
    ),
    hints=(
        "Token s was written with exp(i_s). Every token after it, and only those, multiplied the memory by its own "
        "forget gate.",
        "In logarithms: i_s plus the sum of logsigmoid(f_j) over j > s. Subtract the largest of these before taking "
        "exp: then nothing can overflow, and the largest weight is 1.",
        "A sum over everything later: flip, `cumsum`, flip back, and subtract the token's own term.",
    ),
    mistakes=(
        Mistake(
            "its own forget gate",
            _with_its_own_forget_gate,
            "a token's own forget gate is in its weight. That gate acted before the token was stored: sum over j > s.",
        ),
        Mistake(
            "summed from the front",
            _from_the_front,
            "you sum the gates up to the token; what weakens it are the gates after it. Old tokens must come out "
            "weaker, not stronger.",
        ),
        Mistake(
            "not scaled",
            _not_scaled,
            "these weights are right up to a common factor, but exp overflows for large gates. Subtract the largest "
            "exponent first: that is the stabiliser.",
        ),
        Mistake(
            "adding up to 1",
            _adds_up_to_1,
            "you made the weights add up to 1, as a softmax does. Here the largest is 1: the division by the sum is "
            "the normaliser's work, and happens when the memory is read.",
        ),
        Mistake(
            "no input gate",
            _without_the_input_gate,
            "the input gates are missing: a token was written with exp(i_s).",
        ),
        Mistake(
            "products of gates",
            _product_of_gates,
            "right for small gates; but products of many gates underflow to 0 and exp(i) overflows. Add logarithms, "
            "and take exp at the end.",
        ),
    ),
    not_tested="several heads; the gradient through these weights.",
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


def _backwards(q, k, i, f, y_gradient, *, forget=torch.sigmoid, store=torch.exp, scale=True, early=False, adds=True):
    """The gradients of the values with parts left out, for the planted mistakes."""
    C_gradient = torch.zeros(k.shape[1], y_gradient.shape[1], dtype=q.dtype)
    gradients = []
    for t in reversed(range(len(q))):
        kept = C_gradient if adds else torch.zeros_like(C_gradient)
        C_gradient = (forget(f[t]) * kept if early else kept) + torch.outer(q[t], y_gradient[t])
        gradients.append(store(i[t]) / (math.sqrt(k.shape[1]) if scale else 1) * (k[t] @ C_gradient))
        C_gradient = C_gradient if early else forget(f[t]) * C_gradient
    return torch.stack(gradients[::-1])


def _from_first_to_last(q, k, i, f, y_gradient):
    turned = value_gradients(*(x.flip(0) for x in (q, k, i, f, y_gradient)))
    return turned.flip(0)


def _gradient_case(length: int, seed: int, last_only: bool = False) -> tuple[torch.Tensor, ...]:
    q, k, i, f, y_gradient = random_tensors((length, 4), (length, 4), (length,), (length,), (length, 3), seed=seed)
    if last_only:
        y_gradient[:-1] = 0
    return q, k, i, f, y_gradient


VALUE_GRADIENTS = Exercise(
    number="01.6",
    title="backpropagation through the recurrence",
    goal="Write `value_gradients(q, k, i, f, y_gradient)`: the gradient of the loss with respect to every value, by "
    "the recurrence that runs from the last token to the first.",
    minutes=20,
    difficulty=5,
    reference=value_gradients,
    cases=(
        Case("one token", _gradient_case(1, 0)),
        Case("two tokens", _gradient_case(2, 1)),
        Case("seven tokens", _gradient_case(7, 2)),
        Case("six tokens of which only the last is read", _gradient_case(6, 3, last_only=True)),
    ),
    hints=(
        "Carry one matrix along, the gradient of the memory. Begin with zeros behind the last token and walk to the "
        "first.",
        "At each token: add the outer product of q and the row of `y_gradient`; read the value's gradient with the "
        "key, times exp(i) / sqrt(D); then multiply the matrix by this token's forget gate and go to the token before.",
        "`for t in reversed(range(len(q)))`; `G = G + torch.outer(q[t], y_gradient[t])`; `torch.exp(i[t]) / "
        "math.sqrt(k.shape[1]) * (k[t] @ G)`; `G = torch.sigmoid(f[t]) * G`. The rows come last token first: turn "
        "the list round.",
    ),
    mistakes=(
        Mistake(
            "not turned round",
            lambda *inputs: value_gradients(*inputs).flip(0),
            "the rows are right and in the wrong order: you walked from the last token to the first, and collected "
            "them that way. Turn the list round before you stack it.",
        ),
        Mistake(
            "from the first token to the last",
            _from_first_to_last,
            "your loop runs from the first token to the last. A value is stored at s and read at s or later, so its "
            "gradient comes from later tokens: begin with the last.",
        ),
        Mistake(
            "the gate one token late",
            lambda *inputs: _backwards(*inputs, early=True),
            "the forget gate is off by one token. Token t + 1 multiplied the memory by its own gate, so what comes "
            "from t + 1 and later is multiplied by sigmoid(f[t + 1]), and not by sigmoid(f[t]), when it arrives at t.",
        ),
        Mistake(
            "no forget gate",
            lambda *inputs: _backwards(*inputs, forget=torch.ones_like),
            "the gradient does not decay on its way back. Every token it passes multiplied the memory by its forget "
            "gate, and multiplies the gradient by the same number.",
        ),
        Mistake(
            "no input gate",
            lambda *inputs: _backwards(*inputs, store=torch.ones_like),
            "the input gate is missing: the value was written with the factor exp(i), and its gradient has that factor "
            "too.",
        ),
        Mistake(
            "only its own token",
            lambda *inputs: _backwards(*inputs, adds=False),
            "you use the gradient of the token's own answer only. Later answers have read this value as well: carry "
            "the gradient of the memory along and add to it.",
        ),
        Mistake(
            "query and key exchanged",
            lambda q, k, *rest: value_gradients(k, q, *rest),
            "query and key have changed places. Forward the key writes and the query reads; backward the query writes "
            "into the gradient of the memory and the key reads from it.",
        ),
        Mistake(
            "no 1/sqrt(D)",
            lambda *inputs: _backwards(*inputs, scale=False),
            "the factor 1/sqrt(D) is missing: forward it stands before the key's outer product with the value.",
        ),
    ),
    not_tested="gates so large that exp overflows; the gradients of queries, keys and gates.",
)

EXERCISES = (MLSTM, INFLUENCE, VALUE_GRADIENTS)
