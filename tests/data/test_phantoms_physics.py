"""What the phantoms share: shapes where they should be, signals and noise that follow their equations."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_recipes.shared import phantom_physics as physics

SIZES = {2: (40, 30), 3: (24, 20, 28)}


def random(seed: int = 0) -> np.random.Generator:
    return physics.streams(seed)[0]


def test_streams_depend_on_the_seed_and_not_on_each_other():
    shapes, noise = physics.streams(3)
    same, _ = physics.streams(3)
    drawn = shapes.random(4)
    assert np.array_equal(drawn, same.random(4))
    assert not np.isin(drawn, noise.random(4)).any() and not np.isin(drawn, physics.streams(4)[0].random(4)).any()
    with pytest.raises(ValueError, match="seed is -2, expected a whole number of at least 0"):
        physics.streams(-2)


@pytest.mark.parametrize("size", [(40,), (39, 60), (40, 59), (7, 40, 60), (1, 8, 40, 60)])
def test_sizes_are_checked(size):
    with pytest.raises(ValueError, match=r"size is .*give .* y at least 40, x at least 60 and z at least 8"):
        physics.checked_size(size, (8, 40, 60))
    assert physics.checked_size(np.array([40, 60]), (8, 40, 60)) == (40, 60)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_positions_and_axes(spatial_dims):
    spacing = (3.0, 2.0, 1.5)[-spatial_dims:]
    points = physics.positions(SIZES[spatial_dims], spacing)
    assert points.shape == (*SIZES[spatial_dims], spatial_dims)
    assert points.reshape(-1, spatial_dims).mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert points[(1,) * spatial_dims] - points[(0,) * spatial_dims] == pytest.approx(np.array(spacing))
    axes = physics.orthogonal(random().random((spatial_dims, spatial_dims)))
    assert axes @ axes.T == pytest.approx(np.eye(spatial_dims))
    field = physics.smooth_field(random(), SIZES[spatial_dims], 2.0)
    assert (field.mean(), field.std()) == pytest.approx((0, 1))
    assert np.abs(np.diff(field, axis=0)).mean() < 0.5
    strength = physics.bias_field(random(), SIZES[spatial_dims], 0.4)
    assert np.exp(-0.4) <= strength.min() < strength.max() <= np.exp(0.4)


def test_volumes_run_right_anterior_superior():
    spacing = physics.spacing_of((24, 20, 28), (48.0, 60.0, 56.0))
    assert spacing == (2.0, 3.0, 2.0) and physics.spacing_of((20, 28), (48.0, 60.0, 56.0)) == (3.0, 2.0)
    affine = physics.affine_of((24, 20, 28), spacing)
    assert nibabel.aff2axcodes(affine) == ("R", "A", "S")
    assert affine @ [13.5, 9.5, 11.5, 1] == pytest.approx([0, 0, 0, 1])
    assert affine @ [14.5, 9.5, 11.5, 1] == pytest.approx([2, 0, 0, 1])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), spatial_dims=st.sampled_from([2, 3]), moved=st.sampled_from([0.0, 3.0]))
def test_a_box_leaves_nothing_of_a_shape_out(seed, spatial_dims, moved):
    source = random(seed)
    points = physics.positions(SIZES[spatial_dims], (1.0,) * spatial_dims)
    anatomy = physics.Anatomy(points + physics.displacement(source, points, moved, (10, 30)))
    centre, lengths = physics.uniform(source, -20, 20, spatial_dims), physics.uniform(source, 2, 9, spatial_dims)
    axes = physics.orthogonal(physics.uniform(source, -1, 1, (spatial_dims, spatial_dims)))
    box, distance = anatomy.ellipsoid(centre, lengths, axes)
    expected = np.linalg.norm((anatomy.points - centre) @ axes.T / lengths, axis=-1) < 1
    anatomy.paint(box, distance < 1, tissue=3, label=2)
    assert np.array_equal(anatomy.tissue == 3, expected) and np.array_equal(anatomy.label == 2, expected)
    path = physics.uniform(source, -15, 15, (3, spatial_dims))
    box, distance = anatomy.tube(path, [3.0, 3.0, 3.0])
    anatomy.paint(box, distance < 1, tissue=7)
    ends = [np.linalg.norm(anatomy.points - end, axis=-1) < 3 for end in path]
    assert (anatomy.tissue[np.logical_or.reduce(ends)] == 7).all() and (anatomy.label[anatomy.tissue == 7] == 0).all()


def test_shapes_have_the_volume_they_should():
    anatomy = physics.Anatomy(physics.positions((60, 60, 60), (1.0,) * 3))
    _, distance = anatomy.ellipsoid((2, -3, 1), (20, 12, 16))
    assert (distance < 1).sum() == pytest.approx(4 / 3 * np.pi * 20 * 12 * 16, rel=0.01)
    _, distance = anatomy.tube([(-40, 0, 0), (40, 0, 0)], [10, 10])
    assert (distance < 1).sum() == pytest.approx(np.pi * 10**2 * 60, rel=0.02)


def test_mri_signal():
    fat, water = (1.0, 260.0, 70.0), (1.0, 4000.0, 1800.0)
    tissues = np.array([fat, water])
    early, late = physics.mri_signal(tissues, 500, 10), physics.mri_signal(tissues, 5000, 100)
    assert early[0] == pytest.approx((1 - np.exp(-500 / 260)) * np.exp(-10 / 70))
    assert early[0] > 3 * early[1], "fat is bright where T1 decides"
    assert late[1] > 2 * late[0], "water is bright where T2 decides"
    nulled = physics.mri_signal(tissues, 1e9, 100, inversion=4000 * np.log(2))
    assert nulled[1] == pytest.approx(0, abs=1e-12) and nulled[0] > 0.2


def test_noise_is_rician():
    noise = physics.complex_noise(random(), (200_000,))
    for part in (noise.real, noise.imag):
        assert (part.mean(), part.std()) == pytest.approx((0, 1), abs=0.01)
    assert np.corrcoef(noise.real, noise.imag)[0, 1] == pytest.approx(0, abs=0.01)
    assert np.mean(np.abs(noise.real) < 1) == pytest.approx(0.6827, abs=0.005), "normal, not only of deviation 1"
    empty = physics.rician(random(), np.zeros(200_000), 2.0)  # no signal: Rayleigh's distribution
    assert (empty.mean(), empty.std()) == pytest.approx((2 * np.sqrt(np.pi / 2), 2 * np.sqrt(2 - np.pi / 2)), rel=0.01)
    bright = physics.rician(random(), np.full(200_000, 50.0), 2.0)
    assert (bright.mean(), bright.std()) == pytest.approx((50.04, 2.0), rel=0.005)


def test_grey_levels_are_whole():
    assert physics.whole_levels(np.array([-3.0, 0.4, 2.6, 300.0]), 255).tolist() == [0, 0, 3, 255]
