"""Write the cases of a data set into nnU-Net's raw format, 2-D as PNG files and 3-D as NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xlstm_unet_lab.data.images import whole_label
from xlstm_unet_lab.data.volumes import check_grid, voxels
from xlstm_unet_lab.ops.checks import finite, one_of
from xlstm_unet_lab.ops.files import plain_name

if TYPE_CHECKING:
    import nibabel

STORED_AS_THEY_ARE = (np.uint8, np.int16, np.uint16, np.int32)  # intensities of other types become float32


def write_case(
    out: Path, part: str, name: str, image: np.ndarray, label: np.ndarray, instances: np.ndarray | None = None
) -> None:
    """Write one 2-D case as PNG files: an image (y, x) or (y, x, 3), its label (y, x), and its instance map if any.

    part: "Tr" for training, "Ts" for test. The image is stored as uint8, as label values are; instances as uint16.
    Raises ValueError for another dtype, a shape that does not fit, or more than 65,535 instances.
    """
    from imageio.v3 import imwrite

    check_part(part)
    if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2:
        raise ValueError(f"case {name}: image is {image.dtype} {image.shape}; expected uint8 (y, x) or (y, x, 3)")
    if label.dtype != np.uint8 or label.shape != image.shape[:2]:
        raise ValueError(f"case {name}: label is {label.dtype} {label.shape}; expected uint8 {image.shape[:2]}")
    arrays = {f"images{part}/{name}_0000.png": image, f"labels{part}/{name}.png": label}
    if instances is not None:
        if instances.shape != label.shape or instances.min() < 0 or instances.max() > np.iinfo(np.uint16).max:
            raise ValueError(
                f"case {name}: instances of shape {instances.shape} and values {instances.min()} to {instances.max()}; "
                f"expected shape {label.shape} and values 0 to 65535"
            )
        arrays[f"instances{part}/{name}.png"] = instances.astype(np.uint16)
    for path, array in arrays.items():
        imwrite(_new(out / path, name), array, plugin="pillow")


def write_volume(
    out: Path, part: str, name: str, images: Sequence[nibabel.Nifti1Image], label: nibabel.Nifti1Image, values: set[int]
) -> None:
    """Write one 3-D case as NIfTI files, a channel each, turned so that the axes run right, anterior, superior.

    images: one volume a channel, in mm; label: whole numbers out of `values`, in any dtype (stored as uint8). All must
    lie on one grid; what rounding leaves between their headers is settled in favour of the first image.
    Raises ValueError, naming the case, for another rank or grid, a value that is not finite, and an unknown label.
    """
    import nibabel

    check_part(part)
    arrays = {}
    for channel, image in enumerate(images):
        what = f"case {name}: channel {channel}"
        check_grid(what, image, images[0])
        arrays[f"images{part}/{name}_{channel:04d}.nii.gz"] = _intensities(what, image)
    what = f"case {name}: label"
    check_grid(what, label, images[0])
    arrays[f"labels{part}/{name}.nii.gz"] = whole_label(what, voxels(what, label), values)
    for path, array in arrays.items():
        volume = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, images[0].affine))
        volume.header.set_xyzt_units("mm")
        nibabel.save(volume, _new(out / path, name))


def _new(path: Path, name: str) -> Path:
    """The path of a file still to be written, in a folder that is there; ValueError if the case has one already."""
    plain_name("the name of a case", name)
    if path.exists():
        raise ValueError(f"case {name} was written already: case names must differ")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _intensities(what: str, image: nibabel.Nifti1Image) -> np.ndarray:
    array = voxels(what, image)
    array = array if array.dtype in STORED_AS_THEY_ARE else array.astype(np.float32)
    finite(what, array, "replace them in the original")
    return array


def check_part(part: str) -> None:
    """ValueError unless the part is one of the two that nnU-Net knows."""
    one_of("part", part, ("Tr", "Ts"))
