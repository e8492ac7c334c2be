"""Files that are either whole or not there."""

import os
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write beside the place, flush to the disk, then rename: a crash leaves the old file or the new one.

    Returns the path. Raises OSError when the disk refuses; nothing half-written stays behind.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
