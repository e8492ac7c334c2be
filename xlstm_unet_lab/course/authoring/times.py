"""What lessons may take and what they take: budgets, a watch, and the measured minutes in a lesson's header."""

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil
from nbformat import NotebookNode

from xlstm_unet_lab.course.authoring.lesson import PATIENCE, cell_name, execute, read_master, solution_notebook
from xlstm_unet_lab.ops.files import write_whole

SHORT = 10  # seconds; a cell that takes longer says so first and shows a progress bar
PROGRESS_BARS = ("TrainingPlot", ".watch(", "tqdm", "progress=True")
ESTIMATE = re.compile(r"takes about (\d+) (seconds|minutes)")
INTERVAL = 0.25  # seconds between two looks at the memory
ANY_TIME_LINE = re.compile(r"^# \*\*Time\.\*\*.*$", re.MULTILINE)
TIME_LINE = re.compile(
    r"\*\*Time\.\*\* (\d+) minutes? of computing in profile `cpu` "
    r"\(measured on (\d+) cores, ([\d.]+) GB of memory\), (\d+) minutes of exercises\."
)


class Budget(NamedTuple):
    """What a whole notebook of one lesson may take in one profile."""

    seconds: float
    gigabytes: float


def budget(master: NotebookNode, profile: str) -> Budget:
    """The budget that a lesson declares in the metadata of its first cell; ValueError where it declares none."""
    declared = master.cells[0].metadata
    try:
        return Budget(*(declared[what][profile] for what in Budget._fields))
    except KeyError as error:
        wanted = " ".join(f'{what}={{"{profile}": ...}}' for what in Budget._fields)
        raise ValueError(f"the first cell declares no budget for profile {profile}: add {wanted} to it") from error


def exercise_minutes(master: NotebookNode) -> int:
    """The minutes of all exercises of a lesson together."""
    return sum(cell.metadata.get("minutes", 0) for cell in master.cells if "exercise" in cell.metadata)


def time_line(minutes: int, cores: int, gigabytes: float, exercises: int) -> str:
    """The line of a lesson's header that says how long it takes."""
    computing = f"{minutes} minute{'s' if minutes != 1 else ''} of computing in profile `cpu`"
    measured = f"(measured on {cores} cores, {gigabytes:.1f} GB of memory)"
    return f"**Time.** {computing} {measured}, {exercises} minutes of exercises."


class Watch:
    """Seconds by the clock, seconds of processor time and peak memory of the processes that begin in a `with` block.

    Memory is looked at four times a second, added up over the processes; 1 GB is 10^9 bytes. Afterwards: `seconds`,
    `processor_seconds`, `gigabytes`.
    """

    def __enter__(self) -> "Watch":
        self.gigabytes, self._busy, self._done = 0.0, {}, threading.Event()
        self._older = {child.pid for child in psutil.Process().children(recursive=True)}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()

    @property
    def processor_seconds(self) -> float:
        """Processor time of all those processes together, until they were last seen."""
        return sum(self._busy.values())

    def too_slow(self, allowed: Budget) -> list[str]:
        """What is over the budget of time, if the processors worked as long: waiting for others is not work."""
        if min(self.seconds, self.processor_seconds) <= allowed.seconds:
            return []
        worked = f"{self.processor_seconds:.0f} s of processor time on {os.cpu_count() or 1} cores"
        return [f"took {self.seconds:.0f} s, {worked}; allowed are {allowed.seconds} s"]

    def too_large(self, allowed: Budget) -> list[str]:
        """What is over the budget of memory."""
        if self.gigabytes <= allowed.gigabytes:
            return []
        return [f"held {self.gigabytes:.2f} GB of memory; allowed are {allowed.gigabytes} GB"]

    def _look(self) -> None:
        while not self._done.wait(INTERVAL):
            held = 0
            for child in psutil.Process().children(recursive=True):
                if child.pid in self._older:
                    continue
                try:
                    held += child.memory_info().rss
                    self._busy[child.pid] = sum(child.cpu_times()[:2])  # user and system
                except psutil.Error:  # it ended while we looked
                    continue
            self.gigabytes = max(self.gigabytes, held / 1e9)


def measure(master: Path, profile: str) -> tuple[Watch, list[str]]:
    """Run a lesson's solution in a profile; returns the watch and what is wrong with it: over budget, silent cells.

    Raises ValueError and RuntimeError as `read_master` and `execute` do.
    """
    notebook = read_master(master)
    try:
        allowed = budget(notebook, profile)
        patience = PATIENCE * allowed.seconds
        with Watch() as watch:
            executed = execute(solution_notebook(notebook), master.parent, profile, patience, record_timing=True)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"{master.name}: {error}") from error
    return watch, [*watch.too_slow(allowed), *watch.too_large(allowed), *slow_cell_faults(executed)]


def slow_cell_faults(executed: NotebookNode) -> Iterator[str]:
    """Name the cells over 10 seconds that print no estimate, show no progress, or are off by a factor of 2."""
    for position, cell in enumerate(executed.cells):
        stamps = [datetime.fromisoformat(stamp) for stamp in cell.metadata.get("execution", {}).values()]
        seconds = (max(stamps) - min(stamps)).total_seconds() if stamps else 0.0
        if seconds <= SHORT:
            continue
        name = f"{cell_name(position, cell)} takes {seconds:.0f} s"
        told = ESTIMATE.search("".join(output.get("text", "") for output in cell.outputs))
        if told is None:
            yield f"{name} and does not say so: begin it with `print(estimate(ci=..., cpu=...))`"
        elif not 0.5 <= seconds / (int(told[1]) * (60 if told[2] == "minutes" else 1)) <= 2:
            yield f"{name} and says it {told[0]}: mend its estimate"
        if not any(bar in cell.source for bar in PROGRESS_BARS):
            yield f"{name} and shows no progress: use TrainingPlot or tqdm"


def write_times(master: Path, watch: Watch) -> None:
    """Put measured minutes and memory into the line **Time.** of a master; ValueError where there is no such line."""
    minutes = max(1, math.ceil(watch.seconds / 60))
    line = time_line(minutes, os.cpu_count() or 1, watch.gigabytes, exercise_minutes(read_master(master)))
    text, count = ANY_TIME_LINE.subn(f"# {line}", master.read_text(encoding="utf-8"))
    if count != 1:
        raise ValueError(f"{master.name} has {count} lines that begin with **Time.**, expected one, in the first cell")
    write_whole(master, text.encode())
