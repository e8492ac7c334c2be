"""Lesson 03: parity with one sLSTM unit, and a Vision-LSTM block put together from its parts."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensor, redrawn
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case
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


PARITY = exercise(
    "03.4",
    parity_unit,
    cases=(
        Case("thirteen bits", (torch.tensor([0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1]),)),
        Case("ones alone: the answer must flip each time", (torch.ones(9, dtype=torch.long),)),
        Case("zeros alone: nothing may happen", (torch.zeros(9, dtype=torch.long),)),
        Case("two hundred bits", ((random_tensor(200) > 0).long(),)),
    ),
    mistakes={
        "a first zero stored as odd": ("150 * one - 100", "torch.full_like(one, 50.0)"),
        "a positive recurrent weight": ("-100.0", "100.0"),
        "no recurrent weight": ("-100.0", "0.0"),
        "never forgets": ("40 - 80 * one", "torch.full_like(one, 40.0)"),
        "gates the wrong way round": ("80 * one - 40, 40 - 80 * one", "40 - 80 * one, 80 * one - 40"),
        "the weight at another gate": ("-100.0, 0.0, 0.0", "0.0, 0.0, -100.0"),
        "even for odd": ("150 * one - 100", "100 - 150 * one"),
        "gates half open": ("return gates, weights", "return 0.02 * gates, 0.02 * weights"),
    },
    use=said_by_unit,
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


VIL_BLOCK = exercise(
    "03.5",
    vil_block,
    cases=(
        Case("one token of width 4", _block_case(1, 1, 4, 0)),
        Case("six tokens of width 4", _block_case(1, 6, 4, 1)),
        Case("two sequences of five tokens of width 8", _block_case(2, 5, 8, 2)),
    ),
    mistakes={
        "no residual": ("x + parts.down", "parts.down"),
        "no norm": ("parts.norm(x)", "x"),
        "values from the convolution": ("parts.v(memory)", "parts.v(convolved)"),
        "queries without the convolution": (
            "parts.q(convolved), parts.k(convolved)",
            "parts.q(memory), parts.k(memory)",
        ),
        "no SiLU after the convolution": ("F.silu(parts.conv(memory))", "parts.conv(memory)"),
        "no SiLU at the gate": ("F.silu(gate)", "gate"),
        "a sigmoid at the gate": ("F.silu(gate)", "F.sigmoid(gate)"),
        "no skip": (" + parts.skip * convolved", ""),
        "skip from before the convolution": ("parts.skip * convolved", "parts.skip * memory"),
        "the two paths exchanged": ("memory, gate =", "gate, memory ="),
    },
)

EXERCISES = (PARITY, VIL_BLOCK)
