"""nnU-Net's raw format: volumes, grids, labels, names of files, folds."""

import dataclasses
import itertools
import json

import nibabel
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_recipes.shared.conversion import layout_root
from data_recipes.shared.writing import write_volume
from xlstm_unet_lab.data.dataset import SegmentationDataset
from xlstm_unet_lab.data.files import check_pairs, files_by_name
from xlstm_unet_lab.data.images import whole_label
from xlstm_unet_lab.data.nnunet_raw import write_splits
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.data.volumes import check_grid, load_volume, voxels

SHAPE, SIZES = (4, 5, 6), (1.0, 2.0, 3.0)  # x, y, z
VALUES = {0, 1, 2}


def volume(array, affine=None):
    return nibabel.Nifti1Image(array, np.diag([*SIZES, 1.0]) if affine is None else affine)


@pytest.fixture
def image():
    return volume(np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16))


@pytest.fixture
def label():
    return volume(np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8))


def read_back(folder, recipe, name="a"):
    return SegmentationDataset(recipe, folder, "Tr", [name])


@pytest.fixture
def recipe():
    return dataclasses.replace(get_recipe("hippocampus"), name="toy", dataset_id=998)


# Volumes


@pytest.mark.parametrize("turn", [*list(itertools.permutations(range(3)))[::2], (1, 0, 2)])
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3))[::3])
def test_any_orientation_is_written_canonical_and_lies_where_it_lay(tmp_path, recipe, image, label, turn, flips):
    orientation = np.column_stack([turn, flips])
    dataset = None
    for name, turned in (("straight", lambda one: one), ("turned", lambda one: one.as_reoriented(orientation))):
        write_volume(tmp_path, "Tr", name, [turned(image)], turned(label), VALUES)
        written = nibabel.load(tmp_path / f"imagesTr/{name}_0000.nii.gz")
        assert nibabel.aff2axcodes(written.affine) == ("R", "A", "S")
        np.testing.assert_allclose(written.affine, image.affine)
        dataset = read_back(tmp_path, recipe, name)
        assert dataset[0]["spacing"] == SIZES[::-1]
        assert np.array_equal(dataset.raw(0)[0], np.asarray(image.dataobj).T)
        assert np.array_equal(dataset[0]["label"], np.asarray(label.dataobj).T)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        *((dtype, dtype) for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32)),
        *((dtype, np.float32) for dtype in (np.int8, np.uint32, np.float64, np.dtype(">f4"))),
    ],
)
def test_intensities_keep_their_value(tmp_path, label, dtype, stored):
    values = (np.arange(np.prod(SHAPE)) - (0 if np.dtype(dtype).kind == "u" else 50)).reshape(SHAPE).astype(dtype)
    write_volume(tmp_path, "Ts", "a", [volume(values)], label, VALUES)
    written = nibabel.load(tmp_path / "imagesTs/a_0000.nii.gz")
    assert written.get_data_dtype() == stored and np.array_equal(np.asarray(written.dataobj), values)
    assert written.header.get_xyzt_units()[0] == "mm"
    assert nibabel.load(tmp_path / "labelsTs/a.nii.gz").get_data_dtype() == np.uint8


def test_scaled_intensities_are_unscaled(tmp_path, image, label):
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    scaled = load_volume(tmp_path / "scaled.nii.gz")
    write_volume(tmp_path, "Tr", "a", [scaled], label, VALUES)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "imagesTr/a_0000.nii.gz").get_fdata(), scaled.get_fdata())


def test_several_channels_share_the_grid_of_the_first(tmp_path, recipe, image, label):
    rounded = np.diag([*SIZES, 1.0])
    rounded[:3, 3] = 0.01, -0.02, 0.03
    channels = [image, volume(np.asarray(image.dataobj) * 2, rounded)]
    write_volume(tmp_path, "Tr", "a", channels, volume(np.asarray(label.dataobj), rounded), VALUES)
    dataset = read_back(tmp_path, dataclasses.replace(recipe, channel_names=("one", "two")))
    assert np.array_equal(dataset.raw(0)[1], dataset.raw(0)[0] * 2)
    for path in ("imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"):
        assert np.array_equal(nibabel.load(tmp_path / path).affine, image.affine)


def test_a_volume_of_three_slices(tmp_path, recipe):
    thin, label = np.ones((8, 9, 3), np.float32), np.zeros((8, 9, 3), np.uint8)
    write_volume(tmp_path, "Tr", "a", [volume(thin)], volume(label), VALUES)
    assert read_back(tmp_path, recipe)[0]["image"].shape == (1, 3, 9, 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_labels_of_whole_numbers_are_accepted_in_any_dtype(tmp_path, recipe, image, label, dtype):
    whole = np.asarray(label.dataobj)
    write_volume(tmp_path, "Tr", "a", [image], volume(whole.astype(dtype)), VALUES)
    assert np.array_equal(read_back(tmp_path, recipe)[0]["label"], whole.T)


def moved(by):
    affine = np.diag([*SIZES, 1.0])
    affine[0, 3] = by
    return affine


def with_value(array, value):
    array = array.copy()
    array[1, 2, 3] = value
    return array


ZEROS, NUMBERS = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
CENTIMETRES = volume(ZEROS)
CENTIMETRES.header.set_xyzt_units("meter")
COLOURS = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("images", "label", "message"),
    [
        ([volume(ZEROS[..., None])], volume(ZEROS), r"case a: channel 0 has shape \(4, 5, 6, 1\); one three-dim"),
        ([volume(ZEROS)], volume(ZEROS[..., :5]), r"case a: label has shape \(4, 5, 5\), the first image \(4, 5, 6\)"),
        ([volume(ZEROS)], volume(ZEROS, moved(0.5)), r"case a: label lies up to 0.5 mm off the first image.*resample"),
        ([volume(ZEROS)], volume(ZEROS, np.diag([-1.0, 2, 3, 1])), "case a: label lies up to 6 mm off"),
        ([volume(ZEROS), volume(ZEROS, np.diag([1.0, 2, 3.1, 1]))], volume(ZEROS), "case a: channel 1 lies up to 0.5"),
        (
            [CENTIMETRES],
            volume(ZEROS),
            r"channel 0 has voxels of \[1.0, 2.0, 3.0\] meter; sizes from 1e-6 to 1e6 in mm",
        ),
        ([volume(COLOURS)], volume(ZEROS), "channel 0 holds values of type .*; integers or floats are expected"),
        (
            [volume(with_value(NUMBERS, np.nan))],
            volume(ZEROS),
            r"channel 0 holds 1 values that are NaN or infinite, the first at",
        ),
        (
            [volume(with_value(NUMBERS.astype(float), 1e300))],
            volume(ZEROS),
            r"channel 0 holds 1 values that are NaN or infinite, the first at",
        ),
        ([volume(ZEROS)], volume(with_value(ZEROS, 3)), r"case a: label holds \[3\]; known are \[0, 1, 2\]"),
        ([volume(ZEROS)], volume(with_value(NUMBERS, 0.5)), r"case a: label holds \[0.5\]; a label holds whole"),
        ([volume(ZEROS)], volume(with_value(NUMBERS, np.nan)), r"case a: label holds 1 values that are NaN"),
        ([volume(ZEROS)], volume(with_value(NUMBERS, 257)), r"case a: label holds \[257\]"),
        ([volume(ZEROS)], volume(with_value(NUMBERS, -1)), r"case a: label holds \[-1.0\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_volume_that_does_not_fit_is_refused_and_nothing_written(tmp_path, images, label, message):
    with pytest.raises(ValueError, match=message):
        write_volume(tmp_path, "Tr", "a", images, label, VALUES)
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_voxels_without_a_size_are_refused(tmp_path, label):
    nibabel.save(volume(ZEROS), tmp_path / "flat.nii")
    content = (tmp_path / "flat.nii").read_bytes()
    (tmp_path / "flat.nii").write_bytes(content[:296] + bytes(16) + content[312:])  # the header's second affine row
    with pytest.raises(
        ValueError, match=r"channel 0 has voxels of \[1.0, 0.0, 3.0\] unknown; sizes from 1e-6 to 1e6 in mm"
    ):
        write_volume(tmp_path, "Tr", "a", [load_volume(tmp_path / "flat.nii")], label, VALUES)


def test_part_and_name_are_checked(tmp_path, image, label):
    with pytest.raises(ValueError, match="part is 'Va'"):
        write_volume(tmp_path, "Va", "a", [image], label, VALUES)
    write_volume(tmp_path, "Tr", "a", [image], label, VALUES)
    with pytest.raises(ValueError, match="case a was written already"):
        write_volume(tmp_path, "Tr", "a", [image], label, VALUES)


@settings(deadline=None, max_examples=30)
@given(shift=st.floats(0, 2), axis=st.integers(0, 2), oblique=st.booleans())
def test_grids_are_one_up_to_a_tenth_of_the_smallest_voxel(shift, axis, oblique):
    assume(abs(shift - 0.1) > 1e-6)  # just there rounding decides
    affine = np.diag([*SIZES, 1.0])
    if oblique:
        affine[:2, :2] = np.array([[0.8, -0.6], [0.6, 0.8]]) @ affine[:2, :2]
    other = affine.copy()
    other[axis, 3] += shift
    if shift <= 0.1:
        check_grid("label", volume(ZEROS, other), volume(ZEROS, affine))
    else:
        with pytest.raises(ValueError, match="label lies up to"):
            check_grid("label", volume(ZEROS, other), volume(ZEROS, affine))


def test_a_file_that_breaks_off_or_is_no_volume_is_named(tmp_path):
    path = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).normal(size=(40, 40, 40))
    nibabel.save(volume(noise), path)
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ValueError, match=r"a\.nii\.gz cannot be read: .*; get it again"):
        voxels("case a: image", load_volume(path))
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"a\.nii\.gz is not a NIfTI file that can be read"):
        load_volume(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.nii"):
        load_volume(tmp_path / "missing.nii")


def test_whole_label_of_known_numbers():
    label = whole_label("label", np.array([[0.0, 14.0], [255.0, 0.0]]), {0, 14, 255})
    assert label.dtype == np.uint8 and label.tolist() == [[0, 14], [255, 0]]


# Names of files


def test_files_by_name_leaves_out_what_is_hidden_and_what_is_no_file(tmp_path):
    for name in ("b.nii.gz", "a-1.nii.gz", "a.NII.GZ", "._a.nii.gz", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii.gz").mkdir()
    assert list(files_by_name(tmp_path, (".nii.gz", ".nii"))) == ["a", "a-1", "b"]
    (tmp_path / "b.nii").touch()
    with pytest.raises(ValueError, match=r"holds both b\.nii and b\.nii\.gz; keep one"):
        files_by_name(tmp_path, (".nii.gz", ".nii"))
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing; a folder of \.png files"):
        files_by_name(tmp_path / "nowhere", (".png",))


def test_check_pairs_names_what_is_alone():
    check_pairs("here", {"a", "b"}, {"b", "a"})
    with pytest.raises(ValueError, match=r"here: images without a label \['b'\], labels without an image \['c'\]"):
        check_pairs("here", {"a", "b"}, {"a", "c"})


def test_layout_root_is_the_folder_or_the_one_above(tmp_path):
    (tmp_path / "Task" / "imagesTr").mkdir(parents=True)
    assert layout_root(tmp_path, "Task", "imagesTr") == layout_root(tmp_path / "Task", "Task", "imagesTr")
    with pytest.raises(FileNotFoundError, match="holds no labelsTr; give Task or the folder above it"):
        layout_root(tmp_path, "Task", "labelsTr")


# Folds


def test_folds_keep_groups_together(tmp_path, image, label):
    names = [f"{patient}-{time}" for patient in "abcdefg" for time in range(2)]
    for name in names:
        write_volume(tmp_path, "Tr", name, [image], label, VALUES)
    write_splits(tmp_path, ".nii.gz", group=lambda name: name[0])
    folds = json.loads((tmp_path / "splits_final.json").read_text())
    assert folds[0]["val"] == ["a-0", "a-1", "f-0", "f-1"] and folds[4]["val"] == ["e-0", "e-1"]
    assert all(sorted(fold["train"] + fold["val"]) == names for fold in folds)
    with pytest.raises(ValueError, match="14 training cases in 2 groups that must stay together were found; 5 folds"):
        write_splits(tmp_path, ".nii.gz", group=lambda name: name[2])
