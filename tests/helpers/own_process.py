"""A process of its own, for what must be there before a library is imported, or must not."""

import os
import subprocess
import sys

from places import REPOSITORY


def in_a_process_of_its_own(*arguments: str, **environment: str) -> str:
    """Triton reads its environment when it is imported, and must not be beside a window of napari."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout
