"""One HTML page that says how good the predictions are: tables with intervals, figures, and cases to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_unet_lab.data.colours import GREY
from xlstm_unet_lab.evaluation.report import compare, groups_of, paired, scores_in, summarise
from xlstm_unet_lab.figures.picture import PALETTE, Picture, new_figure, plain
from xlstm_unet_lab.ops.checks import of_kind
from xlstm_unet_lab.ops.files import as_path, write_whole
from xlstm_unet_lab.ops.words import printable_lines

if TYPE_CHECKING:
    import pandas

NAMES = {"dice": "Dice", "surface_dice": "Surface Dice", "instance_f1": "Instance F1"}
STYLE = """
body { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: white; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: 0.25rem 0.8rem; text-align: right; border-bottom: 1px solid #ccc; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { color: #444; }
"""
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

    rows: dict[tuple[str, str], dict] = {}
    for model, table in tables.items():
        for row in summarise(table).to_dict("records"):
            entry = rows.setdefault((row["label"], model), {"label": row["label"], "model": model})
            entry[NAMES[row["score"]]] = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    labels = list(dict.fromkeys(label for label, _ in rows))
    together = sorted(rows.values(), key=lambda entry: labels.index(entry["label"]))
    return pandas.DataFrame(together).fillna("")


def score_distribution(tables: Mapping[str, pandas.DataFrame], score: str = "dice") -> Picture:
    """Every case as a dot and the quartiles as a box, one row a label, one colour a model."""
    import pandas
    import seaborn

    data = pandas.concat([table.assign(model=model) for model, table in tables.items()]).dropna(subset=score)
    labels = data["label"].unique()
    figure = new_figure(8, 1.2 + 0.4 * len(labels) * len(tables))
    axes = figure.add_subplot()
    named = data.assign(label=data["label"].map(plain), model=data["model"].map(plain))
    shared = {"data": named, "x": score, "y": "label", "hue": "model", "orient": "h", "ax": axes}
    shared["palette"] = [PALETTE[place % len(PALETTE)] for place in range(len(tables))]
    seaborn.boxplot(**shared, showfliers=False, fill=False, linewidth=1)
    seaborn.stripplot(**shared, dodge=True, size=3, alpha=0.6, legend=False)
    axes.set(xlabel=f"{NAMES[score]}, one dot a case, box: quartiles", ylabel="", xlim=(-0.02, 1.02))
    axes.legend(fontsize=8, frameon=False)
    groups = data.groupby(["model", "label"], sort=False)[score]
    lines = [
        f"{model}, {label}: median {values.median():.2f}, from {values.min():.2f} to {values.max():.2f}"
        for (model, label), values in groups
    ]
    return Picture(figure, f"{NAMES[score]} of {data['case'].nunique()} cases. {'; '.join(lines)}.")


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
