"""The hippocampus recipe on real files, and on copies of them that were spoilt."""

import io
import json
import shutil
import tarfile

import nibabel
import numpy as np
import pytest
import torch

from data_recipes.hippocampus import BLOCK, HELD_OUT, RECIPE, convert
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare

FLOAT_LABELS = 2  # in the whole archive; the real data at hand hold at least one


@pytest.fixture(scope="module")
def original(real_data, tmp_path_factory):
    """Thirteen real cases, one with a label of floats among them, with the clutter of an archive packed on a Mac."""
    real = real_data / "hippocampus" / "Task04_Hippocampus"
    paths = sorted((real / "labelsTr").glob("*.nii.gz"))
    floats = [path for path in paths if nibabel.load(path).get_data_dtype().kind == "f"]
    assert 1 <= len(floats) <= FLOAT_LABELS
    chosen = [path.name for path in [*floats, *(path for path in paths if path not in floats)][:13]]
    top = tmp_path_factory.mktemp("original") / "Task04_Hippocampus"
    for folder in ("imagesTr", "labelsTr"):
        (top / folder).mkdir(parents=True)
        for name in chosen:
            shutil.copy(real / folder / name, top / folder)
            (top / folder / f"._{name}").write_bytes(b"\0\5\x16\7")
    (top / "imagesTs").mkdir()
    (top / "dataset.json").write_text("{}")
    return top


@pytest.fixture
def spoilt(original, tmp_path):
    return shutil.copytree(original, tmp_path / "spoilt")


def test_real_cases(original, tmp_path):
    folder = prepare("hippocampus", tmp_path, source=original.parent, progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["counts"] == {"training": 10, "test": 3}
    names = sorted(path.name.removesuffix(".nii.gz") for path in (original / "labelsTr").glob("[!.]*"))
    train, test = (load_dataset("hippocampus", split, root=tmp_path) for split in ("all", "test"))
    assert test.names == [names[position] for position in HELD_OUT] and sorted(train.names + test.names) == names
    for dataset in (train, test):
        for index, item in enumerate(dataset):
            image, label = (
                nibabel.load(original / f"{what}Tr" / f"{item['name']}.nii.gz") for what in ("images", "labels")
            )
            assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")  # so that nothing was turned
            assert item["spacing"] == (1.0, 1.0, 1.0)
            assert np.array_equal(dataset.raw(index)[0], np.asarray(image.dataobj, np.float32).T)
            assert np.array_equal(item["label"], np.asarray(label.dataobj).T)
            assert item["label"].unique().tolist() == [0, 1, 2]
            # Axes are (z, y, x), y to the front: that is what the names of the two labels say.
            front, back = ((item["label"] == value).nonzero().double().mean(0)[1] for value in (1, 2))
            assert front > back
            assert item["image"].std() == pytest.approx(1, abs=1e-3) and item["image"].dtype == torch.float32


@pytest.mark.parametrize(("cases", "test"), [(208, 48), (260, 60)])
def test_share_held_out(cases, test):
    assert sum(position % BLOCK in HELD_OUT for position in range(cases)) == test


def test_the_archive_itself_may_be_the_source(original, tmp_path):
    archive = tmp_path / "Task04_Hippocampus.tar"
    with tarfile.open(archive, "w") as bundle:
        bundle.add(original, original.name)
    folder = prepare("hippocampus", tmp_path, source=archive, progress=False)
    assert json.loads((folder / "recipe.json").read_text())["source"]["kind"] == "archive"
    assert len(list((folder / "imagesTr").iterdir())) == 10


@pytest.mark.parametrize("member", [None, "Task04_Hippocampus/readme.txt"])
def test_an_archive_without_cases(tmp_path, member):
    archive = tmp_path / "Task04_Hippocampus.tar"
    with tarfile.open(archive, "w") as bundle:
        if member:
            bundle.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(FileNotFoundError, match="holds no imagesTr; give Task04_Hippocampus or the folder above"):
        prepare("hippocampus", tmp_path, source=archive, progress=False)
    assert not RECIPE.folder(tmp_path).exists()


def test_a_missing_label_is_named(spoilt, tmp_path):
    lost = sorted((spoilt / "labelsTr").glob("[!.]*"))[2]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"images without a label \['{lost.name[:15]}'\]"):
        convert(spoilt, tmp_path / "out")


def _half(label):
    return label * 0.5


def _unknown(label):
    return np.where(label == 2, 3, label).astype(np.float32)


def _cut(label):
    return label[:, :, :-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_half, r"label holds \[0.5\]; a label holds whole numbers"),
        (_unknown, r"label holds \[3\]"),
        (_cut, r"label has shape .*, the first image"),
    ],
)
def test_a_spoilt_label_is_named(spoilt, tmp_path, change, message):
    path = sorted((spoilt / "labelsTr").glob("[!.]*"))[4]
    label = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(label.dataobj)), label.affine), path)
    with pytest.raises(ValueError, match=f"case {path.name[:15]}: {message}"):
        convert(spoilt, tmp_path / "out")


def test_what_the_recipe_says():
    assert RECIPE.num_classes == 3 and RECIPE.files[0].address.startswith("https://") and RECIPE.flip_axes == (2,)
