"""The live training plot, driven without a browser."""

from types import SimpleNamespace

import pytest

from xlstm_unet_lab.views import widgets


def make_records(count, seconds=1.0):
    for step in range(1, count + 1):
        metrics = {"mean": 0.5} if step == count else None
        yield SimpleNamespace(step=step, loss=1 / step, metrics=metrics, seconds=seconds * step, images_per_second=8.0)


def test_records_pass_through_unchanged_and_in_order():
    records = list(make_records(4))
    assert list(widgets.TrainingPlot(4).watch(records)) == records


def test_bar_text_and_curve_follow_the_records(monkeypatch):
    monkeypatch.setattr(widgets, "REDRAW_SECONDS", 0.0)
    plot = widgets.TrainingPlot(10)
    assert plot.text.value == "waiting for the first step"
    stream = plot.watch(make_records(10))
    for _ in range(widgets.MANY_STEPS - 1):
        next(stream)
    assert (
        plot.bar.value == 4 and "step 4 of 10, loss 0.250" in plot.text.value and "about 6 s to go" in plot.text.value
    )
    assert plot.curve.value == "", "a curve of four points says nothing"
    next(stream)
    first = plot.curve.value
    assert "in 5 steps" in first and "alt=" in first
    list(stream)
    assert plot.bar.value == 10 and plot.bar.bar_style == "success" and plot.curve.value != first
    assert "validation Dice 0.500" in plot.text.value and "done" in plot.text.value


def test_a_run_without_records_draws_nothing():
    plot = widgets.TrainingPlot(3)
    assert list(plot.watch([])) == [] and plot.curve.value == "" and plot.bar.bar_style == ""


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="steps is 0"):
        widgets.TrainingPlot(0)


@pytest.mark.parametrize("stop", ["caller", "error"])
def test_a_run_that_ends_early_shows_it(stop):
    plot = widgets.TrainingPlot(5)

    def broken():
        yield from make_records(2)
        if stop == "error":
            raise FloatingPointError("step 3")

    stream = plot.watch(broken())
    next(stream), next(stream)
    assert plot.bar.bar_style == "info"
    if stop == "error":
        with pytest.raises(FloatingPointError):
            next(stream)
    else:
        stream.close()
    assert plot.bar.bar_style == "danger" and "in 2 steps" in plot.curve.value
