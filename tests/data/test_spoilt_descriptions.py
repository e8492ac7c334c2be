"""What describes prepared data is read back with care: one spoilt file is named, and harms no other data set."""

import json
import re
import shutil

import numpy as np
import pytest
from imageio.v3 import imwrite

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.registry import get_recipe, list_recipes, own_recipes, recipe_in

GOOD = {"read_by": "folder", "name": "other"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(5):
        for what, most in (("images", 200), ("labels", 2)):
            (folder / "cells" / what).mkdir(parents=True, exist_ok=True)
            picture = np.random.default_rng(number).integers(0, most, (8, 9)).astype(np.uint8)
            imwrite(folder / "cells" / what / f"{number}.png", picture)
    lab.prepare("folder", root=folder / "root", source=folder / "cells", progress=False)
    return folder / "root"


@pytest.fixture
def root(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "root")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "recipe.json is not valid JSON"),
        ("[]", r"recipe.json holds \[\], expected names with values"),
        ('{"name": "other", "name": "other"}', "'name' stands there twice"),
        ('{"name": 7}', "name is 7"),
        ('{"own": {"name": "other"}}', "read_by is None"),
        (json.dumps({"own": GOOD | {"read_by": "other"}}), "read_by is 'other'"),
        (json.dumps({"own": GOOD | {"convert": "rm"}}), "convert is 'rm'"),
        (json.dumps({"own": GOOD | {"labels": ["a"]}}), r"labels is .*, expected Mapping"),
        (json.dumps({"own": GOOD | {"labels": {"a": 1}}}), "must start with background 0"),
        (json.dumps({"own": GOOD | {"label_numbers": {"cell": -5}}}), r"label_numbers holds \[-5\]"),
        (json.dumps({"own": GOOD | {"later": 1}}), "'later' is not known here"),
    ],
)
def test_a_spoilt_marker_is_listed_and_the_others_stay(root, content, message):
    folder = root / "Dataset502_other"
    folder.mkdir()
    (folder / "recipe.json").write_text(content)
    assert list(own_recipes(root)) == ["cells"] and get_recipe("cells", root).spatial_dims == 2
    table = list_recipes(root).set_index("name")
    assert bool(table.loc["cells", "prepared"]) and not table.loc["Dataset502_other", "prepared"]
    listed = table.loc["Dataset502_other", "title"]
    assert str(folder) in listed
    assert re.search(message, listed)
    with pytest.raises(KeyError, match="no recipe is named 'other'") as error:
        get_recipe("other", root)
    assert listed in str(error.value.args[0])


def test_a_spoilt_marker_is_named_where_it_is_asked_for(root):
    folder = root / "Dataset501_cells"
    (folder / "recipe.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"recipe\.json is not valid JSON"):
        recipe_in(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "{}",
        "[]",
        json.dumps([{"train": ["0"], "val": ["1"]}, {}]),
        json.dumps([{"train": ["0"]}] * 5),
        json.dumps([{"train": "0", "val": ["1"]}] * 5),
        json.dumps([{"train": [0], "val": [1]}] * 5),
        json.dumps([["0"]] * 5),
    ],
)
def test_spoilt_splits_are_named(root, content):
    (root / "Dataset501_cells" / "splits_final.json").write_text(content)
    with pytest.raises(ValueError, match=r"splits_final\.json"):
        lab.load_dataset("cells", "train", root=root)
