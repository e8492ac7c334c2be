"""Lesson 03: parity with one sLSTM unit, and a Vision-LSTM block put together from its parts."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensor, redrawn
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake
from xlstm_unet_lab.nn.vil import ViLBlock
from xlstm_unet_lab.ops import slstm

# ------------------------------------------------------------------------------------------ 03.4, parity, built by hand


def parity_unit(bits):
    one = bits.double()
    # on a 0: keep (i shut, f open); on a 1: replace (i open, f shut) by the opposite of the last answer
    gates = torch.stack([150 * one - 100, 80 * one - 40, 40 - 80 * one, torch.full_like(one, 40.0)], 1)
    weights = torch.tensor([-100.0, 0.0, 0.0, 0.0])
    return gates, weights


def said_by_unit(unit, bits):
    """What one sLSTM unit with these pre-activations and weights says after each bit: 1 where its answer is above 0."""
    made = unit(bits)
    if made is None or made is Ellipsis:
        return None
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError("return two tensors, `gates, weights`")
    gates, weights = (torch.as_tensor(one).double() for one in made)
    if gates.shape != (len(bits), 4) or weights.shape != (4,):
        found = f"gates have shape {tuple(gates.shape)} and weights {tuple(weights.shape)}"
        raise ValueError(f"{found}, expected ({len(bits)}, 4) and (4,), columns in the order z, i, f, o")
    z, i, f, o = gates.T.reshape(4, 1, 1, -1, 1)
    h = slstm.scan(z, i, f, o, weights.view(1, 4, 1, 1))
    return (h.flatten() > 0).long()


PARITY = Exercise(
    number="03.4",
    title="parity with one unit",
    goal="Write `parity_unit(bits)`: the four pre-activations of every token and the four recurrent weights of one "
    "sLSTM unit whose answer is above 0 exactly when the number of ones so far is odd.",
    minutes=25,
    difficulty=4,
    reference=parity_unit,
    use=said_by_unit,
    cases=(
        Case("thirteen bits", (torch.tensor([0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1]),)),
        Case("ones alone: the answer must flip each time", (torch.ones(9, dtype=torch.long),)),
        Case("zeros alone: nothing may happen", (torch.zeros(9, dtype=torch.long),)),
        Case("two hundred bits", ((random_tensor(200) > 0).long(),)),
    ),
    hints=(
        "Two things can happen. On a 0 the unit must keep what it has: input gate shut, forget gate open. On a 1 it "
        "must forget all and store the opposite of its last answer. Both gates are simple functions of the bit.",
        "With o wide open, h is what is stored. Let h be 1 for odd and -1 for even. On a 1, z must be far below 0 "
        "when h is 1, and far above 0 when h is -1, or 0 at the very beginning: a negative recurrent weight. And "
        "an empty memory takes in the first bit whatever its input gate, so on a 0 z must be negative when h is 0.",
        "For instance z = 150 bit - 100, i = 80 bit - 40, f = 40 - 80 bit, o = 40, and the recurrent weights "
        "-100, 0, 0, 0.",
    ),
    mistakes=(
        Mistake("a first zero stored as odd", "150 * one - 100", "torch.full_like(one, 50.0)").says(
            "right unless the sequence begins with a 0. The memory is empty then: whatever the input gate, c / n is "
            "what the first bit brings. Let z depend on the bit too, so that a first 0 brings -1."
        ),
        Mistake("a positive recurrent weight", "-100.0", "100.0").says(
            "your recurrent weight is positive, so the unit confirms its last answer. To flip, what it stores must go "
            "against its last answer."
        ),
        Mistake("no recurrent weight", "-100.0", "0.0").says(
            "once odd, yours stays odd. Without a recurrent weight every 1 stores the same thing, whatever the last "
            "answer was."
        ),
        Mistake("never forgets", "40 - 80 * one", "torch.full_like(one, 40.0)").says(
            "the forget gate stays open on a 1: old and new are averaged, and the answer fades. What was stored must "
            "be replaced, so shut it."
        ),
        Mistake("gates the wrong way round", "80 * one - 40, 40 - 80 * one", "40 - 80 * one, 80 * one - 40").says(
            "your gates are the wrong way round: they store on a 0 and keep on a 1."
        ),
        Mistake("the weight at another gate", "-100.0, 0.0, 0.0", "0.0, 0.0, -100.0").says(
            "your recurrent weight acts on f, the third. What has to depend on the last answer is what is stored: z, "
            "the first."
        ),
        Mistake("even for odd", "150 * one - 100", "100 - 150 * one").says(
            "odd and even are exchanged: an answer above 0 stands for an odd number of ones so far."
        ),
        Mistake("gates half open", "return gates, weights", "return 0.02 * gates, 0.02 * weights").says(
            "the signs are right and the numbers too small: a gate that is half open loses a little at every token. "
            "A sigmoid is as good as 0 or 1 at -40 and 40."
        ),
    ),
    not_tested="whether training would find such weights. The next cells try it.",
)

# ------------------------------------------------------------------------------------ 03.5, a block from its parts


def vil_block(x, parts):
    memory, gate = parts.up(parts.norm(x)).chunk(2, -1)
    convolved = F.silu(parts.conv(memory))
    h = parts.cell(parts.q(convolved), parts.k(convolved), parts.v(memory))
    return x + parts.down((h + parts.skip * convolved) * F.silu(gate))


def parts_of(block: ViLBlock) -> SimpleNamespace:
    """The layers of a Vision-LSTM block (version v1) by the names that the exercise gives them."""
    names = ("up", "conv", "q", "k", "v", "cell", "skip", "down")
    return SimpleNamespace(norm=block.norm, **{name: getattr(block.layer, name) for name in names})


def _block_case(batch: int, length: int, width: int, seed: int) -> tuple[torch.Tensor, SimpleNamespace]:
    return random_tensor(batch, length, width, seed=seed), parts_of(redrawn(ViLBlock(width), seed))


VIL_BLOCK = Exercise(
    number="03.5",
    title="a block from its parts",
    goal="Write `vil_block(x, parts)`: tokens (B, S, width) through the Vision-LSTM block of the drawing.",
    minutes=15,
    difficulty=4,
    reference=vil_block,
    cases=(
        Case("one token of width 4", _block_case(1, 1, 4, 0)),
        Case("six tokens of width 4", _block_case(1, 6, 4, 1)),
        Case("two sequences of five tokens of width 8", _block_case(2, 5, 8, 2)),
    ),
    hints=(
        "Follow the drawing from the top: `parts.norm`, `parts.up`, then `.chunk(2, -1)` makes the two paths, the "
        "memory's first.",
        "Queries and keys come from the convolved path, after SiLU; values from the path before the convolution. The "
        "cell takes all three: `parts.cell(q, k, v)`.",
        "At the end: `x + parts.down((h + parts.skip * convolved) * F.silu(gate))`.",
    ),
    mistakes=(
        Mistake("no residual", "x + parts.down", "parts.down").says("the residual is missing: the block adds to `x`."),
        Mistake("no norm", "parts.norm(x)", "x").says(
            "the norm is missing. It stands before everything else; the residual goes around it."
        ),
        Mistake("values from the convolution", "parts.v(memory)", "parts.v(convolved)").says(
            "your values come from the convolved path. Only queries and keys do; values are taken before it."
        ),
        Mistake(
            "queries without the convolution",
            "parts.q(convolved), parts.k(convolved)",
            "parts.q(memory), parts.k(memory)",
        ).says("your queries and keys are taken before the convolution. They come after it, and after SiLU."),
        Mistake("no SiLU after the convolution", "F.silu(parts.conv(memory))", "parts.conv(memory)").says(
            "the SiLU after the convolution is missing."
        ),
        Mistake("no SiLU at the gate", "F.silu(gate)", "gate").says(
            "the gate is used as it is; it goes through a SiLU first."
        ),
        Mistake("a sigmoid at the gate", "F.silu(gate)", "F.sigmoid(gate)").says(
            "you put the gate through a sigmoid. In this block it is a SiLU, gate times sigmoid(gate)."
        ),
        Mistake("no skip", " + parts.skip * convolved", "").says(
            "the small skip is missing: `parts.skip`, one weight a channel, times the convolved path, is added to the "
            "cell's answer."
        ),
        Mistake("skip from before the convolution", "parts.skip * convolved", "parts.skip * memory").says(
            "your skip starts before the convolution. It takes what comes after it."
        ),
        Mistake("the two paths exchanged", "memory, gate =", "gate, memory =").says(
            "the two halves are exchanged: the first goes to the memory, the second is the gate."
        ),
    ),
    not_tested="version v2, whose convolution looks at the neighbours in the image; training.",
)

EXERCISES = (PARITY, VIL_BLOCK)
