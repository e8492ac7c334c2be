"""Entropy and disagreement: known answers, bounds, and mirror images that come back to their place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.uncertainty import disagreement, entropy, mirrored_disagreement


def certain(winner, classes=3, size=(2, 2)):
    probabilities = np.zeros((classes, *size))
    probabilities[winner] = 1
    return probabilities


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
def test_entropy_of_certainty_and_of_a_guess(size):
    assert (entropy(certain(1, size=size)) == 0).all()
    guess = entropy(np.full((4, *size), 0.25, np.float32))
    assert guess.dtype == np.float32 and guess.shape == size
    np.testing.assert_allclose(guess, 1, atol=1e-6)
    np.testing.assert_allclose(entropy(np.full((3, *size), 0.5), exclusive=False), 1, atol=1e-6)


def test_entropy_by_hand():
    values = entropy(np.array([0.75, 0.25]).reshape(2, 1, 1))
    assert values.item() == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(2, 5), st.booleans(), st.integers(0, 99))
def test_disagreement_lies_between_0_and_the_entropy_of_the_mean(count, channels, exclusive, seed):
    logits = torch.from_numpy(3 * np.random.default_rng(seed).normal(size=(count, channels, 3, 4)))
    members = (logits.softmax(1) if exclusive else logits.sigmoid()).numpy()
    got = disagreement(iter(members), exclusive=exclusive)
    assert got.dtype == np.float32 and got.shape == (3, 4)
    assert (got >= 0).all() and (got <= entropy(members.mean(0), exclusive=exclusive) + 1e-6).all()
    assert disagreement([members[0]] * 3, exclusive=exclusive).max() < 1e-6


def test_certain_members_that_differ_disagree_most():
    np.testing.assert_allclose(disagreement([certain(0, 2), certain(1, 2)]), 1, atol=1e-6)
    assert (disagreement([np.full((2, 1, 1), 0.5)] * 2) == 0).all(), "shared doubt is no disagreement"


class LeftIsForeground(nn.Module):
    """Sure of class 1 in the first columns of what it sees, whatever that is: only mirroring along x shows it."""

    def forward(self, windows):
        answer = torch.zeros(len(windows), 2, *windows.shape[2:])
        answer[:, 0], answer[:, 1, ..., :2] = 20, 40
        return answer


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_mirrored_disagreement_finds_what_depends_on_the_side(spatial_dims):
    image, predictor = np.zeros((1, *(6,) * spatial_dims)), Predictor(LeftIsForeground(), (6,) * spatial_dims)
    x = spatial_dims - 1
    got = mirrored_disagreement(predictor, image, axes=(x,))
    np.testing.assert_allclose(got[..., :2], 1, atol=1e-6)
    np.testing.assert_allclose(got[..., 4:], 1, atol=1e-6)
    np.testing.assert_allclose(got[..., 2:4], 0, atol=1e-6)
    assert mirrored_disagreement(predictor, image, axes=(0,)).max() < 1e-6
    np.testing.assert_allclose(mirrored_disagreement(predictor, image), got, atol=1e-6)


def test_regions_are_taken_from_the_model():
    targets = Targets(("whole", "core"), ((1, 2), (2,)), (1, 2))
    got = mirrored_disagreement(Predictor(LeftIsForeground(), (6, 6), targets=targets), np.zeros((1, 6, 6)))
    # One of two channels is 1 in half of the predictions and 1/2 in the others.
    wanted = (entropy(np.array([0.75, 0.25]).reshape(2, 1)) - 0.5) / 2
    np.testing.assert_allclose(got[:, 0], wanted.item(), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy(np.array([[-0.5], [1.5]])), "from -0.5 to 1.5"),
        (lambda: entropy(np.full((2, 3), np.nan)), "from nan"),
        (lambda: entropy(np.full((2, 3), 0.9)), "do not sum to 1.*exclusive=False"),
        (lambda: entropy(np.ones((1, 3))), "1 exclusive classes"),
        (lambda: disagreement([]), "members is empty"),
        (
            lambda: mirrored_disagreement(Predictor(LeftIsForeground(), (4, 4)), np.zeros((1, 4, 4)), axes=(3,)),
            "mirror",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
