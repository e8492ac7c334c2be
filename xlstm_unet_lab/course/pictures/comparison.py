"""Figures that compare: runs, models, forms of an operator. Numbers in, a `Picture` out."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from xlstm_unet_lab.data.colours import BLUE, GREY
from xlstm_unet_lab.evaluation.metrics import ERROR_COLOURS, ERRORS, error_map
from xlstm_unet_lab.evaluation.report import bootstrap_interval
from xlstm_unet_lab.figures.cases import legend, paint, smoothed_loss
from xlstm_unet_lab.figures.picture import Picture, in_words, line_style, new_figure

COLUMNS = 4  # of `flaws`
HEIGHT = 36  # letters that fit along the y axis of `lines`


def lines(
    x: Sequence[float],
    values: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    dashed: Sequence[str] = (),
) -> Picture:
    """Plain curves over one axis. values: name -> a number for every x; `dashed` names those drawn as expectations.

    Raises ValueError for a curve with another number of values than x, and for none at all.
    """
    x = np.asarray(x, float)
    if not values or not len(x):
        raise ValueError(f"there is nothing to draw: x has {len(x)} values, and {len(values)} curves were given")
    figure = new_figure(7, 3.2)
    axes, sentences = figure.add_subplot(), []
    for place, (name, y) in enumerate(values.items()):
        y = np.asarray(y, float)
        if y.shape != x.shape:
            raise ValueError(f"curve {name!r} has shape {y.shape}, expected a value for each of the {len(x)} of x")
        style = line_style(place) | ({"linestyle": "--", "marker": ""} if name in dashed else {})
        axes.plot(x, y, **style, markevery=max(1, len(x) // 12), label=name)
        sentences.append(_course(name, x, y))
    axes.set(xlabel=x_label, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.set_ylabel(textwrap.fill(y_label, HEIGHT))
    if log_x:
        _number_ticks(axes, x[:: max(1, len(x) // 12)])
    axes.legend(fontsize=8, frameon=False)
    return Picture(figure, f"{y_label} against {x_label}. {' '.join(sentences)}")


def _number_ticks(axes: Axes, ticks: Sequence[float], rotation: float = 0) -> None:
    """Plain numbers on a logarithmic axis: powers of ten alone would leave most of the points without one."""
    axes.set_xticks(ticks, [f"{value:.10g}" for value in ticks], rotation=rotation, fontsize=7)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _course(name: str, x: np.ndarray, y: np.ndarray) -> str:
    """Where a curve begins and ends, and its highest and lowest point where these lie between."""
    text = f"{name}: {y[0]:.3g} at {x[0]:.4g}, {y[-1]:.3g} at {x[-1]:.4g}"
    for word, extreme in (("highest", np.nanargmax), ("lowest", np.nanargmin)):
        place = int(extreme(y)) if np.isfinite(y).any() else 0
        if y[place] not in (y[0], y[-1]) and np.isfinite(y[place]):
            text += f", {word} {y[place]:.3g} at {x[place]:.4g}"
    return f"{text}."


def loss_curves(runs: Mapping[str, Sequence]) -> Picture:
    """The running mean of the loss of several runs in one diagram. `runs`: name -> records as `fit` yields them."""
    figure = new_figure(7, 3)
    axes = figure.add_subplot()
    lines = []
    for place, (name, records) in enumerate(runs.items()):
        steps, smooth, _ = smoothed_loss(records)
        axes.plot(steps, smooth, **line_style(place), markevery=0.1, label=name)
        lines.append(f"{name}: from {smooth[0]:.2f} to {smooth[-1]:.2f} in {steps[-1]} steps")
    axes.set(xlabel="step", ylabel="loss, running mean", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False)
    return Picture(figure, f"The loss of {len(runs)} runs. {'; '.join(lines)}.")


def flaws(
    truth: np.ndarray, predictions: Mapping[str, np.ndarray], scores: Mapping[str, Mapping[str, float]]
) -> Picture:
    """Predictions of one image beside each other: what is right, missed and extra in each, and its scores.

    truth (y, x); predictions: name -> mask (y, x), where what is not 0 counts; scores: the same names -> score ->
    value. Raises ValueError for shapes that differ, KeyError for a prediction without scores.
    """
    rows = math.ceil(len(predictions) / COLUMNS)
    figure, sentences = new_figure(10, 3.1 * rows), []
    for place, (name, prediction) in enumerate(predictions.items(), start=1):
        errors = error_map(prediction > 0, truth > 0)
        both = paint(np.ones((*truth.shape, 3)), (truth > 0) & (errors == 0), {1: GREY}, opacity=1)
        values = [f"{score} {value:.2f}" for score, value in scores[name].items()]
        axes = figure.add_subplot(rows, COLUMNS, place, xticks=[], yticks=[])
        axes.imshow(paint(both, errors, ERROR_COLOURS, opacity=1))
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("\n".join(values), fontsize=8)  # a label, so that the layout leaves room for it
        axes.spines[:].set_visible(False)
        sentences.append(f"{name}: {', '.join(values)}")
    legend(figure, {"both": GREY} | {kind: ERRORS[kind] for kind in ("missed", "extra")})
    return Picture(figure, f"{len(predictions)} predictions of the same image. {'; '.join(sentences)}.")


def model_comparison(scores: Mapping[str, Sequence[float]], metric: str = "Dice") -> Picture:
    """The mean of every model with its 95% bootstrap interval, best first. `scores`: model -> values of the cases.

    Raises ValueError for a model without values or with one that is not finite, as `bootstrap_interval` does.
    """
    rows = [(float(np.mean(values)), *bootstrap_interval(values), len(values), n) for n, values in scores.items()]
    rows.sort(key=lambda row: -row[0])
    figure = new_figure(7, 0.8 + 0.4 * len(rows))
    axes = figure.add_subplot()
    for place, (mean, low, high, _, _) in enumerate(rows):
        axes.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axes.plot(mean, place, "D", color=BLUE, markersize=6)
    axes.set(yticks=range(len(rows)), yticklabels=[row[-1] for row in rows], ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel(f"{metric}\ndiamond: mean over cases, bar: 95% interval of the mean")
    lines = [f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}] over {n} cases" for mean, low, high, n, name in rows]
    return Picture(figure, f"Mean {metric} of {len(rows)} models, best first, with 95% intervals. {'; '.join(lines)}.")


def error_ladder(errors: Mapping[str, Mapping[int, float]], against: str = "tokens") -> Picture:
    """Largest errors on logarithmic axes, one line a name. errors: name -> {length or size: error}; 0 is exact."""
    figure = new_figure(7, 3.4)
    return Picture(figure, " ".join(_log_lines(figure.add_subplot(), errors, against, "error")))


def cost_curves(
    seconds: Mapping[str, Mapping[int, float]],
    memory: Mapping[str, Mapping[int, float]] | None = None,
    against: str = "tokens",
    slopes: bool = True,
) -> Picture:
    """Seconds, and bytes where given, on logarithmic axes, with the slope of each line: 1 is linear, 2 quadratic.

    seconds, memory: name -> {length: value}; slopes False leaves the slopes out, where no power law is to be seen.
    """
    figure = new_figure(5 if memory is None else 9, 3.4)
    panels = {"seconds": seconds} | ({} if memory is None else {"bytes": memory})
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    lines = [
        line
        for one, (what, values) in zip(axes, panels.items(), strict=True)
        for line in _log_lines(one, values, against, what, slopes)
    ]
    return Picture(figure, " ".join(lines))


def fitted_slope(values: Mapping[int, float]) -> float:
    """The exponent p of the power law c x^p that fits best, by least squares between logarithms; NaN for one point."""
    return float(np.polyfit(*np.log([list(values), list(values.values())]), 1)[0]) if len(values) > 1 else math.nan


def _log_lines(axes: Axes, lines: Mapping, against: str, what: str, slopes: bool = False) -> list[str]:
    """Draw the lines and return a sentence for each; values of 0 have no logarithm and are told in words."""
    sentences = []
    for place, (name, values) in enumerate(lines.items()):
        positive = {x: y for x, y in values.items() if y > 0}
        exact = [x for x in values if x not in positive]
        sentence = f"{name}: 0 at {in_words(exact, against.removesuffix('s'))}" if exact else f"{name}:"
        if positive:
            slope = f", slope {fitted_slope(positive):.2f}" if slopes and len(positive) > 1 else ""
            axes.plot(list(positive), list(positive.values()), **line_style(place), label=name + slope)
            (first, low), (last, high) = min(positive.items()), max(positive.items())
            sentence += f"{',' if exact else ''} {low:.2g} {what} at {first} {against}"
            sentence += f", {high:.2g} at {last}{slope}" if last > first else ""
        sentences.append(sentence + ".")
    axes.set(xscale="log", yscale="log", xlabel=against, ylabel=what)
    _number_ticks(axes, sorted({x for values in lines.values() for x in values}), rotation=45)
    if axes.lines:
        axes.legend(fontsize=7, frameon=False)
    return sentences
