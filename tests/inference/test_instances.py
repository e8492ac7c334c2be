"""Objects from interior and boundary: known answers, and real nuclei that come back as they were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_recipes.nuclei import read_instances
from data_recipes.shared.instances import interior_and_boundary
from xlstm_unet_lab.evaluation.metrics import instance_f1
from xlstm_unet_lab.inference.instances import instances_from_classes


def touching(spatial_dims):
    """Two boxes that share a face, and one apart."""
    instances = np.zeros((20,) * spatial_dims, np.int32)
    instances[(slice(2, 9),) * spatial_dims] = 1
    instances[(slice(9, 17), *[slice(2, 9)] * (spatial_dims - 1))] = 2
    instances[(slice(2, 9), *[slice(12, 18)] * (spatial_dims - 1))] = 3
    return instances


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_touching_objects_come_apart(spatial_dims):
    truth = touching(spatial_dims)
    got = instances_from_classes(interior_and_boundary(truth))
    assert got.dtype == np.int32 and sorted(np.unique(got)) == [0, 1, 2, 3]
    assert ((got > 0) == (truth > 0)).all(), "the boundary belongs to the objects"
    assert instance_f1(got, truth, iou=0.95, drop_border=0).f1 == 1.0


def balls(spatial_dims, apart):
    """Two balls of radius 8 whose middles are `apart` pixels apart, where there is a ball."""
    places = np.indices((25,) * (spatial_dims - 1) + (45,)) - 12
    across, along = places[:-1], places[-1]
    return np.logical_or(*((across**2).sum(0) + (along - shift) ** 2 <= 64 for shift in (0, apart)))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("apart", "objects"), [(0, 1), (4, 1), (12, 2), (14, 2)])
def test_what_has_a_waist_is_two_objects(spatial_dims, apart, objects):
    found = instances_from_classes(balls(spatial_dims, apart).astype(int))
    assert found.max() == objects
    assert found[..., 12, 12] == 1 if spatial_dims == 2 else found[12, 12, 12] == 1


def test_an_image_full_of_one_object_is_one():
    assert (instances_from_classes(np.ones((20, 30), int)) == 1).all()


def test_small_objects_and_lone_boundaries_go():
    classes = np.zeros((20, 20), np.uint8)
    classes[1:3, 1:3], classes[6:12, 6:12], classes[15:18, 2:9] = 1, 1, 2
    assert (instances_from_classes(classes) == (np.indices((20, 20)) // 6 == 1).all(0)).all()
    assert instances_from_classes(classes, smallest=1).max() == 2
    assert instances_from_classes(classes, smallest=37).max() == 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(0, 99), st.integers(0, 4))
def test_whatever_the_labels(size, seed, smallest):
    classes = np.random.default_rng(seed).integers(0, 3, size)
    got = instances_from_classes(classes, smallest=smallest)
    assert got.shape == classes.shape and not got[classes == 0].any()
    numbers, counts = np.unique(got[got > 0], return_counts=True)
    assert numbers.tolist() == list(range(1, len(numbers) + 1)) and (counts >= smallest).all()
    interiors, _ = ndimage.label(classes == 1, np.ones((3,) * classes.ndim))
    assert all(len(np.unique(interiors[(got == n) & (classes == 1)])) == 1 for n in numbers), "no object has two"


def test_real_nuclei_come_back(real_data):
    folders = sorted((real_data / "nuclei" / "stage1_train").iterdir())[::7]
    truths = [
        read_instances(folder / "masks", shape_of(folder / "images" / f"{folder.name}.png"))[0] for folder in folders
    ]
    founds = [instances_from_classes(interior_and_boundary(truth)) for truth in truths]
    scores = [instance_f1(found, truth, drop_border=0) for found, truth in zip(founds, truths, strict=True)]
    assert len(scores) >= 14 and sum(score.tp for score in scores) > 300
    assert np.mean([score.f1 for score in scores]) > 0.98 and min(score.f1 for score in scores) > 0.9


def shape_of(path):
    from PIL import Image

    return Image.open(path).size[::-1]


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (np.full((4, 4), 3), ValueError, r"holds \[3\].*'interior': 1"),
        (np.zeros(4, int), ValueError, r"shape \(4,\)"),
        (np.full((3, 4, 4), 0.5), TypeError, "float64, expected an array of integers"),
        (np.zeros((4, 4), complex), TypeError, "complex128"),
    ],
)
def test_bad_input(classes, error, message):
    with pytest.raises(error, match=message):
        instances_from_classes(classes)
