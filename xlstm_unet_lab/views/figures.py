"""Figures as pure functions: data in, a `Picture` out (figure and description). One style for all of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from xlstm_unet_lab.views.picture import BLUE, GREY, ORANGE, PALETTE, PURPLE, VERMILION, YELLOW, Picture, new_figure

ERRORS = {"missed": YELLOW, "extra": VERMILION, "confused": PURPLE}  # error codes 1, 2, 3
OPACITY = 0.55  # of label colours over an image
PERCENTILES = (0.5, 99.5)  # of the intensities shown; single bright voxels would leave the rest black


def error_map(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """0 right, 1 missed, 2 extra, 3 confused (both labelled, not alike), uint8. ValueError for shapes that differ."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction has shape {prediction.shape} and truth {truth.shape}, expected the same")
    missed, extra = (truth > 0) & (prediction == 0), (truth == 0) & (prediction > 0)
    confused = (truth > 0) & (prediction > 0) & (truth != prediction)
    return (missed + 2 * extra + 3 * confused).astype(np.uint8)


def to_picture(image: np.ndarray) -> np.ndarray:
    """(C, y, x) -> (y, x, 3) between 0 and 1: three channels as red, green, blue, otherwise the first as grey."""
    if image.ndim != 3:
        raise ValueError(f"image has shape {image.shape}, expected (C, y, x); of a volume, hand over one slice")
    shown = np.asarray(image[:3] if len(image) >= 3 else image[:1], float)
    low, high = np.percentile(shown, PERCENTILES)
    shown = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)
    return np.moveaxis(np.broadcast_to(shown, (3, *shown.shape[1:])), 0, -1)


def paint(picture: np.ndarray, label: np.ndarray, colours: Sequence[str], opacity: float = OPACITY) -> np.ndarray:
    """Lay colours over a picture (y, x, 3) where label is 1, 2, ... (colours in that order)."""
    painted = picture.copy()
    for value, colour in enumerate(colours, start=1):
        there = label == value
        painted[there] = (1 - opacity) * picture[there] + opacity * np.array(to_rgb(colour))
    return painted


def _panel(axes: Axes, picture: np.ndarray, title: str = "") -> None:
    axes.imshow(picture, interpolation="antialiased")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _legend(figure, colours: Mapping[str, str]) -> None:
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def samples(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], colours: Mapping[str, str]) -> Picture:
    """Images (C, y, x) above, the same with their labels below. `colours`: name -> colour of labels 1, 2, ..."""
    figure = new_figure(1.8 * len(images), 4.0)
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = to_picture(image)
        _panel(figure.add_subplot(2, len(images), column + 1), picture)
        _panel(
            figure.add_subplot(2, len(images), len(images) + column + 1), paint(picture, label, list(colours.values()))
        )
    _legend(figure, colours)
    shares = {
        name: np.mean([(label == value).mean() for label in labels]) for value, name in enumerate(colours, start=1)
    }
    covered = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    text = f"{len(images)} images, above as they are, below with their labels in colour; the labels cover {covered}."
    return Picture(figure, text)


def comparison(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, colours: Mapping[str, str], title: str = ""
) -> Picture:
    """Image, truth, prediction and errors side by side. image (C, y, x), labels (y, x)."""
    figure = new_figure(10, 3.1)
    picture, errors = to_picture(image), error_map(prediction, truth)
    panels = {
        title or "image": picture,
        "truth": paint(picture, truth, list(colours.values())),
        "prediction": paint(picture, prediction, list(colours.values())),
        "errors": paint(picture * 0.5, errors, list(ERRORS.values()), opacity=1),
    }
    for place, (name, panel) in enumerate(panels.items(), start=1):
        _panel(figure.add_subplot(1, 4, place), panel, name)
    _legend(figure, {**colours, **ERRORS})
    counts = ", ".join(f"{name} {np.mean(errors == code):.1%}" for code, name in enumerate(ERRORS, start=1))
    text = (
        f"{title or 'One image'} beside its true labels, the predicted labels and the errors: of all pixels {counts}."
    )
    return Picture(figure, text)


def learning_curve(records: Sequence) -> Picture:
    """Loss of every step, its running mean, and the Dice of each validation. `records` as `fit` yields them."""
    if not records:
        raise ValueError("there are no records yet: let fit do at least one step")
    figure = new_figure(7, 3)
    steps, losses = [r.step for r in records], np.array([r.loss for r in records])
    window = max(1, len(losses) // 20)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes = figure.add_subplot()
    if window > 1:
        axes.plot(steps, losses, color=GREY, linewidth=0.6, alpha=0.6, label="loss of a step")
    name = f"loss, mean of {window} steps" if window > 1 else "loss"
    axes.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=1.8, label=name)
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


def score_strip(scores: Mapping[str, Sequence[float]], metric: str = "Dice") -> Picture:
    """Every case as a dot, one row a label, and the mean as a bar. `scores`: label -> values of the cases."""
    import seaborn

    figure = new_figure(7, 0.6 + 0.5 * len(scores))
    axes = figure.add_subplot()
    data = {name: np.asarray(values, float) for name, values in scores.items()}
    seaborn.stripplot(
        list(data.values()), orient="h", ax=axes, size=4, alpha=0.7, palette=PALETTE[: len(data)], jitter=0.2
    )
    for row, values in enumerate(data.values()):
        axes.plot([np.nanmean(values)] * 2, [row - 0.35, row + 0.35], color="black", linewidth=2)
    axes.set(
        yticks=range(len(data)), yticklabels=list(data), xlabel=f"{metric}, one dot an image, bar: mean", xlim=(0, 1)
    )
    lines = [
        f"{name}: mean {np.nanmean(values):.2f}, from {np.nanmin(values):.2f} to {np.nanmax(values):.2f}"
        for name, values in data.items()
    ]
    return Picture(figure, f"{metric} of {len(next(iter(data.values())))} images. {'; '.join(lines)}.")
