"""The one reader of image and label files, NIfTI, pictures and TIFF; and labels back into files of an image's kind."""

import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from nibabel import Nifti1Image
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from xlstm_unet_lab.data import pictures
from xlstm_unet_lab.data.volumes import check_grid, load_volume, spacing_of, voxels
from xlstm_unet_lab.ops.files import write_whole

VOLUMES = (".nii.gz", ".nii")
ENDINGS = (*VOLUMES, *pictures.ENDINGS)
ROUNDING = 1e-4  # what a number may be off a whole one: files that scale their numbers round them
LABEL_ENDINGS = dict.fromkeys(ENDINGS, ".png") | dict.fromkeys(pictures.TIFF, ".tif") | {end: end for end in VOLUMES}


@dataclass(frozen=True)
class Case:
    """One image as its files hold it, and how its label becomes a file again.

    Volumes are turned so that their axes run right, anterior, superior, as prepared data does.
    """

    parts: tuple[np.ndarray, ...]  # one a file, (C, *spatial), spatial axes in the order (z, y, x), as stored
    spacing: tuple[float, ...]  # of the spatial axes, in `unit`
    unit: str  # "mm" for NIfTI, "pixel" for pictures and TIFF
    ending: str  # of a label file: ".nii.gz", ".nii", ".png" or ".tif"
    # The label (*spatial) on the image's grid -> the content of a file on the input's own grid.
    encode: Callable[[np.ndarray], bytes]

    @property
    def image(self) -> np.ndarray:
        """The channels of all files, (C, *spatial), as stored."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)

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


def read_case(
    paths: str | Path | Sequence[str | Path], *, spatial_dims: int | None = None, stored: bool = False
) -> Case:
    """Read one case from its file, or from one file a channel.

    spatial_dims: what is expected; pages of a TIFF that does not say what they are, are slices. stored: for labels, as
    in `pictures.read_channels`. Raises ValueError, naming the file, for what cannot be read, for channels on different
    grids, and for another number of spatial dimensions; FileNotFoundError for a missing file.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    kind = ending(files[0])
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
        if ending(file) != kind:
            raise ValueError(f"the channels of one case must be files of one kind, got {[str(file) for file in files]}")
    case = _read_volumes(files, kind) if kind in VOLUMES else _read_pictures(files, kind, spatial_dims, stored)
    if spatial_dims not in (None, len(case.spacing)):
        raise ValueError(f"{files[0]} has {len(case.spacing)} spatial dimensions; {spatial_dims} are expected")
    return case


def read_label(path: str | Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a label file: its numbers, int32 (*spatial), axes turned as those of its image, and the spacing.

    Numbers are those stored: of a palette the indices, not the colours, and nothing is rescaled. Equal colour channels
    are one number. Raises FileNotFoundError, and ValueError, naming the file, for numbers that are not whole, negative
    or too large, for a file in colour, for a JPEG, whose compression changes numbers, and for what cannot be read.
    """
    case = read_case(path, stored=True)
    first, *others = case.image
    if any((channel != first).any() for channel in others):
        raise ValueError(f"{path} is in colour; a label holds one number a pixel, or the indices of a palette")
    return whole_numbers(str(path), first), case.spacing


def whole_numbers(what: str, label: np.ndarray) -> np.ndarray:
    """The numbers of a label as int32; ValueError, with some of them, unless all are whole and from 0 on."""
    whole = np.rint(label) if label.dtype.kind == "f" else label
    right = (np.abs(whole - label) <= ROUNDING if label.dtype.kind == "f" else True) & (whole >= 0) & (whole < 2**31)
    if not right.all():
        wrong = np.unique(label[~right])[:3].tolist()
        raise ValueError(f"{what} holds {wrong}; a label holds whole numbers from 0 on, below 2^31")
    return whole.astype(np.int32)


def whole_label(what: str, label: np.ndarray, values: set[int]) -> np.ndarray:
    """The label as uint8, or int32 where values pass 255; ValueError for a number that is not among `values`."""
    numbers = whole_numbers(what, label)
    if unknown := set(np.unique(numbers).tolist()) - values:
        raise ValueError(f"{what} holds {sorted(unknown)[:5]}; known are {sorted(values)}")
    return numbers.astype(np.uint8 if max(values) < 256 else np.int32)


def ending(path: Path) -> str:
    """The ending of an image file, in small letters; ValueError for one that cannot be read."""
    found = next((known for known in ENDINGS if path.name.lower().endswith(known)), None)
    if found is None:
        raise ValueError(f"{path} has an ending that cannot be read; known are {', '.join(ENDINGS)}")
    return found


def _read_volumes(files: Sequence[Path], kind: str) -> Case:
    volumes = [load_volume(file) for file in files]
    for file, volume in zip(files, volumes, strict=True):
        check_grid(str(file), volume, volumes[0])
    first = volumes[0]
    turn = io_orientation(first.affine)  # to axes that run right, anterior, superior
    arrays = [apply_orientation(voxels(str(file), volume), turn) for file, volume in zip(files, volumes, strict=True)]
    parts = tuple(np.ascontiguousarray(array.transpose()[None]) for array in arrays)  # NIfTI stores (x, y, z)
    # Of the affine, which says where the voxels lie: the sizes beside it in the header may contradict it.
    spacing = spacing_of(first.affine @ inv_ornt_aff(turn, first.shape))[::-1]
    return Case(parts, spacing, "mm", kind, partial(_nifti, volume=first, turn=turn, packed=kind == ".nii.gz"))


def _nifti(label: np.ndarray, volume: Nifti1Image, turn: np.ndarray, packed: bool) -> bytes:
    header = volume.header.copy()
    header["cal_min"] = header["cal_max"] = 0  # the input's window of brightness means nothing for labels
    header.set_data_dtype(label.dtype)
    turned = apply_orientation(label.transpose(), ornt_transform(axcodes2ornt("RAS"), turn))
    content = type(volume)(turned, volume.affine, header).to_bytes()
    return gzip.compress(content, compresslevel=6, mtime=0) if packed else content


def _read_pictures(files: Sequence[Path], kind: str, spatial_dims: int | None, stored: bool) -> Case:
    parts = [pictures.read_channels(file, spatial_dims, stored=stored) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"{file} has shape {part.shape}, {files[0].name} {parts[0].shape}; they must agree")
    encode = partial(_tiff, **pictures.resolution_of(files[0])) if kind in pictures.TIFF else _png
    return Case(tuple(parts), (1.0,) * (parts[0].ndim - 1), "pixel", LABEL_ENDINGS[kind], encode)


def _tiff(found: np.ndarray, **spaced) -> bytes:
    content, axes = io.BytesIO(), {"axes": "ZYX"[-found.ndim :]}
    tifffile.imwrite(content, found, photometric="minisblack", compression="zlib", metadata=axes, **spaced)
    return content.getvalue()


def _png(picture: np.ndarray) -> bytes:
    from imageio.v3 import imwrite

    if picture.dtype.itemsize > 2:
        raise ValueError(f"numbers up to {picture.max()} do not fit into a PNG file, which ends at 65535: give a TIFF")
    return imwrite("<bytes>", picture, extension=".png", plugin="pillow")
