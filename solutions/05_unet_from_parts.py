# %% [markdown] seconds={"ci": 40, "cpu": 360, "gpu": 360} gigabytes={"ci": 2, "cpu": 3, "gpu": 6}
# # 05 · A U-Net from its parts, and what each part is for
#
# Nearly every network that segments medical images is a U-Net, and so is an xLSTM-UNet: lesson 06 only puts the mixer
# into it. This lesson takes the U-Net apart. You write every part, work out its size by hand, put the parts together,
# and find the same numbers as the package. Then you take a part away again, train, and measure what is missing.
#
# **You will be able to**
# * work out sizes, weights and receptive fields of a stack of convolutions, in 2-D and 3-D, by hand,
# * write instance norm and the residual block, and say what each of them changes and what it hides,
# * assemble an encoder and a decoder with skips, for images of any size,
# * say what a skip is for, with numbers: by taking it away and measuring.
#
# **Time.** 4 minutes of computing in profile `cpu` (measured on 2 cores, 1.5 GB of memory), 66 minutes of exercises.
#
# **You need** lesson 00, and convolutions, modules and autograd in PyTorch. Nothing about LSTMs.
#
# **Words.** A [U-Net](../docs/glossary.md#u-net) has an [encoder and a decoder](../docs/glossary.md#encoder-and-decoder)
# made of [stages](../docs/glossary.md#stage); a [skip](../docs/glossary.md#skip-connection) joins the two at every
# resolution. A [residual block](../docs/glossary.md#residual-block) adds its input to its output. The
# [receptive field](../docs/glossary.md#receptive-field) is what an output can depend on. A *feature map* is what a layer
# gives: some channels, each with a number at every position. To *ablate* a part is to take it away and measure again.
#
# **Symbols.**
# * $n$, $m$: positions along one axis, before and after a convolution.
# * $k$, $s$, $p$: kernel size, stride, and positions of padding at each end.
# * $x$, $y$, $i$, $a$: what comes in, what goes out, the number of a position, the number of a kernel's place.
# * $w_a$, $b$: a kernel's weights, and the bias.
# * $c$, $g$, $D$: channels that come in, channels that go out, spatial axes.
# * $l$, $L$, $j$, $h$: the number of a layer or block, how many there are, the numbers of earlier layers.
# * $r_l$, $d_l$: what an output of layer $l$ sees, and how far apart two neighbours are, both in pixels of the image.
# * $N$, $\mu$, $v$, $\varepsilon$: how many positions a channel has, its mean, its variance, and a small number.
# * $\hat x$, $\gamma$, $\beta$: the normalised input, and the weight and bias of the norm.
# * $u$, $t$: a factor and a shift of an image's brightness.
# * $f_l$, $E$: what block $l$ adds to its input, and the loss.

# %%
import itertools
import math
import os

import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from monai.networks.blocks.dynunet_block import UnetResBlock
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from torch import nn
from tqdm.auto import tqdm

import xlstm_unet_lab as lab
from xlstm_unet_lab.course import check, choose, estimate, hint, progress, reveal
from xlstm_unet_lab.course.pictures import mechanisms as mechanism_figures
from xlstm_unet_lab.course.pictures.comparison import lines, loss_curves
from xlstm_unet_lab.course.pictures.explorers import Explorer
from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.figures import cases as figures
from xlstm_unet_lab.figures.training_plot import TrainingPlot
from xlstm_unet_lab.nn.conv import InstanceNorm, ResBlock

# %% [markdown]
# ## 1 · A convolution: how large is what comes out?
#
# Take one row of 7 positions. A dot at each end is the padding, a 0. The kernel has three places and moves on by 2:
#
# ```
#  · 0 1 2 3 4 5 6 ·
# [     ]              output 0, around position 0
#     [     ]          output 1, around position 2
#         [     ]      output 2, around position 4
#             [     ]  output 3, around position 6
# ```
#
# As a formula, for an input $x$ that is 0 outside its $n$ positions,
#
# $$y_i = b + \sum_{a=0}^{k-1} w_a\, x_{s i + a - p} .$$
#
# Output $i$ reads up to position $s i + (k - 1) - p$. The padded row ends at position $n - 1 + p$. So output $i$ exists
# as long as $s i + k - 1 - p \le n - 1 + p$, which is $s i \le n + 2p - k$. The count begins at 0, so there are
#
# $$m = \Big\lfloor \frac{n + 2p - k}{s} \Big\rfloor + 1$$
#
# outputs. In 2-D and 3-D this holds for every axis by itself.
#
# With an odd kernel and $p = (k-1)/2$, the usual choice, output $i$ is centred on position $s i$. Then the outputs sit
# on positions 0, $s$, $2s$ and so on, as far as $n - 1$: there are $\lceil n / s \rceil$ of them. Stride 1 keeps the
# size. **Stride 2 halves it and rounds up.** Remember the rounding; it comes back on the way up.
#
# ### Exercise 05.1: the size of an output
#
# *About 6 minutes, difficulty 1 of 5.* All arguments are tuples with one number an axis. Return such a tuple.


# %% exercise="05.1"
def output_size(size, kernel, stride, padding):
    pass  ### SOLUTION


# %%
check("05.1", output_size)

# %% [markdown]
# **How many weights?** So far there was one channel. With $c$ channels, every output channel has a kernel of its own for
# each of them, $c\,k^D$ weights, and one bias. With $g$ output channels that makes $g\,(c\,k^D + 1)$. The image's size
# does not occur: the same weights run on images of any size. The next cell lets PyTorch say the same, in 2-D and 3-D.

# %% tags=["nbval-check-output"]
CONV, NORM = {2: nn.Conv2d, 3: nn.Conv3d}, {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


for dims in (2, 3):
    layer = CONV[dims](16, 32, 3, stride=2, padding=1)
    size = tuple(layer(torch.zeros(1, 16, *(45, 61, 20)[:dims])).shape[2:])
    print(f"{dims}-D: {count(layer)} weights, by hand {32 * (16 * 3**dims + 1)}; {(45, 61, 20)[:dims]} becomes {size}")

# %% [markdown]
# ## 2 · How far can a position see?
#
# One convolution of 3 sees 3 pixels. A second one on top sees 3 neighbours that see 3 pixels each. They overlap, and
# together they see 5. What if the first has stride 2? Then the neighbours lie 2 pixels apart, and the second sees 7:
#
# ```
# pixels    0 1 2 3 4 5 6
# layer 1  [  1  ]
#              [  3  ]           stride 2: neighbours are 2 pixels apart
#                  [  5  ]
# layer 2  [             ]       sees three of them, 7 pixels
# ```
#
# Carry two numbers from layer to layer: $r_l$, the pixels an output of layer $l$ sees, and $d_l$, the distance of two
# neighbouring outputs, in pixels. A kernel of $k_l$ joins $k_l$ outputs of the layer before. The first and the last of
# them are $(k_l - 1)\, d_{l-1}$ pixels apart, and each sees $r_{l-1}$. A stride spreads the outputs. So
#
# $$r_l = r_{l-1} + (k_l - 1)\, d_{l-1}, \qquad d_l = s_l\, d_{l-1}, \qquad r_0 = d_0 = 1 .$$
#
# ### Exercise 05.2: the receptive field of a stack
#
# *About 10 minutes, difficulty 2 of 5.* `kernels` and `strides` hold a number a layer, first layer first. Return
# $r_L$ and $d_L$ of the last.


# %% exercise="05.2"
def receptive_field(kernels, strides):
    pass  ### SOLUTION


# %%
check("05.2", receptive_field)

# %% [markdown]
# Put the formula for $d_l$ into the one for $r_l$, layer after layer, and the recursion becomes a sum:
#
# $$r_L = 1 + \sum_{j=1}^{L} (k_j - 1) \prod_{h=1}^{j-1} s_h .$$
#
# The lesson goes on with this sum. It says what an output *can* depend on. What it does depend on is a matter of
# measurement: take the gradient of one output with respect to every pixel of the image. Below for two stacks with the
# same receptive field, random weights and no norms: the encoder of a U-Net with four stages, ten convolutions of which
# three have stride 2; and 25 convolutions of stride 1. Yellow is the strongest pixel, each unit down the bar is ten times
# less, dark blue is a thousandth or nothing.


# %%
def encoder_layers(stages, kernel=3):
    """Kernels and strides on the way down: two convolutions in the stem and two a stage, from the second halving."""
    strides = [1, 1, *(stride for stage in range(stages) for stride in ((1 if stage == 0 else 2), 1))]
    return [kernel] * len(strides), strides


def theoretical(kernels, strides):
    return 1 + sum((kernel - 1) * math.prod(strides[:layer]) for layer, kernel in enumerate(kernels))


def what_it_sees(kernels, strides, norm=False, size=65, networks=24):
    """How much each pixel moves the output in the middle: the mean square of the gradient over random networks."""
    field = torch.zeros(size, size)
    for seed in range(networks):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(1, 1, size, size, generator=generator, requires_grad=True)
        x = image
        for kernel, stride in zip(kernels, strides, strict=True):
            scale = math.sqrt(2 / (x.shape[1] * kernel**2))
            weight = scale * torch.randn(8, x.shape[1], kernel, kernel, generator=generator)
            x = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
            x = F.leaky_relu(F.instance_norm(x) if norm else x, 0.01)
        middle = x[0, :, x.shape[2] // 2, x.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, image)
        field += gradient[0, 0].square() / gradient.square().sum() / networks
    return field


def share_inside(field, side):
    """The share of the field in a box around the middle."""
    low = (len(field) - side) // 2
    return min(1.0, float(field[low : low + side, low : low + side].sum()))  # above 1 only by rounding


def side_of_half(field):
    return next(side for side in range(1, len(field) + 1, 2) if share_inside(field, side) >= 0.5)


stacks = {"U-Net's encoder, 10 layers": encoder_layers(stages=4), "stride 1, 25 layers": ([3] * 25, [1] * 25)}
fields = {name: what_it_sees(*layers) for name, layers in stacks.items()}
middle = (32, 32)

# %% tags=["figure"]
for name, field in fields.items():
    display(mechanism_figures.receptive_field(field.sqrt(), middle, title=name))

# %% [markdown]
# **A surprise to explain.** Both stacks see the same box. How much of the gradient (of its square) lies how far from the
# middle?

# %% tags=["surprise"]
for name, layers in stacks.items():
    limit, half = theoretical(*layers), side_of_half(fields[name])
    print(f"{name}: sees {limit} x {limit} pixels; outside lies {1 - share_inside(fields[name], limit):.1%}")
    print(f"    half of it lies in {half} x {half} pixels, {half**2 / limit**2:.0%} of what it sees")

# %% [markdown]
# Why is the middle so strong, when no kernel prefers it? Count the ways. A pixel reaches the output along a path that
# takes one place of the kernel in every layer. Along one axis, layer $l$ moves a path by $-d_{l-1}$, 0 or $d_{l-1}$
# pixels. The mean square of that is $\frac13(1 + 0 + 1)\, d_{l-1}^2 = \frac23\, d_{l-1}^2$. Every layer moves as it likes,
# so mean squares add up, and a typical path ends up
#
# $$\sqrt{\tfrac23 \sum_{l=1}^{L} d_{l-1}^2}$$
#
# pixels from the middle. For 25 layers of stride 1 that is $\sqrt{50/3} = 4.1$ pixels, while the farthest of all paths
# moves by 25. Along one axis, the border of the box is reached by one path only, the middle by a great many; in the
# picture, a corner is that lonely. With random weights the square of the gradient is, on average, in proportion to the
# number of paths. So the formula can be tested:

# %%
for name, (_, strides) in stacks.items():
    distances = torch.tensor([math.prod(strides[:layer]) for layer in range(len(strides))])
    expected = math.sqrt(2 / 3 * distances.square().sum())
    along_x = fields[name].sum(0)
    measured = math.sqrt((along_x * (torch.arange(65) - 32) ** 2).sum() / along_x.sum())
    print(f"{name}: typical distance {measured:.1f} pixels, by the formula {expected:.1f}")

# %% [markdown]
# Depth alone widens this *effective* field (Luo et al. 2016) as a square root. Strides do better, because they make the
# late steps long: that is why a U-Net goes down. A mixer, which hears every position at once, is another way.
#
# ## 3 · The norm, and what it hides
#
# A network learns badly if its numbers grow or shrink from layer to layer. **Instance norm** gives every channel of
# every image mean 0 and variance 1, over its $N$ positions, and then a weight and a bias of its own:
#
# $$\mu = \frac1N \sum_i x_i, \qquad v = \frac1N \sum_i (x_i - \mu)^2, \qquad
# \hat x_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}, \qquad y_i = \gamma\, \hat x_i + \beta .$$
#
# Batch norm takes the mean over all images of a batch as well. Volumes are so large that a batch holds one or two, and
# such a mean says little. So U-Nets for medical images take instance norm.
#
# ### Exercise 05.3: instance norm, by hand
#
# *About 10 minutes, difficulty 2 of 5.* `x` is (B, C, y, x) or (B, C, z, y, x): one code for both. `weight` and `bias`
# hold a number a channel.


# %% exercise="05.3"
def instance_norm(x, weight, bias, eps):
    pass  ### SOLUTION


# %%
check("05.3", instance_norm)

# %% [markdown]
# From here on the lesson uses the package's `InstanceNorm`. What does a norm take away? Make an image brighter and give
# it more contrast, $u x_i + t$ with $u > 0$. Its mean becomes $u\mu + t$, so $x_i - \mu$ becomes $u (x_i - \mu)$ and $v$
# becomes $u^2 v$:
#
# $$\frac{u\,(x_i - \mu)}{\sqrt{u^2 v + \varepsilon}} = \frac{x_i - \mu}{\sqrt{v + \varepsilon / u^2}} .$$
#
# The shift is gone, and so is the factor, but for the tiny $\varepsilon$. **A surprise to explain.** Before you run the
# next cell: what follows for the bias of a convolution that stands before a norm? And how does a residual block, which
# has two norms, come to notice the contrast after all?

# %% tags=["surprise"]
torch.manual_seed(0)
image = torch.randn(1, 1, 32, 32)
plain = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), InstanceNorm(8), nn.LeakyReLU(0.01))
block = ResBlock(1, 8, (3, 3))
with torch.no_grad():
    for name, layers in (("convolution, norm, activation", plain), ("residual block", block)):
        change = (layers(1000 * image) - layers(image)).norm() / layers(image).norm()
        print(f"{name:30} 1000 times the contrast changes the output by {change:.1g} times its length")
(plain(image) * torch.randn(1, 8, 32, 32)).sum().backward()
for name, parameter in plain[0].named_parameters():
    print(f"gradient of the convolution's {name:6}  at most {parameter.grad.abs().max():.0e}")

# %% [markdown]
# The bias is a shift of a whole channel: the norm subtracts it again, and no data can teach it anything. Many
# libraries leave it out. The residual block sends its input past both norms, through a projection that has none: that
# road carries contrast past the norms, and brightness as well. Without it a factor is lost completely. A shift is not
# quite: convolutions pad with zeros, so at the border a bright image looks different from a dark one.
#
# At the bottom there is a trap. Suppose the deepest map is a **single position**. Its mean is the value itself, its
# variance 0: whatever comes in, 0 goes out, times $\gamma$ plus $\beta$. PyTorch refuses to do that in training, and the
# package says so when the network is built:

# %%
try:
    lab.build("unet", spatial_dims=2, in_channels=1, num_classes=3, patch_size=(8, 8), features=(8, 16, 32, 64))
except ValueError as error:
    print(error)

# %% [markdown]
# There is a second thing that a norm does. Mean and variance come from **all** positions. So every output of a norm
# depends on every pixel, and the recursion of section 2 no longer bounds what is seen. How much comes that way?

# %%
for norm in (False, True):
    field = what_it_sees(*encoder_layers(stages=4), norm=norm)
    touched = float((field > 0).float().mean())
    print(
        f"{'with' if norm else 'without'} norms: {touched:.0%} of all pixels matter, {1 - share_inside(field, 51):.1%} "
        "of the squared gradient lies outside the 51 x 51"
    )

# %% [markdown]
# It is a hint of how bright and how varied the whole image is, the same hint for all positions of a channel. It says
# nothing about *where* something lies. Try it out: Tab goes from one control to the next, arrow keys and the space bar
# change them.


# %% tags=["widget"]
def draw_field(stages, kernel, norm):
    field = what_it_sees(*encoder_layers(stages, kernel), norm=norm)
    title = f"{stages} stages, kernel size {kernel}, {'with' if norm else 'without'} norms"
    return mechanism_figures.receptive_field(field.sqrt(), middle, title=title)


wide = {"style": {"description_width": "12rem"}, "layout": {"width": "32rem"}}
explorer = Explorer(
    draw_field,
    stages=ipywidgets.IntSlider(4, 1, 5, description="stages", continuous_update=False, **wide),
    kernel=ipywidgets.Dropdown(options=[1, 3, 5, 7], value=3, description="kernel size", **wide),
    norm=ipywidgets.Checkbox(True, description="instance norm after every convolution", indent=False),
)
display(explorer)

# %% [markdown]
# ## 4 · The residual block
#
# Deep networks are hard to train for another reason. Write a network as blocks in a row and, to keep it simple, give
# every block one number in and one out. Without a sum, $x_l = f_l(x_{l-1})$, and by the chain rule
#
# $$\frac{\partial E}{\partial x_0} = \frac{\partial E}{\partial x_L} \prod_{l=1}^{L} f_l'(x_{l-1}) .$$
#
# If the slopes are a little below 1 the product vanishes; if they are a little above, it explodes. Now let every block
# *add* to its input: $x_l = x_{l-1} + f_l(x_{l-1})$. Then
#
# $$\frac{\partial E}{\partial x_0} = \frac{\partial E}{\partial x_L} \prod_{l=1}^{L} \big(1 + f_l'(x_{l-1})\big)
# = \frac{\partial E}{\partial x_L} \Big(1 + \sum_{l} f_l'(x_{l-1}) + \dots\Big) .$$
#
# Multiplied out, there is a term for every way of choosing blocks to pass through, and one of them is 1: the road past
# all blocks. However small the slopes, the gradient arrives. The next cell measures how much of it does, in stacks of up
# to 40 convolutions with PyTorch's own initial weights, with and without a norm.


# %%
def arriving_gradient(depth, add, norm, channels=8):
    """The length of the gradient at the input, relative to that at the output."""
    torch.manual_seed(depth)
    image = torch.randn(1, channels, 16, 16, requires_grad=True)
    x = image
    for _ in range(depth):
        y = nn.Conv2d(channels, channels, 3, padding=1)(x)
        y = F.instance_norm(y) if norm else y
        x = F.leaky_relu(x + y if add else y, 0.01)
    sent = torch.randn(x.shape)
    (gradient,) = torch.autograd.grad(x, image, sent)
    return float(gradient.norm() / sent.norm())


depths = [1, 2, 5, 10, 20, 30, 40]
arriving = {
    f"{'with' if norm else 'no'} norm, {'input added' if add else 'plain'}": [
        arriving_gradient(depth, add, norm) for depth in depths
    ]
    for norm, add in itertools.product((False, True), (False, True))
}

# %% tags=["figure"]
display(lines(depths, arriving, x_label="convolutions in a row", y_label="gradient that arrives, relative", log_y=True))

# %% [markdown]
# With neither, nothing arrives: PyTorch's initial weights make everything smaller, layer by layer. The **norm alone**
# undoes that and overshoots: the gradient grows. Take a normalised channel to be normally distributed. The activation
# keeps its positive half (and a hundredth of the rest), whose mean square is 0.500, whose mean is 0.395 and whose variance
# therefore is $0.500 - 0.395^2 = 0.344$. Half of the gradient's square comes back through the activation, but the next
# norm has divided by a variance of 0.344: a factor of $0.500 / 0.344 = 1.453$ a layer, $\sqrt{1.453} = 1.206$ in length.
# The first layer reads the image, whose variance is 1. There nothing makes up for the activation, and $\sqrt{0.500} = 0.71$
# comes through. The estimate for 40 layers is $0.71 \cdot 1.206^{39}$, of the order of a thousand; measured: 1,050. With
# the **sum** both kinds grow slowly, because the input weighs more and more beside what a block adds.
#
# The block of this package, after nnU-Net and U-Mamba, has two convolutions:
# convolution, norm, activation, convolution, norm, *plus the input*, activation. Where the block changes the number of
# channels or has a stride, the input does not fit. Then a convolution of size 1 with the same stride, the **projection**,
# makes it fit. The first convolution takes the stride.
#
# ### Exercise 05.4: the residual block
#
# *About 8 minutes, difficulty 2 of 5.* The parts are given as functions. `projection` is None where the input fits as it
# is. The activation is `F.leaky_relu(..., 0.01)`. There is nothing in it that knows whether the data is 2-D or 3-D.


# %% exercise="05.4"
def residual_block(x, conv1, norm1, conv2, norm2, projection):
    pass  ### SOLUTION


# %%
check("05.4", residual_block)

# %% [markdown]
# **An independent witness.** MONAI, a library for medical images, has such a block as well, written by other people. Its
# convolutions have no bias. The package's do. By section 3 that makes no difference, so with the same weights both must
# give the same numbers, whatever the biases are.

# %% tags=["independent"]
torch.manual_seed(0)
for dims in (2, 3):
    theirs = UnetResBlock(dims, 6, 6, kernel_size=3, stride=1, norm_name=("instance", {"affine": True})).double()
    ours = ResBlock(6, 6, (3,) * dims, project=False).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
        for name in ("conv1", "conv2"):
            getattr(ours, name).weight.copy_(getattr(theirs, name).conv.weight)
        for name in ("norm1", "norm2"):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
        x = torch.randn(2, 6, *(7, 9, 5)[:dims], dtype=torch.float64)
        difference = float((ours(x) - theirs(x)).abs().max())
    assert difference < 1e-9
    print(
        f"{dims}-D: ours and MONAI's differ by at most {difference:.0e}; biases of ours up to "
        f"{float(ours.conv1.bias.detach().abs().max()):.2f}"
    )

# %% [markdown]
# ## 5 · Down, up, and across
#
# On the way down, a block with stride 2 opens each stage: half the positions along every axis, twice the channels. On the
# way up, each value is repeated, 2 x 2 times in 2-D and 2 x 2 x 2 times in 3-D, after a convolution of size 1 has halved
# the channels. But sizes were rounded up: 5 became 3, and 3 grows to 6. What is too much has to go. Output $i$ of a stride
# of 2 was centred on position $2i$, so the repeated value begins in its right place, and the surplus is at the **end**.
#
# Then the **skip**: the encoder's feature map of the same size is put beside the grown one, channel after channel.
# Adding would mix the two for good. Side by side, the next convolution decides what to take from where.
#
# ### Exercise 05.5: grow, crop, join
#
# *About 12 minutes, difficulty 3 of 5.* `deep` is (B, C, *size), `skip` may have another number of channels and has a
# larger size, `stride` says for each axis how often to repeat: (2, 2), or (1, 2, 2) for a volume whose few slices were not
# halved. Grown channels first.


# %% exercise="05.5"
def join(deep, skip, stride):
    pass  ### SOLUTION


# %%
check("05.5", join)

# %% [markdown]
# What would be lost without the skip? Ask before you train anything. The images are those of lesson 00, made here; for
# real nuclei change the one variable.

# %%
RECIPE = os.environ.get("LAB_RECIPE", "phantom_microscopy")  # for real images: RECIPE = "nuclei"
SOURCE = os.environ.get("LAB_SOURCE")  # a folder or archive you have already; None makes or downloads the data
lab.prepare(RECIPE, source=SOURCE, progress=False)
train, test = (lab.load_dataset(RECIPE, split) for split in ("train", "test"))
recipe = train.recipe
print(recipe.title)

# %% [markdown]
# Suppose the decoder knew only one answer for each block of 2 x 2, 4 x 4 or 8 x 8 pixels, but the best one: whether most
# of the block is inside a cell. How far off would the outlines be? Measure the mean distance from a pixel of the true
# outline to the nearest pixel of the predicted one, whichever cell that belongs to.


# %%
def outline(mask):
    return mask & ~binary_erosion(mask)


def outline_error(prediction, truth):
    """Mean distance, in pixels, from the true outline to the predicted one; the image's diagonal if there is none."""
    if not prediction.any():
        return math.hypot(*truth.shape)
    return float(distance_transform_edt(~outline(prediction))[outline(truth)].mean())


def known_in_blocks(mask, side):
    rows, columns = (length // side for length in mask.shape)
    most = mask.reshape(rows, side, columns, side).mean((1, 3)) > 0.5
    return most.repeat(side, 0).repeat(side, 1)


sides, masks = (1, 2, 4, 8), []
for n in range(8):
    mask = train[n]["label"].numpy() == 1  # the inside of cells
    masks.append(mask[: mask.shape[0] // 8 * 8, : mask.shape[1] // 8 * 8])
blocky = [np.mean([outline_error(known_in_blocks(mask, side), mask) for mask in masks]) for side in sides]

# %% tags=["figure"]
display(
    lines(
        sides,
        {"best answer a block": blocky},
        x_label="side of a block with one answer, pixels",
        y_label="outline off by, pixels",
    )
)

# %%
for side, off in zip(sides, blocky, strict=True):
    dice = np.mean([metrics.dice(known_in_blocks(mask, side), mask) for mask in masks])
    print(f"one answer for {side} x {side} pixels: outlines off by {off:.2f} pixels, Dice of the inside {dice:.3f}")

# %% [markdown]
# From 2 to 4 pixels the error about doubles. Why does it jump at 8? Look at the cells one by one.


# %%
def distances(mask, side):
    """Of outline pixels to the outline of the best answer a block: of cells that vanish, of the others; both counts."""
    cells, count = label(mask)
    answer = known_in_blocks(mask, side)
    kept = np.unique(cells[mask & answer])
    far, edge, remains = distance_transform_edt(~outline(answer)), outline(mask), np.isin(cells, kept)
    return far[edge & ~remains], far[edge & remains], count - len(kept), len(kept)


for side in sides:
    of_vanished, of_others, vanished, others = zip(*(distances(mask, side) for mask in masks), strict=True)
    print(
        f"{side} x {side}: {sum(vanished)} of {sum(vanished + others)} cells vanish, the outlines of the others are off "
        f"by {np.concatenate(of_others).mean():.2f} pixels"
    )
print(f"outlines of cells that vanish at {side} x {side}: off by {np.concatenate(of_vanished).mean():.1f} pixels")

# %% [markdown]
# The jump at 8 x 8 has a second cause: about a quarter of the cells (125 of 457) are too small, or lie too badly, to fill
# most of any block, and vanish. Their outline is measured to a neighbour, some 12 pixels away. The cells that remain are
# off by 1.6 pixels, twice as far as at 4 x 4.
#
# Keep these numbers in mind. A U-Net with four stages has a deepest map of one position for 8 x 8 pixels, so the line for
# 8 x 8 is a guess at what it can do without skips. Section 7 puts it to the test.
#
# ## 6 · The whole U-Net
#
# ```
# image ── stem ── stage 0 ───────────── skip ────────────▶ join ── block ── head ── logits
#                    │ stride 2                              ▲ grow
#                  stage 1 ───── skip ─────▶ join ── block ──┘
#                    │ stride 2               ▲ grow
#                  stage 2 ──────────────────┘
# ```
#
# ### Exercise 05.6: the U-Net
#
# *About 20 minutes, difficulty 4 of 5.* The parts are functions again. `encoder` holds the stages from full resolution
# down; `joins` and `decoder` run from the deepest level up. `join(x, skip)` grows x and joins the skip. Every level has a
# join and a block, and `head` comes last. Draw the arrows for three stages before you write: which skip comes first?


# %% exercise="05.6"
def unet(image, encoder, joins, decoder, head):
    pass  ### SOLUTION


# %%
check("05.6", unet)

# %% [markdown]
# Here is the same as modules, out of PyTorch's own layers alone: two short classes, for 2-D and 3-D. The argument `skips`
# says for each level, deepest first, whether the skip is used; where it is not, zeros stand in its place. So an ablated
# network has the same layers and as many weights.


# %%
class Block(nn.Module):
    """Residual block of 3-wide convolutions from `come` to `go` channels."""

    def __init__(self, dims, come, go, stride=1):
        super().__init__()
        self.conv1 = CONV[dims](come, go, 3, stride, padding=1)
        self.norm1 = NORM[dims](go, affine=True)
        self.conv2 = CONV[dims](go, go, 3, padding=1)
        self.norm2 = NORM[dims](go, affine=True)
        self.projection = CONV[dims](come, go, 1, stride)

    def forward(self, x):
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.projection(x), 0.01)


class SmallUNet(nn.Module):
    """A U-Net with a width a stage; `skips`: for each level of the decoder, deepest first, whether it gets its skip."""

    def __init__(self, dims, channels, classes, widths, skips=None):
        super().__init__()
        levels = list(itertools.pairwise(widths))
        self.skips = skips or (True,) * len(levels)
        self.stem = Block(dims, channels, widths[0])
        self.down = nn.ModuleList([Block(dims, widths[0], widths[0]), *(Block(dims, a, b, 2) for a, b in levels)])
        self.narrow = nn.ModuleList(CONV[dims](b, a, 1) for a, b in levels[::-1])
        self.up = nn.ModuleList(Block(dims, 2 * a, a) for a, _ in levels[::-1])
        self.head = CONV[dims](widths[0], classes, 1)

    def forward(self, image):
        features, x = [], self.stem(image)
        for stage in self.down:
            x = stage(x)
            features.append(x)
        for used, narrow, block, skip in zip(self.skips, self.narrow, self.up, features[-2::-1], strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="nearest")
            x = x[(..., *(slice(length) for length in skip.shape[2:]))]
            x = block(torch.cat([x, skip if used else torch.zeros_like(skip)], 1))
        return self.head(x)


# %% [markdown]
# **Is this the network that `lab.build` makes?** Both hold their weights in the same order. Copy them over, and the two
# must agree on any image; odd sizes and volumes too. Weights that are counted by hand must be as many.


# %%
def with_weights_of(network, own):
    """`own` with the weights of `network`, tensor by tensor in their order; an error where a shape differs."""
    own.load_state_dict(dict(zip(own.state_dict(), network.state_dict().values(), strict=True)))
    return own


def by_hand(dims, channels, classes, widths):
    """Weights of the whole U-Net: g (c k^D + 1) for each convolution, 2 a channel for each norm."""

    def conv(come, go, kernel):
        return go * (come * kernel**dims + 1)

    def block(come, go):
        return conv(come, go, 3) + conv(go, go, 3) + conv(come, go, 1) + 4 * go

    levels = list(itertools.pairwise(widths))
    way_down = block(channels, widths[0]) + block(widths[0], widths[0]) + sum(block(a, b) for a, b in levels)
    way_up = sum(conv(b, a, 1) + block(2 * a, a) for a, b in levels)
    return way_down + way_up + conv(widths[0], classes, 1)


# %% tags=["independent", "nbval-check-output"]
widths, sizes = (8, 16, 32, 64), {2: (45, 61), 3: (17, 24, 20)}
for dims, size in sizes.items():
    patch = {2: (64, 64), 3: (32, 32, 32)}[dims]
    built = lab.build("unet", spatial_dims=dims, in_channels=2, num_classes=3, patch_size=patch, features=widths)
    own = with_weights_of(built, SmallUNet(dims, 2, 3, widths)).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(own(x), built.double()(x), rtol=1e-9, atol=1e-9)
    assert count(own) == count(built) == by_hand(dims, 2, 3, widths)
    print(f"{dims}-D, image {size}: the same logits; {count(own):,} weights, by hand {by_hand(dims, 2, 3, widths):,}")

# %% [markdown]
# The 3-D network has nearly three times the weights: 27 in place of 9 in every kernel, and no more than that in the
# convolutions of size 1. Everything else is the same code.
#
# **Shapes by hand, then by hook.** By section 1 the sizes are $\lceil n/2 \rceil$, again and again, and the way up mirrors
# them. A *hook* is a function that PyTorch calls after a module has run. It lets us look into a network without changing
# it.


# %%
def shapes_by_hand(size, widths):
    """(channels, *size) after every block on the way down, then on the way up."""
    down = [(widths[0], *size)]
    for width in widths[1:]:
        down.append((width, *(math.ceil(n / 2) for n in down[-1][1:])))
    return down + down[-2::-1]


def shapes_by_hook(network, image):
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
        for module in (*network.down, *network.up)
    ]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return seen


# %% tags=["nbval-check-output"]
for dims, size in sizes.items():
    expected = shapes_by_hand(size, widths)
    assert shapes_by_hook(SmallUNet(dims, 2, 3, widths), torch.zeros(1, 2, *size)) == expected
    print(f"{dims}-D, down and up:", "  ".join("x".join(map(str, shape)) for shape in expected))

# %% [markdown]
# ## 7 · What a skip does
#
# Take the skips away and train. Three networks with the same weights at the start, the same patches in the same order,
# and the same number of weights: one with all skips; one without the last skip, at full resolution (as the published 2-D
# xLSTM-UNets are, see lesson 06); one without any.
#
# **Guess first**, and write it down: by how many pixels will the outlines be off without skips? Section 5 gave you one
# number to go by. Here is another: is there room at the bottom for what the skips carry?

# %%
patch_size = choose(ci=(64, 64), cpu=(128, 128))
widths = choose(ci=(8, 16, 32), cpu=(16, 32, 64, 96))
levels = len(widths) - 1
numbers = widths[-1] * math.prod(length // 2**levels for length in patch_size)
print(f"the deepest map holds {numbers:,} numbers, the patch has {math.prod(patch_size):,} pixels")

# %%
variants = {
    "all skips": (True,) * levels,
    "none at full resolution": (True,) * (levels - 1) + (False,),
    "no skips": (False,) * levels,
}
channels, classes = len(recipe.channel_names), len(recipe.labels)
torch.manual_seed(0)
start = lab.build(
    "unet", spatial_dims=2, in_channels=channels, num_classes=classes, patch_size=patch_size, features=widths
)
config = lab.TrainConfig(
    patch_size=patch_size,
    steps=choose(ci=10, cpu=200, gpu=600),
    batch_size=8,
    learning_rate=3e-3,
    augment=Augmentation(invert_probability=0.3 if RECIPE == "nuclei" else 0.0),  # real nuclei come dark on light too
    seed=0,
)

# %% tags=["widget"]
print(f"three networks, {config.steps} steps of {config.batch_size} patches each: {estimate(ci=10, cpu=200)}")
models, records = {}, {}
for name, skips in variants.items():
    print(name)
    models[name] = with_weights_of(start, SmallUNet(2, channels, classes, widths, skips))
    plot = TrainingPlot(config.steps)
    display(plot.widget)
    records[name] = list(plot.watch(lab.fit(models[name], train, None, config)))

# %% tags=["figure"]
display(loss_curves(records))

# %% [markdown]
# Now the test images. There is a fourth row. It takes the skips away **after** training, from the network that learnt
# with them.

# %%
print(f"predicting {4 * choose(ci=2, cpu=8)} images: {estimate(ci=2, cpu=8)}")
cases = range(choose(ci=2, cpu=8))
truths = [test[n]["label"].numpy() for n in cases]
cut_off = with_weights_of(models["all skips"], SmallUNet(2, channels, classes, widths, (False,) * levels))
tested = models | {"all skips, cut afterwards": cut_off}
predicted = {
    name: [lab.predict(model, test.raw(n), patch_size=patch_size) for n in cases]
    for name, model in tqdm(tested.items(), "networks")
}

# %% tags=["figure"]
scores = {"foreground": {}, "boundary": {}}
for name, maps in predicted.items():
    pairs = list(zip(maps, truths, strict=True))
    scores["foreground"][name] = [metrics.dice(one > 0, truth > 0) for one, truth in pairs]
    scores["boundary"][name] = [metrics.dice(one == 2, truth == 2) for one, truth in pairs]
display(figures.score_strip(scores))

# %% tags=["surprise"]
off = {
    name: np.array([outline_error(one == 1, truth == 1) for one, truth in zip(maps, truths, strict=True)])
    for name, maps in predicted.items()
}
for name, errors in off.items():
    foreground, boundary = (np.mean(scores[label][name]) for label in ("foreground", "boundary"))
    print(f"{name:26} Dice {foreground:.3f}, boundary {boundary:.3f}; outlines off by {errors.mean():.2f} pixels")
print(f"one answer for each block of {2**levels} pixels: outlines off by {blocky[sides.index(2**levels)]:.2f} pixels")
worse = off["no skips"] - off["all skips"]
error = worse.std(ddof=1) / math.sqrt(len(worse))
print(
    f"without skips the outlines are off by {worse.mean():+.2f} pixels more, standard error {error:.2f}, case by case"
)

# %% tags=["figure"]
for name in ("all skips", "no skips"):
    display(figures.comparison(test.raw(0), truths[0], predicted[name][0], recipe.colours, title=name))

# %% [markdown]
# In profile `ci` the networks have hardly begun to learn; there this section only shows that everything runs. A run in
# profile `cpu` gave, over 8 images:
#
# | network | Dice | Dice of the boundary | outlines off by |
# |---|---|---|---|
# | all skips | 0.970 | 0.893 | 0.43 pixels |
# | none at full resolution | 0.972 | 0.894 | 0.39 pixels |
# | no skips | 0.962 | 0.860 | 0.55 pixels |
# | all skips, cut afterwards | 0.720 | 0.396 | 5.02 pixels |
# | one answer for each block of 8 x 8 | | | 3.15 pixels; 1.6 without the cells that vanish |
#
# **A surprise to explain.** Without any skip the network should be off by 3 pixels, or by 1.6 if it loses no cell. It is
# off by little more than half of one. Stop here and say why, before you read on.
#
# The guess took the deepest map for an *answer*, one for each position. It is a *description*: 96 numbers for 64 pixels.
# They can say where an outline crosses the block and how steeply, and the decoder draws it. There is room enough.
#
# But it is the long way round. Follow one deep position. Growing gives its children **the same numbers**. A convolution
# does the same at every position, so two children become different only through their neighbours: at every level the
# decoder must combine what the map says *here* with what it says *next door*. That has to be learnt, and the loss
# without skips falls later. The cells made here have smooth outlines, which few numbers describe. With thin vessels or
# ragged edges the way round may be too long.
#
# A skip brings numbers that differ from pixel to pixel, ready to use. So it is **the short road for detail, not the only
# one**. In the second row the skip at full resolution was not missed at all: here the one at half resolution, and the way
# up from there, were enough. It is also the one that costs most memory.
#
# And the last row? It asks another question. *What does the trained network use?* is not *What can be done without?* A
# network trained without skips finds another way. One that has learnt to lean on them has no other, and falls below even
# the blocks. Both are called ablation. Whoever claims that a part matters must say which of the two was measured.

# %%
progress("05")

# %% [markdown]
# ## Key points
#
# * A convolution leaves $\lfloor (n + 2p - k)/s \rfloor + 1$ positions; stride 2 halves and rounds up, so the way up crops.
# * The receptive field grows by $(k - 1)$ times the product of the strides before; the effective one is much smaller.
# * Instance norm takes brightness and contrast away. A bias before it is useless; a single position becomes 0.
# * The residual sum gives the gradient a road past every block, and brightness a road past every norm.
# * A skip is the short road for detail. Trained without skips, a network finds a longer one and loses a little; cut off
#   after training, it is worse off than the blocks of section 5.
# * Nothing in a U-Net but the kind of convolution knows whether the data is 2-D or 3-D.
#
# ## What could go wrong
#
# * *Sizes do not match when a skip is joined.* Odd sizes were rounded up on the way down: crop the grown map at its end.
# * *"Expected more than 1 spatial element".* The deepest map is one position. Use a larger patch or fewer stages.
# * *The output is the same for every image.* A norm over a single position, or a channel that is the same everywhere.
# * *Weights load and predictions are nonsense.* The order in which skip and grown map are joined is part of the weights.

# %% [markdown]
# ## An open question
#
# Growing by repetition gives all children of a position the same numbers. A transposed convolution of stride 2, or a
# convolution to four times the channels followed by `nn.PixelShuffle`, gives each child numbers of its own. Would a
# network that grows in this way need skips less? And on which images is the gap between the first and the third row large
# in the first place: real nuclei (`RECIPE = "nuclei"`), thin structures, fewer training images? Change `SmallUNet`, keep
# the number of weights comparable, use several seeds, and measure. What would convince you that skips matter?

# %% [markdown]
# ## Further reading
#
# * Ronneberger, Fischer and Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation*, arXiv 1505.04597.
# * He, Zhang, Ren and Sun, *Deep Residual Learning for Image Recognition*, arXiv 1512.03385.
# * Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing Ingredient for Fast Stylization*, arXiv 1607.08022.
# * Luo, Li, Urtasun and Zemel, *Understanding the Effective Receptive Field in Deep Convolutional Neural Networks*,
#   arXiv 1701.04128.
# * Isensee et al., *nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation*, Nature
#   Methods 18, 203 (2021).

# %% [markdown] tags=["instructor"]
# **For instructors.** About two and a half hours: 30 minutes for sections 1 and 2, 30 for the norm, 25 for the residual
# block, 45 for sections 5 and 6, 20 for the ablation. Let the class write down guesses for three numbers before the cells
# run: the share of the gradient in the middle, what a thousand times the contrast does, and how far the outlines are off
# without skips. For the last one section 5 suggests a number that is far too high; do not give it away. If time is short,
# leave out 05.2 and use the explorer. Good stops for discussion: why batch norm fails for volumes; what a network with
# norms everywhere can know about absolute intensity, which has a meaning in CT and none in MRI; and the two kinds of
# ablation. One seed and eight images are thin evidence for the second row: let groups run other seeds and pool them.
