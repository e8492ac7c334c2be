"""`xlstm-unet-lab`: the library from a command line, each command a thin face over one or two public functions.

Libraries load inside the commands, so that `--help` answers at once. Results go to standard output, progress and errors
to standard error. The exit code is 0 when all went well, 1 when something was found or went wrong on the way, 2 for
what cannot be as it was asked for.
"""

import warnings

from xlstm_unet_lab.cli import machine, runs, view  # noqa: F401 (they add their commands)
from xlstm_unet_lab.cli.app import app
from xlstm_unet_lab.ops.words import printable


def main() -> None:
    """What the command `xlstm-unet-lab` runs."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(message)}\n"  # without the line of code
    app(prog_name="xlstm-unet-lab")
