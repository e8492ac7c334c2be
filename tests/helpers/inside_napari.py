"""The plugin's widgets in a real napari viewer. `test_napari_plugin.py` runs this file under a virtual screen.

It names the run to use in PLUGIN_RUN, the prepared data in PLUGIN_DATA and a file of a volume in PLUGIN_CASE.
"""

import os
import re
import time
from pathlib import Path

import napari
import numpy as np
import pytest
from napari.qt import get_qapp
from napari.utils._test_utils import read_only_mouse_event
from napari.utils.interactions import mouse_move_callbacks, mouse_press_callbacks, mouse_release_callbacks
from napari.utils.notifications import notification_manager
from qtpy.compat import isalive
from qtpy.QtCore import QEvent

import xlstm_unet_lab as lab
import xlstm_unet_lab.plugin
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.inference.load import load_predictor
from xlstm_unet_lab.overlays.viewer import ORIENTATION
from xlstm_unet_lab.plugin import widgets

PLUGIN = "xlstm-unet-lab"
RUN, DATA, CASE = Path(os.environ["PLUGIN_RUN"]), os.environ["PLUGIN_DATA"], os.environ["PLUGIN_CASE"]


@pytest.fixture
def qtbot():
    """`make_napari_viewer` asks for pytest-qt's fixture; of viewers that are not shown it needs an application only."""
    return get_qapp()


@pytest.fixture
def viewer(make_napari_viewer, npe2pm, monkeypatch):
    monkeypatch.setenv("LAB_DATA", DATA)
    notification_manager.records.clear()
    with npe2pm.tmp_plugin(manifest=str(Path(xlstm_unet_lab.plugin.__file__).with_name("napari.yaml"))):
        yield make_napari_viewer()


def widget_of(viewer, name):
    return viewer.window.add_plugin_dock_widget(PLUGIN, name)[1]


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        get_qapp().processEvents()
        time.sleep(0.01)
    assert condition()


def finish(widget):
    wait_until(lambda: widget._worker is None)


def colours_of(layer):
    """Label value -> "#rrggbb" as drawn."""
    values = sorted(value for value in layer.colormap.color_dict if value)
    drawn = [(layer.get_color(value)[:3] * 255).round().astype(int) for value in values]
    return {value: "#" + "".join(f"{part:02x}" for part in colour) for value, colour in zip(values, drawn, strict=True)}


def recipe_colours(name):
    recipe = get_recipe(name)
    return {recipe.labels[label]: colour.lower() for label, colour in recipe.colours.items()}


def click(viewer, place, moves=0):
    def event(kind):
        return read_only_mouse_event(type=kind, button=1, position=place, dims_displayed=list(viewer.dims.displayed))

    mouse_press_callbacks(viewer, event("mouse_press"))
    for _ in range(moves):
        mouse_move_callbacks(viewer, event("mouse_move"))
    mouse_release_callbacks(viewer, event("mouse_release"))


def test_sample_then_segment(viewer):
    viewer.open_sample(PLUGIN, "phantom_microscopy")
    get_qapp().processEvents()  # the view is arranged right after the layers are there
    assert colours_of(viewer.layers["truth"]) == recipe_colours("phantom_microscopy")
    image = next(layer for layer in viewer.layers if isinstance(layer, napari.layers.Image))
    image.translate = (3, 5)
    widget = widget_of(viewer, "Segment")
    widget.run_directory.value = RUN
    widget.begin()
    assert not widget.start_button.enabled and widget.cancel_button.enabled
    finish(widget)
    assert widget.start_button.enabled and not widget.cancel_button.enabled
    assert widget.text.value.startswith(f"prediction of {RUN.name}") and "rename what you want" in widget.text.value
    layer, count = viewer.layers[f"prediction of {RUN.name}"], len(viewer.layers)
    assert isinstance(layer, napari.layers.Labels)
    assert colours_of(layer) == recipe_colours("phantom_microscopy")
    assert layer.scale.tolist() == image.scale.tolist() and layer.translate.tolist() == [3, 5]
    assert layer.units == image.units
    assert "interior" in str(layer.features)
    raw = lab.load_dataset("phantom_microscopy", "test").raw(0)
    expected = load_predictor(RUN)(raw)
    np.testing.assert_array_equal(layer.data, expected)
    layer.data[:5] = 2
    widget.begin()  # once more
    finish(widget)
    assert len(viewer.layers) == count and layer in viewer.layers
    np.testing.assert_array_equal(layer.data, expected)
    assert not notification_manager.records


def test_a_result_takes_the_place_of_an_earlier_one_with_all_that_it_says(viewer):
    widget = widget_of(viewer, "Segment")

    def result(size, unit, colour, label):
        known = {"name": "result", "scale": (size, size), "translate": (size, 0), "units": (unit,) * 2}
        known |= {"colormap": {None: "gray", 0: "transparent", 1: colour}, "metadata": {"labels": {label: (1,)}}}
        return [(np.full((4, 5), 1), known | {"features": {"index": [0, 1], "label 1": [None, label]}}, "labels")]

    (layer,) = widget.add(result(1, "pixel", "#0072b2", "liver"))
    assert widget.add(result(2, "mm", "#d55e00", "lung")) == [layer] and list(viewer.layers) == [layer]
    assert layer.scale.tolist() == [2, 2] and layer.translate.tolist() == [2, 0]
    assert {str(unit) for unit in layer.units} == {"millimeter"} and layer.metadata["labels"] == {"lung": (1,)}
    assert colours_of(layer) == {1: "#d55e00"} and layer.features["label 1"].tolist()[1] == "lung"
    (image,) = widget.add([(np.zeros((3, 3)), {"name": "map", "metadata": {}, "colormap": "gray"}, "image")])
    widget.add([(np.ones((3, 3)), {"name": "map", "metadata": {}, "colormap": "viridis"}, "image")])
    assert image.colormap.name == "viridis"


def test_a_closed_viewer_gets_no_result(viewer):
    viewer.add_image(np.random.default_rng(0).random((2000, 2000)))
    widget = widget_of(viewer, "Segment")
    widget.run_directory.value = RUN
    widget.begin()
    wait_until(lambda: widget.bar.max > 0)
    worker = widget._worker
    viewer.close()
    get_qapp().sendPostedEvents(None, QEvent.Type.DeferredDelete.value)  # as the event loop does it
    assert not isalive(widget.native) and worker.abort_requested
    wait_until(lambda: not worker.is_running)
    for _ in range(5):
        get_qapp().processEvents()
    assert not viewer.layers and not notification_manager.records


def test_anatomical_case_is_turned(viewer):
    image, *_, truth = viewer.open(CASE, plugin=PLUGIN)
    get_qapp().processEvents()
    assert tuple(viewer.scene.camera.orientation) == ORIENTATION[True]
    assert viewer.dims.axis_labels == ("z", "y", "x") and viewer.dims.current_step[0] == 1
    assert image.scale.tolist() == [2, 1, 0.5] and {str(unit) for unit in image.units} == {"millimeter"}
    assert truth.name == "truth" and truth.metadata["labels"] == {"whole": (1, 2), "core": (2,)}


def test_cancel(viewer):
    viewer.add_image(np.random.default_rng(0).random((2000, 2000)))
    before = list(viewer.layers)
    widget = widget_of(viewer, "Segment")
    widget.run_directory.value = RUN
    widget.start_button.changed.emit(True)
    wait_until(lambda: widget.bar.max > 0 and widget.bar.value > 0)
    done, windows = widget.bar.value, widget.bar.max
    assert done < windows / 2
    widget.cancel_button.changed.emit(True)
    finish(widget)
    assert widget.text.value == "cancelled" and widget.start_button.enabled
    assert list(viewer.layers) == before and not notification_manager.records


MISFITS = (  # sizes of the image layers, the run, words of the message
    ([(64, 64), (64, 64)], RUN, r"the network reads 1 channel .*the chosen layers have 2"),
    ([(8, 64, 64)], RUN, r"layer 'image 0' is 3-D, the network was trained on 2-D images"),
    ([(64, 64), (32, 32)], RUN, r"'image 0' and 'image 1' lie on different grids"),
    ([], RUN, "no image layer is chosen"),
    ([(64, 64)], RUN.parent, "is no run directory"),
)


@pytest.mark.parametrize("name", ["Segment", "Explore the mixer"])
def test_readable_messages(viewer, name):
    widget = widget_of(viewer, name)
    if name != "Segment":
        widget.position.value = "5, 5"
    for shapes, run, words in MISFITS:
        viewer.layers.clear()
        notification_manager.records.clear()
        for number, shape in enumerate(shapes):
            viewer.add_image(np.zeros(shape), name=f"image {number}")
        widget.run_directory.value, widget.images.value = run, list(viewer.layers)
        widget.begin()
        finish(widget)
        (record,) = notification_manager.records
        assert record.message == widget.text.value and "Traceback" not in record.message
        assert re.search(words, widget.text.value), widget.text.value
        assert len(viewer.layers) == len(shapes) and widget.start_button.enabled


def test_a_bug_keeps_its_traceback(viewer):
    widget = widget_of(viewer, "Segment")
    widget.start(lambda: [][1], then=print)
    finish(widget)
    (record,) = notification_manager.records
    assert isinstance(record.exception, IndexError) and widget.text.value == "list index out of range"


def test_compare(viewer):
    truth = np.zeros((6, 12, 12), int)
    truth[1:5, 2:9, 2:9] = 1
    good, poor = truth.copy(), truth.copy()
    good[1, 2, 2] = 0
    poor[3, 2:9, 2:6] = 2
    for name, data in {"truth": truth, "good": good, "poor": poor}.items():
        viewer.add_labels(data, name=name, scale=(3, 1, 1), translate=(10, 0, 0), units=("mm",) * 3)
    viewer.layers["truth"].metadata["labels"] = {"liver": (1,), "spleen": (2,)}
    widget = widget_of(viewer, "Compare")
    widget.truth.value = viewer.layers["truth"]
    widget.begin()
    finish(widget)
    assert "no prediction is chosen" in widget.text.value
    widget.predictions[0].value, widget.predictions[2].value = viewer.layers["good"], viewer.layers["poor"]
    widget.begin()
    finish(widget)
    table = widget.table.to_dataframe()
    assert list(table["prediction"]) == ["good"] * 3 + ["poor"] * 3
    assert list(table["label"]) == ["liver", "spleen", "foreground"] * 2
    assert table["dice"][0] == pytest.approx(2 * 195 / (195 + 196)) and table["dice"][4] == 0
    errors = viewer.layers["errors of poor"]
    assert (errors.data[3, 2:9, 2:6] == 3).all() and np.count_nonzero(errors.data) == 28
    assert errors.scale.tolist() == [3, 1, 1] and errors.translate.tolist() == [10, 0, 0]
    viewer.dims.set_point(0, 10)
    widget.jump_button.changed.emit(True)
    assert viewer.dims.point[0] == 10 + 3 * 3
    viewer.layers["good"].data = truth
    widget.begin()
    finish(widget)
    assert not viewer.layers["errors of good"].data.any() and len(viewer.layers) == 5


def test_explore_by_click(viewer):
    image = viewer.add_image(
        np.random.default_rng(0).random((64, 80)), scale=(2, 2), translate=(7, 7), units=("mm",) * 2
    )
    widget = widget_of(viewer, "Explore the mixer")
    widget.run_directory.value = RUN
    click(viewer, (7 + 2 * 40, 7 + 2 * 21), moves=2)  # a drag moves the picture
    assert widget.position.value == "" and widget._worker is None
    click(viewer, (7 + 2 * 40, 7 + 2 * 21))
    assert widget.position.value == "40, 21"
    finish(widget)
    assert not notification_manager.records, widget.text.value
    assert "stage 1, 16 x 16 tokens" in widget.text.value and "direction 1 (backward, x fastest)" in widget.text.value
    field, decay, weights = (viewer.layers[name] for name in ("receptive field", "decay, stage 1", "weights, stage 1"))
    assert weights.data.shape == decay.data.shape == (2, 4, 16, 16) and field.data.shape == (32, 32)
    assert viewer.dims.axis_labels == ("direction", "head", "y", "x")
    assert weights.scale.tolist() == [1, 1, 4, 4] and weights.visible
    # The row ends at the token under the pixel, and so does the decay.
    token = tuple(round(p) for p in weights.world_to_data((0, 0, 7 + 2 * 40, 7 + 2 * 21)))[2:]
    forward, backward = decay.data[:, 0]
    assert forward[token] == backward[token] == 1
    assert forward[15, 15] == 0 and backward[0, 0] == 0
    assert weights.contrast_limits == pytest.approx([-np.abs(weights.data).max(), np.abs(weights.data).max()])
    click(viewer, (0, 0, 7, 7))
    finish(widget)
    assert image in viewer.layers and len(viewer.layers) == 4
    assert viewer.layers["weights, stage 1"] is weights and weights.translate.tolist() == [0, 0, 8, 8]
    viewer.layers.selection.active = viewer.add_labels(np.zeros((64, 80), int))
    viewer.layers.selection.active.mode = "paint"
    click(viewer, (0, 0, 17, 17))  # paints
    viewer.layers.selection.active.mode = "pan_zoom"
    viewer.window.remove_dock_widget("all")
    click(viewer, (0, 0, 17, 17))
    assert widget._worker is None and widget.position.value == "0, 0"


def test_explore_asks_for_a_pixel(viewer):
    viewer.add_image(np.zeros((64, 64)))
    widget = widget_of(viewer, "Explore the mixer")
    widget.run_directory.value = RUN
    for text, words in {"": "click one, or write whole numbers", "5, 64": "lies outside the image of size"}.items():
        widget.position.value = text
        widget.begin()
        finish(widget)
        assert words in widget.text.value


def test_open_case_and_run(viewer):
    folder = get_recipe("phantom_microscopy").folder()
    case = sorted((folder / "imagesTs").iterdir())[0]
    viewer.open(case, plugin=PLUGIN)
    get_qapp().processEvents()
    assert {"truth"} <= {layer.name for layer in viewer.layers}
    viewer.layers.clear()
    viewer.open(RUN, plugin=PLUGIN)
    get_qapp().processEvents()
    assert {"truth", "prediction", "errors"} <= {layer.name for layer in viewer.layers}
    assert colours_of(viewer.layers["prediction"]) == recipe_colours("phantom_microscopy")


def test_runs_trained_here(viewer, tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "model.json").touch()
    (tmp_path / "runs" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert widgets.runs() == [Path("runs/first")]
    widget = widget_of(viewer, "Segment")
    widget.trained_here.value = Path("runs/first")
    assert widget.run_directory.value.resolve() == (tmp_path / "runs" / "first").resolve()
