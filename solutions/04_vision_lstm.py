# %% [markdown] seconds={"ci": 60, "cpu": 300, "gpu": 300} gigabytes={"ci": 2, "cpu": 3, "gpu": 6}
# # 04 · Vision-LSTM: read an image as a sequence, and classify it
#
# A recurrence reads a line. An image is no line: a pixel has neighbours on all sides, and none comes first. This lesson
# lays images out as sequences and works out, token by token, what can be known where. Then it builds the answer that
# Vision-LSTM gives to this, trains it on images made here, and finds the same network again under timm and in the
# layout in which its weights were released.
#
# **You will be able to**
# * cut an image into tokens, and say why a strided convolution does the same,
# * predict which positions a token hears of on a walk and through several blocks, and check it with a gradient,
# * say what changed from Vision-LSTM version 1 to version 2, and why,
# * train a Vision-LSTM classifier, build it through timm, and load weights in the released layout.
#
# **Time.** 1 minute of computing in profile `cpu` (measured on 2 cores, 1.2 GB of memory), 65 minutes of exercises.
#
# **You need** lessons 01 and 02 (what an mLSTM computes, and that its forms agree), the block of lesson 03,
# convolutions.
#
# **Words.** A [token](../docs/glossary.md#token) is one position of a sequence, here a small square of an image. The
# [scan order](../docs/glossary.md#scan-order) is the walk on which the tokens are laid out. The
# [receptive field](../docs/glossary.md#receptive-field) of an output is the part of the input it depends on; we also
# say that a token *hears* of those positions. [Vision-LSTM](../docs/glossary.md#vision-lstm), ViL for short, is the
# backbone this lesson builds.
#
# **Symbols.**
# * $I$, $C$, $c$: an image, how many channels it has, one of them.
# * $K$, $o$: the weights of a convolution, one of its output channels.
# * $p$, $i$, $j$: side of a square patch; row and column inside it.
# * $Y$, $X$, $S$: rows and columns of the grid of tokens; how many tokens there are, $S = YX$.
# * $y$, $x$: row and column of a token on the grid.
# * $u_s$, $W$, $b$: the patch of token $s$ as one long row; the weights and bias that embed it.
# * $z_s$, $r_s$: token $s$ as the blocks get it, and the position embedding in it.
# * $n(y, x)$: number of a token on a walk, counted from 0; $n(t)$ for short.
# * $t$, $s$, $l$: tokens: one that answers, one that is heard, one in between.
# * $w_{ts}$, $v_s$, $h_t$: what token $s$ weighs for token $t$, its value, the answer at token $t$ (lesson 01).
# * $h'_t$, $h''_t$: what comes out of a first and of a second block.
# * $f$, $\sigma$: pre-activation of a forget gate, and the sigmoid.
# * $H$: the hearing matrix of a walk: $H_{ts} = 1$ where token $t$ hears of token $s$, otherwise 0.
# * $a$: the answer of the classifier, one number a class.

# %%
import copy
import math
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # timm uses a part of PyTorch that is on its way out
    import timm

import xlstm_unet_lab as lab
from xlstm_unet_lab.course import check, choose, estimate, hint, progress, reveal
from xlstm_unet_lab.course.checks.published_reference import mlstm, standardised
from xlstm_unet_lab.course.pictures.comparison import loss_curves, model_comparison
from xlstm_unet_lab.course.pictures.explorers import scan_order_explorer
from xlstm_unet_lab.course.pictures.mechanisms import receptive_field, scan_paths
from xlstm_unet_lab.figures import cases as figures
from xlstm_unet_lab.figures.picture import BLUE, GREEN, ORANGE, VERMILION
from xlstm_unet_lab.figures.training_plot import TrainingPlot
from xlstm_unet_lab.nn.layers import CausalConvolution
from xlstm_unet_lab.nn.mixer import BlockChoice, Mixer
from xlstm_unet_lab.nn.vil import GridConvolution, ViLBlock
from xlstm_unet_lab.ops.scan_order import Traversal, to_grid, to_sequence, traversals, walked_size
from xlstm_unet_lab.plugin.mixer_rows import forget_decay
from xlstm_unet_lab.training.fit import Record

# %% [markdown]
# ## 1 · An image becomes tokens
#
# The images of this lesson are drawn here: a disc, a square, a triangle or a cross, turned and shifted at random, on
# uneven light, under noise. Naming the shape is easy for you. It needs the whole outline, so no small part of the image
# is enough.

# %%
KINDS = {"disc": BLUE, "square": ORANGE, "triangle": GREEN, "cross": VERMILION}
SIZE = 32  # pixels along each side


def draw_shapes(count, seed):
    """Images (count, 1, SIZE, SIZE), the number of each one's kind, and its mask painted with 1 + that number."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(len(KINDS), size=count)
    plane = np.mgrid[:SIZE, :SIZE][:, None]  # (2, 1, y, x)
    dy, dx = plane - SIZE * rng.uniform(0.38, 0.62, (2, count, 1, 1))
    turn, radius = rng.uniform(-0.3, 0.3, (count, 1, 1)), SIZE * rng.uniform(0.22, 0.3, (count, 1, 1))
    down = (np.cos(turn) * dy - np.sin(turn) * dx) / radius
    right = (np.sin(turn) * dy + np.cos(turn) * dx) / radius
    nearer, farther = np.sort(np.abs([down, right]), axis=0)
    inside = np.stack(
        [
            down**2 + right**2 < 1,
            farther < 0.85,
            (np.abs(right) < 0.6 * (down + 1)) & (down < 0.8),
            (nearer < 0.3) & (farther < 1),
        ]
    )
    masks = inside[kinds, np.arange(count)]
    light = (rng.normal(size=(2, count, 1, 1)) * (plane / SIZE - 0.5)).sum(0)
    images = rng.uniform(0.8, 1.4, (count, 1, 1)) * masks + light + rng.normal(scale=0.3, size=masks.shape)
    images = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)
    return torch.tensor(images[:, None]).float(), torch.tensor(kinds), masks * (kinds[:, None, None] + 1)


images, kinds, masks = draw_shapes(4000, seed=0)
test_images, test_kinds, test_masks = draw_shapes(choose(ci=400, cpu=1000), seed=1)

# %% tags=["figure"]
display(figures.samples(list(images[:6].numpy()), list(masks[:6]), KINDS))

# %% [markdown]
# A sequence of pixels would be long: 50,176 tokens for an image of 224 x 224. So the image is cut into **patches** of
# $p \times p$ pixels, and each patch is one token. The patch $u_s$, written as one long row of $C p^2$ numbers for $C$
# channels, goes through a linear layer to the width of the network, and an embedding of its position is added:
#
# $$z_s = W u_s + b + r_s .$$
#
# The order of the numbers inside $u_s$ does not matter, as $W$ is learned, as long as it is the same for all patches.
# By custom it is channel, row, column.
#
# ### Exercise 04.1: an image into tokens
#
# *About 12 minutes, difficulty 2 of 5.* `image` is a tensor (C, y, x); both sides are multiples of `size`. Return one
# row a patch, $(S, C p^2)$: patches in the order a text is read, and inside a patch channel, row, column.


# %% exercise="04.1"
def to_patches(image, size):
    pass  ### SOLUTION


# %%
check("04.1", to_patches)

# %% [markdown]
# In code you will rarely see patches cut. You will see a convolution whose stride is as long as its kernel. Write one
# out: its output channel $o$ at place $(y, x)$ is
#
# $$b_o + \sum_{c, i, j} K_{ocij}\, I_{c,\; py + i,\; px + j},$$
#
# a sum over exactly the pixels of patch $(y, x)$, each with a weight of its own, the same for all patches. Flatten
# $c, i, j$ into one index and it reads $W u_s + b$. So the two are one function; `nn.Unfold` of PyTorch cuts the
# patches here.

# %% tags=["nbval-check-output"]
convolution = nn.Conv2d(3, 10, kernel_size=4, stride=4).double()
image = torch.randn(1, 3, 12, 20, dtype=torch.float64)
patches = nn.Unfold(4, stride=4)(image).mT  # (1, S, 48)
linear = F.linear(patches, convolution.weight.flatten(1), convolution.bias)
assert torch.allclose(linear, to_sequence(convolution(image)), rtol=0, atol=1e-12)
print(f"{tuple(image.shape[1:])} pixels become {patches.shape[1]} patches of {patches.shape[2]} numbers")

# %% [markdown]
# ## 2 · A walk over the grid
#
# The patches still form a grid of $Y$ rows and $X$ columns. A recurrence wants them in a row. A *walk* gives each
# position a number. Row by row, and column by column, these are
#
# $$n(y, x) = yX + x \qquad\text{and}\qquad n(y, x) = xY + y .$$
#
# Backwards the last token comes first, $S - 1 - n(y, x)$. Here are the four walks on a small grid: *x fastest* is row by
# row, *y fastest* column by column. Orange is the marked position, blue what it has behind it. A dashed arrow jumps to
# the next row or column.

# %% tags=["figure"]
display(scan_paths((4, 5), traversals(2, "axes"), position=(1, 2)))

# %% [markdown]
# ### Exercise 04.2: four walks over a grid
#
# *About 10 minutes, difficulty 2 of 5.* `grid` is (C, y, x). Return the tokens $(S, C)$ in the order walked.


# %% exercise="04.2"
def walk(grid, columns_first, backwards):
    pass  ### SOLUTION


# %%
check("04.2", walk)

# %% [markdown]
# The package's `to_sequence(grid, Traversal(fastest, reverse))` does this for a batch and in any number of dimensions;
# `fastest` is the axis along which successive tokens are neighbours, -1 for rows. `to_grid` is the way back.
#
# **What a walk does to distances.** Row by row, the neighbour to the left is one token back,
# $n(y, x) - n(y, x - 1) = 1$. The neighbour above is $n(y, x) - n(y - 1, x) = X$ tokens back, a whole row. A memory
# with a forget gate $\sigma(f)$ keeps $\sigma(f)$ of the one and $\sigma(f)^X$ of the other.
#
# **A surprise to explain.** The same gate, the same image, and only the number of columns changes. How much is left of
# the two neighbours? Vision-LSTM starts its forget gates between $f = 3$ and $f = 6$.

# %% tags=["nbval-check-output", "surprise"]
for columns in (8, 14, 28, 56):
    for f in (3.0, 6.0):
        left = forget_decay(torch.full((1, 1, columns + 1), f, dtype=torch.float64), token=columns)[0, 0]
        print(f"{columns} columns, f = {f:g}: left neighbour {left[-2]:.1%}, neighbour above {left[0]:.1%}")

# %% [markdown]
# Why does a larger image make a network forget? It is the same patch size on more pixels, so more tokens lie between a
# token and the one above. What is next to each other in the image is far apart on the walk, and the farther, the wider
# the image. A head that should compare rows needs a gate very close to 1. Heads that start with different forget gates,
# as those of ViL do, cover both distances. Another remedy is to walk column by column as well.
#
# Could a cleverer walk keep all neighbours close? No. Whatever the numbering, some neighbours on a grid of $Y \times X$
# are at least $\min(Y, X)$ tokens apart (Chvátalová 1975). Walking along the shorter side reaches that already.
#
# ## 3 · Who hears whom
#
# **One block.** The answer of an mLSTM at token $t$ is $h_t = \sum_{s} w_{ts} v_s$ over the tokens $s$ with
# $n(s) \le n(t)$, and $w_{ts}$ is made of the gates, keys and query of tokens up to $t$ (lesson 02). Norms, projections
# and the causal convolution of a block bring in no later token either. So
#
# $$\frac{\partial h_t}{\partial z_s} = 0 \quad\text{wherever}\quad n(s) > n(t).$$
#
# Not small: exactly 0. A token hears $n(t) + 1$ of $S$ tokens, and on average over all of them
#
# $$\frac{1}{S} \sum_{n = 0}^{S - 1} (n + 1) = \frac{1}{S} \cdot \frac{S (S + 1)}{2} = \frac{S + 1}{2},$$
#
# half of the image.
#
# ### Exercise 04.3: who is heard
#
# *About 15 minutes, difficulty 3 of 5.* Return a boolean tensor of shape `size`, true where the token at `position`
# hears of that place on one walk. It hears itself.


# %% exercise="04.3"
def heard(size, position, columns_first, backwards):
    pass  ### SOLUTION


# %%
check("04.3", heard)

# %% [markdown]
# Move the position, and change the walk. The picture and the sentences below it say what is heard. Is there a position
# from which a single walk hears everything? Do two walks that both go forward ever hear everything between them?

# %% tags=["widget"]
explorer = scan_order_explorer((5, 8))
display(explorer)

# %% [markdown]
# The last token of a walk hears everything. Rows forward and columns forward together hear everything only at the last
# corner, and there each alone does already.
#
# **Both ways.** Vision-LSTM's answer is simple: the blocks walk in turn, one from the first token to the last, the next
# from the last to the first. A block itself only knows "first to last". It is the sequence that is turned round.
#
# ### Exercise 04.4: there and back
#
# *About 8 minutes, difficulty 3 of 5.* `forward` and `backward` are functions from tokens $(S, C)$ to tokens. Let the
# first walk `tokens` from first to last, and the second walk *its answers* from last to first. What you return must be
# in the order of `tokens`.


# %% exercise="04.4"
def both_ways(tokens, forward, backward):
    pass  ### SOLUTION


# %%
check("04.4", both_ways)

# %% [markdown]
# **Several blocks.** Call the answers of the first block $h'$ and those of the second $h''$. The chain rule adds up all
# tokens $l$ in between,
#
# $$\frac{\partial h''_t}{\partial z_s} = \sum_l \frac{\partial h''_t}{\partial h'_l} \frac{\partial h'_l}{\partial z_s} .$$
#
# A term is there if $t$ hears $l$ in the second block *and* $l$ heard $s$ in the first. Write $H_{ts} = 1$ where $t$
# hears $s$, one such matrix for each walk. Then the sum counts the ways by which $s$ gets to $t$, and it is an entry of
# a matrix product: the second block's matrix times the first block's.
#
# For there and back one $l$ is enough. The last token of the walk has heard everything in the first block. On the way
# back it comes first, so every token hears it. **After two blocks every token has heard every other.**
#
# **A surprise to explain.** Take two blocks that both go *forward*, one row by row, one column by column. Each alone
# lets a token hear half of the image on average. How much do they after one another? Guess before you run the cell.


# %% tags=["nbval-check-output", "surprise"]
def hearing(size, walk):
    """The matrix of one walk, (S, S): row t, column s is 1 where t hears s. Tokens are counted row by row."""
    number = to_grid(torch.arange(math.prod(size))[None, :, None], size, walk).flatten()
    return (number[None, :] <= number[:, None]).double()


rows, columns, rows_back = (hearing((14, 14), walk) for walk in (Traversal(-1), Traversal(0), Traversal(-1, True)))
blocks = {
    "row by row": rows,
    "row by row, twice": rows @ rows,
    "row by row, then column by column": columns @ rows,
    "row by row, there and back": rows_back @ rows,
}
for name, ways in blocks.items():
    reach = (ways > 0).double()
    print(f"{name:33}: a token hears {reach.mean():.1%} of 14 x 14 tokens, at worst {reach.sum(1).min():.0f} of 196")

# %% [markdown]
# Why so much? Follow the token at $(y, x)$ backwards. The column walk lets it hear all columns left of its own, down to
# the token at the bottom of column $x - 1$. And that one had heard, row by row, everything but the last $X - x$ tokens
# of the image. So for $x \ge 1$ the token at $(y, x)$ hears all but $X - x$ tokens, in the last row one fewer. Two
# forward walks do nearly what there and back does. What they cannot do shows in the last number: the token at the
# corner $(0, 0)$, first on both walks, hears itself alone.
#
# ### Exercise 04.5: who is heard through several blocks
#
# *About 20 minutes, difficulty 4 of 5.* As 04.3, after several blocks. `walks` has one pair
# `(columns_first, backwards)` a block, in the order in which the blocks run. You may use the matrices above or find a
# way without them.


# %% exercise="04.5"
def heard_after(size, position, walks):
    pass  ### SOLUTION


# %%
check("04.5", heard_after)

# %% [markdown]
# **Is it true?** So far this is bookkeeping. The network may do something else: a block has norms, a convolution,
# gates, a residual. Ask it. The derivative of one output by every input is 0 exactly where nothing is heard. Below,
# blocks of the package compute on a grid of 4 x 5, automatic differentiation says what reaches the token at (1, 2), and
# the maps it must give are written down by hand.


# %%
def on_walks(blocks, walks):
    """A grid (B, C, y, x) through blocks one after the other, each on its own walk. `Mixer` of the package is this."""

    def run(grid):
        size = tuple(grid.shape[2:])
        for block, walk in zip(blocks, walks, strict=True):
            grid = to_grid(block(to_sequence(grid, walk), walked_size(size, walk)), size, walk)
        return grid

    return run


def reached(module, size, position, channels=8):
    """How much each position of a random input moves the output at one position: the gradient's size, (y, x)."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(1, channels, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    mixture = torch.randn(channels, dtype=torch.float64, generator=generator)  # of the output's channels
    output = module(grid)[0, :, position[0], position[1]]
    (gradient,) = torch.autograd.grad(output @ mixture, grid)
    return gradient[0].abs().sum(0)


def as_text(boolean_map):
    return ["".join("#" if one else "." for one in row) for row in boolean_map.tolist()]


# %% tags=["independent", "nbval-check-output"]
ROWS, COLUMNS = Traversal(-1), Traversal(0)
BY_HAND = {  # version of the block, walks, what the token at (1, 2) must hear of
    "rows": ("v1", (ROWS,), "##### ###.. ..... ....."),
    "rows back": ("v1", (Traversal(-1, True),), "..... ..### ##### #####"),
    "columns": ("v1", (COLUMNS,), "###.. ###.. ##... ##..."),
    "rows, columns": ("v1", (ROWS, COLUMNS), "##### ##### ##### ##..."),
    "there and back": ("v1", (ROWS, Traversal(-1, True)), "##### ##### ##### #####"),
    "rows, version 2": ("v2", (ROWS,), "##### ##### ####. ....."),
}
torch.manual_seed(0)
for name, (version, walks, expected) in BY_HAND.items():
    module = on_walks([ViLBlock(8, version).double() for _ in walks], walks)
    found = as_text(reached(module, (4, 5), (1, 2)) > 0)
    assert found == expected.split(), (name, found)
    print(f"{name:16} {'   '.join(found)}   {''.join(found).count('#')} of 20")

# %% [markdown]
# All six agree to the last token. The last line, version 2, hears *more* than its walk allows: the next row down to one
# place right of the token. That is no mistake, and section 4 explains it.
#
# **How much** is heard is another matter. The maps below show the size of the same derivative on a larger grid, for the
# token in the middle, before any training. Yellow is the strongest place, each unit down the bar is ten times less, dark
# blue is a thousandth or nothing. `Mixer` is the package's `on_walks`.

# %% tags=["figure"]
size, middle = (17, 17), (8, 8)
fields = {}
for directions in ("forward", "bidirectional", "axes"):
    torch.manual_seed(0)
    mixer = Mixer(BlockChoice("vil"), channels=16, spatial_dims=2, directions=directions).double()
    fields[directions] = reached(mixer, size, middle, channels=16)
    title = f"{directions}: {len(mixer.blocks)} block{'s' * (len(mixer.blocks) > 1)}"
    display(receptive_field(fields[directions], middle, title=title))

# %%
for directions, field in fields.items():
    relative = field / field[middle]
    beside = {"left": (8, 7), "right": (8, 9), "above": (7, 8), "below": (9, 8), "4 left": (8, 4), "4 above": (4, 8)}
    print(f"{directions:13}", ", ".join(f"{name} {relative[place]:.4f}" for name, place in beside.items()))

# %% [markdown]
# The numbers are relative to the token's own influence on its output. Forward, what lies to the right and below is 0,
# as it must be. There and back everything is above 0, but a token next to it in its row counts for several times as
# much as one above or below. With all axes the column is stronger: the last two blocks walked along it. So after two
# blocks every token *can* use the whole image, and what lies on its own line is nearest to hand.
#
# ## 4 · From version 1 to version 2
#
# The block of lesson 03 is that of version 1. It still has a part made for text: a convolution over the token and the
# three before it *on the walk*. What does it hear? Take the first token of a row.

# %% tags=["nbval-check-output"]
size, start_of_row = (4, 5), (2, 0)
torch.manual_seed(0)
on_the_walk = CausalConvolution(8, kernel_size=4).double()
on_the_grid = GridConvolution(8, spatial_dims=2).double()
convolutions = {
    "version 1, on the walk": lambda grid: to_grid(on_the_walk(to_sequence(grid)), size),
    "version 2, on the grid": lambda grid: to_grid(on_the_grid(to_sequence(grid), size), size),
}
for name, convolution in convolutions.items():
    print(f"{name}   {'   '.join(as_text(reached(convolution, size, start_of_row) > 0))}")

# %% [markdown]
# Version 1 looks at the *other side of the image*: on the walk, the end of the row above comes right before the start
# of this row. Version 2 puts the tokens back on their grid and looks at the eight true neighbours. Four of these come
# later on the walk. The convolution feeds queries and keys, and so version 2 hears, besides all tokens up to its own,
# the neighbours of all these: the map of version 1, made one place wider on all sides. There is the extra row of
# section 3.
#
# Version 2 changes four things (Alkin et al., appendix A):
#
# 1. **The convolution** is 3 x 3 on the grid. An image has no direction, so nothing forbids a look ahead.
# 2. **Pooling.** The first and the last token are the ones that end a walk, so they have heard all. Version 1 averages
#    them. Version 2 puts them side by side, $[h_{\mathrm{first}}, h_{\mathrm{last}}]$. The average is a special case,
#    because
#
#    $$a = W \cdot \tfrac12 (h_{\mathrm{first}} + h_{\mathrm{last}}) + b
#    = \left[\tfrac12 W,\ \tfrac12 W\right] \begin{bmatrix} h_{\mathrm{first}} \\ h_{\mathrm{last}} \end{bmatrix} + b ,$$
#
#    and a head that is free to choose two different halves can do that and more.
# 3. **Biases** in all projections and norms. They cost next to nothing.
# 4. **Pairs.** Two blocks, one each way, are counted as one, so that `depth` means a full look at the image. ViL has 12
#    pairs in place of 24 blocks.
#
# The authors report 77.3 % of ImageNet's validation images right with the smallest ViL of version 1 and 78.3 % with
# version 2; part of that comes from another training schedule. What do the changes cost?

# %% tags=["nbval-check-output"]
for version in ("v1", "v2"):
    block = ViLBlock(192, version)
    parts = {"convolution": block.layer.conv, "q, k, v": nn.ModuleList([block.layer.q, block.layer.k, block.layer.v])}
    parts |= {"up and down": nn.ModuleList([block.layer.up, block.layer.down]), "whole block": block}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    print(f"{version}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))

# %% [markdown]
# **An independent check of the block.** Here are both versions once more as plain arithmetic on a block's parameters, with
# none of the package's layers. The recurrence and the norm come from
# [a second program](../xlstm_unet_lab/course/checks/published_reference.py), written from a description of what the
# published code computes: `mlstm` takes one head through the tokens one after the other, `standardised` gives mean 0
# and variance 1. Whatever version 1 lacks, `get` does not find: then there is no bias.


# %%
def plain_block(block, x, size):
    """A ViL block of either version, tokens (B, S, width) -> (B, S, width); size: of the grid."""
    p = dict(block.named_parameters())
    normed = standardised(x) * (1 + p["norm.weight"]) + p.get("norm.bias", 0)
    memory, gate = F.linear(normed, p["layer.up.weight"], p.get("layer.up.bias")).chunk(2, -1)
    kernel = {"weight": p["layer.conv.conv.weight"], "bias": p["layer.conv.conv.bias"], "groups": memory.shape[-1]}
    if kernel["weight"].ndim == 3:  # version 1: this token and the three before it
        c = F.conv1d(F.pad(memory.mT, (3, 0)), **kernel).mT
    else:  # version 2: the eight neighbours
        c = F.conv2d(memory.mT.unflatten(2, size), **kernel, padding=1).flatten(2).mT
    c = F.silu(c)
    q, k, v = (  # four channels at a time, each four with a matrix of their own
        (p[f"layer.{name}.weight"] @ of.unflatten(-1, (-1, 4, 1))).flatten(-3) + p.get(f"layer.{name}.bias", 0)
        for name, of in {"q": c, "k": c, "v": memory}.items()
    )
    gates = F.linear(torch.cat([q, k, v], -1), p["layer.cell.gates.weight"], p["layer.cell.gates.bias"])
    i, f = (part.unbind(-1) for part in gates.chunk(2, -1))  # of four heads
    heads = zip(*(part.chunk(4, -1) for part in (q, k, v)), i, f, strict=True)
    h = torch.cat([standardised(mlstm(*head)) for head in heads], -1)
    h = h * (1 + p["layer.cell.norm.weight"]) + p.get("layer.cell.norm.bias", 0)
    return x + F.linear((h + p["layer.skip"] * c) * F.silu(gate), p["layer.down.weight"], p.get("layer.down.bias"))


# %% tags=["independent"]
generator = torch.Generator().manual_seed(0)
tokens = torch.randn(2, 20, 32, dtype=torch.float64, generator=generator)
for version in ("v1", "v2"):
    block = ViLBlock(32, version).double()
    with torch.no_grad():
        for parameter in block.parameters():  # as drawn, gates and norms would be at rest and hide a mistake
            parameter.normal_(std=0.5, generator=generator)
        difference = float((plain_block(block, tokens, (4, 5)) - block(tokens, (4, 5))).abs().max())
    assert difference < 1e-9
    print(f"{version}: the package's block and the plain one differ by at most {difference:.0e}")

# %% [markdown]
# ## 5 · A classifier in a minute
#
# `lab.VisionLSTM` is the whole network: patch embedding, position embedding, blocks in turn forward and backward,
# pooling of the first and the last token, a linear head. Patches of 8 pixels make a grid of 4 x 4 tokens. Both versions
# get four blocks, the same images and the same steps.

# %%
width, patch = 32, 8


def classifier(version, **options):
    """Four blocks on 4 x 4 tokens; the same numbers every time."""
    torch.manual_seed(0)
    depth = {"v1": 4, "v2": 2}[version]  # blocks in version 1, pairs in version 2
    options |= {"in_channels": 1, "image_size": SIZE, "patch_size": patch, "dim": width, "num_classes": len(KINDS)}
    return lab.VisionLSTM(version, depth=depth, **options)


models = {version: classifier(version) for version in ("v1", "v2")}
for version, model in models.items():
    print(f"{version}: {len(model.blocks)} blocks, {sum(p.numel() for p in model.parameters()):,} weights")


# %%
def train(model, images, kinds, steps, batch=32, learning_rate=3e-3):
    """Train on random batches; yields a record after every step, as `lab.fit` does for segmentation."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    start = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (batch,), generator=generator)
        loss = F.cross_entropy(model(images[chosen]), kinds[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate = schedule.get_last_lr()[0]
        schedule.step()
        seconds = time.perf_counter() - start
        yield Record(step, loss.item(), rate, seconds, step * batch / seconds, memory=None, metrics=None)
    model.eval()


# %% tags=["widget"]
steps = choose(ci=200, cpu=1000)
print(f"two networks, {steps} steps each: {estimate(ci=14, cpu=70)}")
records = {}
for version, model in models.items():
    plot = TrainingPlot(steps)
    display(plot.widget)
    records[f"ViL {version}"] = list(plot.watch(train(model, images, kinds, steps)))

# %% tags=["figure"]
display(loss_curves(records))


# %%
def answers(model, images):
    """The logits of many images, (count, classes)."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(200)])


def with_one(images):
    """Every image as one row of pixels, and a 1 for the bias."""
    return F.pad(images.flatten(1), (0, 1), value=1.0)


logits = {version: answers(model, test_images) for version, model in models.items()}
fitted = torch.linalg.lstsq(with_one(images), F.one_hot(kinds).float()).solution
named = {"a linear map of the pixels": with_one(test_images) @ fitted}
named |= {f"ViL {version}": a for version, a in logits.items()}
right = {name: (a.argmax(1) == test_kinds).double().tolist() for name, a in named.items()}

# %% tags=["figure"]
display(model_comparison(right, metric="share right"))

# %% [markdown]
# In profile `ci` training stops when it has hardly begun. In `cpu` this lesson gave 0.95 for version 2, 0.80 for
# version 1 and 0.64 for the linear map. Guessing names a quarter right. A linear map of the pixels, fitted by least
# squares, is a fairer thing to beat: whatever it gets right needs no network. The intervals say how well each share is
# known from so many test images. They do not say what another seed of the training would give; one run of each version
# settles little.
#
# Look at what version 2 is least sure of, before you trust the share.

# %% tags=["figure"]
chances = logits["v2"].softmax(1)
unsure = chances.amax(1).argsort()[:6].tolist()
names = list(KINDS)
for n in unsure:
    print(f"a {names[test_kinds[n]]}, called a {names[chances[n].argmax()]} with probability {chances[n].max():.2f}")
display(figures.samples([test_images[n].numpy() for n in unsure], [test_masks[n] for n in unsure], KINDS))

# %% [markdown]
# **What has training done to the receptive field?** Section 3 looked at blocks without training. Here is the field of
# one token of version 2, in the middle of the grid after the last block, before and after training: how much each pixel
# moves it, on average over test images.


# %% tags=["figure"]
def token_field(model, images, token):
    """How much each pixel moves one token of the last block, averaged over images: (SIZE, SIZE)."""
    images = images.clone().requires_grad_()
    _, (last,) = model.forward_intermediates(images, [-1])
    (gradient,) = torch.autograd.grad(last[:, :, token[0], token[1]].norm(dim=1).sum(), images)
    return gradient.abs().mean((0, 1))


token, centre = (2, 1), (2 * patch + patch // 2, patch + patch // 2)
fields = {
    "untrained": token_field(classifier("v2").eval(), test_images[:64], token),
    "trained": token_field(models["v2"], test_images[:64], token),
}
for name, field in fields.items():
    by_patch = field.unflatten(1, (-1, patch)).unflatten(0, (-1, patch)).sum((1, 3))  # (4, 4)
    own, row = by_patch[token] / by_patch.sum(), by_patch[token[0]].sum() / by_patch.sum()
    print(f"{name}: {own:.0%} of the field lies in the token's own patch, {row - own:.0%} in the rest of its row")
    display(receptive_field(field, centre, title=name))

# %% [markdown]
# Training changes these maps by little. That every pixel can reach the token is the walks' doing, and was so from the
# start. What training decides is what the token makes of it.
#
# **An independent check of the whole network.** The classifier computes its mLSTMs chunk by chunk. Give the trained
# weights to a second one that walks token by token, the definition of lesson 01. And run it a third time by hand, with
# the plain blocks of section 4: embed, walk there and back in turn, pool, classify. All three must give the same logits.

# %% tags=["independent"]
trained = copy.deepcopy(models["v2"]).double()
by_token = lab.VisionLSTM(
    "v2", in_channels=1, image_size=SIZE, patch_size=patch, dim=width, depth=2, num_classes=len(KINDS), form="recurrent"
).double()
by_token.load_state_dict(trained.state_dict())
few = test_images[:8].double()
with torch.no_grad():
    expected = trained(few)
    tokens = trained.embedding(few) + trained.position.movedim(-1, 1)
    blocks = [partial(plain_block, block) for block in trained.blocks]
    tokens = on_walks(blocks, (Traversal(), Traversal(reverse=True)) * 2)(tokens)
    ends = trained.norm(to_sequence(tokens))[:, [0, -1]].flatten(1)
    by_hand = F.linear(ends, trained.head.weight, trained.head.bias)
    differences = {"token by token": by_token(few) - expected, "by hand": by_hand - expected}
for name, difference in differences.items():
    assert difference.abs().max() < 1e-9, name
    print(f"{name}: largest difference {difference.abs().max():.0e}")

# %% [markdown]
# ## 6 · The same through timm
#
# [timm](https://huggingface.co/docs/timm) holds hundreds of image networks behind one interface. Importing this package
# registers six ViLs with it: three sizes of two versions. Whatever trains or compares networks of timm then takes ViL
# by its name.

# %%
print(", ".join(name for name in timm.list_models("vil*") if name.startswith(("vil_", "vil2_"))))

# %% [markdown]
# The names stand for the published sizes; the options make them smaller. timm has words of its own for them. The
# network is the same class, so the weights trained above fit.

# %% tags=["nbval-check-output"]
options = {"img_size": SIZE, "patch_size": patch, "in_chans": 1, "dim": width, "depth": 2}
from_timm = timm.create_model("vil2_tiny_patch16_224", num_classes=len(KINDS), **options)
from_timm.load_state_dict(models["v2"].state_dict())
assert torch.equal(answers(from_timm.eval(), test_images), logits["v2"])
print("timm's network gives the same logits")
backbone = timm.create_model("vil2_tiny_patch16_224", features_only=True, out_indices=(1, 3), **options)
print("maps after blocks 1 and 3 on a grid of:", [tuple(x.shape[2:]) for x in backbone(test_images[:2])])

# %% [markdown]
# `features_only` gives maps in place of logits: what a detector or a U-Net wants from a backbone.
#
# ## 7 · Loading Vision-LSTM's weights
#
# The authors offer weights trained on ImageNet-1K at `https://ml.jku.at/research/vision_lstm/download/`; their code is
# at `https://github.com/NX-AI/vision-lstm`. Nothing is downloaded here. Instead we write a file in the layout of their
# released classes, with the weights trained above, and load it as one would load theirs. The layout is another one than
# ours: other names, one module for each direction, and the two kinds of gates apart. (The files on that page carry the
# names of the training run, a third set. `lab.load_published` knows it too.)


# %%
RENAMED = {  # our names, the released ones
    "embedding.": "patch_embed.proj.",
    "position": "pos_embed.embed",
    ".up.": ".proj_up.",
    ".down.": ".proj_down.",
    ".q.": ".q_proj.",
    ".k.": ".k_proj.",
    ".v.": ".v_proj.",
    ".conv.conv.": ".conv.",  # in version 1 .conv1d.conv.
    ".skip": ".learnable_skip",
    ".cell.norm.": ".mlstm_cell.outnorm.",
}
DIRECTIONS = ("rowwise_from_top_left", "rowwise_from_bot_right")


def in_released_layout(state):
    """The state dict of a classifier of version 2 under the released names."""
    released = {}
    for name, tensor in state.items():
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            name = f"blocks.{int(number) // 2}.{DIRECTIONS[int(number) % 2]}.{rest}"
        if ".cell.gates." in name:  # rows: input gates of all heads, then forget gates
            for gate, rows in zip(("igate", "fgate"), tensor.chunk(2), strict=True):
                released[name.replace(".cell.gates.", f".mlstm_cell.{gate}.")] = rows.clone()
        else:
            released[name] = tensor.clone()
    return released


released = in_released_layout(models["v2"].state_dict())
of_block = [name for name in released if name.startswith("blocks.1.rowwise_from_bot_right.")]
print(f"{len(models['v2'].state_dict())} tensors of ours, {len(released)} of theirs; those of the last block:")
for name in of_block:
    print(f"    {name.removeprefix('blocks.1.rowwise_from_bot_right.'):30} {tuple(released[name].shape)}")

# %% [markdown]
# `lab.load_published(model, path)` translates the names. It compares every name and every shape first, and changes the
# model only if all of them fit.

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "vil2_shapes.th"
    torch.save({"state_dict": released}, path)
    fresh = classifier("v2").eval()
    before = answers(fresh, test_images)
    lab.load_published(fresh, path)
    assert not torch.equal(before, logits["v2"]) and torch.equal(answers(fresh, test_images), logits["v2"])
    print("loaded: the same logits as the trained network")
    try:
        lab.load_published(classifier("v1"), path)
    except ValueError as error:
        print(f"\ninto version 1, refused: {str(error).splitlines()[0]}")
    released |= {"legacy_norm.weight": torch.ones(2 * width), "legacy_norm.bias": torch.zeros(2 * width)}
    try:
        lab.load_published(classifier("v2"), released)
    except ValueError as error:
        print("with one more norm, refused:", *str(error).splitlines()[1:], sep="\n")
    with_norm = lab.load_published(classifier("v2", second_norm=True).eval(), released)
    assert not torch.allclose(answers(with_norm, test_images), logits["v2"], rtol=0.1)
    print("into a network with that norm: loaded, and its logits are others")

# %% [markdown]
# The last refusal is one you may meet. The authors' ImageNet models were trained with one more norm before the head,
# which they later found unnecessary: `second_norm=True` builds it. (`legacy_norm` is the released name, `second_norm`
# ours. It has 64 numbers because first and last token, 32 each, stand side by side before it.) Here its scale is 1 and
# its offset 0, as at the start of a training, and still the logits change: weights of a network with that norm are
# weights of another function. A loader that skipped what it does not know would give a classifier that runs and is
# wrong. Once you have downloaded their file, this is all:
#
# ```python
# model = timm.create_model("vil2_tiny_patch16_224", second_norm=True)
# lab.load_published(model, "vil2_tiny16_e800_in1k.th")
# ```

# %%
progress("04")

# %% [markdown]
# ## Key points
#
# * A patch embedding is a linear map of patches, and the same thing as a convolution whose stride is its kernel.
# * Row by row, left neighbours are one token apart and upper neighbours a whole row. A wider image means more
#   forgetting.
# * One walk: a token hears what came before it, on average half of the image. There and back: everything.
# * What is heard through several blocks is a product of matrices; gradients confirm it token by token.
# * Version 2 of ViL looks at true neighbours, keeps first and last token apart, and has biases.
# * A loader must refuse what it does not know.
#
# ## What could go wrong
#
# * *The network trains, and its maps look smeared along rows.* Tokens were reshaped to the grid with rows and columns
#   exchanged. Send the numbers 0, 1, 2, ... through and look where they arrive.
# * *Good in training, worse on larger images.* The walk has become longer and the position embedding is interpolated.
#   Test at the size you need, or fine-tune there.
# * *The last tokens are better than the first.* One block too few, or all blocks in the same direction.
# * *`load_published` lists what is missing or unexpected.* Read the names: another version, another depth, another
#   patch size or another number of classes each has its own signature.

# %% [markdown]
# ## An open question
#
# Rows are as good as any walk for the *worst* pair of neighbours. What about the average pair? A Hilbert curve visits
# one quarter of the image after the other; row by row half of all neighbours are 1 apart and half of them $X$. Which of
# the two has the smaller mean distance between neighbours, and which the smaller mean of $\sigma(f)$ to the power of
# that distance? And which of the two numbers should a network care about?

# %% [markdown]
# ## Further reading
#
# * Alkin, Beck, Pöppel, Hochreiter and Brandstetter, *Vision-LSTM: xLSTM as Generic Vision Backbone*, arXiv 2406.04303.
# * Dosovitskiy et al., *An Image is Worth 16x16 Words*, arXiv 2010.11929: patches as tokens.
# * Zhu et al., *Vision Mamba*, arXiv 2401.09417, and Liu et al., *VMamba*, arXiv 2401.10166: two walks, and four.
# * Luo, Li, Urtasun and Zemel, *Understanding the Effective Receptive Field in Deep Convolutional Neural Networks*,
#   arXiv 1701.04128.
# * Chvátalová, *Optimal labelling of a product of two paths*, Discrete Mathematics 11, 249 (1975).

# %% [markdown] tags=["instructor"]
# **For instructors.** 100 minutes: 20 for sections 1 and 2, 45 for section 3, 15 for the versions, the rest for
# training and weights. Let the class guess the share for two forward walks before the cell; most say 75 %, the union of
# two halves, which is also a planted mistake of 04.5. Draw the argument at the board: last column walked, bottom token,
# all rows. With little time leave out sections 6 and 7. The open question can be settled with a few lines of Python. On
# 64 x 64 tokens the mean distance of neighbours is 32.5 row by row and 39.1 on a Hilbert curve, whose farthest
# neighbours are 3,413 apart. Yet with $f = 3$ the mean share kept is 0.50 row by row and 0.76 on the curve: most of its
# neighbours are close, a few very far. Mean distance is the wrong number. But a curve also makes *which* neighbour is
# close depend on the place in the image.
