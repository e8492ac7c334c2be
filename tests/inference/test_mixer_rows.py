"""What reaches a position through a mixer: rows of weights, decay of the gates, receptive fields."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import xlstm_unet_lab as lab
from xlstm_unet_lab.inference.mixer_rows import explore, forget_decay, mlstm_mixers, receptive_field, weights_row
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.scan_order import to_sequence

dims = pytest.mark.parametrize("spatial_dims", [2, 3])
SIZES = {2: (16, 24), 3: (8, 12, 16)}
POSITIONS = {2: (9, 4), 3: (5, 2, 11)}


def drawn(heads, length, width, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, width)] * 3 + [(length,)] * 2
    return [torch.randn(2, heads, *shape, generator=generator, dtype=torch.float64) * 2 for shape in shapes]


def tiny_network(spatial_dims, **options):
    settings = {"in_channels": 2, "num_classes": 3, "patch_size": SIZES[spatial_dims], "features": (4, 8, 8)}
    torch.manual_seed(1)
    return lab.build("xlstm_unet_enc", spatial_dims=spatial_dims, **settings | options).double()


def patch_of(spatial_dims):
    return torch.randn(2, *SIZES[spatial_dims], generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@given(
    heads=st.integers(1, 3), length=st.integers(1, 9), width=st.integers(1, 4), seed=st.integers(0, 99), data=st.data()
)
@settings(deadline=None, max_examples=30)
def test_weights_times_values_are_the_output(heads, length, width, seed, data):
    q, k, v, i, f = drawn(heads, length, width, seed)
    token = data.draw(st.integers(0, length - 1))
    row = weights_row(q, k, i, f, token)
    assert row.shape == (2, heads, length) and row.dtype == torch.float64
    assert (row[..., token + 1 :] == 0).all()
    expected = mlstm.parallel(q, k, v, i, f)[:, :, token]
    torch.testing.assert_close(torch.einsum("bhs,bhsv->bhv", row, v), expected, rtol=1e-9, atol=1e-12)


def test_weights_are_decay_times_gate_times_agreement_normalised():
    q, k, _, i, f = drawn(heads=2, length=7, width=4, seed=5)
    token = 4
    logarithm = mlstm.decay_matrix(i, f)[..., token, :]  # B_t - B_s + i_s
    m = logarithm.max(-1, keepdim=True).values
    agreement = (q[:, :, token, None] * k).sum(-1) / math.sqrt(4)
    unscaled = (logarithm - m).exp() * agreement
    normaliser = torch.maximum(unscaled.sum(-1, keepdim=True).abs(), (-m).exp()) + 1e-6
    torch.testing.assert_close(weights_row(q, k, i, f, token), unscaled / normaliser, rtol=1e-9, atol=1e-12)


@given(length=st.integers(1, 12), seed=st.integers(0, 99), data=st.data())
@settings(deadline=None, max_examples=20)
def test_decay_is_that_of_the_decay_matrix(length, seed, data):
    f = drawn(2, length, 1, seed)[4]
    token = data.draw(st.integers(0, length - 1))
    expected = mlstm.decay_matrix(torch.zeros_like(f), f)[..., token, :].exp()
    torch.testing.assert_close(forget_decay(f, token), expected)


def test_open_gates_keep_and_closed_gates_forget():
    f = torch.tensor([0.0, 100.0, -100.0, 100.0]).expand(1, 1, 4)
    assert forget_decay(f, 1)[0, 0].tolist() == [1, 1, 0, 0]
    assert forget_decay(f, 3)[0, 0].tolist() == pytest.approx([0, 0, 1, 1], abs=1e-30)


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_that_is_not_there(token):
    q, k, _, i, f = drawn(1, 4, 2, 0)
    with pytest.raises(ValueError, match=f"token={token} is not there: 4 tokens"):
        weights_row(q, k, i, f, token)
    with pytest.raises(ValueError, match="4 tokens are counted from 0"):
        forget_decay(f, token)


@dims
@pytest.mark.parametrize("directions", ["forward", "bidirectional", "axes"])
@pytest.mark.parametrize("vil_version", ["v1", "v2"])
def test_rows_of_a_network(spatial_dims, directions, vil_version, one_thread):
    network, seen = tiny_network(spatial_dims, directions=directions, vil_version=vil_version), {}
    mixers = mlstm_mixers(network)
    assert list(mixers) == ["stage 2"]
    for block in mixers["stage 2"].blocks:
        block.layer.cell.register_forward_pre_hook(seen.__setitem__)
    rows, field = explore(network, patch_of(spatial_dims), POSITIONS[spatial_dims])
    assert field.shape == SIZES[spatial_dims]
    (row,) = rows.values()
    grid = row.weights.shape[2:]
    assert grid == network.config.grid_sizes()[-1] and row.decay.shape == row.weights.shape
    strides = np.floor_divide(SIZES[spatial_dims], grid)
    assert row.position == tuple(np.floor_divide(POSITIONS[spatial_dims], strides))
    marked = torch.zeros(1, 1, *grid)
    marked[(0, 0, *row.position)] = 1
    for direction, (traversal, block) in enumerate(zip(row.traversals, mixers["stage 2"].blocks, strict=True)):
        cell = block.layer.cell
        inputs = cell.heads_and_gates(*seen[cell])
        token = int(to_sequence(marked, traversal)[0, :, 0].argmax())
        walked = to_sequence(torch.from_numpy(row.weights[direction])[None], traversal)[0]  # (S, H)
        assert (walked[token + 1 :] == 0).all()
        output = torch.einsum("sh,hsv->hv", walked, inputs[2][0])
        torch.testing.assert_close(output, mlstm.parallel(*inputs)[0, :, token], rtol=1e-9, atol=1e-12)
        assert (row.decay[(direction, slice(None), *row.position)] == 1).all()
        assert ((row.decay[direction] > 0).sum() == (token + 1) * cell.heads).all()


def test_network_is_left_as_it_was():
    network = tiny_network(2).train()
    network.encoder.stem.eval()
    before = [module.training for module in network.modules()]
    explore(network, patch_of(2), (0, 0))
    assert [module.training for module in network.modules()] == before
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


@dims
def test_receptive_field_of_a_convolution(spatial_dims):
    convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2](2, 3, 3, padding=1).double()
    with torch.no_grad():
        convolution.bias += torch.tensor([0, 1000, 0])  # channel 1 has the largest logit everywhere
    position = POSITIONS[spatial_dims]
    field = receptive_field(convolution, patch_of(spatial_dims), position)
    expected = np.zeros(SIZES[spatial_dims], np.float32)
    expected[tuple(slice(p - 1, p + 2) for p in position)] = convolution.weight[1].abs().sum(0).detach()
    np.testing.assert_allclose(field, expected, rtol=1e-6)


def test_a_mixer_widens_the_receptive_field():
    plain = lab.build("unet", spatial_dims=2, in_channels=2, num_classes=3, patch_size=(16, 24), features=(4, 8, 8))
    mixed = tiny_network(2)
    corner = [receptive_field(network, patch_of(2), (15, 23))[0, 0] for network in (plain, mixed)]
    assert corner[1] > 0
    with pytest.raises(ValueError, match="no mixer whose tokens are positions"):
        explore(plain, patch_of(2), (0, 0))


@pytest.mark.parametrize("position", [(16, 0), (-1, 0), (3,), (3, 3, 3)])
def test_a_position_outside(position):
    with pytest.raises(ValueError, match="lies outside the patch of size"):
        explore(tiny_network(2), patch_of(2), position)
