"""From interior and boundary, which a network predicts, back to one number an object."""

from __future__ import annotations

import numpy as np

from xlstm_unet_lab.data.instance_labels import BOUNDARY, INTERIOR, LABELS
from xlstm_unet_lab.ops.checks import array_of

SMALLEST = 10  # pixels or voxels; what is smaller is taken for noise
TOLERANCE = 1e-3  # by which probabilities, and the sum of those of exclusive classes, may miss 1
CERTAIN = 0.5  # probability of the interior from which on an object begins


def instances_from_classes(classes: np.ndarray, *, smallest: int = SMALLEST) -> np.ndarray:
    """Number the objects: every connected interior grows back over the boundary around it until it meets another.

    classes: labels (*spatial), integers, 0 background, 1 interior, 2 boundary; or their probabilities (3, *spatial),
    floats: then an interior begins where it is more probable than the rest together, and objects meet where the
    boundary is most probable instead of half way. 2-D or 3-D. Positions that touch at a corner are connected. A
    boundary that reaches no interior, and an object of fewer than `smallest` positions, become background.
    Returns int32 (*spatial), 0 background, objects numbered from 1 without gaps.
    Raises ValueError for other values or shapes, TypeError for another dtype.
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    classes = array_of("classes", classes, "iubf", 2, 3, 4)
    if classes.dtype.kind in "iub":
        unknown = sorted(set(np.unique(classes).tolist()) - set(LABELS.values()))
        if unknown or classes.ndim not in (2, 3):
            raise ValueError(f"labels {classes.shape} hold {unknown[:5]}; expected 2-D or 3-D, values {LABELS}")
        interior, foreground = classes == INTERIOR, classes != 0
        relief = ndimage.distance_transform_edt(~interior)
    else:
        if len(classes) != len(LABELS) or classes.ndim not in (3, 4):
            raise ValueError(f"probabilities have shape {classes.shape}; expected (3, *spatial) for {list(LABELS)}")
        check_shares(classes)
        interior, foreground = classes[INTERIOR] > CERTAIN, classes[0] < 1 - CERTAIN
        relief = classes[BOUNDARY] - classes[INTERIOR]
    everywhere = np.ones((3,) * interior.ndim)
    seeds, _ = ndimage.label(interior, structure=everywhere)
    objects = watershed(relief, seeds, mask=foreground, connectivity=everywhere)
    sizes = np.bincount(objects.ravel())
    sizes[0] = 0
    kept = sizes >= max(smallest, 1)
    numbers = np.where(kept, np.cumsum(kept), 0)
    return numbers[objects].astype(np.int32)


def check_shares(probabilities: np.ndarray) -> None:
    """ValueError for probabilities outside [0, 1], of which resampling in float32 may miss a little."""
    low, high = probabilities.min(), probabilities.max()
    if not (low >= 0 and high <= 1 + TOLERANCE):  # NaN fails as well
        raise ValueError(f"probabilities run from {low:.3g} to {high:.3g}; expected 0 to 1, as softmax gives them")
