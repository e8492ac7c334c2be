"""Pictures keep every colour, a screen counts only when it answers, and `show` says what it did."""

import io
import logging
import re
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from xlstm_unet_lab.figures.picture import described_png
from xlstm_unet_lab.overlays import show
from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.screenshot import LEVEL, legend
from xlstm_unet_lab.overlays.virtual_display import X_PORT, has_screen


def test_a_rare_label_keeps_its_colour_on_a_photograph():
    photo = np.random.default_rng(0).integers(0, 256, (3, 300, 400), np.uint8)
    label = np.zeros((300, 400), np.uint8)
    label[150, 200] = 1
    facts = {"channel_names": ("red", "green", "blue"), "colours": {1: "#0072B2"}, "unit": "pixel"}
    shown = overlay(photo, prediction=label, **facts)
    picture = np.concatenate([np.moveaxis(photo, 0, -1), legend(shown, 2, 400)])
    picture[150, 200] = colour = (0x00, 0x72, 0xB2)
    with Image.open(io.BytesIO(described_png(picture, "Many words.", LEVEL))) as file:
        drawn = np.asarray(file.convert("RGB"))
        assert file.text["Description"] == "Many words."
    assert np.abs(drawn.astype(int) - picture).max() <= LEVEL / 2
    assert (np.abs(drawn[300:].astype(int) - colour).max(-1) <= LEVEL / 2).sum() > 100, "the square of the legend"


@pytest.fixture
def address(request, tmp_path):
    """What the environment says of a screen, and the socket where it would listen: TCP, or a file, as Wayland's."""
    if request.param == "wayland":
        place = socket.socket(socket.AF_UNIX)
        place.bind(str(tmp_path / "wayland-7"))
        environ = {"WAYLAND_DISPLAY": "wayland-7", "XDG_RUNTIME_DIR": str(tmp_path)}
    else:
        place = socket.socket()
        place.bind(("127.0.0.1", 0))
        environ = {"DISPLAY": f"127.0.0.1:{place.getsockname()[1] - X_PORT}.0"}
    with place:
        yield environ, place


@pytest.mark.parametrize("address", ["x", "wayland"], indirect=True)
def test_a_screen_that_does_not_answer_is_none(address, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    environ, place = address
    assert not has_screen(environ), "it is named, but nobody listens"
    place.listen()
    assert has_screen(environ)
    place.close()
    assert not has_screen(environ), "it listens no longer"


@pytest.mark.parametrize(
    ("environ", "notebook", "napari", "way", "why"),
    [
        ({"DISPLAY": ":0"}, False, True, "napari", "there is a screen"),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "1"}, True, True, "widget", "another machine.*SSH_CONNECTION"),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "1"}, False, True, "napari", "there is a screen"),
        ({}, True, True, "widget", "no screen"),
        ({}, False, True, "screenshot", "no screen"),
        ({"DISPLAY": ":0"}, True, False, "widget", "napari is not installed"),
    ],
)
def test_the_best_way_to_show_is_chosen_with_a_reason(monkeypatch, environ, notebook, napari, way, why):
    monkeypatch.setattr(show, "has_screen", lambda environ: "DISPLAY" in environ)
    chosen, reason = show.choose(environ, notebook, napari)
    assert chosen == way
    assert re.search(why, reason)


def test_a_script_without_napari_is_told_what_to_do():
    with pytest.raises(RuntimeError, match=r"napari is not installed, and this is no notebook: pip install .*describe"):
        show.choose({"DISPLAY": ":0"}, notebook=False, napari=False)


STAND_IN = SimpleNamespace(screenshot=lambda path: path, widget=lambda: "a slicer")


def test_a_script_is_told_where_the_picture_lies(monkeypatch, caplog):
    monkeypatch.setattr(show, "choose", lambda *facts: ("screenshot", "there is no screen"))
    done = show.show(STAND_IN)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING, "what is lower is not seen where no log was set up"
    assert record.getMessage() == repr(done) == f"screenshot: there is no screen\n{done.thing}"
    assert done.thing.name == "overlay.png" and not show.in_notebook()


def test_a_notebook_shows_the_slicer_once_from_any_line_of_a_cell(monkeypatch, caplog):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what, **options: shown.append(what))
    monkeypatch.setattr(show, "in_notebook", lambda: True)
    monkeypatch.setattr(show, "choose", lambda *facts: ("widget", "there is no screen"))
    done = show.show(STAND_IN)
    assert shown == [{"text/plain": "widget: there is no screen"}, "a slicer"] and not caplog.records
    done._ipython_display_()  # as for the last line of a cell
    assert len(shown) == 2
