"""How sure a prediction is: its probability, entropy of all of them, disagreement between mirrored predictions."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from xlstm_unet_lab.inference.mirror import mirrorings
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.ops.checks import array_of

TOLERANCE = 1e-3  # by which probabilities, and the sum of those of exclusive classes, may miss 1: resampling in float32


def predicted_probability(probabilities: np.ndarray, *, exclusive: bool = True) -> np.ndarray:
    """Probability of what was predicted, at every position, float32 (*spatial): 1 is certain.

    probabilities (channels, *spatial), as `predict_probabilities` gives them. Exclusive classes: that of the most
    probable one. Regions (`exclusive=False`), each a yes-or-no question: that of the least certain answer. Raises
    ValueError as `entropy`.
    """
    probabilities = _checked(probabilities, exclusive)
    answers = probabilities.max(0) if exclusive else np.maximum(probabilities, 1 - probabilities).min(0)
    return answers.astype(np.float32)


def entropy(probabilities: np.ndarray, *, exclusive: bool = True) -> np.ndarray:
    """Entropy at every position, as a share of the largest there can be: 0 is certain, 1 is a guess.

    probabilities (channels, *spatial), as `predict_probabilities` gives them; returns float32 (*spatial). Exclusive
    classes: -sum p log p, in nats, over log(classes). Regions (`exclusive=False`): every channel is a yes-or-no
    question, and the mean of their entropies over log 2 is given. Raises ValueError for values outside [0, 1], for
    exclusive classes that do not sum to 1 (are they logits?), and for fewer than 2 of them. Source: Shannon 1948.
    """
    from scipy.special import entr

    probabilities = _checked(probabilities, exclusive)
    if exclusive:
        nats = entr(probabilities).sum(0) / np.log(len(probabilities))
    else:
        nats = (entr(probabilities) + entr(1 - probabilities)).mean(0) / np.log(2)
    return np.clip(nats, 0, 1).astype(np.float32)


def disagreement(members: Iterable[np.ndarray], *, exclusive: bool = True) -> np.ndarray:
    """How far several predictions of one image contradict each other: 0 all alike, 1 all certain of something else.

    members: probabilities (channels, *spatial) each, at least one, read one after the other; returns float32
    (*spatial). Given is the entropy of the mean minus the mean of the entropies: what is left is uncertainty that the
    members do not share, where each of them may be certain. Raises ValueError as `entropy`, and for no member at all.
    Source: Houlsby et al. 2011 (arXiv 1112.5745), eq. 1.
    """
    total = own = np.zeros((), np.float32)
    count = 0
    for member in members:
        total, own, count = total + np.asarray(member), own + entropy(member, exclusive=exclusive), count + 1
    if not count:
        raise ValueError("members is empty: give the probabilities of at least one prediction, two to disagree")
    return np.maximum(entropy(np.asarray(total / count), exclusive=exclusive) - own / count, 0).astype(np.float32)


def mirrored_disagreement(
    predictor: Predictor,
    image: np.ndarray,
    spacing: Sequence[float] | None = None,
    *,
    axes: bool | Sequence[int] = True,
    **options,
) -> np.ndarray:
    """`disagreement` between the predictions of an image and of its mirror images, turned back: float32 (*spatial).

    image (C, *spatial) as stored; `axes` are those of the predictor's patch (True: all along which its data allows it),
    every combination is predicted; further options and errors as in a call of the predictor.
    """
    image, cut = np.asarray(image), predictor.slice_axis

    def turned_predictions() -> Iterator[np.ndarray]:
        for chosen in mirrorings(predictor.mirrored_along(axes)):
            # Axes of the image, behind its channels; a patch of a slice has not the one that is cut across.
            turned = tuple(1 + axis + (cut is not None and axis >= cut) for axis in chosen)
            yield np.flip(predictor.probabilities(np.flip(image, turned), spacing, **options), turned)

    return disagreement(turned_predictions(), exclusive=predictor.exclusive)


def _checked(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
    probabilities = array_of("probabilities", probabilities, "f", 2, 3, 4)
    low, high = probabilities.min(), probabilities.max()
    if not (low >= 0 and high <= 1 + TOLERANCE):  # NaN fails as well
        raise ValueError(f"probabilities run from {low:.3g} to {high:.3g}; expected 0 to 1, as softmax gives them")
    if exclusive and (len(probabilities) < 2 or np.abs(probabilities.sum(0) - 1).max() > TOLERANCE):
        raise ValueError(f"{len(probabilities)} exclusive classes do not sum to 1: give all, or say exclusive=False")
    return probabilities
