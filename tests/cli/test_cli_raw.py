"""A folder in nnU-Net's raw format is trained on by its path."""

import json

import numpy as np
import pytest
from command_line import call
from imageio.v3 import imwrite

TRAIN = ("--model", "unet", "--model-option", "features=[2,4]", "--accelerator", "cpu", "--steps", "1", "--json")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("names", ["ab", "a"])
def test_a_folder_of_nnunets_is_trained_on_and_left_as_it_was(names, tmp_path, monkeypatch):
    folder = tmp_path / "raw" / "Dataset777_Mine"
    for name in names:
        image = np.random.default_rng(ord(name)).integers(0, 255, (24, 20)).astype(np.uint8)
        for part, array in ((f"imagesTr/{name}_0000.png", image), (f"labelsTr/{name}.png", np.uint8(image > 99))):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            imwrite(folder / part, array)
    facts = {"channel_names": {"0": "light"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": [*names[1:]]}]))
    before = sorted(path.name for path in folder.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "data"))
    result = json.loads(call("train", folder, *TRAIN, "--patch-size", "8,8").stdout)
    assert result["run_directory"] == "runs/Dataset777_Mine-unet-fold0"
    assert ("dice cell" in result) == (len(names) > 1), "validated where there are cases for it"
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_path_that_leads_nowhere_says_what_would_do(tmp_path):
    assert "a folder with dataset.json goes by its path" in call("train", tmp_path / "nowhere", *TRAIN, code=2).stderr
