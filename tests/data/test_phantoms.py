"""Phantoms: the same everywhere, and with the difficulties they promise."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_recipes import phantom_microscopy
from data_recipes.phantom_microscopy import microscopy
from data_recipes.shared.instances import interior_and_boundary
from xlstm_unet_lab.data.dataset import load_dataset

SIZES = {2: (128, 160), 3: (20, 48, 56)}
DIGESTS = {  # sha256 of the instance map of seed 5, little-endian int32
    2: "ca5d5f8e046f98e72b5b543edcc779e8a3241f59601873537e132235c09357c8",
    3: "d5a512bc236c7efc2b10b97271463f5a80a4ee1f52227f93612b3d759048c6fa",
}
LEVELS = {2: (50.20, 46.06), 3: (58.49, 46.64)}  # mean and deviation of the image of seed 5


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_seed_gives_the_same_labels_on_every_machine(spatial_dims):
    image, instances = microscopy(5, SIZES[spatial_dims], radius=6.0)
    assert hashlib.sha256(instances.astype("<i4").tobytes()).hexdigest() == DIGESTS[spatial_dims]
    # The noise goes through more arithmetic, whose last digit may differ between machines.
    assert (image.mean(), image.std()) == pytest.approx(LEVELS[spatial_dims], rel=0.01)
    again, same = microscopy(5, SIZES[spatial_dims], radius=6.0)
    assert np.array_equal(image, again) and np.array_equal(instances, same)
    assert not np.array_equal(instances, microscopy(6, SIZES[spatial_dims], radius=6.0)[1])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([(64, 64), (33, 90), (8, 40, 33), (16, 32, 32)]))
def test_shapes_types_and_one_piece_each(seed, size):
    image, instances = microscopy(seed, size, radius=5.0)
    assert image.shape == instances.shape == size
    assert image.dtype == np.float32 and instances.dtype == np.int32
    assert image.min() >= 0 and image.max() <= 255 and np.array_equal(image, np.rint(image))
    assert set(np.unique(instances)) == set(range(instances.max() + 1)) and instances.max() > 0
    assert all(ndimage.label(instances == number)[1] == 1 for number in range(1, instances.max() + 1))


def test_the_difficulties_are_there():
    pairs = [microscopy(seed) for seed in range(6)]
    touching, dim, corners, grain = [], [], [], []
    for image, instances in pairs:
        cells = ndimage.maximum_filter(instances, 3)
        neighbours = (instances > 0) & (cells != instances) & (cells > 0)
        touching.append(len(np.unique(instances[neighbours])) / instances.max())
        light = ndimage.mean(image, instances, range(1, instances.max() + 1))
        dim.append(light.min() / light.max())
        background = np.where(instances == 0, image, np.nan)
        quarters = [np.nanmedian(background[y : y + 64, x : x + 64]) for y in (0, 192) for x in (0, 192)]
        corners.append(max(quarters) - min(quarters))
        grain.append(np.std(image - ndimage.gaussian_filter(image, 2)))
    assert min(touching) > 0.2, "cells touch their neighbours"
    assert max(dim) < 0.5, "brightness differs from cell to cell"
    assert np.mean(corners) > 2, "the light is uneven"
    assert max(grain) > 1.5 * min(grain) > 0, "exposures differ in noise"
    # No threshold separates cells from the rest.
    for image, instances in pairs:
        best = max(
            2 * ((image > t) & (instances > 0)).sum() / ((image > t).sum() + (instances > 0).sum())
            for t in range(0, 255, 5)
        )
        assert best < 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "seed is -1"),
        ((0, (64,)), r"size is \(64,\)"),
        ((0, (64, 16)), r"size is \(64, 16\); give .* at least 32"),
        ((0, (4, 64, 64)), "z at least 8"),
        ((0, (64, 64), 1.0), "radius is 1.0"),
        ((0, (64, 64), 30.0), "radius is 30.0; for size"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        microscopy(*arguments)


def test_prepared_by_the_data_set_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_microscopy, "TRAINING", 5)
    monkeypatch.setattr(phantom_microscopy, "TEST", 2)
    dataset = load_dataset("phantom_microscopy", "all", root=tmp_path)
    test = load_dataset("phantom_microscopy", "test", root=tmp_path)
    assert (len(dataset), len(test)) == (5, 2)
    image, instances = microscopy(phantom_microscopy.SEED, phantom_microscopy.SIZE)
    assert np.array_equal(dataset.raw(0)[0], image) and np.array_equal(dataset.instances(0), instances)
    assert np.array_equal(dataset[0]["label"].numpy(), interior_and_boundary(instances))
    assert test.raw(0).shape == (1, 256, 256)
    with pytest.raises(ValueError, match="reads nothing; got source"):
        phantom_microscopy.convert(tmp_path, tmp_path / "out")


# Interior and boundary


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("thickness", [0, 1, 2])
def test_a_cube_has_a_rim_of_the_thickness_asked_for(spatial_dims, thickness):
    instances = np.zeros((14,) * spatial_dims, np.int32)
    instances[(slice(3, 12),) * spatial_dims] = 1
    label = interior_and_boundary(instances, thickness)
    assert (label == 1).sum() == (9 - 2 * thickness) ** spatial_dims and (label > 0).sum() == 9**spatial_dims


def test_small_cut_and_touching_instances():
    instances = np.zeros((12, 12), np.int32)
    instances[0:6, 0:5] = 1  # cut by two edges of the image, touches the next
    instances[0:6, 5:10] = 2
    instances[9, 2] = 3  # a single pixel
    instances[8:11, 6:9] = 4  # three by three: no room for a rim of two
    label = interior_and_boundary(instances, 2)
    expected = np.where(instances > 0, 2, 0)
    expected[0:4, 0:3] = 1
    expected[0:4, 7:8] = 1
    expected[9, 2] = expected[9, 7] = 1
    assert np.array_equal(label, expected)


def test_interior_and_boundary_bad_input():
    with pytest.raises(ValueError, match="thickness is -1"):
        interior_and_boundary(np.zeros((3, 3), int), -1)
    with pytest.raises(ValueError, match="must be integers from 0 on"):
        interior_and_boundary(np.zeros((3, 3)))
    assert interior_and_boundary(np.zeros((3, 3), np.uint16)).max() == 0
