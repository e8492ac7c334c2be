"""The abdomen recipe on a small tree laid out as the AMOS archive."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from data_recipes.abdomen_mri import ORGANS, RECIPE, convert
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.download import MOST_UNPACKED
from xlstm_unet_lab.data.prepare import prepare

SHAPE = (8, 7, 6)  # x, y, z
CASES = {"Tr": (1, 22, 499, 500, 507, 510, 522, 540, 590), "Va": (8, 506, 518), "Ts": (3, 511, 555)}


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.2, -1.2, 3.0, 1.0]) if affine is None else affine), path)


@pytest.fixture
def amos(tmp_path):
    """The archive without test labels; its CT cases must not be opened, for here they are no NIfTI files."""
    top = tmp_path / "amos22"
    random = np.random.default_rng(0)
    for part, numbers in CASES.items():
        for number in numbers:
            for what in ("images", "labels"):
                path = top / f"{what}{part}" / f"amos_{number:04d}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                if number < 500:
                    path.write_text("a CT case")
                elif what == "images":
                    save(path, random.integers(0, 900, SHAPE).astype(np.int16))
                elif part != "Ts":
                    save(path, (np.arange(np.prod(SHAPE)) % 16).reshape(SHAPE).astype(np.float64))
    (top / "labelsTs").mkdir(exist_ok=True)
    (top / "labelsTs" / "amos_0003.nii.gz").unlink()
    return top


def test_a_small_archive(amos, tmp_path):
    folder = prepare("abdomen_mri", tmp_path / "root", source=amos.parent, progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    voxels = 8 * int(np.prod(SHAPE)) // 16
    assert marker["counts"] == {"training": 6, "test": 2}
    assert marker["facts"] == {"voxels_made_background": {"bladder": voxels, "prostate or uterus": voxels}}
    test = load_dataset("abdomen_mri", "test", root=tmp_path / "root")
    assert test.names == ["amos_0506", "amos_0518"] and test[0]["spacing"] == (
        3.0,
        1.2,
        1.2,
    )
    # The files run to the left and to the back; what is written runs to the right and to the front.
    original = nibabel.load(amos / "labelsVa" / "amos_0506.nii.gz").get_fdata()[::-1, ::-1].T
    for name, value, _, _ in ORGANS:
        assert np.array_equal(test[0]["label"] == RECIPE.labels[name], original == value), name
    assert np.array_equal(test[0]["label"] == 0, np.isin(original, (0, 14, 15)))
    image = nibabel.load(amos / "imagesVa" / "amos_0506.nii.gz").get_fdata()[::-1, ::-1].T
    assert np.array_equal(test.raw(0)[0], image)


def test_organs_are_numbered_as_in_the_published_results():
    order = ["liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland"]
    order += ["left adrenal gland", "gallbladder", "oesophagus", "stomach", "duodenum", "left kidney"]
    assert list(RECIPE.labels) == ["background", *order]
    assert list(RECIPE.tolerances.values()) == [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
    assert sorted(value for _, value, _, _ in ORGANS) == list(range(1, 14))
    assert len(set(RECIPE.colours.values())) == 13 and RECIPE.flip_axes == ()


def test_labelled_test_cases_are_used_and_validation_may_be_missing(amos, tmp_path):
    for number in (511, 555):
        save(amos / "labelsTs" / f"amos_{number:04d}.nii.gz", np.zeros(SHAPE, np.uint8))
    shutil.rmtree(amos / "labelsVa")
    shutil.rmtree(amos / "imagesVa")
    convert(amos, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "labelsTs").iterdir()) == [
        "amos_0511.nii.gz",
        "amos_0555.nii.gz",
    ]


def _lose(top):
    (top / "labelsVa" / "amos_0518.nii.gz").unlink()


def _rename(top):
    (top / "imagesTr" / "amos_0500.nii.gz").rename(top / "imagesTr" / "amos_500.nii.gz")


def _sixteen(top):
    save(top / "labelsTr" / "amos_0507.nii.gz", np.full(SHAPE, 16, np.uint8))


def _four_dimensional(top):
    save(top / "imagesTr" / "amos_0510.nii.gz", np.zeros((*SHAPE, 2), np.uint8))


def _elsewhere(top):
    save(top / "labelsTr" / "amos_0522.nii.gz", np.zeros(SHAPE, np.uint8), np.diag([1.2, 1.2, 3.0, 1.0]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lose, r"part Va: images without a label \['amos_0518'\]"),
        (_rename, r"amos_500\.nii\.gz is not called amos_NNNN"),
        (_sixteen, r"case amos_0507: label holds \[16.0\]|case amos_0507: label holds \[16\]"),
        (_four_dimensional, r"case amos_0510: channel 0 has shape \(8, 7, 6, 2\)"),
        (_elsewhere, "case amos_0522: label lies up to .* mm off the first image"),
    ],
)
def test_bad_files_are_named(amos, tmp_path, spoil, message):
    spoil(amos)
    with pytest.raises(ValueError, match=message):
        convert(amos, tmp_path / "out")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no imagesTr; give amos22 or the folder above it"):
        convert(tmp_path, tmp_path / "out")


def test_the_archive_may_be_unpacked():
    assert 2 * RECIPE.files[0].size < MOST_UNPACKED
