"""The gate: what is asked of a picture and of a widget to be read, told apart and used, and the watch in a kernel."""

import ipywidgets
import nbformat
import numpy as np
import pytest
from kernel_watch import seen_by, undescribed, watched

from xlstm_unet_lab.course.authoring.accessibility import problems, widget_problems
from xlstm_unet_lab.course.authoring.lesson import execute
from xlstm_unet_lab.figures.picture import PALETTE, Picture, new_figure

WORDS = "A line rises from 0 to 1 in 2 steps."
LESSON = (
    """
from xlstm_unet_lab.figures.picture import Picture, new_figure
figure = new_figure(2, 1)
figure.add_subplot().plot([0, 1], color="#00FF00")
Picture(figure, "")
import ipywidgets
slider = ipywidgets.IntSlider()
""",
    """
import matplotlib.pyplot as plt
plt.plot([0, 1])
display(figure)
Picture(figure, "The figure of the cell before, which is green.")
""",
)


def test_the_watch_sees_what_a_lesson_makes(tmp_path):
    """In a kernel, as on every notebook of the course (`tests/lessons/test_notebooks.py`)."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in LESSON])
    execute(notebook, tmp_path, "ci", timeout=600, variables=watched(tmp_path))
    seen = seen_by(tmp_path)
    assert (seen.cells, seen.pictures) == (2, 2) and seen.widgets > 0
    for fault in ("'' is no sentence", "#00FF00, which is not in the palette", "IntSlider has no label"):
        assert any(fault in one for one in seen.faults), seen.faults
    assert sum(fault.startswith("an image without alternative text: <Figure") for fault in seen.faults) == 2


def test_bare_figures_are_seen():
    picture = {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}
    assert undescribed(picture) == undescribed(picture | {"text/html": "<b>"}) == "<Figure>"
    assert undescribed(picture | {"text/html": '<img alt="A line." src="x">'}) is None
    assert undescribed({"text/plain": "<Figure>"}) is None


def drawn(draw, description=WORDS, **options):
    figure = new_figure(3, 2)
    draw(figure.add_subplot())
    return problems(Picture(figure, description), **options)


GOOD = {
    "line": lambda axes: axes.plot([0, 1], "o-", color=PALETTE[0], alpha=0.3, label="line"),
    "black and grey": lambda axes: (axes.axhline(0, color="black"), axes.axvline(0, color="#767676")),
    "area": lambda axes: axes.fill_between([0, 1], [0, 1], color=PALETTE[1], alpha=0.3),
    "dots": lambda axes: axes.scatter([0, 1], [0, 1], color=PALETTE[2]),
    "map": lambda axes: axes.figure.colorbar(axes.imshow(np.eye(3), cmap="cividis_r")),
    "photograph": lambda axes: axes.imshow(np.random.rand(3, 3, 3)),
    "mesh": lambda axes: axes.pcolormesh(np.eye(3), cmap="PuOr"),
    "unseen": lambda axes: axes.plot([0, 1], color="red", visible=False),
    "transparent": lambda axes: axes.bar([0], [1], color="none", edgecolor="black"),
    "words": lambda axes: (axes.legend(axes.plot([0], color=PALETTE[3]), ["a"]), axes.text(0, 0, "", color="red")),
}
BAD = {
    "line": (lambda axes: axes.plot([0, 1], color="red"), "Line2D has the colour #FF0000"),
    "marker": (lambda axes: axes.plot([0], "o", color="black", mfc="#00FF00"), "the marker #00FF00"),
    "bar": (lambda axes: axes.bar([0], [1], color="C1"), "Rectangle has the area #FF7F0E"),
    "edge": (lambda axes: axes.bar([0], [1], color="white", edgecolor="C3"), "the edge #D62728"),
    "dots": (lambda axes: axes.scatter([0, 1], [0, 1], color=["black", "lime"]), "PathCollection has the area #00FF00"),
    "words": (lambda axes: axes.set_title("a", color="blue"), "Text has the colour #0000FF"),
    "map": (lambda axes: axes.imshow(np.eye(3), cmap="jet"), "AxesImage uses the colour map 'jet'"),
    "mesh": (lambda axes: axes.pcolormesh(np.eye(3), cmap="hsv"), "QuadMesh uses the colour map 'hsv'"),
    "dots by map": (lambda axes: axes.scatter([0, 1], [0, 1], c=[0, 1], cmap="rainbow"), "the colour map 'rainbow'"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_pictures_pass(name):
    assert drawn(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_colours_are_found(name):
    draw, fault = BAD[name]
    found = drawn(draw)
    assert len(found) == len(set(found)) and any(fault in one for one in found), found


def test_colours_of_a_recipe_can_be_allowed():
    assert drawn(lambda axes: axes.plot([0, 1], color="#882255"), colours=["#882255"]) == []


@pytest.mark.parametrize("description", ["", "   ", "Loss.", "a figure of the loss over the steps"])
def test_a_description_is_a_sentence(description):
    assert "is no sentence" in drawn(GOOD["line"], description)[0]


@pytest.mark.parametrize(
    "widget",
    [
        lambda: ipywidgets.IntSlider(description="slice"),
        lambda: ipywidgets.Button(tooltip="go on"),
        lambda: ipywidgets.HTML('<img alt="A line." src="x"><p>words</p>'),
        lambda: ipywidgets.VBox([ipywidgets.Label("a"), ipywidgets.HBox([ipywidgets.Text(description="name")])]),
        lambda: ipywidgets.Tab([ipywidgets.HTML("a")], titles=["first"]),
        lambda: ipywidgets.HBox([ipywidgets.HTML("half"), ipywidgets.FloatProgress()]),
        lambda: ipywidgets.Layout(),
    ],
)
def test_good_widgets_pass(widget):
    assert widget_problems(widget()) == []


@pytest.mark.parametrize(
    ("widget", "fault"),
    [
        (lambda: ipywidgets.IntSlider(), "IntSlider has no label"),
        (lambda: ipywidgets.Button(description=" "), "Button has no label"),
        (lambda: ipywidgets.VBox([ipywidgets.HBox([ipywidgets.Dropdown(options=["a"])])]), "Dropdown has no label"),
        (lambda: ipywidgets.HTML('<img src="x">'), "HTML shows an image without alternative text"),
        (lambda: ipywidgets.HTML('<p><img alt="" src="x"/></p>'), "HTML shows an image without alternative text"),
        (lambda: ipywidgets.Image(), "Image has no place for an alternative text"),
        (lambda: ipywidgets.Accordion([ipywidgets.HTML("a")]), "Accordion has a page without a title"),
    ],
)
def test_bad_widgets_are_found(widget, fault):
    (found,) = widget_problems(widget())
    assert found.startswith(fault)
