"""Numbers that nobody declared: soft edges and mixed conventions are seen, thin and few labels are left alone."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.morphology import skeletonize
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


def test_soft_edges_of_a_volume_and_of_few_shades_are_seen():
    halves = np.zeros((8, 24, 24))
    halves[2:6, 5:19, 5:19] = 1
    for label in (blurred(halves), blurred(np.tile(disc((24, 24), 7), (2, 2)), white=9) * 20):
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
        rings([60, 120, 180, 240]),
        rings([3, 90, 28, 227, 165, 252]),
        np.tile(rings([40, 80, 120, 160, 200]), (2, 2)),
        np.pad(np.pad(np.pad(np.full((20, 30), 250), 1, constant_values=170), 1, constant_values=90), 9),
        np.repeat([[0] * 20 + [50, 100, 150, 200] + [250] * 20], 40, axis=0),
        disc() * 40 + disc(radius=8) * 100 + disc(radius=3) * 60,
        ndimage.label(np.random.default_rng(0).random((48, 64)) > 0.9)[0] * 3,  # many tiny objects on background
        np.zeros((4, 4), np.int32),
    ],
    ids=["mask", "border", "layers", "painted", "unordered", "organoids", "box", "retina", "nested", "dots", "empty"],
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


def ball(radius):
    z, y, x = np.ogrid[:24, :40, :40]
    return np.sqrt((z - 12) ** 2 + (y - 20) ** 2 + (x - 20) ** 2) < radius


def blurred_far(mask, white, sigma=4):
    return np.rint(ndimage.gaussian_filter(mask.astype(float), sigma) * white).astype(np.int32)


@pytest.mark.parametrize("white", [31, 255])
@pytest.mark.parametrize(
    "mask", [disc((128, 128), 40), blots((160, 120), [1]), ball(10)], ids=["disc", "blots", "ball"]
)
@pytest.mark.parametrize("sigma", [0.7, 2])
def test_shades_are_seen_whether_they_count_on_from_0_or_not(mask, white, sigma):
    label = blurred_far(mask, white, sigma)
    with pytest.raises(ValueError, match="soft edges"):
        check_hard_edges("a", label)
    counted = np.searchsorted(np.unique(label), label)
    with pytest.raises(ValueError, match=rf"{counted.max()} numbers beside 0.*soft edges"):
        check_hard_edges("a", counted)


def test_a_mask_blurred_over_all_numbers_is_seen_and_the_error_says_where_names_are_written():
    label = blurred_far(disc((128, 128), 40), 255)
    label[0, :256] = np.resize(np.arange(256), 128)
    label[1] = np.arange(128, 256)
    assert np.array_equal(np.unique(label), np.arange(256))
    with pytest.raises(ValueError, match=r'name them in labels\.json beside the folders of images .*\{"nucleus": 1\}'):
        check_hard_edges("a", label)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("classes", [3, 4, 8, 20, 60, 200])
@pytest.mark.parametrize("smooth", [0, 0.7, 2])
def test_what_an_untrained_network_predicts_is_left_alone(dims, classes, smooth):
    random, size = np.random.default_rng(classes), (40, 48) if dims == 2 else (8, 16, 20)
    logits = random.normal(size=(classes, *size))
    check_hard_edges("a", ndimage.gaussian_filter(logits, (0, *[smooth] * dims)).argmax(axis=0).astype(np.int32))


@pytest.mark.parametrize("count", [30, 1000])
@pytest.mark.parametrize("order", ["drawn", "by row"])
def test_many_touching_objects_are_left_alone(count, order):
    centres = np.random.default_rng(0).random((count, 2)) * 100
    centres = centres[np.lexsort((centres[:, 1], centres[:, 0] // 5))] if order == "by row" else centres
    places = np.moveaxis(np.mgrid[:100, :100], 0, -1).reshape(-1, 2)
    label = KDTree(centres).query(places)[1].reshape(100, 100) + 1
    for numbers in (label, label * 3, np.repeat(label[None], 6, 0)):
        check_hard_edges("a", numbers.astype(np.int32))


def test_thin_shells_skeletons_and_boards_are_left_alone():
    shells = sum(ball(radius).astype(np.int32) for radius in (10, 9, 8, 7, 6))
    skeleton = skeletonize(blots((160, 120), [1]) > 0)
    sums = np.add.outer(np.arange(64), np.arange(64))
    for label in (
        *(shells, shells * 50, np.array([0, 9, 200, 31, 77, 150])[shells]),
        *(
            skeleton * 255,
            np.where(skeleton, 100, blots((160, 120), [255])),
            ndimage.label(skeleton, np.ones((3, 3)))[0],
        ),
        *(sums % 2 * 255, sums % 3, sums % 4 * 60, np.add.outer(np.arange(64), 2 * np.arange(64)) % 5),
        *(blots((160, 120), [20, 50, 70, 90, 120, 150, 180, 210, 250]), blots((160, 120), [1, 2, 3, 4, 5, 6, 7])),
    ):
        check_hard_edges("a", label.astype(np.int32))


CLASS_MAPS = {"cells": cells([1, 2, 3], 3), "five": cells([1, 2, 3, 4, 5], 4), "blots": blots((160, 120), [1, 2, 3])}
CLASS_MAPS |= {"tens": cells([10, 20, 30], 3), "one class": blots((160, 120), [5])}


@pytest.mark.parametrize("label", CLASS_MAPS.values(), ids=CLASS_MAPS)
@pytest.mark.parametrize("quality", [75, 85, 90, 95, 97])
def test_jpeg_of_small_numbers_is_seen_by_its_blocks(label, quality):
    with pytest.raises(ValueError, match=r"numbers beside 0.*JPEG makes"):
        check_hard_edges("a", through("JPEG", label, quality=quality))
    check_hard_edges("a", label)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_labels_of_small_squares_are_not_taken_for_jpeg(size):
    small = cells([1, 2, 3], 3)[::3, ::3]
    check_hard_edges("a", np.kron(small, np.ones((size, size), np.int32)))


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
