"""A data set small enough to be trained on by nnU-Net's own commands in seconds, and those commands."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import nibabel
from places import REPOSITORY

import xlstm_unet_lab as lab
from data_recipes import phantom_brain as brain
from data_recipes.shared.writing import write_volume

SIZE, NUMBER, NAME = (12, 48, 40), 998, "Dataset998_small_brain"
AFFINE = brain.physics.affine_of(SIZE, brain.physics.spacing_of(SIZE, (48.0, 192.0, 160.0)))
# One process for everything: to start them takes longer than the work.
ALONE = {"nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
SHORT = {"nnUNet_n_proc_DA": "0", "LAB_NNUNET_EPOCHS": "2", "LAB_NNUNET_ITERATIONS": "2"}


def convert(source, out, track=iter):
    """Six heads to train on and two to test, four contrasts each."""
    for number in track(range(8)):
        image, label = brain.scene(number, SIZE)
        volumes = [nibabel.Nifti1Image(channel.T, AFFINE) for channel in image]
        truth = nibabel.Nifti1Image(label.T, AFFINE)
        part = "Tr" if number < 6 else "Ts"
        write_volume(out, part, f"head_{number}", volumes, truth, {0, 1, 2, 3})
    return {}


def prepared(root):
    """Folders for nnU-Net under `root`, with the data set in the first; returns them as environment variables."""
    folders = {name: Path(root) / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        folder.mkdir()
    recipe = dataclasses.replace(brain.RECIPE, name="small_brain", dataset_id=NUMBER, convert=convert)
    lab.prepare(recipe, root=folders["nnUNet_raw"], progress=False)
    return {name: str(folder) for name, folder in folders.items()}


PROGRAM = """
import sys
from importlib.metadata import entry_points

for line in sys.argv[1:]:
    sys.argv = line.split()
    (script,) = entry_points(group="console_scripts", name=sys.argv[0])
    try:
        script.load()()
    except SystemExit as end:  # as our own commands end
        if end.code:
            raise
"""


def run_commands(*lines, environment):
    """Run commands of nnU-Net's and ours, one after the other in one process, which saves importing them anew."""
    surroundings = os.environ | ALONE | {"PYTHONPATH": str(REPOSITORY)} | environment
    line = [sys.executable, "-c", PROGRAM, *lines]
    run = subprocess.run(line, env=surroundings, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run.stdout
