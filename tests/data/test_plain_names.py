"""No name that stands in a file leads out of the folder it is meant for."""

import dataclasses
import json

import numpy as np
import pytest
from imageio.v3 import imwrite

from data_recipes.phantom_microscopy import RECIPE
from data_recipes.shared.conversion import Job, convert_cases
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.dataset import SegmentationDataset, load_dataset
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.recipe import RemoteFile
from xlstm_unet_lab.data.registry import own_recipes
from xlstm_unet_lab.plugin.files import case_overlay
from xlstm_unet_lab.training.state import Progress

ESCAPES = ["../../../victim", "/victim", "a/../../victim", "..", "..\\victim", ""]
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
REFUSED = "expected a plain file name"


def write_cases(source, out, track=iter):
    for number in range(5):
        write_case(out, "Tr", f"toy_{number}", GREY, GREY % 3)
    return {}


@pytest.fixture
def folder(tmp_path):
    recipe = dataclasses.replace(RECIPE, name="toy", dataset_id=999, convert=write_cases)
    return recipe, prepare(recipe, tmp_path / "root", progress=False)


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_a_case_of_the_splits_is_in_the_data_set(folder, tmp_path, escape, split):
    recipe, made = folder
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    folds = json.loads((made / "splits_final.json").read_text())
    folds[0]["train"][0] = folds[0]["val"][0] = escape
    (made / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match=f"the name of a case of .*toy is .*{REFUSED}"):
        load_dataset(recipe, split, tmp_path / "root", cache_bytes=0)
    assert (victim / "precious").exists()


@pytest.mark.parametrize("name", ["../x", 3, None, "\ud800", "a\udfff"])
def test_a_data_set_takes_plain_names_only(folder, name):
    with pytest.raises(ValueError, match=REFUSED):
        SegmentationDataset(*folder, "Tr", [name])


@pytest.mark.parametrize("name", ESCAPES)
def test_a_recipe_has_a_plain_name(name):
    with pytest.raises(ValueError, match=REFUSED):
        dataclasses.replace(RECIPE, name=name)
    with pytest.raises(ValueError, match=REFUSED):
        RemoteFile("https://example.org/a.zip", None, 1, name)


def test_a_recorded_recipe_has_a_plain_name(tmp_path):
    place = tmp_path / "Dataset501_x"
    place.mkdir()
    marker = {"name": "../x", "own": {"name": "../x", "read_by": "folder", "dataset_id": 501}}
    (place / "recipe.json").write_text(json.dumps(marker))
    try:
        assert "../x" not in own_recipes(tmp_path)
    except ValueError as error:
        assert REFUSED in str(error)


@pytest.mark.parametrize("name", ESCAPES)
def test_a_converted_case_stays_in_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match=REFUSED):
        convert_cases(tmp_path / "out", [Job("Tr", name, ())], lambda job, out: None)
    with pytest.raises(ValueError, match=REFUSED):
        write_case(tmp_path / "out", "Tr", name, GREY, GREY)
    assert list(tmp_path.rglob("*_0000.png")) == []


def test_an_ending_in_dataset_json_leads_nowhere(tmp_path):
    (tmp_path / "set" / "imagesTr").mkdir(parents=True)
    imwrite(tmp_path / "set" / "imagesTr" / "a_0000.png", GREY)
    facts = {"labels": {"background": 0}, "channel_names": {"0": "grey"}, "file_ending": "/../../../victim.png"}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(facts))
    imwrite(tmp_path / "victim.png", GREY)  # where the label would be, by that ending
    assert case_overlay(tmp_path / "set" / "imagesTr" / "a_0000.png").truth is None


@pytest.mark.parametrize("step", ["../../victim", "1", 1.5, -1, True, None])
def test_a_step_out_of_a_checkpoint_is_a_whole_number(step):
    with pytest.raises(ValueError, match="step is"):
        Progress(step=step)


def test_a_name_that_leaves_no_room_for_endings_is_refused_before_any_case_is_converted(tmp_path):
    converted = []
    jobs = [Job("Tr", name, ()) for name in ("a", "b" * 249)]
    with pytest.raises(
        ValueError, match=r"the name of a case is 'b+\.\.\.b+', expected a plain file name of at most 240"
    ):
        convert_cases(tmp_path / "out", jobs, lambda job, folder: converted.append(job.name))
    assert converted == []
