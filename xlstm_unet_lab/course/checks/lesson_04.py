"""Lesson 04, first part: an image into tokens, and walks over the grid they form."""

from xlstm_unet_lab.course.checks.random_cases import counting, random_tensor
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# ---------------------------------------------------------------------------------------- 04.1, an image into patches


def to_patches(image, size):
    channels, rows, columns = image.shape
    cut = image.reshape(channels, rows // size, size, columns // size, size)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, channels * size * size)


TO_PATCHES = Exercise(
    number="04.1",
    title="an image into tokens",
    goal="Write `to_patches(image, size)`: cut an image (C, y, x) into square patches and return one row a patch, "
    "(S, C * size * size).",
    minutes=12,
    difficulty=2,
    reference=to_patches,
    cases=(
        Case("a 4 x 4 image of one channel in patches of 2", (counting(1, 4, 4), 2)),
        Case("a 4 x 6 image, wider than high", (counting(1, 4, 6), 2)),
        Case("three channels", (counting(3, 4, 6), 2)),
        Case("patches of one pixel: the image row by row", (counting(2, 3, 5), 1)),
        Case("patches of 4 in a 12 x 8 image", (random_tensor(2, 12, 8), 4)),
    ),
    hints=(
        "Give patches, and places in them, axes of their own: (C, rows of patches, size, columns of patches, size).",
        "Tokens go row by row: rows of patches first, then columns of patches; inside a token channel, row, column.",
        "`image.reshape(C, y // p, p, x // p, p).permute(1, 3, 0, 2, 4)`, then reshape to (S, C * p * p).",
    ),
    mistakes=(
        Mistake("reshape alone", "cut.permute(1, 3, 0, 2, 4)", "cut").says(
            "`reshape` only counts on in memory: your first row holds neighbouring pixels of one line, not a square. "
            "Give rows and columns axes of their own and permute them."
        ),
        Mistake("column by column", "(1, 3, 0, 2, 4)", "(3, 1, 0, 2, 4)").says(
            "your patches come column by column. Read as a text is read: along the first row of patches, then the next."
        ),
        Mistake("channels last", "(1, 3, 0, 2, 4)", "(1, 3, 2, 4, 0)").says(
            "inside a token your channels vary fastest. A convolution's weights have the channels first: C, then row, "
            "then column."
        ),
        Mistake("patches turned", "(1, 3, 0, 2, 4)", "(1, 3, 0, 4, 2)").says(
            "inside a token rows and columns are exchanged: every patch is transposed."
        ),
        Mistake(
            "overlapping",
            ("image.reshape(channels, rows // size, size, columns // size, size)", "(1, 3, 0, 2, 4)"),
            ("image.unfold(1, size, 1).unfold(2, size, 1)", "(1, 2, 0, 3, 4)"),
        ).says("your patches overlap: they move on by one pixel. They should move on by their own size."),
    ),
    not_tested="sizes that the patch does not divide, which should be refused; volumes.",
)

# ----------------------------------------------------------------------------------------- 04.2, another walk


def walk(grid, columns_first, backwards):
    grid = grid.mT if columns_first else grid
    tokens = grid.flatten(1).T
    return tokens.flip(0) if backwards else tokens


WALK = Exercise(
    number="04.2",
    title="four walks over a grid",
    goal="Write `walk(grid, columns_first, backwards)`: the tokens (S, C) of a grid (C, y, x) in the order walked.",
    minutes=10,
    difficulty=2,
    reference=walk,
    cases=(
        Case("row by row", (counting(1, 2, 3), False, False)),
        Case("row by row, backwards", (counting(1, 2, 3), False, True)),
        Case("column by column", (counting(1, 2, 3), True, False)),
        Case("column by column, backwards", (counting(1, 2, 3), True, True)),
        Case("two channels, column by column, backwards", (counting(2, 3, 4), True, True)),
    ),
    hints=(
        "Row by row is how the grid lies in memory: flatten y and x, then bring the channels to the end.",
        "Column by column is row by row of the transposed grid: `grid.mT` exchanges the last two axes.",
        "Backwards is the whole sequence turned round, from the last token to the first: `tokens.flip(0)`.",
    ),
    mistakes=(
        Mistake("never column by column", "grid.mT if columns_first else grid", "grid").says(
            "you walk row by row whatever `columns_first` says."
        ),
        Mistake("rows upside down", "tokens.flip(0)", "grid.flip(1).flatten(1).T").says(
            "going backwards you start at the right row and still walk it from left to right. Backwards, the whole "
            "sequence is turned round: the last token comes first."
        ),
        Mistake("lines mirrored", "tokens.flip(0)", "grid.flip(2).flatten(1).T").says(
            "going backwards you mirror every line and still begin at the first one. The last token of all comes first."
        ),
        Mistake("channels turned round", "tokens.flip(0)", "tokens.flip(1)").says(
            "you turned the channels round. Turn the tokens round, axis 0 of (S, C)."
        ),
        Mistake("never backwards", "tokens.flip(0) if backwards else tokens", "tokens").says(
            "you walk forward whatever `backwards` says."
        ),
    ),
    not_tested="volumes, where any of three axes can run fastest; the way back to the grid.",
)

EXERCISES = (TO_PATCHES, WALK)
