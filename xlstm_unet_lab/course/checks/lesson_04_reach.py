"""Lesson 04, second part: which tokens a token hears of, on one walk and through several blocks."""

import torch

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake


def _random(*shapes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def _counting(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)


# --------------------------------------------------------------------------------------------- 04.3, who is heard


def heard(size, position, columns_first, backwards):
    rows, columns = size
    number = torch.arange(rows * columns)
    number = number.view(columns, rows).T if columns_first else number.view(rows, columns)
    return number >= number[position] if backwards else number <= number[position]


def _heard(size, position, columns_first, backwards, *, itself=True, turn=True, flip=True, box=False):
    rows, columns = size
    order = torch.arange(rows * columns).view(size)
    if columns_first and turn:
        order = torch.arange(rows * columns).view(columns, rows).T
    if box:
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return (y >= position[0]) & (x >= position[1]) if backwards else (y <= position[0]) & (x <= position[1])
    mine = order[position]
    late = backwards and flip
    seen = order >= mine if late else order <= mine
    return seen if itself else seen & (order != mine)


def _whole_lines(size, position, columns_first, backwards):
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    along, mine = (x, position[1]) if columns_first else (y, position[0])
    return along >= mine if backwards else along <= mine


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
        Mistake(
            "not itself",
            lambda *inputs: _heard(*inputs, itself=False),
            "the token itself is missing. It is stored before it is answered (lesson 01).",
        ),
        Mistake(
            "a rectangle",
            lambda *inputs: _heard(*inputs, box=True),
            "you marked a rectangle. The walk goes through whole lines: of earlier lines everything is heard, of its "
            "own line the part before it.",
        ),
        Mistake(
            "rows always",
            lambda *inputs: _heard(*inputs, turn=False),
            "you number the positions row by row whatever `columns_first` says.",
        ),
        Mistake(
            "forward always",
            lambda *inputs: _heard(*inputs, flip=False),
            "backwards, a token hears what comes *later* in the numbering.",
        ),
        Mistake(
            "whole lines",
            _whole_lines,
            "you count the whole of the token's own line. Half of it has not been walked yet.",
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


def _decaying_sum(tokens):
    state, outputs = torch.zeros_like(tokens[0]), []
    kept = torch.linspace(0.5, 0.9, tokens.shape[1], dtype=tokens.dtype)  # every channel forgets at its own pace
    for token in tokens:
        state = kept * state + token
        outputs.append(state)
    return torch.stack(outputs)


def _first_difference(tokens):
    return tokens - torch.cat([torch.zeros_like(tokens[:1]), tokens[:-1]])


BOTH_WAYS = Exercise(
    number="04.4",
    title="there and back",
    goal="Write `both_ways(tokens, forward, backward)`: one block walks the tokens (S, C) from first to last, then the "
    "other walks the result from last to first.",
    minutes=8,
    difficulty=3,
    reference=both_ways,
    cases=(
        Case("two running sums over four tokens", (_counting(4, 1), _running_sum, _running_sum)),
        Case("two blocks that differ", (_random((6, 2))[0], _decaying_sum, _running_sum)),
        Case("the same two exchanged", (_random((6, 2))[0], _running_sum, _decaying_sum)),
        Case("a block that looks one token back", (_random((5, 3), seed=1)[0], _decaying_sum, _first_difference)),
    ),
    hints=(
        "A block only knows first to last. To let it walk the other way, hand it the tokens the other way round.",
        "Its answers come out in the order it walked. Put them back, or every token gets another one's answer.",
        "`backward(forward(tokens).flip(0)).flip(0)`",
    ),
    mistakes=(
        Mistake(
            "not turned back",
            lambda tokens, forward, backward: backward(forward(tokens).flip(0)),
            "the answers of the second block are still in the order it walked: the last token's come first. Flip them "
            "back.",
        ),
        Mistake(
            "both forward",
            lambda tokens, forward, backward: backward(forward(tokens)),
            "both blocks walk the same way. The second must get the tokens in reverse order.",
        ),
        Mistake(
            "side by side",
            lambda tokens, forward, backward: forward(tokens) + backward(tokens.flip(0)).flip(0),
            "you run both on the same tokens and add them up. Here they come one after the other: the second reads "
            "what the first wrote.",
        ),
        Mistake(
            "the wrong one first",
            lambda tokens, forward, backward: forward(backward(tokens.flip(0)).flip(0)),
            "the backward block goes first in yours.",
        ),
        Mistake(
            "channels flipped",
            lambda tokens, forward, backward: backward(forward(tokens).flip(1)).flip(1),
            "you flip the channels. The tokens are axis 0.",
        ),
    ),
    not_tested="blocks with residual connections inside; batches, where the tokens are axis 1.",
)


# -------------------------------------------------------------------------------- 04.5, who is heard through blocks


def heard_after(size, position, walks):
    rows, columns = size
    by_rows = torch.arange(rows * columns).view(rows, columns)
    by_columns = torch.arange(rows * columns).view(columns, rows).T
    heard = torch.zeros(size, dtype=torch.bool)
    heard[position] = True
    for columns_first, backwards in reversed(walks):
        number = by_columns if columns_first else by_rows
        heard = number >= number[heard].min() if backwards else number <= number[heard].max()
    return heard


def _one(size, position, walk):
    return heard_after(size, position, (walk,))


def _nearest(size, position, walks):
    """As the reference, but each step starts from the token that comes first where the one that comes last is meant."""
    rows, columns = size
    by_rows = torch.arange(rows * columns).view(rows, columns)
    by_columns = torch.arange(rows * columns).view(columns, rows).T
    heard = torch.zeros(size, dtype=torch.bool)
    heard[position] = True
    for columns_first, backwards in reversed(walks):
        number = by_columns if columns_first else by_rows
        heard = number >= number[heard].max() if backwards else number <= number[heard].min()
    return heard


ROWS, COLUMNS = (False, False), (True, False)
ROWS_BACK, COLUMNS_BACK = (False, True), (True, True)

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
        Mistake(
            "first block first",
            lambda size, position, walks: heard_after(size, position, walks[::-1]),
            "you go through the blocks in the order they run. Ask the other way round: the last block names the tokens "
            "it reads from, and those were filled by the block before.",
        ),
        Mistake(
            "side by side",
            lambda size, position, walks: torch.stack([_one(size, position, walk) for walk in walks]).any(0),
            "you joined what each block alone lets the token hear. The second block reads what the first wrote, so it "
            "also passes on what *other* tokens have heard.",
        ),
        Mistake(
            "heard by every block",
            lambda size, position, walks: torch.stack([_one(size, position, walk) for walk in walks]).all(0),
            "you kept only what every block alone lets the token hear. Blocks add to what is heard; none takes away.",
        ),
        Mistake(
            "the last block alone",
            lambda size, position, walks: _one(size, position, walks[-1]),
            "you looked at the last block alone, as if it read the image itself.",
        ),
        Mistake(
            "the first block alone",
            lambda size, position, walks: _one(size, position, walks[0]),
            "you looked at the first block alone and forgot that the next ones carry its answers on.",
        ),
        Mistake(
            "the earliest of them",
            _nearest,
            "of the tokens heard so far you follow the one that comes first on the walk. It heard least; the one that "
            "comes last has heard all that the others have.",
        ),
    ),
    not_tested="volumes; convolutions inside the blocks; how *much* is heard, which gates and distances decide.",
)

EXERCISES = (HEARD, BOTH_WAYS, HEARD_AFTER)
