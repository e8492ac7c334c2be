"""Adult glioma of BraTS 2023: four MRI contrasts, three nested tumour regions. Only to be had by registering."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_recipes.shared.conversion import Job, convert_cases
from data_recipes.shared.writing import write_volume
from xlstm_unet_lab.data.recipe import Recipe, Track
from xlstm_unet_lab.data.volumes import load_volume, voxels

CHANNELS = ("t1n", "t1c", "t2w", "t2f")
LABELS = {"background": 0, "necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
CASES = "BraTS-GLI-*-*"
TEST_EVERY = 5  # every fifth patient in name order is held out


def convert(source: Path, out: Path, track: Track = iter) -> dict:
    """Write the cases of `source` (the training data's folder, or the one above it) to `out`; returns facts to record.

    The original layout is BraTS-GLI-PPPPP-TTT/BraTS-GLI-PPPPP-TTT-{t1n,t1c,t2w,t2f,seg}.nii.gz, for patient P at time
    T. All scans of a patient go to the same part: every fifth patient is held out.
    Raises FileNotFoundError or ValueError, naming the file, for a missing contrast or label, for files of another
    year's challenge, and as `write_volume` does.
    """
    folders = _case_folders(source)
    missing = [str(path) for folder in folders for path in _files(folder) if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files are missing, such as {', '.join(missing[:3])}; every case needs "
            f"{', '.join(CHANNELS)} and seg (the challenge's validation cases have no seg and cannot be used)"
        )
    patients = sorted({patient(folder.name) for folder in folders})
    held_out = set(patients[TEST_EVERY - 1 :: TEST_EVERY])
    parts = ["Ts" if patient(folder.name) in held_out else "Tr" for folder in folders]
    jobs = [Job(part, folder.name, tuple(_files(folder))) for part, folder in zip(parts, folders, strict=True)]
    convert_cases(out, jobs, _write, track)
    return {"patients": len(patients), "patients_held_out": len(held_out)}


def _write(job: Job, out: Path) -> None:
    *images, label = map(load_volume, job.files)
    if np.any(voxels(f"case {job.name}: label", label) == 4):
        raise ValueError(
            f"case {job.name}: label holds the value 4, which files before 2023 use for enhancing tumour and those of "
            "2024 for the resection cavity; give the files of BraTS 2023, in which enhancing tumour is 3"
        )
    write_volume(out, job.part, job.name, images, label, set(LABELS.values()))


def patient(case: str) -> str:
    """BraTS-GLI-PPPPP-TTT without the time point."""
    return case.rpartition("-")[0]


def _files(folder: Path) -> list[Path]:
    return [folder / f"{folder.name}-{what}.nii.gz" for what in (*CHANNELS, "seg")]


def _case_folders(source: Path) -> list[Path]:
    for pattern in (CASES, f"*/{CASES}"):
        folders = sorted((path for path in source.glob(pattern) if path.is_dir()), key=lambda path: path.name)
        if folders:
            return folders
    raise FileNotFoundError(
        f"{source} holds no folders {CASES}; give ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData or the folder above "
        "it (earlier years name and label their files differently)"
    )


RECIPE = Recipe(
    name="brain_tumour",
    dataset_id=137,
    title="BraTS 2023, adult glioma: whole tumour, tumour core, enhancing tumour",
    modality="MRI (T1, T1 with contrast agent, T2, T2 FLAIR)",
    spatial_dims=3,
    channel_names=CHANNELS,
    labels=LABELS,
    colours={"necrotic core": "#D55E00", "oedema": "#009E73", "enhancing tumour": "#F0E442"},
    metrics=("dice", "hausdorff95", "surface_dice"),
    regions={"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)},
    painted=(2, 1, 3),
    tolerances={"whole tumour": 1.0, "tumour core": 1.0, "enhancing tumour": 1.0},
    spacing_unit="mm",
    file_ending=".nii.gz",
    licence="BraTS 2023 data use agreement; no redistribution",
    citation="Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 benchmark on brain tumor segmentation and radiogenomic "
    "classification, arXiv:2107.02314",
    homepage="https://www.synapse.org/Synapse:syn51156910",
    registration="https://www.synapse.org/Synapse:syn51156910",
    group=patient,
    flip_axes=(2,),  # a tumour is as likely on the left as on the right
    convert=convert,
)
