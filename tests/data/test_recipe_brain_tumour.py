"""The brain tumour recipe on a small tree laid out as the training data of BraTS 2023."""

import json

import nibabel
import numpy as np
import pytest

from data_recipes.brain_tumour import CHANNELS, RECIPE, convert
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import list_recipes

SHAPE = (6, 7, 5)  # x, y, z
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # to the left and to the back, as the real files run
# Patients 2 and 5 came twice.
CASES = [
    f"BraTS-GLI-{patient:05d}-{time:03d}"
    for patient, times in ((0, 1), (2, 2), (3, 1), (5, 2), (6, 1), (8, 1), (9, 1))
    for time in range(times)
]


def save(path, array):
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


@pytest.fixture
def brats(tmp_path):
    top = tmp_path / "source" / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    random = np.random.default_rng(0)
    for name in CASES:
        (top / name).mkdir(parents=True)
        for position, what in enumerate(CHANNELS):
            save(
                top / name / f"{name}-{what}.nii.gz", random.integers(0, 1000, SHAPE).astype(np.int16) + 1000 * position
            )
        save(top / name / f"{name}-seg.nii.gz", random.integers(0, 4, SHAPE).astype(np.float32))
    return top


def test_a_small_tree(brats, tmp_path):
    folder = prepare("brain_tumour", tmp_path, source=brats.parent, progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["counts"] == {"training": 8, "test": 1} and marker["facts"] == {"patients": 7, "patients_held_out": 1}
    test, train = (load_dataset("brain_tumour", split, root=tmp_path) for split in ("test", "all"))
    assert test.names == ["BraTS-GLI-00006-000"]
    item = train[2]
    assert item["name"] == "BraTS-GLI-00002-001" and item["spacing"] == (1.0, 1.0, 1.0)
    for channel, what in enumerate(CHANNELS):
        original = nibabel.load(brats / item["name"] / f"{item['name']}-{what}.nii.gz").get_fdata()
        assert np.array_equal(train.raw(2)[channel], original[::-1, ::-1].T)
    original = nibabel.load(brats / item["name"] / f"{item['name']}-seg.nii.gz").get_fdata()
    assert np.array_equal(item["label"], original[::-1, ::-1].T)


def test_a_patient_is_in_one_part_and_one_fold_only(brats, tmp_path):
    prepare("brain_tumour", tmp_path, source=brats, progress=False)
    for fold in range(5):
        train, val = (load_dataset("brain_tumour", split, root=tmp_path, fold=fold).names for split in ("train", "val"))
        assert val and {name[:-4] for name in train}.isdisjoint(name[:-4] for name in val)


def test_regions_are_learnt(brats, tmp_path):
    folder = prepare("brain_tumour", tmp_path, source=brats, progress=False)
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["labels"] == {
        "background": 0,
        "whole tumour": [1, 2, 3],
        "tumour core": [1, 3],
        "enhancing tumour": [3],
    }
    assert facts["regions_class_order"] == [2, 1, 3] and RECIPE.num_classes == 3 and not RECIPE.targets.exclusive
    label = load_dataset("brain_tumour", "train", root=tmp_path)[0]["label"]
    assert np.array_equal(RECIPE.targets.labels(RECIPE.targets.one_hot(label[None])[0]), label)


def _file(top, what):
    return top / CASES[3] / f"{CASES[3]}-{what}.nii.gz"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda top: _file(top, "seg").unlink(),
            FileNotFoundError,
            f"1 files are missing, such as .*{CASES[3]}-seg.*val",
        ),
        (lambda top: _file(top, "t1c").unlink(), FileNotFoundError, f"{CASES[3]}-t1c"),
        (
            lambda top: save(_file(top, "seg"), np.full(SHAPE, 4, np.uint8)),
            ValueError,
            f"{CASES[3]}: label holds the v.* 4",
        ),
        (lambda top: save(_file(top, "seg"), np.full(SHAPE, 5, np.uint8)), ValueError, r"label holds \[5\]; known"),
        (
            lambda top: save(_file(top, "t2w"), np.zeros((6, 7, 4), np.uint8)),
            ValueError,
            r"channel 2 has shape \(6, 7, 4\)",
        ),
        (lambda top: save(_file(top, "t2f"), np.full(SHAPE, np.nan, np.float32)), ValueError, "channel 3 holds .* NaN"),
    ],
)
def test_bad_files_are_named(brats, tmp_path, spoil, error, message):
    spoil(brats)
    with pytest.raises(error, match=message):
        convert(brats, tmp_path / "out")


def test_another_year_is_refused(tmp_path):
    (tmp_path / "BraTS2021_00000").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no folders BraTS-GLI-.*earlier years"):
        convert(tmp_path, tmp_path / "out")


def test_without_a_source_it_says_where_to_register(tmp_path):
    with pytest.raises(ValueError, match=r"register at https://www\.synapse\.org/Synapse:syn51156910"):
        prepare("brain_tumour", tmp_path)
    table = list_recipes(tmp_path).set_index("name")
    assert table.loc["brain_tumour", "how it comes"].endswith("after registering at " + RECIPE.registration)


def test_once_prepared_no_source_is_needed(brats, tmp_path):
    folder = prepare("brain_tumour", tmp_path, source=brats, progress=False)
    assert prepare("brain_tumour", tmp_path) == folder
