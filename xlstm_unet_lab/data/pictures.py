"""Pictures and TIFF stacks: read what their files hold, find the label that goes with each, bring them to 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xlstm_unet_lab.data.files import check_pairs, files_by_name
from xlstm_unet_lab.ops.checks import number

TIFF = (".tif", ".tiff")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", *TIFF)
TRANSPARENCY = ((1,), (2,))  # what ExtraSamples of a TIFF say of a last channel that is alpha, associated or not


def read_channels(path: Path, spatial_dims: int | None = None, *, stored: bool = False) -> np.ndarray:
    """One PNG, JPEG, BMP or TIFF file as viewers show it: (C, y, x) with C 1 or 3, or a TIFF stack (C, z, y, x).

    The dtype is the file's: uint8, or uint16, int32, float32 ... for deeper pictures. Transparency, which a TIFF must
    name as such, is left out, a palette is looked up, and samples of fewer than 8 bits are stretched to 0 ... 255.
    spatial_dims: 2 takes three pages or planes of a TIFF for the three colours, 3 takes pages for slices, and None does
    so unless the file says otherwise. stored: the samples as they lie in the file, for labels: the indices of a
    palette, and fewer bits not stretched.
    Raises FileNotFoundError, and ValueError, naming the file, for another ending, several pictures in one file, another
    number of channels, NaN or infinity, a 16-bit colour PNG (only 8 of its bits could be read), stored samples of a
    JPEG (which are lost) and what cannot be decoded.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix!r}; pictures end in {', '.join(ENDINGS)}")
    try:
        array = _read_tiff(path, spatial_dims, stored) if ending in TIFF else _read_with_pillow(path, stored)
        if array.dtype == bool:
            array = array.astype(np.uint8) * np.uint8(1 if stored else 255)
        if array.dtype.kind not in "uif" or not np.isfinite(array).all():
            raise ValueError(f"it holds values of type {array.dtype}, NaN or infinity; replace them first")
        return array
    except Exception as error:  # the decoders raise errors of many kinds, few of which name the file
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_picture(path: str | Path) -> np.ndarray:
    """One picture as `read_channels` reads it, (y, x), or (y, x, 3) in colour."""
    channels = read_channels(Path(path), spatial_dims=2)
    return np.ascontiguousarray(channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1))


def _read_with_pillow(path: Path, stored: bool) -> np.ndarray:
    from PIL import Image

    image: Image.Image
    with Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF")) as image:
        pages, kind = getattr(image, "n_frames", 1), image.format
        depth, deep_colour = _bits_of_png(path) if kind == "PNG" else (8, False)
        if kind in ("PNG", "TIFF") and pages > 1:
            raise ValueError(f"it holds {pages} pictures; one a file is expected")
        if deep_colour:
            raise ValueError("it is a 16-bit colour PNG, of which 8 bits would be lost; save it as TIFF")
        if stored and kind == "JPEG":
            raise ValueError("it is a JPEG file, whose compression changes the numbers; save it as PNG")
        if image.mode == "LA":
            image = image.convert("L")
        elif image.mode not in ("1", "L", "I", "I;16", "I;16B", "F") and not (stored and image.mode == "P"):
            image = image.convert("RGB")
        array = np.asarray(image)
        if kind == "PNG" and image.mode == "I":
            array = array.astype(np.uint16)  # older releases of Pillow hand out 16-bit grey files as 32-bit integers
        if stored and image.mode == "L" and depth < 8:
            array = array // (255 // (2**depth - 1))  # Pillow has stretched them
        return _channels_of_picture(array)


def _bits_of_png(path: Path) -> tuple[int, bool]:
    """Bits a sample, and whether several channels have 16 of them each, from the first chunk of a PNG."""
    with path.open("rb") as file:
        depth, colour_type = file.read(26)[24:]
    return depth, depth == 16 and colour_type != 0


def _read_tiff(path: Path, spatial_dims: int | None, stored: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        if spatial_dims == 3 or (spatial_dims is None and len(set(series.axes) - set("CS")) > 2):
            return _channels_of_stack(series.asarray(), series.axes)
        if len(file.series) != 1:
            raise ValueError(f"it holds {len(file.series)} pictures of different shapes; one a file is expected")
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
        if page.colormap is not None and page.photometric == tifffile.PHOTOMETRIC.PALETTE and not stored:
            array = (page.colormap.T[array] >> 8).astype(np.uint8)  # the palette holds 16 bits a colour
        elif "S" in axes:  # samples: the channels of a pixel, stored together or plane by plane
            array = np.moveaxis(array, axes.index("S"), -1)
            array = array[..., :-1] if transparent else array
        elif array.ndim == 3 and len(array) == 3:
            array = np.moveaxis(array, 0, -1)
        return _channels_of_picture(array)


def _channels_of_picture(array: np.ndarray) -> np.ndarray:
    """(y, x) or (y, x, C) as (C, y, x)."""
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)) or not array.size:
        raise ValueError(f"it holds {array.dtype} {array.shape}; one picture, (y, x) or (y, x, 3), is expected")
    return np.moveaxis(np.atleast_3d(array), -1, 0)


def _channels_of_stack(array: np.ndarray, axes: str) -> np.ndarray:
    """A TIFF's array as (C, z, y, x). axes: a letter an axis, as tifffile names them; I and Q are pages unnamed."""
    letters = axes.replace("I", "Z").replace("Q", "Z")
    if sorted(letters.replace("C", "")) != ["X", "Y", "Z"]:
        raise ValueError(f"its axes are {axes}, of sizes {array.shape}; a volume has z, y, x and perhaps channels")
    array = array.transpose([letters.index(letter) for letter in "CZYX" if letter in letters])
    return array if "C" in letters else array[None]


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
    high = number("high", high, above=0, at_most=100, fix=", a percentile")
    low = number("low", low, at_least=0, below=high, fix=", a percentile")
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
