"""Networks by name: every preset in 2-D and 3-D, overrides, plans of strides, and what is refused, with the fix."""

import ast
import copy
import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xlstm_unet_lab as lab
from xlstm_unet_lab.models import presets
from xlstm_unet_lab.models.plan import plan_strides
from xlstm_unet_lab.models.presets import MODELS, PRESETS, arguments_of, multiply_adds
from xlstm_unet_lab.nn.layers import BlockDiagonalLinear
from xlstm_unet_lab.ops import mlstm

SMALL = (4, 6, 8, 8, 12)
PATCH = {2: (48, 32), 3: (16, 32, 32)}
ODD = {2: (33, 47), 3: (9, 17, 21)}
dims = pytest.mark.parametrize("spatial_dims", [2, 3])
names = pytest.mark.parametrize("name", PRESETS)
FAMILIES = {"unet": None, "xlstm_unet": "vil", "u_mamba": "mamba"}


def build(name="unet", spatial_dims=2, **options):
    facts = {"in_channels": 1, "num_classes": 2, "patch_size": PATCH.get(spatial_dims), "features": SMALL}
    return lab.build(name, spatial_dims=spatial_dims, **(facts | options))


@names
@dims
def test_every_preset(name, spatial_dims):
    network = build(name, spatial_dims)
    for size in (PATCH[spatial_dims], ODD[spatial_dims]):
        assert network(torch.randn(1, 1, *size)).shape == (1, 2, *size)


@names
@dims
def test_training_step_with_deep_supervision(name, spatial_dims):
    network = build(name, spatial_dims, deep_supervision=True, in_channels=3, num_classes=4)
    logits = network(torch.randn(2, 3, *ODD[spatial_dims]))
    sizes = [ODD[spatial_dims]]
    for stride in network.config.strides[1:-1]:
        sizes.append(tuple(math.ceil(extent / step) for extent, step in zip(sizes[-1], stride, strict=True)))
    assert [tuple(level.shape) for level in logits] == [(2, 4, *size) for size in sizes]
    sum((level**2).mean() for level in logits).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@names
def test_mixers_stand_where_the_name_says(name):
    family, place = next((kind, name.removeprefix(word)) for word, kind in FAMILIES.items() if name.startswith(word))
    mixers = build(name).config.mixers
    where = {"": [], "_bot": [4], "_enc": [2, 4]}[place]
    assert mixers == tuple(family if stage in where else "none" for stage in range(5))
    six = build(name, features=(*SMALL, 12), patch_size=(96, 96)).config.mixers
    where = {"": [], "_bot": [5], "_enc": [3, 5]}[place]
    assert six == tuple(family if stage in where else "none" for stage in range(6))


@names
@dims
def test_weights_do_not_depend_on_the_patch_size(name, spatial_dims):
    shapes = []
    for patch in (PATCH[spatial_dims], tuple(2 * extent + 3 for extent in PATCH[spatial_dims])):
        network = build(name, spatial_dims, patch_size=patch, directions="axes")
        shapes.append({key: tuple(x.shape) for key, x in network.state_dict().items()})
    assert shapes[0] == shapes[1]


@names
def test_same_seed_same_weights(name):
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_defaults_follow_the_patch():
    config = lab.build("unet", spatial_dims=2, in_channels=1, num_classes=2, patch_size=(320, 320)).config
    assert config.features == (32, 64, 128, 256, 512, 512, 512)
    assert config.strides == ((1, 1), *[(2, 2)] * 6)
    assert config.grid_sizes()[-1] == (5, 5)
    config = lab.build("unet", spatial_dims=3, in_channels=1, num_classes=2, patch_size=(16, 64, 64)).config
    assert config.features == (32, 64, 128, 256, 320)
    assert config.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert config.grid_sizes()[-1] == (4, 4, 4)
    assert config.directions == "bidirectional"
    assert not config.channel_tokens


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=3), st.one_of(st.none(), st.integers(1, 8)))
def test_plan_strides(patch, stages):
    strides = plan_strides(patch, stages)
    assert strides[0] == (1,) * len(patch)
    assert len(strides) == stages if stages else len(strides) >= 2
    assert {step for stride in strides for step in stride} <= {1, 2}
    if stages is None and max(patch) >= 8:
        size = patch
        for stride in strides:
            assert all(extent >= 8 or step == 1 for extent, step in zip(size, stride, strict=True))
            size = [math.ceil(extent / step) for extent, step in zip(size, stride, strict=True)]
        assert max(size) < 8


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"features": [3, 5, 7]}, {"features": (3, 5, 7), "strides": ((1, 1), (2, 2), (2, 2))}),
        ({"strides": [[1, 1], [2, 1], [2, 2], [1, 2], [2, 2]]}, {"strides": ((1, 1), (2, 1), (2, 2), (1, 2), (2, 2))}),
        ({"kernel_sizes": [[5, 5], *[[3, 3]] * 4]}, {"kernel_sizes": ((5, 5), *[(3, 3)] * 4)}),
        ({"encoder_blocks": [2, 1, 1, 1, 3]}, {"encoder_blocks": (2, 1, 1, 1, 3)}),
        ({"decoder_blocks": [2, 1, 1, 1]}, {"decoder_blocks": (2, 1, 1, 1)}),
        (
            {"mixers": ["none", "resblock", "mamba", "vil", "vil"]},
            {"mixers": ("none", "resblock", "mamba", "vil", "vil")},
        ),
        ({"vil_version": "v2"}, {"vil_version": "v2"}),
        ({"directions": "axes"}, {"directions": "axes"}),
        ({"full_resolution_skip": False}, {"full_resolution_skip": False}),
        ({"channel_tokens": True}, {"channel_tokens": True}),
        ({"mlstm_form": "recurrent"}, {"mlstm_form": "recurrent"}),
    ],
)
def test_overrides(overrides, expected):
    network = build("xlstm_unet_bot", **overrides)
    assert {key: getattr(network.config, key) for key in expected} == expected
    assert network(torch.randn(1, 1, *PATCH[2])).shape == (1, 2, *PATCH[2])


def test_mixers_alone_give_the_number_of_stages():
    config = lab.build(
        "unet", spatial_dims=2, in_channels=1, num_classes=2, patch_size=(64, 64), mixers=["none", "vil", "mamba"]
    ).config
    assert config.features == (32, 64, 128)


def test_configuration_shares_nothing_with_the_caller():
    options = {
        "patch_size": [48, 32],
        "features": list(SMALL),
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2], [1, 2]],
        "kernel_sizes": [[3, 3]] * 5,
        "encoder_blocks": [1] * 5,
        "decoder_blocks": [1] * 4,
        "mixers": ["none"] * 5,
    }
    before = copy.deepcopy(options)
    config = build(**options).config
    assert options == before
    kept = hash(config)  # only what holds no list can be hashed
    options["strides"][1][0] = 7
    options["features"].append(9)
    assert hash(config) == kept
    assert config.strides[1] == (2, 2)


def test_list_models():
    table = lab.list_models()
    assert list(table.columns) == ["name", "family", "spatial_dims", "source"]
    assert {"unet", "xlstm_unet_bot", "xlstm_unet_enc", "u_mamba_bot", "u_mamba_enc"} <= set(table["name"])
    assert {"nnunet", "nnunet_res_enc", "segresnet", "unetr", "swin_unetr", "timm_unet"} <= set(table["name"])
    assert table["name"].is_unique
    assert table.notna().all().all()
    assert set(table["name"]) - set(lab.list_models(spatial_dims=3)["name"]) == {"timm_unet"}


def test_list_models_measures_for_a_patch_size(monkeypatch):
    monkeypatch.setattr(presets, "MODELS", {name: MODELS[name] for name in ("unet", "xlstm_unet_enc", "swin_unetr")})
    table = lab.list_models(in_channels=3, num_classes=4, patch_size=[48, 48]).set_index("name")
    network = lab.build("unet", spatial_dims=2, in_channels=3, num_classes=4, patch_size=(48, 48))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert table.loc["unet", "parameters"] == pytest.approx(parameters / 1e6)
    assert table.loc["xlstm_unet_enc", "multiply_adds"] > table.loc["unet", "multiply_adds"] > 0
    assert table.loc["unet", "fits"] == "yes"
    assert "use (32, 64) or (64, 64)" in table.loc["swin_unetr", "fits"]
    assert math.isnan(table.loc["swin_unetr", "parameters"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 3, "patch_size": (64, 64)}, r"patch_size is \(64, 64\), expected a tuple of 3 whole numbers"),
        ({"patch_size": (64,)}, r"patch_size is \(64,\), expected a tuple of 2 or 3 whole numbers"),
        ({"patch_size": 64}, "patch_size is 64, expected a tuple of 2"),
    ],
)
def test_list_models_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        lab.list_models(**options)


class Cell(torch.nn.Module):
    """The mLSTM alone, on q = k = v."""

    def forward(self, q):
        gates = q[..., 0]
        return mlstm.run(q, q, q, gates, gates, form="chunkwise", check_values=False)


def test_multiply_adds_of_known_networks():
    convolution = torch.nn.Conv3d(3, 8, 3, padding=1)
    assert multiply_adds(convolution, (2, 3, 5, 6, 7)) == 2 * 5 * 6 * 7 * 8 * 3 * 27
    depthwise = torch.nn.Conv2d(4, 4, 3, groups=2, bias=False)
    assert multiply_adds(depthwise, (1, 4, 9, 10)) == 7 * 8 * 4 * 2 * 9
    assert multiply_adds(BlockDiagonalLinear(32, 4, bias=True), (5, 32)) == 5 * 32 * 4  # the zeros between blocks not
    # chunks of L tokens, width D and D + 1 with the normaliser: q k, weights v, q state, and k v into the state
    length, chunk, width = 64, 16, 16
    inside = length * chunk * (width + width + 1)
    assert multiply_adds(Cell(), (1, 2, length, width)) == 2 * (inside + 2 * length * width * (width + 1))


@names
def test_multiply_adds_grow_with_the_image_and_leave_the_network_as_it_is(name):
    network = build(name)
    before = copy.deepcopy(network.state_dict())
    small, large = (multiply_adds(network, (1, 1, size, size)) for size in (64, 128))
    assert 3.5 < large / small < 4.5
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@names
@dims
def test_arguments_build_the_same_network(name, spatial_dims):
    network = build(name, spatial_dims, deep_supervision=True, vil_version="v2")
    arguments = json.loads(json.dumps(arguments_of(network)))
    assert arguments["name"] == name
    assert lab.build(**arguments).config == network.config


@pytest.mark.parametrize(("name", "nearest"), [("xlstm_unet_bott", "xlstm_unet_bot"), ("umamba_enc", "u_mamba_enc")])
def test_unknown_name(name, nearest):
    with pytest.raises(KeyError, match=f"no model is named '{name}': did you mean '{nearest}'"):
        build(name)


def test_name_like_none_lists_all():
    with pytest.raises(KeyError, match=r"no model is named 'transformer': .*xlstm_unet_enc"):
        build("transformer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": (4, 8)}, r"feature=\(4, 8\) is no option of 'unet': did you mean 'features'\?"),
        ({"deep_supervison": True}, "deep_supervison=True is no option of 'unet': did you mean 'deep_supervision'"),
        ({"zzz": 1}, "zzz=1 is no option of 'unet': there are .*decoder_blocks"),
        ({"spatial_dims": 4, "patch_size": (8,) * 4}, "spatial_dims is 4, expected 2 or 3"),
        (
            {"patch_size": (64, 64, 64)},
            r"patch_size is \(64, 64, 64\), expected a tuple of 2 whole numbers of at least 1",
        ),
        ({"patch_size": (64, 0)}, r"patch_size is \(64, 0\), expected a tuple of 2 whole numbers of at least 1"),
        ({"patch_size": (64, 32.0)}, r"patch_size is \(64, 32\.0\), expected a tuple of 2 whole numbers"),
        ({"patch_size": 64}, "patch_size is 64, expected a tuple of 2"),
        ({"features": 32}, "features is 32, expected"),
        ({"strides": (1, 2, 2, 2, 2)}, r"strides\[0\] is 1, expected a tuple of 2 whole numbers"),
        ({"strides": ((1, 1), (2, 2))}, "expected 5 entries"),
        ({"mixers": ("vil", "none")}, "expected 5 entries"),
        ({"num_classes": 0}, "num_classes is 0, expected a whole number from 1 to 65536"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("patch_size", "stages"),
    [((8, 8), 5), ((1, 1), None), ((16, 16), 6), ((3, 5), 4), ((8, 8, 8), 5), ((4, 64, 64), 9), ((1, 1, 2), None)],
)
def test_impossible_patch_names_sizes_that_work(patch_size, stages):
    facts = {"spatial_dims": len(patch_size), "in_channels": 1, "num_classes": 2}
    facts |= {"features": (4,) * stages if stages else (4, 4)}
    with pytest.raises(ValueError, match="leaves one position in the deepest") as caught:
        lab.build("unet", patch_size=patch_size, **facts)
    suggested = re.search(r"at least (\(.*?\)).*better (\(.*?\))", str(caught.value)).groups()
    for size in map(ast.literal_eval, suggested):
        network = lab.build("unet", patch_size=size, **facts)
        if math.prod(size) <= 64**2:
            assert network(torch.randn(1, 1, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize("stages", [2, 3, 4, 7])
@pytest.mark.parametrize(("name", "kind"), [("xlstm_unet_enc", "vil"), ("u_mamba_enc", "mamba")])
def test_the_deepest_stage_always_has_a_mixer(name, kind, stages):
    model = lab.build(
        name, spatial_dims=2, in_channels=1, num_classes=2, patch_size=(128, 128), features=tuple([4] * stages)
    )
    assert model.config.mixers[-1] == kind


def test_a_configuration_made_by_hand_shares_nothing_with_its_caller():
    features, strides = [4, 8], [[1, 1], [2, 2]]
    config = lab.UNetConfig(2, 1, 2, [16, 16], features, strides, [[3, 3]] * 2, [1, 1], [1], ["none", "vil"])
    features.append(16)
    strides[1][0] = 4
    assert config.features == (4, 8) and config.strides == ((1, 1), (2, 2)) and config.mixers == ("none", "vil")


def test_published_config_names_what_is_no_sequence():
    with pytest.raises(ValueError, match="features is 4, expected a tuple of whole numbers"):
        lab.published_config(
            "enc",
            spatial_dims=2,
            in_channels=1,
            num_classes=2,
            patch_size=(16, 16),
            features=4,
            strides=1,
            kernel_sizes=3,
            encoder_blocks=1,
            decoder_blocks=1,
        )
