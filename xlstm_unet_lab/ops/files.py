"""Files that are either whole or not there, and names out of files, which must lead nowhere else."""

import os
import re
import secrets
import stat
import time
from contextlib import suppress
from functools import cache
from pathlib import Path, PureWindowsPath
from reprlib import repr as short
from typing import TypeGuard

from xlstm_unet_lab.ops.checks import of_kind

PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}")  # what is being written
DAY = 24 * 60 * 60  # seconds; nothing here takes so long to write
LONGEST_NAME = 240  # bytes; systems take 255, and endings and numbers of channels are added
# Opened only if it is new: a link that was laid at the name is not followed. Not every system has all of these.
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def write_whole(path: str | Path, content: bytes, like: Path | None = None) -> Path:
    """Write beside the place, flush to the disk, then rename: a crash leaves the old file or the new one.

    The new file has the permissions of `like`, by default of the one it replaces. Of several that write at once all
    succeed, and the last counts. Returns the path. Raises OSError when the disk refuses; nothing half-written stays
    behind.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file to write")
    like = path if like is None else like
    mode = stat.S_IMODE(like.stat().st_mode) & 0o777 if like.is_file() else None
    _tidy(path.parent.absolute())
    partial = path.with_name(f".partial-{secrets.token_hex(8)}")
    handle = os.open(partial, NEW, 0o666 if mode is None else mode)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                partial.chmod(mode)  # with what the system takes from new files
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@cache
def _tidy(folder: Path) -> None:
    """Remove files that a process left half-written when it was killed, a day or more ago; once for each process."""
    for path in folder.glob(".partial-*"):
        with suppress(OSError):  # another process was faster, or they are not ours to remove
            facts = path.lstat()
            # The time of the last change to the name: a link to an old file is new.
            if PARTIAL.fullmatch(path.name) and stat.S_ISREG(facts.st_mode) and facts.st_ctime < time.time() - DAY:
                path.unlink()


def as_path(name: str, value: object) -> Path:
    """The path, ~ resolved; TypeError for what is no text, ValueError for text that no system takes for a path."""
    of_kind(name, value, str, Path)
    try:
        path = Path(value).expanduser()  # type: ignore[arg-type]  # just checked
        path.exists()
        os.access(path, os.F_OK)  # unlike `exists` it refuses bytes of zero
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{name} is {short(value)}, expected a path that this system can hold ({error})") from error
    return path


def is_plain(name: object) -> TypeGuard[str]:
    """Whether this names something in a folder: no path, no drive, neither the folder itself nor the one above."""
    # Windows reads most signs as something else than a part of a name.
    return isinstance(name, str) and name not in ("", "..") and name == PureWindowsPath(name).name and "\0" not in name


def plain_name(what: str, name: object) -> str:
    """The name, which stands in a file and becomes part of a path; ValueError for one that could lead elsewhere."""
    with suppress(UnicodeEncodeError):  # halves of letters, which JSON can hold and no file system
        if is_plain(name) and len(os.fsencode(name)) <= LONGEST_NAME:
            return name
    wanted = f"a plain file name of at most {LONGEST_NAME} bytes, without folders or a drive"
    raise ValueError(f"{what} is {short(name)}, expected {wanted}: rename it, or do not trust the file it comes from")
