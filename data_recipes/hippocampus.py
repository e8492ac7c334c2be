"""Hippocampus of the Medical Segmentation Decathlon (Task04): small T1 crops, anterior and posterior part labelled."""

from __future__ import annotations

from pathlib import Path

from data_recipes.shared.conversion import Job, convert_cases, layout_root
from data_recipes.shared.writing import write_volume
from xlstm_unet_lab.data.files import check_pairs, files_by_name
from xlstm_unet_lab.data.recipe import Recipe, RemoteFile, Track
from xlstm_unet_lab.data.volumes import load_volume

LABELS = {"background": 0, "anterior": 1, "posterior": 2}
# Three of every thirteen cases in name order are held out: 60 of the archive's 260, 48 of the 208 files below 4 MiB
# that public copies hold.
BLOCK, HELD_OUT = 13, (4, 8, 12)


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the labelled cases of `source` (Task04_Hippocampus, or the folder above it) to `out`; returns facts.

    The original layout is imagesTr/hippocampus_NNN.nii.gz and labelsTr/hippocampus_NNN.nii.gz; imagesTs has no labels
    and is left out. Intensities stay as they are: their scale differs from case to case by four orders of magnitude,
    some are slightly negative, and every case is normalised by itself when it is read.
    Raises FileNotFoundError or ValueError, naming the case, for a missing file and as `write_volume` does.
    """
    top = layout_root(source, "Task04_Hippocampus", "imagesTr")
    images, labels = (files_by_name(top / f"{what}Tr", (".nii.gz",)) for what in ("images", "labels"))
    check_pairs(str(top), images.keys(), labels.keys())
    parts = ["Ts" if position % BLOCK in HELD_OUT else "Tr" for position in range(len(images))]
    jobs = [Job(part, name, (images[name], labels[name])) for part, name in zip(parts, images, strict=True)]
    convert_cases(out, jobs, _write, track)
    return {"held_out": f"positions {', '.join(map(str, HELD_OUT))} of every {BLOCK} in name order, counted from 0"}


def _write(job: Job, out: Path) -> None:
    image, label = map(load_volume, job.files)
    write_volume(out, job.part, job.name, [image], label, set(LABELS.values()))


RECIPE = Recipe(
    name="hippocampus",
    dataset_id=4,
    title="Hippocampus of the Medical Segmentation Decathlon (Task04)",
    modality="MRI (T1)",
    spatial_dims=3,
    channel_names=("MRI",),
    labels=LABELS,
    colours={"anterior": "#0072B2", "posterior": "#E69F00"},
    metrics=("dice", "surface_dice"),
    tolerances={"anterior": 1.0, "posterior": 1.0},
    spacing_unit="mm",
    file_ending=".nii.gz",
    licence="CC BY-SA 4.0",
    citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13 (2022), "
    "doi:10.1038/s41467-022-30695-9",
    homepage="http://medicaldecathlon.com",
    files=(
        RemoteFile(
            address="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
            sha256="282d808a3e84e5a52f090d9dd4c0b0057b94a6bd51ad41569aef5ff303287771",
            size=27_000_000,  # about
            name="Task04_Hippocampus.tar",
        ),
    ),
    flip_axes=(2,),  # the left and the right one mirror each other; front and back, top and bottom do not
    convert=convert,
)
