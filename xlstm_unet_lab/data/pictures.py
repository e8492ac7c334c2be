"""Pictures and TIFF stacks: read what their files hold, find the label that goes with each, bring them to 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from xlstm_unet_lab.data.files import check_pairs, files_by_name

TIFF = (".tif", ".tiff")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", *TIFF)
TRANSPARENCY = ((1,), (2,))  # what ExtraSamples of a TIFF say of a last channel that is alpha, associated or not


def read_picture(path: str | Path, *, stored: bool = False) -> np.ndarray:
    """One PNG, JPEG, BMP or TIFF picture as viewers show it: (y, x), or (y, x, 3) in colour.

    The dtype is the file's: uint8, or uint16, int32, float32 ... for deeper pictures. Transparency, which a TIFF must
    name as such, is left out, a palette is looked up, and samples of fewer than 8 bits are stretched to 0 ... 255.
    stored: the samples as they lie in the file, for labels: the indices of a palette, and fewer bits not stretched.
    Three pages or planes of a TIFF are the three colours. Raises FileNotFoundError, and ValueError, naming the file,
    for another ending, several pictures in one file, another number of channels, NaN or infinity, a 16-bit colour PNG
    (only 8 of its bits could be read), stored samples of a JPEG (which are lost) and what cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix!r}; pictures end in {', '.join(ENDINGS)}")
    decode = _read_tiff if ending in TIFF else _read_with_pillow
    with _naming(path):
        return _grey_or_rgb(_in_8_bits(decode(path, stored), stored))


def read_channels(path: Path, spatial_dims: int | None = None, *, stored: bool = False) -> np.ndarray:
    """A picture as (C, y, x), or a TIFF stack as (C, z, y, x); `stored` and errors as in `read_picture`.

    spatial_dims: whether the pages of a TIFF are slices (3) or channels (2); None: slices, unless it says otherwise.
    """
    if path.suffix.lower() in TIFF and spatial_dims != 2:
        import tifffile

        with _naming(path), tifffile.TiffFile(path) as file:
            series = file.series[0]
            if spatial_dims == 3 or len(set(series.axes) - set("CS")) > 2:
                return _in_8_bits(_channels_of_stack(series.asarray(), series.axes), stored)
    return np.moveaxis(np.atleast_3d(read_picture(path, stored=stored)), -1, 0)


def resolution(path: Path) -> dict:
    """The resolution of a TIFF file, as keyword arguments of `tifffile.imwrite`."""
    import tifffile

    with _naming(path), tifffile.TiffFile(path) as file:
        return {"resolution": file.pages[0].resolution, "resolutionunit": file.pages[0].resolutionunit}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """The decoders raise errors of many kinds, few of which name the file: here they become one kind that does."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_with_pillow(path: Path, stored: bool) -> np.ndarray:
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF")) as image:
        depth, deep_colour = _bits_of_png(path) if image.format == "PNG" else (8, False)
        if image.format in ("PNG", "TIFF") and getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"it holds {image.n_frames} pictures; one a file is expected")
        if deep_colour:
            raise ValueError("it is a 16-bit colour PNG, of which 8 bits would be lost; save it as TIFF")
        if stored and image.format == "JPEG":
            raise ValueError("it is a JPEG file, whose compression changes the numbers; save it as PNG")
        if image.mode == "LA":
            image = image.convert("L")
        elif image.mode not in ("1", "L", "I", "I;16", "I;16B", "F") and not (stored and image.mode == "P"):
            image = image.convert("RGB")
        array = np.asarray(image)
        if image.format == "PNG" and image.mode == "I":
            array = array.astype(np.uint16)  # older releases of Pillow hand out 16-bit grey files as 32-bit integers
        if stored and image.mode == "L" and depth < 8:
            array = array // (255 // (2**depth - 1))  # Pillow has stretched them
        return array


def _bits_of_png(path: Path) -> tuple[int, bool]:
    """Bits a sample, and whether several channels have 16 of them each, from the first chunk of a PNG."""
    with path.open("rb") as file:
        depth, colour_type = file.read(26)[24:]
    return depth, depth == 16 and colour_type != 0


def _read_tiff(path: Path, stored: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ValueError(f"it holds {len(file.series)} pictures of different shapes; one a file is expected")
        series = file.series[0]
        page, axes = series.keyframe, series.get_axes(squeeze=True)
        transparent = page.extrasamples in TRANSPARENCY
        if page.samplesperpixel - transparent not in (1, 3):  # asked before Pillow may read it, which drops the others
            raise ValueError(f"it holds {page.samplesperpixel} channels; save it as RGB, or the channels as grey files")
        try:
            array = series.asarray().reshape(series.get_shape(squeeze=True))
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _read_with_pillow(path, stored)  # which brings decoders of its own for LZW and JPEG inside a TIFF
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not stored:
            return (page.colormap.T[array] >> 8).astype(np.uint8)  # the palette holds 16 bits a colour
    if "S" in axes:  # samples: the channels of a pixel, stored together or plane by plane
        array = np.moveaxis(array, axes.index("S"), -1)
        return array[..., :-1] if transparent else array
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and len(array) == 3 else array


def _channels_of_stack(array: np.ndarray, axes: str) -> np.ndarray:
    """A TIFF's array as (C, z, y, x). axes: a letter an axis, as tifffile names them; I and Q are pages unnamed."""
    letters = axes.replace("I", "Z").replace("Q", "Z")
    if sorted(letters.replace("C", "")) != ["X", "Y", "Z"]:
        raise ValueError(f"its axes are {axes}, of sizes {array.shape}; a volume has z, y, x and perhaps channels")
    array = array.transpose([letters.index(letter) for letter in "CZYX" if letter in letters])
    return array if "C" in letters else array[None]


def _in_8_bits(array: np.ndarray, stored: bool) -> np.ndarray:
    """Samples of one bit as uint8: 0 and 1 as stored, 0 and 255 as shown; others as they are."""
    return array.astype(np.uint8) * np.uint8(1 if stored else 255) if array.dtype == bool else array


def _grey_or_rgb(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not np.isfinite(array).all():
        raise ValueError("it holds NaN or infinity; replace them first")
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or array.dtype.kind not in "uif" or not array.size:
        raise ValueError(f"it holds {array.dtype} {array.shape}; one picture, (y, x) or (y, x, 3), is expected")
    return np.ascontiguousarray(array)


def as_rgb(picture: np.ndarray) -> np.ndarray:
    """A grey picture (y, x) in three equal channels (y, x, 3); a colour picture as it is."""
    return np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture


def read_rgb(path: str | Path) -> np.ndarray:
    """An 8-bit picture in colour, uint8 (y, x, 3): a grey one fills all three channels.

    Raises what `read_picture` raises, and ValueError, naming the file, for a picture that is not 8-bit.
    """
    picture = read_picture(path)
    if picture.dtype != np.uint8:
        raise ValueError(f"{path} is {picture.dtype}; 8-bit images are expected, convert it to 8 bits first")
    return as_rgb(picture)


def to_uint8(
    picture: np.ndarray, low: float = 0.1, high: float = 99.9
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A picture in 8 bits, and the values that became 0 and 255: its percentiles `low` and `high`.

    A uint8 picture is returned as it is, with None. All channels are scaled alike, so that colours stay. Where the two
    percentiles are equal (few bright dots on black) the extremes are taken; a constant picture becomes 0.
    Raises ValueError for percentiles out of order or range, and for NaN or infinity in the picture.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"low is {low} and high {high}; give two percentiles, 0 <= low < high <= 100")
    if picture.dtype == np.uint8:
        return picture, None
    if not np.isfinite(picture).all():
        raise ValueError("the picture holds NaN or infinity; replace them first, for instance with np.nan_to_num")
    bottom, top = (float(value) for value in np.percentile(picture, (low, high)))
    if bottom == top:
        bottom, top = float(picture.min()), float(picture.max())
    values = picture.astype(np.result_type(picture.dtype, np.float32))
    scaled = (values - bottom) / ((top - bottom) or 1.0)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8), (bottom, top)


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder: name without ending -> path, in name order. Hidden files are passed over.

    Raises FileNotFoundError for a folder that is missing or without pictures, ValueError when two pictures differ in
    their ending only.
    """
    found = files_by_name(folder, ENDINGS)
    if not found:
        raise FileNotFoundError(f"{folder} holds no pictures; files ending in {', '.join(ENDINGS)} are expected")
    return found


def paired(images: Path, labels: Path, suffix: str = "") -> list[tuple[str, Path, Path]]:
    """The pictures of one folder, each with its label in another, in name order: (name, image, label).

    A label is called as its image, followed by `suffix`. Raises what `pictures_in` raises, and ValueError naming
    images without a label and labels without an image.
    """
    found = pictures_in(images)
    marked = {name.removesuffix(suffix): path for name, path in pictures_in(labels).items() if name.endswith(suffix)}
    check_pairs(f"{images} and {labels}", found.keys(), marked.keys())
    return [(name, path, marked[name]) for name, path in found.items()]
