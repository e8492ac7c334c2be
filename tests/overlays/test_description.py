"""An overlay describes a case without a viewer: names, colours, errors, scores, words; bad input is refused early."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.evaluation.cases import Predictions
from xlstm_unet_lab.evaluation.report import Outcome
from xlstm_unet_lab.figures.picture import PALETTE
from xlstm_unet_lab.inference.uncertainty import entropy
from xlstm_unet_lab.overlays.description import overlay, overlay_case, overlay_outcome
from xlstm_unet_lab.overlays.text import amount, largest_error, sides

SIZES = {2: (12, 16), 3: (8, 12, 16)}
SPACINGS = {2: (2.0, 1.0), 3: (5.0, 2.0, 1.0)}
NAMES = {"background": 0, "liver": 1, "aorta": 2}


def box(spatial_dims, *corners, value=1):
    """A label map with `value` in a box: a pair (start, stop) for each of the last axes, all of the first in 3-D."""
    label = np.zeros(SIZES[spatial_dims], np.uint8)
    label[(..., *(slice(*corner) for corner in corners))] = value
    return label


def case(spatial_dims, **changes):
    """Liver in a box; the prediction misses its right end and takes another strip for aorta."""
    truth = box(spatial_dims, (2, 6), (4, 12))
    prediction = np.where(box(spatial_dims, (2, 6), (10, 12)), 0, truth).astype(np.uint8)
    prediction[..., 2, 4:6] = 2
    image = np.random.default_rng(0).random((1, *SIZES[spatial_dims]), np.float32)
    facts = {"truth": truth, "prediction": prediction, "spacing": SPACINGS[spatial_dims], "label_names": NAMES}
    return overlay(image, **facts | changes)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_names_colours_errors_and_scores(spatial_dims):
    shown = case(spatial_dims, colours={2: "#882255"})
    assert shown.labels == {"liver": (1,), "aorta": (2,)} and shown.value_names == {1: "liver", 2: "aorta"}
    assert shown.colours == {1: PALETTE[0], 2: "#882255"}
    slices = 8 if spatial_dims == 3 else 1
    assert [np.count_nonzero(shown.errors == code) for code in (1, 2, 3)] == [8 * slices, 0, 2 * slices]
    assert shown.scores == {"liver": pytest.approx(2 * 22 / (32 + 22)), "aorta": 0.0}


def test_without_names_the_values_found_are_labels():
    shown = overlay(np.zeros((3, 4, 4), np.uint8), truth=np.full((4, 4), 7), prediction=np.full((4, 4), 3))
    assert shown.labels == {"label 3": (3,), "label 7": (7,)} and shown.spacing == (1.0, 1.0)
    assert shown.image.dtype == np.uint8 and shown.channel_names == ("channel 0", "channel 1", "channel 2")


def test_of_overlapping_regions_the_smallest_gives_the_name():
    regions = {"whole": (1, 2, 3), "core": (1, 3), "enhancing": 3}
    truth = np.array([[1, 2], [3, 0]])
    shown = overlay(np.zeros((1, 2, 2)), truth=truth, prediction=truth * (truth != 3), label_names=regions)
    assert shown.value_names == {1: "core", 2: "whole", 3: "enhancing"}
    assert shown.scores == {"whole": 0.8, "core": pytest.approx(2 / 3), "enhancing": 0.0}


@pytest.mark.parametrize("channels", [3, 2])
def test_entropy_knows_exclusive_classes_from_regions(channels):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (12, 16)).transpose(2, 0, 1)[3 - channels :]
    shown = case(2, probabilities=probabilities)
    np.testing.assert_array_equal(shown.entropy, entropy(probabilities, exclusive=channels == 3))
    assert case(2).entropy is None


def test_outlines_run_inside_the_objects_and_between_them():
    objects = np.zeros((6, 8), int)
    objects[1:5, 1:4], objects[1:5, 4:7] = 1, 2
    shown = overlay(np.zeros((1, 6, 8)), instances=objects)
    assert not shown.outlines[objects == 0].any() and not shown.outlines[2:4, 2].any()
    assert shown.outlines[1:5, 3:5].all() and shown.errors is None and shown.scores == {}
    assert "2 objects are outlined." in shown.describe()
    volume = overlay(np.zeros((1, 3, 6, 8)), prediction=np.broadcast_to(objects, (3, 6, 8)))
    np.testing.assert_array_equal(volume.outlines, np.broadcast_to(shown.outlines, (3, 6, 8)))


def test_first_look_goes_to_errors_else_foreground_else_the_middle():
    image, truth = np.zeros((1, 6, 4, 4)), np.zeros((6, 4, 4), int)
    assert overlay(image).initial_slice == 3 and case(2).initial_slice == 0
    truth[4], truth[5, :3] = 1, 1
    prediction = truth.copy()
    assert overlay(image, truth=truth, prediction=prediction).initial_slice == 4
    prediction[1, 0] = 1
    assert overlay(image, truth=truth, prediction=prediction).initial_slice == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_anatomical_slices_are_turned_as_radiologists_look_at_them(axis):
    index = 3
    turned, plain = case(3, anatomical=True), case(3)
    for name in ("image", "truth", "errors", "outlines"):
        straight = plain.shown(name, axis, index)
        np.testing.assert_array_equal(turned.shown(name, axis, index), straight[..., ::-1, ::-1])
    np.testing.assert_array_equal(plain.shown("truth", axis, index), plain.truth.take(index, axis))
    assert plain.shown("image", axis).shape == (1, *np.delete(SIZES[3], axis))


def test_pictures_have_one_slice_only():
    np.testing.assert_array_equal(case(2).shown("truth"), case(2).truth)


@given(seed=st.integers(0, 1000), spatial_dims=st.sampled_from([2, 3]))
@settings(deadline=None, max_examples=20)
def test_the_largest_error_is_no_smaller_than_any_piece(seed, spatial_dims):
    truth, prediction = np.random.default_rng(seed).integers(0, 3, (2, *SIZES[spatial_dims]))
    shown = case(spatial_dims, truth=truth, prediction=prediction)
    pairs = itertools.permutations(range(3), 2)
    pieces = [ndimage.label((prediction == found) & (truth == wanted))[0] for found, wanted in pairs]
    assert largest_error(shown).voxels == max(np.bincount(piece.ravel())[1:].max() for piece in pieces)


def test_touching_errors_of_two_labels_are_two_errors():
    truth = box(3, (2, 6), (4, 8)) + 2 * box(3, (2, 6), (8, 11))
    shown = case(3, truth=truth, prediction=0 * truth)
    found = largest_error(shown)
    assert (found.labels, found.kind, found.voxels) == ("liver", "missed", np.count_nonzero(truth == 1))


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ({"tumour": (1, 2)}, ("tumour", 7)),
        ({"whole": (1, 2), "core": 2}, ("whole", 7)),
        ({"core": 2, "whole": (1, 2)}, ("whole", 7)),
        ({"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}, ("whole", 7)),
        ({"liver": 1, "aorta": 2}, ("liver", 4)),
        ({"organs": (2, 1), "bone": 3}, ("organs", 7)),
    ],
)
def test_touching_values_of_one_label_are_one_error(labels, wanted):
    truth = np.array([[1, 1, 2, 0], [1, 1, 2, 0], [0, 0, 2, 0]], np.uint8)
    for true, found, kind in ((truth, 0 * truth, "missed"), (0 * truth, truth, "extra")):
        shown = overlay(np.zeros((1, 3, 4)), truth=true, prediction=found, label_names=labels)
        error = largest_error(shown)
        assert (error.labels, error.voxels, error.kind) == (*wanted, kind)
        np.testing.assert_array_equal(shown.errors > 0, truth > 0)


@pytest.mark.parametrize(
    ("labels", "code", "words"),
    [
        ({"tumour": (1, 2)}, 0, "Prediction and truth agree everywhere."),
        ({"whole": (1, 2), "core": 2}, 1, "The largest error is core missed: 9 pixels"),
        ({"whole": (1, 2), "core": 1}, 2, "The largest error is core extra: 9 pixels"),
        ({"liver": 1, "aorta": 2}, 3, "The largest error is liver for aorta confused: 9 pixels"),
        ({"whole": (1, 2), "rim": 1, "core": 2}, 3, "The largest error is rim for core confused: 9 pixels"),
    ],
)
def test_values_are_errors_where_their_labels_differ(labels, code, words):
    truth = np.full((3, 3), 2, np.uint16)
    shown = overlay(np.zeros((1, 3, 3)), truth=truth, prediction=truth // 2, label_names=labels, unit="pixel")
    assert words in shown.describe() and (shown.errors == code).all()


def test_description_in_words():
    assert case(3, title="patient 7", channel_names=["T1"], anatomical=True, credit="Licence: CC0.").describe() == (
        "patient 7: T1, 8 x 12 x 16 voxels of 5 x 2 x 1 mm.\n"
        "liver: 2.56 ml true, 1.76 ml predicted, Dice 0.81.\n"
        "aorta: 0.00 ml true, 0.16 ml predicted, Dice 0.00.\n"
        "The largest error is liver missed: 0.64 ml, 40 x 8 x 2 mm across, largest in slice 0, back, right, "
        "centre at z 17.5, y 7, x 10.5 mm.\n"
        "Licence: CC0."
    )
    flat = case(2, unit="pixel", spacing=None).describe()
    assert flat.startswith("One case: channel 0, 12 x 16 pixels.\nliver: 32 pixels true, 22 pixels predicted")
    place = "upper right part of the picture, centre at y 3.5, x 10.5 pixel."
    assert flat.endswith(f"8 pixels, 4 x 2 pixel across, {place}")
    assert "64 mm² true" in case(2).describe()


def test_words_for_a_perfect_and_for_a_confused_prediction():
    truth = box(3, (2, 6), (4, 12))
    assert case(3, prediction=truth).describe().endswith("Prediction and truth agree everywhere.")
    assert largest_error(case(3, prediction=truth)) is None
    confused = largest_error(case(3, prediction=2 * truth))
    assert (confused.kind, confused.labels, confused.voxels) == ("confused", "aorta for liver", 256)
    extra = largest_error(case(3, truth=0 * truth))
    assert (extra.kind, extra.labels, extra.slice, extra.centre[0]) == ("extra", "liver", 0, 3.5)


def test_sides_are_the_patients_where_known_else_the_pictures():
    anatomical = case(3, anatomical=True)
    assert sides(anatomical, (0, 11, 8)) == ["bottom", "front"] and sides(anatomical, (7, 0, 0)) == [
        "top",
        "back",
        "left",
    ]
    assert sides(case(2, anatomical=True), (11, 15)) == ["front", "right"]
    assert sides(case(3), (0, 0, 0)) == ["upper", "left"] and sides(case(2), (11, 8)) == ["lower"]
    with pytest.raises(ValueError, match="both truth= and prediction="):
        largest_error(case(3, truth=None))
    assert amount(case(3, unit="pixel"), 1234) == "1,234 voxels"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": np.zeros((3, 3), int)}, r"truth has shape \(3, 3\), the image's spatial shape is \(12, 16\)"),
        ({"prediction": np.full((12, 16), 9)}, r"hold the values \[9\].*label_names"),
        ({"prediction": np.full((12, 16), -1)}, r"prediction holds -1"),
        ({"spacing": (1.0, 0.0)}, r"spacing is \(1.0, 0.0\), expected 2 finite numbers above 0"),
        ({"spacing": (1.0, 1.0, 1.0)}, "expected 2 finite numbers"),
        ({"channel_names": ["a", "b"]}, "the image has 1 channels"),
        ({"unit": "cm"}, "unit is 'cm'.*there are mm, pixel"),
        ({"label_names": {"liver": -1}}, "the label .liver. is -1, expected a whole number of at least 0"),
        ({"colours": {1: "blue"}}, "'blue'.*#0072B2"),
        ({"colours": {5: "#000000"}}, r"name label values out of \[1, 2\]"),
        ({"probabilities": np.ones((4, 12, 16))}, r"4 channels; expected 3 \(background and liver, aorta\) or 2"),
        ({"probabilities": np.ones((3, 4, 4))}, r"expected floats \(channels, \(12, 16\)\)"),
    ],
)
def test_bad_input_is_refused_early(changes, message):
    with pytest.raises(ValueError, match=message):
        case(2, **changes)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4)), ValueError, r"give \(C, y, x\)"),
        (np.full((1, 4, 4), np.nan), ValueError, "nan_to_num"),
        (np.zeros((1, 4, 4), complex), TypeError, "complex"),
    ],
)
def test_bad_images_are_refused(image, error, message):
    with pytest.raises(error, match=message):
        overlay(image)


def test_bad_questions_are_answered():
    with pytest.raises(TypeError, match=r"truth has dtype float64"):
        case(2, truth=np.zeros((12, 16)))
    with pytest.raises(KeyError, match=r"truht.*did you mean 'truth'"):
        case(2).shown("truht")
    with pytest.raises(ValueError, match="no entropy"):
        case(2).shown("entropy")
    with pytest.raises(IndexError, match=r"slice 8 of axis 0.*there are 8"):
        case(3).shown("truth", 0, 8)
    with pytest.raises(IndexError, match="axis is 3"):
        case(3).shown("truth", 3, 0)


def test_a_case_of_a_data_set_brings_names_colours_and_licence():
    dataset = load_dataset("phantom_microscopy", "test")
    truth = dataset[0]["label"].numpy()
    shown = overlay_case(dataset, 0, prediction=truth, instances=dataset.instances(0))
    assert shown.unit == "pixel" and not shown.anatomical and shown.channel_names == ("fluorescence",)
    assert shown.labels == {"interior": (1,), "boundary": (2,)} and shown.scores == {"interior": 1.0, "boundary": 1.0}
    assert shown.colours == {1: "#0072B2", 2: "#E69F00"} and "Licence: CC0 1.0" in shown.describe()
    assert shown.title == dataset.names[0]


def test_a_case_of_predictions_shows_labels_that_the_truth_lacks():
    label, truth = np.array([[0, 1], [1, 9]]), np.array([[0, 1], [1, 1]])
    outcome = Outcome("cell 1", label, truth, (1.0, 1.0))
    scoring, image = {"labels": {"cell": 1}, "unit": "pixel"}, np.zeros((1, 2, 2))
    predictions = Predictions(("cell 1",), lambda name: outcome, lambda name: image, scoring, {1: "#D55E00"}, "CC0")
    shown = overlay_outcome(predictions, "cell 1")
    assert shown.labels == {"cell": (1,), "label 9": (9,)} and shown.colours[1] == "#D55E00"
    assert (shown.title, shown.unit, shown.credit, shown.anatomical) == ("cell 1", "pixel", "CC0", False)
    assert np.count_nonzero(shown.errors) == 1
    with pytest.raises(KeyError, match="did you mean 'cell 1'"):
        overlay_outcome(predictions, "cell 2")


def test_replacing_a_part_computes_the_rest_anew():
    before = case(2)
    assert before.errors.any()
    after = replace(before, prediction=before.truth)
    assert not after.errors.any() and before.errors.any()
