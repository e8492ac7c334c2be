"""Corrections are saved: on the grid of the image, whole or not at all, where the next training finds them."""

import json
import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import tifffile
from imageio.v3 import imread, imwrite

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.images import read_label
from xlstm_unet_lab.overlays.layers import layer_data
from xlstm_unet_lab.plugin.files import KEPT, case_overlay, cases_to_show, label_file, reader, save_label, write_labels

RANDOM = np.random.default_rng(0)
TURNED = np.array([[0, -2.0, 0, 30], [0, 0, 3.0, -20], [-0.5, 0, 0, 7], [0, 0, 0, 1]])  # axes run (I, L, A)


def layers_of(shown):
    """The layers of an overlay as napari would hold them: name, data and metadata."""
    tuples = layer_data(shown)
    return {
        keywords["name"]: SimpleNamespace(data=data, name=keywords["name"], metadata=keywords["metadata"])
        for data, keywords, _ in tuples
    }


def raw_folder(folder, ending, image, label=None, labels=("liver", "spleen")):
    """A case "a" in nnU-Net's raw format, as its files are written by whoever made the image."""
    write = {
        ".nii.gz": lambda path, array: nibabel.save(nibabel.Nifti1Image(array, TURNED), path),
        ".png": imwrite,
        ".tif": lambda path, array: tifffile.imwrite(path, array, resolution=(3000, 3000), resolutionunit="CENTIMETER"),
    }[ending]
    for what, array in {"imagesTr/a_0000": image, "labelsTr/a": label}.items():
        path = folder / f"{what}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is not None:
            write(path, array)
    numbers = {"background": 0} | {name: number for number, name in enumerate(labels, start=1)}
    facts = {"channel_names": {"0": "T1"}, "labels": numbers, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder / "imagesTr" / f"a_0000{ending}"


def image_and_label(dimensions):
    size = (5, 6, 7)[-dimensions:]
    return RANDOM.integers(0, 200, size).astype(np.uint8), RANDOM.integers(0, 3, size).astype(np.uint8)


def test_a_corrected_volume_keeps_the_affine_of_its_image_and_the_first_label_is_kept(tmp_path):
    stored, label = image_and_label(3)
    image = raw_folder(tmp_path, ".nii.gz", stored, label)
    layer = layers_of(case_overlay(image))["truth"]
    layer.data[0, 1, 2] = (layer.data[0, 1, 2] + 1) % 3  # the patient's lowest, second from the back, third from left
    path = save_label(layer)
    assert path == tmp_path / "labelsTr" / "a.nii.gz"
    saved = nibabel.load(path)
    np.testing.assert_array_equal(saved.affine, TURNED)
    changed = np.argwhere(np.asarray(saved.dataobj) != label)
    assert len(changed) == 1 and saved.get_data_dtype() == np.uint8
    lowest_x, lowest_y, lowest_z = (
        np.sort(np.unique(nibabel.affines.apply_affine(TURNED, list(np.ndindex(stored.shape)))[:, axis]))
        for axis in range(3)
    )
    np.testing.assert_allclose(
        nibabel.affines.apply_affine(TURNED, changed[0]), [lowest_x[2], lowest_y[1], lowest_z[0]]
    )
    kept = tmp_path / f"labelsTr{KEPT}" / "a.nii.gz"
    np.testing.assert_array_equal(np.asarray(nibabel.load(kept).dataobj), label)
    layer.data[:] = 0
    save_label(layer)
    np.testing.assert_array_equal(np.asarray(nibabel.load(kept).dataobj), label)
    assert not read_label(path)[0].any() and not list(tmp_path.rglob(".partial*"))


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_corrected_picture_is_of_its_images_kind(tmp_path, ending):
    stored, label = image_and_label(2)
    image = raw_folder(tmp_path, ending, stored)
    drawn = SimpleNamespace(data=label.astype(int), name="by hand", metadata={"file": image})
    path = save_label(drawn)
    assert path == tmp_path / "labelsTr" / f"a{ending}" and not (tmp_path / f"labelsTr{KEPT}").exists()
    np.testing.assert_array_equal(imread(path), label)
    np.testing.assert_array_equal(case_overlay(image).truth, label)
    if ending == ".tif":
        with tifffile.TiffFile(path) as file:
            assert file.pages[0].tags["XResolution"].value == (3000, 1)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/scan.nii.gz", "labels/scan.nii.gz"),
        ("images/photo.jpg", "labels/photo.png"),
        ("elsewhere/cells.tiff", "elsewhere/labels/cells.tif"),
        ("imagesTs/a_0000.nii", "labelsTs/a.nii"),
    ],
)
def test_a_label_lies_where_data_sets_are_read_from(tmp_path, image, label):
    assert label_file(tmp_path / image) == tmp_path / label


def test_the_next_training_sees_what_was_saved(tmp_path):
    folder = lab.load_dataset("phantom_microscopy", "train").folder
    shutil.copytree(folder, tmp_path / folder.name)
    cases = lab.load_dataset("phantom_microscopy", "train", tmp_path, cache_bytes=0)  # kept as files
    before = cases[0]["label"]
    image = cases.folder / "imagesTr" / f"{cases.names[0]}_0000.png"
    layer = layers_of(case_overlay(image))["truth"]
    np.testing.assert_array_equal(layer.data, before)
    layer.data[:5] = 2
    save_label(layer)
    after = lab.load_dataset("phantom_microscopy", "train", tmp_path, cache_bytes=0)[0]["label"]
    assert (after[:5] == 2).all() and (after[5:] == before[5:]).all() and (before[:5] != 2).any()
    assert (case_overlay(image).truth[:5] == 2).all()


def save_as(layer, path):
    return write_labels(str(path), layer.data, {"name": layer.name, "metadata": layer.metadata})


def test_naparis_save_writes_where_it_is_told(tmp_path):
    stored, label = image_and_label(3)
    layer = layers_of(case_overlay(raw_folder(tmp_path, ".nii.gz", stored, label)))["truth"]
    assert save_as(layer, tmp_path / "mine.nii.gz") == [str(tmp_path / "mine.nii.gz")]
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "mine.nii.gz").dataobj), label)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({}, "mine.nii", r"cannot become .*mine\.nii: its image .* has \(5, 7, 6\), and labels that end in \.nii\.gz"),
        ({}, "mine.png", r"labels that end in \.nii\.gz"),
        ({}, "mine.dcm", "an ending that cannot be read"),
        (
            {"data": np.full((5, 7, 6), 9)},
            "mine.nii.gz",
            r"layer 'truth' holds \[9\]: paint with one of the labels \{1: 'liver', 2: 'spleen'\}",
        ),
        ({"data": np.zeros((5, 7, 4), int)}, "mine.nii.gz", r"layer 'truth' of shape \(5, 7, 4\) cannot become"),
        ({"data": np.zeros((6, 5), int)}, "mine.nii.gz", "3 spatial dimensions; 2 are expected"),
        ({"metadata": {}}, "mine.nii.gz", "nobody knows on which file layer 'truth' was drawn: open the image"),
    ],
)
def test_what_would_be_no_label_of_the_image_is_refused(tmp_path, change, name, words):
    stored, label = image_and_label(3)
    layer = layers_of(case_overlay(raw_folder(tmp_path, ".nii.gz", stored, label)))["truth"]
    vars(layer).update(change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((OSError, ValueError), match=words):
        save_as(layer, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_save_that_is_stopped_leaves_the_label_as_it_was(tmp_path, monkeypatch):
    stored, label = image_and_label(3)
    layer = layers_of(case_overlay(raw_folder(tmp_path, ".nii.gz", stored, label)))["truth"]
    layer.data[:] = 0
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_label(layer)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "labelsTr" / "a.nii.gz").dataobj), label)
    assert not list(tmp_path.rglob(".partial*"))


def test_a_folder_of_labels_that_lies_elsewhere_is_left_alone(tmp_path):
    stored, label = image_and_label(2)
    image = raw_folder(tmp_path / "set", ".png", stored, label)
    (tmp_path / "set" / "labelsTr").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "labelsTr").symlink_to(tmp_path / "elsewhere")
    layer = layers_of(case_overlay(image))["truth"]
    layer.data[:] = 0
    with pytest.raises(OSError, match="labelsTr is a link that leads elsewhere: save the layer there by"):
        save_label(layer)
    np.testing.assert_array_equal(imread(tmp_path / "elsewhere" / "a.png"), label)


def test_any_volume_is_opened_with_the_label_beside_it(tmp_path):
    stored, label = image_and_label(3)
    label[:] = 0
    label[1:4, 1:4, 1:5], label[1:4, 1:4, 3:5] = 1, 2
    raw_folder(tmp_path, ".nii.gz", stored, label)
    (tmp_path / "imagesTr").rename(tmp_path / "images")
    (tmp_path / "labelsTr").rename(tmp_path / "labels")
    image = tmp_path / "images" / "a_0000.nii.gz"
    names = [keywords["name"] for _, keywords, _ in reader(str(image))(str(image))]
    assert names == ["channel 0", "truth"]
    assert case_overlay(image).labels == {"label 1": (1,), "label 2": (2,)}


def test_the_cases_of_a_folder_are_listed_by_name(tmp_path):
    stored, _ = image_and_label(2)
    first = raw_folder(tmp_path, ".png", stored)
    imwrite(first.with_name("b_0000.png"), stored)
    for source in (tmp_path, first.parent):
        found = cases_to_show(source)
        assert [file.name for file, _, _ in found] == ["a_0000.png", "b_0000.png"]
        assert all(facts == [None, None] for _, *facts in found)
