"""An overlay in napari: its layers as data, a live viewer in a fresh process, and pictures drawn without a screen."""

import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import REPOSITORY

from xlstm_unet_lab.evaluation.metrics import ERRORS
from xlstm_unet_lab.overlays import screenshot
from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.layers import layer_data
from xlstm_unet_lab.overlays.viewer import open_viewer
from xlstm_unet_lab.overlays.virtual_display import has_screen, on_a_screen


def case(spatial_dims, **changes):
    size = (6, 16, 20)[-spatial_dims:]
    truth = np.zeros(size, np.uint8)
    truth[..., 4:12, 4:16] = 1
    prediction = np.where(np.arange(20) < 10, truth, 5 * truth).astype(np.uint8)
    facts = {"truth": truth, "prediction": prediction, "spacing": (5.0, 2.0, 1.0)[-spatial_dims:]}
    facts |= {"label_names": {"liver": 1, "aorta": 5}, "colours": {1: "#D55E00", 5: "#56B4E9"}, "title": "patient 7"}
    image = 100 * np.random.default_rng(0).random((1, *size), np.float32)
    return overlay(image, **facts | changes)


def by_name(shown):
    return {keywords["name"]: (data, keywords, kind) for data, keywords, kind in layer_data(shown)}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_layers_are_plain_data(spatial_dims):
    probabilities = np.full((3, *(6, 16, 20)[-spatial_dims:]), 1 / 3, np.float32)
    shown = case(spatial_dims, probabilities=probabilities)
    found = by_name(shown)
    assert list(found) == ["channel 0", "entropy", "probability", "prediction", "truth", "outlines", "errors"]
    for _, keywords, _ in found.values():
        assert keywords["scale"] == shown.spacing and keywords["units"] == ("mm",) * spatial_dims
        assert keywords["metadata"]["overlay"][:2] == (shown.identity, "patient 7")
    data, keywords, kind = found["prediction"]
    assert kind == "labels" and keywords["colormap"][5] == "#56B4E9" and keywords["colormap"][0] == "transparent"
    assert keywords["features"]["label 5"] == [None, None, f"aorta, Dice {shown.scores['aorta']:.2f}"]
    assert keywords["features"]["index"] == [0, 1, 5]
    data[:] = 0
    assert shown.prediction.any(), "painting in the viewer must leave the overlay as it was"
    assert list(found["errors"][1]["colormap"].values())[2:] == list(ERRORS.values())
    low, high = found["channel 0"][1]["contrast_limits"]
    assert low == pytest.approx(np.percentile(shown.image, 0.5)) and high == pytest.approx(
        np.percentile(shown.image, 99.5)
    )


def test_colour_images_and_constant_ones_have_sensible_limits():
    colour = np.random.default_rng(0).random((3, 16, 20), np.float32) * 255
    (data, keywords, _), *_ = layer_data(_colour(colour))
    assert keywords["rgb"] and data.shape == (16, 20, 3) and data.min() >= 0 and data.max() <= 1
    (data, _, _), *_ = layer_data(_colour(colour.astype(np.uint8)))
    assert data.dtype == np.uint8
    (_, keywords, _), *_ = layer_data(overlay(np.full((1, 8, 8), 3.0)))
    assert keywords["contrast_limits"] == (3.0, 4.0)


def _colour(image):
    return overlay(image, channel_names=["red", "green", "blue"])


@pytest.fixture(scope="module")
def viewed(require_display):
    """What a live viewer showed in a process of its own (tests/helpers/overlay_viewer.py)."""
    command = [*require_display, sys.executable, "-m", "tests.helpers.overlay_viewer"]
    environment = {name: value for name, value in os.environ.items() if name != "QT_QPA_PLATFORM"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_viewer_shows_names_scale_and_colours(viewed):
    volume = viewed["volume"]
    assert list(volume) == ["t1", "t2", "entropy", "probability", "prediction", "truth", "outlines", "errors"]
    assert all(layer["scale"] == [5, 2, 1] and layer["units"] == ["millimeter"] * 3 for layer in volume.values())
    assert [name for name, layer in volume.items() if layer["visible"]] == ["t1", "prediction", "truth"]
    assert [layer["kind"] for layer in volume.values()] == ["image"] * 4 + ["labels"] * 4
    orange = pytest.approx([0xD5 / 255, 0x5E / 255, 0, 1], abs=1e-3)
    assert volume["prediction"]["colours"]["1"] == volume["truth"]["colours"]["1"] == orange
    assert volume["prediction"]["colours"]["0"][3] == 0 and volume["truth"]["contour"] == 1
    assert viewed["view"] == {
        "slice": 3,
        "orientation": ["away", "up", "left"],
        "scale bar": True,
        "active": "prediction",
        "title": "patient 7",
    }


def test_the_status_line_reads_name_and_score(viewed):
    aorta, liver, background = viewed["hover"]
    assert "label 5: aorta, Dice 0.00" in aorta and "label 1: liver, Dice 0.91" in liver and "label" not in background
    assert "error: confused" in viewed["hover error"]


def test_rescoring_reads_the_edited_layer(viewed):
    rescored = viewed["rescored"]
    assert rescored["errors"] == [0, 0, 0, 32, 0, 32] and viewed["overlay untouched"] == 5
    liver = 2 * 512 / (512 + 576)
    assert rescored["scores"]["liver"] == pytest.approx(liver) and f"liver, Dice {liver:.2f}" in rescored["hover"]
    assert rescored["slice"] == 5 and rescored["same layer"], "the user's view must stay as it is"
    assert "[9] were painted" in viewed["unknown value"] and "truth or prediction of 'another'" in viewed["other case"]


def test_another_overlay_takes_the_place_of_the_first(viewed):
    assert viewed["without truth"] == ["t1", "t2", "entropy", "probability", "prediction", "outlines"]
    picture = viewed["picture"]
    assert list(picture) == ["image", "truth", "outlines"] and picture["image"]["rgb"]
    assert picture["outlines"]["visible"] and picture["truth"]["units"] == ["pixel"] * 2
    assert viewed["picture orientation"] == ["towards", "down", "right"]


def test_models_side_by_side_share_a_grid(viewed):
    grid, names = viewed["grid"], ["t1", "t2", "prediction", "truth", "outlines", "errors"]
    assert grid["names"] == [f"model {which}: {name}" for which in "ab" for name in names]
    assert grid["shape"] == [1, 2] and grid["places"] == [[0, 0], [0, 1]]
    assert viewed["grid after rescoring"] == grid["names"]
    assert "give each its own" in viewed["grid alike"]
    assert "some overlays are 2-D" in viewed["grid mixed"]


@pytest.fixture
def no_screen(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def test_a_live_viewer_needs_a_screen(no_screen):
    assert not has_screen()
    with pytest.raises(RuntimeError, match=r"needs a screen.*screenshot"):
        open_viewer(case(2))


@pytest.fixture
def started(monkeypatch):
    """Every process that is started from here on."""
    processes = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return processes


@pytest.mark.parametrize("error", [KeyboardInterrupt(), subprocess.TimeoutExpired("napari", 600)])
def test_a_drawing_that_is_stopped_leaves_no_process_and_no_screen(
    require_display, no_screen, monkeypatch, tmp_path, error
):
    noted, stopped = tmp_path / "display", []

    def stop(process, *_, **__):
        stopped.append(process)
        while not (noted.is_file() and noted.read_text().strip()):
            time.sleep(0.05)
        raise error

    monkeypatch.setattr(subprocess.Popen, "communicate", stop)
    command = on_a_screen(["sh", "-c", f"echo $DISPLAY $$ > {noted}; exec sleep 3600"])
    with pytest.raises((KeyboardInterrupt, RuntimeError)) as raised:
        screenshot._run(command, b"", tmp_path / "settings.yaml")
    assert isinstance(raised.value, KeyboardInterrupt) or "drew nothing within 600 s: try a smaller" in str(
        raised.value
    )
    display, process = noted.read_text().split()
    assert stopped[0].poll() is not None
    assert comes_true(lambda: not has_screen({"DISPLAY": display}) and not Path(f"/proc/{process}").exists())


def comes_true(condition, seconds=30):
    """Whether a condition holds within some seconds: a process that was told to end needs a moment."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("code", [0, 3])
def test_the_virtual_display_answers_while_its_command_runs(require_display, no_screen, code):
    program = (
        "import os, sys\n"
        "from xlstm_unet_lab.overlays.virtual_display import has_screen\n"
        "assert has_screen() and has_screen({'DISPLAY': 'unix' + os.environ['DISPLAY'] + '.0'})\n"
        "print(os.environ['DISPLAY'])\n"
        "sys.exit(int(sys.argv[1]))"
    )
    command = on_a_screen([sys.executable, "-c", program, str(code)], 640, 480)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert comes_true(lambda: not has_screen({"DISPLAY": done.stdout.strip()}))
    assert not has_screen({"DISPLAY": ":no-such"}) and not has_screen({})


def test_a_missing_xvfb_is_said_in_one_line(monkeypatch, no_screen):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"no Xvfb.*make system"):
        on_a_screen(["napari"])


@pytest.mark.parametrize("ndisplay", [2, 3])
def test_a_picture_is_drawn_without_a_screen(require_display, no_screen, monkeypatch, tmp_path, started, ndisplay):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    shown = case(3, anatomical=True, credit="Licence: CC0.")
    path = shown.screenshot(tmp_path / "out.png", ndisplay=ndisplay, size=(300, 240))
    (drawing,) = started
    assert drawing.args[0] == "xvfb-run" and sys.executable in drawing.args and drawing.poll() is not None
    with Image.open(path) as file:
        assert file.text["Description"] == shown.describe()
        picture = np.asarray(file.convert("RGB"))
    assert picture.shape[1] == 300 and picture.shape[0] > 240
    canvas, strip = picture[:240].astype(int), picture[240:].astype(int)
    reddish, bluish = ((canvas[..., a] - canvas[..., b] > 40).mean() for a, b in ((0, 2), (2, 0)))
    assert reddish > 0.02 and bluish > 0.02, "liver and aorta must be seen in their colours"
    assert (np.abs(strip - (0xD5, 0x5E, 0)).max(-1) < 16).sum() > 100, "the legend shows the liver's colour"


def test_bad_requests_and_missing_parts_are_said_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"ndisplay is 3"):
        case(2).screenshot(tmp_path / "a.png", ndisplay=3)
    with pytest.raises(ValueError, match="at least 100 pixels"):
        case(2).screenshot(tmp_path / "a.png", size=(50, 500))
    monkeypatch.setattr(screenshot, "on_a_screen", lambda command, *size: command)
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"napari could not draw \(ended with code 1\): OpenGL.*make system"):
        case(2).screenshot(tmp_path / "a.png")
    monkeypatch.setattr(screenshot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="napari is not installed: pip install"):
        case(2).screenshot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_what_the_drawing_process_reads_is_what_was_written():
    shown = replace(case(3, anatomical=True), instances=np.ones((6, 16, 20), np.int32))
    read = pickle.loads(pickle.dumps(shown))
    assert read.describe() == shown.describe() and read.colours == shown.colours and read.spacing == shown.spacing
    np.testing.assert_array_equal(read.instances, shown.instances)
