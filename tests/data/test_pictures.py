"""Pictures of every common format and awkward kind, and 8 bits."""

import struct
import sys
import zlib
from unittest import mock

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data_recipes.shared.pictures import read_picture
from xlstm_unet_lab.data import pictures
from xlstm_unet_lab.data.pictures import read_channels, to_uint8

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
FLOAT = RANDOM.normal(size=(6, 9)).astype(np.float32)


def save(path, array, mode=None, **options):
    Image.fromarray(array).convert(mode).save(path, **options)


def deep_colour_png(path):
    """A 16-bit RGB PNG of 6 x 9 pixels, which no library here writes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "TIFF"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_what_was_saved_is_read(tmp_path, ending, array):
    save(tmp_path / f"a.{ending}", array)
    read = read_picture(tmp_path / f"a.{ending}")
    assert read.dtype == np.uint8 and np.array_equal(read, array)


@pytest.mark.parametrize("ending", ["jpg", "JPEG"])
def test_jpeg(tmp_path, ending):
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    save(tmp_path / f"a.{ending}", smooth, quality=95)
    assert np.abs(read_picture(tmp_path / f"a.{ending}").astype(int) - smooth).max() <= 4


@pytest.mark.parametrize(("array", "mode"), [(RGB, "RGBA"), (GREY, "LA")])
def test_transparency_is_left_out(tmp_path, array, mode):
    picture = Image.fromarray(array).convert(mode)
    picture.putalpha(Image.fromarray(GREY))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        assert np.array_equal(read_picture(tmp_path / name), array)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_channel_of_a_tiff_that_is_no_transparency_is_not_left_out(tmp_path, channels):
    stains = np.concatenate([RGB, RGB], -1)[..., :channels]
    tifffile.imwrite(tmp_path / "a.tif", stains, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=rf"a\.tif cannot be read: it holds {channels} channels; save it as RGB"):
        read_picture(tmp_path / "a.tif")


def test_nor_is_it_by_another_decoder(codecs, tmp_path):
    stains = Image.frombytes("RGBX", (9, 6), np.concatenate([RGB, GREY[..., None]], -1).tobytes())
    stains.save(tmp_path / "a.tif", compression="tiff_lzw")
    with pytest.raises(ValueError, match="it holds 4 channels"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_transparency_of_a_tiff_is_that_which_it_names_so(tmp_path, kind):
    alpha = np.concatenate([RGB, GREY[..., None]], -1)
    for planes in ("contig", "separate"):
        array = alpha if planes == "contig" else np.moveaxis(alpha, -1, 0)
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig=planes, extrasamples=[kind])
        assert np.array_equal(read_picture(tmp_path / "a.tif"), RGB)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_a_palette_is_looked_up(tmp_path, ending):
    few = RGB // 128 * 255  # eight colours, which a palette can hold without loss
    Image.fromarray(few).quantize(8, dither=Image.Dither.NONE).save(tmp_path / f"a.{ending}")
    assert np.array_equal(read_picture(tmp_path / f"a.{ending}"), few)


def test_one_bit_a_pixel_becomes_0_and_255(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif"):
        save(tmp_path / name, np.where(GREY > 127, 255, 0).astype(np.uint8), "1")
    tifffile.imwrite(tmp_path / "b.tif", GREY > 127, photometric="minisblack")
    for name in ("a.png", "a.bmp", "a.tif", "b.tif"):
        read = read_picture(tmp_path / name)
        assert read.dtype == np.uint8 and np.array_equal(read, (GREY > 127) * 255)


def test_cmyk_is_not_taken_for_transparency(tmp_path):
    save(tmp_path / "a.jpg", np.full((16, 16, 3), (200, 60, 60), np.uint8), "CMYK", quality=95)
    assert np.abs(read_picture(tmp_path / "a.jpg").astype(int) - (200, 60, 60)).max() <= 6


@pytest.mark.parametrize("array", [DEEP, DEEP[..., 0], FLOAT, FLOAT.astype(np.float64), DEEP[..., 0].astype(np.int32)])
def test_deeper_tiff_keeps_its_values(tmp_path, array):
    tifffile.imwrite(tmp_path / "a.tif", array, compression="zlib")
    read = read_picture(tmp_path / "a.tif")
    assert read.dtype == array.dtype and np.array_equal(read, array)


def test_16_bit_grey_png(tmp_path):
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert read.dtype == np.uint16 and np.array_equal(read, DEEP[..., 0])


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack", "metadata": {"axes": "CYX"}},
        {"photometric": "minisblack", "imagej": True, "metadata": {"axes": "CYX"}},
        {"photometric": "rgb", "planarconfig": "separate"},
    ],
)
def test_channels_stored_plane_by_plane_are_moved_last(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(DEEP, -1, 0), **options)
    assert np.array_equal(read_picture(tmp_path / "a.tif"), DEEP)


def test_a_page_axis_of_one_is_dropped(tmp_path):
    for array in (GREY, RGB, GREY[:1], RGB[:1]):
        tifffile.imwrite(tmp_path / "a.tif", array[None])
        assert np.array_equal(read_picture(tmp_path / "a.tif"), array)


@pytest.fixture(params=[True, False], ids=["with imagecodecs", "without imagecodecs"])
def codecs(request, monkeypatch):
    """Tifffile with the codecs that are installed, and as it is where only its own are: it then lacks LZW."""
    if not request.param:
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tifffile"]:
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_compressed_tiff(codecs, tmp_path, compression):
    save(tmp_path / "a.tif", RGB, compression=compression)
    assert np.array_equal(read_picture(tmp_path / "a.tif"), RGB)


def test_compressed_pages_are_refused(codecs, tmp_path):
    first, *rest = (Image.fromarray(GREY // (k + 1)) for k in range(2))
    first.save(tmp_path / "a.tif", save_all=True, append_images=rest, compression="tiff_lzw")
    with pytest.raises(ValueError, match=r"a\.tif cannot be read: it holds (2 pictures|uint8 \(2, 6, 9\))"):
        read_picture(tmp_path / "a.tif")


def five_pages(path):
    tifffile.imwrite(path, np.stack([GREY] * 5))


def pages_of_two_sizes(path):
    with tifffile.TiffWriter(path) as file:
        file.write(GREY)
        file.write(GREY[:3])


def animation(path):
    first, *rest = (Image.fromarray(GREY // (k + 1)) for k in range(2))
    first.save(path, save_all=True, append_images=rest)


def not_finite(path):
    tifffile.imwrite(path, np.where(GREY > 200, np.nan, FLOAT))


def cut_short(path):
    save(path, RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.tif", five_pages, r"holds uint8 \(5, 6, 9\), axes QYX; one picture"),
        ("a.tif", pages_of_two_sizes, "holds 2 pictures of different shapes"),
        ("a.png", animation, "holds 2 pictures"),
        ("a.png", deep_colour_png, "16-bit colour PNG.*save it as TIFF"),
        ("a.tif", not_finite, "NaN or infinite"),
        ("a.png", cut_short, "truncated"),
        ("a.png", lambda path: path.write_text("a page"), "cannot identify"),
        ("a.tif", lambda path: path.write_text("a page"), "not a TIFF"),
    ],
)
def test_what_is_no_single_picture_is_refused_by_name(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} cannot be read: .*{message}"):
        read_picture(tmp_path / name)


def test_other_endings_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"a\.gif has an ending that cannot be read; known are .*\.png"):
        read_picture(tmp_path / "a.gif")
    with pytest.raises(FileNotFoundError, match=r"a\.png is missing"):
        read_picture(tmp_path / "a.png")


# To 8 bits


def test_8_bits_stay_as_they_are():
    picture, limits = to_uint8(RGB)
    assert picture is RGB and limits is None


@settings(deadline=None, max_examples=30)
@given(arrays.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), st.data())
def test_order_is_kept_in_and_between_channels(picture, data):
    low = data.draw(st.sampled_from([0.0, 0.1, 25.0]))
    with mock.patch.object(pictures, "PERCENTILES", (low, 100 - low)):
        scaled, (bottom, top) = to_uint8(picture)
    assert scaled.dtype == np.uint8 and scaled.shape == picture.shape and bottom <= top
    assert (np.diff(scaled.ravel()[np.argsort(picture.ravel(), kind="stable")].astype(int)) >= 0).all()
    assert (scaled[picture <= bottom] == 0).all() and (bottom == top or (scaled[picture >= top] == 255).all())


def test_known_percentiles(monkeypatch):
    monkeypatch.setattr(pictures, "PERCENTILES", (10, 90))
    ramp = np.arange(1001, dtype=np.uint16).reshape(7, 143) * 60
    scaled, limits = to_uint8(ramp)
    assert limits == (6000, 54000)
    assert scaled.ravel()[[0, 100, 500, 900, 1000]].tolist() == [0, 0, 128, 255, 255]
    turned, _ = to_uint8(-ramp.astype(np.float64) / 7)
    assert np.abs(turned.astype(int) + scaled - 255).max() <= 1  # halves are rounded to even


def test_a_constant_picture_is_black_and_few_dots_are_seen():
    dots = np.zeros((100, 100), np.float32)
    assert not to_uint8(dots + 7)[0].any()
    dots[50, 50] = 0.25
    scaled, limits = to_uint8(dots)
    assert limits == (0, 0.25) and scaled[50, 50] == 255 and scaled.sum() == 255


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_uint8(np.where(GREY > 200, np.nan, FLOAT))


TAGGED = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
# What a viewer shows for each value of the orientation tag, by NumPy's own turns.
SHOWN = {
    **{1: TAGGED, 2: np.fliplr(TAGGED), 3: np.rot90(TAGGED, 2), 4: np.flipud(TAGGED), 5: TAGGED.T},
    **{6: np.rot90(TAGGED, -1), 7: np.rot90(TAGGED, 2).T, 8: np.rot90(TAGGED), 0: TAGGED, 9: TAGGED},
}


@pytest.mark.parametrize("tag", SHOWN)
@pytest.mark.parametrize("stored", [False, True], ids=["image", "label"])
def test_a_file_is_turned_as_its_tag_says(tmp_path, tag, stored):
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(TAGGED).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", TAGGED, extratags=[(274, 3, 1, tag, True)])
    tifffile.imwrite(tmp_path / "b.tif", TAGGED, extratags=[(274, 3, 1, tag, True)], compression="lzw")
    for name in ("a.png", "a.tif", "b.tif"):
        assert np.array_equal(read_channels(tmp_path / name, stored=stored), SHOWN[tag][None]), name
    stack = np.stack([TAGGED, TAGGED // 2])
    tifffile.imwrite(
        tmp_path / "c.tif",
        stack,
        extratags=[(274, 3, 1, tag, True)],
        metadata={"axes": "ZYX"},
        photometric="minisblack",
    )
    assert np.array_equal(read_channels(tmp_path / "c.tif", stored=stored)[0], [SHOWN[tag], SHOWN[tag] // 2])


def test_a_photo_is_turned_in_colour(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    photo = np.zeros((16, 32, 3), np.uint8)
    photo[:, :16] = (200, 30, 30)
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    read = read_picture(tmp_path / "a.jpg").astype(int)
    assert read.shape == (32, 16, 3) and np.abs(read - np.rot90(photo, -1)).max() < 20


@pytest.mark.parametrize("array", [TAGGED, TAGGED.astype(np.uint16) * 200, TAGGED > 100], ids=["8", "16", "1"])
def test_where_white_is_0_a_picture_is_inverted_and_a_label_read_as_stored(tmp_path, array):
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    largest = 255 if array.dtype == bool else np.iinfo(array.dtype).max
    shown = (~array) * np.uint8(255) if array.dtype == bool else largest - array
    assert np.array_equal(read_picture(tmp_path / "a.tif"), shown)
    assert np.array_equal(read_channels(tmp_path / "a.tif", stored=True)[0], array)


def test_where_white_is_0_a_picture_of_fractions_is_inverted_between_its_ends(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", FLOAT, photometric="miniswhite")
    read, stored = read_picture(tmp_path / "a.tif"), FLOAT
    assert np.allclose(read, stored.max() - stored)


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "QYX"])
@pytest.mark.parametrize("count", [2, 3])
def test_slices_and_time_points_are_no_colours(tmp_path, axes, count):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY] * count), photometric="minisblack", metadata={"axes": axes})
    with pytest.raises(ValueError, match=f"axes {axes}; one picture is expected"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\x1b[31mb.tif", "it's.png", "both'\".jpg", "back\\slash.bmp", "plain.tiff"]
)
def test_a_path_stands_in_an_error_once_however_it_is_written(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_channels(path)
    assert str(error.value).count(tmp_path.name) == 1
