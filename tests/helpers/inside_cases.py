"""Cases, corrections, settings and surfaces in a real napari viewer. `test_napari_plugin.py` runs this file too."""

import shutil
from pathlib import Path

import napari
import nibabel
import numpy as np
import pytest
from inside_napari import (  # noqa: F401  # fixtures among them
    CASE,
    DATA,
    PLUGIN,
    RUN,
    finish,
    qtbot,
    viewer,
    widget_of,
)
from napari.settings import get_settings
from napari.utils.notifications import notification_manager

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.images import read_label
from xlstm_unet_lab.data.registry import get_recipe


@pytest.fixture
def own_data(viewer, tmp_path, monkeypatch):  # noqa: F811
    """The prepared data, to be changed."""
    folder = get_recipe("phantom_microscopy").folder(DATA)
    shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.setenv("LAB_DATA", str(tmp_path))
    return tmp_path / folder.name


def listed(viewer, source):  # noqa: F811
    widget = widget_of(viewer, "Cases")
    widget.run_directory.value = source
    widget.begin()
    finish(widget)
    assert not notification_manager.records, widget.text.value
    return widget


def press(viewer, key):  # noqa: F811
    viewer.keymap[next(known for known in viewer.keymap if str(known) == key)](viewer)


def test_cases_are_listed_worst_first_and_gone_through_by_keys(viewer, own_data):  # noqa: F811
    widget = listed(viewer, RUN)
    scores = [float(text.split()[1]) for text, _ in widget.cases._widget._mgui_get_choices()]
    cases = lab.load_dataset("phantom_microscopy", "test")
    assert scores == sorted(scores) and len(scores) == len(cases)
    files = list(widget.cases.choices)
    shown = viewer.layers["prediction"].metadata["file"]
    assert widget.cases.value == [files[0]] == [shown] and "Dice" in widget.text.value
    press(viewer, "PageDown")
    assert viewer.layers["prediction"].metadata["file"] == files[1]
    press(viewer, "PageUp")
    press(viewer, "PageUp")  # from the first to the last
    assert viewer.layers["prediction"].metadata["file"] == files[-1] and not notification_manager.records


def test_what_is_painted_stays_and_is_saved_for_the_next_training(viewer, own_data):  # noqa: F811
    widget = listed(viewer, RUN)
    prediction = viewer.layers["prediction"]
    file, found = prediction.metadata["file"], prediction.data.copy()
    prediction.data[:7] = 1
    press(viewer, "PageDown")
    press(viewer, "PageUp")
    prediction = viewer.layers["prediction"]
    assert (prediction.data[:7] == 1).all() and prediction.metadata["file"] == file
    viewer.layers.selection.active = prediction
    widget.save_button.changed.emit(True)
    saved = own_data / "labelsTs" / file.name.replace("_0000", "")
    assert widget.text.value.startswith(f"saved as {saved}") and "interior" in widget.text.value
    np.testing.assert_array_equal(read_label(saved)[0], prediction.data)
    np.testing.assert_array_equal(viewer.layers["truth"].data, prediction.data)
    assert not viewer.layers["errors"].data.any()
    original = read_label(own_data / "labelsTs_before" / saved.name)[0]
    cases = lab.load_dataset("phantom_microscopy", "test")
    index = cases.names.index(saved.stem)
    np.testing.assert_array_equal(cases[index]["label"], prediction.data)
    assert (original != prediction.data).any() and (found != prediction.data).any()


def test_saving_says_what_is_missing(viewer, own_data):  # noqa: F811
    widget = listed(viewer, own_data)
    viewer.layers.selection.active = viewer.layers["fluorescence"]
    widget.save_button.changed.emit(True)
    assert "no label layer is active" in widget.text.value
    viewer.layers["truth"].data[0, 0] = 7
    viewer.layers.selection.active = viewer.layers["truth"]
    widget.save_button.changed.emit(True)
    assert "layer 'truth' holds [7]: paint with one of the labels" in widget.text.value
    first = widget.cases.value
    widget.go(1)
    assert "[7] were painted" in widget.text.value and viewer.layers["truth"].metadata["file"] == first[0]


def test_a_layer_drawn_by_hand_becomes_the_label_of_the_only_image(viewer, own_data):  # noqa: F811
    widget = listed(viewer, own_data)
    image = viewer.layers["fluorescence"]
    drawn = viewer.add_labels(np.ones(image.data.shape, int), name="mine")
    widget.save()
    assert (read_label(own_data / "labelsTr" / image.metadata["file"].name.replace("_0000", ""))[0] == 1).all()
    assert (viewer.layers["truth"].data == 1).all() and drawn in viewer.layers


def test_naparis_own_save_writes_the_label_with_the_affine_of_its_image(viewer, tmp_path):  # noqa: F811
    viewer.open(CASE, plugin=PLUGIN)
    truth = viewer.layers["truth"]
    truth.data[3] = 1
    path = tmp_path / "corrected.nii.gz"
    assert truth.save(str(path), plugin=PLUGIN) == [str(path)]
    np.testing.assert_array_equal(nibabel.load(path).affine, nibabel.load(CASE).affine)
    np.testing.assert_array_equal(read_label(path)[0], truth.data)
    with pytest.raises(OSError, match=r"labels that end in \.nii\.gz"):
        truth.save(str(tmp_path / "corrected.png"), plugin=PLUGIN)


def test_settings_are_remembered(viewer):  # noqa: F811
    widget = widget_of(viewer, "Segment")
    widget.run_directory.value, widget.mirror.value, widget.device.value = RUN, True, "cpu"
    kept = Path(get_settings().config_path).with_name(f"{PLUGIN}.yaml") if get_settings().config_path else None
    if kept is not None:
        assert str(RUN) in kept.read_text()
    viewer.window.remove_dock_widget("all")
    again = widget_of(viewer, "Explore the mixer")
    assert again.run_directory.value == RUN and again.device.value == "cpu" and again.clicking.value
    assert again is not widget
    widget.mirror.value = False


def test_segment_adds_entropy_and_probability_and_says_when_nothing_was_found(viewer):  # noqa: F811
    viewer.add_image(np.random.default_rng(0).random((64, 64)))
    widget = widget_of(viewer, "Segment")
    widget.run_directory.value, widget.uncertainty.value = RUN, True
    widget.begin()
    finish(widget)
    widget.uncertainty.value = False
    names = [layer.name for layer in viewer.layers][1:]
    assert names == [f"{part} of {RUN.name}" for part in ("entropy", "probability", "prediction", "outlines")]
    entropy, probability = (viewer.layers[name].data for name in names[:2])
    assert ((entropy >= 0) & (entropy <= 1)).all() and ((probability >= 1 / 3) & (probability <= 1)).all()
    assert "not one voxel" not in widget.text.value
    labels = viewer.layers[names[2]]
    known = {"name": labels.name, "metadata": labels.metadata}
    widget._show([(np.zeros_like(labels.data), known, "labels")])
    assert widget.text.value.startswith("Nothing was found: not one voxel has a label.")


def test_the_view_follows_a_typed_pixel(viewer):  # noqa: F811
    viewer.add_image(np.random.default_rng(0).random((64, 80)), scale=(2, 2), translate=(7, 7))
    widget = widget_of(viewer, "Explore the mixer")
    widget.run_directory.value, widget.position.value = RUN, "50, 10"
    widget.begin()
    finish(widget)
    np.testing.assert_allclose(viewer.dims.point[-2:], (107, 27))
    np.testing.assert_allclose(np.array(viewer.scene.camera.center)[-2:], (107, 27))


def test_surfaces_show_in_3d(viewer):  # noqa: F811
    viewer.open(CASE, plugin=PLUGIN)
    napari.qt.get_qapp().processEvents()
    viewer.dims.ndisplay = 3
    names = [layer.name for layer in viewer.layers if isinstance(layer, napari.layers.Surface)]
    assert names == ["core, truth"]


def test_a_network_that_ships_is_chosen_by_its_name(viewer):  # noqa: F811
    viewer.add_image((255 * np.random.default_rng(0).random((64, 64))).astype(np.uint8))
    widget = widget_of(viewer, "Segment")
    names = dict(widget.trained_here._widget._mgui_get_choices())
    widget.trained_here.value = names["phantom_microscopy"]
    widget.begin()
    finish(widget)
    assert "prediction of phantom_microscopy" in viewer.layers, widget.text.value
    assert viewer.layers["prediction of phantom_microscopy"].metadata["labels"] == {"interior": (1,), "boundary": (2,)}
