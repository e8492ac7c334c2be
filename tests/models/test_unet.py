"""The U-Net and its configuration: shapes in 2-D and 3-D, odd sizes, where gradients go, and what is refused."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.models.unet import UNet, UNetConfig
from xlstm_unet_lab.nn.conv import ResBlock
from xlstm_unet_lab.nn.mixer import ChannelMixer, Mixer

PATCH = {2: (32, 24), 3: (16, 8, 16)}
ODD = {2: (33, 47), 3: (9, 17, 21)}
dims = pytest.mark.parametrize("spatial_dims", [2, 3])


def make_config(spatial_dims=2, **changes):
    """Four stages, each with another kind of mixer."""
    options = {
        "spatial_dims": spatial_dims,
        "in_channels": 2,
        "num_classes": 3,
        "patch_size": PATCH.get(spatial_dims),
        "features": (4, 8, 8, 12),
        "strides": ((1,) * spatial_dims, *[(2,) * spatial_dims] * 3),
        "kernel_sizes": ((3,) * spatial_dims,) * 4,
        "encoder_blocks": (1, 2, 1, 1),
        "decoder_blocks": (2, 1, 1),
        "mixers": ("none", "resblock", "mamba", "vil"),
    }
    return UNetConfig(**(options | changes))


def logits_of(network, size, batch=1):
    """Always a list, highest resolution first."""
    logits = network(torch.randn(batch, network.config.in_channels, *size))
    return logits if isinstance(logits, list) else [logits]


@dims
@pytest.mark.parametrize("size", ["patch", "odd"])
def test_output_has_the_size_of_the_input(spatial_dims, size):
    size = (PATCH if size == "patch" else ODD)[spatial_dims]
    (logits,) = logits_of(UNet(make_config(spatial_dims)), size, batch=2)
    assert logits.shape == (2, 3, *size)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2, 3]), st.data())
def test_any_size_above_one_deepest_position(spatial_dims, data):
    size = data.draw(st.tuples(*[st.integers(9, 21)] * spatial_dims))
    network = UNet(make_config(spatial_dims, features=(2, 4, 4, 4), deep_supervision=True))
    expected = [tuple(math.ceil(extent / 2**level) for extent in size) for level in range(3)]
    assert [tuple(logits.shape[2:]) for logits in logits_of(network, size)] == expected


@dims
@pytest.mark.parametrize("skip", [True, False])
def test_deep_supervision_comes_highest_resolution_first(spatial_dims, skip):
    config = make_config(spatial_dims, deep_supervision=True, full_resolution_skip=skip)
    network = UNet(config)
    shapes = [tuple(logits.shape) for logits in logits_of(network, PATCH[spatial_dims])]
    assert shapes == [(1, 3, *size) for size in config.grid_sizes()[:-1]]
    single = UNet(dataclasses.replace(config, deep_supervision=False))
    shared = {name: x for name, x in network.state_dict().items() if name in single.state_dict()}
    single.load_state_dict(shared)
    image = torch.randn(1, 2, *ODD[spatial_dims])
    assert torch.equal(single(image), network(image)[0])
    assert len(single.decoder.heads) == 1  # no weights that nobody trains


def test_strides_and_kernels_that_differ_between_axes():
    strides, kernels = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 3, 2)), ((1, 3, 3), (3, 3, 3), (3, 5, 3), (3, 3, 3))
    config = make_config(3, patch_size=(6, 24, 16), strides=strides, kernel_sizes=kernels, deep_supervision=True)
    assert config.grid_sizes() == [(6, 24, 16), (6, 12, 8), (3, 6, 4), (3, 2, 2)]
    assert [tuple(x.shape[2:]) for x in logits_of(UNet(config), (5, 23, 15))] == [(5, 23, 15), (5, 12, 8), (3, 6, 4)]


@dims
@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("quirks", [True, False])
def test_gradients_reach_every_parameter(spatial_dims, deep_supervision, quirks):
    options = {"directions": "forward", "full_resolution_skip": False, "channel_tokens": True} if quirks else {}
    network = UNet(make_config(spatial_dims, deep_supervision=deep_supervision, **options))
    sum((logits**2).mean() for logits in logits_of(network, PATCH[spatial_dims], batch=2)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias in front of an instance norm is subtracted again: its gradient is 0 up to rounding.
        if not name.endswith(("conv1.bias", "conv2.bias")) or ".mixers.2." in name or ".mixers.3." in name:
            assert parameter.grad.any(), name


def test_mixers_are_what_the_configuration_says():
    mixers = UNet(make_config()).encoder.mixers
    assert [type(mixer) for mixer in mixers] == [torch.nn.Identity, ResBlock, Mixer, Mixer]
    # Stage 3 has 4 x 3 positions and 12 channels, stage 2 more positions than channels.
    swapped = UNet(make_config(channel_tokens=True)).encoder.mixers
    assert [type(mixer) for mixer in swapped] == [torch.nn.Identity, ResBlock, Mixer, ChannelMixer]
    assert type(UNet(make_config(channel_tokens=True, features=(4, 8, 8, 8))).encoder.mixers[3]) is Mixer


def test_options_reach_the_mixers():
    options = {"vil_version": "v2", "directions": "axes", "mlstm_form": "parallel", "mamba_residual": False}
    mixers = UNet(make_config(**options)).encoder.mixers
    assert [len(mixer.blocks) for mixer in mixers[2:]] == [4, 4]
    assert mixers[3].blocks[0].layer.up.bias is not None
    assert mixers[3].blocks[0].layer.cell.form == "parallel"
    assert not mixers[2].blocks[0].residual


def test_without_the_full_resolution_skip_the_image_enters_from_below():
    network = UNet(make_config(full_resolution_skip=False))
    widths = [stage[0].conv1.in_channels for stage in network.decoder.stages]
    assert widths == [16, 16, 4]
    assert [stage[0].conv1.in_channels for stage in UNet(make_config()).decoder.stages] == [16, 16, 8]


def test_block_counts():
    network = UNet(make_config(encoder_blocks=(3, 2, 1, 4), decoder_blocks=(2, 3, 1)))
    assert len(network.encoder.stem) == 3
    assert [len(stage) for stage in network.encoder.stages] == [3, 2, 1, 4]
    assert [len(stage) for stage in network.decoder.stages] == [2, 3, 1]


@dims
def test_form_of_the_mlstm_changes_nothing(spatial_dims):
    networks = [UNet(make_config(spatial_dims, mlstm_form=form)).double() for form in ("chunkwise", "parallel")]
    networks[1].load_state_dict(networks[0].state_dict())
    image = torch.randn(1, 2, *ODD[spatial_dims], dtype=torch.float64)
    torch.testing.assert_close(networks[0](image), networks[1](image), rtol=0, atol=1e-10)


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config().features = (1, 2, 3, 4)


@dims
def test_wrong_image(spatial_dims):
    network, size = UNet(make_config(spatial_dims)), PATCH[spatial_dims]
    axes = r"\(batch, 2, y, x\)" if spatial_dims == 2 else r"\(batch, 2, z, y, x\)"
    for shape in ((2, *size), (1, 1, 2, *size), (1, 3, *size)):
        with pytest.raises(ValueError, match=rf"image has shape .*, expected {axes}"):
            network(torch.zeros(shape))


def test_image_too_small_to_normalise():
    with pytest.raises(ValueError, match=r"image .*\(1, 2, 8, 8\).*one position"):
        UNet(make_config())(torch.zeros(1, 2, 8, 8))


def test_channel_tokens_tie_the_size_down():
    with pytest.raises(ValueError, match=r"was built for a feature map of \(4, 3\) positions and got \(3, 4\)"):
        UNet(make_config(channel_tokens=True))(torch.zeros(1, 2, 24, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1, expected 2 or 3"),
        ({"in_channels": True}, "in_channels is True, expected a whole number"),
        ({"deep_supervision": 1}, "deep_supervision is 1, expected True or False"),
        ({"in_channels": 0}, "in_channels is 0, expected a whole number of at least 1"),
        ({"num_classes": 2.0}, r"num_classes is 2\.0, expected a whole number"),
        ({"patch_size": (32,)}, r"patch_size is \(32,\), expected a tuple of 2 whole numbers"),
        ({"patch_size": (32, 0)}, r"patch_size is \(32, 0\), expected .* whole numbers of at least 1"),
        ({"features": (4, 8, 8)}, r"strides is .*, expected 3 entries \(3 stages\)"),
        ({"features": (4, 8, -8, 8)}, r"features is \(4, 8, -8, 8\), expected .* whole numbers of at least 1"),
        ({"strides": ((2, 2),) * 4}, r"strides\[0\] is \(2, 2\), expected all ones"),
        ({"strides": ((1, 1), (2, 2), (2, 2), (2,))}, r"strides\[3\] is \(2,\), expected a tuple of 2 whole numbers"),
        (
            {"strides": ((1, 1), (2, 2), (2, 2), (2, 0))},
            r"strides\[3\] is \(2, 0\), expected .* whole numbers of at least 1",
        ),
        ({"kernel_sizes": ((3, 3), (3, 4), (3, 3), (3, 3))}, "kernel_sizes holds 4, expected odd numbers"),
        ({"encoder_blocks": (1, 1, 1)}, r"encoder_blocks is \(1, 1, 1\), expected 4 entries"),
        ({"encoder_blocks": (1, 0, 1, 1)}, r"encoder_blocks is \(1, 0, 1, 1\), expected a tuple of whole numbers"),
        ({"decoder_blocks": (1, 1, 1, 1)}, r"decoder_blocks is \(1, 1, 1, 1\), expected 3 entries"),
        ({"mixers": ("none", "vil")}, r"mixers is \('none', 'vil'\), expected 4 entries"),
        (
            {"mixers": ("none", "none", "none", "vit")},
            r"mixers\[3\] is 'vit': did you mean 'vil'\? there are none, resblock, vil, mamba",
        ),
        ({"vil_version": "v3"}, r"vil_version is 'v3': .*there are v1, v2"),
        ({"directions": "both"}, r"directions is 'both': .*there are forward, bidirectional, axes"),
        ({"mlstm_form": "chunked"}, r"form is 'chunked': did you mean 'chunkwise'\?"),
        ({"patch_size": (8, 8)}, r"patch_size \(8, 8\) with total stride \(8, 8\) leaves one position"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


@pytest.mark.parametrize("name", ["features", "encoder_blocks", "decoder_blocks", "mixers", "strides", "kernel_sizes"])
def test_one_stage_is_refused(name):
    one = {"features": (4,), "encoder_blocks": (1,), "decoder_blocks": (), "mixers": ("none",)}
    one |= {"strides": ((1, 1),), "kernel_sizes": ((3, 3),)}
    with pytest.raises(ValueError, match=r"features is \(4,\), expected 2 widths or more"):
        make_config(**one)
    del one[name]
    with pytest.raises(ValueError, match=r"expected \d+ entries"):
        make_config(**one)
