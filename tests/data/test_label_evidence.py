"""Numbers that nobody declared: soft edges and mixed conventions are seen, thin and few labels are left alone."""

import io

import numpy as np
import pytest
from PIL import Image
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


def through(kind, mask, **options):
    """What a grey picture is after it was compressed with loss; saved as PNG afterwards it stays so."""
    content = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(content, kind, **options)
    return np.asarray(Image.open(content).convert("L")).astype(np.int32)


def through_jpeg(mask):
    return through("JPEG", mask * 255, quality=60)


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


def blots(size, numbers, seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(size), 6)
    return np.array([0, *numbers])[np.digitize(smooth, np.quantile(smooth, np.linspace(0.5, 1, len(numbers) + 1)[:-1]))]


MASKS = {
    "mask": blots((160, 120), [255]),
    "grey levels": blots((96, 130), [128, 255], seed=1),
    "disc": disc((64, 64)) * 255,
    "square": np.pad(np.full((20, 30), 200), 21),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    "loss",
    [*({"kind": "JPEG", "quality": quality} for quality in (75, 90, 95, 97, 98, 99)), {"kind": "WEBP", "quality": 95}],
    ids=lambda loss: "-".join(map(str, loss.values())),
)
def test_what_compression_with_loss_leaves_beside_edges_is_no_label(mask, loss):
    label = through(mask=mask, **loss)
    assert set(np.unique(label)) > set(np.unique(mask)), "nothing was lost here"
    with pytest.raises(
        ValueError, match=r"of which \d+ lie on edges only, such as .* resampling, blurring or JPEG makes"
    ):
        check_hard_edges("a", label)
    check_hard_edges("a", mask)


def cells(numbers, seed):
    """Touching cells on background, each with one of the numbers."""
    random = np.random.default_rng(seed)
    centres = random.random((40, 2)) * 96
    apart = np.linalg.norm(np.moveaxis(np.mgrid[:96, :96], 0, -1)[:, :, None] - centres, axis=-1)
    return np.where(apart.min(axis=-1) < 12, random.choice(numbers, 40)[apart.argmin(axis=-1)], 0)


def with_points(label, numbers):
    points = np.random.default_rng(3).permutation(label.size)[:40]
    label.flat[points] = np.resize(numbers, 40)
    return label


@pytest.mark.parametrize("step", [1, 3], ids=["whole", "made small"])
@pytest.mark.parametrize(
    "label",
    [
        cells(np.arange(3, 255, 7), 0),
        cells(np.arange(101, 141), 1),
        cells([253, 254, 255], 2),
        cells([7, 8, 11, 17, 19, 20, 255], 3),
        cells(np.arange(60_000, 60_090), 4),
        np.where(ndimage.grey_dilation(cells([1], 5), size=3) > cells([1], 5), 255, cells([1], 5)),  # an edge unknown
        with_points(blots((96, 96), [255]), [1, 2, 4]),
        with_points(blots((96, 96), [100]), [101]),
        np.where(cells([1, 2, 5], 6) > 0, cells([1, 2, 5], 6), 255),
        disc() * 100 + disc(radius=13) * 1,
        disc() * 254 + disc(radius=13) * 1 - disc(radius=3) * 60,
    ],
    ids=[
        "numbers with gaps",
        "from 101",
        "up to 255",
        "classes",
        "16 bits",
        "void",
        "points",
        "one off",
        "ignored",
        "rim",
        "rim at 254",
    ],
)
def test_numbers_near_each_other_are_labels_where_they_are_no_edges(label, step):
    check_hard_edges("a", label[::step, ::step])


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
