"""A volume of 256 x 256 x 256 voxels with three label layers in napari: seconds to open it, and what scrolling costs.

`python -m benchmarks.overlay` does it in this process, which needs a screen, and prints JSON.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import in_fresh_process, keep, peak_of_process, table
from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.virtual_display import on_a_screen

SIZE, LABELS = (256, 256, 256), 13
SLICES = range(0, 256, 8)  # that are scrolled to
TARGET_SECONDS, MOST_READ = 5.0, 1.0  # to open; megabytes while scrolling, of which all slices together have 8
READ = "rchar"  # bytes this process asked the system for, in Linux's /proc/self/io


def volume() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, blocks of labels, and the blocks moved by two voxels, as a prediction may be."""
    image = np.random.default_rng(0).standard_normal((1, *SIZE), np.float32)
    blocks = np.indices([size // 32 for size in SIZE]).sum(0) % (LABELS + 1)
    truth = blocks.repeat(32, 0).repeat(32, 1).repeat(32, 2).astype(np.uint8)
    return image, truth, np.roll(truth, 2, axis=1)


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(READ))


def measure() -> dict:
    """Open the volume and scroll through it; napari itself is imported before the clock starts."""
    import napari
    from qtpy.QtWidgets import QApplication

    from xlstm_unet_lab.overlays.viewer import layers_of

    image, truth, prediction = volume()
    napari.Viewer().close()  # the first window of a process pays for Qt and OpenGL
    QApplication.processEvents()
    start, worked = time.perf_counter(), time.process_time()
    shown = overlay(image, truth=truth, prediction=prediction, title="large")
    viewer = shown.napari()
    layers_of(viewer, shown)["errors"].visible = True  # truth, prediction and errors are drawn
    QApplication.processEvents()
    opened, worked = time.perf_counter() - start, time.process_time() - worked
    memory, read, seconds = peak_of_process(), bytes_read(), []
    for index in SLICES:
        start = time.perf_counter()
        viewer.dims.set_point(0, index)
        QApplication.processEvents()
        seconds.append(time.perf_counter() - start)
    grown, read = peak_of_process() - memory, bytes_read() - read
    shared = np.shares_memory(layers_of(viewer, shown)["image 0"].data, image)
    viewer.close()
    return {
        "seconds to open": opened,
        "processor seconds to open": worked,  # of all cores; how busy the machine was changes the other number more
        "seconds a slice": sorted(seconds)[len(seconds) // 2],
        "megabytes read while scrolling": read / 1e6,
        "megabytes grown while scrolling": grown / 1e6,
        "image copied": not shared,
    }


def reached(result: dict) -> bool:
    read, copied = result["megabytes read while scrolling"], result["image copied"]
    return result["seconds to open"] < TARGET_SECONDS and read < MOST_READ and not copied


def main() -> None:
    result = in_fresh_process("benchmarks.overlay", started_by=on_a_screen)
    if "failed" in result:
        raise RuntimeError(f"napari did not open the volume: {result['failed']}")
    verdict = "as wanted" if reached(result) else "MISSED"
    header = [*result, f"under {TARGET_SECONDS:g} s, nothing read again"]
    table("a volume of 256^3 voxels with three label layers in napari", header, [[*result.values(), verdict]])
    keep("overlay", {"size": SIZE, "labels": LABELS, "target seconds to open": TARGET_SECONDS, **result})


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # peak memory shall be the process's, not a GPU's
    print(json.dumps(measure()))
