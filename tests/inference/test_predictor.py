"""A trained network as one thing: what is known of it goes to disk and back with it, and no file is trusted."""

import copy
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tiny_problem import boxes, case, cases
from torch import nn

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.cases import Facts, Listed
from xlstm_unet_lab.data.pictures import to_uint8
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.load import facts_of_run, load_predictor
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.trained import EIGHT_BITS, Z_SCORE
from xlstm_unet_lab.models.weights import load_tensors, save_tensors, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")
REGIONS = Targets(("whole", "core"), ((1, 2), (2,)), (1, 2))


def network(spatial_dims=2, num_classes=2, in_channels=1):
    torch.manual_seed(0)
    facts = {"spatial_dims": spatial_dims, "in_channels": in_channels, "num_classes": num_classes}
    return lab.build("unet", **facts, patch_size=(16,) * spatial_dims, features=(4, 8))


def full(spatial_dims=2):
    """A predictor of which every fact differs from the default."""
    return Predictor(
        network(spatial_dims),
        (16,) * spatial_dims,
        (2.0, 1.0, 0.5)[:spatial_dims],
        REGIONS,
        channel_names=("T1",),
        colours={1: "#0072B2", 2: "#E69F00"},
        label_numbers={"edge": 7, "core": 300},
        slice_axis=1 if spatial_dims == 2 else None,
        mirror_axes=(1,),
        normalisation=EIGHT_BITS,
        unit="pixel",
        credit="Data: boxes.",
        card={"minutes": 3, "limits": ["made here"]},
    )


def facts_of(predictor):
    return {one.name: getattr(predictor, one.name) for one in fields(predictor) if one.name != "network"}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_one_file_holds_all_that_is_needed(tmp_path, spatial_dims):
    saved = full(spatial_dims)
    loaded = lab.load_predictor(saved.save(tmp_path / "boxes.safetensors"))
    assert facts_of(loaded) == facts_of(saved)
    image = np.random.default_rng(0).integers(0, 255, (1, *(20, 18, 17)[:spatial_dims])).astype(np.uint8)
    assert np.array_equal(loaded(image), saved(image)) and not loaded.network.training
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.safetensors"]


def test_any_u_net_can_be_saved_however_it_was_made(tmp_path):
    plan = {"features": (4, 8), "strides": ((1, 1), (2, 2)), "kernel_sizes": ((3, 3),) * 2}
    blocks = {"encoder_blocks": (2, 2), "decoder_blocks": (1,)}
    config = lab.published_config(
        "bot", spatial_dims=2, in_channels=1, num_classes=3, patch_size=(16, 16), **plan, **blocks
    )
    saved = Predictor(lab.UNet(config), (16, 16))
    loaded = load_predictor(saved.save(tmp_path / "published.safetensors"))
    assert loaded.network.config == config
    image = np.random.default_rng(0).random((1, 16, 16))
    assert np.array_equal(loaded.probabilities(image), saved.probabilities(image))
    with pytest.raises(ValueError, match="does not say how it was built"):
        Predictor(nn.Conv2d(1, 2, 1), (8, 8)).save(tmp_path / "unknown.safetensors")


def test_a_run_its_checkpoint_and_the_model_in_memory_are_one(tmp_path):
    model, facts = network(), Facts(boxes(flip_axes=(1,)))
    config = lab.TrainConfig(patch_size=(16, 16), steps=3, batch_size=2, accelerator="cpu")
    train, val = Listed(cases(range(2)), facts), Listed(cases([3]), facts)
    assert len(list(lab.fit(model, train, val, config, tmp_path))) == 3
    made = Predictor.known(model, config.patch_size)
    assert made.spacing == (2.0, 1.0) and made.mirror_axes == (1,) and made.normalisation == EIGHT_BITS
    assert made.label_names == {"box": (1,)} and made.colours == {1: "#0072B2"} and "boxes" not in made.credit
    for found in (load_predictor(tmp_path), load_predictor(tmp_path / "best.safetensors")):
        assert facts_of(found) == facts_of(made)
    image = case(4)["image"].numpy()
    assert np.array_equal(lab.predict(model, image, patch_size=(16, 16), spacing=(1.0, 1.0)), made(image, (1.0, 1.0)))


def test_a_run_of_before_predictors_must_be_trained_again(tmp_path):
    save_tensors(network().state_dict(), tmp_path / "last.safetensors", {"facts": {}})
    (tmp_path / "model.json").write_text('{"recipe": "phantom_microscopy"}')
    with pytest.raises(ValueError, match=r"last\.safetensors holds weights alone: train it again, or build"):
        load_predictor(tmp_path)


def test_deep_pictures_are_brought_to_8_bits_and_grey_ones_to_colour():
    predictor = Predictor(network(in_channels=3), (16, 16), normalisation=EIGHT_BITS)
    picture = np.random.default_rng(0).integers(0, 5000, (1, 20, 20)).astype(np.uint16)
    picture[0, 0, 0] = 65535
    prepared = np.repeat(to_uint8(picture)[0], 3, axis=0)
    assert np.array_equal(predictor.as_prepared(picture), prepared)
    assert np.array_equal(predictor.as_prepared(prepared), prepared)
    assert np.array_equal(predictor(picture), replace(predictor, normalisation=Z_SCORE)(prepared))


@pytest.mark.parametrize(
    ("names", "apart"),
    [((), False), (("R", "G", "B"), False), (("red", "green", "blue"), False), (("a", "b", "c"), True)],
)
def test_channels_are_scaled_together_where_they_are_a_picture_in_colour(names, apart):
    predictor = Predictor(network(in_channels=3), (16, 16), normalisation=EIGHT_BITS, channel_names=names)
    stack = np.random.default_rng(0).integers(0, [[[60000]], [[5000]], [[700]]], (3, 20, 20)).astype(np.uint16)
    each = [channel[None] for channel in stack]
    separate = np.concatenate([to_uint8(one)[0] for one in each])
    assert np.array_equal(predictor.as_prepared(*each), separate)
    assert np.array_equal(predictor.as_prepared(stack), separate if apart else to_uint8(stack)[0])
    assert np.array_equal(predictor(predictor.as_prepared(*each)), predictor(separate))


@pytest.mark.parametrize("normalisation", [EIGHT_BITS, Z_SCORE])
@pytest.mark.parametrize("channels", [1, 3])
def test_bools_are_numbers_as_a_file_of_one_bit_is_read(channels, normalisation):
    mask = np.random.default_rng(0).random((1, 20, 20)) > 0.5
    facts = {"spacing": (1.0, 2.0), "normalisation": normalisation}
    predictor = Predictor(network(in_channels=channels), (16, 16), **facts).remembered()
    image = mask if normalisation == EIGHT_BITS else np.repeat(mask, channels, axis=0)
    given = image * np.uint8(255)
    for spacing in (None, (1.0, 1.0)):
        assert np.array_equal(predictor(image, spacing), predictor(given, spacing))
        assert np.array_equal(predictor.probabilities(image, spacing), predictor.probabilities(given, spacing))
    assert np.array_equal(lab.predict(predictor.network, image, patch_size=(16, 16)), predictor(given))


def test_mirroring_keeps_to_the_axes_of_the_data():
    image = np.random.default_rng(0).random((1, 16, 16))
    one = Predictor(network(), (16, 16), mirror_axes=(1,))
    assert np.array_equal(one(image, mirror=True), one(image, mirror=(1,)))
    assert Predictor(network(), (16, 16)).mirror_axes == (0, 1)
    with pytest.raises(ValueError, match="no mirror image of the data"):
        replace(one, mirror_axes=())(image, mirror=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [0, 16]}, "patch_size"),
        ({"spacing": [1.0]}, "expected 2 finite numbers above 0"),
        ({"spacing": [1.0, -1.0]}, "above 0"),
        ({"mirror_axes": [0, 2]}, "mirror_axes"),
        ({"normalisation": "guess"}, "normalisation is 'guess'"),
        ({"slice_axis": 3}, "slice_axis is 3"),
        ({"colours": {"1": "red; background: url(x)"}}, "colours"),
        ({"colours": {"one": "#0072B2"}}, "colours"),
        ({"targets": {"names": ["a"], "values": [], "painted": []}}, "as many entries"),
        ({"later": 1}, "'later'.*newer version"),
        ({"patch_size": [10**9, 10**9]}, "patch_size is .*at most 134,217,728 voxels"),
        ({"patch_size": "big"}, "patch_size is 'big'"),
        ({"patch_size": [16.0, 16]}, "patch_size is"),
        ({"spacing": [1e-9, 1.0]}, "spacing is .*from 1e-6 to 1e6"),
        ({"spacing": [1e300, 1.0]}, "spacing is"),
        ({"spacing": ["1", "1"]}, "spacing is"),
        ({"mirror_axes": ["x"]}, "mirror_axes is"),
        ({"mirror_axes": [True]}, "mirror_axes is"),
        ({"slice_axis": 7}, "slice_axis is 7"),
        ({"slice_axis": True}, "slice_axis is True"),
        ({"slice_axis": 1.0}, "slice_axis is 1.0"),
        (
            {"label_numbers": {"edge": 70_000}},
            r"label_numbers holds \[70000\]; labels .* from 0 to 65535",
        ),
        ({"label_numbers": {"edge": -5}}, r"label_numbers holds \[-5\]"),
        ({"label_numbers": {"edge": 1.5}}, "label_numbers is"),
        ({"label_numbers": [7]}, "label_numbers is"),
        ({"colours": {"70000": "#0072B2"}}, r"colours holds \[70000\]"),
        ({"colours": ["#0072B2"]}, "colours is"),
        ({"targets": {"names": ["a", "b"], "values": [[0], [70_000]], "painted": []}}, r"targets holds \[70000\]"),
        ({"targets": {"names": ["a", "b"], "values": [[0], [-5]], "painted": []}}, r"targets holds \[-5\]"),
        ({"targets": {"names": ["a", "b"], "values": [[0], []], "painted": []}}, "no channel is without a label"),
        ({"targets": {"names": [1, 2], "values": [[0], [1]], "painted": []}}, "names is"),
        ({"targets": {"names": ["a"]}}, "targets say nothing of painted, values"),
        ({"targets": 3}, "expected names, values, painted by name"),
        ({"channel_names": "T1"}, "channel_names is 'T1'"),
        ({"unit": "parsec"}, "unit is 'parsec'"),
        ({"credit": 3}, "credit is 3"),
        ({"card": []}, "card is"),
        ({"network": "x"}, "network"),
    ],
)
def test_what_a_file_says_is_checked(tmp_path, change, message):
    path = full().save(tmp_path / "boxes.safetensors")
    tensors, header = load_tensors(path)
    header["facts"]["trained_on"] |= change
    save_tensors(tensors, path, header)
    with pytest.raises(ValueError, match=message) as error:
        load_predictor(path)
    assert str(path) in str(error.value)


def test_an_answer_that_is_not_finite_is_an_error_and_no_label():
    predictor = full()
    with torch.no_grad():
        next(predictor.network.parameters()).fill_(3e38)
    for mirror in (False, (0,)):
        with pytest.raises(ValueError, match="logits that are not finite"):
            predictor(np.random.default_rng(0).integers(0, 255, (1, 20, 18)).astype(np.uint8), mirror=mirror)


@pytest.mark.parametrize(("wanted", "new"), [(1e-6, 64_000_000), (1e-3, 64_000), (5e-3, 12_800)])
def test_a_spacing_that_would_fill_a_memory_is_refused(wanted, new):
    predictor = Predictor(network(), (16, 16), (wanted, wanted))
    with pytest.raises(
        ValueError, match=rf"size \(64, 64\) .*would be brought to \({new}, {new}\).*expected 67,108,864"
    ):
        predictor(np.ones((1, 64, 64)), (1.0, 1.0))


@pytest.mark.parametrize(
    "words", ["[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9", ""]
)
def test_where_memory_is_full_the_patch_is_named(monkeypatch, words):
    def full_memory(*_, **__):
        raise RuntimeError(words)

    predictor = Predictor(network(), (16, 16))
    monkeypatch.setattr("torch.nn.functional.conv2d", full_memory)
    for answer in (predictor, predictor.probabilities):
        with pytest.raises(RuntimeError, match=r"patch_size=\(16, 16\)" if words else None):
            answer(np.ones((1, 20, 20)))


def test_a_foreign_file_goes_nowhere_and_asks_for_nothing(tmp_path):
    path = full().save(tmp_path / "boxes.safetensors")
    tensors, header = load_tensors(path)
    for change in ({"features": [10**7, 10**7]}, {"encoder_blocks": [60_000] * 2}, {"name": "timm_unet"}):
        save_tensors(tensors, path, {"facts": header["facts"] | {"build": header["facts"]["build"] | change}})
        with pytest.raises(ValueError, match=r"boxes\.safetensors: no network can be built with"):
            load_predictor(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "model.json is not valid JSON"),
        ("[]", "model.json holds"),
        ('{"recipe": ["nuclei"]}', "model.json: recipe is"),
        ('{"recipe": "nuclei", "fold": "two"}', "model.json: fold is"),
        ('{"own": {"read_by": "folder", "name": 3}}', "model.json: name is 3"),
        ('{"own": {"read_by": "mine"}}', "model.json describes no data set .*read_by is 'mine'"),
        ('{"own": {"read_by": "folder", "convert": "rm"}}', "model.json: convert is 'rm'"),
    ],
)
def test_a_spoilt_run_directory_is_named(tmp_path, content, message):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        facts_of_run(tmp_path)


def test_files_without_a_predictor_are_refused_with_the_way_out(tmp_path):
    path = save_weights(network(), tmp_path / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"holds weights alone: train it again, or build its network and use load_weights"
    ):
        load_predictor(path)
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_predictor(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        load_predictor(tmp_path / "nowhere")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_trained_network_is_known_too(copied):
    targets = Targets(("whole", "core"), ((1, 2), (2,)), (1, 2))
    model = Predictor(network(), (16, 16), targets=targets).remembered().network
    image = np.random.default_rng(0).random((1, 16, 16))
    found, again = (lab.predict(one, image, patch_size=(16, 16)) for one in (model, copied(model)))
    assert np.array_equal(found, again) and Predictor.known(copied(model), (16, 16)).targets == targets
