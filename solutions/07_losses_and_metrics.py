# %% [markdown] seconds={"ci": 60, "cpu": 420, "gpu": 420} gigabytes={"ci": 2.5, "cpu": 3, "gpu": 6}
# # 07 · Losses and metrics: what training makes small, and what we wanted
#
# A network learns what its loss asks for, and is published for what a metric says. Neither is quite what was wanted.
# In this lesson you derive what cross-entropy and Dice pull on, see what each score notices and how it is fooled, and
# at the end you find out what is wrong with five training runs.
#
# **You will be able to**
# * derive the gradients of cross-entropy and of Dice, and say from them how each treats a rare class,
# * supervise a network at every resolution, with labels that fit,
# * say what Dice, NSD, HD95 and instance F1 ask, and build for each a bad prediction that it likes,
# * measure in millimetres, with the axes in the right order,
# * diagnose a run: overflowing gates, overflowing float16, wrong spacing, a leak, a class that is not there.
#
# **Time.** 2 minutes of computing in profile `cpu` (measured on 2 cores, 1.9 GB of memory), 120 minutes of exercises.
#
# **You need** lesson 00, the chain rule, and for the failure lab the idea of an exponential gate from lesson 01.
#
# **Words.** A [loss](../docs/glossary.md#loss) is what training makes small; a metric is what is reported. A
# [logit](../docs/glossary.md#logit) is what a network gives before the softmax. A [mask](../docs/glossary.md#mask) is
# the set of pixels of a class, its *surface* the border between inside and outside.
# [Deep supervision](../docs/glossary.md#deep-supervision) is a loss at every resolution.
# [Spacing](../docs/glossary.md#spacing) is the size of a voxel. [NSD](../docs/glossary.md#nsd) and
# [HD95](../docs/glossary.md#hd95) compare surfaces. An [instance](../docs/glossary.md#instance) is one cell, not
# cells.
#
# **Symbols.**
# * $N$, $j$: how many pixels there are, and the number of one.
# * $k$, $c$: classes; $c$ also counts resolutions in a sum.
# * $z_{jk}$, $p_{jk}$, $t_{jk}$: logit, probability, truth (1 or 0) of class $k$ at pixel $j$; without $k$ for one
#   class, without $j$ where all pixels are alike.
# * $L$, $r$: a loss, and the share of the pixels that are foreground.
# * $w$: how much more a foreground pixel weighs than one of the background.
# * $A$, $B$, $D$: twice the soft overlap, the sum of the sizes, and $D = A/B$, soft Dice.
# * $\eta_j$, $\theta$: how probable foreground at pixel $j$ really is, and a threshold.
# * $l$, $n$, $w_l$: a resolution of the decoder counted from the finest, 0; how many there are; the weight of its loss.
# * $P$, $T$: the pixels that are predicted to be foreground, and those that truly are.
# * $R$, $u$, $\pi$: radius of a disc, how far it is shifted or shrunk, and 3.14159.
# * $x$, $y$, $S$, $d(x, S)$: two points, a surface, and the distance from a point to the nearest point of a surface.
# * $S_P$, $S_T$: the surfaces of $P$ and of $T$; bars around one mean its area, in a picture the length of the outline.
# * $\tau$, $q$: a tolerance, and a 95th percentile.
# * $a$, $s_a$, $\Delta_a$: an axis, the spacing along it, and how many voxels two points are apart along it.

# %%
import math
import os
import warnings

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from IPython.display import display
from monai.losses import DiceCELoss
from monai.metrics import compute_surface_dice
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import directed_hausdorff
from tqdm.auto import tqdm

import xlstm_unet_lab as lab
from data_recipes.phantom_abdomen import LABELS, scene
from data_recipes.phantom_microscopy import microscopy
from xlstm_unet_lab.course import check, choose, current_profile, estimate, hint, progress, reveal
from xlstm_unet_lab.course import lesson_07_probes as probes
from xlstm_unet_lab.course.lesson_07_runs import start as start_run
from xlstm_unet_lab.course.pictures.comparison import flaws, lines, loss_curves
from xlstm_unet_lab.course.pictures.explorers import boundary_tolerance_explorer
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.figures import cases as figures
from xlstm_unet_lab.inference.predict import predict_probabilities
from xlstm_unet_lab.training.losses import deep_supervision_loss, resized_label, segmentation_loss

warnings.filterwarnings("ignore", category=FutureWarning)  # MONAI announces changes of its own

# %% [markdown]
# ## The data
#
# Cells made here, as in lesson 00; `RECIPE = "nuclei"` takes real ones. To have something rare to look for, a class of
# our own: the *contacts*, where two cells come within a few pixels of each other. Whoever wants to count cells must
# find them.

# %%
RECIPE = os.environ.get("LAB_RECIPE", "phantom_microscopy")  # for real images: RECIPE = "nuclei"
SOURCE = os.environ.get("LAB_SOURCE")  # a folder or archive you have already; None makes or downloads the data


def contacts(instances, reach=5):
    """The pixels of cells that have another cell within a window of `reach` pixels: 1 there, 0 elsewhere."""
    nothing = instances.max() + 1
    highest = ndimage.maximum_filter(instances, reach)
    lowest = ndimage.minimum_filter(np.where(instances > 0, instances, nothing), reach)
    return ((instances > 0) & (lowest < highest)).astype(np.int64)


lab.prepare(RECIPE, source=SOURCE, progress=False)
train, test = (lab.load_dataset(RECIPE, split) for split in ("train", "test"))
most = choose(ci=6, cpu=40)
chosen = [n for n in range(len(train)) if min(train[n]["label"].shape) >= 64][:most]
images = [train[n]["image"] for n in chosen]
labels = [torch.from_numpy(contacts(train.instances(n))) for n in chosen]
rate = float(np.mean([label.float().mean() for label in labels]))
print(f"{len(images)} images; contacts are {rate:.1%} of the pixels")

# %% tags=["figure"]
display(
    figures.samples([train.raw(n) for n in chosen[:4]], [label.numpy() for label in labels[:4]], {"contact": "#D55E00"})
)

# %% [markdown]
# ## 1 · Cross-entropy
#
# The network gives a logit for each class and pixel; the softmax makes probabilities of them. Cross-entropy is the mean
# of minus the logarithm of the probability that the true class got:
#
# $$p_{jk} = \frac{\exp z_{jk}}{\sum_c \exp z_{jc}}, \qquad L = -\frac1N \sum_j \sum_k t_{jk} \log p_{jk} .$$
#
# Insert the first into the second. The logarithm of the fraction is a difference, and the $t_{jk}$ of a pixel add up
# to 1:
#
# $$L = \frac1N \sum_j \Big( \log \sum_c \exp z_{jc} - \sum_k t_{jk} z_{jk} \Big) .$$
#
# The derivative of $\log \sum_c \exp z_{jc}$ with respect to $z_{jk}$ is $\exp z_{jk} / \sum_c \exp z_{jc}$, the
# softmax again. So
#
# $$\frac{\partial L}{\partial z_{jk}} = \frac{p_{jk} - t_{jk}}{N} .$$
#
# A pixel pulls on its logits with its error, and not at all once it is right.
#
# ### Exercise 07.1: the gradient of cross-entropy
#
# *About 8 minutes, difficulty 2 of 5.* `logits` is a tensor $(N, \mathrm{classes})$, `label` holds the true class of
# each of the $N$ pixels. Return the gradient, of the shape of `logits`, without autograd.


# %% exercise="07.1"
def cross_entropy_gradient(logits, label):
    pass  ### SOLUTION


# %%
check("07.1", cross_entropy_gradient)

# %% [markdown]
# **Every pixel has the same vote.** Take two classes. At the start of training all probabilities are about one half.
# The $rN$ foreground pixels pull up with $\frac12 \cdot \frac1N$ each, together with $r/2$. The background pulls down
# with $(1 - r)/2$. If the class has three pixels of a hundred, the background is 32 times as strong, and the first
# thing that the network learns is to say no.
#
# **The best answer of a network that knows nothing.** Suppose it cannot tell pixels apart and must give all of them
# the same $p$. Then they share one logit $z$, and its gradient is the sum over pixels:
#
# $$\frac{\partial L}{\partial z} = \sum_j \frac{p - t_j}{N} = p - r .$$
#
# It is 0 at $p = r$, the share of the foreground. That is an honest answer. It stays below one half, so as a mask it is
# empty.
#
# **A weight moves the answer.** The usual remedy gives every foreground pixel a weight $w$. Its gradient is multiplied
# by $w$, and the sum becomes
#
# $$\frac{\partial L}{\partial z} = w r (p - 1) + (1 - r)\, p, \qquad \text{which is 0 at} \qquad
# p = \frac{w r}{w r + 1 - r} .$$
#
# With $w = (1 - r)/r$ both sides pull alike, and the answer is one half. The price: the probability no longer says how
# probable the class is. Nothing is gained that a threshold could not give, since
#
# $$\frac{w r}{w r + 1 - r} > \frac12 \quad \text{exactly where} \quad w r > 1 - r, \quad \text{that is} \quad
# r > \frac{1}{1 + w} .$$
#
# *A weight $w$ and a cut at one half give the mask of no weight and a cut at* $1/(1 + w)$. The same holds for a
# network that does tell pixels apart, as far as training finds its best answer: put the probability that it would have
# given without the weight in the place of $r$. Which cut is the right one? Section 3 has the answer, and it comes from
# Dice.
#
# ## 2 · Dice as a loss
#
# The Dice score of two masks is $2\,|P \cap T| / (|P| + |T|)$. It cannot be trained with: move a probability from 0.3
# to 0.4 and the mask stays the same, so the gradient is 0 nearly everywhere. Put probabilities in the place of the
# mask and the fraction becomes smooth:
#
# $$D = \frac{A}{B}, \qquad A = 2 \sum_j p_j t_j, \qquad B = \sum_j p_j + \sum_j t_j, \qquad L = 1 - D .$$
#
# Where a class is absent and is predicted nowhere, this is 0/0. A small number is added above and below, which makes it
# 1: nothing to find, nothing found. And the sums run over the *whole batch* before dividing. Why that matters you will
# see in the failure lab.
#
# ### Exercise 07.2: the soft Dice loss of a batch
#
# *About 10 minutes, difficulty 2 of 5.* `probabilities` and `truth` are tensors $(\mathrm{patches}, \mathrm{classes},
# \mathrm{pixels})$ without the background. One Dice for each class, smoothed by $10^{-5}$ above and below; return 1
# minus their mean.


# %% exercise="07.2"
def soft_dice_loss(probabilities, truth):
    pass  ### SOLUTION


# %%
check("07.2", soft_dice_loss)

# %% [markdown]
# From here on the package's `segmentation_loss` is used: this Dice loss plus cross-entropy. MONAI's `DiceCELoss` is the
# same function from other hands. The cell compares value and gradient.

# %% tags=["independent", "nbval-check-output"]
generator = torch.Generator().manual_seed(0)
logits = torch.randn(4, 3, 12, 15, generator=generator, dtype=torch.float64, requires_grad=True)
label = torch.randint(3, (4, 12, 15), generator=generator)
theirs = DiceCELoss(
    include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
)
ours, other = segmentation_loss(logits, label), theirs(logits, label[:, None])
gradients = [torch.autograd.grad(value, logits)[0] for value in (ours, other)]
assert abs(ours - other) < 1e-12 and torch.allclose(*gradients, rtol=0, atol=1e-12)
print(f"ours {ours:.6f}, MONAI's {other:.6f}; the gradients agree to 12 digits after the point")

# %% [markdown]
# **A surprise to explain.** Back to the network that knows nothing and gives every pixel the same $p$. Cross-entropy
# wants $p = r$, with the weight it wants one half. What does Dice want of it?

# %% tags=["surprise", "nbval-check-output"]
r = 0.03  # the share of the foreground
weight = (1 - r) / r
constants = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
shared_logit = torch.logit(constants).requires_grad_()
p = torch.sigmoid(shared_logit)
losses = {
    "cross-entropy": -r * p.log() - (1 - r) * (1 - p).log(),
    "weighted cross-entropy": -weight * r * p.log() - (1 - r) * (1 - p).log(),
    "Dice loss": 1 - 2 * p * r / (p + r),
}
for name, values in losses.items():
    print(f"{name:22} is smallest at p = {constants[values.argmin()]:.3f}, where it is {values.min():.3f}")

# %% tags=["figure"]
pulls = {
    name: -torch.autograd.grad(values.sum(), shared_logit, retain_graph=True)[0] for name, values in losses.items()
}
display(
    lines(
        constants[::14],
        {name: pull[::14] / pull.abs().max() for name, pull in pulls.items()},
        x_label="the same probability p for every pixel, 3% of them foreground",
        y_label="pull on the logit, largest 1",
    )
)

# %% [markdown]
# Where a curve lies above 0, training raises the logit. Cross-entropy stops at *three per cent*, with the weight at one
# half. Dice never stops. It says *everything is foreground*, at 97 wrong pixels in a hundred. Do not read on before you
# have an explanation.
#
# Insert $p_j = p$ into $D$: it is $2pr/(p + r)$, and its slope $2r^2/(p + r)^2$ is positive for every $p$.
#
# ## 3 · What Dice pulls on
#
# The full answer is in the gradient. By the quotient rule, with $\partial A / \partial p_j = 2 t_j$ and
# $\partial B / \partial p_j = 1$,
#
# $$\frac{\partial D}{\partial p_j} = \frac{2 t_j B - A}{B^2} = \frac{2 t_j - D}{B} .$$
#
# ### Exercise 07.3: the gradient of soft Dice
#
# *About 15 minutes, difficulty 3 of 5.* One class; `probabilities` and `truth` are tensors of any equal shape. Return
# the gradient of the *loss* $1 - D$, without smoothing and without autograd.


# %% exercise="07.3"
def dice_gradient(probabilities, truth):
    pass  ### SOLUTION


# %%
check("07.3", dice_gradient)

# %% [markdown]
# Three things follow from this one line.
#
# **It balances the classes.** A true pixel pulls with $(2 - D)/B$, a background pixel with $D/B$. Let all $p_j$ be one
# half, as at the start. Then $A = rN$ and $B = N/2 + rN$, so $D = 2r/(1 + 2r)$. The pulls of all true pixels together
# stand to those of all background pixels together as
#
# $$\frac{r\,(2 - D)}{(1 - r)\,D} = \frac{r\,(2 + 2r)}{(1 - r)\, 2r} = \frac{1 + r}{1 - r} .$$
#
# The $r$ that ruined cross-entropy is gone: however rare the class, both sides pull alike. The next cell measures it
# with autograd and the package's own loss, and compares it with the formula. It also measures the sum of both losses.


# %%
def foreground_pull(loss, share, pixels=10_000):
    """The part of all gradients that foreground pixels have, at probabilities of one half."""
    label = (torch.arange(pixels) < round(share * pixels)).long().view(1, 1, -1)
    logits = torch.zeros(1, 2, 1, pixels, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(logits, label), logits)
    pull = gradient[0, 1, 0].abs()
    return float(pull[label[0, 0] == 1].sum() / pull.sum())


def dice_alone(logits, label):
    return segmentation_loss(logits, label) - F.cross_entropy(logits, label)


shares = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5]
shares_of_pull = {
    "cross-entropy": [foreground_pull(F.cross_entropy, share) for share in shares],
    "Dice loss": [foreground_pull(dice_alone, share) for share in shares],
    "both": [foreground_pull(segmentation_loss, share) for share in shares],
}
for share, measured in zip(shares, shares_of_pull["Dice loss"], strict=True):
    assert abs(measured / (1 - measured) - (1 + share) / (1 - share)) < 1e-4
for share, measured in zip(shares, shares_of_pull["cross-entropy"], strict=True):
    assert abs(measured - share) < 1e-9
for share, measured in zip(shares, shares_of_pull["both"], strict=True):
    foreground = share / 2 + share * (1 + share) / (1 + 2 * share) ** 2  # derived below the figure
    assert abs(measured - foreground / (1 / 2 + 2 * share / (1 + 2 * share) ** 2)) < 1e-4

# %% tags=["figure"]
display(
    lines(
        shares,
        shares_of_pull,
        x_label="share of the pixels that are foreground",
        y_label="share of the pull that is the foreground's",
        log_x=True,
    )
)

# %% [markdown]
# **Balanced, but weak.** Why is the sum of both nearly as unbalanced as cross-entropy alone? Compare not only the sides
# of each loss, but the losses. The network gives logits, and for two classes the chain rule multiplies by
# $\partial p_j / \partial z_j = p_j (1 - p_j)$, here 1/4. All pulls of Dice together are then
#
# $$\frac14 \cdot \frac{rN\,(2 - D) + (1 - r)N\,D}{B} = \frac{2r}{(1 + 2r)^2} ,$$
#
# and those of cross-entropy $\frac12$. Dice has $4r/(1 + 2r)^2$ of that, about $4r$: with three pixels of a hundred a
# ninth. So at first the sum behaves like cross-entropy and learns to say no.
#
# Follow it to where cross-entropy alone would stay, $p_j = r$ everywhere. There its two sides cancel, $r(1 - r)$ each.
# Dice has $A = 2r^2 N$ and $B = 2rN$ there, so $D = r$. Its true pixels pull up with $\frac12 (2 - r) \cdot r(1 - r)$,
# nearly as hard as those of cross-entropy; its background pulls down with $\frac12 (1 - r) \cdot r(1 - r)$, half as
# hard. So Dice decides once the background is nearly right and its cross-entropy has died away.
#
# **It lets go of pixels that are surely wrong.** For a true pixel of cross-entropy the factor $p_j (1 - p_j)$ cancels
# against the $1/p_j$ of the logarithm; in Dice it stays. A pixel that was missed with certainty, $p_j$ near 0, hardly
# pulls. Cross-entropy pulls hardest exactly there. That is the reason to *add* the two: cross-entropy brings back what
# was missed, and Dice keeps the rare class from being outvoted in the end.

# %% tags=["figure"]
given = np.linspace(0.001, 0.999, 101)
display(
    lines(
        given,
        {"cross-entropy: 1 - p": 1 - given, "Dice, divided by its largest: 4 p (1 - p)": 4 * given * (1 - given)},
        x_label="probability that a true pixel gets",
        y_label="its pull on the logit",
    )
)

# %% [markdown]
# **It does not want probabilities.** Suppose the image does not settle the matter: pixel $j$ is foreground with
# probability $\eta_j$. With many pixels, $A$ and $B$ are close to their means, and the formula becomes
#
# $$\frac{\partial D}{\partial p_j} = \frac{2 \eta_j - D}{B} .$$
#
# Its sign does not depend on $p_j$. If $\eta_j > D/2$, Dice wants $p_j = 1$, otherwise 0, and nothing in between.
# Cross-entropy wants $p_j = \eta_j$.
#
# **The best cut.** The same sum answers the question of section 1. Build a mask pixel by pixel, the most probable
# first. One more pixel adds $2\eta_j$ to $A$ and 1 to $B$. It helps as long as
#
# $$\frac{A + 2\eta_j}{B + 1} > \frac{A}{B}, \quad \text{that is} \quad 2 \eta_j B > A, \quad \text{that is} \quad
# \eta_j > \frac{D}{2} = \theta .$$
#
# *The mask with the best Dice holds the pixels above half the Dice that it reaches.* Since $D$ is at most 1, the best
# cut never lies above one half, and for a hard task it lies far below. The network that knows nothing has
# $\eta_j = r$ and reaches $D = 2r/(1 + r)$ with everything; $r$ lies above half of that, so everything it is.
#
# ## 4 · Three networks
#
# Predictions, to be tested: trained with Dice, a network is nearly always sure. Trained with cross-entropy, its
# probabilities mean what they say, and its best threshold is half its Dice. The same small U-Net, three times. (What
# the text says about the results holds in profile `cpu`; in `ci` the networks are only half trained.)


# %%
def random_patches(count, size, generator):
    """Patches of random images, half of them mirrored: image (count, C, size, size), label (count, size, size)."""
    pairs = []
    for _ in range(count):
        n = int(torch.randint(len(images), (), generator=generator))
        top, left = (int(torch.randint(extent - size + 1, (), generator=generator)) for extent in labels[n].shape)
        place = (..., slice(top, top + size), slice(left, left + size))
        flip = [-1] if torch.rand((), generator=generator) < 0.5 else []
        pairs.append((images[n][place].flip(flip), labels[n][place].flip(flip)))
    return [torch.stack(part) for part in zip(*pairs, strict=True)]


def train_with(loss, steps):
    """A small U-Net after so many steps of Adam on patches that are the same for every loss."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    facts = {"spatial_dims": 2, "in_channels": len(images[0]), "num_classes": 2, "patch_size": (64, 64)}
    model = lab.build("unet", **facts, features=(8, 16, 32))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps)
    for _ in tqdm(range(steps), "training"):
        image, label = random_patches(8, 64, generator)
        optimizer.zero_grad()
        loss(model(image), label).backward()
        optimizer.step()
        schedule.step()
    return model


# %%
LOSSES = {"cross-entropy": F.cross_entropy, "Dice": dice_alone, "both": segmentation_loss}
steps = choose(ci=20, cpu=300)
print(f"three trainings of {steps} steps: {estimate(ci=4, cpu=60)}")
models = {name: train_with(loss, steps) for name, loss in tqdm(LOSSES.items(), "losses")}

# %% tags=["surprise"]
print(f"predicting held-out images with all three: {estimate(ci=3, cpu=20)}")
held_out = [n for n in range(len(test)) if min(test[n]["label"].shape) >= 64][: choose(ci=2, cpu=16)]
true = np.concatenate([contacts(test.instances(n)).ravel() for n in held_out]).astype(bool)
sure, best = {}, {}
probability = {
    name: np.concatenate(
        [predict_probabilities(model, test.raw(n), patch_size=(128, 128))[1].ravel() for n in tqdm(held_out, name)]
    )
    for name, model in models.items()
}
thresholds = np.linspace(0.05, 0.95, 19)
dice_at = {name: [metrics.dice(p > threshold, true) for threshold in thresholds] for name, p in probability.items()}
print("                 Dice at 1/2   predicted/true size   surely 0 or 1   best threshold   half its Dice")
for name, p in probability.items():
    sure[name], best[name] = np.mean((p < 0.05) | (p > 0.95)), int(np.argmax(dice_at[name]))
    print(
        f"{name:15}  {metrics.dice(p > 0.5, true):11.3f}   {np.mean(p > 0.5) / true.mean():19.2f}   {sure[name]:13.1%}"
        f"   {thresholds[best[name]]:14.2f}   {dice_at[name][best[name]] / 2:13.2f}"
    )
surer = sure["Dice"] > sure["cross-entropy"]
apart = abs(thresholds[best["cross-entropy"]] - max(dice_at["cross-entropy"]) / 2)
if current_profile().name == "ci":
    print(f"Networks of {steps} steps have not learnt enough to test the predictions.")
elif RECIPE == "phantom_microscopy":
    assert surer and apart < 0.15
else:  # what other images give is not known beforehand
    print("Trained with Dice the network is", "surer" if surer else "NOT surer", "than with cross-entropy.")
    print(f"After cross-entropy the best threshold is {apart:.2f} away from half the Dice it reaches.")

# %% tags=["figure"]
display(lines(thresholds, dice_at, x_label="threshold", y_label="Dice on held-out images"))

# %% [markdown]
# **A surprise to explain.** Look at the first row and the first column. Trained with cross-entropy, the network seems
# to have learnt nothing at all: cut at one half, its mask is empty, or nearly so. Cut where the theory says, it is about
# as good as the one that was trained with Dice. Nothing was wrong with the training; the threshold was. The Dice network
# does not care about the threshold: it is sure nearly everywhere, and no threshold changes much. (Which loss gives the
# better network is another question. One training of each, as here, does not answer it; lesson 00 says what would.)
#
# And do the probabilities mean what they say? Take all pixels that were given about 0.3: are three in ten of them
# contacts? The dashed line is where they would be.

# %% tags=["figure"]
edges = np.linspace(0, 1, 11)


def share_true(p):
    """For ten ranges of probability, the share of pixels that truly are foreground; NaN where there are few pixels."""
    place = np.clip(np.digitize(p, edges) - 1, 0, 9)
    counts, hits = np.bincount(place, minlength=10), np.bincount(place, true, minlength=10)
    return np.where(counts >= 20, hits / np.maximum(counts, 1), np.nan)


middles = (edges[:-1] + edges[1:]) / 2
display(
    lines(
        middles,
        {name: share_true(p) for name, p in probability.items()} | {"as it says": middles},
        x_label="probability that was predicted",
        y_label="share that is true",
        dashed=["as it says"],
    )
)

# %% [markdown]
# The network that was trained with Dice promises too much. And where it hesitates, at any number between, about half
# its Dice is true: these are the pixels for which the gradient has no sign.
#
# Whoever needs a mask may take either, and the weight of section 1 as well: to cut at $\theta$ is to cut at one half
# after training with $w = (1 - \theta)/\theta$. Whoever needs to know *how sure* the network is (lesson 10 does) must
# not ask a network that was trained with Dice alone.
#
# ## 5 · Deep supervision
#
# The loss stands at the end of the decoder. By the chain rule, its gradient at the bottleneck is a product with one
# factor for every stage on the way back, and such a product may become small. **Deep supervision** gives each
# resolution of the decoder a head and a loss of its own, with half the weight of the one above:
#
# $$L = \sum_{l=0}^{n-1} w_l L_l, \qquad w_l = \frac{2^{-l}}{\sum_{c=0}^{n-1} 2^{-c}} = \frac{2^{-l}}{2 - 2^{1-n}} .$$
#
# The weights add up to 1, so that the loss stays as large as it was. The finest has $w_0 = 1/(2 - 2^{1-n})$, more than
# one half, however many there are: the resolution that will be used keeps the majority.
#
# Every loss needs a label of its size. A label is no picture: between class 0 and class 2 there is no class 1 to be
# found by averaging. So pixels are left out. Of each block of 4 x 4, say, pixel number 2 along each axis is kept (the
# count begins at 0), as nearest-neighbour resizing does it (nnU-Net, `nearest-exact`): it takes the label for a picture
# of larger pixels and asks which pixel lies at the middle of each. The feature map itself is centred on the first pixel
# of the block (lesson 05), half a coarse pixel beside the label. No score depends on it: the convolutions before the
# head can make up for it, and at the finest resolution, the one that will be used, there is nothing to make up for.
#
# ### Exercise 07.4: a loss at every resolution
#
# *About 12 minutes, difficulty 3 of 5.* `outputs` is a list of logits `(batch, classes, y, x)`, the finest first, each
# half as large along both axes as the one before; `label` is `(batch, y, x)`, of the size of the finest. Take
# `F.cross_entropy` for every resolution. Of a block of `factor` pixels along an axis, keep number `factor // 2`.


# %% exercise="07.4"
def deep_loss(outputs, label):
    pass  ### SOLUTION


# %%
check("07.4", deep_loss)

# %% [markdown]
# The package's `deep_supervision_loss` does the same with Dice plus cross-entropy. How much of the gradient at the
# bottleneck comes from which resolution? The network below has just been made and trained on nothing.

# %%
torch.manual_seed(0)
facts = {"spatial_dims": 2, "in_channels": len(images[0]), "num_classes": 2, "patch_size": (64, 64)}
deep = lab.build("unet", **facts, features=(8, 16, 32, 64), deep_supervision=True)
image, label = random_patches(8, 64, torch.Generator().manual_seed(1))
outputs = deep(image)
weights = [0.5**level / sum(0.5**c for c in range(len(outputs))) for level in range(len(outputs))]
parts = [
    weight * segmentation_loss(logits, resized_label(label, logits.shape[2:]))
    for weight, logits in zip(weights, outputs, strict=True)
]
assert torch.allclose(sum(parts), deep_supervision_loss(outputs, label))
bottleneck = list(deep.encoder.stages[-1].parameters())
for level, (weight, part) in enumerate(zip(weights, parts, strict=True)):
    gradients = torch.autograd.grad(part, bottleneck, retain_graph=True)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    print(
        f"resolution 1/{2**level}: weight {weight:.3f}, gradient {norm:.4f}, divided by the weight {norm / weight:.3f}"
    )

# %% [markdown]
# The finest loss has more than half of the weight and the weakest pull. Divided by its weight, a loss pulls harder the
# coarser it is: its way to the bottleneck is shorter.
#
# **A surprise to explain.** What does averaging do to a label? The recipe's own classes are 0 background, 1 interior
# and 2 boundary. Shrink them to a quarter, once by leaving pixels out and once by averaging and rounding. Where does
# all this *interior* come from?

# %% tags=["surprise"]
classes = train[chosen[0]]["label"]
quarter = tuple(extent // 4 for extent in classes.shape)
nearest = resized_label(classes[None], quarter)[0]
averaged = F.interpolate(classes[None, None].float(), quarter, mode="area")[0, 0].round().long()
has_interior = F.max_pool2d((classes[None] == 1).float(), 4)[0] > 0
for name, small in {"nearest": nearest, "averaged and rounded": averaged}.items():
    invented = ((small == 1) & ~has_interior).sum() / (small == 1).sum()
    print(f"{name:21}: {float(invented):.0%} of the interior stands where not one pixel was interior")

# %% [markdown]
# Half background and half boundary average to 1, and 1 is the number of the interior.
#
# The nearest value invents nothing. But it does not see everything either: at a quarter of the resolution it looks at
# one pixel in sixteen.

# %%
lost = {}
for name, pick in {
    "cells": lambda cells: cells,
    "contacts": lambda cells: ndimage.label(contacts(cells), np.ones((3, 3)))[0],
}.items():
    numbered = [torch.from_numpy(pick(train.instances(n)).astype(np.int64)) for n in chosen]
    lost[name] = []
    for factor in (1, 2, 4, 8, 16):
        kept = [len(resized_label(x[None], [e // factor for e in x.shape]).unique()) - 1 for x in numbered]
        lost[name].append(sum(kept) / sum(len(x.unique()) - 1 for x in numbered))

# %% tags=["figure"]
display(
    lines(
        [1, 2, 4, 8, 16],
        lost,
        x_label="resolution of the label: one pixel in so many along each axis",
        y_label="share of the objects that are still there",
        log_x=True,
    )
)

# %% [markdown]
# At coarse resolutions the network is told that thin things are not there. That is one reason to let the
# weights halve, and to leave the coarsest outputs out.
#
# ## 6 · Scores, and how each is fooled
#
# Now to the other side: the numbers in the table of a paper. One image of cells, and predictions with one flaw each.
# For each flaw, guess which score minds, *before* you look at the figure: **Dice** compares areas. **NSD**, the
# normalised surface Dice, asks how much of both outlines lies within a tolerance of the other one. **HD95** asks how
# far the worst twentieth of an outline is off. **Instance F1** asks how many cells found a partner.

# %%
_, cells = microscopy(11, (128, 128))
truth = cells > 0
sizes = np.bincount(cells.ravel())
big = sizes >= np.median(sizes[1:])
core, thinner, speck = np.zeros_like(truth), np.zeros_like(cells), cells.copy()
for number in range(1, cells.max() + 1):
    core |= ndimage.binary_erosion(cells == number, iterations=3)
    thinner[ndimage.binary_erosion(cells == number, iterations=2)] = number
melted = ndimage.label(ndimage.binary_closing(truth, iterations=2) | truth, np.ones((3, 3)))[0]
room = ndimage.distance_transform_edt(np.pad(~truth[8:-8, 8:-8], 8))  # not at the edge, where F1 leaves cells out
row, column = np.unravel_index(room.argmax(), truth.shape)
speck[row - 1 : row + 2, column - 1 : column + 2] = cells.max() + 1
FLAWS = {
    "the truth itself": cells,
    "every cell two pixels too thin": thinner,
    "neighbours melted together": melted,
    "small half of the cells missed": np.where(big[cells], cells, 0),
    "a hole in every cell": np.where(core, 0, cells),
    "one speck far away": speck,
    "shifted by two pixels": np.roll(cells, 2, axis=1),
    "nothing at all": np.zeros_like(cells),
}


def scores_of(prediction, cells):
    shared = {"spacing": (1.0, 1.0)}
    return {
        "Dice": metrics.dice(prediction > 0, cells > 0),
        "NSD, 1 pixel": metrics.surface_dice(prediction > 0, cells > 0, tolerance=1.0, **shared),
        "HD95": metrics.hausdorff95(prediction > 0, cells > 0, **shared),
        "instance F1": metrics.instance_f1(prediction, cells).f1,
    }


judged = {name: scores_of(prediction, cells) for name, prediction in FLAWS.items()}

# %% tags=["figure"]
display(flaws(truth, FLAWS, judged))

# %% [markdown]
# No score minds everything, and each has a flaw that it hardly sees. Look at the second picture: every outline is two
# pixels off, the tolerance of NSD is one, and still NSD calls most of it right. The rest of this section says why,
# score by score.
#
# ### Dice: it depends on how large the thing is
#
# Shift a disc of radius $R$ by $u$. Seen along the shift the disc is $2R$ wide, so on one side an area of about $2Ru$
# is lost, and on the other as much is gained. With $|P| = |T| = \pi R^2$,
#
# $$\mathrm{Dice} = 1 - \frac{|P \setminus T| + |T \setminus P|}{|P| + |T|} \approx 1 - \frac{4Ru}{2 \pi R^2} = 1 - \frac{2u}{\pi R} .$$
#
# The same mistake, one pixel, costs a small disc dearly and a large one nothing.


# %%
def disc(radius, size=160):
    """A disc in the middle of an image."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return rows**2 + columns**2 <= radius**2


radii = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
measured = [metrics.dice(disc(radius), np.roll(disc(radius), 1, 1)) for radius in radii]
for radius, value in zip(radii, measured, strict=True):
    assert abs(value - (1 - 2 / (math.pi * radius))) < 0.2 / radius, (radius, value)
print(f"one pixel off: Dice {measured[0]:.2f} at radius {radii[0]}, {measured[-1]:.3f} at radius {radii[-1]}")

# %% tags=["figure"]
display(
    lines(
        radii,
        {"measured": measured, "1 - 2 / (pi R)": [1 - 2 / (math.pi * radius) for radius in radii]},
        x_label="radius of the disc in pixels, shifted by one pixel",
        y_label="Dice",
        log_x=True,
        dashed=["1 - 2 / (pi R)"],
    )
)

# %% [markdown]
# So a mean of Dice over organs says first of all how large the organs are. A Dice of 0.7 for the adrenal gland may be
# better work than 0.95 for the liver.
#
# **And it depends on how empty cases count.** Ten patients, four with a tumour. One network never says anything. The
# other finds every tumour, and puts one false pixel into every image.

# %% tags=["surprise", "nbval-check-output"]
tumour = np.zeros((10, 12, 12), bool)
tumour[:4, 3:9, 3:9] = True
eager = tumour.copy()
eager[:, 0, 0] = True
for name, prediction in {"says nothing": np.zeros_like(tumour), "finds all, and a pixel more": eager}.items():
    each = [metrics.dice(found, wanted) for found, wanted in zip(prediction, tumour, strict=True)]
    print(f"{name:28}: mean of the cases {np.mean(each):.2f}, all pixels in one {metrics.dice(prediction, tumour):.2f}")

# %% [markdown]
# **A surprise to explain.** By the mean over cases the silent network wins. Six cases without a tumour give it 1 each,
# and the single false pixel costs the other network all of them: 0 overlap divided by 1. Summing over all pixels before
# dividing turns the order round, as it did for the loss.
#
# **How to fool it:** take large objects; leave out small ones; smooth every outline; have many empty cases and say
# nothing.
#
# ### NSD: it depends on the tolerance, and in two dimensions on who computes it
#
# Let $S_P$ and $S_T$ be the surfaces of $P$ and $T$, and $|\cdot|$ the area of a piece of surface (in a picture the
# length of a piece of outline). With $d(x, S)$ the distance from $x$ to the nearest point $y$ of a surface $S$, and
# $\tau$ the tolerance,
#
# $$\mathrm{NSD} = \frac{|\{x \in S_P : d(x, S_T) \le \tau\}| + |\{x \in S_T : d(x, S_P) \le \tau\}|}{|S_P| + |S_T|} .$$
#
# It asks: what share of the outline would a person not have to draw again? A large organ is not favoured any more.
# Move a cell and the tolerance and watch.

# %% tags=["widget"]
largest = int(np.bincount(cells.ravel())[1:].argmax()) + 1
rows, columns = ndimage.find_objects(cells)[largest - 1]
one_cell = np.pad(cells[rows, columns] == largest, 12)
explorer = boundary_tolerance_explorer(one_cell, unit="pixel")
display(explorer)

# %% [markdown]
# **A surprise to explain.** A disc of radius 30, predicted with radius 24. The outline is wrong by six pixels
# *everywhere*; the tolerance is one. What is the NSD? Two programs were asked.

# %% tags=["surprise", "independent"]
wrong, right = disc(24), disc(30)
batch = [torch.from_numpy(mask)[None, None].float() for mask in (wrong, right)]
by_outline = float(compute_surface_dice(*batch, [1.0], include_background=True))
ours = metrics.surface_dice(wrong, right, spacing=(1.0, 1.0), tolerance=1.0)
sheet = [x[..., None, :, :] for x in batch]  # the same masks as volumes one slice thick
by_sheet = float(compute_surface_dice(*sheet, [1.0], include_background=True, use_subvoxels=True, spacing=[1.0] * 3))
assert abs(ours - by_sheet) < 1e-4 and by_outline == 0
print(f"MONAI, pixels of the outline: {by_outline:.2f}; this package, as the published evaluations do it: {ours:.2f}")
print(f"Dice for comparison: {metrics.dice(wrong, right):.2f}")

# %% [markdown]
# The published evaluations hand a picture to a program made for volumes, as a sheet one voxel thick. A sheet has a top
# and a bottom. The rim of a disc of radius $R$ has the area $2\pi R$, top and bottom together $2\pi R^2$: the outline
# is only
#
# $$\frac{2\pi R}{2\pi R^2 + 2\pi R} = \frac{1}{R + 1}$$
#
# of what is scored, and the rest is nearly Dice once more. This package computes it in the same way, so that its
# numbers can be compared with published ones, and says so in its documentation. (The same MONAI, asked for the sheet,
# agrees with us; the cell checks it.) **Never compare an NSD of images from two programs.** HD95 has it too: look at
# what it says of the cells that were shifted by two pixels.
#
# **How to fool it:** choose the tolerance after you have seen the results.
#
# ### HD95: it looks away from one twentieth
#
# $$\mathrm{HD95} = \max\big(q(S_P, S_T),\; q(S_T, S_P)\big), \qquad
# q(S_P, S_T) = \text{95th percentile of } d(x, S_T) \text{ over } x \in S_P .$$
#
# Without the percentile, a single stray voxel would decide. With it, nothing matters that is less than a twentieth of
# the surface. Beside a ball, predicted without a fault, grows a false cube in the corner of the volume:

# %%
radius, grid = 12, np.stack(np.mgrid[:48, :40, :40])
ball = ((grid - np.array([28, 20, 20]).reshape(3, 1, 1, 1)) ** 2).sum(0) <= radius**2
island = {}
for side in range(1, 9):
    prediction = ball.copy()
    prediction[1 : 1 + side, 1 : 1 + side, 1 : 1 + side] = True
    share = 6 * side**2 / (6 * side**2 + 4 * math.pi * radius**2)
    island[share] = metrics.hausdorff95(prediction, ball, spacing=(1.0, 1.0, 1.0))

# %% tags=["figure"]
display(
    lines(
        [100 * share for share in island],
        {"HD95": list(island.values())},
        x_label="surface of the false cube, per cent of all that was predicted",
        y_label="HD95 in voxels",
    )
)

# %% [markdown]
# **How to fool it:** keep every mistake below a twentieth. Or say nothing. For an empty prediction HD95 is infinite;
# many programs write NaN, many tables leave NaN out of the mean:

# %% tags=["nbval-check-output"]
careful, lazy = np.full(10, 4.0), np.array([1.0] * 7 + [np.inf] * 3)  # HD95 of ten cases in mm
for name, distances in {"finds all ten": careful, "finds the seven easy ones": lazy}.items():
    scored = distances[np.isfinite(distances)]
    print(f"{name:26}: mean HD95 {scored.mean():.1f} mm, {len(scored)} of {len(distances)} cases in the mean")

# %% [markdown]
# Whoever reports a distance must say how many cases it leaves out. Dice and NSD have an answer for an empty
# prediction: 0.
#
# ### Spacing: a voxel is not a millimetre
#
# Volumes of an abdominal MRI have thick slices. Two points that are $\Delta_a$ voxels apart along axis $a$ have the
# distance
#
# $$d(x, y) = \sqrt{\sum_a (s_a \Delta_a)^2} .$$
#
# Each axis is scaled *before* squaring; no single factor afterwards can repair it. And the order matters: arrays are
# $(\mathrm{z}, \mathrm{y}, \mathrm{x})$, while NIfTI headers and ITK say $(\mathrm{x}, \mathrm{y}, \mathrm{z})$.
#
# ### Exercise 07.5: HD95 in millimetres
#
# *About 15 minutes, difficulty 3 of 5.* `first` and `second` are arrays of whole voxel coordinates, one row a surface
# point, $(\mathrm{points}, \mathrm{dimensions})$; `spacing` has one number a dimension, in the same order. Take
# `np.percentile(..., 95)` in each direction.


# %% exercise="07.5"
def hausdorff95(first, second, spacing):
    pass  ### SOLUTION


# %%
check("07.5", hausdorff95)

# %% [markdown]
# The package's `metrics.hausdorff95` weighs the points by the area they stand for, and goes on from here. One liver,
# predicted one slice too high. Four ways of telling the program how large a voxel is:

# %% tags=["surprise"]
_, label = scene(1)
liver = label == LABELS["liver"]
higher = np.zeros_like(liver)
higher[1:] = liver[:-1]
TRUE_SPACING = (8.0, 3.0, 3.0)  # mm, (z, y, x)
told = {
    "right": TRUE_SPACING,
    "in the order (x, y, z)": (3.0, 3.0, 8.0),
    "lost: all 1": (1.0,) * 3,
    "the mean": (14 / 3,) * 3,
}
for name, spacing in told.items():
    volume = liver.sum() * math.prod(spacing) / 1e6
    nsd = metrics.surface_dice(higher, liver, spacing=spacing, tolerance=5.0)
    distance = metrics.hausdorff95(higher, liver, spacing=spacing)
    print(
        f"{name:23}: volume {volume:.3f} l, NSD at 5 mm {nsd:.2f}, HD95 {distance:.1f} mm, "
        f"Dice {metrics.dice(higher, liver):.2f}"
    )

# %% [markdown]
# **A surprise to explain.** Look at the second row. The volume is right to the last digit, Dice knows nothing of
# spacing, and the surface scores are wonderful and wrong. Which check would have found it?
#
# A product does not mind the order of its factors, so no check of volumes finds it. Sizes along each axis do.
#
# Does ITK see it as we do? Its Hausdorff distance, between sets of voxels, against SciPy's. Note where the spacing
# turns round.

# %% tags=["independent", "nbval-check-output"]
small = [mask[::2, ::4, ::4] for mask in (liver, higher)]
spacing = np.array([16.0, 12.0, 12.0])
pictures = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in small]
for picture in pictures:
    picture.SetSpacing(spacing[::-1].tolist())
measure = sitk.HausdorffDistanceImageFilter()
measure.Execute(*pictures)
points = [np.argwhere(mask) * spacing for mask in small]
by_scipy = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
assert abs(measure.GetHausdorffDistance() - by_scipy) < 1e-9
print(f"ITK {measure.GetHausdorffDistance():.3f} mm, SciPy {by_scipy:.3f} mm")

# %% [markdown]
# ### Instance F1: it sees nothing, and then everything
#
# Count cells, not pixels. A predicted cell $P$ and a true one $T$ are partners if
#
# $$\mathrm{IoU}(P, T) = \frac{|P \cap T|}{|P \cup T|} > \frac12 ; \qquad
# \mathrm{F1} = \frac{2\,\mathrm{TP}}{2\,\mathrm{TP} + \mathrm{FP} + \mathrm{FN}} ,$$
#
# where TP counts the pairs, FP the predicted cells without a partner and FN the true ones without.
#
# Why one half? From $\mathrm{IoU} > \frac12$ follows $|P \cap T| > \frac12 |P \cup T| \ge \frac12 |P|$: more than half
# of $P$ lies in $T$. Two true cells cannot both hold more than half of $P$, since they share no pixel. In the same way
# more than half of $T$ lies in $P$. So partners are unique, and no choice has to be made.
#
# ### Exercise 07.6: cells counted
#
# *About 20 minutes, difficulty 4 of 5.* `prediction` and `truth` are label images: 0 is background, every cell has a
# number of its own, in no particular order and perhaps with gaps. Return F1 as a number; 1 where there is no cell and
# none is predicted.


# %% exercise="07.6"
def cell_f1(prediction, truth):
    pass  ### SOLUTION


# %%
check("07.6", cell_f1)

# %% [markdown]
# The package's `metrics.instance_f1` counts a pair from IoU 1/2 on, not only above. At exactly one half the argument
# fails: a predicted cell of two pixels, of which two true cells hold one each, has two candidates. So the package pairs
# cells off one to one, as many pairs as possible, and lower thresholds are allowed too. SciPy's assignment, an
# algorithm of another kind, must find as many pairs.

# %% tags=["independent", "nbval-check-output"]
moved = np.roll(cells, (3, 4), (0, 1))
overlap = np.zeros((cells.max(), moved.max()))
for one in range(1, cells.max() + 1):
    for other in range(1, moved.max() + 1):
        a, b = cells == one, moved == other
        overlap[one - 1, other - 1] = np.sum(a & b) / np.sum(a | b)
pairs = {}
for threshold in (0.1, 0.3, 0.5):
    rows, columns = linear_sum_assignment(overlap >= threshold, maximize=True)
    pairs[threshold] = int((overlap >= threshold)[rows, columns].sum())
    assert pairs[threshold] == metrics.instance_f1(moved, cells, iou=threshold, drop_border=0).tp
print("pairs found by both:", ", ".join(f"{count} at IoU {threshold}" for threshold, count in pairs.items()))

# %% [markdown]
# Now shrink every cell, pixel by pixel. A disc of radius $R$ that lost $u$ has $\mathrm{IoU} = (R - u)^2 / R^2$, and
# this is above one half as long as $u < (1 - \sqrt{1/2})\,R$, about $0.29\,R$. Until then F1 sees nothing.

# %%
shrunk = {"Dice": [], "instance F1": []}
for amount in range(6):
    prediction = np.zeros_like(cells)
    for number in range(1, cells.max() + 1):
        inside = cells == number
        prediction[ndimage.binary_erosion(inside, iterations=amount) if amount else inside] = number
    shrunk["Dice"].append(metrics.dice(prediction > 0, truth))
    shrunk["instance F1"].append(metrics.instance_f1(prediction, cells).f1)

# %% tags=["figure"]
display(lines(range(6), shrunk, x_label="pixels taken off every cell", y_label="score"))

# %% [markdown]
# **How to fool it:** outlines may be anything, as long as half is right. And a boundary of one pixel, drawn between
# cells that touch, is worth more than all the rest.
#
# ### So which score?
#
# The one whose blind spot does not matter for the question, and a second one of another kind:
#
# | score | what it does not see | what to report beside it |
# |---|---|---|
# | Dice | where the error is; small objects beside large ones | NSD or HD95; each organ by itself |
# | NSD | anything within the tolerance, and how far off the rest is | HD95; the tolerance, fixed beforehand |
# | HD95 | a twentieth of the surface; cases without a prediction | Dice; how many cases it leaves out |
# | instance F1 | outlines, as long as half is right | Dice of the pairs |
#
# To plan radiotherapy: surfaces in mm. To count: instances. To follow a tumour's volume: the volume. Always case by
# case, with the worst case looked at.
#
# ## 7 · The failure lab
#
# Five runs came in, A to E. Each is real: the next cell trains them. Each went wrong for a reason that has cost people
# weeks. The owners tell you what they saw.

# %%
steps = choose(ci=12, cpu=100)
print(f"five small runs: {estimate(ci=6, cpu=25)}")
runs = {name: start_run(name, steps) for name in tqdm("ABCDE", "runs")}

# %%
for name, run in runs.items():
    print(f"Run {name}, {run.precision}. {run.complaint}\n")

# %% tags=["figure"]
display(loss_curves({f"run {name}": run.records for name, run in runs.items() if run.records}))

# %% [markdown]
# You have five probes. They measure and draw no conclusion:
#
# | probe | what it says |
# |---|---|
# | `probes.replay(run)` | the last batch once more, with numbers as large as float16, float32 and float64 hold: what overflows first |
# | `probes.largest_gate(run)` | the largest pre-activation of an input gate of an mLSTM |
# | `probes.shared_share(run)` | how much of the validation images also occurs in training images |
# | `probes.extent(run)` | how long the validation images are, in the unit of their spacing |
# | `probes.pulls(run)` | for some patches: share of foreground, and how strongly the patch pulls on its logits |
#
# Facts you need: exp overflows in float16 above 11.09 and in float32 above 88.72, the logarithms of the largest numbers
# of these formats, 65,504 and `3.4e38`. The probe `replay` looks at what each module gives, not at every product on the
# way. A scan of an abdomen covers between 100 and 600 mm along every axis.
#
# Read a complaint. Say what you suspect, and which probe would show it. Then ask that probe, and only that one. Write
# down a diagnosis for each run, and the reading that proves it.

# %%
run, probe = runs["A"], probes.replay  # your choice of both
probe(run)

# %% [markdown]
# When you have all five, compare. Here are all readings:

# %%
for name, run in runs.items():
    print(f"run {name}")
    for precision, finding in probes.replay(run).items():
        print(f"   the last batch in {precision}: {finding}")
    print(f"   largest gate {probes.largest_gate(run):.1f}, shared {probes.shared_share(run):.1%}", end="")
    print(f", extent {' x '.join(f'{side:g}' for side in probes.extent(run)[0])}")
    for share, pull in probes.pulls(run, most=2):
        print(f"   a patch with {share:.1%} foreground pulls with {pull:.1e}")

# %% [markdown]
# ### Exercise 07.7: what ails a run
#
# *About 40 minutes, difficulty 5 of 5.* `probes.readings(run)` puts the readings of a run into a dictionary:
#
# | key | value |
# |---|---|
# | `"precision"` | `"float16"` or `"float32"`: what it was computed in |
# | `"overflow"` | what overflows first in that precision, in words; `""` if nothing does |
# | `"largest gate"` | as above, 0 without an mLSTM |
# | `"shared"` | as above, from 0 to 1 |
# | `"extent"` | mm along (z, y, x), an empty tuple for pictures |
# | `"pull of empty patches"` | how strongly patches without foreground pull, compared with those that have some; 1 if all have some |
#
# Write a function that returns one of the words `"gate overflow"`, `"float16 overflow"`, `"wrong spacing"`, `"leak"`,
# `"empty class"`, `"healthy"`. It is tried on readings like those of the five runs, and on others.


# %% exercise="07.7"
def diagnose(readings):
    pass  ### SOLUTION


# %%
check("07.7", diagnose)

# %% tags=["solution"]
EXPECTED = {"A": "leak", "B": "float16 overflow", "C": "empty class", "D": "wrong spacing", "E": "gate overflow"}
for name, run in runs.items():
    readings = probes.readings(run)
    print(f"run {name}: {diagnose(readings)}")
    assert diagnose(readings) == EXPECTED[name], readings

# %% [markdown] tags=["solution"]
# **A, a leak.** Overlapping patches were cut first and divided into training and validation afterwards. Nearly every
# validation pixel was trained on. Which cells carry the marker was drawn by lot: there was nothing to learn, only to
# remember, and the honest score is that of the new images. *Remedy:* divide by patient, by plate, by video, before
# anything is cut.
#
# **B, float16.** Dice was computed in float16, and its sums run over 11 patches of 64 x 64 pixels. As the network gets
# good at the background, the size of that class (predicted and true, added) passes 65,504 and becomes infinite: its
# Dice is 0, and the loss jumps. Later twice the overlap passes it too, and infinity over infinity is NaN. *Remedy:*
# losses in float32, as `segmentation_loss` does it.
#
# **C, an empty class.** A Dice for each patch, without smoothing. A patch without large cells costs exactly 1,
# whatever the network says there, and has no gradient: put $t_j = 0$ into $(D - 2t_j)/B$, with $D = 0$. The loss
# cannot fall below the share of such patches, and nobody ever tells the network that nothing is there. *Remedy:* sum
# over the batch first; cross-entropy beside it.
#
# **D, wrong spacing.** The extent is 72 x 288 x 1,024 mm: a patient one metre wide. The spacing was written in the
# order (x, y, z). *Remedy:* print the extent of every data set once.
#
# **E, gates.** The cell was written without the stabiliser of lesson 01. A gate passed 88.72, and exp of it is infinite
# in float32. Products and sums were taken in float64, so nothing could overflow before exp did; in float32 throughout a
# product may break first, at a gate still below the limit. The higher learning rate only brought the day nearer. In
# float64 the same batch is finite, and float64 only puts the day off. *Remedy:* carry the maximum of the exponents along.

# %%
progress("07")

# %% [markdown]
# ## Key points
#
# * Cross-entropy pulls on a logit with $(p_{jk} - t_{jk})/N$: every pixel one vote, a rare class is outvoted.
# * Dice pulls on a probability with $(2t_j - D)/B$: balanced, sure of everything, deaf to pixels that are surely
#   wrong. Add both: at first the sum behaves like cross-entropy, later Dice decides.
# * Trained with cross-entropy, cut at half the Dice you reach, and not at one half. A weight does the same as a cut.
# * Supervise coarse resolutions with labels from which pixels were left out, never with averaged ones.
# * Dice favours large objects, NSD depends on its tolerance and its program, HD95 looks away from a twentieth,
#   instance F1 does not see outlines. Report two of different kinds, and say how empty cases count.
# * Scale each axis by its spacing before you square. Volumes do not notice exchanged axes; extents do.
# * When a run breaks, measure before you change anything.

# %% [markdown]
# ## What could go wrong
#
# * *NaN after a good start, in mixed precision only.* Replay the batch in float32. If it is finite there, look for long
#   sums and exponentials in half precision.
# * *NaN in float32 too.* Look at the largest gate, and at the images for extreme values. `lab.fit` names the tensor.
# * *The loss stays at a value that nothing moves.* Count the patches that lack the class, and look at how Dice is
#   averaged.
# * *Validation is far better than the first new data.* Look for shared pixels, patients, videos.
# * *Distances look too good.* Print size times spacing.
# * *Two programs disagree about NSD or HD95.* They mean different surfaces. Find out which before you blame one.

# %% [markdown]
# ## An open question
#
# Dice balances classes because its gradient divides by their sizes. Suppose two raters disagree about every outline by
# a pixel. Which loss would you like to be trained with such labels, and would you rather train with one rater, with
# both in turn, or with their mean as a soft label? What would each of the three losses of section 4 make of a soft
# label, and how would you find out which is best when the truth itself is in doubt?

# %% [markdown]
# ## Further reading
#
# * Milletari, Navab and Ahmadi, *V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation*,
#   arXiv 1606.04797: Dice as a loss.
# * Lipton, Elkan and Naryanaswamy, *Thresholding Classifiers to Maximize F1 Score*, arXiv 1402.1892: the threshold at
#   half the score.
# * Lee et al., *Deeply-Supervised Nets*, arXiv 1409.5185; Isensee et al., *nnU-Net: Breaking the Spell on Successful
#   Medical Image Segmentation*, arXiv 1904.08128: deep supervision and the batch Dice.
# * Nikolov et al., *Deep Learning to Achieve Clinically Applicable Segmentation of Head and Neck Anatomy for
#   Radiotherapy*, arXiv 1809.04430: surface Dice.
# * Maier-Hein et al., *Metrics reloaded: recommendations for image analysis validation*, Nature Methods 21 (2024),
#   arXiv 2206.01653; Reinke et al., *Understanding metric-related pitfalls in image analysis validation*, arXiv
#   2302.01790.

# %% [markdown] tags=["instructor"]
# **For instructors.** Two sessions of 90 minutes: losses (sections 1 to 5) and scores with the failure lab. Before the
# second surprise of section 2 let the class vote on what Dice wants; before the figure of section 6, on each flaw. The
# failure lab works best in pairs: one reads the complaint aloud, the other may ask for one probe at a time and must say
# first what the reading would prove. The readings used by the check are those of the five runs as trained in profile
# `cpu`, rounded. A good stop: why does the volume not notice exchanged axes? Students who finish early can plant a
# sixth disease (exchanged labels) and write the probe that shows it.
