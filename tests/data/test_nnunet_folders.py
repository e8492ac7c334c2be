"""A folder in nnU-Net's raw format that others made is a data set as it stands, and nothing is written to it."""

import json
import os

import nibabel
import numpy as np
import pytest
from imageio.v3 import imwrite
from one_step import one_step

import xlstm_unet_lab as lab
from data_recipes.nnunet_raw import drawn, recipe_for
from xlstm_unet_lab.data.registry import find_recipe

SHAPE = (7, 6, 5)  # x, y, z
AFFINE = np.diag([1.0, 1.5, 4.0, 1.0])
LABELS = {"background": 0, "edema": 1, "core": 2}
FACTS = {"channel_names": {"0": "T1"}, "labels": LABELS, "numTraining": 7, "file_ending": ".nii.gz"}


def volume(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def made(folder, cases=7, **changes):
    """Such a folder with volumes case_a, case_b, ..., and one to test on."""
    facts = FACTS | changes
    folder.mkdir(parents=True)
    for number, name in enumerate("abcdefghijklmnopqr"[:cases]):
        generator = np.random.default_rng(number)
        parts = ("Tr", "Ts") if number == 0 else ("Tr",)
        for part in parts:
            for channel in range(len(facts["channel_names"])):
                image = generator.integers(0, 900, SHAPE).astype(np.int16)
                volume(folder / f"images{part}" / f"case_{name}_{channel:04d}{facts['file_ending']}", image)
            label = generator.integers(0, 3, SHAPE).astype(np.uint8)
            volume(folder / f"labels{part}" / f"case_{name}{facts['file_ending']}", label)
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Nothing of nnU-Net's is known, and prepared data lies in a folder of its own."""
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()


@pytest.fixture
def folder(tmp_path):
    return made(tmp_path / "base" / "nnUNet_raw" / "Dataset777_Mine")


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


# Opened by its path


def test_it_is_opened_by_its_path_and_only_read(folder, tmp_path):
    before = contents(folder)
    for path in (folder, str(folder)):
        train, val, every, test = (
            lab.load_dataset(path, split, cache_bytes=0) for split in ("train", "val", "all", "test")
        )
        assert sorted([*train.names, *val.names]) == every.names == [f"case_{name}" for name in "abcdefg"]
        assert test.names == ["case_a"] and len(val) == 2
    case = every[0]
    assert case["image"].shape == (1, *SHAPE[::-1]) and case["spacing"] == (4.0, 1.5, 1.0)
    stored = nibabel.load(folder / "labelsTr" / "case_a.nii.gz")
    assert np.array_equal(case["label"], np.asarray(stored.dataobj).T)
    recipe = every.recipe
    assert (recipe.name, recipe.dataset_id, recipe.labels) == ("Dataset777_Mine", 777, LABELS)
    assert recipe.channel_names == ("T1",) and recipe.flip_axes == () and recipe.tolerances == {"edema": 4, "core": 4}
    assert contents(folder) == before and contents(tmp_path / "base").keys() >= before.keys()
    assert lab.prepare(folder, progress=False) == lab.prepare("nnunet_raw", source=folder, progress=False) == folder
    assert contents(folder) == before


def test_it_is_found_by_its_name_where_data_lie(folder, monkeypatch):
    with pytest.raises(
        KeyError, match=r"no recipe is named .Dataset777_Mine.*a folder with dataset.json goes by its path"
    ):
        lab.load_dataset("Dataset777_Mine")
    assert lab.load_dataset("Dataset777_Mine", root=folder.parent).folder == folder
    monkeypatch.setenv("LAB_DATA", str(folder.parent))
    assert lab.load_dataset("Dataset777_Mine").folder == folder
    monkeypatch.delenv("LAB_DATA")
    monkeypatch.chdir(folder.parent)
    assert lab.load_dataset("Dataset777_Mine").folder == folder


def test_a_prepared_folder_is_opened_by_its_path_too(tmp_path):
    for what in ("images", "labels"):
        (tmp_path / "cells" / what).mkdir(parents=True)
        imwrite(tmp_path / "cells" / what / "a.png", np.eye(9, dtype=np.uint8))
    prepared = lab.prepare("folder", source=tmp_path / "cells", progress=False)
    assert find_recipe(prepared)[0].name == "cells"
    assert lab.load_dataset(prepared, "all").folder == prepared == lab.prepare(str(prepared), progress=False)


@pytest.mark.parametrize("path", ["nowhere/Dataset777_Mine", "../x", "/", ""])
def test_a_path_that_leads_to_no_such_folder_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError, match=r"a folder with dataset\.json goes by its path"):
        lab.load_dataset(path)


def test_a_run_on_it_is_scored_where_it_lies(folder, tmp_path, monkeypatch):
    before, cases = contents(folder), lab.load_dataset(folder)
    run = tmp_path / "run"
    one_step(cases, lab.load_dataset(folder, "val"), run)
    assert str(tmp_path) not in (run / "model.json").read_text(), "no path of this machine is kept"
    from xlstm_unet_lab.evaluation.cases import from_run

    with pytest.raises(KeyError, match="name another by root=, --root or LAB_DATA"):
        from_run(run)
    assert len(from_run(run, root=folder.parent).table())
    monkeypatch.setenv("LAB_DATA", str(folder.parent))
    assert from_run(run).names == ("case_a",)
    predictor = lab.load_predictor(run)
    assert predictor.normalisation == "z-score" and predictor.channel_names == ("T1",)
    assert contents(folder) == before


# Folds


def test_folds_are_those_that_nnunet_would_draw():
    known = pytest.importorskip("nnunetv2.utilities.crossval_split").generate_crossval_split
    for count in (5, 7, 13, 40):
        names = [f"case_{number:02d}" for number in range(count)]
        wanted = [{part: [str(name) for name in fold[part]] for part in fold} for fold in known(names)]
        assert drawn(names) == wanted


@pytest.mark.parametrize("cases", [1, 2, 4])
def test_few_cases_have_a_fold_each(tmp_path, cases):
    folder = made(tmp_path / "Dataset001_few", cases=cases)
    validated = [lab.load_dataset(folder, "val", fold=fold).names for fold in range(cases)]
    assert len(lab.load_dataset(folder)) == max(1, cases - 1)
    assert sorted(name for names in validated for name in names) == (
        [] if cases == 1 else lab.load_dataset(folder, "all").names
    )
    with pytest.raises(ValueError, match=f"fold is {cases}, expected a whole number from 0 to {cases - 1}"):
        lab.load_dataset(folder, fold=cases)


@pytest.mark.parametrize("where", ["inside", "variable", "beside"])
def test_folds_of_nnunet_are_found(folder, tmp_path, monkeypatch, where):
    folds = [{"train": ["case_b", "case_c"], "val": ["case_a"]}, {"train": ["case_a"], "val": ["case_b"]}]
    place = {
        "inside": folder,
        "variable": tmp_path / "elsewhere" / folder.name,
        "beside": tmp_path / "base" / "nnUNet_preprocessed" / folder.name,
    }[where]
    place.mkdir(parents=True, exist_ok=True)
    (place / "splits_final.json").write_text(json.dumps(folds))
    if where == "variable":
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "elsewhere"))
    assert lab.load_dataset(folder, fold=1).names == ["case_a"]
    assert lab.load_dataset(folder, "val", fold=0).names == ["case_a"]


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([{"train": ["case_z"], "val": []}], r"names \['case_z'\], which .*labelsTr does not hold"),
        ([{"train": ["../../victim"], "val": []}], r"names \['../../victim'\], which"),
        ([{"train": ["case_a"], "val": ["case_a"]}], "names a case twice in one fold"),
        ([], "must hold folds, each with the case names"),
        ([{"train": ["case_a"]}], "must hold folds, each with the case names"),
        ({"train": ["case_a"]}, "expected a list"),
    ],
)
def test_spoilt_folds_are_named(folder, folds, message):
    (folder / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match=rf"splits_final\.json.*{message}"):
        lab.load_dataset(folder)


# What dataset.json says


def test_regions_are_learnt_as_nnunet_learns_them(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    folder = made(tmp_path / "Dataset002_regions", labels=labels, regions_class_order=[1, 2])
    recipe = lab.load_dataset(folder).recipe
    assert recipe.labels == {"background": 0, "label 1": 1, "core": 2} and recipe.painted == (1, 2)
    targets = recipe.targets
    assert (targets.names, targets.values, targets.exclusive) == (("whole", "core"), ((1, 2), (2,)), False)
    assert recipe.num_classes == 2


def test_several_channels_and_another_ending(tmp_path):
    folder = made(tmp_path / "two", channel_names={"1": "T2", "0": "T1"}, file_ending=".nii", mirror_axes=[2, 0])
    cases = lab.load_dataset(folder)
    assert cases[0]["image"].shape == (2, *SHAPE[::-1]) and cases.recipe.channel_names == ("T1", "T2")
    assert cases.recipe.flip_axes == (0, 2) and cases.recipe.name == "two"
    (folder / "imagesTr" / "case_c_0001.nii").unlink()
    with pytest.raises(ValueError, match=r"case_c: it has 1 image files, expected _0000 and on, one for each of 2"):
        lab.load_dataset(folder)


@pytest.mark.parametrize("separate", [False, True])
def test_pictures_have_one_file_or_one_a_channel(tmp_path, separate):
    folder, generator = tmp_path / "Dataset003_flat", np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name in "abc":
        image = generator.integers(0, 255, (12, 14, 3)).astype(np.uint8)
        for channel in range(3) if separate else ():
            imwrite(folder / "imagesTr" / f"{name}_{channel:04d}.png", image[..., channel])
        if not separate:
            imwrite(folder / "imagesTr" / f"{name}_0000.png", image)
        imwrite(folder / "labelsTr" / f"{name}.png", (image[..., 0] > 99).astype(np.uint8))
    facts = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "cell": 1}}
    (folder / "dataset.json").write_text(json.dumps(facts | {"file_ending": ".png", "numTraining": 3}))
    cases = lab.load_dataset(folder, "all")
    assert np.array_equal(cases.raw(2), image.transpose(2, 0, 1)) and cases[2]["spacing"] == (1.0, 1.0)
    assert cases.recipe.flip_axes is None and cases.recipe.spacing_unit == "pixel"


BAD = [
    ({"labels": {"background": 0, "a": 1, "ignore": 2}}, 'has the label "ignore", which marks what nobody labelled'),
    ({"labels": {"0": "background", "1": "a"}}, "nnUNetv2_convert_MSD_dataset brings it to today's format"),
    ({"labels": {"a": 1}}, 'expected "background": 0'),
    ({"labels": {"background": 0, "a": 0}}, "0 for nothing else"),
    ({"labels": {"background": 0, "a": 2}}, r"label numbers \[2\], expected 1, 2, \.\.\. without a gap"),
    ({"labels": {"background": 0, "a": 1, "b": 1}}, "another number for each name"),
    ({"labels": {"background": 0, "a": 1.5}}, "'a' of labels in .* is 1.5, expected a whole number"),
    ({"labels": {"background": 0, "a": -1}}, "is -1, expected a whole number"),
    ({"labels": {"background": 0}}, r"label numbers \[\]"),
    ({"labels": {}}, "expected a number for each name"),
    ({"labels": ["background", "a"]}, "expected a number for each name"),
    ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions_class_order None, expected the label"),
    ({"labels": {"background": 0, "w": [1, 2], "c": 2}, "regions_class_order": [1, 9]}, "regions_class_order"),
    ({"channel_names": {"1": "T1"}}, "channel_names .* expected a name for each number"),
    ({"channel_names": {}}, "expected a name for each number"),
    ({"channel_names": ["T1"]}, "expected a name for each number"),
    ({"file_ending": ".mha"}, r"file_ending in .* is '\.mha': did you mean|file_ending in .* is '\.mha': there are"),
    ({"file_ending": "/../../victim.nii.gz"}, "file_ending in"),
    ({"file_ending": None}, "file_ending in"),
    ({"mirror_axes": [3]}, r"mirror_axes \[3\], expected a list of axes from 0 to 2"),
    ({"dataset": {"a": {"images": ["/a"]}}}, 'lists its files under "dataset"'),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_dataset_json_that_cannot_be_followed_is_refused_in_words(folder, changes, message):
    (folder / "dataset.json").write_text(json.dumps(FACTS | changes))
    with pytest.raises(ValueError, match=message) as caught:
        lab.load_dataset(folder)
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "", '{"labels": {"a": 1, "a": 2}}', "[" * 10**5])
def test_bad_json_is_refused_in_words(folder, text):
    (folder / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json"):
        lab.load_dataset(folder)


def test_files_that_do_not_fit_are_listed(folder):
    volume(folder / "labelsTr" / "case_b.nii.gz", np.zeros((7, 6, 4), np.uint8))
    volume(folder / "labelsTr" / "case_c.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    (folder / "imagesTr" / "case_d_0000.nii.gz").write_text("not a volume")
    with pytest.raises(ValueError, match="cannot be used, 3 problems:") as caught:
        recipe_for(folder)
    for words in ("case_b: labelsTr/case_b.nii.gz has shape", "case_c: labelsTr/case_c.nii.gz lies up to", "case_d: "):
        assert f"- {words}" in str(caught.value)


def test_a_label_that_dataset_json_does_not_name_is_found_when_it_is_read(folder):
    volume(folder / "labelsTr" / "case_a.nii.gz", np.full(SHAPE, 9, np.uint8))
    with pytest.raises(ValueError, match=r"case_a\.nii\.gz holds \[9\]; known are \[0, 1, 2\]"):
        _ = lab.load_dataset(folder, "all")[0]


def test_partners_that_are_missing_and_empty_folders_are_named(folder, tmp_path):
    (folder / "labelsTr" / "case_b.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"images without a label \['case_b'\]"):
        lab.load_dataset(folder)
    empty = made(tmp_path / "Dataset004_empty", cases=0)
    with pytest.raises(FileNotFoundError, match="imagesTr is missing"):
        lab.load_dataset(empty)
    for what in ("imagesTr", "labelsTr"):
        (empty / what).mkdir()
    with pytest.raises(ValueError, match=r"labelsTr holds no file that ends in \.nii\.gz"):
        lab.load_dataset(empty)
    named = made(tmp_path / "nuclei", cases=1)
    with pytest.raises(ValueError, match="called as a recipe here: rename it, as nnU-Net does, to Dataset777_nuclei"):
        lab.load_dataset(named)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_serves(folder):
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert lab.load_dataset(folder, "all", cache_bytes=0)[0]["name"] == "case_a"
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
