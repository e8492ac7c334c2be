"""Lesson 07, first part: two losses and their gradients."""

import torch
from torch.nn import functional as F

from xlstm_unet_lab.course.checks.random_cases import random_tensors
from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# ----------------------------------------------------------------------------- 07.1, the gradient of cross-entropy


def cross_entropy_gradient(logits, label):
    probabilities = torch.softmax(logits, dim=1)
    truth = F.one_hot(label, logits.shape[1])
    return (probabilities - truth) / len(label)


CROSS_ENTROPY_GRADIENT = Exercise(
    number="07.1",
    title="the gradient of cross-entropy",
    goal="Write `cross_entropy_gradient(logits, label)`: how the mean cross-entropy of some pixels changes with every "
    "logit.",
    minutes=8,
    difficulty=2,
    reference=cross_entropy_gradient,
    cases=(
        Case(
            "one pixel that knows nothing: two classes, both logits 0", (torch.zeros(1, 2).double(), torch.tensor([1]))
        ),
        Case("five pixels, three classes", (*random_tensors((5, 3)), torch.tensor([0, 2, 1, 1, 0]))),
        Case("three pixels, five classes", (*random_tensors((3, 5), seed=1), torch.tensor([4, 0, 2]))),
        Case(
            "four pixels that are very sure, two of them wrongly",
            (torch.tensor([[800.0, 0], [0, 800], [800, 0], [0, 800]]).double(), torch.tensor([0, 1, 1, 0])),
        ),
    ),
    hints=(
        "No autograd is needed: the text derives what one pixel contributes. Probability minus truth.",
        "The truth as a table of 0 and 1, one column a class, is `torch.nn.functional.one_hot(label, classes)`.",
        "`(torch.softmax(logits, dim=1) - truth)`, divided by the number of pixels because the loss is their mean.",
    ),
    mistakes=(
        Mistake(
            "the sum over pixels",
            " / len(label)",
            "",
            "this is the gradient of the *sum* over pixels. The loss is their mean: divide by the number of pixels.",
        ),
        Mistake(
            "divided by all entries",
            "len(label)",
            "logits.numel()",
            "you divide by pixels times classes. Each pixel contributes one logarithm to the mean, whatever the "
            "number of classes: divide by the number of pixels.",
        ),
        Mistake(
            "uphill",
            "probabilities - truth",
            "truth - probabilities",
            "the sign is turned round. A true class whose probability is too low has a negative gradient: raising its "
            "logit lowers the loss.",
        ),
        Mistake(
            "the wrong axis",
            "dim=1",
            "dim=0",
            "your probabilities add up to 1 over the pixels. They must add up to 1 over the classes of each pixel: "
            "dim=1.",
        ),
        Mistake(
            "only the true class",
            "(probabilities - truth)",
            "(probabilities - 1) * truth",
            "you changed the true class alone. The softmax ties all classes of a pixel together: the others have a "
            "gradient as well, their probability.",
        ),
        Mistake(
            "without the truth",
            "(probabilities - truth)",
            "probabilities",
            "these are the probabilities. The truth is missing: a pixel that is right must stop pulling.",
        ),
        Mistake(
            "the slope twice",
            "(probabilities - truth)",
            "(probabilities - truth) * probabilities * (1 - probabilities)",
            "you multiply by p (1 - p). That is the slope of the squared error; in cross-entropy it cancels against "
            "the 1/p of the logarithm, and that is why it is used.",
        ),
        Mistake(
            "a sigmoid for each class",
            "torch.softmax(logits, dim=1)",
            "torch.sigmoid(logits)",
            "you took a sigmoid of every logit by itself. Classes that exclude each other share one softmax.",
        ),
        Mistake(
            "softmax that overflows",
            "torch.softmax(logits, dim=1)",
            "logits.exp() / logits.exp().sum(dim=1, keepdim=True)",
            "right, until exp overflows and infinity over infinity is NaN. `torch.softmax` subtracts the largest "
            "logit first.",
        ),
    ),
    not_tested="images (the formula is the same at each pixel); weights of classes; float32.",
)

# ------------------------------------------------------------------------------------------ 07.2, the soft Dice loss


def soft_dice_loss(probabilities, truth):
    axes, smoothing = (0, 2), 1e-5  # sums run over patches and pixels
    overlap = (probabilities * truth).sum(axes)
    sizes = (probabilities + truth).sum(axes)
    return 1 - ((2 * overlap + smoothing) / (sizes + smoothing)).mean()


def _patches(batch: int, classes: int, pixels: int, seed: int, absent: tuple = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Random probabilities and a random truth, where (patch, class) pairs in `absent` are taken out of the truth."""
    shape = (batch, classes, pixels)
    drawn, signs = random_tensors(shape, shape, seed=seed)
    probabilities, truth = torch.sigmoid(drawn), (signs > 0).double()
    for patch, kind in absent:
        truth[patch, kind] = 0
    return probabilities, truth


_HALF_EMPTY = _patches(3, 2, 8, 3, absent=((0, 1), (2, 1)))
_NOWHERE = _patches(2, 2, 8, 4, absent=((0, 0), (1, 0)))

SOFT_DICE_LOSS = Exercise(
    number="07.2",
    title="the soft Dice loss of a batch",
    goal="Write `soft_dice_loss(probabilities, truth)`: 1 minus soft Dice, with sums over the whole batch, averaged "
    "over the classes.",
    minutes=10,
    difficulty=2,
    reference=soft_dice_loss,
    cases=(
        Case("one patch, one class", _patches(1, 1, 8, 1)),
        Case("three patches, two classes", _patches(3, 2, 8, 2)),
        Case("a class that two of three patches do not have", _HALF_EMPTY),
        Case("a class that is nowhere, and is predicted a little", _NOWHERE),
        Case("a class that is nowhere and is predicted nowhere: it costs nothing", (_NOWHERE[1] * 1.0, _NOWHERE[1])),
    ),
    hints=(
        "Three sums are needed for each class: of p times t, of p, and of t. Which axes do they run over?",
        "Over patches and pixels, axes 0 and 2, so that one number a class is left. The mean over classes comes last.",
        "`(2 * overlap + 1e-5) / (sizes + 1e-5)` is Dice of each class; the loss is 1 minus its mean.",
    ),
    mistakes=(
        Mistake(
            "each patch by itself",
            "(0, 2)",
            "2",
            "you computed a Dice for every patch and averaged. A patch without the class then scores 0 whatever the "
            "network does to the few pixels it could still improve. Sum over the batch first.",
        ),
        Mistake(
            "all classes in one",
            "(0, 2)",
            "(0, 1, 2)",
            "you pooled the classes in one fraction: a large class then drowns a small one. One fraction a class, "
            "then the mean.",
        ),
        Mistake(
            "no smoothing",
            "1e-5",
            "0",
            "a class that is nowhere, in neither of the two, gives 0 over 0, which is NaN. Add the smoothing above "
            "and below the line.",
        ),
        Mistake(
            "smoothing below only",
            "2 * overlap + smoothing",
            "2 * overlap",
            "the smoothing stands only below the line. Nothing to find and nothing found then counts as Dice 0, the "
            "worst there is, in place of 1.",
        ),
        Mistake(
            "squares",
            "(probabilities + truth)",
            "(probabilities**2 + truth)",
            "you sum the squares of p below the line. That variant exists (V-Net's); here it is p itself.",
        ),
        Mistake(
            "a half too little",
            "2 * overlap",
            "overlap",
            "the 2 above the line is missing: a perfect prediction would cost one half.",
        ),
        Mistake(
            "the score",
            "1 - ",
            "",
            "this is the score, which is best when it is high. A loss is best when it is low: 1 minus it.",
        ),
        Mistake(
            "thresholded",
            "truth):\n",
            "truth):\n    probabilities = (probabilities > 0.5).double()\n",
            "you made masks of the probabilities first. That is the metric; it is flat almost everywhere, so it has "
            "no gradient to train with.",
        ),
    ),
    not_tested="gradients (the next exercise); logits; the background class, which Dice usually leaves out.",
)

# ------------------------------------------------------------------------------------------ 07.3, its gradient


def dice_gradient(probabilities, truth):
    sizes = probabilities.sum() + truth.sum()
    dice = 2 * (probabilities * truth).sum() / sizes
    return (dice - 2 * truth) / sizes


DICE_GRADIENT = Exercise(
    number="07.3",
    title="the gradient of soft Dice",
    goal="Write `dice_gradient(probabilities, truth)`: how 1 minus soft Dice changes with each probability.",
    minutes=15,
    difficulty=3,
    reference=dice_gradient,
    cases=(
        Case("two pixels, one of them true", (torch.tensor([0.5, 0.5]).double(), torch.tensor([1.0, 0.0]).double())),
        Case("eight pixels in a row", tuple(x.flatten() for x in _patches(1, 1, 8, 7))),
        Case("an image of 4 x 5 pixels", tuple(x.reshape(4, 5) for x in _patches(1, 1, 20, 8))),
        Case(
            "a class that is not in this image", (torch.sigmoid(*random_tensors((6,), seed=9)), torch.zeros(6).double())
        ),
    ),
    hints=(
        "Write Dice as a fraction A / B, with A = 2 sum(p t) and B = sum(p) + sum(t). What is dA/dp of one pixel, and "
        "what is dB/dp?",
        "dA/dp = 2 t and dB/dp = 1. The quotient rule gives (2 t B - A) / B^2, and A / B is Dice itself.",
        "dDice/dp = (2 t - Dice) / B, and the loss is 1 - Dice.",
    ),
    mistakes=(
        Mistake(
            "the sizes held fixed",
            "dice - 2 * truth",
            "-2 * truth",
            "only the overlap is differentiated. The sizes below the line also grow with p: the quotient rule adds "
            "Dice itself. Without it nothing would ever push a false positive down.",
        ),
        Mistake(
            "uphill",
            "dice - 2 * truth",
            "2 * truth - dice",
            "this is the gradient of Dice. The loss is 1 - Dice, so the sign turns round.",
        ),
        Mistake(
            "not divided",
            "(dice - 2 * truth) / sizes",
            "dice - 2 * truth",
            "the division by the sizes is missing: it is what makes the pull of a pixel depend on how large its class "
            "is.",
        ),
        Mistake(
            "a 2 lost",
            "dice - 2 * truth",
            "dice - truth",
            "the 2 of the overlap is lost on the way: its derivative is 2 t.",
        ),
        Mistake(
            "the overlap's 2 twice",
            "(dice - 2",
            "(2 * dice - 2",
            "twice Dice is subtracted. A / B^2 is Dice / B, once: the 2 is already in A.",
        ),
        Mistake(
            "the loss for Dice",
            "dice = 2",
            "dice = 1 - 2",
            "you put the loss, 1 - Dice, where Dice belongs in the quotient rule.",
        ),
    ),
    not_tested="logits (multiply by p (1 - p) for a sigmoid); several classes; smoothing.",
)

EXERCISES = (CROSS_ENTROPY_GRADIENT, SOFT_DICE_LOSS, DICE_GRADIENT)
