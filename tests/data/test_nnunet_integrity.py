"""What is prepared here passes the check that nnU-Net makes before it plans: labels, shapes, spacings, channels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_recipes.folder import RECIPE as FOLDER
from xlstm_unet_lab.data.prepare import prepare

CASES = 6


@pytest.fixture
def verify(monkeypatch):
    """nnU-Net's check of a folder, in threads of this process: its own processes would take seconds each to start."""
    import multiprocessing.dummy

    from nnunetv2.experiment_planning import verify_dataset_integrity as module

    monkeypatch.setattr(module.multiprocessing, "get_context", lambda method: multiprocessing.dummy)
    return lambda folder: module.verify_dataset_integrity(str(folder), num_processes=2)


def smallest(folder, pattern="*"):
    """The first few files or folders that weigh least."""
    weight = {path: sum(file.stat().st_size for file in (path, *path.rglob("*"))) for path in folder.glob(pattern)}
    return sorted(weight, key=weight.get)[:CASES]


def hippocampus(real_data, tmp_path):
    real, source = real_data / "hippocampus" / "Task04_Hippocampus", tmp_path / "Task04_Hippocampus"
    for what in ("imagesTr", "labelsTr"):
        (source / what).mkdir(parents=True)
    for path in smallest(real / "imagesTr"):
        for what in ("imagesTr", "labelsTr"):
            shutil.copy(real / what / path.name, source / what)
    return source


def nuclei(real_data, tmp_path):
    for path in smallest(real_data / "nuclei" / "stage1_train"):
        shutil.copytree(path, tmp_path / "stage1_train" / path.name)
    return tmp_path / "stage1_train"


def folder(real_data, tmp_path):
    """The hippocampus cases again, as a user's own folder."""
    original = hippocampus(real_data, tmp_path / "original")
    for old, new in (("imagesTr", "images"), ("labelsTr", "labels")):
        shutil.copytree(original / old, tmp_path / "scans" / new)
    return tmp_path / "scans"


@pytest.mark.parametrize("original", [hippocampus, nuclei, folder])
def test_prepared_real_data_are_valid(real_data, tmp_path, verify, capsys, original):
    source = original(real_data, tmp_path)
    made = prepare(original.__name__, tmp_path / "root", source=source, progress=False)
    verify(made)
    said = capsys.readouterr().out.lower()
    assert "verify_dataset_integrity done" in said and "warning" not in said and "error:" not in said


def test_the_command_itself_plans_for_prepared_data(real_data, tmp_path):
    """As in a shell: one process, and planned only, for preprocessing belongs to a training."""
    for original in (hippocampus, nuclei):
        source = original(real_data, tmp_path / original.__name__)
        prepare(original.__name__, tmp_path / "raw", source=source, progress=False)
    folders = {f"nnUNet_{what}": str(tmp_path / what) for what in ("raw", "preprocessed", "results")}
    program = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    command = [program, "-d", "4", "38", "--verify_dataset_integrity", "-npfp", "1", "--no_pp", "--no_pbar"]
    done = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("verify_dataset_integrity Done") == 2 and "error:" not in done.stdout.lower()
    planned = sorted(path.parent.name for path in (tmp_path / "preprocessed").glob("*/nnUNetPlans.json"))
    assert planned == ["Dataset004_hippocampus", "Dataset038_nuclei"]


@pytest.mark.parametrize("name", ["phantom_microscopy", "phantom_brain"])
def test_prepared_phantoms_are_valid(verify, name):
    verify(prepare(name, progress=False))


def test_a_spoilt_folder_is_found_out(real_data, tmp_path, verify):
    made = prepare(FOLDER, tmp_path / "root", source=folder(real_data, tmp_path), progress=False)
    labels = sorted((made / "labelsTr").iterdir())
    shutil.copy(labels[0], labels[1])
    images = sorted((made / "imagesTr").iterdir())
    shutil.copy(images[2], images[1])
    with pytest.raises(RuntimeError, match="Some images have errors"):
        verify(made)
