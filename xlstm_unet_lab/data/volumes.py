"""NIfTI volumes: open them, take their voxels, and hold their grids against each other."""

import gzip
from pathlib import Path
from typing import cast

import numpy as np
from nibabel import Nifti1Image, load
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.arrayproxy import ArrayProxy

from xlstm_unet_lab.data.files import without_path
from xlstm_unet_lab.ops.checks import VOXELS, finite, is_number

SAME_GRID = 0.1  # voxels that two grids may lie apart and still be one: headers are rounded


def load_volume(path: Path) -> Nifti1Image:
    """Open a NIfTI file; its voxels are read when they are needed.

    Raises FileNotFoundError, and ValueError, naming the file, for what is none, has an unknown code in its header, or
    has no sizes of its voxels there, which nibabel would make up.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        volume = cast(Nifti1Image, load(path))
        volume.header.get_xyzt_units()  # fails for another format, and for a code of a unit that there is not
        with next(iter(volume.file_map.values())).get_prepare_fileobj() as file:
            stored = type(volume.header).from_fileobj(file, check=False)  # as it was before nibabel mended it
    except Exception as error:  # nibabel has its own for every kind of fault in a header
        why = f"{type(error).__name__}: {without_path(error, path)}"
        raise ValueError(f"{path} is not a NIfTI file that can be read ({why}); get it again") from error
    header, begin = volume.header, cast(ArrayProxy, volume.dataobj).offset
    if header.is_single and begin < header.single_vox_offset:  # nibabel would take the header for voxels
        expected = f"{header.single_vox_offset} or more is expected: write it again with the program it comes from"
        raise ValueError(f"{path} says that its voxels begin at byte {begin} (vox_offset); {expected}")
    sizes = stored["pixdim"][1:4].tolist()
    if header["sform_code"] <= 0 and not all(is_number(size, above=0) for size in sizes):
        raise ValueError(f"{path} has voxels of {sizes} mm (pixdim); sizes above 0 are expected: write the true ones")
    return volume


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """The sizes of a voxel along the three axes, in mm. Headers hold 32-bit numbers, of which six digits are meant."""
    return tuple(float(f"{size:.6g}") for size in voxel_sizes(affine))


def voxels(what: str, volume: Nifti1Image) -> np.ndarray:
    """The voxels of a volume as stored, (x, y, z); ValueError for a file that breaks off or holds no finite numbers."""
    path, stored = Path(str(volume.get_filename())), cast(ArrayProxy, volume.dataobj)
    try:
        array = _unpacked(path, stored) if path.suffix.lower() == ".gz" else np.asarray(stored)
    except Exception as error:  # of the disk, of gzip, of nibabel
        raise ValueError(f"{path} cannot be read: {without_path(error, path)}; get it again") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{what} holds values of type {array.dtype}; integers or floats are expected")
    return finite(what, array)


def _unpacked(path: Path, stored: ArrayProxy) -> np.ndarray:
    """The voxels of a packed file, which is read once and to its end: nibabel stops before the checksum there."""
    layout = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
    with gzip.open(path) as file:
        array = np.asarray(ArrayProxy(file, layout, mmap=False))  # to map it, NumPy would look for its end first
        while file.read(2**22):
            pass
    return array


def check_grid(what: str, volume: Nifti1Image, reference: Nifti1Image, first: str = "the first image") -> None:
    """ValueError unless `volume` is three-dimensional, has voxels of some size, and lies on the grid of `reference`,
    which the words call `first`."""
    sizes, unit = spacing_of(volume.affine), volume.header.get_xyzt_units()[0]
    if len(volume.shape) != 3 or 0 in volume.shape:
        raise ValueError(f"{what} has shape {volume.shape}; one three-dimensional volume is expected")
    solid = all(is_number(size, **VOXELS) for size in sizes) and np.linalg.det(volume.affine) != 0
    if not solid or not np.isfinite(volume.affine).all() or unit not in ("mm", "unknown"):
        raise ValueError(f"{what} has voxels of {list(sizes)} {unit}; sizes from 1e-6 to 1e6 in mm are expected")
    if volume.shape != reference.shape:
        raise ValueError(f"{what} has shape {volume.shape}, {first} {reference.shape}; they must share a grid")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape) - 1)
    shifts = apply_affine(volume.affine, corners) - apply_affine(reference.affine, corners)
    furthest = np.linalg.norm(shifts, axis=1).max()
    if furthest > SAME_GRID * min(sizes):
        raise ValueError(f"{what} lies up to {furthest:.3g} mm off {first}: resample it to that one's grid")
