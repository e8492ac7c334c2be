"""Abdominal organs in the MRI scans of AMOS 2022: 13 organs, the set behind the published abdomen results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data_recipes.shared.conversion import Job, convert_cases, layout_root
from data_recipes.shared.writing import write_volume
from xlstm_unet_lab.data.files import check_pairs, files_by_name
from xlstm_unet_lab.data.images import whole_label
from xlstm_unet_lab.data.recipe import Recipe, RemoteFile, Track
from xlstm_unet_lab.data.volumes import load_volume, voxels

# In the order of the published results: name, value in the AMOS files, tolerance of the surface Dice in mm, colour.
# Colours as in phantom_abdomen: those of Okabe and Ito and Tol's wine, which colour-blind readers can tell apart; the
# organs that only occur here have darker and lighter steps of them.
ORGANS = (
    ("liver", 6, 5.0, "#D55E00"),
    ("right kidney", 2, 3.0, "#0072B2"),
    ("spleen", 1, 3.0, "#CC79A7"),
    ("pancreas", 10, 5.0, "#F0E442"),
    ("aorta", 8, 2.0, "#56B4E9"),
    ("inferior vena cava", 9, 2.0, "#004C77"),
    ("right adrenal gland", 11, 2.0, "#B3DCF2"),
    ("left adrenal gland", 12, 2.0, "#F5C9DD"),
    ("gallbladder", 4, 2.0, "#009E73"),
    ("oesophagus", 5, 3.0, "#7F3800"),
    ("stomach", 7, 5.0, "#882255"),
    ("duodenum", 13, 7.0, "#005C43"),
    ("left kidney", 3, 3.0, "#E69F00"),
)
NOT_SCORED = {"bladder": 14, "prostate or uterus": 15}  # in the AMOS files, not among the 13: background here
FIRST_MRI = 500  # cases with a lower number are CT
NEW_VALUES = np.zeros(1 + len(ORGANS) + len(NOT_SCORED), np.uint8)  # value in the AMOS files -> value here
NEW_VALUES[[value for _, value, _, _ in ORGANS]] = range(1, 1 + len(ORGANS))
PARTS = {"Tr": "Tr", "Va": "Ts", "Ts": "Ts"}  # part of the archive -> what it becomes here


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the labelled MRI cases of `source` (amos22, or the folder above it) to `out`; returns facts to record.

    The original layout is {images,labels}{Tr,Va,Ts}/amos_NNNN.nii.gz, with 15 organs in an order of their own. They
    are renumbered in the order of the published results, and the last two become background: how many voxels that
    concerns is among the facts. What AMOS calls validation becomes the test part; so do test cases that have labels.
    The published runs trained on both parts and were scored on 50 other scans, which are not in the archive.
    Raises FileNotFoundError or ValueError, naming the case, for a missing file, another file name, and as
    `write_volume` does.
    """
    top = layout_root(source, "amos22", "imagesTr")
    jobs = [
        Job(part, name, tuple(files))
        for original, part in PARTS.items()
        for name, *files in _labelled_mri(top, original)
    ]
    return {"voxels_made_background": convert_cases(out, jobs, _write, track)}


def _write(job: Job, out: Path) -> dict[str, int]:
    """Returns how many voxels of each organ became background."""
    import nibabel

    image, original = map(load_volume, job.files)
    what = f"case {job.name}: label"
    organs = whole_label(what, voxels(what, original), set(range(len(NEW_VALUES))))
    renumbered = nibabel.Nifti1Image(NEW_VALUES[organs], original.affine)
    write_volume(out, job.part, job.name, [image], renumbered, set(range(1 + len(ORGANS))))
    return {organ: int(np.count_nonzero(organs == value)) for organ, value in NOT_SCORED.items()}


def _labelled_mri(top: Path, part: str) -> list[tuple[str, Path, Path]]:
    """Name, image and label of every MRI case of one part, in name order; none where its labels are not published."""
    images, labels = (
        {name: path for name, path in files_by_name(top / f"{what}{part}", (".nii.gz",)).items() if _is_mri(path)}
        if (top / f"{what}{part}").is_dir()
        else {}
        for what in ("images", "labels")
    )
    if labels or part == "Tr":
        check_pairs(f"{top}, part {part}", images.keys(), labels.keys())
    return [(name, images[name], label) for name, label in labels.items()]


def _is_mri(path: Path) -> bool:
    number = re.fullmatch(r"amos_(\d{4})\.nii\.gz", path.name)
    if number is None:
        raise ValueError(f"{path} is not called amos_NNNN.nii.gz; its number says whether it is CT or MRI")
    return int(number[1]) >= FIRST_MRI


RECIPE = Recipe(
    name="abdomen_mri",
    dataset_id=702,
    title="AMOS 2022, MRI scans: 13 abdominal organs",
    modality="MRI",
    spatial_dims=3,
    channel_names=("MRI",),
    labels={"background": 0} | {organ: position for position, (organ, *_) in enumerate(ORGANS, start=1)},
    colours={organ: colour for organ, _, _, colour in ORGANS},
    metrics=("dice", "surface_dice"),
    tolerances={organ: tolerance for organ, _, tolerance, _ in ORGANS},
    spacing_unit="mm",
    file_ending=".nii.gz",
    licence="CC BY 4.0",
    citation="Ji et al., AMOS: a large-scale abdominal multi-organ benchmark for versatile medical image segmentation, "
    "NeurIPS 2022 Datasets and Benchmarks, arXiv:2206.08023",
    homepage="https://amos22.grand-challenge.org",
    files=(
        RemoteFile(
            address="https://zenodo.org/records/7155725/files/amos22.zip",
            sha256="d2fbf2c31abba9824d183f05741ce187b17905b8cca64d1078eabf1ba96775c2",
            size=24_000_000_000,  # about; the 500 CT scans are in it too
            name="amos22.zip",
        ),
    ),
    labelled_slices_only=("aorta", "inferior vena cava", "oesophagus"),  # as the published protocol scores them
    flip_axes=(),  # no mirror image of a patient is a patient: liver right, spine behind, lungs above
    convert=convert,
)
