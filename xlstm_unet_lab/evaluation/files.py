"""Images from files, and predicted labels back into files that lie on the same grid: NIfTI, pictures, TIFF."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from xlstm_unet_lab.data.files import write_whole
from xlstm_unet_lab.data.nnunet_raw import check_grid
from xlstm_unet_lab.data.pictures import ENDINGS as PICTURES
from xlstm_unet_lab.data.pictures import read_picture, to_uint8
from xlstm_unet_lab.evaluation.predict import predict

if TYPE_CHECKING:
    import nibabel

CHANNEL_DIGITS = 4  # nnU-Net's file names end in _0000, _0001, ... for the channels of a case
Source = str | Path | Sequence[str | Path]  # a file, a folder, or the channel files of one case
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


def find_cases(inputs: Source | Sequence[Source]) -> dict[str, list[Path]]:
    """Name -> files of every case.

    inputs: a folder (every readable file in it), a file, or a list of those; an item that is a list itself holds the
    channel files of one case. As in nnU-Net, NIfTI files whose names differ in an ending _0000, _0001, ... only are
    channels of one case; pictures and TIFF are a case each. Raises FileNotFoundError for what is not there, ValueError
    for two cases of one name, a missing channel, an unknown ending, or nothing to read.
    """
    entries = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    alone = [file for entry in entries if isinstance(entry, str | Path) for file in _files_of(Path(entry))]
    cases: dict[str, list[Path]] = {}
    first_channels = {case_name(file) for file in alone if _stem(file).endswith("_0000")}
    for file in sorted(alone, key=lambda file: file.name):
        # A data set may number its cases with four digits too: those have no channel 0000.
        name = case_name(file) if case_name(file) in first_channels else _stem(file)
        cases.setdefault(name, []).append(file)
    for name, files in cases.items():
        wanted = [f"{name}_{channel:0{CHANNEL_DIGITS}d}{ending(files[0])}" for channel in range(len(files))]
        if len(files) > 1 and [file.name for file in files] != wanted:
            raise ValueError(
                f"case {name!r} has the files {[str(file) for file in files]}; the channels of one case must be named "
                f"{wanted}, other cases need other names"
            )
    for files in ([Path(file) for file in entry] for entry in entries if not isinstance(entry, str | Path)):
        if not files or case_name(files[0]) in cases:
            raise ValueError(f"a list of channel files is empty or its case is there twice: {files}")
        cases[case_name(files[0])] = files
    return cases


def _files_of(entry: Path) -> list[Path]:
    if not entry.exists():
        raise FileNotFoundError(f"{entry} does not exist; give an image file or a folder of them")
    files = [entry] if entry.is_file() else [file for file in entry.iterdir() if _is_image(file)]
    if not files:
        raise ValueError(f"{entry} holds no image: known endings are {', '.join(READERS)}")
    return files


def predict_files(
    model: nn.Module,
    inputs: Source | Sequence[Source],
    out_folder: str | Path,
    *,
    patch_size: Sequence[int],
    colours: Mapping[int, str] | None = None,
    **options,
) -> Iterator[Path]:
    """Predict image files and write their labels to `out_folder`, one file a case; yields each path when it is written.

    inputs: as in `find_cases`. A label has its case's name and the grid of its input: NIfTI stays NIfTI with the
    input's orientation and affine, TIFF keeps its resolution, pictures become grey PNG whose values are the labels.
    colours: label value -> "#RRGGBB"; with it pictures also get an RGB image in the folder `coloured`. A grey picture
    fills all three channels of a network for colour. Volumes from NIfTI are resampled to the network's spacing, other
    images are used as they are. options: overlap, mirror, batch_size and device of `predict`.
    Inputs are looked for at once; labels of earlier runs are replaced, each as a whole.
    Raises ValueError (FileNotFoundError) naming the file that is missing, cannot be read or does not fit the network,
    and when a label would replace an input.
    """
    cases, folder = find_cases(inputs), Path(out_folder)
    given = {file.resolve() for files in cases.values() for file in files}
    for name, files in cases.items():
        target = folder / f"{name}{LABEL_ENDINGS[ending(files[0])]}"
        if target.resolve() in given:
            raise ValueError(f"{target} is an input and would be replaced by a label: choose another out_folder")
    folder.mkdir(parents=True, exist_ok=True)
    return _predicted(model, cases, folder, patch_size, colours, options)


def _predicted(
    model: nn.Module,
    cases: dict[str, list[Path]],
    folder: Path,
    patch_size: Sequence[int],
    colours: Mapping[int, str] | None,
    options: dict,
) -> Iterator[Path]:
    channels = getattr(getattr(model, "config", None), "in_channels", None)
    for name, files in cases.items():
        case = read_case(files, spatial_dims=len(patch_size))
        image = np.repeat(case.image, 3, axis=0) if _is_grey_for_colour(case, channels) else case.image
        if case.unit == "pixel" and len(patch_size) == 2:
            image = to_uint8(image)[0]  # prepared pictures have 8 bits: a network must see what it was trained on
        spacing = case.spacing if case.unit == "mm" else None
        try:
            label = predict(model, image, patch_size=patch_size, spacing=spacing, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{files[0]}: {error}") from error
        if colours is not None and case.ending == ".png":
            (folder / "coloured").mkdir(exist_ok=True)
            write_whole(folder / "coloured" / f"{name}.png", _png(_coloured(label, colours)))
        yield write_whole(folder / f"{name}{case.ending}", case.encode(label))


def _is_grey_for_colour(case: Case, channels: int | None) -> bool:
    return case.unit == "pixel" and len(case.spacing) == 2 and len(case.image) == 1 and channels == 3


def ending(path: Path) -> str:
    """The ending of an image file, in small letters; ValueError for one that cannot be read."""
    found = next((known for known in READERS if path.name.lower().endswith(known)), None)
    if found is None:
        raise ValueError(f"{path} has an ending that cannot be read; known are {', '.join(READERS)}")
    return found


def case_name(path: Path) -> str:
    """The file's name without its ending and without nnU-Net's number of a channel.

    Only NIfTI files come as one a channel; img_0001.png and img_0002.png are two pictures, img_0000.png is "img".
    """
    stem = _stem(path)
    head, _, number = stem.rpartition("_")
    is_channel = len(number) == CHANNEL_DIGITS and number.isdecimal()
    is_channel = is_channel and (ending(path).startswith(".nii") or int(number) == 0)
    return head if head and is_channel else stem


def _stem(path: Path) -> str:
    return path.name[: -len(ending(path))]


def _is_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(tuple(READERS))


def _read_nifti(files: Sequence[Path], kind: str, _: int | None) -> Case:
    import nibabel

    volumes = [nibabel.load(file) for file in files]
    for file, volume in zip(files, volumes, strict=True):
        check_grid(file.name, volume, volumes[0])
    turned = [nibabel.as_closest_canonical(volume) for volume in volumes]
    image = np.stack([np.asarray(volume.dataobj).transpose() for volume in turned])  # NIfTI stores (x, y, z)
    spacing = tuple(float(size) for size in reversed(turned[0].header.get_zooms()))
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

    def encode(label: np.ndarray) -> bytes:
        content, axes = io.BytesIO(), {"axes": "ZYX"[-label.ndim :]}
        tifffile.imwrite(content, label, photometric="minisblack", compression="zlib", metadata=axes, **spaced)
        return content.getvalue()

    return Case(image, (1.0,) * (image.ndim - 1), "pixel", ".tif", encode)


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

    return imwrite("<bytes>", picture, extension=".png", plugin="pillow")


def _coloured(label: np.ndarray, colours: Mapping[int, str]) -> np.ndarray:
    """The label as an RGB picture, uint8 (y, x, 3); values without a colour are black."""
    picture = np.zeros((*label.shape, 3), np.uint8)
    for value, colour in colours.items():
        picture[label == value] = tuple(bytes.fromhex(colour.removeprefix("#")))
    return picture


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
