"""Mixers on feature maps: shapes, what each position hears, and the published variant over channels."""

import math

import pytest
import torch

from xlstm_unet_lab.nn.mixer import BlockChoice, ChannelMixer, Mixer
from xlstm_unet_lab.ops.scan_order import to_sequence, traversals

SIZES = {2: (3, 4), 3: (2, 3, 2)}
dims = pytest.mark.parametrize("spatial_dims", [2, 3])
kinds = pytest.mark.parametrize("kind", ["vil", "mamba"])


def hears(module, size, channels):
    """(positions, positions) of bool: does the output at a position (row) depend on the input at one (column)?"""
    count = math.prod(size)
    jacobian = torch.autograd.functional.jacobian(module, torch.randn(1, channels, *size, dtype=torch.float64))
    return jacobian.abs().view(channels, count, channels, count).sum((0, 2)) > 0


@dims
@kinds
@pytest.mark.parametrize(("directions", "blocks"), [("forward", (1, 1)), ("bidirectional", (2, 2)), ("axes", (4, 6))])
def test_shapes(kind, spatial_dims, directions, blocks):
    mixer = Mixer(BlockChoice(kind), 8, spatial_dims, directions)
    assert len(mixer.blocks) == blocks[spatial_dims - 2]
    x = torch.randn(2, 8, *SIZES[spatial_dims])
    assert mixer(x).shape == x.shape


@dims
@kinds
def test_forward_hears_the_past_alone(kind, spatial_dims):
    size = SIZES[spatial_dims]
    heard = hears(Mixer(BlockChoice(kind), 4, spatial_dims, "forward").double(), size, 4)
    assert torch.equal(heard, torch.ones_like(heard).tril())


@dims
@kinds
@pytest.mark.parametrize("directions", ["bidirectional", "axes"])
def test_both_directions_hear_everything(kind, spatial_dims, directions):
    assert hears(Mixer(BlockChoice(kind), 4, spatial_dims, directions).double(), SIZES[spatial_dims], 4).all()


@dims
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_blocks_walk_the_grid_one_after_the_other(version, spatial_dims):
    size = SIZES[spatial_dims]
    mixer = Mixer(BlockChoice("vil", version), 4, spatial_dims, "axes").double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    y = x
    for traversal, block in zip(traversals(spatial_dims, "axes"), mixer.blocks, strict=True):
        # The same walk by hand: the fastest axis moved last, flattened, and flipped for the way back.
        axis = 2 + traversal.fastest % spatial_dims
        walked = y.movedim(axis, -1)
        tokens = walked.flatten(2).mT
        tokens = tokens.flip(1) if traversal.reverse else tokens
        tokens = block(tokens, tuple(walked.shape[2:]))
        tokens = tokens.flip(1) if traversal.reverse else tokens
        y = tokens.mT.reshape(walked.shape).movedim(-1, axis)
    torch.testing.assert_close(mixer(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunkwise"])
def test_form_reaches_the_cells(form):
    mixer = Mixer(BlockChoice("vil", mlstm_form=form), 4, 2, "bidirectional")
    assert [block.layer.cell.form for block in mixer.blocks] == [form, form]


@pytest.mark.parametrize("residual", [True, False])
def test_mamba_adds_or_replaces(residual):
    mixer = Mixer(BlockChoice("mamba", mamba_residual=residual), 4, 2, "forward")
    torch.nn.init.zeros_(mixer.blocks[0].layer.output_projection.weight)
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(mixer(x), x if residual else torch.zeros_like(x))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("size", [(2, 3), (2, 2, 2)])
def test_channels_as_tokens(size, version):
    mixer = ChannelMixer(BlockChoice("vil", version), size).double()
    x = torch.randn(2, 9, *size, dtype=torch.float64)
    expected = mixer.block(x.flatten(2), (9,)).view(x.shape)
    assert torch.equal(mixer(x), expected)
    assert mixer.block.layer.up.in_features == math.prod(size)
    if version == "v1":  # the tokens are channels: a channel hears those before it, and all positions
        jacobian = torch.autograd.functional.jacobian(mixer, x[:1, :4]).view(4, math.prod(size), 4, -1)
        heard = jacobian.abs().sum((1, 3)) > 0
        assert torch.equal(heard, torch.ones(4, 4, dtype=torch.bool).tril())


def test_channel_mixer_belongs_to_one_size():
    mixer = ChannelMixer(BlockChoice("vil"), (2, 4))
    with pytest.raises(ValueError, match=r"built for a feature map of \(2, 4\) positions and got \(4, 2\): give the"):
        mixer(torch.zeros(1, 9, 4, 2))


def test_unknown_kinds():
    with pytest.raises(ValueError, match=r"mixer kind is 'attention': .*there are vil, mamba"):
        Mixer(BlockChoice("attention"), 8, 2)
    with pytest.raises(ValueError, match=r"directions is 'both': .*there are forward, bidirectional, axes"):
        Mixer(BlockChoice("vil"), 8, 2, "both")
    with pytest.raises(ValueError, match="vil_version is 'v9'"):
        Mixer(BlockChoice("vil", "v9"), 8, 2)


def test_mixer_equals_its_blocks_on_tokens():
    mixer, x = Mixer(BlockChoice("vil"), 4, 2, "forward").double(), torch.randn(1, 4, 3, 5, dtype=torch.float64)
    assert torch.equal(to_sequence(mixer(x)), mixer.blocks[0](to_sequence(x), (3, 5)))
