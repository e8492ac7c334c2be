"""Write the versions installed in this environment as a pip constraints file: `make constraints`."""

import platform
import subprocess
import sys
from pathlib import Path

HEADER = """\
# The exact versions that were tested (Python {python} on {system}); pip takes them with `-c constraints.txt`.
# Regenerate: put the environment into the state that should be tested, run `make constraints`, then `make test`.
# A line for a package that a platform does not need (CUDA libraries on macOS, say) has no effect there.
"""


def pinned_lines(freeze: str) -> list[str]:
    """Return the `name==version` lines of `pip freeze`; raise ValueError for a package without a plain version."""
    lines = [line for line in freeze.splitlines() if line and not line.startswith("#")]
    without_version = [line for line in lines if "==" not in line or "@" in line]
    if without_version:
        raise ValueError(
            f"{without_version[0]!r} is installed from an address or a folder, so no version can be pinned: "
            "install it by name and version, then write the constraints again"
        )
    return lines


def main(path: str) -> None:
    """Write the constraints of the running environment to `path`."""
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    freeze = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    header = HEADER.format(python=platform.python_version(), system=platform.system())
    Path(path).write_text(header + "\n".join(pinned_lines(freeze)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
