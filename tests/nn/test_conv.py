"""The convolutional parts, in 2-D and 3-D from one code: shapes, the path around, upsampling, initial values."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xlstm_unet_lab.nn.conv import CHANNELS_LAST, CONV, SLOPE, InstanceNorm, ResBlock, Upsample, initialise_convolutions

SIZE = {2: (9, 8), 3: (5, 6, 7)}
dims = pytest.mark.parametrize("spatial_dims", [2, 3])


@dims
@pytest.mark.parametrize("stride", [1, 2])
def test_shapes(spatial_dims, stride):
    size = SIZE[spatial_dims]
    block = ResBlock(3, 8, (3,) * spatial_dims, (stride,) * spatial_dims)
    expected = tuple(math.ceil(extent / stride) for extent in size)
    assert block(torch.randn(2, 3, *size)).shape == (2, 8, *expected)


def test_anisotropic_kernel_and_stride():
    block = ResBlock(2, 4, (1, 3, 5), (1, 2, 2))
    assert block.conv1.padding == (0, 1, 2)
    assert block(torch.randn(1, 2, 4, 9, 10)).shape == (1, 4, 4, 5, 5)


@dims
def test_no_1x1_convolution_has_a_stride_and_narrow_blocks_train_in_channels_last(spatial_dims):
    """With a stride, such a convolution's backward pass corrupted memory: the process died, at the latest, here."""
    block = ResBlock(8, 12, (3,) * spatial_dims, (2,) * spatial_dims)
    x = torch.randn(2, 8, *(15,) * spatial_dims)
    strided = {2: F.conv2d, 3: F.conv3d}[spatial_dims]
    want = strided(x, block.projection.weight, block.projection.bias, stride=2)
    assert torch.allclose(block.projection(x[(..., *block.kept)]), want, atol=1e-5)
    assert set(block.projection.stride) == {1}
    layout = CHANNELS_LAST[spatial_dims + 2]
    last, images = block.to(memory_format=layout), x.to(memory_format=layout).requires_grad_()
    for _ in range(5):
        last(images).square().mean().backward()
    assert images.grad.isfinite().all() and last.projection.weight.grad.isfinite().all()


@dims
@pytest.mark.parametrize("project", [True, False])
def test_written_out(spatial_dims, project):
    kernel = (3,) * spatial_dims
    block = ResBlock(4, 4, kernel, project=project).double()
    x = torch.randn(2, 4, *SIZE[spatial_dims], dtype=torch.float64)
    conv = {2: F.conv2d, 3: F.conv3d}[spatial_dims]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        y = conv(x, block.conv1.weight, block.conv1.bias, padding=1)
        y = F.leaky_relu(F.instance_norm(y, weight=block.norm1.weight, bias=block.norm1.bias, eps=1e-5), 0.01)
        y = conv(y, block.conv2.weight, block.conv2.bias, padding=1)
        y = F.instance_norm(y, weight=block.norm2.weight, bias=block.norm2.bias, eps=1e-5)
        around = conv(x, block.projection.weight, block.projection.bias) if project else x
        torch.testing.assert_close(block(x), F.leaky_relu(y + around, 0.01), rtol=0, atol=1e-12)


@dims
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_instance_norm_keeps_the_layout(spatial_dims, images, dtype, tolerance):
    """Channels last takes another way through PyTorch: same values and gradients, and the layout stays."""
    layout, norm = CHANNELS_LAST[spatial_dims + 2], InstanceNorm(4)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    x = (torch.randn(images, 4, *SIZE[spatial_dims]) * 3 + 1).to(dtype)
    norm = norm.double() if dtype == torch.float64 else norm  # weights stay float32 beside bfloat16 images
    default, last = x.clone().requires_grad_(), x.to(memory_format=layout).requires_grad_()
    expected, got = F.instance_norm(default, weight=norm.weight, bias=norm.bias), norm(last)
    assert got.is_contiguous(memory_format=layout) and not got.is_contiguous()
    gradient = torch.randn_like(expected)
    expected.backward(gradient), got.backward(gradient)
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, check_stride=False)
    torch.testing.assert_close(last.grad, default.grad, rtol=0, atol=tolerance, check_stride=False)
    assert torch.equal(norm(default), expected)  # the default layout is PyTorch's own function


@dims
def test_identity_path(spatial_dims):
    block = ResBlock(4, 4, (3,) * spatial_dims, project=False)
    nn.init.zeros_(block.norm2.weight)  # the branch gives nothing
    x = torch.randn(1, 4, *SIZE[spatial_dims])
    before = x.clone()
    assert torch.equal(block(x), F.leaky_relu(x, SLOPE))
    assert torch.equal(x, before)  # the activations work in place, but never on the input


@pytest.mark.parametrize(("width", "stride"), [(4, (1, 1)), (3, (2, 2)), (3, (1, 2))])
def test_change_needs_a_projection(width, stride):
    with pytest.raises(ValueError, match=rf"3 -> {width} channels with stride .* needs project=True"):
        ResBlock(3, width, (3, 3), stride, project=False)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2, 3]), st.data())
def test_upsample_equals_convolution_after_repetition(spatial_dims, data):
    numbers = st.tuples(*[st.integers(1, 3)] * spatial_dims)
    stride, coarse = data.draw(numbers), data.draw(numbers)
    module = Upsample(3, 2, stride).double()
    x = torch.randn(2, 3, *coarse, dtype=torch.float64, requires_grad=True)
    fine = x
    for axis, step in enumerate(stride):
        fine = fine.repeat_interleave(step, dim=2 + axis)
    expected = module.conv(fine)
    found = module(x, expected.shape[2:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@dims
def test_upsample_crops_to_an_odd_skip(spatial_dims):
    skip = SIZE[spatial_dims]
    coarse = tuple(math.ceil(extent / 2) for extent in skip)
    module = Upsample(3, 4, (2,) * spatial_dims)
    x = torch.randn(1, 3, *coarse)
    whole = module(x, tuple(2 * extent for extent in coarse))
    assert module(x, skip).shape == (1, 4, *skip)
    assert torch.equal(module(x, skip), whole[(..., *(slice(extent) for extent in skip))])


@dims
def test_initial_values(spatial_dims):
    network = nn.Sequential(
        ResBlock(32, 64, (3,) * spatial_dims), CONV[spatial_dims](64, 64, 3, groups=64), nn.Conv1d(4, 4, 3)
    )
    untouched = [network[1].weight.clone(), network[2].weight.clone()]
    initialise_convolutions(network)
    weight = network[0].conv1.weight
    fan_in = 32 * 3**spatial_dims
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (1 + SLOPE**2) / fan_in), rel=0.05)
    assert not network[0].conv1.bias.any()
    # Depthwise convolutions and those along a sequence belong to the mixers, which set their own values.
    assert all(torch.equal(x, module.weight) for x, module in zip(untouched, network[1:], strict=True))
