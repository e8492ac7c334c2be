"""The decay matrix: what the recurrence says, written as one matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.ops import mlstm


@settings(deadline=None, max_examples=20)
@given(length=st.integers(1, 12), scale=st.sampled_from([1.0, 30.0]), seed=st.integers(0, 99))
def test_rows_hold_stabiliser_and_normaliser_of_the_recurrence(length, scale, seed):
    """With keys of width 1 and value 1, n_t is the sum of the stabilised row and m_t its largest logarithm."""
    gates = torch.randn(2, 1, 1, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    i, f = scale * gates
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    decay, state = mlstm.decay_matrix(i, f)[0, 0], None
    for t in range(length):
        _, state = mlstm.step(state, one, one, one, i[..., t], f[..., t])
        torch.testing.assert_close(decay[t].amax(), state.m[0, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close((decay[t] - state.m[0, 0]).exp().sum(), state.n[0, 0, 0], rtol=1e-12, atol=0)


def test_known_values_and_axes():
    i, f = torch.tensor([0.0, 1.0, 2.0]), torch.full((3,), 50.0)  # a forget gate that keeps everything
    decay = mlstm.decay_matrix(i, f)
    future = torch.ones(3, 3, dtype=torch.bool).triu(1)
    assert decay[future].isneginf().all() and decay.dtype == torch.float64
    expected = (
        torch.tensor([0.0, 1.0, 2.0]).double().expand(3, 3).tril()
    )  # each token weighs as much as it did at first
    torch.testing.assert_close(decay.masked_fill(future, 0), expected)
    assert mlstm.decay_matrix(*torch.zeros(2, 4, 2, 3)).shape == (4, 2, 3, 3)


def test_gates_must_fit():
    with pytest.raises(ValueError, match=r"f has shape \(2,\), expected \(3,\) to fit i"):
        mlstm.decay_matrix(torch.zeros(3), torch.zeros(2))
    for odd in (None, 3, "1", [1.0], np.zeros(3), torch.zeros(()), torch.zeros(3).int(), torch.full((3,), torch.nan)):
        with pytest.raises(ValueError, match=r"i (is a|has|holds) .*"):
            mlstm.decay_matrix(odd, odd)
