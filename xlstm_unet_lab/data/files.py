"""Folders written to disk for certain, and their files by name."""

import itertools
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from pathlib import Path


def sync_tree(folder: Path, recurse: bool = True) -> None:
    """Have the system write a folder (and all it holds) to disk, so that a power cut cannot undo a later rename."""
    for path in [*sorted(folder.rglob("*")), folder] if recurse else [folder]:
        if path.is_dir() and os.name != "posix":  # cannot open a folder, and keeps its entries safe itself
            continue
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fingerprint(file: Path) -> list:
    """What tells whether a file is still the one it was: path, size and date; a missing one has neither."""
    facts = file.stat() if file.exists() else None
    return [str(file), facts and facts.st_size, facts and facts.st_mtime_ns]


def files_by_name(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder that have one of these endings (in lower case), by name without it, in name order.

    Hidden files are left out: archives packed on a Mac carry one, "._NAME", beside each file.
    Raises FileNotFoundError for a missing folder, ValueError for two files that differ in their ending only.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; a folder of {', '.join(endings)} files is expected")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in endings if path.name.lower().endswith(ending)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        name = unicodedata.normalize("NFC", path.name[: -len(ending)])  # macOS writes accents as letters of their own
        if name in found:
            raise ValueError(f"{folder} holds both {found[name].name} and {path.name}; keep one of them")
        found[name] = path
    return dict(sorted(found.items()))


def channels_of(name: str, files: Mapping[str, Path]) -> list[Path]:
    """The file of a case, or its files NAME_0000, NAME_0001, ..., among `files_by_name`; empty where there is none."""
    numbered = itertools.takewhile(files.__contains__, (f"{name}_{channel:04d}" for channel in itertools.count()))
    return [files[one] for one in ([name] if name in files else numbered)]


def check_pairs(where: str, images: Set[str], labels: Set[str]) -> None:
    """ValueError, with the first names, unless every image has a label and every label an image."""
    if images != labels:
        alone, empty = sorted(images - labels)[:3], sorted(labels - images)[:3]
        raise ValueError(f"{where}: images without a label {alone}, labels without an image {empty}")


def without_path(error: Exception, path: Path) -> str:
    """What an error says of a file, in one line and without its name: whoever reports it names the path."""
    names = "|".join(re.escape(name) for name in (str(path), repr(str(path))[1:-1]))  # as decoders may write it
    words = re.sub(rf"""( of| from)?( file)? ?['"]?({names})['"]?""", "", str(error))
    return " ".join(words.split()).rstrip(" :") or type(error).__name__
