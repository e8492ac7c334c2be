"""Pictures of an original layout: each with the label that goes with it, and grey ones in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xlstm_unet_lab.data.files import check_pairs, files_by_name
from xlstm_unet_lab.data.images import read_case
from xlstm_unet_lab.data.pictures import ENDINGS


def read_picture(path: str | Path) -> np.ndarray:
    """One picture as `read_case` reads it, (y, x), or (y, x, 3) in colour."""
    channels = read_case(path, spatial_dims=2).image
    return np.ascontiguousarray(channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1))


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
