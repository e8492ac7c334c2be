"""Lesson 04, second part: which tokens a token hears of, on one walk and through several blocks."""

import torch

from xlstm_unet_lab.course.checks.random_cases import counting, random_tensor
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# --------------------------------------------------------------------------------------------- 04.3, who is heard


def heard(size, position, columns_first, backwards):
    rows, columns = size
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    number = x * rows + y if columns_first else y * columns + x
    return number >= number[position] if backwards else number <= number[position]


HEARD = exercise(
    "04.3",
    heard,
    cases=(
        Case("row by row, in the middle of a 3 x 4 grid", ((3, 4), (1, 2), False, False)),
        Case("row by row, backwards", ((3, 4), (1, 2), False, True)),
        Case("column by column", ((3, 4), (1, 2), True, False)),
        Case("column by column, backwards", ((3, 4), (2, 0), True, True)),
        Case("the first corner hears itself alone", ((4, 3), (0, 0), False, False)),
    ),
    mistakes={
        "not itself": ((">=", ">"), ("<=", "<")),
        "a rectangle": (
            ("number >= number[position]", "(y >= position[0]) & (x >= position[1])"),
            ("number <= number[position]", "(y <= position[0]) & (x <= position[1])"),
        ),
        "rows always": ("x * rows + y if columns_first else y * columns + x", "y * columns + x"),
        "forward always": ("number >= number[position] if backwards else ", ""),
        "whole lines": (("x * rows + y", "x"), ("y * columns + x", "y")),
    },
)

# ------------------------------------------------------------------------------------------ 04.4, there and back


def both_ways(tokens, forward, backward):
    seen = forward(tokens)
    return backward(seen.flip(0)).flip(0)


def _running_sum(tokens):
    return tokens.cumsum(0)


def _weighted_sum(tokens):
    return tokens.cumsum(0) * torch.arange(1.0, tokens.shape[1] + 1)  # every channel has a weight of its own


def _first_difference(tokens):
    return tokens.diff(dim=0, prepend=torch.zeros_like(tokens[:1]))


BOTH_WAYS = exercise(
    "04.4",
    both_ways,
    cases=(
        Case("two running sums over four tokens", (counting(4, 1), _running_sum, _running_sum)),
        Case("two blocks that differ", (random_tensor(6, 2), _weighted_sum, _first_difference)),
        Case("the same two exchanged", (random_tensor(6, 2), _first_difference, _weighted_sum)),
        Case("a block that looks one token back", (random_tensor(5, 3, seed=1), _running_sum, _first_difference)),
    ),
    mistakes={
        "not turned back": ("backward(seen.flip(0)).flip(0)", "backward(seen.flip(0))"),
        "both forward": ("backward(seen.flip(0)).flip(0)", "backward(seen)"),
        "side by side": ("backward(seen.flip(0)).flip(0)", "seen + backward(tokens.flip(0)).flip(0)"),
        "the wrong one first": (
            ("forward(tokens)", "backward(tokens.flip(0)).flip(0)"),
            ("backward(seen.flip(0)).flip(0)", "forward(seen)"),
        ),
        "channels flipped": ("backward(seen.flip(0)).flip(0)", "backward(seen.flip(1)).flip(1)"),
    },
)

# -------------------------------------------------------------------------------- 04.5, who is heard through blocks


def heard_after(size, position, walks):
    rows, columns = size
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    heard = torch.zeros(size, dtype=torch.bool)
    heard[position] = True
    for columns_first, backwards in reversed(walks):
        number = x * rows + y if columns_first else y * columns + x
        heard = number >= number[heard].min() if backwards else number <= number[heard].max()
    return heard


_GROWS = "heard = number >= number[heard].min() if backwards else number <= number[heard].max()"
_ALONE = "number >= number[position] if backwards else number <= number[position]"
ROWS, COLUMNS, ROWS_BACK, COLUMNS_BACK = (False, False), (True, False), (False, True), (True, True)

HEARD_AFTER = exercise(
    "04.5",
    heard_after,
    cases=(
        Case("one block: as in 04.3", ((3, 4), (1, 2), (ROWS,))),
        Case("the same walk twice", ((3, 4), (1, 2), (ROWS, ROWS))),
        Case("there and back", ((3, 4), (1, 2), (ROWS, ROWS_BACK))),
        Case("row by row, then column by column", ((4, 5), (1, 2), (ROWS, COLUMNS))),
        Case("column by column, then row by row", ((4, 5), (1, 2), (COLUMNS, ROWS))),
        Case("column by column, then row by row, both backwards", ((4, 3), (2, 0), (COLUMNS_BACK, ROWS_BACK))),
        Case("the first corner, after two walks that begin there", ((4, 5), (0, 0), (ROWS, COLUMNS))),
    ),
    mistakes={
        "first block first": ("reversed(walks)", "walks"),
        "side by side": (_GROWS, f"heard |= {_ALONE}"),
        "heard by every block": (("torch.zeros", "torch.ones"), (_GROWS, f"heard &= {_ALONE}")),
        "the last block alone": ("reversed(walks)", "walks[-1:]"),
        "the first block alone": ("reversed(walks)", "walks[:1]"),
        "the earliest of them": (
            "min() if backwards else number <= number[heard].max()",
            "max() if backwards else number <= number[heard].min()",
        ),
    },
)

EXERCISES = (HEARD, BOTH_WAYS, HEARD_AFTER)
