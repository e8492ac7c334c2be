"""Nuclei of the 2018 Data Science Bowl (BBBC038v1): fluorescence and stained tissue, one mask image a nucleus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_recipes.shared.conversion import Job, convert_cases
from data_recipes.shared.instances import COLOURS, METRICS, TOLERANCES, interior_and_boundary
from data_recipes.shared.pictures import read_picture, read_rgb
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.data.recipe import Recipe, RemoteFile, Track

NAME_LENGTH = 12  # characters of the image id that name a case: enough to be unique, and to find the original again
TEST_EVERY = 4  # every fourth image in id order is held out; ids are hashes, so their order means nothing


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the images of `source` (stage1_train, or the folder above it) to `out`; returns facts to record.

    The original layout is ID/images/ID.png and ID/masks/*.png. Images are stored as RGB. A pixel that two masks claim
    goes to the smaller nucleus, which could otherwise vanish under the larger one; a mask without a pixel adds no
    nucleus. How often each happened is among the facts.
    Raises FileNotFoundError or ValueError, naming the file, for a missing image or mask folder, a mask of another
    shape or with values other than 0 and 255, and an image that is not 8-bit.
    """
    folders = _image_folders(source)
    names = [folder.name[:NAME_LENGTH] for folder in folders]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source}: two image ids start with {twice!r}; case names would not be unique")
    jobs = []
    for position, folder in enumerate(folders):
        part = "Ts" if position % TEST_EVERY == TEST_EVERY - 1 else "Tr"
        files = (folder / "images" / f"{folder.name}.png", *sorted(folder.glob("masks/*.png")))
        jobs.append(Job(part, names[position], files))
    return convert_cases(out, jobs, _write, track)


def _write(job: Job, out: Path) -> dict[str, int]:
    path = job.files[0]
    image = read_rgb(path)
    instances, empty, shared = read_instances(path.parents[1] / "masks", image.shape[:2])
    write_case(out, job.part, job.name, image, interior_and_boundary(instances), instances)
    return {"nuclei": int(instances.max()), "empty_masks": empty, "pixels_in_several_masks": shared}


def _image_folders(source: Path) -> list[Path]:
    for top in (source / "stage1_train", source):
        if top.is_dir():
            # Archives packed on a Mac carry hidden folders beside the images.
            folders = sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
            if any((folder / "images").is_dir() for folder in folders):
                return folders
    raise FileNotFoundError(f"{source} holds no folders ID/images; give stage1_train or the folder above it")


def read_instances(folder: Path, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """The masks of one image as an instance map, int32, with the number of empty masks and of pixels claimed twice."""
    masks = []
    for path in sorted(folder.glob("*.png")):
        mask = read_picture(path)
        if mask.shape != shape:
            raise ValueError(f"{path} has shape {mask.shape}, its image {shape}; a mask covers its image, in grey")
        if mask.dtype != np.uint8 or not ((mask == 0) | (mask == 255)).all():
            raise ValueError(
                f"{path} is {mask.dtype} with values {mask.min()} to {mask.max()}; masks hold 0 and 255 only, "
                "threshold it first"
            )
        masks.append(mask > 0)
    if not masks:
        raise FileNotFoundError(f"{folder} holds no masks; every image folder holds masks/*.png, one a nucleus")
    areas = np.array([mask.sum() for mask in masks])
    instances = np.zeros(shape, np.int32)
    # Largest first, so that a smaller nucleus is drawn over a larger one.
    for number, position in enumerate(np.argsort(-areas, kind="stable")[: (areas > 0).sum()], start=1):
        instances[masks[position]] = number
    remaining = np.unique(instances)
    shared = int(areas.sum()) - int((instances > 0).sum())
    # A nucleus hidden entirely under smaller ones leaves a gap in the numbers: close it.
    return (
        np.searchsorted(remaining[remaining > 0], instances, side="right").astype(np.int32),
        int((areas == 0).sum()),
        shared,
    )


RECIPE = Recipe(
    name="nuclei",
    dataset_id=38,
    title="Nuclei of the 2018 Data Science Bowl, stage 1 training images",
    modality="fluorescence and stained tissue microscopy",
    spatial_dims=2,
    channel_names=("R", "G", "B"),
    labels=LABELS,
    colours=COLOURS,
    metrics=METRICS,
    tolerances=TOLERANCES,
    spacing_unit="pixel",
    file_ending=".png",
    licence="CC0 1.0",
    citation="Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, "
    "Nature Methods 16, 1247-1253 (2019)",
    homepage="https://bbbc.broadinstitute.org/BBBC038",
    files=(
        RemoteFile(
            address="https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip",
            sha256=None,  # the publisher gives none
            size=83_000_000,  # about
            name="bbbc038_stage1_train.zip",
        ),
    ),
    convert=convert,
)
