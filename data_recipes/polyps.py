"""Polyps seen in colonoscopy: the segmented images of HyperKvasir, the same pairs that Kvasir-SEG publishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_recipes.shared.conversion import Job, convert_cases, layout_root
from data_recipes.shared.pictures import paired, read_picture, read_rgb
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.recipe import Recipe, RemoteFile, Track

LAYOUTS = ("segmented-images", "Kvasir-SEG")  # how the two archives call their folder
TEST_EVERY = 5  # every fifth image in name order is held out
THRESHOLD = 127  # masks are JPEG files: what was 0 and 255 comes with compression noise
UNCLEAR = (64, 191)  # values in between are neither: a resized mask has some along its outlines
LARGEST_UNCLEAR_SHARE = 0.05  # of the pixels of a mask; 100 published masks measured have none


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the images of `source` to `out`; returns facts to record.

    source: Kvasir-SEG or segmented-images, which hold images/NAME.jpg and masks/NAME.jpg, or the folder above it. The
    two give the pairs different names, and so hold out different images. Patients are not published: frames of one
    polyp may lie on both sides.
    Raises FileNotFoundError or ValueError, naming the file, for an image without a mask or a mask without an image, a
    mask of another size or that is no mask, and an image that is not 8-bit.
    """
    layout = next((name for name in LAYOUTS if (source / name).is_dir()), LAYOUTS[0])
    top = layout_root(source, layout, "masks")
    pairs = paired(top / "images", top / "masks")
    jobs = [
        Job("Ts" if position % TEST_EVERY == TEST_EVERY - 1 else "Tr", name, tuple(files))
        for position, (name, *files) in enumerate(pairs)
    ]
    return {"images": len(pairs)} | convert_cases(out, jobs, _write, track)


def _write(job: Job, out: Path) -> dict[str, int]:
    image = read_rgb(job.files[0])
    mask, unclear = read_mask(job.files[1], image.shape[:2])
    write_case(out, job.part, job.name, image, mask)
    return {"empty_masks": int(not mask.any()), "unclear_mask_pixels": unclear}


def read_mask(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """A mask as uint8 (y, x), 0 and 1, and how many of its pixels were neither dark nor bright.

    Raises ValueError, naming the file, for another shape than the image's, and for what is no mask: not 8-bit, or
    with more than a few pixels of middle brightness.
    """
    mask = read_picture(path)
    if mask.shape[:2] != shape:
        raise ValueError(f"{path} has shape {mask.shape[:2]}, its image {shape}; a mask covers its image")
    if mask.dtype != np.uint8:
        raise ValueError(f"{path} is {mask.dtype}; masks are 8-bit, 0 for background and 255 for the polyp")
    grey = mask if mask.ndim == 2 else mask.mean(axis=-1)
    unclear = int(((grey >= UNCLEAR[0]) & (grey <= UNCLEAR[1])).sum())
    if unclear > LARGEST_UNCLEAR_SHARE * grey.size:
        raise ValueError(
            f"{path} has {unclear / grey.size:.0%} of its pixels between {UNCLEAR[0]} and {UNCLEAR[1]}; a mask is "
            "black and white, is this an image?"
        )
    return (grey > THRESHOLD).astype(np.uint8), unclear


RECIPE = Recipe(
    name="polyps",
    dataset_id=41,
    title="Polyps in colonoscopy: HyperKvasir segmented images, also published as Kvasir-SEG",
    modality="endoscopy",
    spatial_dims=2,
    channel_names=("R", "G", "B"),
    labels={"background": 0, "polyp": 1},
    colours={"polyp": "#56B4E9"},  # blue, which the inside of a bowel is not
    metrics=("dice", "surface_dice"),
    tolerances={"polyp": 2.0},
    spacing_unit="pixel",
    file_ending=".png",
    licence="CC BY 4.0 (HyperKvasir; its authors ask to be consulted before commercial use)",
    citation="Borgli et al., HyperKvasir, a comprehensive multi-class image and video dataset for gastrointestinal "
    "endoscopy, Scientific Data 7, 283 (2020), doi:10.1038/s41597-020-00622-y; Jha et al., Kvasir-SEG: a segmented "
    "polyp dataset, MMM 2020, doi:10.1007/978-3-030-37734-2_37",
    homepage="https://datasets.simula.no/hyper-kvasir",
    files=(
        RemoteFile(
            address="https://datasets.simula.no/downloads/hyper-kvasir/hyper-kvasir-segmented-images.zip",
            sha256="4463011f991dcdc74ec56399788b1a93822593f17ed18a662bdeb7392ffcdd9a",
            size=46_179_365,
            name="hyper-kvasir-segmented-images.zip",
        ),
    ),
    convert=convert,
)
