"""One HTML page that says how good the predictions are: tables with intervals, figures, and cases to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_unet_lab.data.colours import GREY
from xlstm_unet_lab.evaluation.report import compare, groups_of, paired, scores_in, summarise
from xlstm_unet_lab.figures.cases import score_strip
from xlstm_unet_lab.figures.picture import PALETTE, Picture, new_figure, plain
from xlstm_unet_lab.ops.checks import of_kind
from xlstm_unet_lab.ops.files import as_path, write_whole
from xlstm_unet_lab.ops.words import printable_lines

if TYPE_CHECKING:
    import pandas

STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
NAMES = {"dice": "Dice", "surface_dice": "Surface Dice", "instance_f1": "Instance F1"}
EXPLANATION = """Scores are means over cases, with the 95% percentile bootstrap interval of the mean in brackets. It
says how far the mean would vary with other cases of the same kind; it does not say how it would vary with another
training run. Differences are taken case by case; p is that of the Wilcoxon signed-rank test, not corrected for the
number of labels. The best, median and worst case are those by mean Dice over the labels."""
OF_GROUPS = """Cases of one group, such as the frames of one video or the scans of one patient, resemble each other.
Intervals are therefore those of other groups of the same kind, and p compares the groups' mean differences."""


def write_report(
    path: str | Path,
    tables: Mapping[str, pandas.DataFrame],
    *,
    title: str = "How good are the predictions?",
    overlays: Mapping[str, Picture] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the page, images and all, as one HTML file, whole or not at all; returns its path.

    tables: name of a model -> scores as `evaluate_cases` gives them; every further model is compared with the first
    over the same cases. overlays: caption -> picture, as `cases.case_picture` draws those that `notable_cases` names.
    notes: paragraphs for the top, such as the data's licence. Raises ValueError for no table or one without scores, and
    for models with other cases, as `compare` does.
    """
    import pandas

    of_kind("tables", tables, Mapping, fix=": name of a model -> scores")
    for name, table in tables.items():
        of_kind(f"the table of {name!r}", table, pandas.DataFrame)
    of_kind("overlays", overlays, Mapping, type(None), fix=": caption -> picture")
    of_kind("notes", notes, list, tuple)
    page = printable_lines(report_html(tables, title, overlays or {}, notes))
    return write_whole(as_path("path", path), page.encode())


def report_html(
    tables: Mapping[str, pandas.DataFrame], title: str, overlays: Mapping[str, Picture], notes: Sequence[str]
) -> str:
    """The page as text; arguments and errors as in `write_report`."""
    if not tables or not all(len(table) and scores_in(table) for table in tables.values()):
        raise ValueError(f"tables {list(tables)} must hold scores of at least one model, as evaluate_cases gives them")
    (first, reference), *others = tables.items()
    shared = [score for score in scores_in(reference) if all(score in scores_in(table) for table in tables.values())]
    grouped = "group" in reference
    groups = f" in {groups_of(reference).nunique()} groups" if grouped else ""
    cases = f"{reference['case'].nunique()} cases{groups}"
    parts = [f"<p>{escape(note)}</p>" for note in (f"{cases}; models: {', '.join(tables)}.", *notes)]
    parts += ["<h2>Scores</h2>", _table(score_table(tables))]
    parts += [_figure(score_distribution(tables, score)) for score in shared]
    for name, table in others:
        parts.append(f"<h2>{escape(first)} against {escape(name)}</h2>")
        for score in shared:
            differences = compare(reference, table, score=score).rename(columns={"mean_a": first, "mean_b": name})
            parts += [f"<h3>{NAMES[score]}</h3>", _table(differences)]
            parts.append(_figure(paired_differences(reference, table, (first, name), score)))
    if overlays:
        parts += ["<h2>Cases</h2>", *(_figure(picture, caption) for caption, picture in overlays.items())]
    parts.append("<h2>Every case</h2>")
    parts += [f"<details><summary>{escape(name)}</summary>{_table(table)}</details>" for name, table in tables.items()]
    parts.append(f"<h2>How to read this</h2><p>{EXPLANATION}{' ' + OF_GROUPS if grouped else ''}</p>")
    return html_page(title, parts)


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page of these parts, which are HTML already, below its title."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>{body}\n</body></html>\n'


def score_table(tables: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Mean and interval of every score as text, one row for each label and model, the models of a label together."""
    import pandas

    rows: dict[str, dict[str, dict]] = {}  # by label and model
    for model, table in tables.items():
        for row in summarise(table).to_dict("records"):
            entry = rows.setdefault(row["label"], {}).setdefault(model, {"label": row["label"], "model": model})
            entry[NAMES[row["score"]]] = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return pandas.DataFrame([entry for models in rows.values() for entry in models.values()]).fillna("")


def score_distribution(tables: Mapping[str, pandas.DataFrame], score: str = "dice") -> Picture:
    """Every case as a dot, the median as a bar, one row a label and model, one colour a model."""
    import pandas

    rows = pandas.concat([table.assign(model=model) for model, table in tables.items()]).dropna(subset=score)
    scores: dict[str, dict] = {}
    for (label, model), values in rows.groupby(["label", "model"], sort=False)[score]:
        scores.setdefault(label, {})[model] = values
    return score_strip(scores, NAMES[score], "case", "median")


def paired_differences(
    table_a: pandas.DataFrame, table_b: pandas.DataFrame, models: tuple[str, str], score: str = "dice"
) -> Picture:
    """The difference of two models in every case, one row a label, with mean and 95% interval. Errors: `compare`."""
    import seaborn

    both, means = paired(table_a, table_b, score), compare(table_a, table_b, score=score)
    figure = new_figure(8, 1.2 + 0.45 * len(means))
    axes = figure.add_subplot()
    data = both.assign(difference=both["a"] - both["b"], label=both["label"].map(plain))
    seaborn.stripplot(data, x="difference", y="label", orient="h", color=PALETTE[0], size=4, alpha=0.5, ax=axes)
    for place, row in enumerate(means.itertuples()):
        axes.plot([row.low, row.high], [place + 0.3] * 2, color="black", linewidth=2)
        axes.plot(row.difference, place + 0.3, "D", color="black", markersize=5)
    axes.axvline(0, color=GREY, linewidth=1)
    first, second = models
    axes.set(xlabel=plain(f"{NAMES[score]} of {first} minus {second}; diamond: mean, bar: 95% interval"), ylabel="")
    lines = [
        f"{row.label}: {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}], higher in {row.wins} of {row.cases}"
        for row in means.itertuples()
    ]
    return Picture(figure, f"{NAMES[score]} of {first} minus {second}, case by case. {'; '.join(lines)}.")


def _table(frame: pandas.DataFrame) -> str:
    return frame.to_html(index=False, border=0, na_rep="", float_format=_number)


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def _figure(picture: Picture, caption: str = "") -> str:
    words = escape(f"{caption}. {picture.description}" if caption else picture.description)
    return f"<figure>{picture.html()}<figcaption>{words}</figcaption></figure>"
