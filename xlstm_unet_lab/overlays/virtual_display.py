"""A screen where there is none: Xvfb, started for as long as it is needed."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

SECONDS_TO_START = 60.0  # Xvfb needs less than one; a busy machine may need many
SECONDS_TO_STOP = 10.0
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


@contextlib.contextmanager
def virtual_display(width: int = 1280, height: int = 1024) -> Iterator[str]:
    """Start Xvfb with one screen of this size, in pixels, and yield the value for DISPLAY; it ends with the context.

    Raises RuntimeError, in one line, when Xvfb is missing or does not start.
    """
    if shutil.which("Xvfb") is None:
        raise RuntimeError("there is no screen, and no Xvfb to draw without one: install it with `make system`")
    reading, writing = os.pipe()
    screen = ("-screen", "0", f"{width}x{height}x24", "+extension", "GLX", "+render", "-noreset", "-nolisten", "tcp")
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        try:
            # Xvfb takes a free number itself, so that several of them never meet, and tells it when it is ready.
            server = subprocess.Popen(["Xvfb", "-displayfd", str(writing), *screen], pass_fds=(writing,), **silent)
        finally:
            os.close(writing)
        stack.callback(_stop, server)
        ready, _, _ = select.select([reading], [], [], SECONDS_TO_START)
        number = os.read(reading, 32).decode().strip() if ready else ""
        if not number:
            raise RuntimeError(f"Xvfb did not start (it ended with {server.poll()}): run `Xvfb :99`, which prints why")
        yield f":{number}"


def _stop(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
