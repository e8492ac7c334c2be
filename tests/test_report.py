"""The table of scores: its rows, its columns and their units."""

import numpy as np
import pandas as pd
import pytest

from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.evaluation.report import evaluate

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": np.full((4, 4), 7)}, r"prediction holds \[7\], which no label has.*'liver': 1"),
        ({"truth": np.full((4, 4), -1)}, r"truth holds \[-1\]"),
        ({"truth": np.zeros((4, 4))}, "truth has dtype float64"),
        ({"truth": np.zeros((4, 5), int)}, "must be equal"),
        ({"spacing": (1, 1, 1)}, "3 sizes for masks of 2"),
        ({"tolerance": -1}, "tolerance=-1"),
        ({"tolerance": {"liver": 1}}, r"no number for \['spleen'\]"),
        ({"labels": {"background": 0}}, "no label above 0"),
        ({"labels": {"foreground": 1, "spleen": 4}}, "only if it is the only one"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"prediction": np.zeros((4, 4), int), "truth": np.zeros((4, 4), int), "spacing": (1, 1)}
    with pytest.raises(ValueError, match=message):
        evaluate(**({"labels": LABELS} | arguments | changes))
