"""Show an overlay in the best way there is: a live napari, the slicer of a notebook, or a picture."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_unet_lab.overlays.virtual_display import has_screen

if TYPE_CHECKING:
    from xlstm_unet_lab.overlays.description import Overlay

# Set where Python runs on a machine that its user does not sit at: a window would open where nobody sees it.
REMOTE = ("JUPYTERHUB_USER", "SSH_CONNECTION", "COLAB_RELEASE_TAG", "CODESPACES", "KUBERNETES_SERVICE_HOST")


@dataclass(frozen=True)
class Shown:
    """What was shown: "napari" (a viewer), "widget" (of a notebook) or "screenshot" (the path of a PNG), and why."""

    way: str
    reason: str
    thing: object

    def __repr__(self) -> str:
        return f"{self.way}: {self.reason}" + (f"\n{self.thing}" if self.way == "screenshot" else "")

    def _ipython_display_(self) -> None:
        """Nothing: `show` has displayed it, in whatever line of a cell it stands."""


def choose(environ: Mapping[str, str], notebook: bool, napari: bool) -> tuple[str, str]:
    """ "napari", "widget" or "screenshot", and the reason in words, for an environment, inside or outside a notebook,
    with or without napari installed. Raises RuntimeError outside a notebook without napari, where nothing can show."""
    remote = next((name for name in REMOTE if environ.get(name)), None) if notebook else None
    if not napari and not notebook:
        raise RuntimeError(
            "napari is not installed, and this is no notebook: pip install 'xlstm-unet-lab[napari]', or describe() it"
        )
    if not napari:
        reason = "napari is not installed"
    elif not has_screen(environ):
        reason = "there is no screen where Python runs"
    elif remote:
        reason = f"Python runs on another machine than you sit at ({remote} is set)"
    else:
        return "napari", "there is a screen, and napari is installed"
    return ("widget", f"{reason}, and a notebook can hold the slicer") if notebook else ("screenshot", reason)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def show(overlay: Overlay) -> Shown:
    """Show an overlay in the best way there is here, and say which and why: in a notebook's output, else in the log.

    Outside IPython a napari window holds the program until closed. A screenshot lies in a temporary folder, which the
    log names. Raises as `choose` and `screenshot` do.
    """
    notebook = in_notebook()
    way, reason = choose(os.environ, notebook, importlib.util.find_spec("napari") is not None)
    if way == "napari":
        thing: object = overlay.napari()
    elif way == "widget":
        thing = overlay.widget()
    else:
        thing = overlay.screenshot(Path(tempfile.mkdtemp(prefix="overlay_")) / "overlay.png")
    shown = Shown(way, reason, thing)
    if notebook:
        from IPython.display import display

        display({"text/plain": repr(shown)}, raw=True)
        if way == "widget":
            display(thing)
    else:
        logging.getLogger(__name__).warning("%s", shown)  # the least that is seen where no log was set up
    if way == "napari":
        import napari

        napari.run()  # returns at once where IPython draws the window
    return shown
