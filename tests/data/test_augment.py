"""Augmentation: what moves together, what changes how much, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_pairs import MOVES_ONLY, NO_CHANGE, SIZES, pair, random_source

from xlstm_unet_lab.data.augment import Augmentation, PatchDataset, augment, draw_turn, margin_of, turned


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_image_and_label_move_together_and_every_pose_occurs(spatial_dims):
    size = (3, 4, 4)[-spatial_dims:]
    numbers = torch.arange(int(np.prod(size))).reshape(size)
    poses, generator = set(), random_source()
    for _ in range(300):
        image, label = augment(numbers[None].double(), numbers, generator, MOVES_ONLY)
        assert image.shape[1:] == label.shape == size and torch.equal(image[0].long(), label)
        assert torch.equal(label.flatten().sort().values, numbers.flatten())
        poses.add(tuple(label.flatten().tolist()))
    assert len(poses) == 8 * (2 if spatial_dims == 3 else 1)  # the symmetries of a square, and z up or down


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_no_quarter_turn_where_the_plane_is_not_square(spatial_dims):
    generator = random_source()
    for _ in range(20):
        image, label = augment(*pair(spatial_dims), generator)
        assert label.shape == SIZES[spatial_dims] and image.shape[1:] == label.shape


def test_only_the_axes_named_are_flipped():
    image, label = pair(2)
    settings_ = Augmentation(flip_axes=(1,), rotate=False, **NO_CHANGE)
    seen = {augment(image, label, random_source(seed), settings_)[1].flatten()[0].item() for seed in range(20)}
    assert seen == {label[0, 0].item(), label[0, -1].item()}
    with pytest.raises(ValueError, match=r"flip_axes is \(2,\); a label of 2 axes"):
        augment(image, label, random_source(), Augmentation(flip_axes=(2,)))


def test_intensities_change_within_bounds_and_labels_do_not():
    image, label = pair(3)
    before = image.clone()
    still = Augmentation(flip_axes=(), rotate=False, **(NO_CHANGE | {"probability": 1.0, "noise": 0.0}))
    for seed in range(20):
        changed, same = augment(image, label, random_source(seed), still)
        assert torch.equal(same, label) and changed.isfinite().all() and not torch.equal(changed, image)
        # Without noise every change keeps the order of the intensities.
        assert (changed.flatten()[image.flatten().argsort()].diff() >= -1e-5).all()
        assert 0.5 < changed.std() / image.std() < 1.5 and (changed.mean() - image.mean()).abs() < 0.31
    assert torch.equal(image, before)


def test_inversion_and_constant_images():
    image, label = pair(2)
    invert = Augmentation(flip_axes=(), rotate=False, invert_probability=1.0, **NO_CHANGE)
    assert torch.equal(augment(image, label, random_source(), invert)[0], -image)
    constant = torch.full((1, 4, 4), 2.0)
    for seed in range(10):
        assert augment(constant, torch.zeros(4, 4).long(), random_source(seed))[0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 2}, "probability is 2"),
        ({"invert_probability": -0.1}, "invert_probability is -0.1"),
        ({"gamma": (0.0, 1.0)}, "gamma is"),
        ({"contrast": (2.0, 1.0)}, "contrast is"),
        ({"noise": -1}, "noise is -1"),
        ({"turn_probability": 1.1}, r"turn_probability is 1\.1"),
        ({"blur_probability": -1}, "blur_probability is -1"),
        ({"low_resolution_probability": 2}, "low_resolution_probability is 2"),
        ({"angle": -1.0}, r"angle is -1\.0"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"blur": (2.0, 1.0)}, "blur is"),
        ({"low_resolution": (0.0, 1.0)}, "low_resolution is"),
    ],
)
def test_bad_augmentation(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


# Turns by any angle


def turn_by(degrees, axes=2, scale=1.0):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(axes)
    matrix[-2:, -2:] = torch.tensor([[c, -s], [s, c]])
    return matrix / scale


@pytest.mark.parametrize(("spatial_dims", "axes"), [(2, 2), (3, 2), (3, 3)])
def test_known_turns(spatial_dims, axes):
    image, label = pair(spatial_dims)
    size = (*SIZES[spatial_dims][:-2], 12, 12)
    image, label = image[..., :12, :], label[..., :12, :]
    for quarter in range(4):
        moved, moved_label = turned(image, label, turn_by(90 * quarter, axes), size)
        assert torch.allclose(moved, torch.rot90(image, quarter, (-1, -2)), atol=1e-4)
        assert torch.equal(moved_label, torch.rot90(label, quarter, (-1, -2)))
        assert moved.dtype == image.dtype and moved_label.dtype == label.dtype


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_everything_grows_about_the_middle(spatial_dims):
    size = (24,) * spatial_dims
    label = torch.zeros(size, dtype=torch.int64)
    label[(slice(8, 16),) * spatial_dims] = 1
    turn = torch.eye(spatial_dims) / 1.5
    image, label = turned(label[None].float(), label, turn, size)
    assert label.sum() == 12**spatial_dims and label[(slice(6, 18),) * spatial_dims].all()
    assert ((image[0] > 0.5) == (label == 1)).float().mean() > 0.99


@settings(deadline=None, max_examples=30)
@given(
    spatial_dims=st.sampled_from([2, 3]),
    in_plane=st.booleans(),
    patch=st.lists(st.integers(1, 17), min_size=3, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_a_turned_patch_is_filled_from_its_surroundings(spatial_dims, in_plane, patch, seed):
    """Nothing of a patch comes from outside of the margin that was cut for it."""
    chosen = Augmentation(turn_probability=1.0, angle=180.0, scale=(0.5, 2.0), in_plane=in_plane)
    turn, size = draw_turn(chosen, spatial_dims, random_source(seed)), tuple(patch[:spatial_dims])
    assert turn.shape == ((2, 2) if in_plane else (spatial_dims,) * 2)
    wide = [n + 2 * m for n, m in zip(size, margin_of(turn, size), strict=True)]
    image, label = turned(torch.ones(1, *wide), torch.ones(wide, dtype=torch.int64), turn, size)
    assert image.shape == (1, *size) and label.shape == size
    assert label.all() and torch.allclose(image, torch.ones(()), atol=1e-5)


def test_turns_happen_as_often_and_as_far_as_asked():
    chosen, generator = Augmentation(turn_probability=0.4, angle=20.0, scale=(0.8, 1.25)), random_source()
    turns = [draw_turn(chosen, 3, generator) for _ in range(400)]
    there = [turn for turn in turns if turn is not None]
    assert 0.3 < len(there) / 400 < 0.5
    angles = [math.degrees(math.atan2(turn[1, 0], turn[0, 0])) for turn in there]
    sizes = [1 / math.sqrt(torch.linalg.det(turn)) for turn in there]
    assert -20 <= min(angles) < -15 and 15 < max(angles) <= 20
    assert 0.79 < min(sizes) < 0.85 and 1.2 < max(sizes) < 1.26


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_image_and_label_of_a_patch_turn_alike(spatial_dims):
    size = (40,) * spatial_dims
    label = torch.zeros(size, dtype=torch.int64)
    label[(slice(8, 30), slice(10, 33), slice(5, 20))[:spatial_dims]] = 1
    case = {"image": 2 * label[None].float() - 1, "label": label, "name": "box"}
    chosen = Augmentation(**(NO_CHANGE | {"turn_probability": 1.0}), in_plane=False)
    plain = Augmentation(**NO_CHANGE)
    moved, still = (PatchDataset([case], (16,) * spatial_dims, 20, seed=1, augment=a) for a in (chosen, plain))
    for k in range(20):
        item = moved[k]
        inside = (item["image"][0] > 0) == (item["label"] == 1)
        assert inside.float().mean() > 0.95
        assert item["image"].dtype == torch.float32 and item["label"].dtype == torch.int64
    assert any(not torch.equal(moved[k]["label"], still[k]["label"]) for k in range(20))


# Blur and low resolution


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("change", ["blur", "low_resolution"])
def test_fine_detail_is_lost_and_coarse_detail_stays(spatial_dims, change):
    chosen = Augmentation(
        flip_axes=(), rotate=False, **(NO_CHANGE | {f"{change}_probability": 1.0, change: (0.6, 0.7)})
    )
    size = (18,) * spatial_dims
    noise = torch.randn(1, *size, generator=random_source())
    ramp = torch.linspace(-2, 2, 18).expand(1, *size).clone()
    label = torch.zeros(size, dtype=torch.int64)
    changed, _ = augment(noise, label, random_source(1), chosen)
    assert 0.2 < changed.std() / noise.std() < 0.95
    inner = (0, *(slice(4, -4),) * spatial_dims)
    smooth, _ = augment(ramp, label, random_source(1), chosen)
    assert (smooth - ramp)[inner].abs().max() < 0.25
    assert smooth.shape == ramp.shape and smooth.dtype == ramp.dtype and type(smooth) is torch.Tensor
