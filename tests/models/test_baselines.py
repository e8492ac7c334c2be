"""Networks of other projects: the contract they keep with ours, the sizes they take, and that they learn."""

import ast
import math
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xlstm_unet_lab as lab
from data_recipes import phantom_brain
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.models.baselines import BASELINES, BaselineConfig
from xlstm_unet_lab.models.presets import PRESETS, arguments_of

PATCH = {2: (32, 64), 3: (16, 16, 32)}
TINY = {
    "nnunet": {"features": (8, 12, 16)},
    "nnunet_res_enc": {"features": (8, 12, 16)},
    "segresnet": {"init_filters": 8},
    "unetr": {"feature_size": 8, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
    "swin_unetr": {"feature_size": 12, "num_heads": (1, 2, 4, 8), "window_size": 4},
    "timm_unet": {"encoder": "resnet10t", "stem_width": 8},
}
KINDS = [(name, dims) for name, model in BASELINES.items() for dims in model.spatial_dims]
kinds = pytest.mark.parametrize(("name", "spatial_dims"), KINDS)


pytestmark = pytest.mark.usefixtures("one_thread")


def patch(name, spatial_dims):
    return (32, 32, 64) if (name, spatial_dims) == ("swin_unetr", 3) else PATCH[spatial_dims]


def build(name, spatial_dims=2, **options):
    facts = {"in_channels": 2, "num_classes": 3, "patch_size": patch(name, spatial_dims), **TINY[name]}
    return lab.build(name, spatial_dims=spatial_dims, **(facts | options))


@kinds
def test_logits_at_full_resolution_and_a_gradient_for_every_weight(name, spatial_dims):
    network = build(name, spatial_dims)
    logits = network(torch.randn(1, 2, *patch(name, spatial_dims)))
    assert logits.shape == (1, 3, *patch(name, spatial_dims))
    (logits**2).mean().backward()
    trained = {key: parameter for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert [key for key, parameter in trained.items() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in trained.values())


@pytest.mark.parametrize(("name", "spatial_dims"), [kind for kind in KINDS if BASELINES[kind[0]].deep_supervision])
def test_deep_supervision_gives_a_list_highest_first(name, spatial_dims):
    network = build(name, spatial_dims, deep_supervision=True)
    logits = network(torch.randn(1, 2, *patch(name, spatial_dims)))
    assert logits[0].shape == (1, 3, *patch(name, spatial_dims))
    sizes = [level.shape[2] for level in logits]
    assert len(sizes) > 1 and sizes == sorted(sizes, reverse=True)
    assert all(level.shape[:2] == (1, 3) for level in logits)
    sum((level**2).mean() for level in logits).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", [name for name, model in BASELINES.items() if not model.deep_supervision])
def test_no_deep_supervision_is_said_with_those_that_have_it(name):
    with pytest.raises(ValueError, match=f"'{name}' has no deep supervision: unet, .*nnunet.* have"):
        build(name, deep_supervision=True)


@kinds
def test_facts_and_arguments_are_kept(name, spatial_dims):
    network = build(name, spatial_dims)
    config = network.config
    assert (config.spatial_dims, config.in_channels, config.num_classes) == (spatial_dims, 2, 3)
    assert config.patch_size == patch(name, spatial_dims)
    again = lab.build(**arguments_of(network))
    again.load_state_dict(network.state_dict())
    image = torch.randn(1, 2, *patch(name, spatial_dims))
    with torch.no_grad():
        assert torch.equal(again.eval()(image), network.eval()(image))


@kinds
def test_a_size_that_does_not_fit_is_refused_with_sizes_that_do(name, spatial_dims):
    wrong = (50,) * spatial_dims
    if name.startswith("nnunet"):
        wrong = (51,) * spatial_dims
    with pytest.raises(ValueError, match=r"patch_size is .* expected multiples of") as caught:
        build(name, spatial_dims, patch_size=wrong)
    suggested = re.search(r"use (.*)", str(caught.value)).group(1).split(" or ")
    assert len(suggested) == 2
    for size in map(ast.literal_eval, suggested):
        build(name, spatial_dims, patch_size=size)


@kinds
def test_a_forward_pass_refuses_what_does_not_fit(name, spatial_dims):
    network = build(name, spatial_dims)
    with pytest.raises(ValueError, match=r"image has shape .* expected \(batch, 2, (z, )?y, x\)"):
        network(torch.zeros(1, 1, *patch(name, spatial_dims)))
    with pytest.raises(ValueError, match="the image's size is"):
        network(torch.zeros(1, 2, *(extent + 1 for extent in patch(name, spatial_dims))))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=3), st.sampled_from([1, 8, 16, 32]))
def test_nearest_sizes_always_fit(size, step):
    facts = {"spatial_dims": len(size), "in_channels": 1, "num_classes": 2, "deep_supervision": False}
    multiple = (step,) * len(size)
    try:
        BaselineConfig(**facts, patch_size=tuple(size), multiple=multiple)
        assert all(extent % step == 0 for extent in size) and math.prod(size) > math.prod(multiple)
    except ValueError as error:
        for suggested in re.findall(r"\([\d, ]+\)", str(error).partition("use ")[2]):
            BaselineConfig(**facts, patch_size=ast.literal_eval(suggested), multiple=multiple)


def test_one_position_at_the_deepest_is_refused():
    with pytest.raises(ValueError, match=r"patch_size is \(32, 32\).*use \(32, 64\)$"):
        build("swin_unetr", patch_size=(32, 32))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("segresnet", {"init_filter": 8}, "init_filter=8 is no option of 'segresnet': did you mean 'init_filters'"),
        (
            "nnunet",
            {"mixers": ("none", "vil", "vil")},
            "mixers=.* is no option of 'nnunet': .*there are decoder_blocks",
        ),
        ("nnunet", {"num_classes": 0}, "num_classes is 0, expected a whole number"),
        ("unetr", {"in_channels": 1.0}, "in_channels is 1.0, expected a whole number"),
        ("timm_unet", {"spatial_dims": 3, "patch_size": (32,) * 3}, "'timm_unet' has no 3-D form: unet, .* have"),
        (
            "timm_unet",
            {"encoder": "resnt10t"},
            "encoder is 'resnt10t', which timm does not have: did you mean resn",
        ),
        ("timm_unet", {"encoder": "crossvit_tiny_240"}, "gives no feature maps at several depths"),
        ("timm_unet", {"encoder": "vil_tiny_patch16_224", "pretrained": True}, "no trained weights for encoder='vil_"),
    ],
)
def test_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **({"spatial_dims": 2} | options))


def test_nnunet_is_the_network_of_dynamic_network_architectures():
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    theirs = PlainConvUNet(
        1,
        3,
        (8, 16, 32),
        nn.Conv3d,
        3,
        ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        2,
        2,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    ).double()
    ours = lab.build(
        "nnunet",
        spatial_dims=3,
        in_channels=1,
        num_classes=2,
        patch_size=(8, 16, 16),
        features=[8, 16, 32],
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    ).double()
    ours.network.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 1, 8, 16, 16, dtype=torch.float64)
    assert torch.equal(ours(image), theirs(image)[0])


@pytest.mark.parametrize("patch_size", [(128, 128), (64, 64, 64)])
def test_networks_of_one_plan_are_about_as_large(patch_size):
    """Stages and widths are planned alike: mixers, or a second block a stage, add at most 0.6 of `unet` to it."""
    sizes = {}
    for name in (*PRESETS, "nnunet", "nnunet_res_enc"):
        with torch.device("meta"):  # shapes without numbers
            network = lab.build(name, spatial_dims=len(patch_size), in_channels=1, num_classes=3, patch_size=patch_size)
        sizes[name] = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    ratios = {name: size / sizes["unet"] for name, size in sizes.items()}
    assert all(1 <= ratio < 1.6 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("encoder", ["convnext_atto", "mobilenetv3_small_050", "vil_tiny_patch16_224"])
def test_other_encoders(encoder):
    network = build("timm_unet", encoder=encoder, deep_supervision=True)
    assert network(torch.randn(2, 2, *PATCH[2]))[0].shape == (2, 3, *PATCH[2])


def test_an_encoder_with_channels_last_features():
    network = build("timm_unet", encoder="swin_tiny_patch4_window7_224")
    assert network(torch.randn(1, 2, *PATCH[2])).shape == (1, 3, *PATCH[2])
    with pytest.raises(ValueError, match=r"expected \(32, 64\): this network is tied to its patch"):
        network(torch.randn(1, 2, 96, 96))


def test_weights_out_of_reach_are_said_so(monkeypatch):
    import timm

    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(OSError, match=r"trained weights of encoder='resnet18'.*no route to host.*pretrained=False"):
        build("timm_unet", encoder="resnet18", pretrained=True)


def test_a_network_that_started_from_trained_weights_is_rebuilt_without_them(monkeypatch):
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *names, **options: create(*names, **options | {"pretrained": False})
    )
    assert arguments_of(build("timm_unet", pretrained=True))["pretrained"] is False


def test_other_projects_load_only_when_one_of_theirs_is_built():
    code = (
        "import sys, xlstm_unet_lab as lab\n"
        "lab.build('unet', spatial_dims=2, in_channels=1, num_classes=2, patch_size=(16, 16))\n"
        "print([name for name in ('monai', 'timm', 'dynamic_network_architectures') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def heads():
    """Small heads with a tumour each: four sequences, four labels."""
    made = []
    for seed in range(3):
        image, label = phantom_brain.scene(seed, (32, 48, 64))
        image, label = torch.from_numpy(normalise(image)), torch.from_numpy(label).long()
        made.append({"image": image, "label": label, "spacing": (2.0, 4.0, 2.5), "name": str(seed)})
    return made


@kinds
def test_the_loss_falls(name, spatial_dims):
    train = lab.load_dataset("phantom_microscopy", "train") if spatial_dims == 2 else heads()
    network = build(name, spatial_dims, in_channels=len(train[0]["image"]), num_classes=spatial_dims + 1)
    config = lab.TrainConfig(
        patch_size=patch(name, spatial_dims),
        steps=8,
        batch_size=2,
        learning_rate=3e-3,
        warmup_steps=0,
        accelerator="cpu",
        augment=False,
        foreground_probability=1.0,
    )
    losses = [record.loss for record in lab.fit(network, train, None, config)]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
