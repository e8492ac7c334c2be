"""Lesson 04, second part: which tokens a token hears of, on one walk and through several blocks."""

import torch

from xlstm_unet_lab.course.checks.random_cases import counting, random_tensor
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# --------------------------------------------------------------------------------------------- 04.3, who is heard


def heard(size, position, columns_first, backwards):
    rows, columns = size
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    number = x * rows + y if columns_first else y * columns + x
    return number >= number[position] if backwards else number <= number[position]


HEARD = Exercise(
    number="04.3",
    title="who is heard",
    goal="Write `heard(size, position, columns_first, backwards)`: a boolean map (y, x) of all positions that the "
    "token at `position` can hear of, itself included, on one walk.",
    minutes=15,
    difficulty=3,
    reference=heard,
    cases=(
        Case("row by row, in the middle of a 3 x 4 grid", ((3, 4), (1, 2), False, False)),
        Case("row by row, backwards", ((3, 4), (1, 2), False, True)),
        Case("column by column", ((3, 4), (1, 2), True, False)),
        Case("column by column, backwards", ((3, 4), (2, 0), True, True)),
        Case("the first corner hears itself alone", ((4, 3), (0, 0), False, False)),
    ),
    hints=(
        "A token hears itself and all that came before it on the walk. So: when does each position come?",
        "Row by row, position (y, x) is token number y * columns + x; column by column it is x * rows + y.",
        "Make the map of these numbers and compare it with the number at `position`: `<=` forward, `>=` backwards.",
    ),
    mistakes=(
        Mistake("not itself", (">=", "<="), (">", "<")).says(
            "the token itself is missing. It is stored before it is answered (lesson 01)."
        ),
        Mistake(
            "a rectangle",
            ("number >= number[position]", "number <= number[position]"),
            ("(y >= position[0]) & (x >= position[1])", "(y <= position[0]) & (x <= position[1])"),
        ).says(
            "you marked a rectangle. The walk goes through whole lines: of earlier lines everything is heard, of its "
            "own line the part before it."
        ),
        Mistake("rows always", "x * rows + y if columns_first else y * columns + x", "y * columns + x").says(
            "you number the positions row by row whatever `columns_first` says."
        ),
        Mistake("forward always", "number >= number[position] if backwards else ", "").says(
            "backwards, a token hears what comes *later* in the numbering."
        ),
        Mistake("whole lines", ("x * rows + y", "y * columns + x"), ("x", "y")).says(
            "you count the whole of the token's own line. Half of it has not been walked yet."
        ),
    ),
    not_tested="several walks one after the other; convolutions, which let neighbours in as well.",
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


BOTH_WAYS = Exercise(
    number="04.4",
    title="there and back",
    goal="Write `both_ways(tokens, forward, backward)`: one block walks the tokens (S, C) from first to last, then the "
    "other walks the result from last to first.",
    minutes=8,
    difficulty=3,
    reference=both_ways,
    cases=(
        Case("two running sums over four tokens", (counting(4, 1), _running_sum, _running_sum)),
        Case("two blocks that differ", (random_tensor(6, 2), _weighted_sum, _first_difference)),
        Case("the same two exchanged", (random_tensor(6, 2), _first_difference, _weighted_sum)),
        Case("a block that looks one token back", (random_tensor(5, 3, seed=1), _running_sum, _first_difference)),
    ),
    hints=(
        "A block only knows first to last. To let it walk the other way, hand it the tokens the other way round.",
        "Its answers come out in the order it walked. Put them back, or every token gets another one's answer.",
        "`backward(forward(tokens).flip(0)).flip(0)`",
    ),
    mistakes=(
        Mistake("not turned back", "backward(seen.flip(0)).flip(0)", "backward(seen.flip(0))").says(
            "the answers of the second block are still in the order it walked: the last token's come first. Flip them "
            "back."
        ),
        Mistake("both forward", "backward(seen.flip(0)).flip(0)", "backward(seen)").says(
            "both blocks walk the same way. The second must get the tokens in reverse order."
        ),
        Mistake("side by side", "backward(seen.flip(0)).flip(0)", "seen + backward(tokens.flip(0)).flip(0)").says(
            "you run both on the same tokens and add them up. Here they come one after the other: the second reads "
            "what the first wrote."
        ),
        Mistake(
            "the wrong one first",
            ("forward(tokens)", "backward(seen.flip(0)).flip(0)"),
            ("backward(tokens.flip(0)).flip(0)", "forward(seen)"),
        ).says("the backward block goes first in yours."),
        Mistake("channels flipped", "backward(seen.flip(0)).flip(0)", "backward(seen.flip(1)).flip(1)").says(
            "you flip the channels. The tokens are axis 0."
        ),
    ),
    not_tested="blocks with residual connections inside; batches, where the tokens are axis 1.",
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

HEARD_AFTER = Exercise(
    number="04.5",
    title="who is heard through several blocks",
    goal="Write `heard_after(size, position, walks)`: a boolean map (y, x) of all positions that the token at "
    "`position` hears of after blocks that took these walks one after the other, each (columns_first, backwards).",
    minutes=20,
    difficulty=4,
    reference=heard_after,
    cases=(
        Case("one block: as in 04.3", ((3, 4), (1, 2), (ROWS,))),
        Case("the same walk twice", ((3, 4), (1, 2), (ROWS, ROWS))),
        Case("there and back", ((3, 4), (1, 2), (ROWS, ROWS_BACK))),
        Case("row by row, then column by column", ((4, 5), (1, 2), (ROWS, COLUMNS))),
        Case("column by column, then row by row", ((4, 5), (1, 2), (COLUMNS, ROWS))),
        Case("column by column, then row by row, both backwards", ((4, 3), (2, 0), (COLUMNS_BACK, ROWS_BACK))),
        Case("the first corner, after two walks that begin there", ((4, 5), (0, 0), (ROWS, COLUMNS))),
    ),
    hints=(
        "Start at the end. Which tokens does the last block read from for this position? Each of them holds what the "
        "block before had brought to it.",
        "Go through the walks from the last to the first and let a set of positions grow, at first the one position. "
        "A set hears all that its latest token hears.",
        "With `number` the map of when each position comes: `heard = number <= number[heard].max()`, and backwards "
        "`number >= number[heard].min()`, for the walks in `reversed(walks)`.",
    ),
    mistakes=(
        Mistake("first block first", "reversed(walks)", "walks").says(
            "you go through the blocks in the order they run. Ask the other way round: the last block names the tokens "
            "it reads from, and those were filled by the block before."
        ),
        Mistake("side by side", _GROWS, f"heard |= {_ALONE}").says(
            "you joined what each block alone lets the token hear. The second block reads what the first wrote, so it "
            "also passes on what *other* tokens have heard."
        ),
        Mistake("heard by every block", ("torch.zeros", _GROWS), ("torch.ones", f"heard &= {_ALONE}")).says(
            "you kept only what every block alone lets the token hear. Blocks add to what is heard; none takes away."
        ),
        Mistake("the last block alone", "reversed(walks)", "walks[-1:]").says(
            "you looked at the last block alone, as if it read the image itself."
        ),
        Mistake("the first block alone", "reversed(walks)", "walks[:1]").says(
            "you looked at the first block alone and forgot that the next ones carry its answers on."
        ),
        Mistake(
            "the earliest of them",
            "min() if backwards else number <= number[heard].max()",
            "max() if backwards else number <= number[heard].min()",
        ).says(
            "of the tokens heard so far you follow the one that comes first on the walk. It heard least; the one that "
            "comes last has heard all that the others have."
        ),
    ),
    not_tested="volumes; convolutions inside the blocks; how *much* is heard, which gates and distances decide.",
)

EXERCISES = (HEARD, BOTH_WAYS, HEARD_AFTER)
