"""The intensities of an image as a network sees them: every channel with mean 0 and standard deviation 1."""

from __future__ import annotations

import numpy as np

from xlstm_unet_lab.ops.checks import array_of, finite, of_kind

NORMALISED = 2  # count up when `normalise` or what is read gives other numbers: cases kept on disk are then made anew
CONSTANT_BELOW = 1e-6  # a channel whose deviation is this small beside its largest value varies by rounding only


def normalise(image: np.ndarray) -> np.ndarray:
    """Shift and scale every channel of one image to mean 0 and standard deviation 1.

    image (C, *spatial), 2 or 3 spatial axes, any integer or floating dtype; returns float32 of the same shape.
    Channels are treated apart, because the sequences of an MRI differ in scale by orders of magnitude. For a colour
    image this takes away the overall tint (stain, lamp) and keeps every difference of colour between two places.
    Applied twice it gives what it gave once, up to rounding. A constant channel becomes zeros.
    Raises TypeError for what is not a real array, ValueError for another rank, no elements, NaN or infinity.
    """
    of_kind("image", image, np.ndarray, fix=" of NumPy's")
    if array_of("image", image, "iuf").ndim not in (3, 4) or image.size == 0:
        raise ValueError(f"image has shape {image.shape}; give (C, y, x) or (C, z, y, x), for one channel image[None]")
    finite("image", image)
    result = np.zeros(image.shape, np.float32)
    for source, target in zip(image, result, strict=True):
        channel = source.astype(np.float64)
        channel /= np.abs(channel).max() or 1.0  # values near the end of the float range would overflow when squared
        deviation = channel.std()
        if deviation > CONSTANT_BELOW:
            target[...] = (channel - channel.mean()) / deviation
    return result
