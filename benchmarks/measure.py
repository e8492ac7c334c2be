"""Timing side by side, peak memory in a process of its own, and the facts of the machine."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import distributions
from pathlib import Path

import torch

from xlstm_unet_lab.ops.devices import processor_name

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "xlstm", "mlstm_kernels", "monai", "timm", "numpy")
UNIT = 1024 if sys.platform == "linux" else 1  # of ru_maxrss


def machine() -> dict:
    """Processor, cores, threads, accelerator and versions."""
    return {
        "date": date.today().isoformat(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: found.version for name in LIBRARIES for found in distributions(name=name)},
    }


def times(cases: dict[str, Callable[[], object]], repeats: int, warm_up: bool = True) -> dict[str, dict[str, float]]:
    """Run every case once to warm up, then all of them in turn `repeats` times. Name -> seconds: best and median."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds = {name: [] for name in cases}
    for turn in range(not warm_up, repeats + 1):
        for name, run in cases.items():
            synchronise()
            start = time.perf_counter()
            run()
            synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: {"best": min(row), "median": sorted(row)[len(row) // 2]} for name, row in seconds.items()}


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes `run` needs at its highest beyond what the process held before. On a GPU exact; on a CPU the growth of the
    resident set, so call it once in a fresh process (`in_fresh_process`)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = peak_of_process()
    run()
    return peak_of_process() - before


def peak_of_process() -> int:
    """Bytes at the highest so far: of the GPU, or of the resident set with Python and its libraries in it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would count the process that started this one as well
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def in_fresh_process(module: str, *arguments: str, started_by: Callable[[list[str]], list[str]] = list) -> dict:
    """Run `python -m module arguments...`, which prints one line of JSON, and return it. A failure is returned too.

    started_by: makes of the command line the one that runs it.
    """
    command = started_by([sys.executable, "-m", module, *arguments])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        return {"failed": "killed for memory" if done.returncode in (-9, 137) else last}
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep(name: str, result: dict) -> Path:
    """Write a result beside the others, with the machine it was measured on; a GPU's goes to a file of its own."""
    path = RESULTS / f"{name}{'_gpu' if torch.cuda.is_available() else ''}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return path


def table(title: str, header: list[str], rows: list[list[object]]) -> None:
    """Print aligned columns; numbers with three digits that matter."""
    cells = [[f"{x:.3g}" if isinstance(x, float) else "-" if x is None else str(x) for x in row] for row in rows]
    widths = [max(len(row[column]) for row in [header, *cells]) for column in range(len(header))]
    print(f"\n{title}")
    for row in [header, *cells]:
        print(
            "  ".join(
                cell.rjust(width) if n else cell.ljust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    sys.stdout.flush()
