"""Numbers that nobody declared: soft edges and mixed conventions are seen, thin and few labels are left alone."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize

from xlstm_unet_lab.data.label_evidence import check_hard_edges, check_one_convention


def disc(size=(48, 64), radius=14):
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2 < radius**2


def blurred(mask, white=255):
    return np.rint(ndimage.gaussian_filter(mask.astype(float), 1.2) * white).astype(np.int32)


def resampled(mask, white=255):
    return np.rint(resize(mask.astype(float), (37, 51), order=1, anti_aliasing=False) * white).astype(np.int32)


def through_jpeg(mask):
    import io

    from PIL import Image

    content = io.BytesIO()
    Image.fromarray((mask * 255).astype(np.uint8)).save(content, "JPEG", quality=60)
    return np.asarray(Image.open(content)).astype(np.int32)


@pytest.mark.parametrize("soft", [blurred, resampled, through_jpeg], ids=lambda make: make.__name__)
def test_soft_edges_are_no_labels(soft):
    label = soft(disc())
    assert len(np.unique(label)) > 5
    with pytest.raises(ValueError, match=rf"a\.png holds {np.count_nonzero(np.unique(label))} numbers .* soft edges"):
        check_hard_edges("a.png", label)


def test_soft_edges_of_a_volume_and_of_three_shades_are_seen():
    halves = np.zeros((8, 24, 24))
    halves[2:6, 5:19, 5:19] = 1
    for label in (blurred(halves), blurred(disc(), white=4) * 60):
        with pytest.raises(ValueError, match="soft edges"):
            check_hard_edges("a", label)


def rings(numbers):
    label = np.zeros((48, 64), np.int32)
    for radius, number in zip(range(20, 0, -1), numbers, strict=False):
        label[disc(radius=radius)] = number
    return label


@pytest.mark.parametrize(
    "label",
    [
        disc() * 255,
        disc() * 128 + disc(radius=13) * 127,  # a border of one pixel in a number of its own
        rings([1, 2, 3, 4, 5, 6, 7, 8]),  # layers one pixel thick, counted
        disc() * 40 + disc(radius=8) * 100 + disc(radius=3) * 60,
        ndimage.label(np.random.default_rng(0).random((48, 64)) > 0.9)[0] * 3,  # many tiny objects on background
        np.zeros((4, 4), np.int32),
    ],
    ids=["mask", "border", "layers", "nested", "dots", "empty"],
)
def test_labels_with_hard_edges_are_left_alone(label):
    check_hard_edges("a", label)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": {1}, "b": {255}}, r"some labels hold \[255\], such as b, others \[1\], such as a"),
        ({"a": {1, 2}, "b": {127, 255}, "c": set()}, r"\[127, 255\], such as b, others \[1, 2\]"),
        ({"a": {1}, "b": {65535}}, "65535"),
    ],
)
def test_two_conventions_in_one_folder_are_seen(values, words):
    with pytest.raises(ValueError, match=words):
        check_one_convention(values)


@pytest.mark.parametrize("values", [{}, {"a": {255}, "b": set()}, {"a": {1}, "b": {2}}, {"a": {1, 255}, "b": {1}}])
def test_one_convention_is_left_alone(values):
    check_one_convention(values)
