"""Fluorescent cells made here from a seed: the data set every notebook can run on, offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xlstm_unet_lab.data.instance_labels import COLOURS, LABELS, METRICS, TOLERANCES, interior_and_boundary
from xlstm_unet_lab.data.nnunet_raw import write_case
from xlstm_unet_lab.data.phantom_physics import numbered
from xlstm_unet_lab.data.phantoms import microscopy
from xlstm_unet_lab.data.recipe import Recipe, Track

SEED = 2024
TRAINING, TEST = 48, 16
SIZE = (256, 256)


def convert(source: Path | None, out: Path, track: Track = iter) -> dict:
    """Make the images and write them to `out`; `source` is None, there is nothing to read. Returns facts to record."""
    cells = 0
    for number, part in numbered(RECIPE.name, source, TRAINING, TEST, track):
        image, instances = microscopy(SEED + number, SIZE)
        label = interior_and_boundary(instances)
        write_case(out, part, f"cells_{number:03d}", image.astype(np.uint8), label, instances)
        cells += int(instances.max())
    return {"seed": SEED, "cells": cells}


RECIPE = Recipe(
    name="phantom_microscopy",
    dataset_id=903,
    title="Fluorescent cells made here: touching, unevenly lit, blurred, noisy",
    modality="fluorescence microscopy (made here)",
    spatial_dims=2,
    channel_names=("fluorescence",),
    labels=LABELS,
    colours=COLOURS,
    metrics=METRICS,
    tolerances=TOLERANCES,
    spacing_unit="pixel",
    file_ending=".png",
    licence="CC0 1.0",
    citation="xLSTM-UNet Lab, xlstm_unet_lab.data.phantoms.microscopy",
    homepage="",
    convert=convert,
)
