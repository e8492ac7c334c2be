"""Kill a training run with SIGKILL at every point that matters, go on, and compare the end with an uninterrupted run.

    python killed_runs.py FOLDER    prints one line of JSON a point: what was killed where, and what differed afterwards

Every run is a process of its own, forked from this one so that libraries are loaded only once.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from tiny_problem import Tiny, cases, config

from xlstm_unet_lab.models.weights import load_tensors
from xlstm_unet_lab.training.fit import fit

torch.set_num_threads(1)
VARIANTS = {
    "plain": {"steps": 5, "save_every": 2, "validate_every": 3, "augment": False},
    "mean": {"steps": 4, "validate_every": 2, "ema_decay": 0.8, "channels_last": True, "precision": "bf16-mixed"},
}


def train(folder: Path, settings: dict, until: int | None = None) -> None:
    """Train in `folder`; after the record of step `until` the process kills itself."""
    for record in fit(Tiny(deep=True), cases(range(3)), cases([3]), config(**settings), run_directory=folder):
        if record.step == until:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(name: str, module, count: int) -> None:
    """Replace a function of a module by one that kills this process when it is called for the `count`-th time."""
    original, calls = getattr(module, name), iter(range(1, count))

    def deadly(*arguments, **options):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(module, name, deadly)


def in_a_fork(work) -> int:
    """Run `work` in a child process and return its exit status: 0, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> dict:
    """All a run leaves that must not depend on how often it was stopped."""
    files = {path.name: load_tensors(path) for path in folder.glob("*.safetensors")}
    log = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    timed = [log[0].index(column) for column in ("seconds", "images_per_second", "memory")]
    return {
        "names": sorted(path.name for path in folder.iterdir()),
        "tensors": {
            f"{file}: {name}": tensor for file, (tensors, _) in files.items() for name, tensor in tensors.items()
        },
        "metrics": {file: (header.get("facts") or {}).get("metrics") for file, (_, header) in files.items()},
        "log": [[value for column, value in enumerate(row) if column not in timed] for row in log],
    }


def differences(a: dict, b: dict) -> list[str]:
    found = [what for what in ("names", "metrics", "log") if a[what] != b[what]]
    tensors = a["tensors"].keys() | b["tensors"].keys()
    missing = torch.empty(0)
    return found + [
        n for n in sorted(tensors) if not torch.equal(a["tensors"].get(n, missing), b["tensors"].get(n, missing))
    ]


def killed_and_resumed(folder: Path, settings: dict, prepare) -> bool:
    """Whether the process that `prepare` arms was killed; afterwards the run is finished by another one."""

    def armed():
        train(folder, settings, prepare())

    status = in_a_fork(armed)
    assert status in (0, -signal.SIGKILL), f"the run ended with status {status}"
    assert in_a_fork(lambda: train(folder, settings)) == 0, "the run could not go on"
    return status == -signal.SIGKILL


def kill_points(call: str) -> Iterator[tuple[str, Iterable[int], Callable]]:
    yield "after step", (1, 2, 4), lambda step: step
    yield f"before os.{call}", itertools.count(1), lambda count: kill_at(call, os, count)


def main(folder: Path) -> None:
    # In the middle of writing a file (it is there, but may not reach the disk), or between two files.
    for (variant, settings), call in zip(VARIANTS.items(), ("fsync", "replace"), strict=True):
        whole = folder / variant / "whole"
        train(whole, settings)  # here and not in a fork: it loads the libraries for all of them
        expected = outcome(whole)
        for where, counts, prepare in kill_points(call):
            for count in counts:
                place = folder / variant / f"{where} {count}"
                killed = killed_and_resumed(place, settings, lambda prepare=prepare, count=count: prepare(count))
                line = {"variant": variant, "where": where, "count": count, "killed": killed}
                sys.stdout.write(json.dumps(line | {"differences": differences(expected, outcome(place))}) + "\n")
                if not killed:  # there are fewer such calls in a whole run
                    break


if __name__ == "__main__":
    main(Path(sys.argv[1]))
