"""A user's folder: regions, folds of their own, and any number of cases from one on."""

import json

import nibabel
import numpy as np
import pytest
from imageio.v3 import imread, imwrite
from one_step import one_step

import xlstm_unet_lab as lab
from data_recipes.folder import recipe_for
from data_recipes.shared.declared import painted_by
from xlstm_unet_lab.data.registry import get_recipe

NAMES = {"oedema": 3, "core": 7}
NESTED = {"tumour": ["oedema", "core"], "core region": [7]}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def filled(folder, cases=6, values=(0, 3, 7), **files):
    """A folder of pictures a, b, ..., with JSON files beside them."""
    for what in ("images", "labels"):
        (folder / what).mkdir(parents=True)
    for number, name in enumerate("abcdefghijkl"[:cases]):
        generator = np.random.default_rng(number)
        imwrite(folder / "images" / f"{name}.png", generator.integers(0, 255, (12, 14)).astype(np.uint8))
        imwrite(folder / "labels" / f"{name}.png", generator.choice(values, (12, 14)).astype(np.uint8))
    for name, facts in files.items():
        (folder / f"{name}.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return folder


# Regions


def test_regions_are_learnt_in_place_of_labels(tmp_path):
    source = filled(tmp_path / "tumours", labels=NAMES | {"regions": NESTED})
    folder = lab.prepare("folder", source=source, progress=False)
    recipe = get_recipe("tumours")
    assert recipe.labels == {"background": 0, "oedema": 1, "core": 2} and recipe.label_numbers == NAMES
    targets = recipe.targets
    assert (targets.names, targets.values, targets.painted) == (("tumour", "core region"), ((1, 2), (2,)), (1, 2))
    assert set(recipe.tolerances) == {"tumour", "core region"} and recipe.num_classes == 2
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "tumour": [1, 2], "core region": [2]}
    assert described["regions_class_order"] == [1, 2]
    cases = lab.load_dataset("tumours", "all")
    one_step(cases, cases, tmp_path / "run")
    predictor = lab.load_predictor(tmp_path / "run")
    assert predictor.targets == targets and predictor.label_numbers == NAMES
    assert np.array_equal(predictor.numbered(np.array([0, 1, 2])), [0, 3, 7])


def test_a_region_paints_what_no_later_one_holds():
    assert painted_by({"whole": (1, 2, 3), "core": (2, 3), "inner": (3,)}) == (1, 2, 3)
    assert painted_by({"left": (2,), "right": (1,)}) == (2, 1) and painted_by({}) == ()
    with pytest.raises(ValueError, match="later regions paint over all of 'core': name the larger regions first"):
        painted_by({"core": (2,), "whole": (1, 2)})


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"core": ["core"], "tumour": ["oedema", "core"]}, "paint over all of 'core': name the larger regions first"),
        ({"core": ["core"]}, "no region holds the label 3: add it to one"),
        ({"tumour": ["oedema", "stone"]}, "expected are labels that are named here"),
        ({"tumour": [3, 7, 8]}, "expected are labels that are named here"),
        ({"tumour": [3, True]}, "expected are labels that are named here"),
        ({"tumour": []}, "a list for each region is expected"),
        ({"tumour": 3}, "a list for each region is expected"),
        (["oedema", "core"], "a list for each region is expected"),
        ({}, "a list for each region is expected"),
    ],
)
def test_regions_that_cannot_be_are_refused(tmp_path, regions, message):
    source = filled(tmp_path / "tumours", cases=2, labels=NAMES | {"regions": regions})
    with pytest.raises(ValueError, match=rf'labels\.json holds "regions".*{message}'):
        recipe_for(source)


def test_regions_without_names_of_labels_are_refused(tmp_path):
    source = filled(tmp_path / "tumours", cases=2, labels={"regions": {"tumour": [3, 7]}})
    with pytest.raises(ValueError, match="expected are labels that are named here"):
        recipe_for(source)


# Folds


def split_of(name, fold=0):
    return {split: lab.load_dataset(name, split, fold=fold).names for split in ("train", "val", "test")}


def test_one_division_of_ones_own_is_kept(tmp_path):
    splits = {"train": ["c", "a"], "val": ["b"], "test": ["d"]}
    lab.prepare("folder", source=filled(tmp_path / "mine", splits=splits), progress=False)
    assert split_of("mine") == {"train": ["c", "a"], "val": ["b"], "test": ["d", "e", "f"]}, (
        "what is not named is tested"
    )
    with pytest.raises(ValueError, match="fold is 1, expected a whole number from 0 to 0"):
        lab.load_dataset("mine", fold=1)


def test_several_folds_of_ones_own_are_kept(tmp_path):
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]
    source = filled(tmp_path / "mine", splits=splits)
    lab.prepare("folder", source=source, progress=False)
    assert split_of("mine", 1) == {"train": ["b", "c"], "val": ["a"], "test": ["d", "e", "f"]}
    (source / "splits.json").write_text(json.dumps(splits[:1]))
    with pytest.raises(FileExistsError, match="have changed since"):
        lab.prepare("folder", source=source, progress=False)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("{", "is not valid JSON"),
        ("3", "expected names with values"),
        ([], "holds something else than"),
        ({"val": ["a"]}, "holds something else than"),
        ({"train": []}, "holds something else than"),
        ({"train": "a"}, "holds something else than"),
        ({"train": [1]}, "holds something else than"),
        ({"train": ["a"], "held out": ["b"]}, "holds something else than"),
        ([["a"]], "holds something else than"),
        ({"train": ["a", "z"]}, r"names \['z'\], of which there is no image with a label"),
        ({"train": ["../a"]}, r"names \['../a'\], of which"),
        ({"train": ["a"], "val": ["a"]}, "names 'a' twice"),
        ({"train": ["a", "a"]}, "names 'a' twice"),
        ({"train": ["a"], "test": ["a"]}, "names 'a' twice"),
        ([{"train": ["a"]}, {"train": ["b"], "test": ["a"]}], "names 'a' twice"),
    ],
)
def test_splits_that_cannot_be_are_refused(tmp_path, splits, message):
    source = filled(tmp_path / "mine", splits=splits)
    with pytest.raises(ValueError, match=rf"(?s)splits\.json.*{message}"):
        recipe_for(source)


@pytest.mark.parametrize(("cases", "folds"), [(1, 1), (2, 2), (4, 4), (5, 5), (9, 5)])
def test_any_number_of_cases_will_do(tmp_path, cases, folds):
    folder = lab.prepare("folder", source=filled(tmp_path / "few", cases=cases), progress=False)
    written = json.loads((folder / "splits_final.json").read_text())
    names = [*"abcdefghi"[:cases]]
    assert len(written) == folds and lab.load_dataset("few", "test").names == []
    validated = sorted(name for fold in written for name in fold["val"])
    assert validated == (names if cases > 1 else []) and all(fold["train"] for fold in written)


def test_one_volume_alone_is_trained_on(tmp_path):
    for what, most in (("images", 200), ("labels", 2)):
        (tmp_path / "one" / what).mkdir(parents=True)
        array = np.random.default_rng(0).integers(0, most, (9, 8, 7)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 4.0, 1.0])), tmp_path / "one" / what / "a.nii.gz")
    lab.prepare("folder", source=tmp_path / "one", progress=False)
    cases = lab.load_dataset("one", "train")
    (record,) = one_step(cases)
    assert record.metrics is None


def test_nothing_but_images_is_refused(tmp_path):
    source = filled(tmp_path / "none", cases=1)
    assert imread(source / "images" / "a.png").shape == (12, 14)
    for what in ("images", "labels"):
        (source / what / "a.png").unlink()
    imwrite(source / "images" / "b.png", np.eye(9, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"images/b\.png has no label"):
        recipe_for(source)
