# %% [markdown] seconds={"ci": 60, "cpu": 400, "gpu": 400} gigabytes={"ci": 2.5, "cpu": 3, "gpu": 6}
# # 00 · Start here: train an xLSTM-UNet and look at what it predicts
#
# In this lesson you train a small xLSTM-UNet on microscope images, watch it learn, and look closely at where it is
# right and where it is wrong. Everything runs on an ordinary laptop.
#
# **You will be able to**
# * prepare a data set and read its images and labels,
# * build a network by name and train it,
# * predict images the network has never seen, and say how good the prediction is,
# * tell a real difference between two methods from chance.
#
# **Time.** 2 minutes of computing in profile `cpu` (measured on 2 cores, 1.5 GB of memory), 30 minutes of exercises.
#
# **You need** Python and a first acquaintance with PyTorch: tensors, modules, a training loop.
# Nothing about LSTMs yet; that begins in lesson 01.
#
# **Words.** A [label image](../docs/glossary.md#label-image) gives every pixel a class;
# [segmentation](../docs/glossary.md#segmentation) is predicting it. A [patch](../docs/glossary.md#patch) is the piece of
# an image a network trains on. [Dice](../docs/glossary.md#dice) is the score used most in this field; you will write it
# yourself below.
#
# **Symbols.**
# * $P$, $T$: the pixels that are predicted to be foreground, and those that truly are.
# * $x$, $\hat y(x)$: a position, and the blended score there.
# * $i$, $s_i$, $y_i$, $w$: number of a window, where it begins, its scores, and the weight of each of its places.
# * $n$, $j$, $d_j$, $\bar d$: how many cases there are, the number of one, the difference of its two scores, their mean.

# %%
import os

import numpy as np
import torch
from IPython.display import display
from monai.metrics import compute_dice
from scipy.ndimage import binary_dilation
from tqdm.auto import tqdm

import xlstm_unet_lab as lab
from xlstm_unet_lab.course import check, choose, current_profile, estimate, hint, progress, reveal
from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.figures import cases as figures
from xlstm_unet_lab.figures.training_plot import TrainingPlot
from xlstm_unet_lab.overlays.description import overlay_case

# %% [markdown]
# ## The machine
#
# The cell below says what you have. The *profile* decides how long lessons train: `cpu` keeps a lesson within ten
# minutes on a laptop, `gpu` uses an NVIDIA GPU, `ci` only checks that everything runs. It follows your hardware unless
# you set the variable `LAB_PROFILE` before starting JupyterLab.

# %%
profile = current_profile()
device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
print(f"profile {profile.name}: {profile.description}")
print(f"torch {torch.__version__}, {device}")

# %% [markdown]
# ## The data
#
# By default the images are **made here**: fluorescent cells drawn by a small program that also adds what makes real
# microscopy hard, namely uneven light, blur, noise, and cells that touch. They are there at once, without a download,
# and come out the same from the same seed.
#
# For **real** images, change the one variable below to `"nuclei"`: nuclei from the 2018 Data Science Bowl (public
# domain, CC0; Caicedo et al., Nature Methods 16, 2019). The archive is downloaded and converted for you.
# If you have it already, say where in `SOURCE`.

# %%
RECIPE = os.environ.get("LAB_RECIPE", "phantom_microscopy")  # for real images: RECIPE = "nuclei"
SOURCE = os.environ.get("LAB_SOURCE")  # a folder or archive you have already; None makes or downloads the data

# %%
folder = lab.prepare(RECIPE, source=SOURCE, progress=False)
train, val, test = (lab.load_dataset(RECIPE, split) for split in ("train", "val", "test"))
recipe = train.recipe
print(recipe.title)
print(f"{len(train)} images to train on, {len(val)} to watch the training, {len(test)} held out to the end")

# %% [markdown]
# Each item is a dictionary. The image is normalised: every channel has mean 0 and standard deviation 1, because
# brightness differs between microscopes and says little about cells. The label has one whole number a pixel.

# %% tags=["nbval-check-output"]
item = train[0]
print("image", tuple(item["image"].shape), item["image"].dtype, "(channels, y, x)")
print("label", tuple(item["label"].shape), item["label"].dtype, "(y, x)")
print("classes", recipe.labels)

# %% tags=["figure"]
chosen = range(0, len(train), max(1, len(train) // 4))[:4]
display(figures.samples([train.raw(n) for n in chosen], [train[n]["label"].numpy() for n in chosen], recipe.colours))

# %% [markdown]
# **Why two classes for one kind of cell?** With a single class "cell", two touching cells would melt into one blob.
# The thin *boundary* between them lets us take them apart again afterwards.
#
# ## A score: Dice
#
# Call the predicted pixels $P$ and the true ones $T$. Counting pixels that are right is no good score: where cells
# cover a tenth of the image, an empty prediction is right in nine pixels of ten. Dice looks at the cells alone,
#
# $$\mathrm{Dice}(P, T) = \frac{2\,|P \cap T|}{|P| + |T|},$$
#
# the overlap, counted once for each side, divided by the size of both. It is 1 when $P = T$ and 0 when they do not meet.
# When both are empty, there was nothing to find and nothing was found: by convention that is 1.
#
# **A surprise to explain.** The next cell scores a network that has learnt nothing: it calls every pixel background.

# %% tags=["surprise"]
truth = train[0]["label"].numpy() > 0
nothing = np.zeros_like(truth)
print(
    f"predicting nothing at all: {np.mean(nothing == truth):.0%} of the pixels are right, Dice {metrics.dice(nothing, truth):.2f}"
)

# %% [markdown]
# Why is the first number so high? What would it be on an image with a single cell, and what would Dice be? Decide before
# you read on which of the two you would want a network to be judged by.

# %% [markdown]
# ### Exercise 00.1: write Dice
#
# *About 5 minutes, difficulty 2 of 5.* Fill in the function. Both masks are Boolean NumPy arrays of the same shape.
# Run the cell, then the check below it. `hint("00.1")` helps, a little more each time; `reveal("00.1")` shows an answer.


# %% exercise="00.1"
def dice(prediction, truth):
    pass  ### SOLUTION


# %%
check("00.1", dice)

# %% [markdown]
# The rest of the lesson uses the package's own `metrics.dice`, so you can go on whether or not your function is done.
# But is the package right? Code that checks itself proves little, so here is Dice from another hand: MONAI, a library
# for medical images, computes it for two random masks.

# %% tags=["independent", "nbval-check-output"]
one, other = np.random.default_rng(0).random((2, 64, 64)) < 0.3
theirs = compute_dice(torch.tensor(one)[None, None], torch.tensor(other)[None, None]).item()
assert np.isclose(metrics.dice(one, other), theirs, rtol=0, atol=1e-6)
print(f"ours {metrics.dice(one, other):.4f}, MONAI's {theirs:.4f}")

# %% [markdown]
# ## The network
#
# A **U-Net** shrinks the image stage by stage, so that each position sees more and more of its surroundings, and then
# grows it back to full size, adding the fine detail it kept on the way down. An **xLSTM-UNet** puts a recurrent layer,
# the *mLSTM*, where the image is smallest: there every position becomes a *token* of a sequence, and information
# travels along that sequence across the whole image (Chen et al., arXiv 2407.01530). How the mLSTM works is the subject
# of lessons 01 and 02.
#
# `lab.build` makes a network from its name and a few facts about the data.

# %%
patch_size = choose(ci=(64, 64), cpu=(128, 128), gpu=(256, 256))
torch.manual_seed(0)
model = lab.build(
    "xlstm_unet_bot",
    spatial_dims=2,
    in_channels=len(recipe.channel_names),
    num_classes=len(recipe.labels),
    patch_size=patch_size,
    features=choose(ci=(8, 16, 32), cpu=(16, 32, 64, 96), gpu=(32, 64, 128, 256, 512)),  # channels of each stage
)
parameters = sum(p.numel() for p in model.parameters())
print(f"{parameters / 1e6:.2f} million parameters; after each stage comes: {', '.join(model.config.mixers)}")

# %% [markdown]
# `vil` is the Vision-LSTM block that holds the mLSTM. A network takes an image and gives *logits*: one number a class
# and pixel. The largest of them names the predicted class.

# %%
with torch.no_grad():
    logits = model(torch.zeros(1, len(recipe.channel_names), *patch_size))
assert logits.shape == (1, len(recipe.labels), *patch_size)

# %% [markdown]
# ## Training
#
# Training repeats one step: cut random patches from the training images, predict them, measure how wrong that is (the
# *loss*), and move every weight a little in the direction that makes it less wrong. `lab.fit` does that and hands back
# a record after every step; it prints and draws nothing itself. The plot below is drawn from these records.

# %%
config = lab.TrainConfig(
    patch_size=patch_size,
    steps=choose(ci=24, cpu=250, gpu=1500),
    batch_size=8,
    learning_rate=3e-3,
    augment=Augmentation(invert_probability=0.3 if RECIPE == "nuclei" else 0.0),  # real nuclei come dark on light too
    validate_every=choose(ci=12, cpu=50, gpu=150),
    validation_cases=choose(ci=2, cpu=4),
    seed=0,
)

# %% tags=["widget"]
print(f"{config.steps} steps of {config.batch_size} patches: {estimate(ci=10, cpu=100)}")
plot = TrainingPlot(config.steps)
display(plot.widget)
records = list(plot.watch(lab.fit(model, train, val, config)))

# %% [markdown]
# The picture stays when training is over. The loss of a single step jumps about, because every step sees other patches;
# its running mean tells whether the network learns. Dice is measured on the validation images, which it never trains on.

# %% tags=["figure"]
curve = figures.learning_curve(records)
display(curve)

# %%
assert records[-1].loss < records[0].loss, "the loss did not fall: look at the data and the learning rate"
print(curve.description)

# %% [markdown]
# ## Predicting images it has never seen
#
# Test images may be larger than a patch. `lab.predict` slides a window over them and blends the overlapping answers.
# NumPy arrays go in and come out.

# %%
cases = range(choose(ci=4, cpu=len(test)))
predictions = [lab.predict(model, test.raw(n), patch_size=patch_size) for n in tqdm(cases, "test images")]
truths = [test[n]["label"].numpy() for n in cases]

# %% tags=["figure"]
for n in range(2):
    display(
        figures.comparison(test.raw(n), truths[n], predictions[n], recipe.colours, title=f"test image {test.names[n]}")
    )

# %% [markdown]
# ### Exercise 00.2: where is it wrong?
#
# *About 7 minutes, difficulty 2 of 5.* The last panel sorts errors into three kinds. Write the function behind it: for
# label images `prediction` and `truth`, return an array of dtype `uint8` with, for each pixel,
#
# * 0 where both agree,
# * 1 *missed*: truth has an object, the prediction says background,
# * 2 *extra*: the prediction has an object, truth says background,
# * 3 *confused*: both have an object, of different classes.


# %% exercise="00.2"
def error_map(prediction, truth):
    pass  ### SOLUTION


# %%
check("00.2", error_map)

# %% [markdown]
# Look at the error panels again. Where do the errors sit? The next cell counts how many of them lie within two pixels
# of a true outline, where even people who draw labels by hand often disagree.

# %%
wrong, near_outline = 0, 0
for prediction, truth in zip(predictions, truths, strict=True):
    errors = figures.error_map(prediction, truth)  # the package's own, so yours may come later
    outline = binary_dilation(truth == recipe.labels["boundary"], iterations=2)
    wrong, near_outline = wrong + np.count_nonzero(errors), near_outline + np.count_nonzero(errors * outline)
print(f"{near_outline / wrong:.0%} of the wrong pixels lie within two pixels of a true outline")

# %% [markdown]
# *Confused* pixels are boundary taken for interior or the other way round.
#
# ## One image from many windows
#
# Half of each window lies in its neighbours too, so most pixels are predicted more than once. Near the edge of a window a
# network sees only one side of a pixel's surroundings and errs more often. So windows are blended by a weighted mean that
# trusts their middle. In one dimension, with window $i$ beginning at $s_i$,
#
# $$\hat y(x) = \frac{\sum_i w(x - s_i)\, y_i(x - s_i)}{\sum_i w(x - s_i)},$$
#
# where the sums run over the windows that cover $x$.

# %% [markdown]
# ### Exercise 00.3: blend the windows
#
# *About 8 minutes, difficulty 3 of 5.* Write the formula for a row of pixels. `pieces` holds the scores, one row a window;
# `starts` says where each window begins; `weights` has one number a place in a window; the result has `length` scores.


# %% exercise="00.3"
def blend(pieces, starts, weights, length):
    pass  ### SOLUTION


# %%
check("00.3", blend)

# %% [markdown]
# ## How good is it?
#
# One number for each test image and class, and for the *foreground*, which is interior and boundary together.

# %% tags=["figure"]
scores = {"foreground": [metrics.dice(p > 0, t > 0) for p, t in zip(predictions, truths, strict=True)]}
for name, value in recipe.labels.items():
    if value > 0:
        scores[name] = [metrics.dice(p == value, t == value) for p, t in zip(predictions, truths, strict=True)]
display(figures.score_strip(scores))

# %%
mean_dice = float(np.mean(scores["foreground"]))
print(f"mean foreground Dice on {len(cases)} held-out images: {mean_dice:.3f}")

# %% [markdown]
# A mean hides a lot. Which image is worst, and why? Look at it before you trust any number.

# %% tags=["figure"]
worst = int(np.argmin(scores["foreground"]))
display(
    figures.comparison(
        test.raw(worst), truths[worst], predictions[worst], recipe.colours, title=f"worst, {test.names[worst]}"
    )
)

# %% [markdown]
# Here is the same case with its image, truth, prediction and errors as layers that you can switch, zoom and fade. Tab
# goes from one control to the next, the arrow keys change it. On a computer with a screen, `case.napari()` opens the same
# layers in napari; lesson 11 is about that.

# %% tags=["widget"]
case = overlay_case(test, worst, predictions[worst])
print(case.describe())
case.widget()

# %% [markdown]
# `lab.evaluate` gives more measures of one case in a table; lesson 07 explains them and how each can be fooled.

# %%
table = lab.evaluate(
    predictions[worst],
    truths[worst],
    spacing=(1.0, 1.0),
    labels=recipe.labels,
    tolerance=recipe.tolerances,
    unit=recipe.spacing_unit,
)
table.round(3)

# %% [markdown]
# ## Is it really better?
#
# Cells have no up and down, so an image and its mirror image are equally good input. Does it help to predict both and
# average? `mirror=True` does so, along both axes. The question is whether the gain could be chance. With the score of
# every case before and after, let $d_j$ be the gain in case $j$. Its mean, and how well we know that mean, are
#
# $$\bar d = \frac{1}{n} \sum_j d_j, \qquad \mathrm{SE} = \frac{1}{\sqrt{n}} \sqrt{\frac{1}{n - 1} \sum_j (d_j - \bar d)^2}.$$
#
# A mean gain within two standard errors of 0 is no evidence of anything.

# %% [markdown]
# ### Exercise 00.4: compare two methods
#
# *About 10 minutes, difficulty 3 of 5.* Given one score a case of a first and a second method, return the mean difference
# (positive where the first is better) and its standard error.


# %% exercise="00.4"
def compare_scores(first, second):
    pass  ### SOLUTION


# %%
check("00.4", compare_scores)

# %%
mirrored = [lab.predict(model, test.raw(n), patch_size=patch_size, mirror=True) for n in tqdm(cases, "mirrored")]
averaged = np.array([metrics.dice(mirrored[n] > 0, truths[n] > 0) for n in cases])
plain = np.array(scores["foreground"])
gain = averaged - plain
print(f"gain {gain.mean():+.4f}, standard error {gain.std(ddof=1) / np.sqrt(len(gain)):.4f} case by case")
print(f"and {np.sqrt((plain.var(ddof=1) + averaged.var(ddof=1)) / len(gain)):.4f} if the cases were not paired")

# %% [markdown]
# The two errors differ because most of the spread between cases is shared: a hard image is hard with and without mirrors.
# Comparing case by case takes that out.

# %%
progress("00")

# %% [markdown]
# ## Key points
#
# * Hold images out. A score on images the network trained on says nothing.
# * Dice compares overlap with size; it ignores the easy background.
# * Look at the worst case, not only at the mean.
# * Compare two methods case by case, and say how well the mean difference is known.
# * A U-Net sees its surroundings stage by stage; the mixer at the bottom lets every position hear from all others.
#
# ## What could go wrong
#
# * *The loss does not fall.* Look at images and labels together first: a shifted or swapped label is the usual reason.
# * *The loss becomes NaN.* `fit` stops and names the step and the tensor. Lower the learning rate.
# * *It is slow.* Close other programs, or set `LAB_PROFILE=ci` before `make lab` to see everything run with a tiny network.

# %% [markdown]
# ## An open question
#
# Train again with `"unet"` in place of `"xlstm_unet_bot"`: the same network without the mixer, and so with fewer
# parameters. Is the difference between the two scores larger than the difference between two seeds of the same network?
# How would you find out, and how would you tell the mixer's effect from that of the extra parameters?

# %% [markdown]
# ## Further reading
#
# * Chen et al., *xLSTM-UNet can be an Effective 2D & 3D Medical Image Segmentation Backbone*, arXiv 2407.01530.
# * Beck et al., *xLSTM: Extended Long Short-Term Memory*, arXiv 2405.04517.
# * Ronneberger et al., *U-Net: Convolutional Networks for Biomedical Image Segmentation*, arXiv 1505.04597.

# %% [markdown] tags=["instructor"]
# **For instructors.** Plan 75 minutes: 30 to install and run everything once, 30 for the exercises, 15 for the worst case
# and the open question. Nobody needs to understand the mLSTM today; the aim is a full run and a critical look at it. Good
# stops for discussion: the error panels (are outline errors errors?), the worst image, and the open question: let groups
# train with several seeds each and pool the scores. Students who finish early can set `RECIPE = "nuclei"`.
