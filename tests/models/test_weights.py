"""Weights go to disk and come back; what does not fit or is not whole is refused."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xlstm_unet_lab.models.weights import load_weights, save_weights


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
