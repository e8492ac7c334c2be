"""Networks that ship, from a shell; and the command that trains them, which writes nothing below its goal."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import call
from imageio.v3 import imread, imwrite
from tiny_problem import boxes, cases

import xlstm_unet_lab as lab
from benchmarks import trained
from data_recipes.phantom_microscopy import microscopy
from xlstm_unet_lab.data.cases import Facts, Listed
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.inference import shipped

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = trained.Training((16, 16), (4, 8), 30, 4, goal=0.5, model="unet", learning_rate=0.02, augment=False)


@pytest.fixture
def image(tmp_path):
    picture, _ = microscopy(77_777, (96, 128))
    imwrite(tmp_path / "cells.png", picture.astype(np.uint8))
    return tmp_path / "cells.png"


def test_predict_with_a_network_that_ships(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call("predict", "--trained", "phantom_microscopy", image, "--device", "cpu").stdout.split()
    assert said == ["predictions/cells.png"]
    wanted = lab.trained("phantom_microscopy")(imread(image)[None])
    assert np.array_equal(imread(tmp_path / said[0]), wanted)
    assert imread(tmp_path / "predictions" / "instances" / "cells.png").max() > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "x.png"), "expected a run and images"),
        (("predict", "--trained", "nuclei", "x.png", "--which", "best"), "--trained NAME, without --which"),
        (("predict", "--trained", "nuclie", "x.png"), "no trained network is named 'nuclie'"),
    ],
)
def test_wrong_usage(arguments, message):
    assert message in " ".join(call(*arguments, code=2).stderr.replace("│", " ").split())


def test_models_lists_them_with_their_scores():
    rows = json.loads(call("models", "--trained", "--json").stdout)
    assert rows == json.loads(lab.list_trained().to_json(orient="records"))
    said = call("models", "--trained").stdout
    assert all(row["name"] in said and row["licence"] in said for row in rows)
    assert max(map(len, said.splitlines())) <= 100
    assert "swin_unetr" not in said and rows[0]["name"] in call("models").stdout


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A table of one network that learns to find boxes, and a folder for its file."""
    facts = Facts(boxes())
    seen = [case | {"image": torch.from_numpy(normalise(case["image"].numpy()))} for case in cases(range(6))]
    monkeypatch.setattr(trained, "TRAININGS", {"boxes": TINY})
    split = (Listed(seen[:4], facts), Listed(seen[4:], facts))
    monkeypatch.setattr(trained, "datasets", lambda name: split)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


def test_a_network_is_trained_tested_and_written(tiny, capsys):
    assert trained.main() == 0
    assert "boxes.safetensors" in capsys.readouterr().out
    predictor, card = lab.trained("boxes"), lab.trained("boxes").card
    assert card["score"] == card["scores"]["mean Dice"] >= TINY.goal
    assert card["scores"] == {
        name: round(float(np.mean(values)), 4)
        for name, values in trained.scores_by_case(predictor, trained.datasets("boxes")[1]).items()
    }, "what was tested is what was written"
    first = (tiny / "boxes.safetensors").read_bytes()
    weights = {name: x.clone() for name, x in predictor.network.state_dict().items()}
    assert trained.main(["boxes"]) == 0 and len((tiny / "boxes.safetensors").read_bytes()) == len(first)
    again = lab.trained("boxes").network.state_dict()
    assert all(torch.equal(x, again[name]) for name, x in weights.items()), "the same steps give the same weights"


def test_nothing_is_written_below_the_goal(tiny, monkeypatch, capsys):
    monkeypatch.setattr(trained, "TRAININGS", {"boxes": replace(TINY, steps=1, goal=1.01)})
    assert trained.main() == 1
    assert "MISSED" in capsys.readouterr().out and not tiny.exists()


def test_a_network_too_large_for_its_file_is_refused_before_it_is_trained():
    with pytest.raises(ValueError, match=r"the file would have .* bytes, expected 1,500,000 at most"):
        trained.network(replace(TINY, features=(64, 256)), Listed(cases([0]), Facts(boxes())))


@pytest.mark.parametrize("name", list(trained.TRAININGS))
def test_every_network_of_the_table_fits_into_its_file(name):
    trained.network(trained.TRAININGS[name], Listed([], Facts(get_recipe(name))))
