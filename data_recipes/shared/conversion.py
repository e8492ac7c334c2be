"""Convert an original layout case by case, so that an interrupted conversion goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from xlstm_unet_lab.data.files import fingerprint, sync_tree
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.ops.checks import tracked
from xlstm_unet_lab.ops.files import plain_name
from xlstm_unet_lab.ops.stored import read_json

FACTS = "case.json"


def layout_root(source: Path, name: str, holds: str) -> Path:
    """`source`, or the folder called `name` in it: whichever has `holds` inside; FileNotFoundError when neither has."""
    found = next((folder for folder in (source, source / name) if (folder / holds).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{source} holds no {holds}; give {name} or the folder above it")
    return found


class Job(NamedTuple):
    """One case to convert."""

    part: str  # "Tr" for training, "Ts" for test
    name: str
    files: tuple[Path, ...]  # all that it is made of


def convert_cases(
    out: Path, jobs: Sequence[Job], write: Callable[[Job, Path], Mapping[str, int] | None], track: Track = iter
) -> dict[str, int]:
    """Write every case with `write` and put them together in `out`; returns the sums of what `write` counts.

    `write(job, folder)` writes one case below the folder it is given, with `write_case` or `write_volume`, and returns
    what there is to count. Each case is finished in a folder beside `out`, on the disk before it takes its name; called
    again after an interruption, this passes over the cases whose files still have their size and date.
    Raises ValueError when two cases of one part have one name or a name is that of a path or too long, before any case
    is converted, and what `write` raises.
    """
    for job in jobs:
        plain_name("the name of a case", job.name)
    if twice := [name for name, count in Counter((job.part, job.name) for job in jobs).items() if count > 1]:
        raise ValueError(f"{len(twice)} case names are there twice, such as {twice[0]}: case names must differ")
    finished, totals = out.with_name(f".finished-{out.name}"), Counter[str]()
    for job in tracked(track, jobs):
        folder = finished / job.part / job.name
        made_of = [fingerprint(file) for file in job.files]
        facts = read_json(folder / FACTS) if (folder / FACTS).exists() else {}
        if facts.get("made_of") != made_of:
            with whole_folder(folder) as aside:
                facts = {"made_of": made_of, "counts": dict(write(job, aside) or {})}
                (aside / FACTS).write_text(json.dumps(facts))
        for file in folder.glob("*/*"):
            target = out / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(file, target)
        totals.update(facts["counts"])
    return dict(totals)


def _link(file: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has only one name a file, as many USB sticks do."""
    try:
        os.link(file, target)
    except OSError:
        if target.exists():
            raise
        shutil.copyfile(file, target)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside its place, which it takes when it is filled and on the disk: whole, or not at all.

    What lay there goes, and so does what a killed process left. One process at a time may do so for a place.
    """
    partial = folder.with_name(f".partial-{folder.name}")
    for stale in (folder, partial):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_tree(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
