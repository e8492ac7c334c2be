"""Lesson 01, second part: the mLSTM token by token, what is left of every token, and the gradient on its way back."""

import math

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import mlstm_inputs, random_tensors
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


_ANSWER = "        outputs.append((q[t] @ C) / torch.maximum((q[t] @ n).abs(), torch.exp(-m)))\n"

MLSTM = Exercise(
    number="01.4",
    title="the mLSTM, token by token",
    goal="Write `mlstm(q, k, v, i, f)`: the stabilised recurrence over all tokens of one head.",
    minutes=25,
    difficulty=4,
    reference=mlstm,
    cases=(
        Case("one token", mlstm_inputs(1, 0)),
        Case("two tokens", mlstm_inputs(2, 1)),
        Case("nine tokens", mlstm_inputs(9, 2)),
        Case("nine tokens with weak input gates, where the floor exp(-m) acts", mlstm_inputs(9, 3, shift=-3.0)),
        Case("nine tokens with gates so large that exp overflows", mlstm_inputs(9, 4, gates=900.0)),
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
            "(q[t] @ n).abs()",
            "q[t] @ n",
            "the absolute value around q . n is missing. It can be negative; the larger of it and exp(-m) is then "
            "always the floor, and the answer has the wrong size.",
        ),
        Mistake(
            "no floor",
            "torch.maximum((q[t] @ n).abs(), torch.exp(-m))",
            "(q[t] @ n).abs()",
            "you divide by |q . n| alone. Where query and keys are nearly perpendicular it comes close to 0 and the "
            "answer explodes; the floor is exp(-m).",
        ),
        Mistake(
            "a floor of 1",
            "torch.exp(-m)",
            "torch.ones_like(m)",
            "your floor is 1. It is 1 for the memory as defined; C and n are stored divided by exp(m), and so must the "
            "floor be: exp(-m).",
        ),
        Mistake(
            "no stabiliser",
            ("-torch.inf", "torch.maximum(a + m, i[t])"),
            ("0.0", "m"),
            "the formula is right, but exp(i) overflows for large gates and infinity over infinity is NaN. Carry the "
            "scale m along as a logarithm.",
        ),
        Mistake(
            "no 1/sqrt(D)",
            "k[t] / math.sqrt(k.shape[1])",
            "k[t]",
            "the key is not divided by sqrt(D), the root of its length. Without it, q . k grows with the width.",
        ),
        Mistake(
            "answers before it stores",
            (_ANSWER, "        a ="),
            ("", _ANSWER + "        a ="),
            "you read the memory before the token is written. Update C and n first: a token can recall itself.",
        ),
        Mistake(
            "m does not decay",
            "torch.maximum(a + m, i[t])",
            "torch.maximum(m, i[t])",
            "the new m is the larger of the old m and i; the old memory has decayed meanwhile, so its scale has too: "
            "the larger of a + m and i, with a = logsigmoid(f). Up to rounding the answer would be the same, as the "
            "floor moves along; but m never comes down again, and weak later tokens are rounded away.",
        ),
        Mistake(
            "the plain forget gate",
            "torch.exp(a + m - new_m)",
            "torch.exp(a)",
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
            ".flip(0) - a",
            ".flip(0)",
            "a token's own forget gate is in its weight. That gate acted before the token was stored: sum over j > s.",
        ),
        Mistake(
            "summed from the front",
            "a.flip(0).cumsum(0).flip(0) - a",
            "a.cumsum(0)",
            "you sum the gates up to the token; what weakens it are the gates after it. Old tokens must come out "
            "weaker, not stronger.",
        ),
        Mistake(
            "not scaled",
            "exponent - exponent.max()",
            "exponent",
            "these weights are right up to a common factor, but exp overflows for large gates. Subtract the largest "
            "exponent first: that is the stabiliser.",
        ),
        Mistake(
            "adding up to 1",
            "torch.exp(exponent - exponent.max())",
            "torch.softmax(exponent, 0)",
            "you made the weights add up to 1, as a softmax does. Here the largest is 1: the division by the sum is "
            "the normaliser's work, and happens when the memory is read.",
        ),
        Mistake(
            "no input gate",
            "after + i",
            "after",
            "the input gates are missing: a token was written with exp(i_s).",
        ),
        Mistake(
            "products of gates",
            ("after + i", "torch.exp(exponent - exponent.max())"),
            ("torch.exp(after) * torch.exp(i)", "exponent / exponent.max()"),
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
            "[::-1]",
            "",
            "the rows are right and in the wrong order: you walked from the last token to the first, and collected "
            "them that way. Turn the list round before you stack it.",
        ),
        Mistake(
            "from the first token to the last",
            ("reversed(range(len(q)))", "[::-1]"),
            ("range(len(q))", ""),
            "your loop runs from the first token to the last. A value is stored at s and read at s or later, so its "
            "gradient comes from later tokens: begin with the last.",
        ),
        Mistake(
            "the gate one token late",
            ("C_gradient + torch", "        C_gradient = torch.sigmoid(f[t]) * C_gradient\n"),
            ("torch.sigmoid(f[t]) * C_gradient + torch", ""),
            "the forget gate is off by one token. Token t + 1 multiplied the memory by its own gate, so what comes "
            "from t + 1 and later is multiplied by sigmoid(f[t + 1]), and not by sigmoid(f[t]), when it arrives at t.",
        ),
        Mistake(
            "no forget gate",
            "torch.sigmoid(f[t]) * C_gradient",
            "C_gradient",
            "the gradient does not decay on its way back. Every token it passes multiplied the memory by its forget "
            "gate, and multiplies the gradient by the same number.",
        ),
        Mistake(
            "no input gate",
            "torch.exp(i[t])",
            "1",
            "the input gate is missing: the value was written with the factor exp(i), and its gradient has that factor "
            "too.",
        ),
        Mistake(
            "only its own token",
            "C_gradient + torch",
            "torch",
            "you use the gradient of the token's own answer only. Later answers have read this value as well: carry "
            "the gradient of the memory along and add to it.",
        ),
        Mistake(
            "query and key exchanged",
            "(q, k, i",
            "(k, q, i",
            "query and key have changed places. Forward the key writes and the query reads; backward the query writes "
            "into the gradient of the memory and the key reads from it.",
        ),
        Mistake(
            "no 1/sqrt(D)",
            " / math.sqrt(k.shape[1])",
            "",
            "the factor 1/sqrt(D) is missing: forward it stands before the key's outer product with the value.",
        ),
    ),
    not_tested="gates so large that exp overflows; the gradients of queries, keys and gates.",
)

EXERCISES = (MLSTM, INFLUENCE, VALUE_GRADIENTS)
