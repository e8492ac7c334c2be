"""A network is rebuilt from what a file says of it, and no file asks for more than its own weights."""

import pytest
import timm

import xlstm_unet_lab as lab
from xlstm_unet_lab.models.presets import MODELS, arguments_of
from xlstm_unet_lab.models.weights import rebuild

SWIN = {"feature_size": 12, "num_heads": (1, 2, 4, 8), "window_size": 4}


def small(**changes):
    facts = {"spatial_dims": 2, "in_channels": 1, "num_classes": 2, "patch_size": (16, 16), "features": (4, 8)}
    return lab.build("unet", **facts | changes)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_comes_back_with_its_weights(name):
    small = {"features": (4, 8, 8)} if "features" in MODELS[name].options else {}
    network = lab.build(name, spatial_dims=2, in_channels=1, num_classes=2, patch_size=(64, 64), **small)
    again = rebuild(arguments_of(network), network.state_dict(), "file")
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert arguments_of(again) == arguments_of(network) and not any(x.is_meta for x in again.buffers())


@pytest.mark.parametrize("encoder", ["regnetx_002", "vit_tiny_patch16_224"])
def test_encoders_that_compute_their_sizes_with_tensors_come_back(encoder):
    network = lab.build(
        "timm_unet", spatial_dims=2, in_channels=1, num_classes=2, patch_size=(224, 224), encoder=encoder
    )
    assert rebuild(arguments_of(network), network.state_dict(), "file").config == network.config


def test_nothing_is_downloaded_for_a_network(monkeypatch):
    facts = {"spatial_dims": 2, "in_channels": 1, "num_classes": 2, "patch_size": (64, 64)}
    network = lab.build("timm_unet", **facts, encoder="resnet10t", stem_width=8)
    create, asked = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda *_, **k: (asked.append(k["pretrained"]), create(*_, **k))[1])
    rebuild(arguments_of(network) | {"pretrained": True}, network.state_dict(), "file")
    assert asked == [False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": [10**7, 10**7]}, "none beyond 65,536"),
        ({"features": [60_000, 60_000]}, r"shape: encoder.stem.0.conv1.weight is \(4, 1, 3, 3\) in the file"),
        ({"features": [8, 8]}, "does not fit the network it describes"),
        ({"features": [4] * 10**6}, "at most 1000 numbers"),
        ({"encoder_blocks": [60_000, 60_000]}, "far more parameters than the file has tensors"),
        ({"in_channels": 10**30}, "none beyond"),
        ({"num_classes": 3}, "decoder.heads.0.weight"),
        ({"patch_size": [10**9, 10**9]}, "none beyond"),
        ({"strides": [[1, 1], [10**9, 1]]}, "none beyond"),
        ({"name": "nope"}, "no model is named 'nope'"),
        ({"name": ["unet"]}, "no network can be built"),
        ({"later": 1}, "later=1 is no option"),
        ({"spatial_dims": 7}, "spatial_dims is 7"),
        ({"mlstm_form": {}}, "no network can be built"),
        ({"pretrained": True}, "is no option of 'unet'"),
    ],
)
def test_arguments_that_are_not_those_of_the_weights_are_refused_before_memory_is_asked_for(change, message):
    network = small()
    with pytest.raises(ValueError, match=message) as error:
        rebuild(arguments_of(network) | change, network.state_dict(), "models/odd.safetensors")
    assert str(error.value).startswith("models/odd.safetensors")


@pytest.mark.parametrize("arguments", [None, 3, "unet", [], {}, {"name": "unet"}, [["name", "unet"]]])
def test_what_is_no_arguments_is_refused(arguments):
    with pytest.raises(ValueError, match=r"file: no network can be built with"):
        rebuild(arguments, small().state_dict(), "file")


def test_a_deep_swin_transformer_is_given_up_at_once():
    network = lab.build("swin_unetr", spatial_dims=2, in_channels=1, num_classes=2, patch_size=(64, 64))
    for depths in ([10**9] * 4, [30_000] * 4):
        with pytest.raises(ValueError, match=r"none beyond|far more parameters"):
            rebuild(arguments_of(network) | {"depths": depths}, network.state_dict(), "file")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("window", [32, 96, 65_536, [64, 64, 64], [[64], [64], [64]], "64", None, {"a": 64}])
def test_a_window_that_the_file_has_no_pairs_of_positions_for_takes_no_memory(monkeypatch, dims, window):
    network = lab.build("swin_unetr", spatial_dims=dims, in_channels=1, num_classes=2, patch_size=(64,) * dims, **SWIN)
    arguments, tensors = arguments_of(network), network.state_dict()
    rebuild(arguments, tensors, "file")
    monkeypatch.setattr("xlstm_unet_lab.models.weights.build", None)  # it is not even tried
    with pytest.raises(ValueError, match=r"file: no network can be built with .*(window|type)"):
        rebuild(arguments | {"window_size": window}, tensors, "file")
