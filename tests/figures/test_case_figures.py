"""Pictures: what they show is right, and the words that go with them say it."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.figures.cases import (
    boundary_tolerance,
    case_picture,
    comparison,
    learning_curve,
    paint,
    samples,
    score_strip,
    to_picture,
)
from xlstm_unet_lab.figures.picture import PALETTE, Picture, in_words, line_style, new_figure
from xlstm_unet_lab.overlays.description import overlay

COLOURS = {"interior": "#0072B2", "boundary": "#E69F00"}


@pytest.fixture
def images():
    return [np.random.default_rng(n).integers(0, 256, (1, 24, 32)).astype(np.uint8) for n in range(3)]


@pytest.fixture
def labels():
    label = np.zeros((24, 32), np.int64)
    label[:6], label[6:12] = 1, 2
    return [label] * 3


def make_records(losses, dice=None):
    metrics = [None] * (len(losses) - 1) + [None if dice is None else {"interior": dice, "mean": dice}]
    return [
        SimpleNamespace(step=n + 1, loss=x, metrics=m) for n, (x, m) in enumerate(zip(losses, metrics, strict=True))
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_to_picture(channels):
    picture = to_picture(np.random.default_rng(0).normal(size=(channels, 5, 6)))
    assert picture.shape == (5, 6, 3) and picture.min() == 0 and picture.max() == 1
    assert (channels >= 3) == bool(np.ptp(picture, axis=-1).any())


def test_a_constant_image_is_drawn_and_a_volume_refused():
    assert np.isfinite(to_picture(np.full((1, 4, 4), 7))).all()
    with pytest.raises(ValueError, match="one slice"):
        to_picture(np.zeros((1, 4, 4, 4)))


def test_paint_mixes_colour_where_the_label_is():
    painted = paint(np.ones((1, 3, 3)), np.array([[0, 1, 2]]), {1: "#000000", 2: "#FF0000"}, opacity=0.5)
    assert painted.tolist() == [[[1, 1, 1], [0.5, 0.5, 0.5], [1, 0.5, 0.5]]]


def test_samples_say_what_the_labels_cover(images, labels):
    picture = samples(images, labels, COLOURS)
    assert "3 images" in picture.description and "interior 25%, boundary 25%" in picture.description
    assert len(picture.figure.axes) == 6


def test_comparison_says_how_much_is_wrong(images, labels):
    wrong = labels[0].copy()
    wrong[0, :], wrong[-1, :16] = 0, 1  # of 24 rows one missed, half a row extra
    text = comparison(images[0], labels[0], wrong, COLOURS, title="case 7").description
    assert text.startswith("case 7") and "missed 4.2%, extra 2.1%, confused 0.0%" in text


def test_of_a_volume_the_overlays_slice_is_shown_as_the_overlay_turns_it():
    truth = np.zeros((6, 10, 10), int)
    truth[4, 1:8, 1:8], truth[2, 1:3, 1:3] = 7, 7
    facts = {"label_names": {"liver": 7}, "colours": {7: "#0072B2"}, "anatomical": True}
    picture = case_picture(
        overlay(np.zeros((1, 6, 10, 10)), truth=truth, prediction=0 * truth, title="case 1", **facts)
    )
    assert "case 1, slice 4" in picture.description and "missed 49.0%" in picture.description
    painted = picture.figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(painted.any(-1), truth[4, ::-1, ::-1] == 7)
    empty = case_picture(overlay(np.zeros((1, 6, 10, 10)), truth=0 * truth, prediction=0 * truth, **facts))
    assert "slice 3" in empty.description
    same = {"truth": truth[4], "prediction": truth[4], "label_names": {"liver": 7}, "title": "cell"}
    flat = case_picture(overlay(np.zeros((3, 10, 10)), **same))
    assert flat.description.startswith("cell ") and "slice" not in flat.description
    with pytest.raises(ValueError, match="no errors"):
        case_picture(overlay(np.zeros((1, 6, 6))))


def test_learning_curve_tells_falling_from_not_falling():
    falling = learning_curve(make_records([1.0, 0.8, 0.5], dice=0.75))
    assert "falls from 1.00 to 0.50 in 3 steps" in falling.description and "0.75" in falling.description
    assert len(falling.figure.axes) == 2
    rising = learning_curve(make_records([0.5, 0.6]))
    assert "does not fall" in rising.description and len(rising.figure.axes) == 1
    with pytest.raises(ValueError, match="no records"):
        learning_curve([])


def test_score_strip_gives_mean_and_range():
    picture = score_strip({"interior": [0.5, 1.0], "boundary": [0.25, 0.75]})
    assert picture.description.startswith("Dice of 2 images. ")
    assert "interior: mean 0.75, from 0.50 to 1.00; boundary: mean 0.50" in picture.description
    dots, bar = picture.figure.axes[0].lines[:2]
    assert dots.get_xdata().tolist() == [0.5, 1.0] and bar.get_xdata().tolist() == [0.75, 0.75]
    assert np.abs(dots.get_ydata()).max() <= 0.2, "dots stay in their row"


def test_score_strip_tells_models_apart_and_leaves_nan_out():
    scores = {"liver": {"a": [0.5, float("nan")], "b": [0.25, 0.75]}, "spleen": {"b": [float("nan")] * 2}}
    picture = score_strip(scores, "NSD", case="organ")
    assert picture.description.startswith("NSD of 2 organs. a, liver: mean 0.50, from 0.50")
    assert "b, liver: mean 0.50, from 0.25 to 0.75; b, spleen: no value." in picture.description
    axes = picture.figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a, liver", "b, liver", "b, spleen"]
    colours = [line.get_color() for line in axes.lines if line.get_linestyle() == "None"]
    assert colours == [PALETTE[0], PALETTE[1], PALETTE[1]]
    assert "one dot an organ" in axes.get_xlabel()


def test_boundary_tolerance_is_what_the_metrics_say():
    truth, shifted = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    truth[3:8, 3:8], shifted[3:8, 5:10] = True, True
    near, far = (
        boundary_tolerance(truth, shifted, spacing=(1.0, 1.0), tolerance=tolerance) for tolerance in (1.0, 2.0)
    )
    score = metrics.surface_dice(shifted, truth, spacing=(1.0, 1.0), tolerance=1.0)
    assert score < 1 and f"Within a tolerance of 1 mm the surface Dice is {score:.2f};" in near.description
    assert "surface Dice is 1.00;" in far.description and "Dice is 0.60" in far.description
    with pytest.raises(ValueError, match="one slice"):
        boundary_tolerance(truth[None], shifted[None], spacing=(1.0,) * 3, tolerance=1.0)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([], "no token"), ([3], "token 3"), ([3, 5], "tokens 3, 5"), (range(7), "tokens 0, 1, 2, 3, 4 and others")],
)
def test_numbers_in_words(numbers, words):
    assert in_words(numbers, "token") == words


def test_lines_differ_in_two_signs():
    styles = [(line_style(n)["color"], line_style(n)["marker"]) for n in range(len(PALETTE))]
    assert len(set(styles)) == len({marker for _, marker in styles}) == len(PALETTE)
    assert line_style(len(PALETTE)) == line_style(0)


def test_a_picture_carries_its_words_everywhere(tmp_path):
    figure = new_figure(2, 1)
    figure.add_subplot().plot([0, 1], color=PALETTE[0])
    picture = Picture(figure, 'A line rises from 0 to "1".')
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == picture.description
    assert data["text/html"] == picture.html()
    assert 'alt="A line rises from 0 to &quot;1&quot;."' in picture.html()
    saved = Image.open(picture.save(tmp_path / "line.png"))
    assert saved.text["Description"] == picture.description and list(tmp_path.iterdir()) == [tmp_path / "line.png"]
    assert Image.open(io.BytesIO(picture.png())).size == saved.size


def test_colours_survive_the_png():
    """A legend must match what it explains, also for colours that few pixels have."""
    figure = new_figure(4, 1)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.array([[to_rgb(colour) for colour in PALETTE]]), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    pixels = np.asarray(Image.open(io.BytesIO(Picture(figure, "Colours.").png()))).astype(int)
    middle = pixels[pixels.shape[0] // 2]
    for place, colour in enumerate(PALETTE):
        found = middle[int((place + 0.5) * len(middle) / len(PALETTE))]
        assert np.abs(found / 255 - to_rgb(colour)).max() < 0.04
