"""A figure and, in words, what it shows. Jupyter displays both: the image, with the words as its alternative text."""

import base64
import html
import io
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xlstm_unet_lab.data.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.ops.words import printable, printable_lines

RESOLUTION = 90  # dots an inch in a notebook
# Matplotlib's fonts are shared: a slider moved while a cell trains draws from a thread of its own (ipykernel 7).
DRAWING = threading.Lock()
LEVEL = 15  # steps of brightness in a PNG: hues stay, noise shrinks, and notebooks kept in git stay small
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY)  # of lines
MARKERS = "osD^vPX"  # one for each colour: the second sign by which lines are told apart
INTENSITY, AMOUNT, SIGNED = "gray", "cividis", "PuOr"  # colour maps: images, values from 0 up, values around 0


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, on white so that it reads on a dark page too, not known to pyplot."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white", dpi=RESOLUTION)


def line_style(place: int) -> dict:
    """Colour and marker of the line at that place, for `plot`; they repeat together after as many as PALETTE has."""
    place %= len(PALETTE)
    return {"color": PALETTE[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.6}


def plain(text: object) -> str:
    """A name that others chose as a title, label or legend shows it: "$" begins no formula, "_" hides no entry."""
    return re.sub("^_", " _", printable(text).replace("$", r"\$"))


def in_words(numbers: Sequence[int], what: str) -> str:
    """Up to five numbers after the name of what they count, for descriptions: "tokens 3, 4", or "no token"."""
    numbers = [int(n) for n in numbers]
    if not numbers:
        return f"no {what}"
    shown = ", ".join(map(str, numbers[:5])) + (" and others" if len(numbers) > 5 else "")
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}"


def described_png(pixels: np.ndarray, description: str, level: int) -> bytes:
    """Pixels (rows, columns, 3), 0 to 255, as PNG in steps of `level` of brightness, the description in its text."""
    text, content = PngInfo(), io.BytesIO()
    text.add_itxt("Description", description)
    stepped = (np.round(pixels / level) * level).astype(np.uint8)
    Image.fromarray(stepped).save(content, format="png", optimize=True, pnginfo=text)
    return content.getvalue()


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure with its description."""

    figure: Figure
    description: str  # complete sentences, made from the data shown

    def __post_init__(self) -> None:
        object.__setattr__(self, "description", printable_lines(self.description))

    def png(self) -> bytes:
        """The figure as PNG in steps of LEVEL, under half the size of full colour; the description in its text."""
        full = io.BytesIO()
        with DRAWING:
            self.figure.savefig(full, format="png")
        return described_png(np.asarray(Image.open(full).convert("RGB")), self.description, LEVEL)

    def html(self) -> str:
        """An img element with the description as its alternative text."""
        image = base64.b64encode(self.png()).decode()
        alt = html.escape(self.description, quote=True)
        return f'<img alt="{alt}" style="max-width: 100%" src="data:image/png;base64,{image}">'

    def save(self, path: str | Path) -> Path:
        """Write the PNG to `path`, whole or not at all; returns the path."""
        return write_whole(path, self.png())

    def _repr_mimebundle_(self, include=None, exclude=None):
        # JupyterLab shows the html, whose img has an alternative text; it gives none to a bare image/png (4.6).
        image = base64.b64encode(self.png()).decode()
        data = {"text/html": self.html(), "image/png": image, "text/plain": self.description}
        return data, {"image/png": {"alt": self.description}}
