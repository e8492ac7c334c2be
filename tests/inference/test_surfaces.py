"""Surfaces of masks: closed, in mm, of the mask's volume, one part a piece."""

import numpy as np
import pytest
from skimage.measure import label

from xlstm_unet_lab.inference.surfaces import surface


def volume_of(corners, triangles):
    """The volume inside a closed mesh, by the theorem of Gauss."""
    a, b, c = corners[triangles].swapaxes(0, 1)
    return abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6


def ball(spacing, radius=12.0, centre=(15.0, 16.0, 17.0)):
    size = [int(2 * middle / step) + 1 for middle, step in zip(centre, spacing, strict=True)]
    places = np.stack(np.meshgrid(*(np.arange(n) * step for n, step in zip(size, spacing, strict=True)), indexing="ij"))
    return np.linalg.norm(places - np.reshape(centre, (3, 1, 1, 1)), axis=0) <= radius


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_a_ball_has_its_volume_place_and_radius_in_mm(spacing):
    corners, triangles = surface(ball(spacing), spacing)
    assert volume_of(corners, triangles) == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.04)
    np.testing.assert_allclose(corners.mean(0), (15, 16, 17), atol=0.3)
    radii = np.linalg.norm(corners - [15, 16, 17], axis=1)
    assert radii.mean() == pytest.approx(12, abs=0.3) and radii.std() < 0.15 * max(spacing) + 0.1


def test_steps_between_thick_slices_are_smoothed():
    """Triangles of a stair look along axes; those of a smooth ball look away from its middle."""
    spacing = (4.0, 1.0, 1.0)
    corners, triangles = surface(ball(spacing), spacing)
    a, b, c = corners[triangles].swapaxes(0, 1)
    outward = (a + b + c) / 3 - [15, 16, 17]
    normal = np.cross(b - a, c - a)
    areas = np.linalg.norm(normal, axis=1)
    agree = np.abs(np.einsum("ij,ij->i", normal, outward)) / np.linalg.norm(outward, axis=1)
    assert agree.sum() / areas.sum() > 0.93


def test_the_mesh_is_closed_and_every_piece_has_its_part():
    mask = np.zeros((9, 12, 15), bool)
    mask[0:4, 2:6, 3:9] = mask[8, 11, 14] = mask[6, 2, 2] = True  # two touch the border, two are single voxels
    corners, triangles = surface(mask, (2.0, 1.0, 1.0))
    sides = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    assert (np.unique(sides, axis=0, return_counts=True)[1] == 2).all(), "each side belongs to two triangles"
    for piece in range(1, label(mask, connectivity=1).max() + 1):
        middle = np.argwhere(label(mask, connectivity=1) == piece).mean(0) * (2, 1, 1)
        assert np.linalg.norm(corners - middle, axis=1).min() < 3


def test_the_spacing_stretches_the_mesh_and_nothing_else():
    mask = np.random.default_rng(0).random((7, 8, 9)) > 0.6
    plain, stretched = (surface(mask, spacing)[0] for spacing in ((1, 1, 1), (5, 2, 0.5)))
    np.testing.assert_allclose(stretched, plain * [5, 2, 0.5], atol=1e-4)


@pytest.mark.parametrize(
    ("mask", "spacing", "error", "words"),
    [
        (np.zeros((3, 3, 3), bool), (1, 1, 1), ValueError, "mask is empty, expected True in at least one voxel"),
        (np.ones((3, 3), bool), (1, 1), ValueError, "mask has shape"),
        (np.ones((3, 3, 3), bool), (1, 0, 1), ValueError, "spacing is"),
        (np.ones((3, 3, 3)), (1, 1, 1), TypeError, "mask is .*float64"),
    ],
)
def test_what_has_no_surface_is_refused(mask, spacing, error, words):
    with pytest.raises(error, match=words):
        surface(mask, spacing)
