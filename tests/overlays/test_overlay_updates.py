"""What an overlay says of places, colours and probabilities, and how a live viewer follows it (`inside_overlay.py`)."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from places import HELPERS, REPOSITORY

from xlstm_unet_lab.data.cases import Cases, Facts
from xlstm_unet_lab.data.colours import LABEL_COLOURS
from xlstm_unet_lab.overlays.description import overlay, overlay_case
from xlstm_unet_lab.overlays.text import sides


def test_a_live_viewer_follows(require_display, tmp_path):
    command = [*require_display, sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if name != "QT_QPA_PLATFORM"}
    inner = subprocess.run(
        [*command, str(HELPERS / "inside_overlay.py")],
        cwd=REPOSITORY,
        env=environment | {"NAPARI_CONFIG": str(tmp_path / "napari.yaml")},  # not the user's settings
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert inner.returncode == 0, f"{inner.stdout[-6000:]}\n{inner.stderr[-3000:]}"


def wrong_at(place, size=(20, 20), **facts):
    """An overlay with one wrong pixel."""
    truth = np.zeros(size, int)
    truth[place] = 1
    return overlay(np.zeros((1, *size)), truth=truth, prediction=0 * truth, label_names={"lesion": 1}, **facts)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((2, 3), "upper left part of the picture, centre at y 4, x 3"),
        ((18, 10), "lower part of the picture, centre at y 36, x 10"),
        ((10, 9), "middle part of the picture, centre at y 20, x 9"),
    ],
)
@pytest.mark.parametrize("unit", ["mm", "pixel"])
def test_the_largest_error_has_a_place_where_sides_have_no_names(place, words, unit):
    said = wrong_at(place, spacing=(2, 1), unit=unit).describe()
    assert said.endswith(f"across, {words} {unit}.")
    assert ("1 pixel," in said) == (unit == "pixel") and "1 pixels" not in said


def test_the_largest_error_of_a_volume_has_a_slice_and_a_place_in_it():
    said = wrong_at((7, 18, 1), (8, 20, 20), spacing=(3, 1, 1)).describe()
    assert said.endswith("largest in slice 7, lower left part of the picture, centre at z 21, y 18, x 1 mm.")


def test_one_object_is_singular():
    assert "1 object is outlined." in overlay(np.zeros((1, 4, 4)), instances=np.eye(4, dtype=int)).describe()


@pytest.mark.parametrize(
    ("cut", "axes", "named"), [(0, "yx", ["front", "left"]), (1, "zx", ["top", "left"]), (2, "zy", ["top", "back"])]
)
def test_slices_name_the_sides_of_the_axes_they_have(cut, axes, named):
    image, label = np.zeros((1, 6, 6, 6), np.float32), np.zeros((6, 6, 6), int)
    recipe = SimpleNamespace(
        **{"spacing_unit": "mm", "channel_names": ("T1",), "shown_colours": {}},
        **{"targets": SimpleNamespace(foreground={"tumour": 1}), "credit": "CC0", "file_ending": ".nii.gz"},
    )

    class Slices(Cases):  # as much of a `SliceDataset` as is read
        facts, names = Facts(recipe, slice_axis=cut), ("slice",)

        def __getitem__(self, index):
            flat = SimpleNamespace(numpy=lambda: label.take(0, cut))
            return {"label": flat, "spacing": (1, 1), "name": "slice"}

        def raw(self, index):
            return image.take(0, cut + 1)

    prediction = label.take(0, cut).copy()
    prediction[5, 0] = 1
    shown = overlay_case(Slices(), 0, prediction)
    assert shown.anatomical and shown.axes == axes and sides(shown, (5, 0)) == named
    assert f"{', '.join(named)}, centre at {axes[0]} 5, {axes[1]} 0 mm." in shown.describe()


@pytest.mark.parametrize(("size", "cut"), [((4, 4), 3), ((4, 4, 4), 1)])
def test_a_cut_must_fit(size, cut):
    with pytest.raises(ValueError, match=f"cut is {cut}; a 2-D image was cut across axis 0, 1 or 2"):
        overlay(np.zeros((1, *size)), cut=cut)


def test_fourteen_labels_have_colours_of_their_own_and_more_are_warned_of():
    labels = np.arange(16).reshape(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = overlay(np.zeros((1, 4, 4)), truth=labels.clip(0, 14))
    assert len(set(shown.colours.values())) == 14 == len(LABEL_COLOURS)
    with pytest.warns(UserWarning, match="15 labels share 14 colours: hand over more as colours="):
        overlay(np.zeros((1, 4, 4)), truth=labels)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_probability_is_that_of_the_answer_given(exclusive):
    probabilities = np.array([[0.1, 0.5], [0.7, 0.2], [0.2, 0.3]]).reshape(3, 1, 2)
    names = {"core": 1, "edge": 2} if exclusive else {"all": (1, 2, 3), "core": (1, 2), "edge": 2}
    shown = overlay(np.zeros((1, 1, 2)), probabilities=probabilities, label_names=names)
    # Of regions, each of which is there or not, the least certain answer: 0.7 and 0.5.
    np.testing.assert_allclose(shown.probability, [[0.7, 0.5]])
    assert shown.probability.dtype == np.float32 and shown.shown("probability").shape == (1, 2)
    assert replace(shown, probabilities=None).probability is None


def test_a_copy_is_the_same_overlay_to_a_viewer_and_another_is_not():
    shown, image = overlay(np.zeros((1, 4, 4))), np.zeros((1, 4, 4))
    assert replace(shown, truth=np.ones((4, 4), int)).identity == shown.identity != overlay(image).identity


def test_a_slice_is_seen_from_in_front_in_3d_too():
    assert overlay(np.zeros((1, 4, 4)), anatomical=True).camera["angles"] == (0, 0, 0)
