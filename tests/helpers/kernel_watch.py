"""Looks over a kernel's shoulder: every picture, widget and image that its cells make, told to a file after each cell.

`watched(folder)` gives the environment in which any kernel loads this file as an extension of IPython, whoever starts
it and without a cell of its own; `seen_by(folder)` reads what it found.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from places import HELPERS

VARIABLE = "LAB_WATCH"  # names the file that the kernel writes
REPORT = "watch.json"
DESCRIBED = re.compile(r'<img\b[^>]*\balt="[^"]+"')


class Seen(NamedTuple):
    """What the cells of a kernel made, and what is wrong with it."""

    cells: int
    pictures: int
    widgets: int
    faults: list[str]


def watched(folder: Path) -> dict[str, str]:
    """Variables for a kernel's environment: a profile in `folder` that loads this file, and where it writes."""
    profile = folder / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text(f"c.InteractiveShellApp.extensions = [{__name__!r}]\n")
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(HELPERS)] + [known] * bool(known))
    return {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": path, VARIABLE: str(folder / REPORT)}


def seen_by(folder: Path) -> Seen:
    """What the last kernel found that was watched in `folder`; RuntimeError when it ran no cell, or was not watched."""
    if not (folder / REPORT).is_file():
        raise RuntimeError(
            f"the kernel wrote no {REPORT}: it ran no cell, or could not load {__name__} as an extension"
        )
    return Seen(**json.loads((folder / REPORT).read_text(encoding="utf-8")))


def undescribed(data: dict) -> str | None:
    """The words of an output that is an image without alternative text, as a bare matplotlib figure gives it."""
    is_image = any(kind.startswith("image/") for kind in data)
    return None if not is_image or DESCRIBED.search(data.get("text/html", "")) else data.get("text/plain", "an image")


def load_ipython_extension(shell) -> None:
    """Begin to watch; IPython calls this in the kernel, before the first cell."""
    import ipywidgets

    from xlstm_unet_lab.course.authoring.accessibility import problems, widget_problems
    from xlstm_unet_lab.data.registry import get_recipe, recipe_names
    from xlstm_unet_lab.figures.picture import Picture

    # Labels may have the colours that recipes give them.
    colours = {colour for name in recipe_names() for colour in get_recipe(name).colours.values()}
    seen = Seen(0, 0, 0, [])
    pictures, widgets, make = [], [], Picture.__init__

    def remember(picture, *arguments, **named):
        make(picture, *arguments, **named)
        pictures.append(picture)

    def look_at_message(message):
        if words := undescribed(message["content"].get("data", {})):
            seen.faults.append(f"an image without alternative text: {words}")
        return message

    def look(result) -> None:
        nonlocal seen
        found = [f"{one.description[:60]!r}: {fault}" for one in pictures for fault in problems(one, colours)]
        found += [fault for widget in widgets for fault in widget_problems(widget)]
        made = seen.cells + 1, seen.pictures + len(pictures), seen.widgets + len(widgets)
        seen = Seen(*made, list(dict.fromkeys(seen.faults + found)))
        pictures.clear(), widgets.clear()  # not kept: the memory of the lesson is measured
        Path(os.environ[VARIABLE]).write_text(json.dumps(seen._asdict()), encoding="utf-8")

    Picture.__init__ = remember
    ipywidgets.Widget.on_widget_constructed(widgets.append)
    shell.display_pub.register_hook(look_at_message)
    shell.displayhook.register_hook(look_at_message)
    shell.events.register("post_run_cell", look)
