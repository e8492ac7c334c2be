"""Lesson 05's references against PyTorch, the package's own parts and its whole network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xlstm_unet_lab as lab
from xlstm_unet_lab.course.checks import lesson_05, lesson_05_blocks, lesson_05_unet
from xlstm_unet_lab.nn.conv import CONV, InstanceNorm, ResBlock, Upsample

both = pytest.mark.parametrize("dims", [2, 3])
ENDS = ((5, 12), (1, 5), (1, 3), (0, 2))  # of size, kernel, stride and padding
SIZES = {2: (9, 7), 3: (5, 6, 7)}


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*(st.integers(*ends) for ends in ENDS)), min_size=2, max_size=3))
def test_output_size_is_that_of_a_convolution(axes):
    size, kernel, stride, padding = zip(*axes, strict=True)
    layer = CONV[len(size)](1, 1, kernel, stride, padding)
    assert lesson_05.output_size(size, kernel, stride, padding) == tuple(layer(torch.zeros(1, 1, *size)).shape[2:])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 2)), min_size=1, max_size=5))
def test_receptive_field_is_where_the_gradient_is(layers):
    kernels, strides = zip(*layers, strict=True)
    image = torch.zeros(1, 1, 513, requires_grad=True)
    x = image
    for kernel, stride in layers:
        x = torch.nn.functional.conv1d(x, torch.ones(1, 1, kernel), stride=stride, padding=kernel // 2)
    (gradient,) = torch.autograd.grad(x[0, 0, x.shape[2] // 2], image)
    seen = gradient.nonzero()[:, 2]
    assert lesson_05.receptive_field(kernels, strides)[0] == int(seen.max() - seen.min()) + 1


@both
def test_instance_norm_is_the_packages(dims):
    norm, x = InstanceNorm(3).double(), random(2, 3, *SIZES[dims])
    with torch.no_grad():
        norm.weight.copy_(random(3))
        norm.bias.copy_(random(3).flip(0))
    torch.testing.assert_close(lesson_05_blocks.instance_norm(x, norm.weight, norm.bias, 1e-5), norm(x))


@both
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("project", [True, False])
def test_residual_block_is_the_packages(dims, stride, project):
    if stride == 2 and not project:
        return
    block = ResBlock(3, 5 if project else 3, (3,) * dims, (stride,) * dims, project).double()
    x, projection = random(2, 3, *SIZES[dims]), None
    if project:

        def projection(whole):
            return block.projection(whole[(..., *block.kept)])

    ours = lesson_05_blocks.residual_block(x, block.conv1, block.norm1, block.conv2, block.norm2, projection)
    torch.testing.assert_close(ours, block(x))


@both
def test_join_and_unet_are_the_packages(dims):
    size = {2: (21, 30), 3: (9, 12, 10)}[dims]
    network = lab.build(
        "unet", spatial_dims=dims, in_channels=2, num_classes=3, patch_size=(16,) * dims, features=(4, 6, 8)
    ).double()
    encoder, decoder, image = network.encoder, network.decoder, random(2, 2, *size)
    first = torch.nn.Sequential(encoder.stem, encoder.stages[0])
    joins = [
        lambda x, skip, up=up: lesson_05_unet.join(up.conv(x), skip, up.stride)
        for up in decoder.upsamplings
        if isinstance(up, Upsample)
    ]
    ours = lesson_05_unet.unet(image, [first, *encoder.stages[1:]], joins, decoder.stages, decoder.heads["1"])
    torch.testing.assert_close(ours, network(image))
