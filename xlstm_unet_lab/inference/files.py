"""Image files to predict, and all that is predicted for them in files that lie on the same grids."""

import errno
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from xlstm_unet_lab.data.colours import in_colour
from xlstm_unet_lab.data.files import files_by_name
from xlstm_unet_lab.data.images import ENDINGS, LABEL_ENDINGS, VOLUMES, Case, ending, read_case
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.inference.predictor import Predictor, Windows
from xlstm_unet_lab.inference.uncertainty import entropy, mirrored_disagreement, predicted_probability
from xlstm_unet_lab.ops.checks import flag, of_kind, tracked
from xlstm_unet_lab.ops.files import as_path

RAW = ("imagesTr", "imagesTs")  # nnU-Net's folders, where the last number of a name is always that of a channel
NUMBERED = re.compile(r"(.+)_(\d{4})", re.S)  # nnU-Net's file names end in _0000, _0001, ... for channels of a case
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # errors that every other case would meet as well
BESIDE = (  # folders of what is written beside labels, under the same names and on the same grids
    "coloured",  # if asked for, of pictures: the labels in colour
    "instances",  # of a network that learnt interior and boundary: a number for each object
    # With uncertainty, as float32, in TIFF files where the labels are PNG:
    "probability",  # of what was predicted
    "entropy",  # of all probabilities, as a share of the largest there can be
    "disagreement",  # of mirrored predictions, where there is an axis to mirror along
)
Source = str | Path | Sequence[str | Path]  # a file, a folder, or the channel files of one case


def find_cases(inputs: Source | Sequence[Source], channels: int | None = None) -> dict[str, list[Path]]:
    """Name -> files of every case.

    inputs: a folder (every readable file in it), a file, or a list of those; an item that is a list itself holds the
    channel files of one case. As in nnU-Net, NIfTI files whose names differ in an ending _0000, _0001, ... only are
    channels of one case; pictures and TIFF are a case each, which `predict_files`, knowing the network, may put
    together. channels: of the network, where it is known: a case of one channel, and a picture, then keeps its name,
    as in NAME_0000 a frame's number; in nnU-Net's folders imagesTr and imagesTs it always is the channel's.
    Raises FileNotFoundError for what is not there, ValueError for two cases of one name, a missing channel, an unknown
    ending, or nothing to read.
    """
    of_kind("inputs", inputs, str, Path, list, tuple)
    entries = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    together = [[as_path("a channel's file", file) for file in one] for one in entries if isinstance(one, list | tuple)]
    alone = [file for one in entries if not isinstance(one, list | tuple) for file in _files_of(one)]
    cases: dict[str, list[Path]] = {}
    first_channels = {case_name(file) for file in alone if _stem(file).endswith("_0000")}
    for file in sorted(alone, key=lambda file: file.name):
        is_frame = channels == 1 or (channels is not None and ending(file) not in VOLUMES)
        # A data set may number its cases with four digits too: those have no channel 0000.
        numbered = file.parent.name in RAW or (not is_frame and case_name(file) in first_channels)
        cases.setdefault(case_name(file) if numbered else _stem(file), []).append(file)
    for name, files in cases.items():
        wanted = [f"{name}_{channel:04d}{ending(files[0])}" for channel in range(len(files))]
        if len(files) > 1 and [file.name for file in files] != wanted:
            words = f"case {name!r} has the files {list(map(str, files))}: the channels of one case are {wanted}"
            raise ValueError(f"{words}, other cases need other names")
    for files in together:
        if not files or case_name(files[0]) in cases:
            raise ValueError(f"a list of channel files is empty or its case is there twice: {files}")
        cases[case_name(files[0])] = files
    return cases


def _files_of(entry: object) -> list[Path]:
    path = as_path("an input", entry)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give an image file or a folder of them")
    files = [path] if path.is_file() else [*files_by_name(path, tuple(ENDINGS)).values()]
    if not files:
        raise ValueError(f"{path} holds no image: known endings are {', '.join(ENDINGS)}")
    return files


def predict_files(
    predictor: Predictor,
    inputs: Source | Sequence[Source],
    out_folder: str | Path,
    *,
    coloured: bool = False,
    uncertainty: bool | Sequence[int] = False,
    track_cases: Track = iter,
    read: Callable[..., Case] = read_case,
    **options,
) -> Iterator[Path]:
    """Predict image files and write their labels to `out_folder`, one file a case; yields each path when it is written.

    inputs: as in `find_cases`. A label lies on the grid of its input: NIfTI stays NIfTI with the input's orientation
    and affine, TIFF keeps its resolution, pictures become grey PNG whose values are the labels. `BESIDE` says what else
    is written. uncertainty: True, or the axes of the patch to mirror along (none: ()); it takes as many predictions
    more as there are mirror images, and memory for the probabilities of a whole image.
    options: the fields of `predictor.Windows`; `track_cases` wraps the cases; `read` takes a case from its files, as
    `read_case` does.
    Inputs are looked for at once; files of earlier runs are replaced, each as a whole, a case's label last.
    Raises ValueError (FileNotFoundError) for inputs that are missing and when one would be replaced. A file that cannot
    be read or does not fit the network stops no other: when all are done an OSError lists what failed.
    """
    of_kind("predictor", predictor, Predictor)
    folder = as_path("out_folder", out_folder)
    if flag("coloured", coloured) and not predictor.colours:
        raise ValueError("the predictor knows no labels that have colours: leave out coloured, in a shell --coloured")
    for axes in (Windows(**options).mirror, uncertainty is not True and uncertainty):
        predictor.mirrored_along(axes)  # what is refused is refused before any file is opened
    cases = _channels_together(find_cases(inputs, predictor.in_channels), predictor)
    _check_no_input_is_lost(cases, folder)
    folder.mkdir(parents=True, exist_ok=True)

    def predicted() -> Iterator[Path]:
        failures = []
        for name, files in tracked(track_cases, list(cases.items())):
            try:
                case = read(files, spatial_dims=predictor.spatial_dims)
                found = _predicted_maps(predictor, case, uncertainty, options)
                label = found.pop("label")
                if coloured and case.ending == ".png":
                    found["coloured"] = in_colour(label, predictor.colours)
                for what, array in found.items():
                    case.write(folder / what, name, array)
                written = case.write(folder, name, predictor.numbered(label))
            except (TypeError, ValueError, OSError) as error:
                if getattr(error, "errno", None) in OF_THE_DISK:
                    raise
                named = any(str(file) in str(error) for file in files)
                failures.append(str(error) if named else f"{files[0]}: {error}")
            else:
                yield written
        if failures:
            what = f"{len(failures)} of {len(cases)} cases were left out (all others are in {folder})"
            raise OSError("; ".join([what, *failures]))

    return predicted()


def _check_no_input_is_lost(cases: dict[str, list[Path]], folder: Path) -> None:
    given = {file.resolve() for files in cases.values() for file in files}
    beside = {(folder / what).resolve() for what in BESIDE}
    for name, files in cases.items():
        target = folder / f"{name}{LABEL_ENDINGS[ending(files[0])]}"
        lost = [file for file in files if file.resolve().parent in beside] or [target] * (target.resolve() in given)
        if lost:
            raise ValueError(f"{lost[0]} is an input and would be replaced: choose another out_folder")


def _channels_together(cases: dict[str, list[Path]], predictor: Predictor) -> dict[str, list[Path]]:
    """The cases, with grey pictures that are named as the channels of one put together; those in colour are frames."""
    channels = predictor.in_channels or 1
    numbered: dict[str, list[str]] = {}
    for name in sorted(cases) if channels > 1 else ():
        if (found := NUMBERED.fullmatch(name)) and len(cases[name]) == 1:
            numbered.setdefault(found[1], []).append(name)
    for head, names in numbered.items():
        first, wanted = cases[names[0]], [f"{head}_{channel:04d}" for channel in range(channels)]
        if names[0] != wanted[0] or len(names) == 1 or ending(first[0]) in VOLUMES or _is_in_colour(first):
            continue
        if names != wanted:
            words = f"{first[0]} and {len(names) - 1} others so numbered are grey; the channels of one picture are"
            raise ValueError(f"{words} {', '.join(wanted)}; number other pictures without _0000")
        cases[head] = [file for name in names for file in cases.pop(name)]
    return cases


def _is_in_colour(files: list[Path]) -> bool:
    """Whether a picture has several channels; one that cannot be read is left to whoever predicts it."""
    try:
        return len(read_case(files, spatial_dims=2).image) > 1
    except (ValueError, OSError):
        return False


def _predicted_maps(
    predictor: Predictor, case: Case, uncertainty: bool | Sequence[int], options: dict
) -> dict[str, np.ndarray]:
    """The "label" of one image and what is written beside it, by the name of its folder; each (*spatial)."""
    image, spacing = predictor.as_prepared(*case.parts), case.spacing if case.unit == "mm" else None
    if uncertainty is False:
        found = {"label": predictor(image, spacing, **options)}
    else:
        probabilities = predictor.probabilities(image, spacing, **options)
        found = {
            "label": predictor.labels_of(torch.from_numpy(probabilities)).numpy(),
            "probability": predicted_probability(probabilities, exclusive=predictor.exclusive),
            "entropy": entropy(probabilities, exclusive=predictor.exclusive),
        }
        if axes := predictor.mirror_axes if uncertainty is True else uncertainty:
            mirrored = options | {"mirror": False}
            found["disagreement"] = mirrored_disagreement(predictor, image, spacing, axes=axes, **mirrored)
    if predictor.finds_objects:
        objects = instances_from_classes(found["label"])
        found["instances"] = objects.astype(np.min_scalar_type(max(objects.max(), 256)))  # 16 bits where they suffice
    return found


def case_name(path: Path) -> str:
    """The file's name without its ending and without nnU-Net's number of a channel.

    Only NIfTI files come as one a channel; img_0001.png and img_0002.png are two pictures, img_0000.png is "img".
    """
    stem = _stem(path)
    found = NUMBERED.fullmatch(stem)
    return found[1] if found and (ending(path).startswith(".nii") or int(found[2]) == 0) else stem


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.name[: -len(ending(path))])
