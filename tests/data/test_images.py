"""The one reader of images and labels: numbers as stored, refusals with the file's name, pictures as prepared."""

import gzip
import struct
import zlib

import nibabel
import numpy as np
import pytest
import tifffile
from imageio.v3 import imwrite
from PIL import Image

from xlstm_unet_lab.data.images import read_case, read_label
from xlstm_unet_lab.data.pictures import in_eight_bits, to_uint8

NUMBERS = np.random.default_rng(0).integers(0, 3, (6, 10)).astype(np.uint8)
PALETTE = [0, 0, 0, 200, 10, 10, 10, 200, 10]


def shallow_png(path, bits):
    """NUMBERS as a grey PNG of few bits a sample, which no library here writes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    length = -(-10 * bits // 8)  # bytes a row
    rows = ["".join(f"{number:0{bits}b}" for number in row).ljust(8 * length, "0") for row in NUMBERS.tolist()]
    rows = b"".join(b"\0" + int(row, 2).to_bytes(length, "big") for row in rows)
    header = struct.pack(">IIBBBBB", 10, 6, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def with_palette(path):
    picture = Image.fromarray(NUMBERS, mode="L").convert("P")
    picture.putdata(NUMBERS.ravel().tolist())
    picture.putpalette(PALETTE)
    picture.save(path)


def shuffled_grey(path):
    """NUMBERS as grey values, packed as a palette in another order, as programs that make files small do."""
    order = np.array([2, 0, 1], np.uint8)  # which index stands for each number
    picture = Image.fromarray(order[NUMBERS], mode="L").convert("P")
    picture.putdata(order[NUMBERS].ravel().tolist())
    picture.putpalette(np.repeat(np.argsort(order), 3).tolist())
    picture.save(path)


def grey(dtype=np.uint8, channels=None):
    array = NUMBERS.astype(dtype) if channels is None else np.stack([NUMBERS.astype(dtype)] * channels, -1)
    return lambda path: tifffile.imwrite(path, array) if path.suffix == ".tif" else imwrite(path, array)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("two bits.png", lambda path: shallow_png(path, 2)),
        ("four bits.png", lambda path: shallow_png(path, 4)),
        *((f"palette{ending}", with_palette) for ending in (".png", ".bmp", ".tif")),
        *((f"packed{ending}", shuffled_grey) for ending in (".png", ".bmp", ".tif")),
        *((f"{np.dtype(dtype).name}.tif", grey(dtype)) for dtype in (np.uint16, np.int32, np.int64, np.float32, float)),
        ("16 bits.png", grey(np.uint16)),
        ("grey in three.png", grey(channels=3)),
        ("grey in three.tif", grey(channels=3)),
    ],
)
def test_the_numbers_of_a_label_are_those_stored(tmp_path, name, save):
    save(tmp_path / name)
    label, spacing = read_label(tmp_path / name)
    assert label.dtype == np.int32 and np.array_equal(label, NUMBERS) and spacing == (1.0, 1.0)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_one_bit_a_pixel_is_0_and_1_in_a_label(tmp_path, ending):
    Image.fromarray(NUMBERS > 0).save(tmp_path / f"a{ending}")
    assert np.array_equal(read_label(tmp_path / f"a{ending}")[0], NUMBERS > 0)


def test_a_label_of_slices_and_one_of_voxels(tmp_path):
    slices = np.stack([NUMBERS, NUMBERS.T.reshape(6, 10), NUMBERS])
    tifffile.imwrite(tmp_path / "a.tif", slices, metadata={"axes": "ZYX"})
    label, spacing = read_label(tmp_path / "a.tif")
    assert np.array_equal(label, slices) and spacing == (1.0, 1.0, 1.0)
    turned = nibabel.Nifti1Image(slices.T.astype(np.float32)[::-1], np.diag([-1.0, 2, 3, 1]))
    nibabel.save(turned, tmp_path / "a.nii.gz")
    label, spacing = read_label(tmp_path / "a.nii.gz")
    assert np.array_equal(label, slices) and spacing == (3.0, 2.0, 1.0)


def volume(array):
    return lambda path: nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def picture(array, **options):
    return lambda path: imwrite(path, array, plugin="pillow", **options)


def lossy_tiff(compression):
    return lambda path: tifffile.imwrite(
        path, np.kron(NUMBERS, np.full((16, 16), 100, np.uint8)), compression=compression
    )


def tiff(value, dtype=None):
    return lambda path: tifffile.imwrite(path, np.array([[value, 1]], dtype))


@pytest.mark.parametrize(
    ("name", "save", "error", "message"),
    [
        (
            "half.nii.gz",
            volume(np.full((2, 3, 4), 0.5, np.float32)),
            ValueError,
            r"holds \[0\.5\]; a label",
        ),
        ("four.nii", volume(np.zeros((2, 3, 4, 5), np.float32)), ValueError, r"shape \(2, 3, 4, 5\); one three-dim"),
        ("colour.png", picture(np.eye(4, 12, dtype=np.uint8).reshape(4, 4, 3)), ValueError, "is in colour; a label"),
        ("lossy.jpg", picture(NUMBERS), ValueError, "cannot be read: it is a JPEG file, whose compression changes"),
        ("lossy.png", picture(NUMBERS, extension=".jpg"), ValueError, "it is a JPEG file, whose compression changes"),
        ("lossy.tif", lossy_tiff("jpeg"), ValueError, r"its compression \(JPEG\) may change the numbers"),
        ("wavelets.tif", lossy_tiff("jpeg2000"), ValueError, r"its compression \(JPEG2000\) may change the numbers"),
        ("negative.tif", tiff(-1), ValueError, r"holds \[-1\]; a label holds whole numbers from 0 on, below 2\^31"),
        ("id.tif", tiff(2**31), ValueError, r"holds \[2147483648\]; a label"),
        ("rounded.tif", tiff(2**31 - 1, np.float32), ValueError, r"holds \[2147483648\.0\]; a label"),
        ("float.tif", tiff(1e20), ValueError, r"holds \[1e\+20\]; a label"),
        ("slide.svs", lambda path: path.touch(), ValueError, "has an ending that cannot be read; known are"),
        ("gone.png", lambda path: None, FileNotFoundError, "is missing"),
        ("gone.nii", lambda path: None, FileNotFoundError, "is missing"),
    ],
)
def test_what_is_no_label_is_refused_by_name(tmp_path, name, save, error, message):
    save(tmp_path / name)
    with pytest.raises(error, match=rf"{name} .*{message}"):
        read_label(tmp_path / name)


@pytest.mark.parametrize(("place", "value"), [(70, 1), (123, 6)], ids=["data type", "unit"])
def test_an_unknown_code_in_a_header_is_named_with_its_file(tmp_path, place, value):
    volume(np.zeros((2, 3, 4), np.uint8))(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[place] = value
    (tmp_path / "a.nii").write_bytes(content)
    for read in (read_case, read_label):
        with pytest.raises(ValueError, match=r"a\.nii is not a NIfTI file that can be read"):
            read(tmp_path / "a.nii")


def test_each_file_of_a_picture_is_brought_to_8_bits_by_itself(tmp_path):
    """As `folder` prepares it and as networks see it: a faint channel must not fade, one of 8 bits not be stretched."""
    random = np.random.default_rng(1)
    parts = [random.integers(0, top, (6, 10)).astype(dtype) for top, dtype in ((9, np.uint8), (900, np.uint16))]
    for number, part in enumerate(parts):
        imwrite(tmp_path / f"{number}.png", part, plugin="pillow")
    case = read_case([tmp_path / "0.png", tmp_path / "1.png"])
    assert np.array_equal(case.image, np.stack(parts))
    assert np.array_equal(in_eight_bits(case.parts), np.stack([parts[0], to_uint8(parts[1])[0]]))


def test_rounding_is_no_fraction(tmp_path):
    for number in (1.00000006, 0.99999, -1e-7):
        tifffile.imwrite(tmp_path / "a.tif", np.array([[number, 2]]))
        assert read_label(tmp_path / "a.tif")[0].tolist() == [[round(number), 2]]


def test_a_header_that_sets_voxels_into_itself_is_refused(tmp_path):
    volume(np.ones((2, 3, 4), np.uint8))(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = struct.pack("<f", 0.0)
    (tmp_path / "a.nii").write_bytes(content)
    for read in (read_case, read_label):
        with pytest.raises(ValueError, match=r"a\.nii says that its voxels begin at byte 0 .*352 or more"):
            read(tmp_path / "a.nii")


def test_a_spacing_is_the_number_that_was_meant(tmp_path):
    affine = np.diag([7.7, 0.8, 0.0003, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), affine), tmp_path / "a.nii.gz")
    assert read_case(tmp_path / "a.nii.gz").spacing == (0.0003, 0.8, 7.7)


@pytest.mark.parametrize("place", [0.3, 0.6, -6], ids=["middle", "later", "checksum"])
def test_a_flipped_bit_in_a_packed_volume_is_seen(tmp_path, place):
    volume(np.random.default_rng(0).integers(0, 3, (24, 20, 18)).astype(np.uint8))(tmp_path / "a.nii.gz")
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[place if place < 0 else int(place * len(content))] ^= 4
    (tmp_path / "a.nii.gz").write_bytes(content)
    for read in (read_case, read_label):
        with pytest.raises(ValueError, match=r"a\.nii\.gz"):
            read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("size", [0, -2, np.nan, np.inf, 1e-9, 1e9])
@pytest.mark.parametrize(("name", "sform_code"), [("a.nii", 0), ("a.nii.gz", 0), ("a.nii", 77)])
def test_sizes_of_voxels_are_never_made_up(tmp_path, name, sform_code, size):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header.set_zooms((1, 2, 3))
    content = bytearray(image.to_bytes())
    content[80:84] = np.float32(size).tobytes()  # pixdim[1]
    content[254:256] = np.int16(sform_code).tobytes()  # there is no 77: nibabel takes it for 0
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=r"a\.nii.* has voxels of .* are expected") as refused:
        read_case(tmp_path / name)
    assert str(refused.value).count(name) == 1


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_numbers_that_are_not_finite_are_counted_and_found(tmp_path, name):
    voxels = np.ones((4, 5, 6), np.float32)
    voxels[1, 2, 3:5] = np.nan, np.inf
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
    for read in (read_case, read_label):
        with pytest.raises(
            ValueError, match=rf"{name} holds 2 values that are NaN or infinite, the first at \(1, 2, 3\)"
        ):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"a page", gzip.compress(b"a page", mtime=0), gzip.compress(bytes(500), mtime=0)]
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.tif", "a.jpg"])
def test_an_error_names_its_file_once(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_label(tmp_path / name)
    assert str(refused.value).count(name) == 1


def test_slices_stored_in_two_ways_are_refused_and_not_half_of_them_read(tmp_path):
    slices = np.stack([NUMBERS] * 5)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for part, compression in ((slices[:2], None), (slices[2:], "zlib")):
            file.write(part, photometric="minisblack", compression=compression)
    for read in (lambda path: read_case(path, spatial_dims=3), read_label):
        with pytest.raises(ValueError, match=r"a\.tif cannot be read: it holds 2 pictures stored in different ways"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [read_case, read_label])
def test_a_bitmap_whose_bytes_would_be_taken_for_bits_is_refused(tmp_path, read):
    image = Image.fromarray((NUMBERS > 1).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="palette of black and white; save it as PNG"):
        read(tmp_path / "a.bmp")


@pytest.mark.parametrize("ending", [".png", ".bmp", ".jpg"])
def test_a_tiff_is_known_by_what_it_holds(tmp_path, ending):
    tifffile.imwrite(tmp_path / "a.tif", NUMBERS.astype(np.uint8), photometric="minisblack")
    path = (tmp_path / "a.tif").rename(tmp_path / f"a{ending}")
    assert np.array_equal(read_label(path)[0], NUMBERS)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 7)))
    with pytest.raises(ValueError, match=r"compression .JPEG. may change the numbers"):
        read_label(path)
