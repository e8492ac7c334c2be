# %% [markdown] seconds={"ci": 45, "cpu": 540, "gpu": 300} gigabytes={"ci": 2.5, "cpu": 4, "gpu": 8}
# # 06 · xLSTM-UNet: a mixer in the U-Net
#
# A U-Net looks at a window. If what decides the class of a pixel lies outside that window, no training helps. This lesson
# puts a recurrence over all positions, the **mixer**, into the U-Net. You count what it costs, prove on a made image what
# it makes possible, train both networks on a task that needs it, and load weights in the form in which the paper's
# authors released theirs, with all the quirks of their code.
#
# **You will be able to**
# * take a feature map apart into tokens and put it together again, in 2-D and in 3-D,
# * count the weights and multiply-adds of a mixer by hand, and say where they grow,
# * compute how far a U-Net sees, and decide whether a task needs more,
# * choose where mixers stand and which way they walk, and say what a short ablation can tell,
# * load published weights and prove that the network computes what it should.
#
# **Time.** 6 minutes of computing in profile `cpu` (measured on 2 cores, 2.3 GB of memory), 82 minutes of exercises.
#
# **You need** lesson 05 for the U-Net, lesson 04 for tokens and walks, lesson 01 for the mLSTM. Their exercises may be
# unsolved: this lesson uses the package's functions.
#
# **Words.** A [mixer](../docs/glossary.md#mixer) is the sequence block that follows a [stage](../docs/glossary.md#stage)
# of the encoder; each position of the feature map is one [token](../docs/glossary.md#token). The
# [receptive field](../docs/glossary.md#receptive-field) of an output is what it can depend on. The *bottleneck* is the
# deepest stage. A *checkpoint* is a file of weights.
#
# **Symbols.**
# * $S$: number of tokens.
# * $d$, $e$: width of a token, and of the inside of a ViL layer, $e = 2d$.
# * $b$, $H$, $D$: channels in a block of a block-diagonal matrix, number of heads, width of a head.
# * $n$, $s$: number of stages of a U-Net, and one of them, counted from 0.
# * $r_n$: how many rows away from a pixel its output looks at most (upwards), in a U-Net of $n$ stages.

# %%
import copy
import dataclasses
import functools
import math
import warnings

import ipywidgets
import numpy as np
import torch
from IPython.display import display
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm

import xlstm_unet_lab as lab
from data_recipes import phantom_long_range
from xlstm_unet_lab.course import check, choose, current_profile, estimate, hint, progress, reveal
from xlstm_unet_lab.course.checks import published_reference
from xlstm_unet_lab.course.pictures.comparison import lines, loss_curves
from xlstm_unet_lab.course.pictures.explorers import Explorer
from xlstm_unet_lab.course.pictures.mechanisms import receptive_field as picture_of_field
from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.figures import cases as figures
from xlstm_unet_lab.figures.picture import Picture
from xlstm_unet_lab.figures.training_plot import TrainingPlot
from xlstm_unet_lab.models.presets import multiply_adds
from xlstm_unet_lab.nn.conv import InstanceNorm
from xlstm_unet_lab.nn.mixer import BlockChoice, Mixer
from xlstm_unet_lab.nn.vil import ViLLayer
from xlstm_unet_lab.plugin.mixer_rows import receptive_field

# %% [markdown]
# ## 1 · From a grid to a sequence and back
#
# A convolution works on a grid, the mLSTM on a sequence. So a mixer has three steps: lay the feature map out as a row of
# tokens, let a block read the row, and put every answer back where its token came from.
#
# The feature map has the shape (B, C, y, x), or (B, C, z, y, x) for volumes. A token is *one position with all its
# channels*, so the tokens have the shape (B, S, C). Two things must not get lost on the way: which channels belong
# together, and which answer belongs to which position.
#
# ### Exercise 06.1: a grid through a block
#
# *About 10 minutes, difficulty 2 of 5.* Walk row by row, the last axis fastest. With `backwards` the block reads from the
# last token to the first. The same code has to serve images and volumes.


# %% exercise="06.1"
def mix(grid, block, backwards):
    pass  ### SOLUTION


# %%
check("06.1", mix)

# %% [markdown]
# The package's module is `nn.mixer.Mixer`. It holds one block for each walk: one for `directions="forward"`, two for
# `"bidirectional"` (there, then back), and two for every axis for `"axes"`. A feature map goes in and one of the same shape
# comes out, so a mixer can be put behind any stage.

# %% tags=["nbval-check-output"]
for size in ((6, 8), (4, 6, 8)):
    for directions in ("forward", "bidirectional", "axes"):
        mixer = Mixer(BlockChoice("vil"), channels=12, spatial_dims=len(size), directions=directions)
        grid = torch.zeros(2, 12, *size)
        assert mixer(grid).shape == grid.shape
        print(f"{len(size)}-D, {directions:13}: {len(mixer.blocks)} blocks over {math.prod(size):3} tokens")

# %% [markdown]
# ### Which stages get one
#
# The paper has two variants. **Bottleneck** puts one mixer on the deepest feature map. **Encoder** puts mixers behind
# every second stage, counted from the deepest upwards, but not before stage 2, where the maps are still large.
# `lab.build` knows both by name.

# %% tags=["nbval-check-output"]
facts = {"spatial_dims": 2, "in_channels": 1, "num_classes": 3}
for stages in (3, 5, 6):
    for name in ("unet", "xlstm_unet_bot", "xlstm_unet_enc"):
        model = lab.build(name, patch_size=(128, 128), features=(4,) * stages, **facts)
        print(f"{name:14} of {stages} stages: {', '.join(model.config.mixers)}")

# %% [markdown]
# Note that with three stages the two variants are the same network.
#
# ## 2 · What a mixer costs
#
# ### Weights
#
# The block inside is the ViL layer of lesson 04, version 1. Its parts, for tokens of width $d$, with $e = 2d$:
#
# * *up*: a matrix from $d$ to $2e$, no bias. It makes the input of the memory and the output gate of lesson 03.
# * *convolution*: causal, kernel 4, every channel by itself, with bias, on $e$ channels.
# * *q, k, v*: three block-diagonal maps of width $e$, no bias. Block-diagonal: the $e$ channels are cut into $e/b$
#   groups of $b$; each group has a $b \times b$ matrix of its own, and everything between groups is 0. That is $e\,b$
#   numbers in place of $e^2$. Here $b = 4$, or 2 where 4 does not divide $d$.
# * *gates*: input and forget gate, each a matrix with bias from q, k and v side by side to one number a head. There are
#   $H = b$ heads.
# * *norm*: one scale for each of the $e$ channels, no bias.
# * *skip*: one number for each of the $e$ channels.
# * *down*: a matrix from $e$ to $d$, no bias.
#
# ### Exercise 06.2: the weights of a ViL layer
#
# *About 12 minutes, difficulty 2 of 5.* Add them up.


# %% exercise="06.2"
def vil_parameters(width):
    pass  ### SOLUTION


# %%
check("06.2", vil_parameters)

# %% [markdown]
# In letters, part by part:
#
# $$\underbrace{4d^2}_{\mathrm{up}} + \underbrace{10d}_{\mathrm{convolution}} + \underbrace{6db}_{\mathrm{q, k, v}} +
# \underbrace{12db + 2b}_{\mathrm{gates}} + \underbrace{4d}_{\mathrm{norm, skip}} + \underbrace{2d^2}_{\mathrm{down}}
# = 6d^2 + 14d + 18db + 2b .$$
#
# A residual block of two 3 x 3 convolutions has $18d^2$ weights in them, and $54d^2$ in 3-D. A mixer that walks both
# ways has two layers, $12d^2$ and more. So with growing width it tends to two thirds of *one* residual block of the
# same width, in 3-D to 2/9. At widths 320 and 128 it costs 70% and 74% of the block. At width 32 the terms $14d + 18db$
# of each layer still count, and it costs nearly as much as the block, 96%. In 3-D these numbers are 23%, 25% and 32%.

# %% tags=["nbval-check-output"]
for width in (32, 128, 320):
    layer = sum(parameter.numel() for parameter in ViLLayer(width).parameters())
    assert layer == 6 * width**2 + 14 * width + 18 * width * 4 + 8
    flat, solid = (2 * 3**dims * width**2 + 2 * width for dims in (2, 3))  # two convolutions, with their biases
    print(
        f"width {width:3}: ViL layer {layer:7,} weights; two 3 x 3 convolutions {flat:9,}. "
        f"Two layers are {2 * layer / flat:.0%} of these, in 3-D {2 * layer / solid:.0%}"
    )

# %% [markdown]
# ### Multiply-adds
#
# Weights do not say how much there is to compute: a matrix is used once for every token. And the parallel form of lesson 02
# has products in which no weights take part at all.
#
# ### Exercise 06.3: where the cost grows
#
# *About 15 minutes, difficulty 3 of 5.* Count matrix products and the convolution; leave out sums, norms, biases and
# elementwise products. Return two numbers: what grows with $S$, and what grows with $S^2$.


# %% exercise="06.3"
def mixer_cost(tokens, width):
    pass  ### SOLUTION


# %%
check("06.3", mixer_cost)

# %% [markdown]
# All heads together: $H$ heads of width $D = e / H$, two products of $S \times S \times D$ each, make
# $2 S^2 H D = 2 S^2 e = 4 S^2 d$. The two parts are equal where
#
# $$4 S^2 d = S\,(6d^2 + 8d + 18db) \quad\Longleftrightarrow\quad S = \tfrac{3}{2} d + 2 + \tfrac{9}{2} b .$$
#
# For $d = 256$ and $b = 4$ that is 404 tokens, a map of 20 x 20. Below, the small projections dominate; above, the square.
# The released code computes the parallel form only. The package computes the chunkwise form, which has no square. The next
# figure has both, counted by running them on tensors without contents and adding up every product.

# %%
width, sides = 64, (8, 16, 32, 64)
counted = {form: [] for form in ("parallel", "chunkwise")}
for form in counted:
    mixer = Mixer(BlockChoice("vil", mlstm_form=form), width, 2, "forward")
    counted[form] = [multiply_adds(mixer, (1, width, side, side)) for side in sides]
by_hand = [6 * width**2 + 8 * width + 18 * width * 4 + 4 * side**2 * width for side in sides]
by_hand = [side**2 * one for side, one in zip(sides, by_hand, strict=True)]
for side, hand, count in zip(sides, by_hand, counted["parallel"], strict=True):
    print(f"{side**2:4} tokens: by hand {hand:13,}, counted {count:13,}, {count / hand:.3f} times as many")
    assert 1 <= count / hand < 1.5

# %% [markdown]
# What is counted beyond the sum by hand: the package's parallel form also reads from a memory that may be handed in, and
# makes the one to hand on. That is linear in $S$.

# %% tags=["figure"]
display(
    lines(
        [side**2 for side in sides],
        counted | {"parallel, by hand": by_hand},
        x_label="tokens",
        y_label="multiply-adds",
        log_x=True,
        log_y=True,
        dashed=("parallel, by hand",),
    )
)

# %% [markdown]
# ### Memory
#
# Training keeps what the backward pass will need. `saved_tensors_hooks` lets us see every tensor that is kept.


# %%
def kept_megabytes(network, image):
    """What autograd keeps of one forward pass, weights included, in millions of bytes; shared memory counts once."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = network(image)
    assert output.requires_grad  # the graph is alive up to here, and with it all that was kept
    return sum(kept.values()) / 1e6


patch = choose(ci=(64, 64), cpu=(192, 192))
rows = {
    "unet": ("unet", {}),
    "bottleneck": ("xlstm_unet_bot", {}),
    "encoder": ("xlstm_unet_enc", {}),
    "encoder, parallel form": ("xlstm_unet_enc", {"mlstm_form": "parallel"}),
}
for label, (name, options) in rows.items():
    model = lab.build(name, patch_size=patch, features=(8, 16, 32, 64, 96), **facts, **options)
    weights = sum(parameter.numel() for parameter in model.parameters())
    operations = multiply_adds(model, (1, 1, *patch))
    megabytes = kept_megabytes(model, torch.zeros(1, 1, *patch))
    print(f"{label:22} {weights:8,} weights, {operations / 1e6:7.0f} million multiply-adds, {megabytes:6.1f} MB kept")

# %% [markdown]
# The mixers stand where maps are small, so next to the convolutions at full resolution they are cheap. The exception is the
# parallel form at stage 2: the square of the number of tokens is kept, several times, for every head and walk.
#
# `lab.list_models` makes such a table for all networks of the package, at their usual widths, when it is given a patch size.
# Without one it measures nothing and answers at once, as in profile `ci` here.

# %%
print(estimate(ci=1, cpu=10))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # libraries behind the baselines talk about each other
    table = lab.list_models(spatial_dims=2, patch_size=choose(ci=None, cpu=(64, 64)))
table.round(2)

# %% [markdown]
# ## 3 · How far a U-Net sees
#
# Take one pixel of the output and walk back through the network. How many rows away can a pixel of the input lie at
# most and still matter? Call that the **reach** $r_n$. (In lesson 05 $r$ was the whole width of what the encoder sees;
# here it is one side, decoder included.) Every convolution of kernel 3 looks one neighbour further. But what a
# neighbour is depends on the stage: on the map of stage $s$ (strides 2) neighbours lie $2^s$ rows of the image apart.
#
# * Down: the stem and stage 0 have two convolutions each. In a later stage $s$ the first convolution has the stride and
#   reads the finer map, $2^{s-1}$; the second reads its own, $2^s$.
# * Up, into stage $s$: the upsampling copies each value to a small square, and the pixel may sit at its far side: $2^s$.
#   Then two convolutions on that map: $2 \cdot 2^s$.
#
# $$r_n = 4 + \sum_{s=1}^{n-1} \big(2^{s-1} + 2^s\big) + \sum_{s=0}^{n-2} \big(2^s + 2 \cdot 2^s\big).$$
#
# That is the reach upwards. A copied value belongs to the *first* of its positions (lesson 05), so from the far side of
# the square the value lies above. Downwards the upsamplings add nothing, and a network sees
# $\sum_{s=0}^{n-2} 2^s = 2^{n-1} - 1$ rows fewer.
#
# ### Exercise 06.4: is the cue within reach?
#
# *About 20 minutes, difficulty 3 of 5.* A cue lies `rows` rows above the pixel to be decided. How many stages does a
# plain U-Net need at least to see it? A U-Net has two or more.


# %% exercise="06.4"
def stages_needed(rows):
    pass  ### SOLUTION


# %%
check("06.4", stages_needed)

# %% [markdown]
# Both sums are geometric. With $\sum_{s=0}^{n-2} 2^s = 2^{n-1} - 1$ from above,
#
# $$r_n = 4 + 3\,(2^{n-1} - 1) + 3\,(2^{n-1} - 1) = 3 \cdot 2^n - 2 .$$
#
# With three stages that is 22 rows up, and 19 down. The reach doubles with every stage. So does, by custom, the width,
# and the weights of a stage grow fourfold. A plain U-Net with enough stages sees everything. What the mixer offers is
# the whole image at *any* depth.
#
# ### A task that needs more
#
# The phantom `phantom_long_range` is made for this question. At both ends of a long image lie discs. Between them lie two
# marks, one bright, one dark, far from the discs and far from each other. The class of a disc is that of the mark which
# lies nearer. All discs look the same, and every image holds the same things: only their *order* tells.
#
# Here the images are shorter than in the ready-made data set (`lab.prepare("phantom_long_range")`, 384 rows), so that
# training takes minutes. Are they still long enough? A network of three stages has $r_3 = 22$. Its window must never hold two things at
# once, so at least $2 r_3$ clear rows have to lie between any two of them.

# %% tags=["nbval-check-output"]
SIZE = (240, 24)
FEATURES = choose(ci=(4, 8, 8), cpu=(16, 32, 64))
reach = 3 * 2 ** len(FEATURES) - 2
clear = phantom_long_range.clear_rows(SIZE)
print(f"reach {reach} rows; at least {clear} clear rows between discs and marks")
assert clear >= 2 * reach + 4  # the blur of the images widens everything by two pixels on either side


def scenes(seeds):
    """Cases as `fit` takes them. Even seeds have the bright mark first, odd seeds the dark one."""
    cases = []
    for seed in seeds:
        image, label = phantom_long_range.scene(seed, SIZE)
        cases.append(
            {
                "image": torch.from_numpy(normalise(image[None])),
                "label": torch.from_numpy(label).long(),
                "spacing": (1.0, 1.0),
                "name": f"scene {seed}",
            }
        )
    return cases


# %%
training, test = scenes(range(choose(ci=16, cpu=480))), scenes(range(10_000, 10_000 + choose(ci=8, cpu=32)))
colours = phantom_long_range.RECIPE.colours


def on_its_side(maps):
    """Long maps (y, x), turned by a quarter and stacked, as one picture (1, y, x)."""
    strips = [np.pad(np.asarray(one).T, ((2, 2), (0, 0))) for one in maps]
    return np.concatenate(strips)[None]


# %% tags=["figure"]
shown = training[:4]
picture = figures.samples(
    [on_its_side([case["image"][0] for case in shown])], [on_its_side([case["label"] for case in shown])[0]], colours
)
picture.figure.set_size_inches(8, 8.4)  # strips as wide as the page
display(picture)

# %% [markdown]
# Above are four images, below the same with their labels. Each strip is one image, turned by a quarter to save room:
# its first row is at the left. Cover the middle of a strip and try to say the colour of the discs at one end.
#
# ### What the windows say
#
# Take one scene and exchange the two marks. All discs change their class. A network whose windows hold one thing at
# most sees the same windows in both images, each in another place. (This needs one condition. A network with strides
# computes the same at another place only if the shift is a multiple of the product of its strides, here 4. The marks
# lie a multiple of 8 rows apart, and they exchange their rows only.) At the discs themselves *nothing* has changed for
# it. So whatever its weights are, its answer there must be the same in both, and wrong in one of them.
#
# Here are the networks of this lesson, untrained.

# %% tags=["nbval-check-output"]
VARIANTS = {
    "no mixer": {"mixers": ("none", "none", "none")},
    "deepest, both ways": {},
    "deepest, one way": {"directions": "forward"},
    "deepest, both ways, version 2": {"vil_version": "v2"},
    "stage 1, both ways": {"mixers": ("none", "vil", "none")},
}


def network(variant, features=FEATURES):
    """One of the variants, untrained, the same each time."""
    torch.manual_seed(0)
    return lab.build("xlstm_unet_bot", patch_size=SIZE, features=features, **facts, **VARIANTS[variant])


def without_norms(model):
    """A copy in which every instance norm is taken out."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, nn.Identity())
    return model


def twins(seed):
    """The same discs on even ground with the marks in one order and in the other, (1, 1, y, x) each, and the discs."""
    layout = phantom_long_range.draw_layout(phantom_long_range.streams(seed)[0], SIZE, bright_first=True)
    bright, dark = layout.bright.copy(), layout.dark.copy()
    bright[0], dark[0] = dark[0], bright[0]
    pair = [phantom_long_range.paint(one, SIZE) for one in (layout, layout._replace(bright=bright, dark=dark))]
    (first, label), (second, other) = pair
    assert ((label > 0) == (other > 0)).all() and (label != other)[label > 0].all()
    return *(torch.from_numpy(image / 100 - 1)[None, None] for image in (first, second)), label > 0


def change_at_the_ends(model, seed=3):
    """By how much the logits of the discs change when the marks change places, at the first end and at the last.

    Relative to the largest logit.
    """
    first, second, discs = twins(seed)
    with torch.no_grad():
        one, other = (model.double()(image)[0] for image in (first, second))
    change = ((one - other).abs().amax(0) / one.abs().max()).numpy() * discs
    return change[: SIZE[0] // 2].max(), change[SIZE[0] // 2 :].max()


for name in VARIANTS:
    first, last = ("hears" if change > 1e-9 else "blind" for change in change_at_the_ends(without_norms(network(name))))
    print(f"{name:30} {first} at the first end, {last} at the last")

# %% [markdown]
# This is a proof by architecture: no weights were trained. Read the line of the one-way network. A walk from the first row to
# the last passes the discs of the first end *before* it meets a mark. Nothing that comes later can reach them.
#
# **A surprise to explain.** In that cell the instance norms were taken out first. Why? Put them back and ask, for the network
# *without* a mixer, how strongly its output at a pixel depends on pixels beyond its reach.

# %% tags=["surprise"]
position = (12, 12)
image = test[0]["image"]
for what, model in (("with norms", network("no mixer")), ("norms taken out", without_norms(network("no mixer")))):
    field = receptive_field(model.double(), image, position)
    beyond = field[position[0] + reach + 1 :]
    print(
        f"{what:15}: largest derivative beyond {reach} rows {beyond.max() / field.max():.1e} of the largest of all, "
        f"{np.count_nonzero(beyond) / beyond.size:.0%} of those pixels matter"
    )

# %% [markdown]
# A network of convolutions with a reach of 22 rows depends on pixels 200 rows away. How does that news travel? Think before
# you read on.
#
# Instance norm subtracts from every channel the mean *of the whole map* and divides by its deviation. Every pixel moves both
# a little, and both move every pixel. So a U-Net with instance norm does hear of the whole image: through one mean and one
# deviation a channel. Is that enough for our task? For the marks to be told apart by such sums, some window would have to look
# different in the two orders. None does, since the windows moved by a multiple of 4 rows: every sum over the map stays
# what it was. The next cell measures it, now with all norms in place.

# %%
for name in VARIANTS:
    first, last = change_at_the_ends(network(name))
    print(f"{name:30} changes by {first:.0e} at the first end, {last:.0e} at the last")
    assert (max(first, last) < 1e-9) == (name == "no mixer")

# %% [markdown]
# The plain U-Net stays blind. The one-way network is no longer quite deaf at the first end: *behind* the mixer some positions know
# the order of the marks, and the means of the norms that follow carry a trace of it everywhere. Whether training can
# use that trace is another question; section 5 asks it.
#
# ### Look at it
#
# Choose a network and the row of a pixel. The map shows which pixels of the input move its output, down to a thousandth
# of the strongest. It lies on its side, as above: its x counts the rows of the image and its y the columns. The norms
# are in place, so even without a mixer faint specks reach everywhere; the bright stretch, up to 22 rows to either side,
# is what convolutions see. Tab goes from control to control, the arrow keys change it.


# %%
@functools.cache
def measured(variant):
    """An untrained network, with its weights and multiply-adds in words."""
    model = network(variant)
    weights = sum(parameter.numel() for parameter in model.parameters())
    words = f"{variant}: {weights:,} weights, {multiply_adds(model, (1, 1, *SIZE)) / 1e6:.0f} million multiply-adds."
    return model, words


def draw(variant, row):
    model, words = measured(variant)
    field = torch.from_numpy(receptive_field(model, image, (row, 12)))
    picture = picture_of_field(field.T, (12, row), title=f"{variant}: what moves the output at row {row}")
    picture.figure.set_size_inches(9, 3.2)  # a long strip on its side, and room for the words of the scale
    return Picture(picture.figure, f"{words} On its side, x counts rows: {picture.description}")


# %% tags=["widget"]
style = {"style": {"description_width": "8rem"}, "layout": {"width": "28rem"}}
explorer = Explorer(
    draw,
    variant=ipywidgets.Dropdown(options=list(VARIANTS), value="deepest, one way", description="network", **style),
    row=ipywidgets.IntSlider(value=120, max=SIZE[0] - 1, description="row", continuous_update=False, **style),
)
display(explorer)

# %% tags=["figure"]
display(draw("no mixer", 120), draw("deepest, both ways", 120))

# %% [markdown]
# ## 4 · The phantom, trained
#
# Being able to hear is not yet understanding. So train: the plain U-Net, made wider until it has no fewer weights,
# against the same network with a mixer at its deepest stage. Same images, same steps, same learning rate.
# In profile `ci` the networks are tiny and take a handful of steps: that shows only that everything runs.

# %%
settings = lab.TrainConfig(
    patch_size=SIZE,
    steps=choose(ci=4, cpu=350, gpu=700),
    batch_size=choose(ci=2, cpu=8),
    learning_rate=3e-3,
    augment=Augmentation(
        rotate=False, turn_probability=0, probability=0.2, blur_probability=0, low_resolution_probability=0
    ),  # mirrored, the order of the marks keeps its meaning
    seed=0,
)
WIDER = tuple(math.ceil(1.25 * width) for width in FEATURES)
contest = {"plain U-Net, wider": network("no mixer", WIDER), "with a mixer": network("deepest, both ways")}
for name, model in contest.items():
    print(f"{name:20} {sum(parameter.numel() for parameter in model.parameters()):8,} weights")

# %% tags=["widget"]
print(estimate(ci=3, cpu=110, gpu=40))
runs = {}
for name, model in contest.items():
    plot = TrainingPlot(settings.steps)
    display(plot.widget)
    runs[name] = list(plot.watch(lab.fit(model, training, None, settings)))

# %% tags=["figure"]
display(loss_curves(runs))

# %% [markdown]
# In profile `cpu` the plain network learns at once to find the discs, and then guesses: half of them are of either
# class. Its loss stops where guessing stops. (In `ci` neither network has learnt anything yet.) Now the held-out
# scenes: of the pixels that belong to discs, what share gets the right class, and what share is missed, that is, taken
# for background?


# %%
def labels_of(model):
    """The predicted labels of all held-out scenes."""
    return [lab.predict(model, case["image"].numpy(), patch_size=SIZE) for case in test]


def right_at_the_ends(predictions):
    """For each held-out scene, the share of disc pixels that got their class: at the first end, at the last."""
    shares = {"first end": [], "last end": []}
    for prediction, case in zip(predictions, test, strict=True):
        truth, half = case["label"].numpy(), SIZE[0] // 2
        for end, rows in (("first end", slice(0, half)), ("last end", slice(half, None))):
            discs = truth[rows] > 0
            shares[end].append(np.mean((prediction[rows] == truth[rows])[discs]))
    return shares


def share_missed(predictions):
    """Of the disc pixels of all held-out scenes, the share that was taken for background."""
    taken = [prediction[case["label"].numpy() > 0] == 0 for prediction, case in zip(predictions, test, strict=True)]
    return np.concatenate(taken).mean()


predicted = {name: labels_of(model) for name, model in tqdm(contest.items(), "predicting")}
right = {name: right_at_the_ends(predictions) for name, predictions in predicted.items()}
for name, ends in right.items():
    words = ", ".join(f"{np.mean(shares):.0%} right at the {end}" for end, shares in ends.items())
    print(f"{name:20} {words}; {share_missed(predicted[name]):.0%} missed")
if current_profile().name != "ci":
    plain, mixed = (np.mean([*ends["first end"], *ends["last end"]]) for ends in right.values())
    assert mixed > plain + 0.2

# %% tags=["figure"]
display(
    figures.score_strip(
        {end: {name: right[name][end] for name in right} for end in ("first end", "last end")},
        metric="share of disc pixels that got their class",
        case="scene",
    )
)

# %% tags=["figure"]
shown = range(8)
pictures = on_its_side([test[n]["image"][0] for n in shown]), on_its_side([test[n]["label"] for n in shown])[0]
for name, predictions in predicted.items():
    display(figures.comparison(*pictures, on_its_side([predictions[n] for n in shown])[0], colours, title=name))

# %% [markdown]
# In profile `ci` nothing has been learnt, and every disc, or nearly every one, is *missed*. A run in profile `cpu` on
# two cores gave, over 32 scenes:
#
# | network | right at the first end | right at the last end | missed |
# |---|---|---|---|
# | plain U-Net, wider | 52% | 49% | 0% |
# | with a mixer | 100% | 100% | 0% |
#
# There the plain network's errors are *confused*, not *missed*: it finds the discs and cannot name them. In a single
# image it may be right by luck at one end, which is why many scenes are needed.
#
# ## 5 · Which mixer, and where? An ablation
#
# Three choices, changed one at a time: the direction (both ways or one way, as published), the version of the ViL layer, and
# the stage. The steps are those of section 4, and the first row is the network trained there.

# %%
print(estimate(ci=4, cpu=190, gpu=60))
ablation = {"deepest, both ways": right["with a mixer"]}
for name in ("deepest, one way", "deepest, both ways, version 2", "stage 1, both ways"):
    model = network(name)
    plot = TrainingPlot(settings.steps)
    display(plot.widget)
    runs[name] = list(plot.watch(lab.fit(model, training, None, settings)))
    contest[name], ablation[name] = model, right_at_the_ends(labels_of(model))
for name, ends in ablation.items():
    words = ", ".join(f"{np.mean(shares):.0%} right at the {end}" for end, shares in ends.items())
    print(f"{name:30} {words}; {measured(name)[1].partition(': ')[2]}")

# %% tags=["figure"]
display(loss_curves({name: records for name, records in runs.items() if name != "plain U-Net, wider"}))

# %% [markdown]
# In profile `ci` there is nothing to compare yet. The same run in profile `cpu` on two cores gave:
#
# | mixer | right at the first end | right at the last end | weights | million multiply-adds |
# |---|---|---|---|---|
# | deepest, both ways | 100% | 100% | 180,323 | 204 |
# | deepest, one way | 100% | 100% | 150,171 | 187 |
# | deepest, both ways, version 2 | 100% | 100% | 183,395 | 205 |
# | stage 1, both ways | 100% | 100% | 137,891 | 208 |
#
# Look at the first end of the one-way network. Its walk passes those discs *before* it meets a mark. Taken on its own
# it must guess there, so 50%. In the table it does better than that. How does the order of the marks get back to the
# first rows? You have met the only way there is.
#
# Test it on the trained network. Exchange the marks of a scene again, but let every instance norm keep the means and deviations
# it had *before* the exchange.


# %%
def change_with_kept_norms(model, seed=3):
    """As `change_at_the_ends`, but for the second image every norm uses the means and deviations of the first."""
    first, second, discs = twins(seed)
    model, kept = copy.deepcopy(model).cpu().double(), {}

    def keep(norm, inputs, _):
        kept[norm] = torch.var_mean(inputs[0], (2, 3), correction=0, keepdim=True)

    def use_kept(norm, inputs, _):
        variance, mean = kept[norm]
        x = (inputs[0] - mean) / torch.sqrt(variance + 1e-5)
        return x * norm.weight[:, None, None] + norm.bias[:, None, None]

    logits = []
    for image, hook in ((first, keep), (second, use_kept)):
        handles = [part.register_forward_hook(hook) for part in model.modules() if isinstance(part, InstanceNorm)]
        with torch.no_grad():
            logits.append(model(image)[0])
        for handle in handles:
            handle.remove()
    change = ((logits[0] - logits[1]).abs().amax(0) / logits[0].abs().max()).numpy() * discs
    return change[: SIZE[0] // 2].max(), change[SIZE[0] // 2 :].max()


for name in ("deepest, one way", "with a mixer"):
    live, fixed = change_at_the_ends(copy.deepcopy(contest[name]).cpu()), change_with_kept_norms(contest[name])
    print(f"{name:17} norms as they are: {live[0]:.0e} at the first end, {live[1]:.0e} at the last")
    print(f"{name:17} norms kept:        {fixed[0]:.0e} at the first end, {fixed[1]:.0e} at the last")
    assert (fixed[0] < 1e-9) == (name == "deepest, one way")

# %% [markdown]
# With its norms held still the one-way network is blind at the first end. So the news did travel through them: the mixer marks
# positions behind the second mark, a mean adds them up, and the next layer reads the mean everywhere. One bit for the whole
# image fits through that gap, and this task asks for one bit. It would not carry *where* something is.
#
# **What this can tell, and what not.** Each row is one run with one seed, short, on one made task. A row at 100% proves that
# such a network *can* learn the task. A row near 50% proves nothing by itself: it may need more steps or another learning
# rate. And two rows that both succeed must not be ranked by a few per cent. What is certain here comes from section 3, where
# no training was involved.
#
# ## 6 · The published networks
#
# The authors of xLSTM-UNet released code. Weights trained with it fit only a network that computes exactly the same, and the
# code does several things that its paper does not say:
#
# * **One way.** Every mixer walks from the first row to the last, never back.
# * **Block counts cut.** The plan asks for so many residual blocks a stage. (A *plan* is the list of numbers that
#   nnU-Net derives from a data set: patch size, widths, strides, blocks a stage.) In the deeper stages of the encoder,
#   and in the *finest* stages of the decoder (its list runs from the deepest up), the code uses one.
# * **No last skip.** In 2-D the decoder's full-resolution stage gets no skip connection. In 3-D it does.
# * **Other stages.** In the variant `enc` stage 1 (2-D), or stages 0 to 2 (3-D), get one more residual block. And in
#   3-D *every* stage from 3 on has a mixer, not every second one.
# * **Channels as tokens.** In `enc`, where a map has no more positions than channels, the axes are exchanged: every channel
#   becomes a token whose width is the number of positions. So those weights fit one patch size only.
# * **Repeats.** The decoder holds a second reference to the encoder, so the file holds the encoder twice; residual blocks
#   that keep their width list their parameters twice; and each mixer owns a norm that it never uses.
#
# `lab.published_config` takes the numbers of a plan and gives the configuration with all of this.

# %% tags=["nbval-check-output"]
plan = published_reference.FACTS
config = lab.published_config(**plan, deep_supervision=True)
print("residual blocks, encoder:", plan["encoder_blocks"], "->", config.encoder_blocks)
print("residual blocks, decoder:", plan["decoder_blocks"], "->", config.decoder_blocks, "(deepest first)")
print("after each stage:", ", ".join(config.mixers), "| walks:", config.directions)
print("skip at full resolution:", config.full_resolution_skip)
for stage, (size, channels) in enumerate(zip(config.grid_sizes(), config.features, strict=True)):
    if config.mixers[stage] == "vil":
        swapped = config.channel_tokens and math.prod(size) <= channels
        print(
            f"stage {stage}: {math.prod(size)} positions, {channels} channels:",
            ["positions", "channels"][swapped],
            "are tokens",
        )

# %% [markdown]
# ### Names
#
# A checkpoint is a dictionary from names to tensors. Here is what a released one looks like: a very narrow network with
# random weights that comes with this lesson, under the published names and with all repeats. Shown are the names of *one*
# convolution, and of one norm that nothing uses.

# %% tags=["nbval-check-output"]
golden = load_file(published_reference.GOLDEN)
released = {name.removeprefix("weights."): x for name, x in golden.items() if name.startswith("weights.")}
ours = lab.UNet(config).state_dict()
print(len(released), "tensors in the file,", len(ours), "in our network")
for name in released:
    if ("stem.1.conv1." in name and released[name].ndim == 4) or "encoder.xlstm_layers.4.norm" in name:
        print(" ", name, tuple(released[name].shape))

# %% [markdown]
# ### Exercise 06.5: published names into ours
#
# *About 25 minutes, difficulty 4 of 5.* Given a list of published names, return a dictionary from each name that is needed to
# the name it has here. The rules:
#
# * A network trained on several GPUs has `module.` before every name. It goes.
# * Not needed: names that begin with `decoder.encoder.`, names that hold `.all_modules.`, and the unused norms,
#   `xlstm.norm.*` and `encoder.xlstm_layers.N.norm.*`.
# * `decoder.seg_layers.` is `decoder.heads.` here, `decoder.upsample_layers.` is `decoder.upsamplings.`, and
#   `encoder.xlstm_layers.` is `encoder.mixers.`
# * In residual blocks that keep their width, `.conv1.conv.` is `.conv1.` here and `.conv1.norm.` is `.norm1.`; the same for 2.
# * `.conv3.`, the 1 x 1 convolution around a residual block, is `.projection.`
# * Everything else stays as it is, what follows `.vil.` too.


# %% exercise="06.5"
def rename(names):
    pass  ### SOLUTION


# %%
check("06.5", rename)

# %% [markdown]
# `lab.load_published` does this, knows the names inside a ViL layer as well, and joins the two gate maps into one. It refuses a
# checkpoint that leaves a parameter open or brings one too many, and then leaves the model as it was. That makes it a test of
# the configuration. Change one quirk at a time:

# %% tags=["nbval-check-output"]
wrong = {
    "walks both ways": {"directions": "bidirectional"},
    "a skip at full resolution": {"full_resolution_skip": True},
    "positions as tokens everywhere": {"channel_tokens": False},
    "block counts as in the plan": {"encoder_blocks": plan["encoder_blocks"]},
    "a mixer at stage 3": {"mixers": ("none", "resblock", "vil", "vil", "vil")},
}
for what, changes in wrong.items():
    try:
        lab.load_published(lab.UNet(dataclasses.replace(config, **changes)), released)
    except ValueError as error:
        print(f"{what}: refused,", str(error).splitlines()[0].partition(", ")[2].rstrip(":"))

# %% [markdown]
# ### Right names, right numbers?
#
# That every tensor found a place does not prove that the network computes the right thing: a gate read in the wrong order, a
# flipped sign, a norm with another epsilon would all load. For that one needs a **golden case**: an input and the output
# the right network gives for it.
#
# A golden output must come from elsewhere than from the code it checks. This one was computed by
# [a second program](../xlstm_unet_lab/course/checks/published_reference.py), written from a description of what the
# released code computes, as plainly as possible: one token after the other in float64, with PyTorch's functions alone and
# none of the package's layers. That program in turn agrees with outputs of the released networks (a test holds it to them).

# %% tags=["independent"]
for form in ("recurrent", "parallel", "chunkwise"):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = lab.UNet(dataclasses.replace(config, mlstm_form=form))
        lab.load_published(model.to(dtype), released)
        with torch.no_grad():
            outputs = model(golden["input"].to(dtype))
        expected = [golden[f"output.{level}"] for level in range(len(outputs))]
        differences = [float((y - x).abs().max() / x.abs().max()) for y, x in zip(outputs, expected, strict=True)]
        print(
            f"{form:10} {str(dtype).removeprefix('torch.')}: largest difference {max(differences):.0e} of the largest logit"
        )
        assert max(differences) < tolerance

# %% [markdown]
# Is the case sharp enough to notice a mistake? Break one thing at a time and see. A golden case in which nothing changes would
# be worth nothing: this is why its weights are random everywhere, also where a fresh network has only zeros and ones.


# %%
def gates_exchanged(state):
    return {
        name.replace("igate", "TMP").replace("fgate", "igate").replace("TMP", "fgate"): x for name, x in state.items()
    }


def scales_without_the_one(state):
    return {name: x - 1 if name.endswith("outnorm.weight") else x for name, x in state.items()}


def no_skip(state):
    return {name: 0 * x if "learnable_skip" in name else x for name, x in state.items()}


for breaking in (gates_exchanged, scales_without_the_one, no_skip):
    model = lab.load_published(lab.UNet(config).double(), breaking(released))
    with torch.no_grad():
        output = model(golden["input"].double())[0]
    difference = float((output - golden["output.0"]).abs().max() / golden["output.0"].abs().max())
    assert difference > 1e-3
    print(f"{breaking.__name__:22} changes the output by {difference:.0%} of the largest logit")

# %% [markdown]
# Note what all three have in common: every name and every shape was right.
#
# ### One patch size
#
# Channels as tokens bind the weights to the size of the map. Another image size is refused, with the reason:

# %% tags=["nbval-check-output"]
model = lab.load_published(lab.UNet(config), released)
try:
    model(torch.zeros(1, 1, 96, 32))
except ValueError as error:
    print(error)

# %% [markdown]
# ### What the report claims
#
# Read the tables of the report with what you now know. On 3-D abdominal MRI its best mean Dice, 0.8483, is above nnU-Net's
# 0.8309 and *below* that of U-Mamba_Enc, 0.8501 (Ma et al., table 3). Each number is one seed, and where the
# report gives deviations between cases they are as large as 0.30 (endoscopy, Dice). Whether a mixer helps on organs is a question of statistics. That it makes a task solvable
# which a small U-Net cannot solve, you have seen: by proof first, then by training.

# %%
progress("06")

# %% [markdown]
# ## Key points
#
# * A mixer is a grid laid out as tokens, a sequence block, and the way back. It keeps the shape, so it fits behind any stage.
# * Its weights grow as $6d^2$ a walk. In the parallel form its multiply-adds and memory grow with $S^2$, in the chunkwise form with $S$.
# * A plain U-Net of $n$ stages reaches $3 \cdot 2^n - 2$ rows; instance norm lets sums over the whole image through, and no more.
# * One walk does not show the first tokens what comes later. Two do. A bit may come back through the means of norms.
# * Published weights need the published quirks. Names and shapes that fit are no proof: compare numbers with a golden case.
#
# ## What could go wrong
#
# * *The mixer learns nothing, the shapes are right.* `reshape` in place of exchanging axes: tokens made of mixed channels.
# * *Out of memory from one patch size to the next.* The parallel form at an early stage; the square of the number of positions.
# * *A checkpoint loads and predicts nonsense.* It was trained for another patch size whose deepest map has as many positions, in another
#   shape; or the images were normalised in another way.
# * *A mixer brings nothing.* The task may need no more than the reach has. Compute it first.
# * *The loss turns NaN in float16.* Users of the released code met that; gates are exponents. bfloat16 or float32 for gates.

# %% [markdown]
# ## An open question
#
# A plain U-Net of seven stages has a reach of 382 rows, more than our images. It *could* solve the phantom without any mixer.
# Will it, with as many weights and steps? Choose widths, train it (`features` with seven entries), and say what your result
# tells about mixers, and what about depth. Why is the input at the edge of the reach harder to use than the input in its middle?

# %% [markdown]
# ## Further reading
#
# * Chen, Ding, Wang et al., *xLSTM-UNet can be an Effective 2D & 3D Medical Image Segmentation Backbone with Vision-LSTM
#   (ViL) better than its Mamba Counterpart*, arXiv 2407.01530.
# * Ma, Li and Wang, *U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation*, arXiv 2401.04722.
# * Alkin et al., *Vision-LSTM: xLSTM as Generic Vision Backbone*, arXiv 2406.04303.
# * Isensee et al., *nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation*, arXiv 2404.09556.
# * Luo et al., *Understanding the Effective Receptive Field in Deep Convolutional Neural Networks*, arXiv 1701.04128.

# %% [markdown] tags=["instructor"]
# **For instructors.** 120 minutes: 25 for section 1 and the weights, 25 for the costs, 30 for section 3, 20 while the networks
# train, 20 for the published networks. Start the training cell of section 4 before the break. Points to discuss: why the
# proof of section 3 needs the norms out and why the plain network stays blind with them in; what an honest ablation would
# need (seeds, a budget for tuning each row, several tasks); why a test computed by the tested code proves nothing. In 06.3
# most students halve the matrix because of the mask; let them find out what a matrix product computes. In 06.5 the usual
# failure is shortening `.conv.` everywhere. With little time leave out 06.4's derivation and hand out $r_n = 3 \cdot 2^n - 2$.
