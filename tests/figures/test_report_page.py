"""The page: complete in one file, with its words beside every figure, and the numbers of the tables."""

import re

import numpy as np
import pandas as pd
import pytest

from xlstm_unet_lab.evaluation.report import compare, summarise
from xlstm_unet_lab.figures.cases import case_picture
from xlstm_unet_lab.figures.report_page import paired_differences, score_distribution, score_table, write_report
from xlstm_unet_lab.overlays.description import overlay


def scores(seed, cases=8):
    random = np.random.default_rng(seed)
    labels = ("liver", "spleen & co", "foreground")
    rows = [(f"case {n}", label, *random.uniform(0.3, 1, 2), 2.5) for n in range(cases) for label in labels]
    return pd.DataFrame(rows, columns=["case", "label", "dice", "surface_dice", "hd95_mm"])


def images_of(page):
    return re.findall(r"<img [^>]*>", page)


def test_the_page_holds_everything(tmp_path):
    tables = {"xlstm": scores(0), "unet <plain>": scores(1)}
    label = np.zeros((5, 8, 8), int)
    label[2, 2:5, 2:5] = 1
    picture = case_picture(overlay(np.zeros((1, 5, 8, 8)), truth=label, prediction=label, title="case 3"))
    path = write_report(
        tmp_path / "report.html", tables, title="A & B", overlays={"best": picture}, notes=["Data: CC0 <here>"]
    )
    page = path.read_text()
    assert list(tmp_path.iterdir()) == [path]
    assert "<title>A &amp; B</title>" in page and "Data: CC0 &lt;here&gt;" in page and "unet &lt;plain&gt;" in page
    assert "<plain>" not in page and "8 cases" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is fetched from elsewhere"
    images = images_of(page)
    assert len(images) == 5  # a distribution and a comparison for each of two scores, and the overlay
    assert all(re.search(r'alt="[^"]{40,}"', image) and 'src="data:image/png;base64,' in image for image in images)
    row = summarise(tables["xlstm"]).iloc[0]
    assert f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in page
    assert f"{compare(*tables.values())['difference'][0]:.3f}" in page
    assert page.count("<details>") == 2


def test_models_of_a_label_stand_together_and_small_numbers_stay_numbers(tmp_path):
    table = score_table({"a": scores(0), "b": scores(1)})
    assert table["model"].tolist() == ["a", "b"] * 3 and table["label"][:2].tolist() == ["liver"] * 2
    plain = scores(0, cases=12).drop(columns="surface_dice")
    page = write_report(tmp_path / "r.html", {"a": plain.assign(dice=plain["dice"] + 0.1), "b": plain}).read_text()
    assert f"<td>{2 / 2**12:.1e}</td>" in page, "a small p is no 0"


def test_one_model_is_compared_with_nothing(tmp_path):
    page = write_report(tmp_path / "r.html", {"only": scores(0).drop(columns="surface_dice")}).read_text()
    assert len(images_of(page)) == 1 and "against" not in page


def test_figures_say_their_numbers():
    tables = {"a": scores(0), "b": scores(1)}
    liver = tables["a"][tables["a"]["label"] == "liver"]["dice"]
    text = score_distribution(tables).description
    assert "Dice of 8 cases" in text and f"a, liver: median {liver.median():.2f}, from {liver.min():.2f}" in text
    row = compare(*tables.values()).iloc[0]
    text = paired_differences(*tables.values(), ("a", "b")).description
    assert f"liver: {row['difference']:+.3f}" in text and f"higher in {row['wins']} of 8" in text


def test_groups_are_named_and_explained(tmp_path):
    plain = write_report(tmp_path / "r.html", {"a": scores(0)}).read_text()
    table = scores(0).assign(group=lambda table: "video " + (table["case"] > "case 4").astype(str))
    page = write_report(tmp_path / "r.html", {"a": table, "b": table}).read_text()
    assert "8 cases in 2 groups; models" in page and "Cases of one group" in page and "<td>video True</td>" in page
    assert "8 cases; models" in plain and "Cases of one group" not in plain


def test_a_report_that_is_stopped_leaves_nothing_or_the_old_one(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    for before in ({}, {tmp_path / "r.html": b"of yesterday"}):
        for path, content in before.items():
            path.write_bytes(content)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.fsync", stop)
            write_report(tmp_path / "r.html", {"a": scores(1)})
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "at least one model"),
        ({"a": scores(0)[["case", "label"]]}, "at least one model"),
        ({"a": scores(0), "b": scores(1, cases=5)}, "only one of the tables has"),
    ],
)
def test_bad_tables(tmp_path, tables, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "r.html", tables)
    assert not list(tmp_path.iterdir())
