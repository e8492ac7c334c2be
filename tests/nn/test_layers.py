"""Small layers on tokens, each against the plain operation it stands for."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.nn import layers
from xlstm_unet_lab.nn.layers import BlockDiagonalLinear, CausalConvolution, HeadNorm, OffsetLayerNorm
from xlstm_unet_lab.ops.checks import require_divisible


def randomised(layer):
    """Every parameter away from its starting value, in float64."""
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_block_diagonal_is_the_dense_map_of_its_blocks(blocks, block_size, bias):
    layer = randomised(BlockDiagonalLinear(blocks * block_size, block_size, bias))
    x = torch.randn(2, 5, blocks * block_size, dtype=torch.float64)
    dense = F.linear(x, torch.block_diag(*layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 6, 8, 10])
def test_joined_blocks_and_single_ones_give_the_same(blocks, monkeypatch):
    layer, x = randomised(BlockDiagonalLinear(4 * blocks, 4)), torch.randn(3, 4 * blocks, dtype=torch.float64)
    together = layer(x)
    grads = torch.autograd.grad(together.square().sum(), layer.weight)
    monkeypatch.setattr(layers, "JOINED", 1)
    apart = layer(x)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-13)
    torch.testing.assert_close(grads, torch.autograd.grad(apart.square().sum(), layer.weight), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [lambda bias: BlockDiagonalLinear(8, 4, bias), lambda b: CausalConvolution(8, bias=b)])
def test_a_bias_does_not_widen_what_autocast_shortened(make, bias):
    with torch.autocast("cpu", torch.bfloat16):
        assert make(bias)(torch.randn(2, 5, 8)).dtype == torch.bfloat16


def test_block_diagonal_initial_deviation():
    weight = BlockDiagonalLinear(4096, 4).weight
    assert weight.std().item() == pytest.approx((2 / 20) ** 0.5, rel=0.05)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 4, 6])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_causal_convolution_is_a_loop_over_the_past(length, kernel_size, bias):
    layer = randomised(CausalConvolution(3, kernel_size, bias))
    x = torch.randn(2, length, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for t in range(length):
        for back in range(min(kernel_size, t + 1)):
            expected[:, t] += layer.conv.weight[:, 0, kernel_size - 1 - back] * x[:, t - back]
    if bias:
        expected += layer.conv.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_causal_convolution_does_not_see_the_future():
    layer, x = randomised(CausalConvolution(2)), torch.randn(1, 8, 2, dtype=torch.float64, requires_grad=True)
    for t in range(8):
        seen = torch.autograd.grad(layer(x)[0, t].sum(), x)[0][0].abs().sum(-1) > 0
        assert seen.tolist() == [t - 3 <= s <= t for s in range(8)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_offset_layer_norm(bias, eps):
    layer, x = OffsetLayerNorm(6, bias, eps).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    assert (layer.bias is not None) == bias
    torch.testing.assert_close(layer(x), F.layer_norm(x, (6,), eps=eps), rtol=0, atol=1e-12)  # starts as a plain norm
    randomised(layer)
    torch.testing.assert_close(layer(x), F.layer_norm(x, (6,), 1 + layer.weight, layer.bias, eps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("heads", "width"), [(1, 8), (2, 4), (4, 3)])
def test_head_norm_is_group_norm_of_each_token(heads, width, bias):
    layer = randomised(HeadNorm(heads * width, bias))
    h = torch.randn(2, heads, 5, width, dtype=torch.float64)
    tokens = h.transpose(1, 2).reshape(10, heads * width)
    expected = F.group_norm(tokens, heads, 1 + layer.weight, layer.bias, eps=1e-5).view(2, 5, heads * width)
    torch.testing.assert_close(layer(h), expected, rtol=0, atol=1e-12)


def test_require_divisible():
    assert require_divisible(12, 4, "here") == 3
    with pytest.raises(ValueError, match="here is 10, not divisible by 4: use 8 or 12"):
        require_divisible(10, 4, "here")


@pytest.mark.parametrize(("width", "parts"), [(3, 4), (7, 2), (1, 5), (9, 7)])
def test_suggested_widths_divide(width, parts):
    with pytest.raises(ValueError, match="use") as caught:
        require_divisible(width, parts, "here")
    suggested = [int(word) for word in str(caught.value).partition("use")[2].split() if word != "or"]
    assert len(set(suggested)) == len(suggested) >= 1
    assert all(require_divisible(size, parts, "here") >= 1 for size in suggested)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockDiagonalLinear(10, 4), "BlockDiagonalLinear's width is 10, not divisible by 4"),
        (lambda: BlockDiagonalLinear(0, 4), "BlockDiagonalLinear's width is 0, .* use 4$"),
        (
            lambda: BlockDiagonalLinear(8, 0),
            "the divisor of BlockDiagonalLinear's width is 0, expected a whole number",
        ),
        (lambda: CausalConvolution(0, 4), "CausalConvolution's width is 0, expected a whole number of at least 1"),
        (
            lambda: CausalConvolution(4, 0),
            "CausalConvolution's kernel_size is 0, expected a whole number",
        ),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
