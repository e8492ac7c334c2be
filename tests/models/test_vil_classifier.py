"""Vision-LSTM as a classifier: the published function and sizes, timm, other image sizes, bad input."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import xlstm_unet_lab as lab
from xlstm_unet_lab.models import vil_classifier

TOLERANCE = 2e-5  # of the largest value: the reference is stored in float32
NAMES = [f"{version}_{size}_patch16_224" for version in ("vil", "vil2") for size in vil_classifier.SIZES]
versions = pytest.mark.parametrize("version", ["v1", "v2"])


def small(version="v1", **changes):
    options = {"in_channels": 2, "image_size": 16, "patch_size": 4, "dim": 8, "depth": 2, "num_classes": 5}
    return lab.VisionLSTM(version, **(options | changes))


def randomised(model):
    """All weights drawn anew, so that no norm and no gate stands at its neutral start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


def names_of_the_training_run(model):
    """The state dict of a classifier as the released ImageNet files name it, both versions with their norms."""
    layer = {"up": "proj_up", "down": "proj_down", "q": "q_proj", "k": "k_proj", "v": "v_proj"}
    layer |= {"conv.conv": "conv1d.conv" if model.version == "v1" else "conv1d", "cell.norm": "mlstm_cell.outnorm"}
    norms = ("post_blocks_norm", "head.0") if model.version == "v2" else ("head.0", "post_blocks_norm")
    whole = {"embedding": "patch_embed.proj", "head": "head.1"} | dict(zip(("norm", "second_norm"), norms, strict=True))
    named = {"pos_embed.embed": model.position}
    for name, tensor in model.state_dict().items():
        part, _, kind = name.rpartition(".")
        block, inside, place = part.partition(".layer.")
        if place == "cell.gates":
            for gate, half in zip(("igate", "fgate"), tensor.chunk(2), strict=True):
                named[f"xlstm.{block}.xlstm.mlstm_cell.{gate}.{kind}"] = half.clone()
        elif inside:
            named[f"xlstm.{block}.xlstm.{layer[place]}.{kind}"] = tensor
        elif name.endswith(".layer.skip"):
            named[f"xlstm.{block.removesuffix('.layer')}.xlstm.learnable_skip"] = tensor
        elif part.startswith("blocks."):
            named[f"xlstm.{part.replace('.norm', '.xlstm_norm')}.{kind}"] = tensor
        elif part:
            named[f"{whole[part]}.{kind}"] = tensor
    return named


@versions
def test_equals_the_published_classifier(shared_golden, version):
    folder = shared_golden / f"vil_{version}"
    facts, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "tensors.safetensors")
    channels, *size = facts["input_shape"]
    options = {"image_size": size, "patch_size": facts["patch_size"], "dim": facts["dim"], "depth": facts["depth"]}
    model = lab.VisionLSTM(version, in_channels=channels, num_classes=facts["output_shape"][0], **options)
    lab.load_published(model, folder / "weights.safetensors")
    image = tensors["input"].double().requires_grad_()
    logits = model.double()(image)
    (logits**2).mean().backward()
    (name,) = (name for name in tensors if name.startswith("output"))
    for found, wanted in ((logits, tensors[name]), (image.grad, tensors["input_grad"])):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@versions
def test_weights_of_the_other_version_are_refused(shared_golden, version):
    other = {"v1": "v2", "v2": "v1"}[version]
    model = small(version, in_channels=3, image_size=32, dim=32, depth=4 if version == "v1" else 2, num_classes=10)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ValueError, match="another configuration"):
        lab.load_published(model, shared_golden / f"vil_{other}" / "weights.safetensors")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@versions
def test_second_norm(version):
    model = randomised(small(version, second_norm=True))
    image = torch.randn(2, 2, 16, 16)
    tokens, second, last = model.forward_features(image).flatten(2).mT, model.second_norm, model.norm
    if version == "v1":
        tokens = F.layer_norm(tokens, (8,), 1 + second.weight, None, 1e-5)
        pooled = F.layer_norm((tokens[:, 0] + tokens[:, -1]) / 2, (8,), last.weight, last.bias, 1e-6)
    else:
        tokens = F.layer_norm(tokens, (8,), 1 + last.weight, last.bias, 1e-6)
        pooled = F.layer_norm(torch.cat([tokens[:, 0], tokens[:, -1]], 1), (16,), second.weight, second.bias, 1e-5)
    torch.testing.assert_close(model(image), pooled @ model.head.weight.T + model.head.bias)


@versions
@pytest.mark.parametrize("second_norm", [True, False])
def test_file_with_the_names_of_the_training_run(version, second_norm, tmp_path):
    trained = randomised(small(version, second_norm=second_norm))
    torch.save({"state_dict": names_of_the_training_run(trained)}, tmp_path / "vil.th")
    fresh, image = randomised(small(version, second_norm=second_norm)), torch.randn(2, 2, 16, 16)
    assert not torch.equal(fresh(image), trained(image))
    lab.load_published(fresh, tmp_path / "vil.th")
    assert torch.equal(fresh(image), trained(image))


@versions
def test_second_norm_is_never_dropped_silently(version):
    with pytest.raises(ValueError, match=r"unexpected: second_norm\.weight"):
        lab.load_published(small(version), names_of_the_training_run(small(version, second_norm=True)))
    with pytest.raises(ValueError, match=r"missing: second_norm\.weight"):
        lab.load_published(small(version, second_norm=True), names_of_the_training_run(small(version)))


def test_all_sizes_are_registered_with_timm():
    assert set(NAMES) <= set(timm.list_models("vil*"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vil_tiny_patch16_224", 6_088_168),
        ("vil_small_patch16_224", 22_791_976),
        ("vil_base_patch16_224", 88_050_088),
        ("vil2_tiny_patch16_224", 6_390_760),
    ],
)
def test_parameter_counts(name, parameters):
    model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.blocks) == 24
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)


@versions
def test_through_timm(version):
    name = {"v1": "vil_tiny_patch16_224", "v2": "vil2_tiny_patch16_224"}[version]
    options = {"img_size": 32, "patch_size": 8, "dim": 8, "depth": 2}
    model = timm.create_model(name, in_chans=1, num_classes=7, **options)
    image = torch.randn(2, 1, 32, 32)
    assert model(image).shape == (2, 7)
    features = timm.create_model(name, in_chans=1, num_classes=0, **options)
    width = 8 if version == "v1" else 16
    assert features(image).shape == (2, width)
    assert (features.num_features, features.head_hidden_size) == (8, width)


def test_features_only():
    options = {"img_size": 32, "patch_size": 8, "dim": 8, "depth": 4}
    model = timm.create_model("vil_tiny_patch16_224", features_only=True, out_indices=(1, 3), **options)
    assert model.feature_info.channels() == [8, 8]
    assert model.feature_info.reduction() == [8, 8]
    assert [tuple(x.shape) for x in model(torch.randn(1, 3, 32, 32))] == [(1, 8, 4, 4)] * 2


@versions
def test_reset_classifier(version):
    model, image = small(version), torch.randn(2, 2, 16, 16)
    model.reset_classifier(3)
    assert model(image).shape == (2, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model(image), model.forward_head(model.forward_features(image), pre_logits=True))


@versions
def test_intermediates(version):
    model, image = small(version).double(), torch.randn(2, 2, 16, 12, dtype=torch.float64)
    blocks = len(model.blocks)
    features, maps = model.forward_intermediates(image)
    assert [tuple(x.shape) for x in maps] == [(2, 8, 4, 3)] * blocks
    assert torch.equal(maps[-1], features)
    assert torch.equal(model.forward_head(features), model(image))
    chosen = model.forward_intermediates(image, [-1, 0], intermediates_only=True)
    assert all(torch.equal(x, y) for x, y in zip(chosen, (maps[0], maps[-1]), strict=True))
    assert len(model.forward_intermediates(image, 1)[1]) == 1
    normed = model.forward_intermediates(image, 1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(normed.flatten(2).mT, model.norm(features.flatten(2).mT))


@versions
def test_blocks_look_forward_and_backward_in_turn(version):
    model, image = small(version).double(), torch.randn(1, 2, 16, 16, dtype=torch.float64)
    tokens, grid = model.embed(image)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, grid) if index % 2 == 0 else block(tokens.flip(1), grid).flip(1)
    torch.testing.assert_close(model.forward_features(image).flatten(2).mT, tokens)
    if version == "v1":
        pooled = model.norm((tokens[:, 0] + tokens[:, -1]) / 2)
    else:
        pooled = torch.cat([model.norm(tokens[:, 0]), model.norm(tokens[:, -1])], 1)
    torch.testing.assert_close(model(image), model.head(pooled))


@versions
def test_depth_counts_blocks_or_pairs(version):
    assert len(small(version, depth=3).blocks) == (3 if version == "v1" else 6)


def test_position_embedding_for_another_size():
    model = small().double()
    with torch.no_grad():  # a slope along x is what any interpolation must keep a slope
        model.position.copy_(torch.arange(4.0).view(1, 1, 4, 1).expand_as(model.position))
    zero = torch.zeros(1, 2, 16, 16, dtype=torch.float64)
    bias = model.embedding.bias
    same, _ = model.embed(zero)
    assert torch.equal(same, (bias + model.position).flatten(1, 2))
    other, grid = model.embed(torch.zeros(1, 2, 8, 32, dtype=torch.float64))
    assert grid == (2, 8)
    position = (other - bias).view(2, 8, 8)
    torch.testing.assert_close(position[0], position[1])  # constant along y
    assert (position[:, 1:] > position[:, :-1]).all()  # rising along x
    assert model(torch.randn(1, 2, 8, 32, dtype=torch.float64)).shape == (1, 5)


def test_drop_path():
    model = small(drop_path_rate=0.5, depth=3)
    image = torch.randn(4, 2, 16, 16)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks] == [0.0, 0.25, 0.5]
    assert torch.equal(model.eval()(image), model(image))


@versions
def test_gradients_reach_every_parameter(version):
    model = small(version)
    with torch.no_grad():
        model.head.weight.normal_()  # it starts near zero
    (model(torch.randn(2, 2, 16, 16)) ** 2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_says_where_weights_come_from(name):
    with pytest.raises(ValueError, match=r"timm cannot fetch these weights: .*lab\.load_published\(model, path\)"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small("v3"), r"version is 'v3': .*there are v1, v2"),
        (lambda: small(image_size=18), r"image_size\[0\] is 18, not divisible by 4: use 16 or 20"),
        (lambda: small(image_size=(16, 3)), r"image_size\[1\] is 3, not divisible by 4: use 4"),
        (lambda: small(image_size=(16, 16, 16)), r"image_size is \(16, 16, 16\), expected a tuple of 2 whole numbers"),
        (lambda: small(patch_size=0), "patch_size is 0, expected a whole number of at least 1"),
        (lambda: small(dim=0), "dim is 0, expected a whole number from 1 to 65536"),
        (lambda: small(depth=0), "depth is 0, expected a whole number from 1 to 1000"),
        (lambda: small()(torch.zeros(1, 3, 16, 16)), r"image has shape \(1, 3, 16, 16\), expected \(batch, 2, y, x\)"),
        (lambda: small()(torch.zeros(2, 16, 16)), r"image has shape \(2, 16, 16\)"),
        (
            lambda: small()(torch.zeros(1, 2, 16, 15)),
            r"image_size\[1\] is 15, not divisible by 4: use 12 or 16",
        ),
        (
            lambda: small().forward_intermediates(torch.zeros(1, 2, 16, 16), [2]),
            "indices holds 2, expected numbers from",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_forward_intermediates_refuses_what_it_cannot_give():
    model = lab.VisionLSTM(image_size=8, patch_size=4, dim=8, depth=4, num_classes=2)
    image = torch.randn(1, 3, 8, 8)
    assert len(model.forward_intermediates(image, 0)[1]) == 0 and len(model.forward_intermediates(image, 3)[1]) == 3
    for wrong in (7, -2):
        with pytest.raises(ValueError, match=f"indices is {wrong}, expected a whole number from 0 to 4"):
            model.forward_intermediates(image, wrong)
    with pytest.raises(ValueError, match="output_fmt is 'NHWC'"):
        model.forward_intermediates(image, 1, output_fmt="NHWC")
