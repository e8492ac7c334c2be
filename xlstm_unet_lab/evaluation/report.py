"""Scores of one segmentation as a table, one row a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xlstm_unet_lab.evaluation.metrics import dice, hausdorff95, surface_dice

if TYPE_CHECKING:
    import pandas

FOREGROUND = "foreground"


def evaluate(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    spacing: Sequence[float],
    labels: Mapping[str, int],
    tolerance: float | Mapping[str, float] | None = None,
    unit: str = "mm",
) -> pandas.DataFrame:
    """A table of Dice, surface Dice, HD95 and size for each label, and for the foreground as a whole.

    prediction, truth: integers (*spatial), 2-D or 3-D; spacing: size of a voxel in `unit`, in array order (z, y, x);
    labels: name -> value, background (0) is left out. `tolerance` of surface Dice, in `unit`: one number, one for each
    label name (the foreground takes the smallest of them unless it is named), or None for the largest voxel size.
    Columns: label, value (none for the foreground), dice, surface_dice, tolerance_mm, hd95_mm, volume_truth_mm3 and
    volume_prediction_mm3; for images area_truth_mm2 and area_prediction_mm2; another unit changes the names.
    Raises ValueError for unequal shapes, values without a label, a label without a tolerance, and as the metrics do.
    """
    from pandas import DataFrame

    prediction, truth = np.asarray(prediction), np.asarray(truth)
    foreground = {name: value for name, value in labels.items() if value != 0}
    if not foreground:
        raise ValueError(f"labels={dict(labels)} names no label above 0: there is nothing to score")
    _check_values("prediction", prediction, foreground)
    _check_values("truth", truth, foreground)
    values = {name: (value,) for name, value in foreground.items()} | {FOREGROUND: tuple(foreground.values())}
    if FOREGROUND in foreground and len(foreground) > 1:
        raise ValueError(f"a label may be called {FOREGROUND!r} only if it is the only one, got {list(foreground)}")
    tolerances = _tolerances(tolerance, foreground, spacing)

    size_name = {2: "area", 3: "volume"}.get(truth.ndim, "size")
    size_unit = f"{unit}{truth.ndim}"
    rows = []
    for name, members in values.items():
        found, wanted = np.isin(prediction, members), np.isin(truth, members)
        rows.append(
            {
                "label": name,
                "value": foreground.get(name),
                "dice": dice(found, wanted),
                "surface_dice": surface_dice(found, wanted, spacing=spacing, tolerance=tolerances[name]),
                f"tolerance_{unit}": tolerances[name],
                f"hd95_{unit}": hausdorff95(found, wanted, spacing=spacing),
                f"{size_name}_truth_{size_unit}": np.count_nonzero(wanted) * float(np.prod(spacing)),
                f"{size_name}_prediction_{size_unit}": np.count_nonzero(found) * float(np.prod(spacing)),
            }
        )
    return DataFrame(rows).astype({"value": "Int64"})


def _tolerances(
    tolerance: float | Mapping[str, float] | None, foreground: Mapping[str, int], spacing: Sequence[float]
) -> dict[str, float]:
    names = [*foreground, FOREGROUND]
    if tolerance is None:
        return dict.fromkeys(names, float(np.max(spacing)))
    if not isinstance(tolerance, Mapping):
        return dict.fromkeys(names, float(tolerance))
    missing = [name for name in foreground if name not in tolerance]
    if missing:
        raise ValueError(f"tolerance has no number for {missing}: give one for each label, or one number for all")
    return {FOREGROUND: float(min(tolerance[name] for name in foreground))} | {
        name: float(tolerance[name]) for name in names if name in tolerance
    }


def _check_values(name: str, array: np.ndarray, foreground: Mapping[str, int]) -> None:
    if array.dtype.kind not in "iub":
        raise ValueError(f"{name} has dtype {array.dtype}; expected integer labels, as {name}.astype(int) gives")
    unknown = sorted(set(np.unique(array).tolist()) - {0, *foreground.values()})
    if unknown:
        raise ValueError(f"{name} holds {unknown[:5]}, which no label has: known are {dict(foreground)} and 0")
