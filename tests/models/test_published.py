"""Released weights: the same function to the last digit, every shape a checkpoint comes in, and what is refused."""

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import xlstm_unet_lab as lab
from xlstm_unet_lab.course.checks.published_reference import as_released

XLSTM = ("bot_2d", "bot_3d", "enc_2d", "enc_3d")
NETWORKS = (*XLSTM, *(f"u_mamba_{name}" for name in XLSTM))
TOLERANCE = 2e-5  # of the largest value: the reference is stored in float32


def published(folder, **changes):
    """The network of a reference folder."""
    facts = json.loads((folder / "config.json").read_text())
    options = {name: facts[name] for name in ("spatial_dims", "in_channels", "num_classes", "patch_size", "features")}
    options |= {"strides": facts["strides"], "kernel_sizes": facts["kernels"], "encoder_blocks": facts["blocks"]}
    options |= {"decoder_blocks": facts["decoder_blocks"], "deep_supervision": facts.get("deep_supervision", True)}
    variant = f"{facts['network']}_{facts['variant']}" if "network" in facts else facts["variant"]
    return lab.UNet(lab.published_config(variant, **(options | changes)))


def nnunet_checkpoint(weights):
    """What nnU-Net's trainer saves around the weights."""
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "dice_per_class": [[np.float64(0.1)]]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 10,
        "init_args": {"configuration": "2d", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainerXLSTM",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def assert_equals_reference(model, tensors):
    image = tensors["input"].double().requires_grad_()
    outputs = model.double()(image)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum((y**2).mean() for y in outputs).backward()
    wanted = [tensors[name] for name in sorted(tensors) if name.startswith("output")]
    for found, expected in zip([*outputs, image.grad], [*wanted, tensors["input_grad"]], strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def bot_2d(shared_golden):
    return shared_golden / "bot_2d"


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_published_network(shared_golden, name):
    folder = shared_golden / name
    model = published(folder)
    assert lab.load_published(model, folder / "weights.safetensors") is model
    assert_equals_reference(model, load_file(folder / "tensors.safetensors"))


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoint_as_released(shared_golden, name, tmp_path):
    folder, weights = shared_golden / name, load_file(shared_golden / name / "weights.safetensors")
    released = as_released(weights) if name in XLSTM else weights  # which holds the repeats already
    assert len(released) == json.loads((folder / "config.json").read_text())["published_state_dict_keys"]
    torch.save(nnunet_checkpoint(released), tmp_path / "checkpoint_final.pth")
    wanted, found = (
        lab.load_published(published(folder), source) for source in (weights, tmp_path / "checkpoint_final.pth")
    )
    assert unchanged(found, wanted.state_dict())


@pytest.mark.parametrize("wrapper", ["network_weights", "state_dict", "model", None])
def test_wrapped_state_dicts(bot_2d, wrapper, tmp_path):
    weights = load_file(bot_2d / "weights.safetensors")
    torch.save({wrapper: weights} if wrapper else weights, tmp_path / "weights.pth")
    found = lab.load_published(published(bot_2d), str(tmp_path / "weights.pth"))
    assert unchanged(found, lab.load_published(published(bot_2d), weights).state_dict())


def test_checkpoint_written_with_numpy_1(bot_2d, tmp_path):
    # The released checkpoints are from 2024: NumPy's scalars then lived in numpy.core.
    buffer, path = io.BytesIO(), tmp_path / "old.pth"
    torch.save(nnunet_checkpoint(load_file(bot_2d / "weights.safetensors")), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry).replace(b"cnumpy._core.", b"cnumpy.core."))
    lab.load_published(published(bot_2d), path)


def test_without_deep_supervision_only_the_last_head_is_taken(bot_2d):
    model = lab.load_published(published(bot_2d, deep_supervision=False), bot_2d / "weights.safetensors")
    tensors = load_file(bot_2d / "tensors.safetensors")
    highest = tensors[min(name for name in tensors if name.startswith("output"))]
    found = model.double()(tensors["input"].double())
    assert (found - highest).abs().max() <= TOLERANCE * highest.abs().max()


def test_state_dict_is_left_as_it_was(bot_2d):
    weights = load_file(bot_2d / "weights.safetensors")
    before = {name: tensor.clone() for name, tensor in weights.items()}
    lab.load_published(published(bot_2d), weights)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_another_configuration_lists_what_differs(bot_2d):
    weights = load_file(bot_2d / "weights.safetensors")
    model = published(bot_2d, num_classes=7)
    before = snapshot(model)
    with pytest.raises(ValueError, match="another configuration") as caught:
        lab.load_published(model, weights)
    message = str(caught.value)
    for head in range(4):
        assert f"decoder.heads.{head}.weight is (5, " in message
    assert "8 parameters differ" in message
    assert unchanged(model, before)


def test_missing_and_unexpected_parameters_are_listed(bot_2d):
    weights = load_file(bot_2d / "weights.safetensors")
    lost = next(name for name in weights if name.startswith("decoder.seg_layers.0.weight"))
    del weights[lost]
    weights["encoder.attention.weight"] = torch.zeros(3, 4)
    model = published(bot_2d)
    before = snapshot(model)
    with pytest.raises(ValueError, match="2 parameters differ") as caught:
        lab.load_published(model, weights)
    assert "missing: decoder.heads.0.weight (5, " in str(caught.value)
    assert "unexpected: encoder.attention.weight (3, 4)" in str(caught.value)
    assert unchanged(model, before)


def test_other_variant_is_refused(shared_golden):
    model = published(shared_golden / "bot_2d")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"unexpected: .*mixers"):
        lab.load_published(model, shared_golden / "enc_2d" / "weights.safetensors")
    assert unchanged(model, before)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_code_in_a_pickle_is_refused_and_does_not_run(bot_2d, tmp_path):
    target, path = tmp_path / "it_ran", tmp_path / "trap.pth"
    torch.save(nnunet_checkpoint({"weight": torch.zeros(1)}) | {"logging": Trap(target)}, path)
    with pytest.raises(ValueError, match=r"trap\.pth is not a checkpoint that can be read safely"):
        lab.load_published(published(bot_2d), path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # the trap works where it is not refused


def test_missing_file(bot_2d, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere\.pth: give the path"):
        lab.load_published(published(bot_2d), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("content", [[1, 2, 3], {"epoch": 3}, {"network_weights": {"a": 1.0}}])
def test_not_a_state_dict(bot_2d, content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds no state dict"):
        lab.load_published(published(bot_2d), tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_broken_file(bot_2d, name, tmp_path):
    (tmp_path / name).write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        lab.load_published(published(bot_2d), tmp_path / name)


def plan(variant, spatial_dims, stages, **changes):
    """The configuration of a network of so many stages, each plan's block count 3 or 2."""
    options = {
        "in_channels": 1,
        "num_classes": 2,
        "patch_size": [2 ** (stages - 1) * 4] * spatial_dims,
        "features": [8] * stages,
        "strides": [[1] * spatial_dims, *[[2] * spatial_dims] * (stages - 1)],
        "kernel_sizes": [[3] * spatial_dims] * stages,
        "encoder_blocks": [3] * stages,
        "decoder_blocks": [2] * (stages - 1),
    }
    options |= changes
    before = json.dumps(options)
    config = lab.published_config(variant, spatial_dims=spatial_dims, **options)
    assert json.dumps(options) == before  # the caller's lists stay as they were
    return config


N, R, V, M = "none", "resblock", "vil", "mamba"


@pytest.mark.parametrize(
    ("variant", "spatial_dims", "mixers"),
    [
        ("bot", 2, (N, N, N, N, V)),
        ("bot", 3, (N, N, N, N, N, V)),
        ("bot", 2, (N, N, N, N, N, N, V)),
        ("enc", 2, (N, R, V, N, V)),
        ("enc", 2, (N, R, N, V, N, V)),
        ("enc", 2, (N, R, V, N, V, N, V)),
        ("enc", 3, (R, R, R, V, V)),
        ("enc", 3, (R, R, R, V, V, V)),
        ("enc", 3, (R, R, R, V, V, V, V)),
        ("enc", 3, (R, R)),
        ("u_mamba_bot", 2, (N, N, N, N, M)),
        ("u_mamba_bot", 3, (N, N, N, N, N, M)),
        ("u_mamba_enc", 2, (M, N, M, N, M, N, M)),
        ("u_mamba_enc", 2, (N, M, N, M, N, M, N, M)),
        ("u_mamba_enc", 2, (N, M)),
        ("u_mamba_enc", 3, (M, M, M, M, M, M)),
    ],
)
def test_where_the_mixers_stand(variant, spatial_dims, mixers):
    config = plan(variant, spatial_dims, len(mixers))
    assert config.mixers == mixers
    assert config.directions == "forward"
    assert config.vil_version == "v1"
    assert config.full_resolution_skip == (spatial_dims == 3)
    assert config.channel_tokens == (variant in ("enc", "u_mamba_enc"))
    assert config.mamba_residual == (M not in mixers)


@pytest.mark.parametrize("variant", ["bot", "enc", "u_mamba_bot", "u_mamba_enc"])
@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [
        (5, (3, 3, 3, 1, 1), (2, 2, 2, 1)),
        (6, (3, 3, 3, 1, 1, 1), (2, 2, 2, 1, 1)),
        (7, (3, 3, 3, 3, 1, 1, 1), (2, 2, 2, 2, 1, 1)),
    ],
)
def test_block_counts_are_cut(variant, stages, encoder, decoder):
    config = plan(variant, 2, stages)
    assert config.encoder_blocks == encoder
    assert config.decoder_blocks == decoder


SIZES = [  # stages, widest, patch, parameters in millions, keys of a checkpoint, widths of the mixers
    ("u_mamba_bot", 7, 512, (256, 256), 47.53, [512]),
    ("u_mamba_enc", 7, 512, (256, 256), 46.41, [32, 128, 256, 16]),
    ("u_mamba_bot", 6, 320, (64, 128, 128), 42.13, [320]),
    ("u_mamba_enc", 6, 320, (64, 128, 128), 42.50, [32, 64, 128, 256, 256, 32]),
]


@pytest.mark.parametrize(("variant", "stages", "widest", "patch_size", "millions", "widths"), SIZES)
def test_sizes_of_u_mamba_as_it_is_trained(variant, stages, widest, patch_size, millions, widths):
    strides = [[1] * len(patch_size), *[[2] * len(patch_size)] * (stages - 1)]
    options = {
        "patch_size": patch_size,
        "strides": strides,
        "features": [min(32 * 2**s, widest) for s in range(stages)],
    }
    options |= {"num_classes": 14, "encoder_blocks": [2] * stages, "deep_supervision": True}
    with torch.device("meta"):
        network = lab.UNet(plan(variant, len(patch_size), stages, **options))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    norms = [
        x for name, x in network.state_dict().items() if name.endswith(("block.norm.weight", "blocks.0.norm.weight"))
    ]
    assert [len(norm) for norm in norms] == widths


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["u_mamba_bot_2d", "u_mamba_enc_3d", "bot_2d"])
def test_the_network_called_u_mamba_before_is_refused_by_name(shared_golden, name, prefix):
    weights = load_file(shared_golden / name / "weights.safetensors")
    former = {f"{prefix}{key.replace('upsample_layers', 'transpconvs')}": x for key, x in weights.items()}
    model = published(shared_golden / name)
    before = snapshot(model)
    with pytest.raises(ValueError, match="called U-Mamba until 2024-03-27"):
        lab.load_published(model, former)
    assert unchanged(model, before)


@pytest.mark.parametrize("name", ["u_mamba_bot", "u_mamba_enc"])
def test_presets_say_how_they_differ_from_the_published(name):
    table = lab.list_models().set_index("name")
    assert "unlike the published" in table["source"][name]


def test_channels_are_tokens_where_positions_are_no_more():
    # 4 x 4 positions in the deepest stage: as many as channels in the first network, more in the second.
    for channels, swapped in ((16, True), (12, False)):
        config = plan("enc", 2, 5, features=[8, 8, 8, 8, channels])
        layer_width = lab.UNet(config).encoder.mixers[4].state_dict()
        name = "block.layer.up.weight" if swapped else "blocks.0.layer.up.weight"
        assert layer_width[name].shape[1] == (math.prod(config.grid_sizes()[-1]) if swapped else channels)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("both", {}, r"variant is 'both': .*there are bot, enc, u_mamba_bot, u_mamba_enc"),
        ("bot", {"strides": [[1, 1]] * 4}, "strides is .*expected 5 entries"),
        ("enc", {"patch_size": [16, 16]}, r"patch_size \(16, 16\) with total stride \(16, 16\) leaves one position"),
    ],
)
def test_refused(variant, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(variant, 2, 5, **changes)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"PK\x03\x04 cut"])
def test_a_checkpoint_cut_short_is_named(tmp_path, content):
    path = tmp_path / "cut.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cut\.pth is not a checkpoint that can be read safely"):
        lab.load_published(lab.VisionLSTM(image_size=8, patch_size=4, dim=8, depth=1), path)
