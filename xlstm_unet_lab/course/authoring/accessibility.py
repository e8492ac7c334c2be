"""What keeps a picture or widget from being seen, told apart or used by everybody: the gate of the course's figures."""

from collections.abc import Collection, Iterator
from html.parser import HTMLParser

import numpy as np
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection as Drawn
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from xlstm_unet_lab.data.colours import YELLOW
from xlstm_unet_lab.figures.picture import AMOUNT, INTENSITY, PALETTE, SIGNED, Picture
from xlstm_unet_lab.figures.training_plot import ipywidgets

MAPS = {INTENSITY, AMOUNT, SIGNED, "viridis"}  # lightness alone tells their values apart, or two safe hues
SHORTEST = 20  # characters: fewer describe nothing
SAME = 0.01  # colours nearer than this in every channel are one
# Nothing to operate; a progress bar of tqdm has its words in a text beside it.
NO_CONTROL = (ipywidgets.Label, ipywidgets.Output, ipywidgets.Box, ipywidgets.IntProgress, ipywidgets.FloatProgress)


def problems(picture: Picture, colours: Collection[str] = ()) -> list[str]:
    """What is wrong with a picture; empty when nothing is.

    Asked for: a description in sentences; lines, areas, markers and text in colours of the palette, black, white or
    grey; colour maps out of `MAPS`. colours: further ones that are allowed, as those a recipe gives its labels.
    Photographs and painted labels, which are images of colours already, are not looked into.
    """
    description = picture.description.strip()
    found = []
    if len(description) < SHORTEST or not description.endswith((".", "?", "!")):
        found.append(f"the description {description!r} is no sentence: say what is to be seen, with its numbers")
    known = np.array([to_rgb(colour) for colour in (*PALETTE, YELLOW, *colours)])
    for artist in picture.figure.findobj(Artist.get_visible):
        if isinstance(artist, ScalarMappable) and _is_mapped(artist):
            if (name := artist.get_cmap().name).removesuffix("_r") not in MAPS:
                found.append(f"{type(artist).__name__} uses the colour map {name!r}: take one of {sorted(MAPS)}")
            continue
        for part, colour in _colours(artist):
            *rgb, alpha = colour
            if alpha and np.ptp(rgb) > SAME and not (np.abs(known - rgb) < SAME).all(1).any():
                code = "#" + "".join(f"{round(255 * channel):02X}" for channel in rgb)
                found.append(f"{type(artist).__name__} has the {part} {code}, which is not in the palette")
    return list(dict.fromkeys(found))


def _is_mapped(artist: ScalarMappable) -> bool:
    """Whether its colours come from numbers through a map."""
    values = artist.get_array()
    return values is not None and np.ndim(values) < 3


def _colours(artist: Artist) -> Iterator[tuple[str, np.ndarray]]:
    """What of an artist is drawn in which colour (red, green, blue, alpha)."""
    found = {}
    if isinstance(artist, Line2D):
        if artist.get_linestyle() not in ("None", "", " "):
            found["colour"] = artist.get_color()
        if artist.get_marker() not in ("None", "", " ", None):
            found |= {"marker": artist.get_markerfacecolor(), "marker's edge": artist.get_markeredgecolor()}
    elif isinstance(artist, Patch):
        found = {"edge": artist.get_edgecolor()} | ({"area": artist.get_facecolor()} if artist.get_fill() else {})
    elif isinstance(artist, Drawn):
        found = {"area": artist.get_facecolor(), "edge": artist.get_edgecolor()}
    elif isinstance(artist, Text) and artist.get_text().strip():
        found["colour"] = artist.get_color()
    for part, colour in found.items():
        yield from ((part, one) for one in to_rgba_array(colour))


def widget_problems(widget: ipywidgets.Widget) -> list[str]:
    """What is wrong with a widget and those inside it; empty when nothing is.

    Asked for: a description or tooltip for every control, from which its label is made; an alternative text for every
    image; a title for every page of a Tab or Accordion.
    """
    name = type(widget).__name__
    found = []
    if isinstance(widget, ipywidgets.Image):
        found.append("Image has no place for an alternative text: show `Picture.html()` in an HTML widget")
    elif isinstance(widget, (ipywidgets.HTML, ipywidgets.HTMLMath)):
        found += [f"{name} shows an image without alternative text" for _ in range(_undescribed(widget.value))]
    elif isinstance(widget, ipywidgets.DOMWidget) and not isinstance(widget, NO_CONTROL):
        label = getattr(widget, "description", "") or widget.tooltip or ""
        if hasattr(widget, "description") and not label.strip():
            found.append(f"{name} has no label: give it a description")
    children = getattr(widget, "children", ())
    if isinstance(widget, (ipywidgets.Tab, ipywidgets.Accordion)):
        untitled = sum(not widget.get_title(place) for place in range(len(children)))
        found += [f"{name} has a page without a title"] * untitled
    return found + [problem for child in children for problem in widget_problems(child)]


def _undescribed(source: str) -> int:
    """How many images of a piece of HTML have no alternative text, or an empty one."""
    counted = []

    class Images(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "img" and not (dict(attrs).get("alt") or "").strip():
                counted.append(tag)

    Images().feed(source)
    return len(counted)
