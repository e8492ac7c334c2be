"""Surgical instruments of the EndoVis 2017 challenge: frames of a da Vinci robot, seven types of instrument."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data_recipes.shared.conversion import Job, convert_cases
from data_recipes.shared.pictures import as_rgb, pictures_in, read_picture
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.recipe import Recipe, Track

TYPES = (  # in the challenge's numbering, from 1
    "bipolar forceps",
    "prograsp forceps",
    "large needle driver",
    "vessel sealer",
    "grasping retractor",
    "monopolar curved scissors",
    "other",
)
OTHER = len(TYPES)
PART_VALUES = (0, 10, 20, 30, 40)  # in an instrument's mask: background, shaft, wrist, claspers, probe
FULL, CROPPED = (1080, 1920), (1024, 1280)  # (y, x) of a video frame, and of the camera's picture inside it
CORNER = (28, 320)  # (y, x) where that picture begins (challenge's data page)
HELD_OUT = (7, 8)  # sequences to test on where the labels of the official test set are not at hand
TRAINING_SEQUENCES = 8  # sequences with a higher number are in the test set only
FRAMES, INSTRUMENTS, TYPE_LABELS = "left_frames", "ground_truth", "gt/TypeSegmentation"


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the labelled frames found anywhere below `source` to `out`; returns facts to record.

    source: a folder with instrument_dataset_N folders of the original archives. Training ones hold left_frames and
    ground_truth, a folder of masks for each instrument; official test ones, below a folder with "test" in its name,
    left_frames and gt/TypeSegmentation, which may lie in different trees.
    Whole sequences are held out, and no fold splits one, for neighbouring frames are nearly the same: the official test
    set, or sequences 7 and 8 where it has no labels.
    Frames are cropped to the camera's picture. A pixel that two instruments claim goes to the later one in name order,
    and to "other" only if no other claims it; how often that happened is among the facts.
    Raises FileNotFoundError or ValueError, naming the file or folder, for a missing mask, another size, an unknown
    instrument or type, and a training sequence without labels.
    """
    sequences = find_sequences(source)
    labelled = {key: folders for key, folders in sequences.items() if "labels" in folders}
    has_test = any(part == "Ts" for part, _ in labelled)
    unlabelled = sum(len(pictures_in(sequences[key]["frames"])) for key in sequences.keys() - labelled.keys())
    jobs: dict[Job, list[tuple[int, Path]] | None] = {}  # with the types of their masks; None: one label has them all
    for (part, number), folders in labelled.items():
        labels = folders["labels"]
        masks = instruments_in(labels) if labels.name == INSTRUMENTS else None
        part = "Ts" if number in HELD_OUT and not has_test else part
        for frame, path in pictures_in(folders["frames"]).items():
            folders_of_labels = [labels] if masks is None else [folder for _, folder in masks]
            files = (path, *(folder / path.name for folder in folders_of_labels))
            jobs[Job(part, f"sequence_{number:02d}_{frame}", files)] = masks

    def write(job: Job, out: Path) -> dict[str, int]:
        masks, (path, *labels) = jobs[job], job.files
        image = as_rgb(read_frame(path))
        label, shared, unknown = (read_types(labels[0]), 0, 0) if masks is None else read_instruments(masks, path.name)
        write_case(out, job.part, job.name, image, label)
        return {"pixels_of_several_instruments": shared, "pixels_of_unknown_part": unknown}

    facts = {"sequences": len(labelled), "test_frames_without_labels": unlabelled}
    return facts | convert_cases(out, list(jobs), write, track)


def sequence_of(case: str) -> str:
    """The sequence a case belongs to: its name without the frame."""
    return case.rpartition("_")[0]


def find_sequences(source: Path) -> dict[tuple[str, int], dict[str, Path]]:
    """(part, sequence number) -> its folders "frames" and "labels"; a test sequence may lack the labels.

    Raises FileNotFoundError for no sequence at all, one without frames, and a training sequence without labels;
    ValueError for two folders of one sequence.
    """
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for folder in sorted(source.rglob("instrument_dataset_*")):
        inside, number = folder.relative_to(source), re.fullmatch(r"instrument_dataset_(\d+)", folder.name)
        if number is None or "__MACOSX" in inside.parts:
            continue
        is_test = int(number[1]) > TRAINING_SEQUENCES or any("test" in part.lower() for part in inside.parts)
        sequence = found.setdefault(("Ts" if is_test else "Tr", int(number[1])), {})
        for what, name in (("frames", FRAMES), ("labels", INSTRUMENTS), ("labels", TYPE_LABELS)):
            if (folder / name).is_dir() and sequence.setdefault(what, folder / name) != folder / name:
                raise ValueError(f"{sequence[what]} and {folder / name} are the {what} of one sequence; remove one")
    if not found:
        raise FileNotFoundError(f"{source} holds no folders instrument_dataset_N; give the folder of the archives")
    for (part, counted), sequence in sorted(found.items()):
        for what, name in (("frames", FRAMES), ("labels", INSTRUMENTS)):
            if what not in sequence and not (part == "Ts" and what == "labels"):
                raise FileNotFoundError(f"{source}: instrument_dataset_{counted} ({part}) has no folder {name}")
    return dict(sorted(found.items()))


def read_frame(path: Path) -> np.ndarray:
    """One picture, cropped to what the camera saw: 1024 x 1280; one of that size already is left as it is.

    Raises ValueError, naming the file, for another size or a picture that is not 8-bit.
    """
    picture = read_picture(path)
    if picture.dtype != np.uint8 or picture.shape[:2] not in (FULL, CROPPED):
        raise ValueError(f"{path} is {picture.dtype} {picture.shape}; expected uint8, {FULL} or {CROPPED}")
    y, x = CORNER if picture.shape[:2] == FULL else (0, 0)
    return picture[y : y + CROPPED[0], x : x + CROPPED[1]]


def instrument_type(folder: str) -> int:
    """The type of an instrument from the name of its folder, such as Left_Prograsp_Forceps_labels.

    Raises ValueError for a name that holds the words of no type.
    """
    words = set(folder.lower().split("_"))
    for value, name in enumerate(TYPES, start=1):
        if words.issuperset(name.split()):
            return value
    raise ValueError(f"folder {folder!r} names no known instrument; known are {', '.join(TYPES)}")


def instruments_in(folder: Path) -> list[tuple[int, Path]]:
    """The folders of masks of one sequence with their types, in the order in which they are drawn: "other" first.

    Raises FileNotFoundError when there is none, ValueError for an unknown instrument.
    """
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not inside:
        raise FileNotFoundError(f"{folder} holds no folders of masks, one an instrument")
    masks = [(instrument_type(path.name), path) for path in inside]
    return sorted(masks, key=lambda mask: (mask[0] != OTHER, mask[1].name))


def read_instruments(masks: list[tuple[int, Path]], frame: str) -> tuple[np.ndarray, int, int]:
    """The masks of one frame as a label of types, uint8 (y, x); pixels claimed by two types, and of unknown parts."""
    label, shared, unknown = np.zeros(CROPPED, np.uint8), 0, 0
    for value, folder in masks:
        mask = _one_channel(read_frame(folder / frame))
        shared += int(((label > 0) & (label != value) & (mask > 0)).sum())
        unknown += int((~np.isin(mask, PART_VALUES)).sum())
        label[mask > 0] = value
    return label, shared, unknown


def read_types(path: Path) -> np.ndarray:
    """A label of the official test set, uint8 (y, x); ValueError, naming the file, for an unknown type."""
    label = _one_channel(read_frame(path))
    if label.max() > len(TYPES):
        raise ValueError(f"{path} holds type {label.max()}; types are 0 to {len(TYPES)}")
    return label


def _one_channel(mask: np.ndarray) -> np.ndarray:
    """Some of the masks are stored as RGB, with three equal channels."""
    return mask if mask.ndim == 2 else mask.max(axis=-1)


RECIPE = Recipe(
    name="endoscopy",
    dataset_id=704,
    title="Instruments of robotic surgery: EndoVis 2017, seven types",
    modality="endoscopy",
    spatial_dims=2,
    channel_names=("R", "G", "B"),
    labels={"background": 0} | {name: value for value, name in enumerate(TYPES, start=1)},
    # Told apart by colour-blind readers (Okabe and Ito).
    colours=dict(
        zip(TYPES, ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"), strict=True)
    ),
    metrics=("dice", "surface_dice"),
    tolerances=dict.fromkeys(TYPES, 2.0),  # as the evaluation of U-Mamba has it
    spacing_unit="pixel",
    file_ending=".png",
    licence="terms of the EndoVis 2017 challenge",
    citation="Allan et al., 2017 Robotic Instrument Segmentation Challenge, arXiv:1902.06426 (2019)",
    homepage="https://endovissub2017-roboticinstrumentsegmentation.grand-challenge.org/",
    group=sequence_of,
    registration="https://endovissub2017-roboticinstrumentsegmentation.grand-challenge.org/",
    convert=convert,
)
