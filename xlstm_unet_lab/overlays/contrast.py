"""Which intensities of an image are shown black and white, in pictures, napari and the slicer alike."""

import numpy as np

PERCENTILES = (0.5, 99.5)  # of the intensities shown; single bright voxels would leave the rest black
SAMPLED = 10**6  # voxels are enough to estimate percentiles; sorting all of a large volume takes seconds


def contrast(image: np.ndarray) -> tuple[float, float]:
    """The intensities of an image, of any shape, that are shown black and white; the second is above the first.

    They are those of `PERCENTILES`. Where these are one, as in an image that is black but for a few voxels, darkest and
    brightest are taken, and of a constant image its value and the next whole step.
    """
    values = image.reshape(-1)
    low, high = np.percentile(values[:: max(1, values.size // SAMPLED)], PERCENTILES)
    if high == low:
        low, high = values.min(), values.max()
    return float(low), float(high if high > low else low + 1)
