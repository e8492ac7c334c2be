"""How good a segmentation is: overlap, surface agreement and matched instances, as pure functions on NumPy arrays.

Surface measures follow Nikolov et al. 2018 (arXiv 1809.04430). A surface element sits between 2 x 2 x 2 voxels that
are not all alike, and weighs as much as the area of the boundary that crosses it. A 2-D mask is scored as the published
evaluations do it: as a sheet one voxel and one unit thick. Its top and bottom count as surface as well, so that the
inside of a flat mask adds to the score and 2-D values come out higher than those of the outline alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from xlstm_unet_lab.data.colours import PURPLE, VERMILION, YELLOW
from xlstm_unet_lab.ops.checks import array_of, as_array, checked_spacing, number, whole_number

# What codes 1, 2, 3 of an error map are called, and the colour each is shown in.
ERRORS = {"missed": YELLOW, "extra": VERMILION, "confused": PURPLE}
ERROR_COLOURS = dict(enumerate(ERRORS.values(), start=1))  # code -> colour
# Of every element of a surface: the distance to the other surface, in the unit of the spacing, and the area.
Surface = tuple[np.ndarray, np.ndarray]


class InstanceScore(NamedTuple):
    """Counts of matched and unmatched instances, and the F1 score they give."""

    tp: int  # instances of the truth that found their partner
    fp: int  # predicted instances without a partner
    fn: int  # instances of the truth without a partner
    f1: float  # 2 tp / (2 tp + fp + fn); 1.0 when there is nothing to find and nothing was predicted


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient 2 |P and T| / (|P| + |T|) of two masks of any equal shape (bool, or holding 0 and 1 only).

    Two empty masks agree: 1.0. Raises ValueError for unequal shapes and for other values.
    """
    prediction, truth = _checked_masks(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(prediction & truth) / total if total else 1.0


def error_map(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """0 right, 1 missed, 2 extra, 3 confused (both labelled, not alike), uint8. ValueError for shapes that differ."""
    _check_same_shape(prediction, truth)
    prediction, truth = array_of("prediction", prediction, "iub"), array_of("truth", truth, "iub")
    missed, extra = (truth > 0) & (prediction == 0), (truth == 0) & (prediction > 0)
    confused = (truth > 0) & (prediction > 0) & (truth != prediction)
    return (missed + 2 * extra + 3 * confused).astype(np.uint8)


def surface_dice(prediction: np.ndarray, truth: np.ndarray, *, spacing: Sequence[float], tolerance: float) -> float:
    """Share of both surfaces that lies within `tolerance` of the other one (normalised surface Dice, NSD).

    Masks are 2-D or 3-D, bool or holding 0 and 1 only; `spacing` has one size a dimension, in array order (z, y, x),
    and `tolerance` its unit. Both masks empty: 1.0; one of them empty: 0.0. Raises ValueError for unequal shapes, other
    values, a spacing that does not fit, and a tolerance that is negative or not finite. Source: arXiv 1809.04430.
    """
    tolerance = number("tolerance", tolerance, at_least=0, fix=", in the unit of the spacing")
    distances, areas = map(np.concatenate, zip(*_surfaces(prediction, truth, spacing), strict=True))
    return float(areas[distances <= tolerance].sum() / areas.sum()) if len(areas) else 1.0


def hausdorff95(prediction: np.ndarray, truth: np.ndarray, *, spacing: Sequence[float]) -> float:
    """Distance that 95% of each surface keeps to the other one: the larger of the two directions, elements by area.

    Masks and spacing as in `surface_dice`. Both masks empty: 0.0; one of them empty: infinity. Raises ValueError as
    `surface_dice` does.
    """
    surfaces = [(distances, areas) for distances, areas in _surfaces(prediction, truth, spacing) if len(areas)]
    reached = [np.quantile(distances, 0.95, weights=areas, method="inverted_cdf") for distances, areas in surfaces]
    return float(max(reached, default=0.0))


def instance_f1(prediction: np.ndarray, truth: np.ndarray, *, iou: float = 0.5, drop_border: int = 2) -> InstanceScore:
    """Count instances that overlap a partner with at least `iou` (one partner each, as many pairs as possible).

    Label images of integers, 0 for background, any equal shape. Instances that touch the outer `drop_border` pixels
    are removed from both images first; 0 keeps them. Raises TypeError for labels that are not integers, ValueError for
    unequal shapes, negative labels, an `iou` outside (0, 1] and a negative border.
    """
    _check_same_shape(prediction, truth)
    number("iou", iou, above=0, at_most=1, fix=": 0.5 is the usual threshold")
    whole_number("drop_border", drop_border, at_least=0, fix=", a width in pixels: 0 keeps all instances")
    prediction = _without_border(_checked_labels("prediction", prediction), drop_border)
    truth = _without_border(_checked_labels("truth", truth), drop_border)

    truth_ids, truth_index, truth_sizes = np.unique(truth.ravel(), return_inverse=True, return_counts=True)
    found_ids, found_index, found_sizes = np.unique(prediction.ravel(), return_inverse=True, return_counts=True)
    pairs, overlaps = np.unique(truth_index * len(found_ids) + found_index, return_counts=True)
    rows, columns = np.divmod(pairs, max(len(found_ids), 1))
    unions = truth_sizes[rows] + found_sizes[columns] - overlaps
    partners = (truth_ids[rows] > 0) & (found_ids[columns] > 0) & (overlaps / unions >= iou)

    ones, places = np.ones(partners.sum(), np.int8), (rows[partners], columns[partners])
    graph = csr_array((ones, places), shape=(len(truth_ids), len(found_ids)))
    tp = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()) if graph.nnz else 0
    fp, fn = int((found_ids > 0).sum()) - tp, int((truth_ids > 0).sum()) - tp
    return InstanceScore(tp, fp, fn, 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0)


def _without_border(labels: np.ndarray, width: int) -> np.ndarray:
    """The label image without the instances that reach into the outer `width` pixels."""
    if width == 0:
        return labels
    border = labels.copy()
    border[(slice(width, -width),) * labels.ndim] = 0
    return np.where(np.isin(labels, np.unique(border)), 0, labels)


def _surfaces(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> list[Surface]:
    """The surfaces of two masks: that of the prediction, then that of the truth; an empty one is infinitely far."""
    from monai.metrics.utils import get_mask_edges

    prediction, truth = _checked_masks(prediction, truth)
    if truth.ndim not in (2, 3):
        raise ValueError(f"surfaces need masks of 2 or 3 dimensions, got {truth.ndim}: drop channel and batch axes")
    spacing = checked_spacing(spacing, truth.ndim)
    if truth.ndim == 2:
        prediction, truth, spacing = prediction[None], truth[None], (1.0, *spacing)
    where, true_where, areas, true_areas = get_mask_edges(prediction, truth, spacing=spacing)
    surfaces = []
    for own, area, other in ((where, areas, true_where), (true_where, true_areas, where)):
        # MONAI's own distances are float32. Those of SciPy come from whole numbers of voxels: one voxel is exactly one
        # spacing, and so within a tolerance of one spacing.
        far = ndimage.distance_transform_edt(~other, sampling=spacing) if other.any() else np.full(other.shape, np.inf)
        surfaces.append((far[own], area[own].astype(float)))
    return surfaces


def _checked_masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _check_same_shape(prediction, truth)
    return _checked_mask("prediction", prediction), _checked_mask("truth", truth)


def _checked_mask(name: str, mask: np.ndarray) -> np.ndarray:
    mask = as_array(name, mask)
    if mask.dtype == bool:
        return mask
    if (other := np.unique(mask[(mask != 0) & (mask != 1)])).size:
        raise ValueError(f"{name} is no mask: it holds {other[:5].tolist()}, not 0 and 1; take {name} == {other[0]}")
    return mask == 1


def _checked_labels(name: str, labels: np.ndarray) -> np.ndarray:
    labels = array_of(name, labels, "iu")
    if labels.size and labels.min() < 0:
        raise ValueError(f"{name} holds {labels.min()}; instance labels must be 0 (background) or above")
    return labels


def _check_same_shape(prediction: np.ndarray, truth: np.ndarray) -> None:
    found, wanted = as_array("prediction", prediction).shape, as_array("truth", truth).shape
    if found != wanted:
        raise ValueError(f"prediction has shape {found}, truth {wanted}: they must be equal")
