"""Data sets and normalisation."""

import dataclasses
import json
import tracemalloc

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.augment import PatchDataset
from xlstm_unet_lab.data.dataset import SegmentationDataset, load_dataset
from xlstm_unet_lab.data.images import read_case
from xlstm_unet_lab.data.normalise import Normalised, normalise
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import get_recipe

# normalise


@settings(deadline=None, max_examples=30)
@given(
    shape=st.sampled_from([(1, 8, 9), (3, 5, 7), (2, 4, 5, 6)]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6, 1e30]),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_normalise_gives_mean_0_deviation_1_and_applied_twice_changes_nothing(shape, scale, offset, seed):
    image = (np.random.default_rng(seed).normal(size=shape) + offset) * scale
    once = normalise(image)
    axes = tuple(range(1, len(shape)))
    assert once.dtype == np.float32 and once.shape == shape
    np.testing.assert_allclose(once.mean(axis=axes, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(once.std(axis=axes, dtype=np.float64), 1, atol=1e-6)
    np.testing.assert_allclose(normalise(once), once, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float16, np.float32, np.float64])
def test_normalise_takes_any_number_type_and_knows_the_answer(dtype):
    image = np.array([[[1, 3], [1, 3]]], dtype)
    assert np.array_equal(normalise(image), np.array([[[-1, 1], [-1, 1]]], np.float32))
    assert image[0, 0, 0] == 1, "the input is left as it was"


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e8])
def test_a_constant_channel_becomes_zeros(value):
    image = np.stack([np.full((6, 7), value, np.float32), np.arange(42, dtype=np.float32).reshape(6, 7)])
    assert not normalise(image)[0].any() and normalise(image)[1].std() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float16, ">f4", np.float64])
@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_pieces_give_what_the_whole_channel_gives_in_any_layout(dtype, order):
    values = np.random.default_rng(3).normal(100, 30, size=(2, 5, 130, 140)).clip(0, 255).astype(dtype)
    image = values[:, ::-1, :, ::-2] if order == "reversed" else np.asarray(values, order=order)
    exact = image.astype(np.float64)
    axes = {"axis": (1, 2, 3), "keepdims": True}
    exact = ((exact - exact.mean(**axes)) / exact.std(**axes)).astype(np.float32)
    np.testing.assert_allclose(normalise(image), exact, rtol=3e-7, atol=1e-12)
    part = (slice(None), slice(1, 3), slice(7, 60), slice(2, 4))
    assert np.array_equal(Normalised(image)[part], normalise(image)[part])


@pytest.mark.parametrize("size", [(40, 128, 128), (1, 600, 900), (700, 1000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_normalising_takes_at_most_4_bytes_a_voxel_beside_image_and_result(size, dtype):
    image = np.random.default_rng(0).integers(200, size=(1, *size)).astype(dtype)
    tracemalloc.start()
    try:
        result = normalise(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < 4 * image.size


def test_channels_are_normalised_apart():
    image = np.random.default_rng(0).normal(size=(2, 6, 7))
    assert np.array_equal(normalise(image)[1:], normalise(image[1:]))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((5, 6)), ValueError, r"shape \(5, 6\); give \(C, y, x\).*image\[None\]"),
        (np.zeros((1, 2, 3, 4, 5)), ValueError, r"shape \(1, 2, 3, 4, 5\)"),
        (np.zeros((1, 0, 6)), ValueError, r"shape \(1, 0, 6\)"),
        (np.full((1, 2, 2), np.nan), ValueError, r"4 values that are NaN or infinite, the first at \(0, 0, 0\)"),
        (np.array([[[0, 1], [np.inf, 2]]]), ValueError, r"1 values .* first at \(0, 1, 0\)"),
        (np.zeros((1, 2, 2), bool), TypeError, "of dtype bool, expected an array of integers or floats"),
        (np.zeros((1, 2, 2), complex), TypeError, "of dtype complex128, expected an array"),
        (torch.zeros(1, 2, 2), TypeError, "is tensor.*expected ndarray of NumPy's"),
    ],
)
def test_normalise_bad_input(image, error, message):
    with pytest.raises(error, match=message):
        normalise(image)


# Reading


def toy_recipe(**changes):
    return dataclasses.replace(get_recipe("phantom_microscopy"), name="toy", dataset_id=998, **changes)


@pytest.fixture(scope="module")
def colour_set(tmp_path_factory):
    def convert(source, out, track):
        random = np.random.default_rng(0)
        for number in range(12):
            image = random.integers(0, 256, (10 + number, 14, 3), dtype=np.uint8)
            label = random.integers(0, 3, image.shape[:2], dtype=np.uint8)
            instances = random.integers(0, 300, image.shape[:2]) if number else None
            write_case(out, "Tr" if number < 10 else "Ts", f"case_{number:02d}", image, label, instances)
        return {}

    root = tmp_path_factory.mktemp("colour")
    recipe = toy_recipe(channel_names=("R", "G", "B"), convert=convert)
    prepare(recipe, root, progress=False)
    return recipe, root


def test_items_of_a_colour_set(colour_set):
    recipe, root = colour_set
    dataset = load_dataset(recipe, "all", root)
    assert len(dataset) == 10 and dataset.recipe is recipe and dataset.names[-1] == "case_09"
    item = dataset[3]
    assert item["image"].shape == (3, 13, 14) and item["image"].dtype == torch.float32
    assert item["label"].shape == (13, 14) and item["label"].dtype == torch.int64
    assert item["spacing"] == (1.0, 1.0) and item["name"] == "case_03"
    assert np.array_equal(item["image"].numpy(), normalise(dataset.raw(3)))
    assert dataset.instances(3).dtype == np.int32 and dataset.instances(3).max() > 255
    assert dataset[-1]["name"] == "case_09" and len(list(dataset)) == 10
    with pytest.raises(IndexError, match="case 10 was asked for; the data set has 10 cases"):
        dataset[10]
    with pytest.raises(IndexError, match="case -11"):
        dataset.raw(-11)


@pytest.mark.parametrize("cache_bytes", [0, 2000, 2**30])
def test_the_cache_changes_nothing_and_is_not_handed_out(colour_set, cache_bytes):
    dataset = load_dataset(*colour_set[:1], "all", colour_set[1], cache_bytes=cache_bytes)
    first = [dataset[k] for k in range(10)]
    for item in first:
        item["image"].zero_(), item["label"].zero_()
    assert all(dataset[k]["image"].any() and dataset[k]["label"].any() for k in range(10))


def test_splits_are_disjoint_and_complete(colour_set):
    recipe, root = colour_set
    every = load_dataset(recipe, "all", root).names
    held_out = []
    for fold in range(5):
        train, val = (load_dataset(recipe, split, root, fold=fold).names for split in ("train", "val"))
        assert sorted(train + val) == every and (len(train), len(val)) == (8, 2)
        held_out += val
    assert sorted(held_out) == every
    assert load_dataset(recipe, "test", root).names == ["case_10", "case_11"]


def test_load_dataset_bad_input(colour_set, tmp_path):
    recipe, root = colour_set
    with pytest.raises(ValueError, match="split is 'validation': did you mean 'val'\\? there are train, val"):
        load_dataset(recipe, "validation", root)
    with pytest.raises(ValueError, match="fold is 5, expected a whole number from 0 to 4"):
        load_dataset(recipe, "val", root, fold=5)
    with pytest.raises(KeyError, match=r"did you mean .*phantom_microscopy"):
        load_dataset("phantom", "train", root)
    with pytest.raises(FileNotFoundError, match=r"not prepared .*prepare\('nuclei'\) .*xlstm-unet-lab prepare nuclei "):
        load_dataset("nuclei", "train", tmp_path)


def test_a_spoilt_folder_is_named(colour_set):
    recipe, root = colour_set
    dataset = load_dataset(recipe, "all", root)
    wrong = dataclasses.replace(recipe, channel_names=("R", "G"))
    with pytest.raises(ValueError, match=r"case_00\.png .* expected the same grid and 2 channels"):
        SegmentationDataset(wrong, dataset.folder, "Tr", dataset.names)[0]
    fewer = {"background": 0, "interior": 1}
    wrong = dataclasses.replace(recipe, labels=fewer, colours={"interior": "#0072B2"}, tolerances={"interior": 1.0})
    with pytest.raises(ValueError, match=r"case_00\.png holds \[2\]; known are"):
        SegmentationDataset(wrong, dataset.folder, "Tr", dataset.names)[0]
    with pytest.raises(FileNotFoundError, match=r"nobody_0000\.png is missing"):
        SegmentationDataset(recipe, dataset.folder, "Tr", ["nobody"])[0]
    with pytest.raises(FileNotFoundError, match="toy has no instance maps"):
        SegmentationDataset(recipe, dataset.folder / "imagesTr", "Tr", dataset.names).instances(0)


def write_nifti(path, array, spacing=(3.0, 2.0, 1.0)):
    """array and spacing in the order (z, y, x)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.transpose(), np.diag([*reversed(spacing), 1.0])), path)


@pytest.fixture
def volume_set(tmp_path):
    """One case of two channels, as a recipe of volumes would write it: label stored as floats, intensities scaled."""
    recipe = toy_recipe(spatial_dims=3, file_ending=".nii.gz", spacing_unit="mm", channel_names=("T1", "T2"))
    random = np.random.default_rng(0)
    image = random.normal(size=(2, 4, 5, 6)).astype(np.float32)
    label = random.integers(0, 3, (4, 5, 6)).astype(np.float32)
    for channel in range(2):
        write_nifti(tmp_path / "imagesTr" / f"a_{channel:04d}.nii.gz", image[channel])
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz", label)
    return SegmentationDataset(recipe, tmp_path, "Tr", ["a"]), image, label


def test_volumes_come_in_z_y_x_order_with_their_spacing(volume_set):
    dataset, image, label = volume_set
    item = dataset[0]
    assert item["spacing"] == (3.0, 2.0, 1.0)
    assert np.array_equal(dataset.raw(0), image) and np.array_equal(item["image"].numpy(), normalise(image))
    assert np.array_equal(item["label"].numpy(), label) and item["label"].dtype == torch.int64


def test_the_affine_says_the_spacing_whatever_the_header_has_beside_it(volume_set):
    dataset, _, _ = volume_set
    path = dataset.folder / "imagesTr" / "a_0000.nii.gz"
    volume = nibabel.load(path)
    volume.header.set_zooms((9.0, 9.0, 9.0))
    volume.header["qform_code"] = 0
    nibabel.save(nibabel.Nifti1Image.from_bytes(volume.to_bytes()), path)
    assert nibabel.load(path).header.get_zooms() == (9.0, 9.0, 9.0)
    assert read_case(path).spacing == (3.0, 2.0, 1.0)


def test_channels_on_different_grids_are_refused(volume_set):
    dataset, image, _ = volume_set
    write_nifti(dataset.folder / "imagesTr" / "a_0001.nii.gz", image[1], spacing=(3.0, 2.0, 1.5))
    with pytest.raises(ValueError, match=r"a_0001\.nii\.gz lies up to 2\.5 mm off the first image"):
        dataset[0]


def test_it_trains_on_a_prepared_set(colour_set):
    recipe, root = colour_set
    patches = PatchDataset(load_dataset(recipe, "train", root), (16, 16), 4, seed=0)
    batch = next(iter(DataLoader(patches, batch_size=4)))
    assert batch["image"].shape == (4, 3, 16, 16) and batch["label"].shape == (4, 16, 16)
    assert json.dumps(batch["name"])
