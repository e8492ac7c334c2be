"""Is there a screen? Where there is none, xvfb-run starts one for as long as a command runs."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence

SECONDS_TO_ANSWER = 5.0  # of a screen, which may be another machine's
X_PORT = 6000  # of screen 0


def has_screen(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a window can be opened here: Windows and macOS are taken to have a screen, elsewhere one must answer.

    DISPLAY and WAYLAND_DISPLAY alone prove nothing: they outlive the screen they name.
    """
    return sys.platform in ("win32", "darwin") or any(map(_answers, _addresses(environ)))


def _addresses(environ: Mapping[str, str]) -> Iterator[str | tuple[str, int]]:
    """Where the screens that the environment names listen: paths of sockets, or host and port."""
    host, _, screen = environ.get("DISPLAY", "").rpartition(":")
    number = screen.partition(".")[0]  # of "0.1", the second screen of display 0
    if number.isdecimal():
        path = f"/tmp/.X11-unix/X{number}"  # with a zero before it: Linux's sockets without a file
        yield from (path, f"\0{path}") if host in ("", "unix") else [(host, X_PORT + int(number))]
    if wayland := environ.get("WAYLAND_DISPLAY"):
        yield os.path.join(environ.get("XDG_RUNTIME_DIR", ""), wayland)


def _answers(address: str | tuple[str, int]) -> bool:
    try:
        if isinstance(address, tuple):
            socket.create_connection(address, SECONDS_TO_ANSWER).close()
        else:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(SECONDS_TO_ANSWER)
                line.connect(address)
    except OSError:
        return False
    return True


def on_a_screen(command: Sequence[str], width: int = 1280, height: int = 1024) -> list[str]:
    """The command line that runs a command on a screen: itself where there is one, else on one of this size, in pixels.

    Raises RuntimeError, in one line, without a screen and xvfb-run.
    """
    if has_screen():
        return list(command)
    if shutil.which("xvfb-run") is None:
        raise RuntimeError("there is no screen, and no Xvfb to draw without one: install it with `make system`")
    screen = f"-screen 0 {width}x{height}x24 +extension GLX +render -noreset"
    return ["xvfb-run", "--auto-servernum", "--server-args", screen, *command]
