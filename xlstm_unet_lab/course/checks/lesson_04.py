"""Lesson 04, first part: an image into tokens, and walks over the grid they form."""

from xlstm_unet_lab.course.checks.random_cases import counting, random_tensor
from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# ---------------------------------------------------------------------------------------- 04.1, an image into patches


def to_patches(image, size):
    channels, rows, columns = image.shape
    cut = image.reshape(channels, rows // size, size, columns // size, size)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, channels * size * size)


TO_PATCHES = exercise(
    "04.1",
    to_patches,
    cases=(
        Case("a 4 x 4 image of one channel in patches of 2", (counting(1, 4, 4), 2)),
        Case("a 4 x 6 image, wider than high", (counting(1, 4, 6), 2)),
        Case("three channels", (counting(3, 4, 6), 2)),
        Case("patches of one pixel: the image row by row", (counting(2, 3, 5), 1)),
        Case("patches of 4 in a 12 x 8 image", (random_tensor(2, 12, 8), 4)),
    ),
    mistakes={
        "reshape alone": ("cut.permute(1, 3, 0, 2, 4)", "cut"),
        "column by column": ("(1, 3, 0, 2, 4)", "(3, 1, 0, 2, 4)"),
        "channels last": ("(1, 3, 0, 2, 4)", "(1, 3, 2, 4, 0)"),
        "patches turned": ("(1, 3, 0, 2, 4)", "(1, 3, 0, 4, 2)"),
        "overlapping": (
            (
                "image.reshape(channels, rows // size, size, columns // size, size)",
                "image.unfold(1, size, 1).unfold(2, size, 1)",
            ),
            ("(1, 3, 0, 2, 4)", "(1, 2, 0, 3, 4)"),
        ),
    },
)

# ----------------------------------------------------------------------------------------- 04.2, another walk


def walk(grid, columns_first, backwards):
    grid = grid.mT if columns_first else grid
    tokens = grid.flatten(1).T
    return tokens.flip(0) if backwards else tokens


WALK = exercise(
    "04.2",
    walk,
    cases=(
        Case("row by row", (counting(1, 2, 3), False, False)),
        Case("row by row, backwards", (counting(1, 2, 3), False, True)),
        Case("column by column", (counting(1, 2, 3), True, False)),
        Case("column by column, backwards", (counting(1, 2, 3), True, True)),
        Case("two channels, column by column, backwards", (counting(2, 3, 4), True, True)),
    ),
    mistakes={
        "never column by column": ("grid.mT if columns_first else grid", "grid"),
        "rows upside down": ("tokens.flip(0)", "grid.flip(1).flatten(1).T"),
        "lines mirrored": ("tokens.flip(0)", "grid.flip(2).flatten(1).T"),
        "channels turned round": ("tokens.flip(0)", "tokens.flip(1)"),
        "never backwards": ("tokens.flip(0) if backwards else tokens", "tokens"),
    },
)

EXERCISES = (TO_PATCHES, WALK)
