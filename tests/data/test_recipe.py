"""Recipes: the table, preparing, interruptions, sources."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from imageio.v3 import imread
from places import HELPERS, REPOSITORY

import data_recipes
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.recipe import RemoteFile, data_root
from xlstm_unet_lab.data.registry import get_recipe, list_recipes, prepared_folder, recipe_names

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
PHANTOM = get_recipe("phantom_microscopy")


def write_cases(source, out, track=iter):
    for number in track(range(7)):
        write_case(out, "Tr" if number < 5 else "Ts", f"toy_{number}", GREY + np.uint8(number), GREY % 3, GREY)
    return {"kind_of_source": "none" if source is None else sorted(path.name for path in source.iterdir())}


def toy(**changes):
    """A small recipe that is made here, unless `changes` say otherwise."""
    return dataclasses.replace(PHANTOM, **({"name": "toy", "dataset_id": 999, "convert": write_cases} | changes))


# The table


def test_every_recipe_is_found_and_has_a_number_of_its_own():
    recipes = [get_recipe(name) for name in recipe_names()]
    assert {"nuclei", "phantom_microscopy"} <= {recipe.name for recipe in recipes}
    assert len({recipe.dataset_id for recipe in recipes}) == len(recipes)
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for recipe in recipes for colour in recipe.colours.values())


def test_packages_and_underscored_modules_beside_the_recipes_are_none(tmp_path, monkeypatch):
    for name in ("new.py", "_help.py", "tools/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    known = recipe_names()
    monkeypatch.setattr(data_recipes, "__path__", [*data_recipes.__path__, str(tmp_path)])
    assert set(recipe_names()) - set(known) == {"new"} and "shared" not in known


def test_list_recipes_says_what_is_prepared(tmp_path):
    table = list_recipes(tmp_path).set_index("name")
    columns = ["title", "modality", "dimensions", "scored by", "size", "licence", "homepage", "how it comes"]
    assert list(table.columns) == [*columns, "prepared"]
    assert table.loc["nuclei", "scored by"] == "dice, surface_dice, instance_f1"
    assert table.loc["nuclei", "size"] == "83 MB" and table.loc["phantom_microscopy", "how it comes"] == "made here"
    assert not table["prepared"].any()
    not_stated = set(table.index[table["size"] == "not stated"])
    assert not_stated == {"endoscopy", "brain_tumour"}, "of what comes after registering no size is published"
    assert all(size.endswith(" MB") for size in table.loc[table["how it comes"] == "download or source=", "size"])


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(KeyError, match=r"no recipe is named .*nucleus.*did you mean .*nuclei.*there are .*phantom_"):
        prepare("nucleus")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "interior": 1, "boundary": 3}}, "count on by one"),
        ({"labels": {"interior": 0, "boundary": 1}}, "start with background 0"),
        ({"colours": {"interior": "#000000"}}, r"colours name \['interior'\]; expected one for each of"),
        ({"spatial_dims": 4}, "spatial_dims is 4, expected 2 or 3"),
        ({"file_ending": ".jpg"}, "file_ending is '.jpg'"),
        ({"dataset_id": 0}, "dataset_id is 0"),
    ],
)
def test_a_recipe_with_wrong_facts_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy(**changes)


@pytest.mark.parametrize("address", ["http://example.org/a.zip", "ftp://example.org/a.zip", "/tmp/a.zip"])
def test_addresses_must_be_https(address):
    with pytest.raises(ValueError, match="must start with https"):
        RemoteFile(address, None, 1, "a.zip")


def test_file_names_must_be_plain():
    with pytest.raises(ValueError, match="plain file name"):
        RemoteFile("https://example.org/a.zip", None, 1, "../a.zip")


def test_data_root_comes_from_the_argument_then_the_environment_then_the_cache(tmp_path, monkeypatch):
    assert data_root(tmp_path) == tmp_path
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "elsewhere"))
    assert data_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("LAB_DATA")
    assert data_root().name == "xlstm-unet-lab"


# Preparing


def test_prepare_writes_nnunet_raw_format(tmp_path):
    folder = prepare(toy(), tmp_path, progress=False)
    assert folder == tmp_path / "Dataset999_toy"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    cases = [("Tr", k) for k in range(5)] + [("Ts", k) for k in range(5, 7)]
    expected = [f"images{part}/toy_{k}_0000.png" for part, k in cases]
    expected += [f"{what}{part}/toy_{k}.png" for what in ("labels", "instances") for part, k in cases]
    assert names == sorted([*expected, "dataset.json", "recipe.json", "splits_final.json"])
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["channel_names"] == {"0": "fluorescence"} and facts["numTraining"] == 5
    assert facts["labels"] == {"background": 0, "interior": 1, "boundary": 2} and facts["file_ending"] == ".png"
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["counts"] == {"training": 5, "test": 2} and marker["facts"] == {"kind_of_source": "none"}
    assert imread(folder / "instancesTr/toy_0.png").dtype == np.uint16
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == 5 and sorted(name for fold in folds for name in fold["val"]) == [f"toy_{k}" for k in range(5)]
    assert all(set(fold["train"]).isdisjoint(fold["val"]) and len(fold["train"]) == 4 for fold in folds)


def test_a_finished_folder_is_returned_at_once(tmp_path):
    folder = prepare(toy(), tmp_path, progress=False)
    made = (folder / "recipe.json").stat().st_mtime_ns
    assert prepare(toy(convert=None), tmp_path, progress=False) == folder
    assert (folder / "recipe.json").stat().st_mtime_ns == made


def test_an_error_while_converting_leaves_nothing_and_the_next_run_succeeds(tmp_path):
    def fail(source, out, track):
        write_cases(source, out)
        raise ValueError("case 3 is broken")

    with pytest.raises(ValueError, match="case 3 is broken"):
        prepare(toy(convert=fail), tmp_path, progress=False)
    assert prepared_folder(toy(), tmp_path) is None
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert prepare(toy(), tmp_path, progress=False).is_dir()


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path):
    program = """
import os, sys
from test_recipe import toy, write_cases
from xlstm_unet_lab.data.prepare import prepare
def die(source, out, track):
    write_cases(source, out)
    os._exit(9)
prepare(toy(convert=die), sys.argv[1], progress=False)
"""
    path = os.pathsep.join(map(str, (Path(__file__).parent, HELPERS, REPOSITORY)))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True)
    assert done.returncode == 9, done.stderr.decode()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".partial-Dataset999_toy"]
    assert prepared_folder(toy(), tmp_path) is None
    assert prepare(toy(), tmp_path, progress=False).is_dir()
    assert not (tmp_path / ".partial-Dataset999_toy").exists()


def test_two_at_once_make_it_once(tmp_path):
    calls = []
    recipe = toy(convert=lambda *arguments: calls.append(1) or write_cases(*arguments))
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: prepare(recipe, tmp_path, progress=False), range(4)))
    assert len(calls) == 1 and set(folders) == {tmp_path / "Dataset999_toy"}


def test_what_is_not_ours_is_never_touched(tmp_path):
    foreign = tmp_path / "Dataset999_toy" / "precious.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=r"was not made by prepare, it holds no recipe\.json: move or delete"):
        prepare(toy(), tmp_path, progress=False)
    assert foreign.read_text() == "mine"


def test_another_version_is_refused(tmp_path):
    prepare(toy(), tmp_path, progress=False)
    with pytest.raises(FileExistsError, match="'toy' version 1, this is 'toy' version 2"):
        prepare(toy(version=2), tmp_path, progress=False)


def test_too_few_cases_for_the_folds(tmp_path):
    def two(source, out, track):
        for number in range(2):
            write_case(out, "Tr", f"toy_{number}", GREY, GREY % 3)
        return {}

    with pytest.raises(ValueError, match="2 training cases were found; 5 folds need at least 5"):
        prepare(toy(convert=two), tmp_path, progress=False)


def test_an_image_without_a_label_is_an_error(tmp_path):
    def lose(source, out, track):
        write_cases(source, out)
        (out / "labelsTr" / "toy_3.png").unlink()
        return {}

    with pytest.raises(ValueError, match=r"images without a label \['toy_3'\]"):
        prepare(toy(convert=lose), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Xx", "a", GREY, GREY), "part is 'Xx'"),
        (("Tr", "a", GREY.astype(np.uint16), GREY), "image is uint16"),
        (("Tr", "a", np.stack([GREY] * 4, -1), GREY), r"image is uint8 \(8, 8, 4\)"),
        (("Tr", "a", GREY, GREY[:4]), r"label is uint8 \(4, 8\); expected uint8 \(8, 8\)"),
        (("Tr", "a", GREY, GREY, GREY.astype(int) + 70_000), "values 70000 to 70063"),
    ],
)
def test_write_case_refuses_what_does_not_fit(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_case(tmp_path, *arguments)
    assert not list(tmp_path.iterdir())


def test_write_case_refuses_a_name_used_twice(tmp_path):
    write_case(tmp_path, "Tr", "a", GREY, GREY)
    with pytest.raises(ValueError, match="case a was written already"):
        write_case(tmp_path, "Tr", "a", GREY, GREY)


# Sources


def test_a_source_may_be_a_folder_or_an_archive(tmp_path):
    recipe = toy(registration="https://example.org/register")
    original = tmp_path / "original"
    original.mkdir()
    (original / "a.txt").write_text("a")
    with zipfile.ZipFile(tmp_path / "original.zip", "w") as bundle:
        bundle.writestr("a.txt", "a")
        bundle.writestr("b/c.txt", "c")
    folder = prepare(recipe, tmp_path / "one", source=original, progress=False)
    assert json.loads((folder / "recipe.json").read_text())["facts"] == {"kind_of_source": ["a.txt"]}
    folder = prepare(recipe, tmp_path / "two", source=tmp_path / "original.zip", progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["facts"] == {"kind_of_source": ["a.txt", "b"]} and marker["source"]["kind"] == "archive"
    assert (
        marker["source"]["files"][0]["sha256"] == hashlib.sha256((tmp_path / "original.zip").read_bytes()).hexdigest()
    )
    with pytest.raises(FileExistsError, match=r"was prepared from .*original\.zip, not from"):
        prepare(recipe, tmp_path / "two", source=original, progress=False)


def test_registration_is_asked_for():
    with pytest.raises(ValueError, match=r"register at https://example\.org/register.*source="):
        prepare(toy(registration="https://example.org/register"))


def test_a_missing_source_and_a_needless_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        prepare("nuclei", tmp_path, source=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="takes no source"):
        prepare(toy(), tmp_path, source=tmp_path)
