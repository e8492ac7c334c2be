"""Networks that ship: small files, read like any other, that say what they are and find what they learnt to find."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

import xlstm_unet_lab as lab
from benchmarks import trained
from data_recipes import phantom_abdomen, phantom_brain, phantom_endoscopy, phantom_microscopy
from data_recipes.shared.instances import interior_and_boundary
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.inference import shipped

pytestmark = pytest.mark.usefixtures("one_thread")
LARGEST = 1_500_000  # bytes
SEED = 77_777  # of scenes that no data set holds
GOALS = {"nuclei": 0.82, "hippocampus": 0.885}  # of all others 0.9
names = pytest.mark.parametrize("name", sorted(path.stem for path in shipped.WEIGHTS.glob("*.safetensors")))


def cells(seed):
    image, instances = phantom_microscopy.microscopy(seed, (128, 160))
    return image.astype(np.uint8)[None], interior_and_boundary(instances)


def frame(seed):
    image, label = phantom_endoscopy.scene(seed)
    return np.moveaxis(image, -1, 0), label


def abdomen(seed):
    image, label = phantom_abdomen.scene(seed)
    return image[None], label


SCENES = {"phantom_microscopy": cells, "phantom_endoscopy": frame}
SCENES |= {"phantom_abdomen": abdomen, "phantom_brain": phantom_brain.scene}


@names
def test_its_file_is_small_and_in_half_precision(name):
    path = shipped.WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size <= LARGEST
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
        assert file.metadata()["checksum"].startswith("sha256:")


@names
def test_it_is_a_predictor_that_says_what_it_is(name):
    predictor, recipe = lab.trained(name), get_recipe(name)
    assert {parameter.dtype for parameter in predictor.network.parameters()} == {torch.float32}
    assert not predictor.network.training and predictor.targets == recipe.targets
    assert predictor.channel_names == recipe.channel_names and predictor.colours == recipe.shown_colours
    assert recipe.licence in predictor.credit and recipe.citation in predictor.credit
    card = predictor.card
    assert card["score"] == card["scores"][card["measure"]] >= GOALS.get(name, 0.9)
    assert card["licence"] == recipe.licence and card["modality"] == recipe.modality
    assert card["parameters"] == sum(parameter.numel() for parameter in predictor.network.parameters())
    assert card["settings"]["steps"] > 0 and card["seed"] == 0 and card["machine"]["versions"]["torch"]
    assert card["held-out cases"] > 0 and card["made by"].endswith(name)
    json.dumps(predictor.to_json())


def test_the_table_has_all_of_them():
    table = lab.list_trained().set_index("name")
    assert list(table.index) == sorted(path.stem for path in shipped.WEIGHTS.glob("*.safetensors"))
    for name, row in table.iterrows():
        predictor = lab.trained(name)
        assert (row.spatial_dims, row.channels) == (predictor.spatial_dims, predictor.in_channels)
        assert (row.measure, row.score) == (predictor.card["measure"], predictor.card["score"])
        assert row.modality == get_recipe(name).modality and row.licence == get_recipe(name).licence


@pytest.mark.parametrize("name", [name for name in SCENES if (shipped.WEIGHTS / f"{name}.safetensors").is_file()])
def test_it_finds_what_it_never_saw(name):
    image, truth = SCENES[name](SEED)
    found = lab.trained(name)(image)
    assert found.shape == truth.shape and dice(found > 0, truth > 0) > 0.85


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no trained network is named 'phantom_brian': .*there are "):
        lab.trained("phantom_brian")
    with pytest.raises(TypeError, match="name is 3, expected str"):
        lab.trained(3)


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    whole = next(shipped.WEIGHTS.glob("*.safetensors"))
    content = bytearray(whole.read_bytes())
    content[-100] ^= 1
    (tmp_path / whole.name).write_bytes(content)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    for call in (lambda: lab.trained(whole.stem), lab.list_trained):
        with pytest.raises(ValueError, match="is damaged"):
            call()


def test_the_guide_has_their_scores_and_licences():
    assert trained.page_rows() in trained.PAGE.read_text(encoding="utf-8")
