"""Names that others chose never break a picture: no formula, no order to a terminal, no entry that goes missing."""

import io

import numpy as np
import pandas
import pytest
from PIL import Image

from xlstm_unet_lab.course.pictures.explorers import patch_places
from xlstm_unet_lab.figures.cases import boundary_tolerance, comparison, samples, score_strip
from xlstm_unet_lab.figures.picture import Picture, new_figure, plain
from xlstm_unet_lab.figures.report_page import paired_differences, report_html, score_distribution, write_report
from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.screenshot import legend

ODD = [
    r"_US$ 5 {x_ $\frac{$ back\$lash $$",
    "two\nlines \x1b[31mred " + b"latin \xe4".decode(errors="surrogateescape"),
]
IMAGE = np.arange(300, dtype=np.uint8).reshape(1, 15, 20)
LABEL = (IMAGE[0] > 100).astype(np.uint8)


def scores(name):
    rows = [{"case": f"{name} {n}", "label": name, "dice": 0.1 * n, "group": name} for n in range(1, 6)]
    return pandas.DataFrame(rows)


def draw(name):
    colours = {name: "#0072B2"}
    yield comparison(IMAGE, LABEL, LABEL[::-1], colours, title=name)
    yield samples([IMAGE], [LABEL], colours)
    yield score_strip({name: {name: [0.1, 0.5], "b": [0.2]}}, metric=name, case=name)
    yield patch_places(IMAGE, LABEL, [(slice(0, 5), slice(0, 5))], colours)
    yield boundary_tolerance(LABEL > 0, LABEL[::-1] > 0, spacing=(1, 1), tolerance=1.0, unit=name)
    yield score_distribution({name: scores(name), "b": scores(name)})
    yield paired_differences(scores(name), scores(name).assign(dice=0.3), (name, name))


@pytest.mark.parametrize("name", ODD)
def test_every_picture_is_drawn_and_described(name):
    for picture in draw(name):
        assert Image.open(io.BytesIO(picture.png())).text["Description"] == picture.description
        picture.html().encode()
        assert "\x1b" not in picture.description


@pytest.mark.parametrize("name", ODD)
def test_legends_hold_every_name(name):
    figure = comparison(IMAGE, LABEL, LABEL, {name: "#0072B2"}).figure
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(entries) == 4 and entries[0] == plain(name)


@pytest.mark.parametrize("name", ["truth", "prediction", "errors", "image", "missed", "extra", "confused"])
def test_a_case_or_label_may_have_the_name_of_a_panel_or_an_error(name):
    figure = comparison(IMAGE, LABEL, LABEL[::-1], {name: "#0072B2"}, title=name).figure
    assert [axes.get_title() for axes in figure.axes] == [name, "truth", "prediction", "errors"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [name, "missed", "extra", "confused"]
    figure = patch_places(IMAGE, LABEL, [(slice(0, 5), slice(0, 5))], {"without": "#0072B2"}).figure
    assert len(figure.legends[0].get_texts()) == 3


def test_plain_names_are_drawn_as_they_are_written():
    picture = new_figure(2, 1)
    shown = picture.text(0, 0, plain("a $x$ and $y$"))
    assert shown._preprocess_math(shown.get_text()) == ("a $x$ and $y$", False)
    assert plain("liver") == "liver" and Picture(picture, "one\ntwo").description == "one\ntwo"


@pytest.mark.parametrize("name", ODD)
def test_a_page_holds_any_name(tmp_path, name):
    page = write_report(tmp_path / "page.html", {name: scores(name), "b": scores(name)}, title=name, notes=[name])
    text = page.read_text(encoding="utf-8")
    assert "\x1b" not in text and "<script" not in report_html({"<script>": scores(name)}, "<script>", {}, [])


@pytest.mark.parametrize("name", ODD)
def test_an_overlay_says_and_draws_any_name(name):
    shown = overlay(
        IMAGE, truth=LABEL, prediction=LABEL, label_names={name: 1}, channel_names=[name], title=name, credit=name
    )
    shown.describe().encode()
    assert "\x1b" not in shown.describe() and legend(shown, 2, 300).shape[1] == 300
