"""The surface of what was found: a smooth triangle mesh around a mask."""

from collections.abc import Sequence

import numpy as np

from xlstm_unet_lab.ops.checks import array_of, checked_spacing

# Shares of the way to the middle of its neighbours that every corner goes, there and back again: steps of voxels go,
# and the volume stays. Ten times, with the numbers of Taubin 1995, A signal processing approach to fair surface design.
STEPS = 10 * (0.5, -0.53)


def surface(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth, closed mesh around a mask, as corners (N, 3) and triangles (M, 3) of places in them.

    mask: bool (z, y, x), True in at least one voxel; spacing in mm, in which the corners are given, (z, y, x) from the
    middle of the first voxel. Every piece has its part, however small. Raises ValueError for an empty mask and another
    spacing. Sources: Lorensen and Cline 1987; Lewiner et al. 2003; Taubin 1995.
    """
    from scipy.sparse import coo_array
    from skimage.measure import marching_cubes

    around = np.pad(array_of("mask", mask, "b", 3), 1).astype(np.float32)
    if not around.any():
        raise ValueError("mask is empty, expected True in at least one voxel: there is nothing to draw")
    corners, triangles, *_ = marching_cubes(around, 0.5, spacing=checked_spacing(spacing, 3))
    first, second = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).T
    meets = coo_array((np.ones(len(first)), (first, second))).tocsr()  # each side both ways: two triangles share it
    for step in STEPS:
        corners = corners + step * (meets @ corners / np.bincount(first)[:, None] - corners)
    return corners - np.asarray(spacing), triangles
