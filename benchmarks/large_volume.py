"""Peak memory and time of predicting a large volume on the CPU: 400 x 512 x 512 voxels, 14 classes.

`python -m benchmarks.large_volume Z Y X` predicts one volume and prints what it took as JSON (used in a fresh process).
"""

import json
import os
import sys
import time

import numpy as np

import xlstm_unet_lab as lab
from benchmarks.measure import in_fresh_process, keep, peak_of_process, table

SIZE, PATCH, CLASSES = (400, 512, 512), (64, 128, 128), 14
OVERLAP = 0.25  # less than usual: fewer windows to wait for, and more rows at once in memory, not fewer
FEATURES = (8, 16)  # a small network: the memory in question is that of windows, probabilities and labels
TARGET = 6.0  # GB, of the whole process


def volume(size: tuple[int, ...]) -> np.ndarray:
    """A volume as a scanner stores it, int16, one channel."""
    return np.random.default_rng(0).integers(-1000, 1000, (1, *size), dtype=np.int16)


def measure(size: tuple[int, ...]) -> dict:
    model = lab.build("unet", spatial_dims=3, in_channels=1, num_classes=CLASSES, patch_size=PATCH, features=FEATURES)
    image = volume(size)
    start = time.perf_counter()
    labels = lab.predict(model, image, patch_size=PATCH, overlap=OVERLAP)
    assert labels.shape == size and labels.dtype == np.uint8
    return {"seconds": time.perf_counter() - start, "gigabytes": peak_of_process() / 1e9}


def main() -> None:
    result = in_fresh_process("benchmarks.large_volume", *map(str, SIZE))
    shown = " x ".join(map(str, SIZE))
    if "failed" in result:
        raise RuntimeError(f"predicting {shown} failed: {result['failed']}")
    table(
        "a large volume, peak of the whole process",
        ["size", "classes", "s", "GB", "target GB"],
        [[shown, CLASSES, result["seconds"], result["gigabytes"], TARGET]],
    )
    keep(
        "large_volume",
        {"size": SIZE, "patch": PATCH, "overlap": OVERLAP, "classes": CLASSES, "target": TARGET, **result},
    )


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this is about the CPU
    print(json.dumps(measure(tuple(map(int, sys.argv[1:])))))
