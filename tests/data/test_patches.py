"""Patches and augmentation: what moves together, what is drawn how often, and what depends on what."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_pairs import MOVES_ONLY, SIZES, pair, random_source
from torch.utils.data import DataLoader

from xlstm_unet_lab.data.augment import PatchDataset, augment
from xlstm_unet_lab.data.patches import sample_patch


@settings(deadline=None, max_examples=30)
@given(data=st.data(), spatial_dims=st.sampled_from([2, 3]), share=st.sampled_from([0.0, 1 / 3, 1.0]))
def test_a_patch_is_a_piece_of_image_and_label_or_padding(data, spatial_dims, share):
    patch_size = tuple(data.draw(st.lists(st.integers(1, 20), min_size=spatial_dims, max_size=spatial_dims)))
    size = SIZES[spatial_dims]
    # Every pixel is numbered, so a patch tells where it was cut.
    numbers = torch.arange(1, 1 + int(np.prod(size))).reshape(size)
    image, label = sample_patch(numbers[None].double(), numbers, patch_size, random_source(), share)
    assert image.shape == (1, *patch_size) and label.shape == patch_size
    assert torch.equal(image[0].long(), label)
    inside = label[label > 0]
    expected = [min(wanted, there) for wanted, there in zip(patch_size, size, strict=True)]
    assert len(inside) == np.prod(expected)
    start = np.unravel_index(int(inside[0]) - 1, size)
    window = numbers[tuple(slice(first, first + length) for first, length in zip(start, expected, strict=True))]
    assert torch.equal(inside, window.flatten())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_foreground_patches_hold_their_class_and_classes_have_equal_chances(spatial_dims):
    size = (24,) * spatial_dims
    label = torch.zeros(size, dtype=torch.int64)
    label[(slice(0, 9),) * spatial_dims] = 1
    label[(18,) * spatial_dims] = 2
    generator, patch_size = random_source(1), (5,) * spatial_dims
    patches = [sample_patch(label[None].float(), label, patch_size, generator, 1.0)[1] for _ in range(200)]
    assert all((patch > 0).any() for patch in patches)
    assert 0.35 < sum(2 in patch for patch in patches) / 200 < 0.65
    assert all(patch[(2,) * spatial_dims] == 2 for patch in patches if 2 in patch), "the pixel is in the middle"
    none = [sample_patch(label[None].float(), label, patch_size, generator, 0.0)[1] for _ in range(200)]
    assert sum(2 in patch for patch in none) < 40


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_margin_shows_what_lies_around_the_same_patch(spatial_dims):
    size, patch_size, margin = SIZES[spatial_dims], (5, 20, 6)[-spatial_dims:], (2, 0, 9)[-spatial_dims:]
    numbers = torch.arange(1, 1 + int(np.prod(size))).reshape(size)
    middle = tuple(slice(m, m + n) for m, n in zip(margin, patch_size, strict=True))
    for seed in range(20):
        _, narrow = sample_patch(numbers[None].double(), numbers, patch_size, random_source(seed), 0.5)
        image, wide = sample_patch(numbers[None].double(), numbers, patch_size, random_source(seed), 0.5, margin)
        assert torch.equal(wide[middle], narrow) and torch.equal(image[0].long(), wide)
        assert wide.shape == tuple(n + 2 * m for n, m in zip(patch_size, margin, strict=True))
        inside = wide[wide > 0]
        assert len(inside.unique()) == len(inside)


@pytest.mark.parametrize(("size", "patch_size"), [((6, 5), (4, 4)), ((4, 5, 6), (4, 3, 5))])
def test_a_patch_may_start_anywhere(size, patch_size):
    """From the first row and column to those with which the last ones of the image are still seen."""
    numbers, generator = torch.arange(math.prod(size)).reshape(size), random_source()
    drawn = (sample_patch(numbers[None].double(), numbers, patch_size, generator, 0.0)[1] for _ in range(200))
    starts = [range(there - wanted + 1) for there, wanted in zip(size, patch_size, strict=True)]
    assert {int(patch.flatten()[0]) for patch in drawn} == {int(numbers[start]) for start in itertools.product(*starts)}


@pytest.mark.parametrize("patch_size", [(4, 6), (5, 4), (2, 3, 8)])
def test_the_pixel_drawn_is_in_the_middle_of_even_and_odd_patches(patch_size):
    """Of two middles it is the second: as many pixels before it as after it, and one more where the size is even."""
    label = torch.zeros((20,) * len(patch_size), dtype=torch.int64)
    label[(9,) * len(patch_size)] = 1
    _, patch = sample_patch(label[None].float(), label, patch_size, random_source(), 1.0)
    assert patch.nonzero().tolist() == [[length // 2 for length in patch_size]]


def test_an_image_without_foreground_still_gives_patches():
    image, label = torch.ones(1, 8, 8), torch.zeros(8, 8, dtype=torch.uint8)
    patch, _ = sample_patch(image, label, (4, 4), random_source(), 1.0)
    assert patch.shape == (1, 4, 4)
    patch.zero_()
    assert image.all(), "a patch shares no memory with its image"


@pytest.mark.parametrize("patch_size", [(4,), (4, 4, 4), (0, 4), (4, -1), (4.5, 4), 4])
def test_bad_patch_sizes(patch_size):
    with pytest.raises(ValueError, match=r"patch_size is .*, expected a tuple of 2 whole numbers of at least 1"):
        sample_patch(*pair(2), patch_size, random_source())


@pytest.mark.parametrize(
    ("image", "label", "error", "message"),
    [
        (torch.zeros(1, 4, 5), torch.zeros(4, 6).long(), ValueError, r"image has shape \(1, 4, 5\) and label \(4, 6\)"),
        (torch.zeros(4, 5), torch.zeros(4, 5).long(), ValueError, "expected"),
        (torch.zeros(1, 4), torch.zeros(4).long(), ValueError, "two or three spatial axes"),
        (torch.zeros(1, 4, 5), torch.zeros(4, 5), TypeError, "label torch.float32"),
        (torch.zeros(1, 4, 5).long(), torch.zeros(4, 5).long(), TypeError, "image is torch.int64"),
    ],
)
def test_bad_pairs(image, label, error, message):
    with pytest.raises(error, match=message):
        sample_patch(image, label, (2, 2), random_source())
    with pytest.raises(error, match=message):
        augment(image, label, random_source())


def test_bad_foreground_probability():
    with pytest.raises(ValueError, match=r"foreground_probability is 1\.5"):
        sample_patch(*pair(2), (4, 4), random_source(), 1.5)


# PatchDataset


@pytest.fixture
def cases():
    return [dict(zip(("image", "label"), pair(2, seed=seed), strict=True), name=str(seed)) for seed in range(4)]


def test_patch_k_depends_on_seed_and_k_alone(cases):
    forward = PatchDataset(cases, (8, 8), 30, seed=3)
    backward = PatchDataset(cases, (8, 8), 100, seed=3)
    items = [forward[k] for k in range(30)]
    for k in reversed(range(30)):
        other = backward[k]
        assert torch.equal(items[k]["image"], other["image"]) and torch.equal(items[k]["label"], other["label"])
    assert items[0]["image"].shape == (2, 8, 8) and items[0]["label"].dtype == torch.int64
    assert {item["name"] for item in items} == {"0", "1", "2", "3"}
    different = PatchDataset(cases, (8, 8), 30, seed=4)
    assert not any(torch.equal(items[k]["image"], different[k]["image"]) for k in range(30))
    assert len({item["image"].sum().item() for item in items}) == 30


def test_workers_change_nothing(cases):
    dataset = PatchDataset(cases, (8, 8), 12, seed=3)
    alone, helped = (
        torch.cat([batch["image"] for batch in DataLoader(dataset, batch_size=4, num_workers=workers)])
        for workers in (0, 2)
    )
    assert torch.equal(alone, helped)


def test_augmentation_can_be_chosen(cases):
    plain = PatchDataset(cases, (17, 12), 10, seed=0, augment=False)
    for k in range(10):
        item = plain[k]
        assert torch.equal(item["image"], cases[int(item["name"])]["image"])
    moved = PatchDataset(cases, (17, 12), 10, seed=0, augment=MOVES_ONLY)
    for k in range(10):
        item = moved[k]
        original = cases[int(item["name"])]["image"]
        assert torch.equal(item["image"].flatten().sort().values, original.flatten().sort().values)


def test_patch_dataset_bad_input(cases):
    with pytest.raises(ValueError, match="has no cases"):
        PatchDataset([], (8, 8), 3, seed=0)
    with pytest.raises(ValueError, match="length is 0, expected a whole number of at least 1"):
        PatchDataset(cases, (8, 8), 0, seed=0)
    with pytest.raises(ValueError, match=r"patch_size is .*, expected a tuple of 2 whole numbers"):
        PatchDataset(cases, (8, 8, 8), 3, seed=0)
    with pytest.raises(IndexError, match="patch 3 was asked for; there are 3"):
        PatchDataset(cases, (8, 8), 3, seed=0)[3]
