"""Metrics against known answers, against the published evaluation, and against what must hold for every mask."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from xlstm_unet_lab.evaluation import metrics

quick = settings(deadline=None, max_examples=25)


@st.composite
def mask_pairs(draw):
    shape = draw(npst.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7))
    return draw(npst.arrays(bool, shape)), draw(npst.arrays(bool, shape))


@st.composite
def label_pairs(draw):
    shape = draw(npst.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8))
    labels = npst.arrays(np.int32, shape, elements=st.integers(0, 4))
    return draw(labels), draw(labels)


def box(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


@quick
@given(mask_pairs())
def test_overlap_scores_are_symmetric_and_between_0_and_1(pair):
    spacing = (1.5, 0.7, 2.0)[: pair[0].ndim]
    for score in (metrics.dice, lambda a, b: metrics.surface_dice(a, b, spacing=spacing, tolerance=1.0)):
        value = score(*pair)
        assert 0 <= value <= 1
        assert value == pytest.approx(score(*pair[::-1]), abs=1e-12)
        assert score(pair[0], pair[0]) == 1.0


@quick
@given(mask_pairs(), st.floats(0, 3), st.floats(0, 3))
def test_surface_dice_grows_with_tolerance_and_agrees_with_hausdorff(pair, first, second):
    spacing = (1.0,) * pair[0].ndim
    low, high = sorted((first, second))
    scores = [metrics.surface_dice(*pair, spacing=spacing, tolerance=tolerance) for tolerance in (low, high)]
    assert scores[0] <= scores[1]
    distance = metrics.hausdorff95(*pair, spacing=spacing)
    assert distance == metrics.hausdorff95(*pair[::-1], spacing=spacing)
    if np.isfinite(distance):  # 95% of each surface lies within that distance
        assert metrics.surface_dice(*pair, spacing=spacing, tolerance=distance) >= 0.95 - 1e-6


@quick
@given(mask_pairs(), st.floats(0.1, 10))
def test_surface_measures_follow_the_unit_in_3d(pair, factor):
    pair = [mask if mask.ndim == 3 else mask[None] for mask in pair]
    spacing = np.array([2.0, 1.0, 0.5])
    distance = metrics.hausdorff95(*pair, spacing=spacing)
    assert metrics.hausdorff95(*pair, spacing=spacing * factor) == pytest.approx(distance * factor)


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
def test_empty_masks(shape):
    empty, full, spacing = np.zeros(shape, bool), np.ones(shape, bool), (1.0,) * len(shape)
    assert metrics.dice(empty, empty) == metrics.surface_dice(empty, empty, spacing=spacing, tolerance=1) == 1.0
    assert metrics.hausdorff95(empty, empty, spacing=spacing) == 0.0
    for pair in ((empty, full), (full, empty)):
        assert metrics.dice(*pair) == metrics.surface_dice(*pair, spacing=spacing, tolerance=99) == 0.0
        assert metrics.hausdorff95(*pair, spacing=spacing) == float("inf")


def test_dice_of_half_overlap():
    assert metrics.dice(np.array([1, 1, 0, 0]), np.array([0.0, 1.0, 1.0, 0.0])) == 0.5


@pytest.mark.parametrize("axis", range(3))
def test_a_shift_by_one_voxel_is_exactly_one_spacing(axis):
    spacing = (2.9, 0.1, 0.7)  # 2.9 * 4 - 2.9 * 3 is more than 2.9 in floating point
    truth, start = box((12, 12, 12), (3, 3, 3), (5, 5, 5)), [3, 3, 3]
    start[axis] += 1
    prediction = box((12, 12, 12), start, (5, 5, 5))
    assert metrics.surface_dice(prediction, truth, spacing=spacing, tolerance=spacing[axis]) == 1.0
    assert metrics.surface_dice(prediction, truth, spacing=spacing, tolerance=spacing[axis] * 0.99) < 1.0
    assert metrics.hausdorff95(prediction, truth, spacing=spacing) == spacing[axis]


def test_elements_count_by_their_area():
    # A slab of 20 x 20 voxels against one twice as thick: one face in two agrees, the rims hardly weigh anything.
    thin, thick = box((10, 24, 24), (2, 2, 2), (3, 20, 20)), box((10, 24, 24), (2, 2, 2), (6, 20, 20))
    score = metrics.surface_dice(thick, thin, spacing=(0.01, 1.0, 1.0), tolerance=0.0)
    assert score == pytest.approx(0.5, abs=0.08)


def test_masks_at_the_edge_of_the_image_have_a_closed_surface():
    inside = box((9, 9, 9), (2, 2, 2), (5, 5, 5))
    at_edge = np.ones((5, 5, 5), bool)
    areas = [metrics._surfaces(mask, mask, (1.0, 1.0, 1.0))[0][1].sum() for mask in (inside, at_edge)]
    assert areas[0] == pytest.approx(areas[1])


def test_2d_is_a_sheet_one_unit_thick():
    prediction, truth = box((12, 12), (2, 2), (6, 6)), box((12, 12), (2, 2), (6, 8))
    flat = metrics.surface_dice(prediction, truth, spacing=(1.5, 0.5), tolerance=0.5)
    assert flat == metrics.surface_dice(prediction[None], truth[None], spacing=(1.0, 1.5, 0.5), tolerance=0.5)


def test_published_evaluation(shared_golden):
    masks = np.load(shared_golden / "metrics" / "masks.npz")
    expected = json.loads((shared_golden / "metrics" / "expected.json").read_text())
    for row in expected["surface"]:
        pair = masks[row["case"] + "_pred"], masks[row["case"] + "_truth"]
        assert metrics.dice(*pair) == pytest.approx(row["dice"], rel=1e-9)
        for tolerance, score in row["nsd"].items():
            got = metrics.surface_dice(*pair, spacing=row["spacing_mm"], tolerance=float(tolerance))
            assert got == pytest.approx(score, rel=1e-6), (row["case"], tolerance)
        distance = float("inf") if row["hd95_mm"] is None else row["hd95_mm"]
        assert metrics.hausdorff95(*pair, spacing=row["spacing_mm"]) == pytest.approx(distance)
    for row in expected["cells"]:
        pair = masks[row["case"] + "_pred"], masks[row["case"] + "_truth"]
        for key, wanted in row.items():
            if key != "case":
                iou, region = key.removeprefix("iou").split("_")
                got = metrics.instance_f1(*pair, iou=float(iou), drop_border=2 if region == "interior" else 0)
                assert got._asdict() == pytest.approx(wanted), (row["case"], key)


@quick
@given(label_pairs(), st.sampled_from([0.1, 0.5, 0.75, 1.0]), st.integers(0, 2))
def test_instance_counts_add_up(pair, iou, border):
    prediction, truth = pair
    score = metrics.instance_f1(prediction, truth, iou=iou, drop_border=border)
    mirrored = metrics.instance_f1(truth, prediction, iou=iou, drop_border=border)
    assert (score.tp, score.fp, score.fn, score.f1) == (mirrored.tp, mirrored.fn, mirrored.fp, mirrored.f1)
    kept = np.setdiff1d(truth, _touching(truth, border)) if border else np.setdiff1d(truth, 0)
    assert score.tp + score.fn == len(kept)
    assert 0 <= score.f1 <= 1
    assert metrics.instance_f1(truth, truth, iou=iou, drop_border=border).f1 == 1.0


def _touching(labels, width):
    border = labels.copy()
    border[(slice(width, -width),) * labels.ndim] = 0
    return np.union1d(border, 0)


def test_two_halves_of_one_cell_count_once():
    truth = np.array([[1, 1, 0, 0]])
    prediction = np.array([[7, 9, 0, 0]])  # both halves reach 0.5; only one can be the partner
    assert metrics.instance_f1(prediction, truth, iou=0.5, drop_border=0)[:3] == (1, 1, 0)


def test_as_many_pairs_as_possible_are_matched():
    # 5 overlaps best with 1, yet 1 must take 6 so that 2 has a partner as well
    truth = np.array([[1, 1, 1, 1, 2, 2]])
    prediction = np.array([[6, 5, 5, 5, 5, 0]])
    assert metrics.instance_f1(prediction, truth, iou=0.2, drop_border=0)[:3] == (2, 0, 0)


def test_instances_at_the_border_are_dropped():
    labels = np.zeros((10, 10), np.uint16)
    labels[1:4, 4:6], labels[5:7, 5:7] = 300, 400  # one reaches into the outer two pixels
    assert metrics.instance_f1(labels, labels)[:3] == (1, 0, 0)
    assert metrics.instance_f1(labels, labels, drop_border=1)[:3] == (2, 0, 0)
    assert metrics.instance_f1(labels, labels, drop_border=5) == (0, 0, 0, 1.0)


MASK = np.ones((4, 4), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.dice(MASK, MASK[:3]), r"shape \(4, 4\), truth \(3, 4\)"),
        (lambda: metrics.dice(MASK * 2, MASK), r"prediction is no mask: it holds \[2\].*prediction == 2"),
        (lambda: metrics.dice(MASK, MASK * 0.5), r"truth is no mask: it holds \[0.5\]"),
        (lambda: metrics.dice(MASK, np.full((4, 4), np.nan)), "truth is no mask"),
        (lambda: metrics.surface_dice(MASK, MASK, spacing=(1, 1, 1), tolerance=1), r"spacing is \(1, 1, 1\)"),
        (lambda: metrics.surface_dice(MASK, MASK, spacing=(1, 0), tolerance=1), r"spacing is \(1, 0\), .*above 0"),
        (lambda: metrics.surface_dice(MASK, MASK, spacing=(1, 1), tolerance=-1), "tolerance is -1, expected"),
        (lambda: metrics.surface_dice(MASK, MASK, spacing=(1, 1), tolerance=np.nan), "tolerance is nan"),
        (lambda: metrics.surface_dice(MASK[0], MASK[0], spacing=(1,), tolerance=1), "2 or 3 dimensions, got 1"),
        (lambda: metrics.hausdorff95(MASK, MASK, spacing=(1, np.inf)), "expected 2 finite numbers"),
        (lambda: metrics.hausdorff95(MASK, MASK, spacing=1.0), r"spacing is 1\.0, expected 2 finite numbers"),
        (lambda: metrics.instance_f1(MASK.astype(int), MASK[:2].astype(int)), "must be equal"),
        (lambda: metrics.instance_f1(-MASK.astype(int), MASK.astype(int)), "prediction holds -1"),
        (lambda: metrics.instance_f1(MASK.astype(int), MASK.astype(int), iou=0), "iou is 0, expected"),
        (lambda: metrics.instance_f1(MASK.astype(int), MASK.astype(int), drop_border=-1), "drop_border is -1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("labels", [MASK * 1.0, MASK])
def test_instances_are_integers(labels):
    with pytest.raises(TypeError, match=r"prediction is (?s:.)* of dtype (float64|bool), expected"):
        metrics.instance_f1(labels, labels)
