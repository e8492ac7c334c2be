"""Lesson 07, first part: two losses and their gradients."""

import torch

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake


def _normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


# ----------------------------------------------------------------------------- 07.1, the gradient of cross-entropy


def cross_entropy_gradient(logits, label):
    probabilities = torch.softmax(logits, dim=1)
    truth = torch.nn.functional.one_hot(label, logits.shape[1])
    return (probabilities - truth) / len(label)


def _gradient(logits, label, *, dim=1, sign=1, mean=True, entries=False, slope=False, squash=torch.softmax):
    p = squash(logits, dim)
    truth = torch.nn.functional.one_hot(label, logits.shape[1])
    result = sign * (p - truth) * (p * (1 - p) if slope else 1)
    count = len(label) if mean else 1
    return result / (logits.numel() if entries else count)


def _overflowing_softmax(logits, dim):
    return logits.exp() / logits.exp().sum(dim, keepdim=True)


def _only_the_true_class(logits, label):
    truth = torch.nn.functional.one_hot(label, logits.shape[1])
    return (torch.softmax(logits, 1) - 1) * truth / len(label)


def _only_the_probabilities(logits, label):
    return torch.softmax(logits, 1) / len(label)


CROSS_ENTROPY_GRADIENT = Exercise(
    number="07.1",
    title="the gradient of cross-entropy",
    goal="Write `cross_entropy_gradient(logits, label)`: how the mean cross-entropy of some pixels changes with every "
    "logit.",
    minutes=8,
    difficulty=2,
    reference=cross_entropy_gradient,
    cases=(
        Case("one pixel that knows nothing: two classes, both logits 0", (_normal(1, 2) * 0, torch.tensor([1]))),
        Case("five pixels, three classes", (_normal(5, 3), torch.tensor([0, 2, 1, 1, 0]))),
        Case("three pixels, five classes", (_normal(3, 5, seed=1), torch.tensor([4, 0, 2]))),
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
            lambda logits, label: _gradient(logits, label, mean=False),
            "this is the gradient of the *sum* over pixels. The loss is their mean: divide by the number of pixels.",
        ),
        Mistake(
            "divided by all entries",
            lambda logits, label: _gradient(logits, label, entries=True),
            "you divide by pixels times classes. Each pixel contributes one logarithm to the mean, whatever the "
            "number of classes: divide by the number of pixels.",
        ),
        Mistake(
            "uphill",
            lambda logits, label: _gradient(logits, label, sign=-1),
            "the sign is turned round. A true class whose probability is too low has a negative gradient: raising its "
            "logit lowers the loss.",
        ),
        Mistake(
            "the wrong axis",
            lambda logits, label: _gradient(logits, label, dim=0),
            "your probabilities add up to 1 over the pixels. They must add up to 1 over the classes of each pixel: "
            "dim=1.",
        ),
        Mistake(
            "only the true class",
            _only_the_true_class,
            "you changed the true class alone. The softmax ties all classes of a pixel together: the others have a "
            "gradient as well, their probability.",
        ),
        Mistake(
            "without the truth",
            _only_the_probabilities,
            "these are the probabilities. The truth is missing: a pixel that is right must stop pulling.",
        ),
        Mistake(
            "the slope twice",
            lambda logits, label: _gradient(logits, label, slope=True),
            "you multiply by p (1 - p). That is the slope of the squared error; in cross-entropy it cancels against "
            "the 1/p of the logarithm, and that is why it is used.",
        ),
        Mistake(
            "a sigmoid for each class",
            lambda logits, label: _gradient(logits, label, squash=lambda x, dim: torch.sigmoid(x)),
            "you took a sigmoid of every logit by itself. Classes that exclude each other share one softmax.",
        ),
        Mistake(
            "softmax that overflows",
            lambda logits, label: _gradient(logits, label, squash=_overflowing_softmax),
            "right, until exp overflows and infinity over infinity is NaN. `torch.softmax` subtracts the largest "
            "logit first.",
        ),
    ),
    not_tested="images (the formula is the same at each pixel); weights of classes; float32.",
)

# ------------------------------------------------------------------------------------------ 07.2, the soft Dice loss


def soft_dice_loss(probabilities, truth):
    smoothing = 1e-5
    overlap = (probabilities * truth).sum(dim=(0, 2))
    sizes = probabilities.sum(dim=(0, 2)) + truth.sum(dim=(0, 2))
    return 1 - ((2 * overlap + smoothing) / (sizes + smoothing)).mean()


def _dice(p, t, *, dim=(0, 2), above=1e-5, below=1e-5, factor=2, power=1, loss=True):
    score = ((factor * (p * t).sum(dim) + above) / ((p**power).sum(dim) + t.sum(dim) + below)).mean()
    return 1 - score if loss else score


def _patches(batch: int, classes: int, pixels: int, seed: int, absent: tuple = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Random probabilities and a random truth, where (patch, class) pairs in `absent` are taken out of the truth."""
    probabilities = torch.sigmoid(_normal(batch, classes, pixels, seed=seed))
    truth = (_normal(batch, classes, pixels, seed=seed + 100) > 0).double()
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
            lambda p, t: _dice(p, t, dim=2),
            "you computed a Dice for every patch and averaged. A patch without the class then scores 0 whatever the "
            "network does to the few pixels it could still improve. Sum over the batch first.",
        ),
        Mistake(
            "all classes in one",
            lambda p, t: _dice(p, t, dim=(0, 1, 2)),
            "you pooled the classes in one fraction: a large class then drowns a small one. One fraction a class, "
            "then the mean.",
        ),
        Mistake(
            "no smoothing",
            lambda p, t: _dice(p, t, above=0, below=0),
            "a class that is nowhere, in neither of the two, gives 0 over 0, which is NaN. Add the smoothing above "
            "and below the line.",
        ),
        Mistake(
            "smoothing below only",
            lambda p, t: _dice(p, t, above=0),
            "the smoothing stands only below the line. Nothing to find and nothing found then counts as Dice 0, the "
            "worst there is, in place of 1.",
        ),
        Mistake(
            "squares",
            lambda p, t: _dice(p, t, power=2),
            "you sum the squares of p below the line. That variant exists (V-Net's); here it is p itself.",
        ),
        Mistake(
            "a half too little",
            lambda p, t: _dice(p, t, factor=1),
            "the 2 above the line is missing: a perfect prediction would cost one half.",
        ),
        Mistake(
            "the score",
            lambda p, t: _dice(p, t, loss=False),
            "this is the score, which is best when it is high. A loss is best when it is low: 1 minus it.",
        ),
        Mistake(
            "thresholded",
            lambda p, t: _dice((p > 0.5).double(), t),
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


def _dice_gradient(p, t, *, dice=1.0, pull=2.0, sign=1, divide=True, keep=True):
    sizes = p.sum() + t.sum()
    score = 2 * (p * t).sum() / sizes if keep else 0
    return sign * (dice * score - pull * t) / (sizes if divide else 1)


def _loss_in_place_of_dice(p, t):
    sizes = p.sum() + t.sum()
    return (1 - 2 * (p * t).sum() / sizes - 2 * t) / sizes


_EIGHT = _patches(1, 1, 8, 7)

DICE_GRADIENT = Exercise(
    number="07.3",
    title="the gradient of soft Dice",
    goal="Write `dice_gradient(probabilities, truth)`: how 1 minus soft Dice changes with each probability.",
    minutes=15,
    difficulty=3,
    reference=dice_gradient,
    cases=(
        Case(
            "two pixels, one of them true",
            (torch.tensor([0.5, 0.5]).double(), torch.tensor([1.0, 0.0]).double()),
        ),
        Case("eight pixels in a row", tuple(x.flatten() for x in _EIGHT)),
        Case("an image of 4 x 5 pixels", tuple(x.reshape(4, 5) for x in _patches(1, 1, 20, 8))),
        Case(
            "a class that is not in this image",
            (torch.sigmoid(_normal(6, seed=9)), torch.zeros(6, dtype=torch.float64)),
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
            lambda p, t: _dice_gradient(p, t, keep=False),
            "only the overlap is differentiated. The sizes below the line also grow with p: the quotient rule adds "
            "Dice itself. Without it nothing would ever push a false positive down.",
        ),
        Mistake(
            "uphill",
            lambda p, t: _dice_gradient(p, t, sign=-1),
            "this is the gradient of Dice. The loss is 1 - Dice, so the sign turns round.",
        ),
        Mistake(
            "not divided",
            lambda p, t: _dice_gradient(p, t, divide=False),
            "the division by the sizes is missing: it is what makes the pull of a pixel depend on how large its class "
            "is.",
        ),
        Mistake(
            "a 2 lost",
            lambda p, t: _dice_gradient(p, t, pull=1.0),
            "the 2 of the overlap is lost on the way: its derivative is 2 t.",
        ),
        Mistake(
            "the overlap's 2 twice",
            lambda p, t: _dice_gradient(p, t, dice=2.0),
            "twice Dice is subtracted. A / B^2 is Dice / B, once: the 2 is already in A.",
        ),
        Mistake(
            "the loss for Dice",
            _loss_in_place_of_dice,
            "you put the loss, 1 - Dice, where Dice belongs in the quotient rule.",
        ),
    ),
    not_tested="logits (multiply by p (1 - p) for a sigmoid); several classes; smoothing.",
)

EXERCISES = (CROSS_ENTROPY_GRADIENT, SOFT_DICE_LOSS, DICE_GRADIENT)
