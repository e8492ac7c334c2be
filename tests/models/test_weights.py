"""Weights go to disk and come back; what does not fit or is not whole is refused."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xlstm_unet_lab.models.published import load_published
from xlstm_unet_lab.models.weights import load_tensors, load_weights, save_tensors, save_weights


def network(width=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def same(first, second):
    return all(a.equal(b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_round_trip_with_facts(tmp_path):
    trained, fresh = network(seed=1).to(memory_format=torch.channels_last), network(seed=2)
    path = save_weights(trained, tmp_path / "model.safetensors", {"step": 7, "recipe": "nuclei"})
    assert load_weights(fresh, path) == {"step": 7, "recipe": "nuclei"}
    assert same(trained, fresh)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_shared_weights_and_no_facts(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3)})
    model["b"] = model["a"]
    path = save_weights(model, tmp_path / "tied.safetensors")
    assert load_weights(model, path) == {}


def test_a_network_without_numbers_is_neither_saved_nor_filled(tmp_path):
    path = save_weights(network(), tmp_path / "model.safetensors")
    empty = network().to("meta")
    for call in (lambda: save_weights(empty, tmp_path / "x"), lambda: load_weights(empty, path)):
        with pytest.raises(ValueError, match=r'of model .* are on the device "meta", which holds no numbers: build it'):
            call()
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_file_of_another_program(tmp_path):
    model = network(seed=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    fresh = network(seed=2)
    assert load_weights(fresh, tmp_path / "model.safetensors") == {}
    assert same(model, fresh)


def test_differences_are_listed_and_the_model_is_unchanged(tmp_path):
    path = save_weights(
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.Identity(), nn.Conv2d(6, 2, 1), nn.PReLU()), tmp_path / "x"
    )
    model = network()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with pytest.raises(ValueError, match="does not fit this model") as error:
        load_weights(model, path)
    for line in (
        "missing: 1.running_mean (4,)",
        "unexpected: 3.weight (1,)",
        "shape: 0.weight is (6, 1, 3, 3) in the file, (4, 1, 3, 3) in the model",
    ):
        assert line in str(error.value)
    assert all(a.equal(b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = save_weights(network(seed=1), tmp_path / "model.safetensors")
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(network(seed=2), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_damaged_and_missing_files(tmp_path):
    path = save_weights(network(), tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"model\.safetensors is no complete safetensors file"):
        load_weights(network(), path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_weights(network(), tmp_path / "absent.safetensors")


def test_facts_must_be_json(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        save_weights(network(), tmp_path / "model.safetensors", {"model": object()})
    assert os.listdir(tmp_path) == []


def test_a_changed_bit_is_found_wherever_it_is(tmp_path):
    """Of 300 places all over the file but the word "checksum", without which all that is read is still there."""
    path = save_weights(network(), tmp_path / "model.safetensors", {"labels": {"liver": 1, "spleen": 2}, "step": 7})
    whole, spoilt, draw = path.read_bytes(), tmp_path / "spoilt.safetensors", random.Random(0)
    for at in draw.sample(range(len(whole)), 300):
        content = bytearray(whole)
        content[at] ^= 1 << draw.randrange(8)
        spoilt.write_bytes(content)
        if b"checksum" not in content:
            continue
        with pytest.raises(ValueError, match=r"spoilt\.safetensors is (damaged|no complete safetensors file).* again"):
            load_tensors(spoilt)


def test_files_from_before_there_were_checksums_are_read(tmp_path):
    model, fresh = network(seed=1), network(seed=2)
    header = {"facts": json.dumps({"step": 3}), "format": "pt", "author": "no JSON"}
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata=header)
    assert load_weights(fresh, tmp_path / "old.safetensors") == {"step": 3} and same(model, fresh)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 10_000])
def test_a_header_that_says_nothing_is_named(tmp_path, text):
    save_file(network().state_dict(), tmp_path / "old.safetensors", metadata={"facts": text})
    with pytest.raises(ValueError, match=r"'facts' in the header of .*old\.safetensors"):
        load_weights(network(), tmp_path / "old.safetensors")


def test_facts_must_come_back_as_they_are(tmp_path):
    with pytest.raises(ValueError, match="NaN is no finite number"):
        save_weights(network(), tmp_path / "model.safetensors", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.long(), "dtype: 0.weight is torch.int64 in the file, torch.float32 in the model"),
        (lambda x: x.to(torch.complex64), "dtype: 0.weight is torch.complex64 in the file"),
        (lambda x: x.to(torch.float8_e4m3fn), "dtype: 0.weight is torch.float8_e4m3fn in the file"),
        (lambda x: x > 0, "dtype: 0.weight is torch.bool in the file"),
        (lambda x: x / 0, "not finite: 0.weight holds NaN, infinity or numbers too large for torch.float32"),
        (lambda x: x * torch.nan, "not finite: 0.weight"),
        (lambda x: x.double() * 1e300, "not finite: 0.weight"),
    ],
)
@pytest.mark.parametrize("load", [load_weights, load_published])
def test_weights_that_are_none_are_refused_and_the_model_is_unchanged(tmp_path, change, message, load):
    model, given = network(), network(seed=1).state_dict()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    path = save_tensors(given | {"0.weight": change(given["0.weight"])}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=message):
        load(model, path)
    assert all(a.equal(b) for a, b in zip(before, model.state_dict().values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(tmp_path, dtype):
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in network(seed=1).state_dict().items()}
    fresh = network(seed=2)
    load_weights(fresh, save_tensors(given, tmp_path / "model.safetensors"))
    assert all(x.equal(given[name].to(x.dtype)) for name, x in fresh.state_dict().items())
