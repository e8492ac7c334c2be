"""Figures that compare runs, models and forms: the numbers they draw and the sentences that tell them."""

from types import SimpleNamespace

import numpy as np
import pytest

from xlstm_unet_lab.course.pictures import comparison
from xlstm_unet_lab.evaluation.report import bootstrap_interval


def run(losses):
    return [SimpleNamespace(step=n + 1, loss=loss, metrics=None) for n, loss in enumerate(losses)]


def test_loss_curves_name_every_run():
    picture = comparison.loss_curves({"with skip": run([1.0, 0.5]), "without": run([1.0, 0.9, 0.8])})
    assert "The loss of 2 runs. with skip: from 1.00 to 0.50 in 2 steps; without: from 1.00 to 0.80 in 3" in (
        picture.description
    )
    assert [line.get_label() for line in picture.figure.axes[0].lines] == ["with skip", "without"]
    with pytest.raises(ValueError, match="no records"):
        comparison.loss_curves({"empty": []})


def test_models_stand_in_the_order_of_their_means_with_intervals():
    scores = {"unet": [0.5, 0.6, 0.7], "xlstm": [0.8, 0.9, 0.7]}
    picture = comparison.model_comparison(scores)
    low, high = bootstrap_interval(scores["xlstm"])
    assert "best first" in picture.description
    assert f"xlstm: 0.800 [{low:.3f}, {high:.3f}] over 3 cases; unet: 0.600" in picture.description
    assert [text.get_text() for text in picture.figure.axes[0].get_yticklabels()] == ["xlstm", "unet"]
    with pytest.raises(ValueError, match="expected finite numbers"):
        comparison.model_comparison({"unet": [0.5, float("nan")]})


def test_errors_of_0_are_told_and_not_drawn():
    picture = comparison.error_ladder({"float64": {16: 0.0, 64: 0.0}, "bfloat16": {16: 0.0, 64: 1e-3, 256: 2e-3}})
    assert "float64: 0 at tokens 16, 64." in picture.description
    assert "bfloat16: 0 at token 16, 0.001 error at 64 tokens, 0.002 at 256." in picture.description
    axes = picture.figure.axes[0]
    assert len(axes.lines) == 1 and axes.get_yscale() == axes.get_xscale() == "log"


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_slopes_are_exponents(exponent):
    values = {n: 3e-6 * n**exponent for n in (64, 256, 1024)}
    assert comparison.fitted_slope(values) == pytest.approx(exponent, abs=1e-12)
    picture = comparison.cost_curves({"form": values}, {"form": values})
    assert picture.description.count(f"slope {exponent:.2f}") == 2 and len(picture.figure.axes) == 2
    assert f"form, slope {exponent:.2f}" in picture.figure.axes[0].get_legend().get_texts()[0].get_text()
    assert "slope" not in comparison.cost_curves({"form": values}, slopes=False).description


def test_one_point_has_no_slope():
    assert np.isnan(comparison.fitted_slope({64: 1.0}))
    assert "slope" not in comparison.cost_curves({"form": {64: 1.0}}).description


def test_flaws_stand_with_their_scores():
    truth = np.zeros((4, 6), int)
    truth[1:3, 1:3] = 7
    predictions = {"the same": truth, "more": np.maximum(truth, np.eye(4, 6, dtype=int)), "nothing": 0 * truth}
    scores = {name: {"Dice": value, "HD95": 2 * value} for value, name in enumerate(predictions)}
    picture = comparison.flaws(truth, predictions, scores)
    assert "3 predictions of the same image. the same: Dice 0.00, HD95 0.00; more: Dice 1.00, HD95 2.00" in (
        picture.description
    )
    panels = [np.unique(axes.images[0].get_array().reshape(-1, 3), axis=0) for axes in picture.figure.axes]
    assert [len(colours) for colours in panels] == [2, 3, 2]  # background; both, extra, missed where there are any
    with pytest.raises(ValueError, match="must be equal"):
        comparison.flaws(truth, {"turned": truth.T}, {"turned": {}})
