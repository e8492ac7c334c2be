"""Cells of the NeurIPS 2022 Cell Segmentation challenge: many microscopes, stains and file formats in one set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_recipes.shared.conversion import Job, convert_cases
from data_recipes.shared.instances import COLOURS, METRICS, TOLERANCES, interior_and_boundary
from data_recipes.shared.pictures import as_rgb, paired, read_picture
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.images import read_label
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.data.pictures import to_uint8
from xlstm_unet_lab.data.recipe import Recipe, RemoteFile, Track

# (part, how its cases are called, folder of the archive). The sets number their images alike: names say the set.
SETS = (("Tr", "training", "Training-labeled"), ("Ts", "tuning", "Tuning"), ("Ts", "testing", "Testing/Public"))
TEST_EVERY = 10  # where no labelled test images are at hand, every tenth training image in name order is held out
MOST_CELLS = 2**16 - 1  # in one image: instance maps are stored in 16 bits


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the labelled images of `source` to `out`; returns facts to record.

    source: the folder that holds Training-labeled (images/NAME.* and labels/NAME_label.tiff) and, if they are at hand,
    Tuning and Testing, which become the test part (published results on 101 test images are those of Tuning); or
    Training-labeled alone. Images are stored as RGB in 8 bits: deeper ones are scaled, each by its own percentiles.
    Raises FileNotFoundError or ValueError, naming the file, for images and labels that do not pair up, a label of
    another shape or with values that are not whole numbers from 0 on, and more than 65,535 cells in one image.
    """
    cases = list(_cases(source))
    has_test = any(part == "Ts" for part, *_ in cases)
    jobs = [
        Job("Ts" if not has_test and position % TEST_EVERY == TEST_EVERY - 1 else part, name, tuple(files))
        for position, (part, name, *files) in enumerate(cases)
    ]
    return convert_cases(out, jobs, _write, track)


def _write(job: Job, out: Path) -> dict[str, int]:
    image, limits = to_uint8(read_picture(job.files[0]))
    instances = read_instances(job.files[1], image.shape[:2])
    write_case(out, job.part, job.name, as_rgb(image), interior_and_boundary(instances), instances)
    return {
        "cells": int(instances.max()),
        "images_scaled_to_8_bits": int(limits is not None),
        "images_without_cells": int(not instances.any()),
    }


def _cases(source: Path) -> Iterator[tuple[str, str, Path, Path]]:
    """Yield (part, case name, image, label) for all images of the sets that lie in `source`."""
    if (source / "images").is_dir():
        sets = [("Tr", "training", source)]  # Training-labeled itself
    else:
        sets = [(part, name, source / folder) for part, name, folder in SETS if (source / folder).is_dir()]
    if not any(part == "Tr" for part, *_ in sets):
        raise FileNotFoundError(f"{source} holds no Training-labeled/images; give Training-labeled or the folder above")
    for part, prefix, folder in sets:
        for name, image, label in paired(folder / "images", folder / "labels", suffix="_label"):
            yield part, f"{prefix}_{name}", image, label


def read_instances(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The label of one image as an instance map, int32 (y, x): 0 background, the cells counted from 1 without gaps.

    Raises ValueError, naming the file, for another shape than the image's, more cells than 16 bits can number, and as
    `read_label` does.
    """
    label, _ = read_label(path)
    if label.shape != shape:
        raise ValueError(f"{path} has shape {label.shape}, its image {shape}; a label holds one number for each pixel")
    numbers, positions = np.unique(label, return_inverse=True)
    background = int(numbers[0] == 0)
    if len(numbers) - background > MOST_CELLS:
        raise ValueError(f"{path} holds {len(numbers) - background:,} cells; at most {MOST_CELLS:,} can be stored")
    return (positions.reshape(shape) + 1 - background).astype(np.int32)


def _file(name: str, sha256: str, size: int) -> RemoteFile:
    address = f"https://zenodo.org/records/10719375/files/{name}.zip"
    return RemoteFile(address, sha256, size, f"neurips_cells_{name}.zip")


RECIPE = Recipe(
    name="microscopy",
    dataset_id=703,
    title="Cells of the NeurIPS 2022 Cell Segmentation challenge, labelled training and tuning images",
    modality="brightfield, fluorescence, phase contrast and interference contrast microscopy",
    spatial_dims=2,
    channel_names=("R", "G", "B"),
    labels=LABELS,
    colours=COLOURS,
    metrics=METRICS,
    tolerances=TOLERANCES,
    spacing_unit="pixel",
    file_ending=".png",
    licence="CC BY-NC-ND 4.0",
    citation="Ma et al., The multimodality cell segmentation challenge: toward universal solutions, "
    "Nature Methods 21, 1103-1113 (2024), doi:10.1038/s41592-024-02233-6",
    homepage="https://neurips22-cellseg.grand-challenge.org/",
    files=(
        _file("Training-labeled", "b2383929eb8e99b2716fa0d4e2f6e03983e626a57cf00fe85175869c54aa3592", 2_020_000_000),
        _file("Tuning", "849423d36bb8fcc2d91a5b189a3b6d93c3d4071c9701eaaa44ba393a510459c4", 630_000_000),  # about
    ),
    convert=convert,
)
