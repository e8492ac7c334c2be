"""Figures as pure functions: data in, a `Picture` out (figure and description). One style for all of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from xlstm_unet_lab.data.colours import BLUE, GREY, OPACITY, ORANGE, VERMILION, in_colour
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.evaluation.metrics import ERROR_COLOURS, ERRORS, error_map
from xlstm_unet_lab.figures.picture import Picture, line_style, new_figure, plain
from xlstm_unet_lab.overlays.contrast import contrast
from xlstm_unet_lab.overlays.description import Overlay, overlay


def to_picture(image: np.ndarray) -> np.ndarray:
    """(C, y, x) -> (y, x, 3) between 0 and 1: three channels as red, green, blue, otherwise the first as grey."""
    if image.ndim != 3:
        raise ValueError(f"image has shape {image.shape}, expected (C, y, x); of a volume, hand over one slice")
    shown = np.asarray(image[:3] if len(image) >= 3 else image[:1], float)
    low, high = contrast(shown)
    shown = np.clip((shown - low) / (high - low), 0, 1)
    return np.moveaxis(np.broadcast_to(shown, (3, *shown.shape[1:])), 0, -1)


def paint(picture: np.ndarray, label: np.ndarray, colours: Mapping[int, str], opacity: float = OPACITY) -> np.ndarray:
    """Lay colours (label value -> colour) over a picture (y, x, 3), between 0 and 1, where the label has one."""
    there = np.isin(label, list(colours))[..., None]
    return np.where(there, (1 - opacity) * picture + opacity * in_colour(label, colours) / 255, picture)


def draw_panel(axes: Axes, picture: np.ndarray, title: str = "") -> None:
    """A picture (y, x, 3) without axes, and its title."""
    axes.imshow(picture, interpolation="antialiased")
    axes.set_title(plain(title), fontsize=10)
    axes.set_axis_off()


def legend(figure, *colours: Mapping[str, str]) -> None:
    """What each colour stands for, in one row below the whole figure; a name may stand in several of the mappings."""
    handles = [Patch(color=colour, label=plain(name)) for known in colours for name, colour in known.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def numbered(colours: Mapping[str, str]) -> dict[int, str]:
    """Label value -> colour, from name -> colour of labels 1, 2, ..."""
    return dict(enumerate(colours.values(), start=1))


def samples(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], colours: Mapping[str, str]) -> Picture:
    """Images (C, y, x) above, the same with their labels below. `colours`: name -> colour of labels 1, 2, ..."""
    figure = new_figure(1.8 * len(images), 4.0)
    above, below = figure.subplots(2, len(images), squeeze=False)
    for image, label, bare, labelled in zip(images, labels, above, below, strict=True):
        picture = to_picture(image)
        draw_panel(bare, picture)
        draw_panel(labelled, paint(picture, label, numbered(colours)))
    legend(figure, colours)
    shares = {name: np.mean([np.mean(label == value) for label in labels]) for value, name in enumerate(colours, 1)}
    covered = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    text = f"{len(images)} images, above as they are, below with their labels in colour; the labels cover {covered}."
    return Picture(figure, text)


def comparison(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, colours: Mapping[str, str], title: str = ""
) -> Picture:
    """Image, truth, prediction and errors beside each other. image (C, y, x), labels (y, x).

    colours: name -> colour of labels 1, 2, ... Raises ValueError and TypeError as `overlay` does.
    """
    names = {name: value for value, name in enumerate(colours, start=1)}
    facts = {"label_names": names, "colours": numbered(colours), "title": title}
    return case_picture(overlay(image, truth=truth, prediction=prediction, **facts))


def case_picture(shown: Overlay) -> Picture:
    """Image, truth, prediction and errors of a case; of a volume its initial slice, turned as the overlay shows it.

    Raises ValueError for an overlay without truth or prediction.
    """
    figure, errors = new_figure(10, 3.1), shown.shown("errors")
    place = f"slice {shown.initial_slice}" if len(shown.shape) == 3 else ""
    title = ", ".join(filter(None, [shown.title, place]))
    picture = to_picture(shown.shown("image"))
    first, *others, last = figure.subplots(1, 4)
    draw_panel(first, picture, title or "image")
    for axes, name in zip(others, ("truth", "prediction"), strict=True):
        draw_panel(axes, paint(picture, shown.shown(name), shown.colours), name)
    draw_panel(last, paint(picture * 0.5, errors, ERROR_COLOURS, opacity=1), "errors")
    legend(figure, {name: shown.colours[value] for value, name in shown.value_names.items()}, ERRORS)
    counts = ", ".join(f"{name} {np.mean(errors == code):.1%}" for code, name in enumerate(ERRORS, start=1))
    beside = "its true labels, the predicted labels and the errors"
    return Picture(figure, f"{title or 'One image'} beside {beside}: of all pixels {counts}.")


def smoothed_loss(records: Sequence) -> tuple[list[int], np.ndarray, int]:
    """Steps, mean losses of as many steps before and with each, and that number; it grows with the run's length."""
    if not records:
        raise ValueError("there are no records yet: let fit do at least one step")
    losses = np.array([r.loss for r in records])
    window = max(1, len(losses) // 20)
    return [r.step for r in records][window - 1 :], np.convolve(losses, np.ones(window) / window, mode="valid"), window


def learning_curve(records: Sequence) -> Picture:
    """Loss of every step, its running mean, and the Dice of each validation. `records` as `fit` yields them."""
    steps, smooth, window = smoothed_loss(records)
    figure = new_figure(7, 3)
    axes = figure.add_subplot()
    if window > 1:
        every_step, losses = [r.step for r in records], [r.loss for r in records]
        axes.plot(every_step, losses, color=GREY, linewidth=0.6, alpha=0.6, label="loss of a step")
    name = f"loss, mean of {window} steps" if window > 1 else "loss"
    axes.plot(steps, smooth, color=BLUE, linewidth=1.8, label=name)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    validations = [(r.step, r.metrics["mean"]) for r in records if r.metrics]
    handles = axes.get_legend_handles_labels()
    text = f"The loss falls from {smooth[0]:.2f} to {smooth[-1]:.2f} in {steps[-1]} steps."
    if smooth[-1] >= smooth[0]:
        text = f"The loss does not fall: {smooth[0]:.2f} at first, {smooth[-1]:.2f} after {steps[-1]} steps."
    if validations:
        right = axes.twinx()
        right.plot(*zip(*validations, strict=True), "o-", color=ORANGE, markersize=4, label="mean Dice, validation")
        right.set(ylabel="Dice", ylim=(0, 1))
        handles = [a + b for a, b in zip(handles, right.get_legend_handles_labels(), strict=True)]
        text += f" The mean Dice on validation images is {validations[-1][1]:.2f} at step {validations[-1][0]}."
    figure.legend(*handles, fontsize=8, loc="outside upper center", ncols=len(handles[0]), frameon=False)
    return Picture(figure, text)


def score_strip(
    scores: Mapping[str, Sequence[float] | Mapping[str, Sequence[float]]],
    metric: str = "Dice",
    case: str = "image",
    middle: str = "mean",
) -> Picture:
    """Every case as a dot and the mean as a bar, one row a label, or a row for each model of a label.

    scores: label -> values of the cases, or label -> model -> values, models told apart by colour; NaN is left out.
    case: what a value belongs to, in words; middle: "mean" or "median", with the quartiles as a line.
    """
    rows = [
        (label, model, np.asarray(values, float))
        for label, groups in scores.items()
        for model, values in (groups if isinstance(groups, Mapping) else {"": groups}).items()
    ]
    models = list(dict.fromkeys(model for _, model, _ in rows))
    colours = models if any(models) else list(scores)
    figure = new_figure(7, 0.6 + 0.5 * len(rows))
    axes = figure.add_subplot()
    names, lines = [], []
    for row, (label, model, values) in enumerate(rows):
        values = values[~np.isnan(values)]
        # Dots are spread over the row's height by the golden section: even, and the same every time.
        height = row + 0.4 * (np.arange(len(values)) * 0.618 % 1 - 0.5)
        colour = line_style(colours.index(model or label))["color"]
        axes.plot(values, height, "o", color=colour, markersize=4, alpha=0.7)
        names.append(f"{model}, {label}" if model else label)
        if not len(values):
            lines.append(f"{names[-1]}: no value")
            continue
        bar = getattr(np, middle)(values)
        axes.plot([bar] * 2, [row - 0.35, row + 0.35], color="black", linewidth=2)
        if middle == "median":
            axes.plot(np.quantile(values, (0.25, 0.75)), [row] * 2, color="black", linewidth=1)
        lines.append(f"{names[-1]}: {middle} {bar:.2f}, from {values.min():.2f} to {values.max():.2f}")
    axes.set(yticks=range(len(rows)), yticklabels=map(plain, names), ylim=(len(rows) - 0.5, -0.5), xlim=(-0.02, 1.02))
    dot = f"one dot a{'n' if case[0] in 'aeiou' else ''} {plain(case)}"
    quartiles = ", line: quartiles" if middle == "median" else ""
    axes.set_xlabel(f"{plain(metric)}\n{dot}, bar: {middle}{quartiles}")
    return Picture(figure, f"{metric} of {max(len(values) for *_, values in rows)} {case}s. {'; '.join(lines)}.")


def boundary_tolerance(
    truth: np.ndarray, prediction: np.ndarray, *, spacing: Sequence[float], tolerance: float, unit: str = "mm"
) -> Picture:
    """Two masks (y, x) with their errors, and the surface Dice at tolerances from 0 to past the one asked for.

    spacing and tolerance in `unit`, in the order of the axes. Raises ValueError for other than 2-D masks, and as
    `surface_dice` does.
    """
    if truth.ndim != 2:
        raise ValueError(f"truth has shape {truth.shape}, expected a mask (y, x): of a volume, hand over one slice")
    figure = new_figure(8, 3.2)
    agreed = paint(np.ones((*truth.shape, 3)), truth.astype(bool) & prediction.astype(bool), {1: GREY}, opacity=1)
    errors = error_map(prediction, truth)
    draw_panel(figure.add_subplot(1, 2, 1), paint(agreed, errors, ERROR_COLOURS, opacity=1), "both, and errors")
    legend(figure, {"both": GREY} | {kind: ERRORS[kind] for kind in ("missed", "extra")})
    tolerances = np.linspace(0, max(2 * tolerance, 4 * max(spacing)), 13)
    curve = [metrics.surface_dice(prediction, truth, spacing=spacing, tolerance=float(t)) for t in tolerances]
    chosen = metrics.surface_dice(prediction, truth, spacing=spacing, tolerance=tolerance)
    axes = figure.add_subplot(1, 2, 2)
    axes.plot(tolerances, curve, **line_style(0))
    axes.axvline(tolerance, color=GREY, linestyle="--")
    axes.plot(tolerance, chosen, "o", color=VERMILION, markersize=9)
    axes.set(xlabel=f"tolerance in {plain(unit)}", ylabel="surface Dice", ylim=(-0.02, 1.02))
    dice, distance = metrics.dice(prediction, truth), metrics.hausdorff95(prediction, truth, spacing=spacing)
    text = (
        f"Within a tolerance of {tolerance:g} {unit} the surface Dice is {chosen:.2f}; it goes from {curve[0]:.2f} "
        f"without tolerance to {curve[-1]:.2f} at {tolerances[-1]:g} {unit}. Dice is {dice:.2f}, the 95% Hausdorff "
        f"distance {distance:.1f} {unit}."
    )
    return Picture(figure, text)
