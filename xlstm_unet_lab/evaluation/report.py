"""Scores as tables: of one case, of many, with intervals, and of two models side by side."""

import warnings
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas

from xlstm_unet_lab.evaluation.metrics import dice, hausdorff95, instance_f1, surface_dice
from xlstm_unet_lab.ops import checks

LEVEL, SAMPLES = 0.95, 2000  # confidence of an interval, and how many sets of values are drawn for it
LENIENT = 3.0  # mm
FOREGROUND = "foreground"
SCORES = ("dice", "surface_dice", "instance_f1")  # between 0 and 1, the more the better


@dataclass(frozen=True)
class Outcome:
    """What was predicted for one case and what is true; instance maps where there are some."""

    name: str
    prediction: np.ndarray  # integers (*spatial)
    truth: np.ndarray
    spacing: Sequence[float]  # in the order of the axes
    predicted_instances: np.ndarray | None = None  # integers (*spatial), every object its own number
    true_instances: np.ndarray | None = None
    group: str | None = None  # a video or a patient that it shares with other cases; None: it stands alone


def evaluate(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: Sequence[float],
    labels: Mapping[str, int | Sequence[int]],
    tolerance: float | Mapping[str, float] | None = None,
    unit: str = "mm",
    labelled_slices_only: Collection[str] = (),
) -> pandas.DataFrame:
    """A table of Dice, surface Dice, HD95 and size for each label, and for the foreground as a whole.

    prediction, truth: integers (*spatial), 2-D or 3-D; spacing: size of a voxel in `unit`, in array order (z, y, x);
    labels: name -> value, or the values of a region, as `recipe.targets.foreground` has them; background (0) is left
    out. `tolerance` of surface Dice, in `unit`: one number, one for each label name (the foreground takes the smallest
    of them unless it is named), or None for the largest voxel size, with a warning above 3 mm, which is lenient.
    labelled_slices_only: names of labels whose three scores count from the first to the last slice (first axis) that
    the truth labels, as published for vessels and the oesophagus, which are marked over a part of their length; where
    the truth has none, every slice counts. A label that is neither predicted nor true scores 1.
    Columns: label, value (none for regions of several and the foreground), dice, surface_dice, tolerance_mm, hd95_mm,
    volume_truth_mm3 and volume_prediction_mm3; for images area_truth_mm2 and area_prediction_mm2; the unit "pixel"
    changes the names.
    Raises TypeError for labels that are no integers, ValueError for another unit, unequal shapes, values without a
    label, a label without a tolerance, a name in labelled_slices_only that is no label, and as the metrics do.
    """
    prediction, truth = checks.array_of("prediction", prediction, "iub"), checks.array_of("truth", truth, "iub")
    spacing = checks.checked_spacing(spacing, truth.ndim)
    checks.one_of("unit", unit, checks.UNITS)
    checks.of_kind("labels", labels, Mapping, fix=": name -> label value, as in {'liver': 1}")
    for name in labels:
        checks.of_kind("a name in labels", name, str)
    every = {name: checks.members(f"the label {name!r}", value) for name, value in labels.items()}
    if not (foreground := {name: values for name, values in every.items() if values != (0,)}):
        raise ValueError(f"labels={dict(labels)} names no label above 0: there is nothing to score")
    known = tuple(sorted({value for values in foreground.values() for value in values}))
    for what, array in (("prediction", prediction), ("truth", truth)):
        if unknown := sorted(set(np.unique(array).tolist()) - {0, *known}):
            raise ValueError(f"{what} holds {unknown[:5]}, which no label has: known are {dict(labels)} and 0")
    if FOREGROUND in foreground and len(foreground) > 1:
        raise ValueError(f"a label may be called {FOREGROUND!r} only if it is the only one, got {list(foreground)}")
    checks.of_kind("labelled_slices_only", labelled_slices_only, list, tuple, set, frozenset)
    if strangers := [name for name in labelled_slices_only if not (isinstance(name, str) and name in foreground)]:
        raise ValueError(f"labelled_slices_only={strangers} are no labels: there are {list(foreground)}")
    tolerances = _tolerances(tolerance, foreground, spacing)
    if tolerance is None:
        warn_if_lenient(max(spacing), unit)

    size_name = {2: "area", 3: "volume"}.get(truth.ndim, "size")
    rows = []
    for name, values in (foreground | {FOREGROUND: known}).items():
        found, wanted = np.isin(prediction, values), np.isin(truth, values)
        sizes = [np.count_nonzero(mask) * float(np.prod(spacing)) for mask in (wanted, found)]
        if name in labelled_slices_only and wanted.any():
            labelled = np.flatnonzero(wanted.any(axis=tuple(range(1, wanted.ndim))))
            found, wanted = (mask[labelled[0] : labelled[-1] + 1] for mask in (found, wanted))
        row = {"label": name, "value": values[0] if name in labels and len(values) == 1 else None}
        row |= {"dice": dice(found, wanted)}
        row |= {"surface_dice": surface_dice(found, wanted, spacing=spacing, tolerance=tolerances[name])}
        row |= {f"tolerance_{unit}": tolerances[name], f"hd95_{unit}": hausdorff95(found, wanted, spacing=spacing)}
        named = zip(("truth", "prediction"), sizes, strict=True)
        rows.append(row | {f"{size_name}_{which}_{unit}{truth.ndim}": size for which, size in named})
    return pandas.DataFrame(rows).astype({"value": "Int64"})


def evaluate_cases(outcomes: Iterable[Outcome], *, labels: Mapping, **options) -> pandas.DataFrame:
    """The tables of `evaluate` for many cases, one below the other, with the case's name as first column.

    outcomes: read one after the other, so a generator holds one case in memory. labels and options as in `evaluate`.
    Where a case has both instance maps, its foreground row also has instance_tp, instance_fp, instance_fn and
    instance_f1 (matched at IoU 0.5, objects at the border left out). Where cases have a group, so has the table, as its
    second column. Raises ValueError for no case, two cases of one name, and, naming the case, as `evaluate` does.
    """
    tables = {}
    for outcome in outcomes:
        if outcome.name in tables:
            raise ValueError(f"case {outcome.name!r} is there twice: names must differ")
        try:
            table = evaluate(outcome.prediction, outcome.truth, spacing=outcome.spacing, labels=labels, **options)
            if outcome.predicted_instances is not None and outcome.true_instances is not None:
                for what, value in instance_f1(outcome.predicted_instances, outcome.true_instances)._asdict().items():
                    table.loc[table["label"] == FOREGROUND, f"instance_{what}"] = value
        except (TypeError, ValueError) as error:
            raise type(error)(f"case {outcome.name}: {error}") from error
        table.insert(0, "case", outcome.name)
        if outcome.group is not None:
            table.insert(1, "group", outcome.group)
        tables[outcome.name] = table
    if not tables:
        raise ValueError("outcomes is empty: there is nothing to evaluate")
    return pandas.concat(tables.values(), ignore_index=True)


def bootstrap_interval(values: Sequence[float], *, groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """An interval (low, high) for the mean over all cases of this kind, of confidence LEVEL: percentile bootstrap.

    SAMPLES sets of as many values are drawn with replacement, and the middle LEVEL of their means is given; with
    fewer than about 10 values it is too narrow. `groups` names the group of each value, such as the video of a frame:
    values of one group resemble each other, so whole groups are drawn, and it is their number that counts.
    Raises TypeError for what are no numbers, ValueError for none or one that is not finite, and groups of another
    number. The same values have the same interval every time. Source: Efron and Tibshirani 1993, An Introduction to the
    Bootstrap, ch. 13; of groups: Davison and Hinkley 1997, Bootstrap Methods and their Application, sec. 3.8.
    """
    values = checks.array_of("values", values, "iuf", 1)
    if len(bad := values[~np.isfinite(values)]):
        raise ValueError(f"values holds {bad[:5]}, expected finite numbers, one a case: leave those cases out")
    names = range(len(values)) if groups is None else checks.as_array("groups", groups).astype(str).ravel().tolist()
    if len(names) != len(values):
        raise ValueError(f"groups name {len(names)} values, there are {len(values)}: give a group for each of them")
    places, _ = pandas.factorize(np.asarray(names))
    totals, counts = np.bincount(places, values), np.bincount(places)
    drawn = np.random.default_rng(0).integers(len(totals), size=(SAMPLES, len(totals)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def summarise(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and 95% interval over cases of every score of every label: label, score, cases, mean, low, high.

    table: as `evaluate_cases` gives it; where it has groups, intervals are those of whole groups and `groups` says how
    many there are. Distances are left out: their mean is infinite once a prediction is empty.
    """
    rows = []
    for label, part in table.groupby("label", sort=False):
        for score in scores_in(part):
            scored = part.dropna(subset=score)
            values, groups = scored[score], groups_of(scored)
            low, high = bootstrap_interval(values, groups=groups)
            shared = {"label": label, "score": score, "cases": len(values)}
            shared |= {"groups": groups.nunique()} if "group" in table else {}
            rows.append(shared | {"mean": values.mean(), "low": low, "high": high})
    return pandas.DataFrame(rows)


def groups_of(table: pandas.DataFrame) -> pandas.Series:
    """The group of every row; a case that has none stands for itself."""
    return table["group"].fillna(table["case"]) if "group" in table else table["case"]


def scores_in(table: pandas.DataFrame) -> list[str]:
    """Which of `SCORES` a table has values of."""
    return [score for score in SCORES if score in table and table[score].notna().any()]


def compare(table_a: pandas.DataFrame, table_b: pandas.DataFrame, *, score: str = "dice") -> pandas.DataFrame:
    """Two models over the same cases, case by case: one row a label.

    Columns: label, cases, mean_a, mean_b, difference (mean of a minus b) with its 95% interval low and high, p_value
    (Wilcoxon signed-rank test, two-sided, 1 where all are equal; not corrected for looking at several labels), and in
    how many cases a is higher (wins), equal (ties) or lower (losses). Where table a has groups, the interval is that of
    whole groups and the test compares their mean differences. Raises ValueError for a score without values,
    cases or labels that only one table has, and values that are not finite.
    """
    from scipy.stats import wilcoxon  # half a second

    both = paired(table_a, table_b, score)
    rows = []
    for label, part in both.groupby("label", sort=False):
        differences = (part["a"] - part["b"]).to_numpy()
        low, high = bootstrap_interval(differences, groups=part["group"])
        of_groups = (part["a"] - part["b"]).groupby(part["group"]).mean()
        row = {"label": label, "cases": len(part), "mean_a": part["a"].mean(), "mean_b": part["b"].mean()}
        row |= {"difference": differences.mean(), "low": low, "high": high}
        row |= {"p_value": float(wilcoxon(of_groups).pvalue) if of_groups.any() else 1.0}
        counts = {"wins": differences > 0, "ties": differences == 0, "losses": differences < 0}
        rows.append(row | {what: int(which.sum()) for what, which in counts.items()})
    return pandas.DataFrame(rows)


def paired(table_a: pandas.DataFrame, table_b: pandas.DataFrame, score: str) -> pandas.DataFrame:
    """One row for each case and label: case, label, scores a and b of both tables, group (as `groups_of` table a).

    Errors as in `compare`.
    """
    sides = []
    for name, table in (("a", table_a), ("b", table_b)):
        if score not in table or not table[score].notna().any():
            raise ValueError(f"table {name} has no values of {score!r}: it has {scores_in(table)}")
        sides.append(table.dropna(subset=score).set_index(["case", "label"])[score].rename(name))
    only = sides[0].index.symmetric_difference(sides[1].index)
    if len(only):
        raise ValueError(f"only one of the tables has {only[:3].tolist()}: compare scores of the same cases and labels")
    both = sides[0].to_frame().join(sides[1]).reset_index()
    both["group"] = both["case"].map(dict(zip(table_a["case"], groups_of(table_a), strict=True)))
    if not np.isfinite(both[["a", "b"]]).all(axis=None):
        raise ValueError(f"{score} is not finite everywhere, so that there is no mean: compare one of {SCORES}")
    return both


def notable_cases(table: pandas.DataFrame, score: str = "dice") -> dict[str, str]:
    """The names of the "best", the "median" and the "worst" case by the mean of a score over its labels."""
    labels = table[table["label"] != FOREGROUND]
    means = (labels if len(labels) else table).groupby("case")[score].mean().sort_values(kind="stable")
    return {"best": means.index[-1], "median": means.index[len(means) // 2], "worst": means.index[0]}


def warn_if_lenient(tolerance: float, unit: str) -> None:
    """Warn of a tolerance of surface Dice that nobody chose, where it forgives much."""
    if unit == "mm" and tolerance > LENIENT:
        forgiven = f"surface Dice forgives {tolerance:g} mm, the longest side of a voxel"
        warnings.warn(f"{forgiven}: above {LENIENT:g} mm give a tolerance that fits the structure", stacklevel=3)


def _tolerances(
    tolerance: float | Mapping[str, float] | None, foreground: Collection[str], spacing: Sequence[float]
) -> dict[str, float]:
    if not isinstance(tolerance, Mapping):
        number = max(spacing) if tolerance is None else checks.number("tolerance", tolerance, at_least=0)
        tolerance = dict.fromkeys(foreground, number)
    if missing := [name for name in foreground if name not in tolerance]:
        raise ValueError(f"tolerance has no number for {missing}: give one for each label, or one number for all")
    named = [name for name in (*foreground, FOREGROUND) if name in tolerance]
    given = {name: checks.number(f"tolerance of {name!r}", tolerance[name], at_least=0) for name in named}
    return {FOREGROUND: min(given[name] for name in foreground)} | given
