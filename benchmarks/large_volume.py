"""Working memory and time of normalising and of predicting a large volume of bytes on the CPU, with 14 classes.

Working memory is what the process grows by beyond image and result; what the network itself needs is part of it.
`python -m benchmarks.large_volume normalise Z Y X` (or predict) prints one of them as JSON, used in a fresh process.
"""

import json
import math
import os
import sys
import time
from functools import partial

import numpy as np
from monai.data import utils  # noqa: F401  # loaded before memory is looked at

import xlstm_unet_lab as lab
from benchmarks.measure import in_fresh_process, keep, peak_of_process, table
from xlstm_unet_lab.data.normalise import normalise

SIZE, PATCH, CLASSES = (400, 512, 512), (32, 96, 96), 14
OVERLAP = 0.25  # less than usual: fewer windows to wait for
FEATURES = (4, 8)  # a small network on small windows: the memory in question is that of what is added up of them
TARGET = 4.0  # bytes a voxel


def measure(what: str, size: tuple[int, ...]) -> dict:
    facts = {"in_channels": 1, "num_classes": CLASSES, "patch_size": PATCH, "features": FEATURES}
    network = lab.build("unet", spatial_dims=3, **facts)  # not trained, which memory does not notice
    predict = partial(lab.predict, network, patch_size=PATCH, overlap=OVERLAP)
    image = np.random.default_rng(0).integers(256, size=(1, *size), dtype=np.uint8)
    before, start = peak_of_process(), time.perf_counter()
    result = {"normalise": normalise, "predict": predict}[what](image)
    seconds, grown = time.perf_counter() - start, peak_of_process() - before
    working = {"bytes a voxel": (grown - result.nbytes) / math.prod(size)}
    return working | {"seconds": seconds, "gigabytes": peak_of_process() / 1e9}  # of the whole process, libraries too


def main() -> None:
    rows = {}
    for what in ("normalise", "predict"):
        rows[what] = in_fresh_process("benchmarks.large_volume", what, *map(str, SIZE))
        if "failed" in rows[what]:
            raise RuntimeError(f"{what} of {SIZE} voxels failed: {rows[what]['failed']}")
    shown = [[what, row["bytes a voxel"], TARGET, row["seconds"]] for what, row in rows.items()]
    table(f"{SIZE} bytes, {CLASSES} classes", ["what", "working bytes a voxel", "at most", "s"], shown)
    keep(
        "large_volume",
        {"size": SIZE, "patch": PATCH, "overlap": OVERLAP, "classes": CLASSES, **rows, **rows["predict"]},
    )


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this is about the CPU
    print(json.dumps(measure(sys.argv[1], tuple(map(int, sys.argv[2:])))))
