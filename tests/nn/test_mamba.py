"""The Mamba layer and block against a loop over single tokens; shapes, direction, initialisation, sizes, bad input."""

import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.nn import mamba
from xlstm_unet_lab.nn.mamba import MambaBlock, MambaLayer


def make_tokens(batch=2, length=7, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64).requires_grad_()


def make(cls, *args, seed=0, **options):
    """A module in float64 whose every parameter is moved off its initial value, so that none can hide."""
    torch.manual_seed(seed)
    module = cls(*args, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


def loop_over_tokens(weights, tokens):
    """The layer for one token after the other, written from the paper with matrices only."""
    inner, state_size = weights["log_decay"].shape
    rank = weights["step_projection.weight"].shape[1]
    kernel = weights["convolution.conv.weight"][:, 0]  # (E, kernel size), the last entry meets the present token
    A = -weights["log_decay"].exp()
    h = torch.zeros(len(tokens), inner, state_size, dtype=tokens.dtype)
    window = [torch.zeros(len(tokens), inner, dtype=tokens.dtype)] * kernel.shape[1]
    outputs = []
    for token in tokens.unbind(1):
        x, z = (token @ weights["input_projection.weight"].T).split(inner, -1)
        window = [*window[1:], x]
        u = sum(old * tap for old, tap in zip(window, kernel.T, strict=True)) + weights["convolution.conv.bias"]
        u = u * torch.sigmoid(u)
        raw = u @ weights["parameter_projection.weight"].T
        step_size, B, C = raw[:, :rank], raw[:, rank : rank + state_size], raw[:, rank + state_size :]
        delta = step_size @ weights["step_projection.weight"].T + weights["step_projection.bias"]
        delta = torch.log1p(delta.exp())
        h = torch.exp(delta[..., None] * A) * h + (delta * u)[..., None] * B[:, None]
        y = torch.einsum("bwn,bn->bw", h, C) + weights["skip"] * u
        outputs.append((y * z * torch.sigmoid(z)) @ weights["output_projection.weight"].T)
    return torch.stack(outputs, 1)


def assert_same_function(module, function, tokens, tolerance=1e-10):
    inputs = [tokens, *module.parameters()]
    ours, theirs = module(tokens), function(tokens)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    weighting = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view_as(ours)
    grads = (torch.autograd.grad((y * weighting).sum(), inputs) for y in (ours, theirs))
    torch.testing.assert_close(*grads, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "sizes", [{"EXPANSION": 2}, {"STATE_SIZE": 1}, {"KERNEL_SIZE": 1}, {"EXPANSION": 1}, {"KERNEL_SIZE": 9}], ids=str
)
def test_layer_equals_a_loop_over_tokens(sizes):
    with mock.patch.multiple(mamba, **sizes):
        layer = make(MambaLayer, 6)
    assert_same_function(layer, lambda x: loop_over_tokens(dict(layer.named_parameters()), x), make_tokens())


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 20),
    width=st.integers(1, 40),
    state_size=st.integers(1, 5),
    kernel_size=st.integers(1, 5),
    expansion=st.integers(1, 3),
)
def test_layer_of_any_size(batch, length, width, state_size, kernel_size, expansion):
    with mock.patch.multiple(mamba, STATE_SIZE=state_size, KERNEL_SIZE=kernel_size, EXPANSION=expansion):
        layer = make(MambaLayer, width)
    tokens = make_tokens(batch, length, width)
    expected = loop_over_tokens(dict(layer.named_parameters()), tokens)
    torch.testing.assert_close(layer(tokens), expected, rtol=0, atol=1e-10)


def test_layer_is_causal():
    layer, tokens = make(MambaLayer, 6), make_tokens()
    changed = tokens.detach().clone()
    changed[:, 4] += 1
    difference = (layer(changed) - layer(tokens)).detach().abs().amax((0, 2))
    assert (difference[:4] == 0).all() and (difference[4:] > 0).all()


@pytest.mark.parametrize("grid", [(2, 6), (2, 3, 2)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("residual", [False, True])
def test_block(grid, residual):
    block, tokens = make(MambaBlock, 6, residual=residual), make_tokens(length=math.prod(grid))

    def expected(x):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight + block.norm.bias
        y = loop_over_tokens(dict(block.layer.named_parameters()), y)
        return x + y if residual else y

    torch.testing.assert_close(block(tokens, grid), expected(tokens), rtol=0, atol=1e-10)


def test_initialisation_as_published():
    torch.manual_seed(0)
    layer = MambaLayer(512)
    expected = -torch.arange(1.0, 17).expand(1024, 16)
    torch.testing.assert_close(-layer.log_decay.exp(), expected)
    assert (layer.skip == 1).all()
    assert layer.step_projection.weight.shape == (1024, 32)
    assert layer.step_projection.weight.abs().max() <= 32**-0.5
    step_sizes = F.softplus(layer.step_projection.bias.detach().double())
    assert step_sizes.min() > 0.999e-3 and step_sizes.max() < 1.001e-1
    # log-uniform: every fifth of the logarithmic range holds a fifth of the 1024 channels (four standard deviations)
    counts = torch.histc(step_sizes.log10(), bins=5, min=-3, max=-1)
    assert (counts - 1024 / 5).abs().max() < 52


@pytest.mark.parametrize(
    ("width", "sizes", "expected"),
    [
        # input 16 * 64, convolution 32 * 5, delta-B-C 32 * 33, step 32 * 2, decay 32 * 16, skip 32, output 32 * 16
        (16, {"EXPANSION": 2}, 1024 + 160 + 1056 + 64 + 512 + 32 + 512),
        # E = 8, R = 1, N = 3: 8 * 16, 8 * 3, 8 * 7, 8 + 8, 8 * 3, 8, 8 * 8
        (8, {"EXPANSION": 1, "KERNEL_SIZE": 2, "STATE_SIZE": 3}, 128 + 24 + 56 + 16 + 24 + 8 + 64),
    ],
)
def test_number_of_parameters(width, sizes, expected):
    with mock.patch.multiple(mamba, **sizes):
        layer, block = MambaLayer(width), MambaBlock(width)
    assert sum(p.numel() for p in layer.parameters()) == expected
    assert sum(p.numel() for p in block.parameters()) == expected + 2 * width


@pytest.mark.parametrize("residual", [False, True])
def test_gradients_reach_every_parameter(residual):
    torch.manual_seed(0)
    block, tokens = MambaBlock(6, residual=residual), make_tokens().detach().float()
    block(tokens, (7,)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_bfloat16_autocast():
    torch.manual_seed(0)
    block, tokens = MambaBlock(6), make_tokens().detach().float()
    expected = block(tokens, (7,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(tokens, (7,))
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.05)
    y.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.parametrize("cls", [MambaLayer, MambaBlock])
@pytest.mark.parametrize("width", [0, -1, 8.0, None])
def test_bad_widths(cls, width):
    with pytest.raises(ValueError, match=f"width is {width}, expected a whole number of at least 1"):
        cls(width)


@pytest.mark.parametrize("shape", [(7, 6), (2, 7, 5), (2, 6, 7, 6), (2, 0, 6)])
def test_bad_tokens(shape):
    with pytest.raises(ValueError, match=r"tokens have shape \(.*\), expected \(batch, tokens, 6\)"):
        MambaLayer(6)(torch.zeros(shape))
