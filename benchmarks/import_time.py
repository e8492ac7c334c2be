"""How long `import xlstm_unet_lab` takes beside `import torch`, each in fresh processes, in turn."""

import subprocess
import sys
import time

from benchmarks.measure import keep, table

TARGET = 1.3
REPEATS = 7
STATEMENTS = ("import torch", "import xlstm_unet_lab", "import torch, xlstm_unet_lab.models.presets")


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    best = dict.fromkeys(STATEMENTS, float("inf"))
    for _ in range(REPEATS):
        for statement in STATEMENTS:
            best[statement] = min(best[statement], seconds(statement))
    ratios = {statement: value / best["import torch"] for statement, value in best.items()}
    table("import", ["statement", "best s", "times torch"], [[s, best[s], ratios[s]] for s in STATEMENTS])
    keep("import_time", {"target": TARGET, "seconds": best, "ratios": ratios})
