"""Pictures and TIFF stacks: read what their files hold, and bring them to 8 bits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from xlstm_unet_lab.data.files import without_path
from xlstm_unet_lab.ops.checks import array_of, finite

TIFF = (".tif", ".tiff")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", *TIFF)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TRANSPARENCY = ((1,), (2,))  # what ExtraSamples of a TIFF say of a last channel that is alpha, associated or not
PERCENTILES = (0.1, 99.9)  # of a deeper picture, which become 0 and 255
ORIENTATION = 274  # the tag of EXIF and TIFF
# Its values, and how the rows and columns stored become those shown: whether they change places, then the step along
# each. Source: TIFF 6.0, section 8 (Orientation).
TURNS = {1: (False, 1, 1), 2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1)}
TURNS |= {5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1)}
# Compressions of TIFF that change no number: none, CCITT, LZW, deflate (twice), PackBits, LZMA, Zstandard (twice), PNG.
WITHOUT_LOSS = (1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 34926, 50000, 34933)


def read_channels(path: Path, spatial_dims: int | None = None, *, stored: bool = False) -> np.ndarray:
    """One PNG, JPEG, BMP or TIFF file as viewers show it: (C, y, x) with C 1 or 3, or a TIFF stack (C, z, y, x).

    The dtype is the file's: uint8, or uint16, int32, float32 ... for deeper pictures. It is turned as its orientation
    says (EXIF, TIFF). Transparency, which a TIFF must name as such, is left out, a palette is looked up, samples of
    fewer than 8 bits are stretched to 0 ... 255, and where white is 0 it becomes the largest value.
    spatial_dims: 2 reads a picture, 3 a stack of slices, and None whichever the axes of a TIFF say; pages without a
    name are slices. stored: for labels, the samples as they lie in the file: fewer bits not stretched, and of a palette
    the indices, or the grey values where all its colours are grey.
    Raises ValueError, naming the file, for several pictures in one file, another number of channels, slices or time
    points where a picture is expected, NaN or infinity, a 16-bit colour PNG (only 8 of its bits could be read), and
    what cannot be decoded; with stored also for a compression that changes numbers (JPEG, whatever the ending).
    """
    try:
        with path.open("rb") as file:
            is_tiff = path.suffix.lower() in TIFF or file.read(4) in TIFF_STARTS
        array, orientation = _read_tiff(path, spatial_dims, stored) if is_tiff else _read_with_pillow(path, stored)
        if array.dtype == bool:
            array = array.astype(np.uint8) * np.uint8(1 if stored else 255)
        swapped, down, right = TURNS.get(orientation, TURNS[1])  # an orientation that there is not is none
        array = array.swapaxes(-2, -1) if swapped else array
        return finite("it", np.ascontiguousarray(array_of("it", array, "uif")[..., ::down, ::right]))
    except Exception as error:  # the decoders raise errors of many kinds, few of which name the file
        raise ValueError(f"{path} cannot be read: {without_path(error, path)}") from error


def resolution_of(path: Path) -> dict:
    """The resolution of a TIFF file, of the picture turned upright, as keyword arguments of `tifffile.imwrite`."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        swapped, *_ = TURNS.get(page.tags.valueof(ORIENTATION), TURNS[1])
        return {"resolution": page.resolution[:: -1 if swapped else 1], "resolutionunit": page.resolutionunit}


def _read_with_pillow(path: Path, stored: bool) -> tuple[np.ndarray, int]:
    """Channels as stored, (C, y, x), and the orientation."""
    from PIL import Image

    image: Image.Image
    with path.open("rb") as file:
        start = file.read(30)
    with Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF")) as image:
        pages, kind = getattr(image, "n_frames", 1), image.format
        depth, colour_type = start[24:26] if kind == "PNG" else (8, 0)  # bits a sample, and whether there is one alone
        if kind in ("PNG", "TIFF") and pages > 1:
            raise ValueError(f"it holds {pages} pictures; one a file is expected")
        if depth == 16 and colour_type != 0:
            raise ValueError("it is a 16-bit colour PNG, of which 8 bits would be lost; save it as TIFF")
        if kind == "BMP" and image.mode == "1" and start[28] != 1:  # bits a sample; Pillow reads bytes as bits
            raise ValueError("it is a BMP file with a palette of black and white; save it as PNG")
        if stored and kind == "JPEG":
            raise ValueError("it is a JPEG file, whose compression changes the numbers; save it as PNG")
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)  # Pillow turns a TIFF itself, and takes the tag away
        if image.mode == "LA":
            image = image.convert("L")
        elif image.mode not in ("1", "L", "I", "I;16", "I;16B", "F") and not (stored and image.mode == "P"):
            image = image.convert("RGB")
        array = np.asarray(image)
        if image.mode == "P":
            array = _numbers_of(array, np.array(image.getpalette("RGB")).reshape(-1, 3))
        if kind == "PNG" and image.mode == "I":
            array = array.astype(np.uint16)  # older releases of Pillow hand out 16-bit grey files as 32-bit integers
        if stored and image.mode == "L" and depth < 8:
            array = array // (255 // (2**depth - 1))  # Pillow has stretched them
        return _channels(array, "YXS"[: array.ndim]), orientation


def _numbers_of(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The label in a file with a palette (n, 3): indices where they stand for colours. Where all are grey the file is a
    grey one that was packed, in whatever order, and its numbers are the grey values."""
    used = palette[np.unique(indices), 0]
    grey = (palette == palette[:, :1]).all() and len(np.unique(used)) == len(used)
    return palette[indices, 0].astype(np.uint8) if grey else indices


def _read_tiff(path: Path, spatial_dims: int | None, stored: bool) -> tuple[np.ndarray, int]:
    """Channels as stored, (C, *spatial), and the orientation."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page, axes = series.keyframe, series.get_axes(squeeze=True)
        as_stack = spatial_dims == 3 or (spatial_dims is None and len(set(axes) - set("CS")) > 2)
        if len(file.series) != 1:
            raise ValueError(f"it holds {len(file.series)} pictures stored in different ways; one a file is expected")
        transparent = page.extrasamples in TRANSPARENCY
        if page.samplesperpixel - transparent not in (1, 3):  # asked before Pillow may read it, which drops the others
            raise ValueError(f"it holds {page.samplesperpixel} channels; save it as RGB, or the channels as grey files")
        white_is_zero = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if stored and page.compression not in WITHOUT_LOSS:
            method = tifffile.COMPRESSION(page.compression).name
            raise ValueError(f"its compression ({method}) may change the numbers; save it without, or as PNG")
        try:
            array = series.asarray().reshape(series.get_shape(squeeze=True))
        except ValueError as error:
            if "imagecodecs" not in str(error) or as_stack or white_is_zero:
                raise
            # Pillow brings decoders of its own for LZW and JPEG inside a TIFF.
            return _read_with_pillow(path, stored)
        if white_is_zero and not stored:
            white = 2**page.bitspersample - 1 if array.dtype.kind in "bu" else array.max()
            array = (white - array).astype(array.dtype)
        if page.colormap is not None and page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            palette = page.colormap.T >> 8  # which holds 16 bits a colour
            array = _numbers_of(array, palette) if stored else palette[array].astype(np.uint8)
            axes += "" if stored else "S"
        if transparent:
            array = array.take(range(page.samplesperpixel - 1), axes.index("S"))
        return _channels(array, axes, as_stack), page.tags.valueof(ORIENTATION, 1)


def _channels(array: np.ndarray, axes: str, as_stack: bool = False) -> np.ndarray:
    """A picture as (C, y, x), a stack as (C, z, y, x). axes: a letter each, as tifffile has them; of a stack, I and Q
    are pages unnamed."""
    letters, order = (axes.replace("I", "Z").replace("Q", "Z"), "CZYX") if as_stack else (axes.replace("C", "S"), "SYX")
    if sorted(letters) not in (sorted(order), sorted(order[1:])) or not array.size:
        wanted = "a volume has z, y, x and perhaps channels" if as_stack else "one picture is expected, grey or colour"
        raise ValueError(f"it holds {array.dtype} {array.shape}, axes {axes}; {wanted}")
    array = array.transpose([letters.index(letter) for letter in order if letter in letters])
    array = array if order[0] in letters else array[None]
    if not as_stack and len(array) not in (1, 3):
        raise ValueError(f"it holds {len(array)} channels; save it as RGB, or the channels as grey files")
    return array


def to_uint8(picture: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A picture in 8 bits, and the values that became 0 and 255: those at its `PERCENTILES`.

    A uint8 picture is returned as it is, with None. All channels are scaled alike, so that colours stay. Where the two
    percentiles are equal (few bright dots on black) the extremes are taken; a constant picture becomes 0.
    Raises ValueError for NaN or infinity in the picture.
    """
    if picture.dtype == np.uint8:
        return picture, None
    finite("the picture", picture)
    bottom, top = (float(value) for value in np.percentile(picture, PERCENTILES))
    if bottom == top:
        bottom, top = float(picture.min()), float(picture.max())
    scaled = (picture.astype(np.result_type(picture, np.float32)) - bottom) / ((top - bottom) or 1.0)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8), (bottom, top)


def in_eight_bits(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The files (or layers) of one picture, (C, y, x) each, as one in 8 bits: each scaled by itself, as `to_uint8`
    does, so that a faint stain does not fade beside a bright one."""
    return np.concatenate([to_uint8(part)[0] for part in parts])
