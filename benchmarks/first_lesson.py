"""Lesson 00 from top to bottom in profile cpu, on the phantom and on real nuclei: minutes and Dice on held-out images.

Real nuclei come from LAB_REAL_DATA/nuclei when that folder is there, otherwise from the public archive. The pictures of
the first test images are written to docs/; the README shows one of them.
"""

import base64
import os
import re
import tempfile
import time
from pathlib import Path

from benchmarks.measure import keep, table
from xlstm_unet_lab.course.authoring.lesson import execute, read_master, solution_notebook

ROOT = Path(__file__).parents[1]
MASTER = ROOT / "solutions" / "00_start_here.py"
TARGET_SECONDS, TARGET_DICE = 300, 0.85  # of the run on nuclei
LIMIT = 1800  # seconds after which a run is given up


def environment(recipe: str) -> dict[str, str]:
    settings = {"LAB_RECIPE": recipe}
    real = Path(os.environ.get("LAB_REAL_DATA", "")) / "nuclei"
    if recipe == "nuclei" and os.environ.get("LAB_REAL_DATA") and real.is_dir():
        settings["LAB_SOURCE"] = str(real.resolve())
    return settings


def run(recipe: str) -> dict:
    """Execute the lesson on one data set and read its figures."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(solution_notebook(read_master(MASTER)), folder, "cpu", LIMIT, environment(recipe))
    seconds = time.perf_counter() - start
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    images, dice = re.search(r"mean foreground Dice on (\d+) held-out images: ([\d.]+)", printed).groups()
    for output in outputs:
        if "beside its true labels" in output.get("data", {}).get("text/plain", ""):
            picture = ROOT / "docs" / f"first_lesson_{recipe}.png"
            picture.parent.mkdir(exist_ok=True)
            picture.write_bytes(base64.b64decode(output.data["image/png"]))
            break
    return {"recipe": recipe, "seconds": seconds, "held-out images": int(images), "mean foreground Dice": float(dice)}


def main() -> None:
    rows = [run(recipe) for recipe in ("phantom_microscopy", "nuclei")]
    table("lesson 00, profile cpu", list(rows[0]), [list(row.values()) for row in rows])
    keep("first_lesson", {"targets for nuclei": {"seconds": TARGET_SECONDS, "Dice": TARGET_DICE}, "runs": rows})
