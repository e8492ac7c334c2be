"""A PNG of an overlay in napari, drawn by a fresh process, on a screen of its own where there is none.

A process of its own, because Qt chooses its platform once for all, and this one may have chosen another already.
`python -m xlstm_unet_lab.overlays.screenshot OUT.png NDISPLAY WIDTH HEIGHT` is that process.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from xlstm_unet_lab.figures.picture import described_png
from xlstm_unet_lab.ops.checks import is_whole, sizes
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.overlays.description import Overlay
from xlstm_unet_lab.overlays.text import with_score
from xlstm_unet_lab.overlays.virtual_display import has_screen, on_a_screen

LIMIT = 600  # seconds after which a drawing is given up
WINDOW = (400, 300)  # pixels that the window around the canvas may need
MARGIN = 0.95  # share of the canvas that the image fills
FONT, ROW, GAP = 15, 22, 6  # pixels of the legend: size of letters, height of rows, between entries
LEVEL = 5  # steps of brightness in the PNG: noise takes less room, and no colour is lost as it is in a palette


def screenshot(overlay: Overlay, path: str | Path, ndisplay: int = 2, size: tuple[int, int] = (1000, 800)) -> Path:
    """Write a PNG of the napari canvas, (width, height) pixels, above a legend; the description lies in its text.

    ndisplay: 2 shows the initial slice, 3 the volume. Returns the path. Raises ValueError for another ndisplay, a 3-D
    view of a 2-D image and sizes below 100, and RuntimeError, in one line, where napari, OpenGL or Xvfb is missing.
    """
    if not is_whole(ndisplay) or ndisplay not in (2, 3) or ndisplay > len(overlay.shape):
        raise ValueError(f"ndisplay is {ndisplay}; give 2 for a slice, or 3 for a volume (this is {overlay.shape})")
    width, height = sizes("size", size, 2)
    if not 100 <= min(size) <= max(size) <= 8192:  # what OpenGL draws at once
        raise ValueError(f"size is {size}; give (width, height), each at least 100 pixels and at most 8192")
    if importlib.util.find_spec("napari") is None:
        raise RuntimeError("napari is not installed: pip install 'xlstm-unet-lab[napari]'")
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.png"
        command = [sys.executable, "-m", __name__, *map(str, (drawn, ndisplay, width, height))]
        command = on_a_screen(command, width + WINDOW[0], height + WINDOW[1])
        # Probabilities stay behind: their layers are hidden at first.
        _run(command, pickle.dumps(replace(overlay, probabilities=None)), settings=drawn.with_name("settings.yaml"))
        return write_whole(path, drawn.read_bytes())


def _run(command: list[str], given: bytes, settings: Path) -> None:
    """Run the drawing process on what it is given, with napari's defaults; RuntimeError where it fails."""
    environment = {**os.environ, "NAPARI_CONFIG": str(settings)}
    environment.pop("QT_QPA_PLATFORM", None)  # a platform without windows has no OpenGL
    if not has_screen():
        environment.pop("WAYLAND_DISPLAY", None)  # nobody answers there
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, start_new_session=True, **streams) as drawing:
        try:
            said, _ = drawing.communicate(given, timeout=LIMIT)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"napari drew nothing within {LIMIT} s: try a smaller volume or size=") from error
        finally:
            if drawing.poll() is None:  # too slow, or the user interrupts: xvfb-run and its screen end with it
                os.killpg(drawing.pid, signal.SIGTERM)
    if drawing.returncode:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        why = lines[-1] if lines else f"ended with code {drawing.returncode}"
        raise RuntimeError(f"napari could not draw ({why}): OpenGL or Qt may be missing, `make system` installs them")


def draw(overlay: Overlay, ndisplay: int, width: int, height: int) -> np.ndarray:
    """The canvas as uint8 (height, width, 3). Raises RuntimeError when nothing was drawn."""
    from qtpy.QtWidgets import QApplication

    from xlstm_unet_lab.overlays.viewer import arrange, open_viewer

    viewer = open_viewer(overlay)
    viewer.dims.ndisplay = ndisplay
    arrange(viewer, overlay)
    extents = np.multiply(overlay.shape, overlay.spacing)
    if ndisplay == 3:
        extents = np.full(2, np.linalg.norm(extents) / np.sqrt(2))
    viewer.scene.camera.zoom = MARGIN * min(np.array([height, width]) / extents[-2:])
    for _ in range(2):  # the first round shows the window, the second draws what showing it asked for
        QApplication.processEvents()
    canvas = viewer.screenshot(size=(height, width), canvas_only=True, flash=False)[..., :3]
    viewer.close()
    if np.ptp(canvas) == 0:
        raise RuntimeError("the canvas stayed empty, OpenGL does not work here")
    return canvas


def legend(overlay: Overlay, ndisplay: int, width: int) -> np.ndarray:
    """A strip uint8 (rows, width, 3): what is drawn how, the labels in their colours with Dice, and the licence."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT)
    lines = [
        [(None, word) for word in f"{overlay.title or 'One case'}: {_what_is_drawn(overlay, ndisplay)}".split()],
        [(overlay.colours[value], with_score(overlay, name)) for value, name in overlay.value_names.items()],
        [(None, word) for word in overlay.credit.split()],
    ]
    strip = Image.new("RGB", (width, sum(map(len, lines)) * ROW + 2 * GAP))  # as high as one word a row would need
    pen, x, y = ImageDraw.Draw(strip), GAP, GAP
    for line in filter(None, lines):
        for colour, text in line:
            needed = font.getlength(text) + (FONT + 2 * GAP if colour else 0)
            if x > GAP and x + needed > width - GAP:
                x, y = GAP, y + ROW
            if colour:
                pen.rectangle((x, y + 2, x + FONT, y + 2 + FONT), fill=colour)
            pen.text((x + (FONT + GAP if colour else 0), y), text, font=font, fill="white")
            x += needed + GAP
        x, y = GAP, y + ROW
    return np.asarray(strip)[: y + GAP]


def _what_is_drawn(overlay: Overlay, ndisplay: int) -> str:
    words = ["image" if overlay.is_colour else overlay.channel_names[0]]
    words += [f"slice {overlay.initial_slice}"] if len(overlay.shape) == 3 and ndisplay == 2 else []
    if overlay.prediction is not None:
        words += ["prediction in colour"]
        words += ["truth as a line"] if overlay.truth is not None and ndisplay == 2 else []
    elif overlay.truth is not None:
        words += ["truth in colour"]
    words += ["predicted objects outlined in white"] if overlay.instances is not None and ndisplay == 2 else []
    return ", ".join(words)


def main(target: str, *sizes: str) -> None:
    """Draw the overlay that comes in on standard input; what went wrong is the last line on standard error."""
    overlay: Overlay = pickle.load(sys.stdin.buffer)  # from `screenshot`, nobody else
    ndisplay, width, height = map(int, sizes)
    picture = np.concatenate([draw(overlay, ndisplay, width, height), legend(overlay, ndisplay, width)])
    write_whole(target, described_png(picture, overlay.describe(), LEVEL))


if __name__ == "__main__":
    main(*sys.argv[1:])
