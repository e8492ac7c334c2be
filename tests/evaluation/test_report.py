"""Tables of scores: rows, columns, units, intervals, and two models side by side."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xlstm_unet_lab.evaluation import metrics, report
from xlstm_unet_lab.evaluation.report import (
    Outcome,
    bootstrap_interval,
    compare,
    evaluate,
    evaluate_cases,
    groups_of,
    notable_cases,
    summarise,
)

LABELS = {"background": 0, "liver": 1, "spleen": 4}


def example(spatial_dims):
    truth = np.zeros((8, 9, 10)[:spatial_dims], np.int64)
    truth[2:5, 2:5], truth[6:7, 2:8] = 1, 4
    return np.roll(truth, 1, axis=1).astype(np.uint8), truth


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_row_is_what_the_metrics_say(spatial_dims):
    prediction, truth = example(spatial_dims)
    spacing = (3.0, 1.5, 0.5)[:spatial_dims]
    table = evaluate(prediction, truth, spacing=spacing, labels=LABELS, tolerance={"liver": 2.0, "spleen": 1.0})
    measure = {2: "area", 3: "volume"}[spatial_dims]
    sizes = [f"{measure}_{side}_mm{spatial_dims}" for side in ("truth", "prediction")]
    assert list(table.columns) == ["label", "value", "dice", "surface_dice", "tolerance_mm", "hd95_mm", *sizes]
    assert table["label"].tolist() == ["liver", "spleen", "foreground"]
    assert table["value"].tolist() == [1, 4, pd.NA]
    assert table["tolerance_mm"].tolist() == [2.0, 1.0, 1.0]
    for row, members in zip(table.to_dict("records"), ((1,), (4,), (1, 4)), strict=True):
        found, wanted = np.isin(prediction, members), np.isin(truth, members)
        assert row["dice"] == metrics.dice(found, wanted)
        assert row["surface_dice"] == metrics.surface_dice(
            found, wanted, spacing=spacing, tolerance=row["tolerance_mm"]
        )
        assert row["hd95_mm"] == metrics.hausdorff95(found, wanted, spacing=spacing)
        assert row[sizes[0]] == pytest.approx(wanted.sum() * np.prod(spacing))
        assert row[sizes[1]] == pytest.approx(found.sum() * np.prod(spacing))


@pytest.mark.parametrize(
    ("tolerance", "wanted"),
    [(None, [1.5, 1.5, 1.5]), (2, [2, 2, 2]), ({"liver": 3, "spleen": 2, "foreground": 5}, [3, 2, 5])],
)
def test_tolerances(tolerance, wanted):
    prediction, truth = example(2)
    table = evaluate(prediction, truth, spacing=(1.5, 1.0), labels=LABELS, tolerance=tolerance)
    assert table["tolerance_mm"].tolist() == wanted


def test_unit_names_the_columns():
    table = evaluate(*example(2), spacing=(1, 1), labels=LABELS, unit="pixel")
    assert {"tolerance_pixel", "hd95_pixel", "area_truth_pixel2"} <= set(table.columns)


def test_one_label_called_foreground_and_an_absent_label():
    mask = example(2)[1] == 1
    table = evaluate(mask, mask, spacing=(1, 1), labels={"background": 0, "foreground": 1})
    assert table["label"].tolist() == ["foreground"]
    table = evaluate(mask, mask, spacing=(1, 1), labels=LABELS)
    assert table["dice"].tolist() == table["surface_dice"].tolist() == [1.0, 1.0, 1.0]
    assert table["hd95_mm"].tolist() == [0.0, 0.0, 0.0]


def test_regions_overlap():
    truth = np.zeros((6, 6), int)
    truth[:3], truth[1] = 1, 2
    prediction = np.where(truth == 2, 1, truth)
    table = evaluate(prediction, truth, spacing=(1, 1), labels={"whole": (1, 2), "core": (2,), "rim": 1}).set_index(
        "label"
    )
    assert table["dice"].to_dict() == {"whole": 1.0, "core": 0.0, "rim": 0.8, "foreground": 1.0}
    assert table["value"].fillna(0).to_dict() == {"whole": 0, "core": 2, "rim": 1, "foreground": 0}


def test_the_value_of_a_label_stands_in_the_table_however_it_is_given():
    label = np.eye(6, dtype=int)
    for given in ({"a": 1}, {"a": (1,)}, {"a": [np.int64(1)]}):
        assert evaluate(label, label, spacing=(1, 1), labels=given)["value"].fillna(0).tolist() == [1, 0]


def test_a_tolerance_nobody_chose_is_stated_and_warned_of():
    label = np.eye(6, dtype=int)
    with pytest.warns(UserWarning, match=r"surface Dice forgives 7\.7 mm, the longest side of a voxel: above 3 mm"):
        assert evaluate(label, label, spacing=(7.7, 1), labels={"a": 1})["tolerance_mm"].tolist() == [7.7, 7.7]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(label, label, spacing=(7.7, 1), labels={"a": 1}, tolerance=7.7)
        evaluate(label, label, spacing=(7.7, 1), labels={"a": 1}, unit="pixel")
        evaluate(label, label, spacing=(3, 1), labels={"a": 1})


def test_labelled_slices_only():
    truth, prediction = np.zeros((10, 6, 6), int), np.zeros((10, 6, 6), int)
    truth[3:6, 2:4, 2:4], prediction[:, 2:4, 2:4] = 1, 1  # a vessel marked over a part, predicted over all its length
    truth[:, 5], prediction[2:, 5] = 2, 2
    labels = {"aorta": 1, "muscle": 2}
    options = {"spacing": (2, 1, 1), "labels": labels}
    plain = evaluate(prediction, truth, **options).set_index("label")
    table = evaluate(prediction, truth, labelled_slices_only=["aorta"], **options).set_index("label")
    assert plain["dice"]["aorta"] < 0.5 and table["dice"]["aorta"] == 1.0 and table["hd95_mm"]["aorta"] == 0
    assert table["volume_prediction_mm3"]["aorta"] == 10 * 4 * 2
    assert table.loc[["muscle", "foreground"]].equals(plain.loc[["muscle", "foreground"]])
    empty = evaluate(prediction, 0 * truth, labelled_slices_only=["aorta"], **options).set_index("label")
    assert empty["dice"]["aorta"] == 0.0, "nothing is labelled, so that every slice counts"


def outcomes(count=6, shift=1, spatial_dims=2, instances=False):
    """Cases whose prediction is the truth, moved by `shift` in all but the first."""
    truth = example(spatial_dims)[1]
    for number in range(count):
        prediction = np.roll(truth, shift * number, axis=1)
        maps = (prediction, truth) if instances else (None, None)
        yield Outcome(f"case {number}", prediction, truth, (1.0,) * spatial_dims, *maps)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_tables_of_many_cases_stand_one_below_the_other(spatial_dims):
    table = evaluate_cases(outcomes(3, spatial_dims=spatial_dims), labels=LABELS, tolerance=2)
    assert table["case"].tolist() == [f"case {n}" for n in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    for number, outcome in enumerate(outcomes(3, spatial_dims=spatial_dims)):
        alone = evaluate(outcome.prediction, outcome.truth, spacing=outcome.spacing, labels=LABELS, tolerance=2)
        part = table[table["case"] == f"case {number}"].drop(columns="case").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone)


def test_instances_are_scored_where_there_are_maps():
    table = evaluate_cases(outcomes(2, instances=True), labels=LABELS)
    scored = table.dropna(subset="instance_f1")
    assert scored["label"].tolist() == ["foreground"] * 2
    assert scored["instance_f1"].tolist()[0] == 1.0 and (scored["instance_tp"] + scored["instance_fn"]).eq(1).all()
    assert "instance_f1" not in evaluate_cases(outcomes(2), labels=LABELS)


def test_errors_of_many_cases_name_the_case():
    wrong = [*outcomes(2), Outcome("odd", np.zeros((2, 2), int), np.full((2, 2), 9), (1, 1))]
    with pytest.raises(ValueError, match=r"case odd: truth holds \[9\]"):
        evaluate_cases(wrong, labels=LABELS)
    with pytest.raises(ValueError, match="'case 0' is there twice"):
        evaluate_cases([*outcomes(1)] * 2, labels=LABELS)
    with pytest.raises(ValueError, match="outcomes is empty"):
        evaluate_cases([], labels=LABELS)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(report, "LEVEL", 0.9)
    monkeypatch.setattr(report, "SAMPLES", 400)
    random = np.random.default_rng(0)
    intervals = [bootstrap_interval(random.normal(0.8, 0.1, 100)) for _ in range(300)]
    assert 0.85 < np.mean([low <= 0.8 <= high for low, high in intervals]) < 0.95
    assert np.mean([high - low for low, high in intervals]) == pytest.approx(2 * 1.645 * 0.1 / np.sqrt(100), rel=0.1)


def test_bootstrap_interval_is_reproducible_and_of_one_value_a_point():
    values = np.random.default_rng(1).random(20)
    assert bootstrap_interval(values) == bootstrap_interval(list(values))
    assert bootstrap_interval([0.7] * 5) == pytest.approx((0.7, 0.7)) and bootstrap_interval([0.5]) == (0.5, 0.5)


def test_summary_has_a_mean_and_an_interval_for_every_score():
    table = evaluate_cases(outcomes(6, instances=True), labels=LABELS)
    summary = summarise(table).set_index(["label", "score"])
    assert set(summary.index) == {
        *((label, score) for label in ("liver", "spleen", "foreground") for score in ("dice", "surface_dice")),
        ("foreground", "instance_f1"),
    }
    row, values = summary.loc[("liver", "dice")], table[table["label"] == "liver"]["dice"]
    assert row["mean"] == pytest.approx(values.mean()) and row["cases"] == 6
    assert (row["low"], row["high"]) == bootstrap_interval(values) and row["low"] < row["mean"] < row["high"]


def scores(values, label="cell", **columns):
    return pd.DataFrame({"case": [f"c{n}" for n in range(len(values))], **columns, "label": label, "dice": values})


def width(interval):
    return interval[1] - interval[0]


def test_frames_of_one_video_say_as_much_as_the_video():
    """Copies of every case add nothing that is known; counted as cases of their own they halve the interval."""
    values = np.random.default_rng(0).random(16)
    copies, videos = np.repeat(values, 4), np.repeat(np.arange(16), 4)
    assert bootstrap_interval(copies, groups=videos) == pytest.approx(bootstrap_interval(values))
    assert width(bootstrap_interval(copies)) < 0.7 * width(bootstrap_interval(copies, groups=videos))
    assert bootstrap_interval(values, groups=[f"c{n}" for n in range(16)]) == bootstrap_interval(values)


def test_intervals_of_groups_of_different_sizes_hold_the_mean_over_cases(monkeypatch):
    values, groups = [0.9] * 8 + [0.1, 0.3], ["long"] * 8 + ["a", "b"]
    low, high = bootstrap_interval(values, groups=groups)
    assert (low, high) == pytest.approx((0.1, 0.9)) and low < np.mean(values) < high
    draws = [np.mean([0.9] * 8 * a + [0.1] * b + [0.3] * (3 - a - b)) for a in range(4) for b in range(4 - a)]
    monkeypatch.setattr(report, "LEVEL", 0.2)
    middle = bootstrap_interval(values, groups=groups)
    assert all(min(abs(end - draw) for draw in draws) < 1e-9 for end in middle), (
        "means of whole groups, not of groups' means"
    )


def test_tables_with_groups_have_their_intervals_and_say_how_many_there_are():
    random = np.random.default_rng(0)
    values = {what: np.repeat(random.random(8), 5) for what in "ab"}
    videos = [f"video {n // 5}" for n in range(40)]
    plain, grouped = ({what: scores(values[what], **more) for what in "ab"} for more in ({}, {"group": videos}))
    narrow, wide = summarise(plain["a"]).iloc[0], summarise(grouped["a"]).iloc[0]
    assert (wide["low"], wide["high"]) == pytest.approx(bootstrap_interval(values["a"][::5]))
    assert wide["groups"] == 8 and wide["cases"] == 40 and "groups" not in narrow
    assert narrow["mean"] == wide["mean"] and narrow["high"] - narrow["low"] < 0.7 * (wide["high"] - wide["low"])
    narrow, wide = compare(*plain.values()).iloc[0], compare(*grouped.values()).iloc[0]
    alone = compare(scores(values["a"][::5]), scores(values["b"][::5])).iloc[0]
    assert wide[["low", "high", "p_value"]].tolist() == pytest.approx(alone[["low", "high", "p_value"]].tolist())
    assert narrow["p_value"] < wide["p_value"] and narrow["wins"] == wide["wins"] == 5 * alone["wins"]


def test_cases_carry_their_group_into_the_table():
    a, b, c = outcomes(3)
    table = evaluate_cases([replace(a, group="left"), replace(b, group="left"), c], labels=LABELS)
    assert table.columns[:3].tolist() == ["case", "group", "label"]
    assert groups_of(table).tolist() == ["left"] * 6 + ["case 2"] * 3, "a case without a group stands for itself"
    assert summarise(table)["groups"].unique().tolist() == [2]
    assert "group" not in evaluate_cases(outcomes(2), labels=LABELS)


def test_comparison_by_hand():
    row = compare(scores([0.9, 0.8, 0.7, 0.6, 0.5]), scores([0.8, 0.7, 0.7, 0.5, 0.6])).iloc[0]
    assert (row["wins"], row["ties"], row["losses"], row["cases"]) == (3, 1, 1, 5)
    assert row["mean_a"] == pytest.approx(0.7) and row["difference"] == pytest.approx(0.04)
    assert row["low"] < row["difference"] < row["high"]
    swapped = compare(scores([0.8, 0.7, 0.7, 0.5, 0.6]), scores([0.9, 0.8, 0.7, 0.6, 0.5])).iloc[0]
    assert swapped["difference"] == -row["difference"] and swapped["p_value"] == row["p_value"]
    assert swapped["wins"] == row["losses"]


def test_comparison_sees_a_small_difference_in_every_case_and_none_in_equal_models():
    values = np.random.default_rng(0).random(12)
    better = compare(scores(values + 0.01 + 0.001 * np.arange(12)), scores(values)).iloc[0]
    assert better["p_value"] == pytest.approx(2 / 2**12) and better["low"] > 0
    same = compare(scores(values), scores(values)).iloc[0]
    assert same["p_value"] == 1 and same["ties"] == 12 and (same["low"], same["high"]) == (0, 0)


def test_order_of_cases_does_not_matter():
    a, b = scores([0.9, 0.2, 0.4]), scores([0.1, 0.3, 0.5])
    assert compare(a, b).equals(compare(a, b.iloc[::-1]))


def test_notable_cases():
    table = scores([0.5, 0.9, 0.1, 0.7, 0.6])
    assert notable_cases(table) == {"best": "c1", "median": "c4", "worst": "c2"}
    whole = pd.concat([table, scores([0, 0, 0, 0, 1], label="foreground")])
    assert notable_cases(whole) == notable_cases(table)
    assert notable_cases(scores([0.3], label="foreground")) == dict.fromkeys(("best", "median", "worst"), "c0")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "none empty"),
        (lambda: bootstrap_interval([1.0, np.inf]), "finite"),
        (lambda: bootstrap_interval([[1.0]]), r"shape \(1, 1\)"),
        (lambda: bootstrap_interval([1.0, 0.5], groups=["a"]), "groups name 1 values, there are 2"),
        (lambda: compare(scores([1.0]), scores([1.0, 0.5])), r"only one of the tables has \[\('c1', 'cell'\)\]"),
        (lambda: compare(scores([1.0]), scores([1.0]), score="f2"), "table a has no values of 'f2'.*dice"),
        (lambda: compare(scores([1.0]), scores([np.inf])), "not finite everywhere"),
    ],
)
def test_bad_tables(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": np.full((4, 4), 7)}, r"prediction holds \[7\], which no label has.*'liver': 1"),
        ({"truth": np.full((4, 4), -1)}, r"truth holds \[-1\]"),
        ({"truth": np.zeros((4, 5), int)}, "must be equal"),
        ({"spacing": (1, 1, 1)}, r"spacing is \(1, 1, 1\), expected 2 finite numbers"),
        ({"tolerance": -1}, "tolerance is -1"),
        ({"tolerance": {"liver": 1}}, r"no number for \['spleen'\]"),
        ({"labels": {"background": 0}}, "no label above 0"),
        ({"labelled_slices_only": ["aorta"]}, r"\['aorta'\] are no labels: there are \['liver', 'spleen'\]"),
        ({"labels": {"foreground": 1, "spleen": 4}}, "only if it is the only one"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"prediction": np.zeros((4, 4), int), "truth": np.zeros((4, 4), int), "spacing": (1, 1)}
    with pytest.raises(ValueError, match=message):
        evaluate(**({"labels": LABELS} | arguments | changes))


@pytest.mark.parametrize("what", ["prediction", "truth"])
def test_labels_are_integers(what):
    label = np.zeros((4, 4), int)
    with pytest.raises(TypeError, match=rf"{what} is (?s:.)* of dtype float64, expected an array of integers"):
        evaluate(**{"prediction": label, "truth": label, what: label / 2}, spacing=(1, 1), labels=LABELS)
    one = Outcome("one", **{"prediction": label, "truth": label, what: label / 2}, spacing=(1, 1))
    with pytest.raises(TypeError, match=f"case one: {what} is"):
        evaluate_cases([one], labels=LABELS)


@pytest.mark.parametrize("unit", [3, "inch", None, "", "MM", ["mm"], True])
def test_a_unit_is_one_of_two(unit):
    with pytest.raises(ValueError, match=r"unit is .*there are mm, pixel"):
        evaluate(*example(2), spacing=(1, 1), labels=LABELS, unit=unit)


@pytest.mark.parametrize("name", [1, None, ("a",), b"a", 1.5])
def test_names_of_labels_are_words(name):
    with pytest.raises(TypeError, match=f"a name in labels is {re.escape(repr(name))}, expected str"):
        evaluate(*example(2), spacing=(1, 1), labels={name: 1})
