"""Lesson 03: the sLSTM and why its loop cannot be cut; lesson_03_blocks.py holds the exercises on parity and blocks."""

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensor
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# ------------------------------------------------------------------------- 03.1, how many recurrent weights there are


def recurrent_parameters(width, heads):
    return 4 * width * width // heads


RECURRENT_PARAMETERS = Exercise(
    number="03.1",
    title="recurrent weights",
    goal="Write `recurrent_parameters(width, heads)`: how many recurrent weights an sLSTM of that many units has.",
    minutes=5,
    difficulty=1,
    reference=recurrent_parameters,
    cases=(
        Case("8 units in one head", (8, 1)),
        Case("8 units in 4 heads", (8, 4)),
        Case("768 units in 4 heads", (768, 4)),
        Case("as many heads as units: every unit hears itself alone", (6, 6)),
    ),
    hints=(
        "There are four gates z, i, f and o. In each head, each has a square matrix from the head's last answers.",
        "A head has width / heads units, so its matrices have (width / heads)^2 entries. How many heads and gates?",
        "4 * heads * (width / heads)^2 = 4 * width^2 / heads, a whole number: use `//`.",
    ),
    mistakes=(
        Mistake("heads ignored", " // heads", "").says(
            "that is a layer with one head. Memories mix inside a head only, so most of the big matrix is zero."
        ),
        Mistake("one gate", "4 * width", "width").says(
            "you counted one gate. The last answer enters all four: z, i, f and o."
        ),
        Mistake("one head", "width * width // heads", "(width // heads) ** 2").says(
            "you counted the matrices of a single head; there are `heads` of them."
        ),
        Mistake("three gates", "4 * width", "3 * width").says(
            "three gates and the cell input make four: z counts as well."
        ),
        Mistake("not square", "width * width", "width").says(
            "every unit of a head hears every unit of that head: a square matrix, (width / heads)^2 entries."
        ),
    ),
    not_tested="widths that the number of heads does not divide; biases and input weights, which come on top.",
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


SLSTM = Exercise(
    number="03.2",
    title="the sLSTM, token by token",
    goal="Write `slstm_sequence(z, i, f, o, weights)`: one head of an sLSTM over a sequence of pre-activations.",
    minutes=20,
    difficulty=3,
    reference=slstm_sequence,
    cases=(
        Case("one token", _case(1, 3, 0)),
        Case("three tokens", _case(3, 3, 1)),
        Case("eight tokens, five units", _case(8, 5, 2)),
        Case("eight tokens with gates so large that exp overflows", _case(8, 2, 3, gates=800.0)),
    ),
    hints=(
        "First complete the four pre-activations with what the last answer says: `z[t] + weights[0] @ h`, and the same "
        "for i, f and o with weights 1 to 3. At the first token h is 0.",
        "Then everything goes unit by unit: m, c and n as in exercise 01.4, with tanh(zhat) in place of the outer "
        "product and 1 in place of the key.",
        "The answer is sigmoid(ohat) * c / n. Remember h, c, n and m for the next token.",
    ),
    mistakes=(
        Mistake("no memory mixing", " + R @ h", "").says(
            "the recurrent weights are not used: the last answer h must be added to all four pre-activations."
        ),
        Mistake("the memory fed back", "R @ h", "R @ c").says(
            "you feed back the memory c. What returns is the answer h = sigmoid(o) c / n."
        ),
        Mistake("z not squashed", "torch.tanh(zhat)", "zhat").says(
            "the tanh around zhat is missing: what is stored lies between -1 and 1."
        ),
        Mistake("no output gate", "torch.sigmoid(ohat) * c", "c").says(
            "the output gate is missing: h = sigmoid(ohat) c / n."
        ),
        Mistake("no stabiliser", "torch.maximum(a + m, ihat)", "torch.zeros_like(m)").says(
            "right for small gates; exp(i) overflows for large ones. Carry m along, as in lesson 01."
        ),
        Mistake("weights transposed", "R @ h", "R.T @ h").says(
            "your recurrent matrices are transposed. Row r of a matrix says what unit r hears: `weights[0] @ h`."
        ),
        Mistake("tanh in place of the normaliser", "c / n", "torch.tanh(c)").says(
            "you answer with tanh(c), as an LSTM does. Here c is divided by n, the sum of the same weights."
        ),
    ),
    not_tested="several heads and batches; a state that is not empty at first; gradients.",
)

# -------------------------------------------------------------------------------- 03.3, why a linear loop can be cut


def join_steps(first, second):
    return torch.stack([second[0] * first[0], second[0] * first[1] + second[1]])


def _steps(*numbers: list[float]) -> tuple[torch.Tensor, ...]:
    return torch.tensor(numbers, dtype=torch.float64).unbind()


JOIN_STEPS = Exercise(
    number="03.3",
    title="two steps made one",
    goal="Write `join_steps(first, second)`: a single step c -> g c + u that does what two of them do, one after the "
    "other.",
    minutes=10,
    difficulty=3,
    reference=join_steps,
    cases=(
        Case("two steps that only add", _steps([1, 2], [1, 5])),
        Case("keep half, add 1; then keep a quarter, add 2", _steps([0.5, 1], [0.25, 2])),
        Case("a step that forgets all", _steps([3, 4], [0, 7])),
        Case("random steps", tuple(random_tensor(2, 2))),
    ),
    hints=(
        "Write it out: the first gives g1 c + u1; put that into the second.",
        "g2 (g1 c + u1) + u2. What multiplies c, and what is left?",
        "`torch.stack([second[0] * first[0], second[0] * first[1] + second[1]])`",
    ),
    mistakes=(
        Mistake("the wrong order", "(first, second)", "(second, first)").says(
            "you applied the second step before the first. The first one's result goes through the second."
        ),
        Mistake("sums added up", "second[0] * first[1] +", "first[1] +").says(
            "what the first step added passes through the second, which multiplies it by its own factor."
        ),
        Mistake("factors added up", "second[0] * first[0]", "second[0] + first[0]").says(
            "the factors multiply: half of a quarter is an eighth."
        ),
        Mistake("everything multiplied", "second[0] * first[1] + second[1]", "second[1] * first[1]").says(
            "you multiplied term by term. Insert one line into the other: g2 (g1 c + u1) + u2."
        ),
        Mistake(
            "only the second", "torch.stack([second[0] * first[0], second[0] * first[1] + second[1]])", "second.clone()"
        ).says("you return the second step alone."),
    ),
    not_tested="steps whose factor depends on c: there, no such join exists, which is the point of this lesson.",
)

EXERCISES = (RECURRENT_PARAMETERS, SLSTM, JOIN_STEPS)
