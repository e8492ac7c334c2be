"""One image from its files, and what is found on its grid back into files of the same kind: NIfTI, pictures, TIFF."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xlstm_unet_lab.data.files import write_whole
from xlstm_unet_lab.data.pictures import ENDINGS as PICTURES
from xlstm_unet_lab.data.pictures import read_picture
from xlstm_unet_lab.data.volumes import check_grid, load_volume, voxels

if TYPE_CHECKING:
    import nibabel

Encode = Callable[[np.ndarray], bytes]


@dataclass(frozen=True)
class Case:
    """One image as the network wants it, and how its label becomes a file again.

    Volumes are turned so that their axes run right, anterior, superior, as prepared data does.
    """

    image: np.ndarray  # (C, *spatial), spatial axes in the order (z, y, x), as stored
    spacing: tuple[float, ...]  # of the spatial axes, in `unit`
    unit: str  # "mm" for NIfTI, "pixel" for pictures and TIFF
    ending: str  # of a label file: ".nii.gz", ".nii", ".png" or ".tif"
    encode: Encode  # the label (*spatial) on the image's grid -> the content of a file on the input's own grid

    def write(self, folder: Path, name: str, found: np.ndarray) -> Path:
        """Write what was found at every position, (*spatial), to a file on the input's own grid; returns its path.

        The file is of the input's kind, but numbers with fractions, which PNG cannot hold, become a TIFF. The folder is
        made where it is missing. Raises ValueError for whole numbers that PNG cannot hold, OSError when the disk
        refuses.
        """
        as_tiff = self.ending == ".png" and found.dtype.kind == "f"
        ending, encode = (".tif", _tiff) if as_tiff else (self.ending, self.encode)
        folder.mkdir(parents=True, exist_ok=True)
        return write_whole(folder / f"{name}{ending}", encode(found))


def read_case(paths: str | Path | Sequence[str | Path], *, spatial_dims: int | None = None) -> Case:
    """Read one case from its file, or from one file a channel.

    spatial_dims: what is expected; it also settles whether the pages of a TIFF that does not say are slices (3, and by
    default) or channels (2). Raises ValueError, naming the file, for what cannot be read, for channels on different
    grids, and for another number of spatial dimensions; FileNotFoundError for a missing file.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist")
    kind = ending(files[0])
    if any(ending(file) != kind for file in files):
        raise ValueError(f"the channels of one case must be files of one kind, got {[file.name for file in files]}")
    try:
        case = READERS[kind](files, kind, spatial_dims)
    except Exception as error:  # each library has its own; all of them mean that this file is of no use
        raise ValueError(f"{files[0]} cannot be read: {error}") from error
    if spatial_dims not in (None, len(case.spacing)):
        raise ValueError(f"{files[0]} has {len(case.spacing)} spatial dimensions; {spatial_dims} are expected")
    return case


def ending(path: Path) -> str:
    """The ending of an image file, in small letters; ValueError for one that cannot be read."""
    found = next((known for known in READERS if path.name.lower().endswith(known)), None)
    if found is None:
        raise ValueError(f"{path} has an ending that cannot be read; known are {', '.join(READERS)}")
    return found


def _read_nifti(files: Sequence[Path], kind: str, _: int | None) -> Case:
    import nibabel
    from nibabel.affines import voxel_sizes

    volumes = [load_volume(file) for file in files]
    for file, volume in zip(files, volumes, strict=True):
        check_grid(file.name, volume, volumes[0])
    turned = [nibabel.as_closest_canonical(volume) for volume in volumes]
    # NIfTI stores (x, y, z)
    image = np.stack([voxels(file.name, volume).transpose() for file, volume in zip(files, turned, strict=True)])
    # Of the affine, which says where the voxels lie: the sizes beside it in the header may contradict it.
    spacing = tuple(voxel_sizes(turned[0].affine)[::-1].tolist())
    return Case(image, spacing, "mm", kind, _nifti_encoder(volumes[0], compressed=kind == ".nii.gz"))


def _nifti_encoder(volume: nibabel.Nifti1Image, compressed: bool) -> Encode:
    from nibabel import orientations

    canonical = orientations.axcodes2ornt("RAS")
    back = orientations.ornt_transform(canonical, orientations.io_orientation(volume.affine))
    kind, affine, header = type(volume), volume.affine, volume.header.copy()
    header["cal_min"] = header["cal_max"] = 0  # the input's window of brightness means nothing for labels

    def encode(label: np.ndarray) -> bytes:
        header.set_data_dtype(label.dtype)
        content = kind(orientations.apply_orientation(label.transpose(), back), affine, header).to_bytes()
        return gzip.compress(content, compresslevel=6, mtime=0) if compressed else content

    return encode


def _read_pictures(files: Sequence[Path], *_) -> Case:
    image = _together(files, [_channels_of_picture(file) for file in files])
    return Case(image, (1.0, 1.0), "pixel", ".png", _png)


def _channels_of_picture(file: Path) -> np.ndarray:
    return np.moveaxis(np.atleast_3d(read_picture(file)), -1, 0)


def _read_tiffs(files: Sequence[Path], _: str, spatial_dims: int | None) -> Case:
    import tifffile

    arrays = []
    for file in files:
        with tifffile.TiffFile(file) as tiff:
            series, page = tiff.series[0], tiff.pages[0]
            stack = spatial_dims == 3 or (spatial_dims is None and len(set(series.axes) - set("CS")) > 2)
            arrays.append(_channels_of_stack(series.asarray(), series.axes) if stack else _channels_of_picture(file))
            spaced = {"resolution": page.resolution, "resolutionunit": page.resolutionunit}
    image = _together(files, arrays)

    return Case(image, (1.0,) * (image.ndim - 1), "pixel", ".tif", partial(_tiff, **spaced))


def _tiff(found: np.ndarray, **spaced) -> bytes:
    import tifffile

    content, axes = io.BytesIO(), {"axes": "ZYX"[-found.ndim :]}
    tifffile.imwrite(content, found, photometric="minisblack", compression="zlib", metadata=axes, **spaced)
    return content.getvalue()


def _channels_of_stack(array: np.ndarray, axes: str) -> np.ndarray:
    """A TIFF's array as (C, z, y, x). axes: a letter an axis, as tifffile names them; I and Q are pages unnamed."""
    letters = axes.replace("I", "Z").replace("Q", "Z")
    if sorted(letters.replace("C", "")) != ["X", "Y", "Z"]:
        raise ValueError(f"its axes are {axes}, of sizes {array.shape}; a volume has z, y, x and perhaps channels")
    array = array.transpose([letters.index(letter) for letter in "CZYX" if letter in letters])
    return array if "C" in letters else array[None]


def _together(files: Sequence[Path], arrays: Sequence[np.ndarray]) -> np.ndarray:
    for file, array in zip(files, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(f"{file.name} has shape {array.shape}, {files[0].name} {arrays[0].shape}; they must agree")
    return np.concatenate(arrays)


def _png(picture: np.ndarray) -> bytes:
    from imageio.v3 import imwrite

    if picture.dtype.itemsize > 2:
        raise ValueError(f"numbers up to {picture.max()} do not fit into a PNG file, which ends at 65535: give a TIFF")
    return imwrite("<bytes>", picture, extension=".png", plugin="pillow")


READERS: dict[str, Callable[[Sequence[Path], str, int | None], Case]] = {
    **{".nii.gz": _read_nifti, ".nii": _read_nifti},
    **dict.fromkeys(PICTURES, _read_pictures),
    **{".tif": _read_tiffs, ".tiff": _read_tiffs},
}
LABEL_ENDINGS = dict.fromkeys(PICTURES, ".png") | {
    ".nii.gz": ".nii.gz",
    ".nii": ".nii",
    ".tif": ".tif",
    ".tiff": ".tif",
}
