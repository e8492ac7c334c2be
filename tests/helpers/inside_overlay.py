"""A live viewer follows its overlay. `test_overlay_updates.py` runs this file on a screen of its own."""

import warnings
from dataclasses import replace

import napari
import numpy as np
import pytest
from napari.layers import Labels, Layer, Surface
from napari.qt import get_qapp

from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.layers import layer_data
from xlstm_unet_lab.overlays.viewer import ORIENTATION, grid, layers_of

SIZE = (6, 16, 20)
NAMES = {"liver": 1, "aorta": 5}


@pytest.fixture
def viewer():
    get_qapp()
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()


def case(spatial_dims=3, **changes):
    """A liver, and a prediction that takes its left end for aorta; without a title."""
    size = SIZE[-spatial_dims:]
    truth = np.zeros(size, np.uint8)
    truth[..., 4:12, 4:16] = 1
    prediction = truth.copy()
    prediction[..., 4:12, 4:8] = 5
    facts = {"truth": truth, "prediction": prediction, "spacing": (5.0, 2.0, 1.0)[-spatial_dims:], "anatomical": True}
    image = np.random.default_rng(0).random((1, *size), np.float32)
    return overlay(**{"image": image, "label_names": NAMES} | facts | changes)


def names(viewer):
    return [layer.name for layer in viewer.layers]


def surfaces(viewer):
    return [layer.name for layer in viewer.layers if isinstance(layer, Surface)]


def test_what_is_painted_on_the_truth_is_kept(viewer):
    shown = case()
    shown.napari(viewer)
    viewer.layers["truth"].data[:, 4:12, 4:8] = 5
    edited = shown.rescore(viewer)
    assert edited.scores == {"liver": 1, "aorta": 1} and shown.scores["aorta"] == 0
    assert (viewer.layers["truth"].data[:, 4:12, 4:8] == 5).all() and not viewer.layers["errors"].data.any()
    assert "Dice 1.00" in str(viewer.layers["truth"].features)
    viewer.layers["prediction"].data[:, 4:12, 4:8] = 0
    assert edited.rescore(viewer).scores["aorta"] == 0, "what was painted before must count as well"
    viewer.layers["truth"].data[0, 0, 0] = 9
    with pytest.raises(ValueError, match=r"values \[9\] were painted"):
        edited.rescore(viewer)


def test_the_truth_alone_can_be_edited(viewer):
    shown = case(prediction=None)
    shown.napari(viewer)
    viewer.layers["truth"].data[0] = 0
    assert not shown.rescore(viewer).truth[0].any()


def test_overlays_without_titles_are_not_taken_for_each_other(viewer):
    first = case()
    second = case(
        2, image=7 + np.arange(320).reshape(1, 16, 20), unit="pixel", anatomical=False, label_names={"cell": (1, 5)}
    )
    first.napari(viewer)
    second.napari(viewer)
    image, prediction = viewer.layers["channel 0"], viewer.layers["prediction"]
    assert image.contrast_limits[0] > 7 and [str(unit) for unit in image.units] == ["pixel"] * 2
    assert prediction.metadata["labels"] == {"cell": (1, 5)} and image.scale.tolist() == [2, 1]
    assert tuple(map(str, viewer.scene.camera.orientation)) == ORIENTATION[False]
    with pytest.raises(ValueError, match="shows no truth or prediction"):
        first.rescore(viewer)


def test_a_copy_changes_what_is_there(viewer):
    shown = case()
    shown.napari(viewer)
    image, prediction = viewer.layers["channel 0"], viewer.layers["prediction"]
    image.visible = False
    renamed = replace(shown, image=shown.image * 50, labels={"both": (1, 5)}, colours={1: "#009E73", 5: "#E69F00"})
    renamed.napari(viewer)
    assert viewer.layers["channel 0"] is image and not image.visible and image.contrast_limits[1] > 40
    assert viewer.layers["prediction"] is prediction and prediction.metadata["labels"] == {"both": (1, 5)}
    np.testing.assert_allclose(prediction.get_color(1)[:3], [0, 0x9E / 255, 0x73 / 255], atol=1e-3)
    viewer.dims.set_current_step(0, 5)
    replace(shown, spacing=(1.0, 1.0, 1.0)).napari(viewer)  # another grid is arranged anew
    assert viewer.layers["channel 0"].scale.tolist() == [1, 1, 1] and viewer.dims.current_step[0] == 0


def test_the_volume_is_seen_from_the_overlays_camera_and_the_slice_comes_back(viewer):
    shown = case(instances=np.ones(SIZE, int))
    shown.napari(viewer)
    found, camera = layers_of(viewer, shown), viewer.scene.camera
    found["image 0"].opacity = 0.8
    viewer.dims.set_current_step(0, 1)
    for _ in range(2):
        viewer.dims.ndisplay = 3
        np.testing.assert_allclose(camera.angles, shown.camera["angles"], atol=1e-6)
        np.testing.assert_allclose(camera.center, shown.camera["centre"])
        assert [part for part, layer in found.items() if layer.visible] == ["image 0"]
        assert surfaces(viewer) == ["liver, prediction", "aorta, prediction"]
        assert found["image 0"].opacity == 0.35
        viewer.dims.ndisplay = 2
        assert found["image 0"].opacity == 0.8 and found["prediction"].opacity == 0.5
        assert found["truth"].visible and found["truth"].contour == 1 and found["outlines"].visible
        assert not surfaces(viewer)
        assert viewer.dims.current_step[0] == 1
    found["truth"].visible = False
    viewer.dims.ndisplay = 3
    viewer.dims.ndisplay = 2
    assert not found["truth"].visible, "what the user hid stays hidden"
    assert len([one for one in viewer.dims.events.ndisplay.callbacks if "restyle" in str(one)]) == 1


def test_a_prediction_comes_to_a_truth_and_goes(viewer):
    shown = case()
    without = replace(shown, prediction=None)
    without.napari(viewer)
    drawn = viewer.add_labels(np.zeros(SIZE, int), name="drawn by me")
    truth = viewer.layers["truth"]
    viewer.layers.selection.active = truth
    assert truth.contour == 0 and truth.opacity == 0.5
    shown.napari(viewer)
    assert names(viewer) == ["channel 0", "prediction", "truth", "outlines", "errors", "drawn by me"]
    assert viewer.layers["truth"] is truth and truth.contour == 1 and truth.opacity == 1
    assert viewer.layers.selection.active is truth
    without.napari(viewer)
    assert names(viewer) == ["channel 0", "truth", "drawn by me"] and drawn in viewer.layers
    assert truth.contour == 0 and truth.opacity == 0.5 and truth.visible


def test_rescoring_one_of_a_grid_leaves_the_grid(viewer):
    shown = case()
    probabilities = np.full((3, *SIZE), 1 / 3, np.float32)
    first, second = replace(shown, title="a", probabilities=probabilities), replace(shown, title="b")
    grid([first, second], viewer)
    before, stride = names(viewer), viewer.canvas.grid.stride
    viewer.layers["a: prediction"].data[:] = viewer.layers["a: truth"].data
    assert first.rescore(viewer).scores["liver"] == 1 > second.rescore(viewer).scores["liver"]
    assert names(viewer) == before and stride == len(before) / 2 == 5


def test_while_errors_show_the_prediction_is_a_line(viewer):
    shown = case()
    shown.napari(viewer)
    errors, prediction = viewer.layers["errors"], viewer.layers["prediction"]
    for _ in range(2):
        errors.visible = True
        assert (prediction.visible, prediction.contour, prediction.opacity) == (True, 1, 1)
        viewer.dims.ndisplay = 3
        assert not prediction.visible and errors.visible, "a volume has no lines"
        errors.visible = False
        assert surfaces(viewer) and not prediction.visible
        viewer.dims.ndisplay = 2
        assert (prediction.visible, prediction.contour, prediction.opacity) == (True, 0, 0.5)


def test_layers_that_were_not_opened_here_stay(viewer):
    shown = case()
    shown.napari(viewer)
    added = viewer.add_layer(Layer.create(*layer_data(shown, ["prediction"], suffix=" of run1")[0]))
    added.data[0, 0, 0] = 5
    case().napari(viewer)
    assert added in viewer.layers and added.data[0, 0, 0] == 5
    assert names(viewer).count("prediction") == 1 and layers_of(viewer, shown) == {"prediction": added}


def test_outlines_follow_an_edited_prediction(viewer):
    objects = np.zeros(SIZE, int)
    objects[:, 4:12, 4:10], objects[:, 4:12, 10:16] = 1, 2
    shown = case(instances=objects)
    shown.napari(viewer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown.rescore(viewer).instances is objects
    viewer.layers["prediction"].data[:] = 0
    viewer.layers["prediction"].data[:, 2:4, 2:4] = 1
    with pytest.warns(UserWarning, match="objects are no longer known"):
        edited = shown.rescore(viewer)
    assert edited.instances is None and "outlined" not in edited.describe()
    np.testing.assert_array_equal(viewer.layers["outlines"].data, edited.outlines)
    assert not viewer.layers["outlines"].data[:, 4:].any() and viewer.layers["outlines"].visible


def test_the_probability_is_there_and_hidden(viewer):
    case(probabilities=np.full((3, *SIZE), 1 / 3, np.float32)).napari(viewer)
    layer = viewer.layers["probability"]
    assert not layer.visible and layer.contrast_limits == [0, 1] and not isinstance(layer, Labels)
    np.testing.assert_allclose(layer.data, 1 / 3)


def test_a_surface_lies_on_its_voxels_in_their_colour(viewer):
    shown = case(colours={1: "#D55E00", 5: "#56B4E9"})
    shown.napari(viewer)
    active = viewer.layers.selection.active
    viewer.dims.ndisplay = 3
    for value, name in ((1, "liver, prediction"), (5, "aorta, prediction")):
        surface = viewer.layers[name]
        voxels = np.argwhere(shown.prediction == value) * shown.spacing
        corners = np.array([surface.data_to_world(corner) for corner in surface.vertices])
        half = np.divide(shown.spacing, 2)
        assert (corners > voxels.min(0) - 1.5 * half).all() and (corners < voxels.max(0) + 1.5 * half).all()
        np.testing.assert_allclose(corners.mean(0), voxels.mean(0), atol=0.6)
        colour = [int(shown.colours[value][place : place + 2], 16) / 255 for place in (1, 3, 5)]
        share = surface.vertex_colors[:, :3].sum(1) / sum(colour)  # how bright
        np.testing.assert_allclose(surface.vertex_colors[:, :3], share[:, None] * colour, atol=1e-3)
        assert 0.3 < share.min() < 0.9 < share.max() <= 1.001
        assert surface.units == viewer.layers["prediction"].units
    assert viewer.layers.selection.active is active and not viewer.layers["prediction"].visible


def test_surfaces_follow_what_is_painted_and_voxels_can_be_called_back(viewer):
    shown = case()
    shown.napari(viewer)
    viewer.dims.ndisplay = 3
    prediction = viewer.layers["prediction"]
    prediction.visible = True
    prediction.data[prediction.data == 5] = 0
    edited = shown.rescore(viewer)
    assert surfaces(viewer) == ["liver, prediction"] and prediction.visible
    viewer.layers["errors"].visible = True
    assert surfaces(viewer) == [], "their colours would be taken for those of errors"
    viewer.layers["errors"].visible = False
    assert surfaces(viewer) == ["liver, prediction"]
    viewer.dims.ndisplay = 2
    prediction.visible = False
    viewer.dims.ndisplay = 3
    assert surfaces(viewer) == [] and edited.scores["liver"] < 1


def test_an_empty_label_and_a_grid_have_no_surfaces(viewer):
    empty = case(prediction=np.zeros(SIZE, np.uint8), truth=None)
    empty.napari(viewer)
    viewer.dims.ndisplay = 3
    assert surfaces(viewer) == []
    viewer.dims.ndisplay = 2
    shown = case()
    grid([replace(shown, title="a"), replace(shown, title="b")], viewer)
    viewer.dims.ndisplay = 3
    assert surfaces(viewer) == [] and viewer.layers["a: prediction"].visible
