"""The intensities of an image as a network sees them: every channel with mean 0 and standard deviation 1."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from xlstm_unet_lab.ops.checks import array_of, finite, of_kind

NORMALISED = 2  # count up when `normalise` or what is read gives other numbers: cases kept on disk are then made anew
CONSTANT_BELOW = 1e-6  # a channel whose deviation is this small beside its largest value varies by rounding only
# How arrays are gone through: so many values are in memory as float64 at once.
IN_PIECES: dict[str, Any] = {"flags": ["external_loop", "buffered"], "casting": "same_kind", "buffersize": 2**16}


class Normalised:
    """What `normalise` makes of an image, of which only the parts that are asked for are in memory.

    `shape` is the image's; a part is cut out as of an array, [:, rows, columns], and is float32. Errors as there.
    """

    def __init__(self, image: np.ndarray):
        of_kind("image", image, np.ndarray, fix=" of NumPy's")
        if array_of("image", image, "iuf").ndim not in (3, 4) or image.size == 0:
            raise ValueError(f"image has shape {image.shape}; give (C, y, x) or (C, z, y, x), as image[None] does")
        self.image, self.shape = finite("image", image), image.shape
        scales = np.array([_scale(channel) for channel in image])
        self.largest, self.mean, self.deviation = scales.T.reshape(3, len(image), *[1] * (image.ndim - 1))

    def __getitem__(self, part: tuple[slice, ...]) -> np.ndarray:
        values = self.image[part].astype(np.float64)
        return ((values / self.largest - self.mean) / self.deviation).astype(np.float32)


def normalise(image: np.ndarray) -> np.ndarray:
    """Shift and scale every channel of one image to mean 0 and standard deviation 1.

    image (C, *spatial), 2 or 3 spatial axes, any integer or floating dtype; returns float32 of the same shape.
    Channels are treated apart, because the sequences of an MRI differ in scale by orders of magnitude. For a colour
    image this takes away the overall tint (stain, lamp) and keeps every difference of colour between two places.
    Applied twice it gives what it gave once, up to rounding. A constant channel becomes zeros.
    Raises TypeError for what is not a real array, ValueError for another rank, no elements, NaN or infinity.
    """
    scaled = Normalised(image)
    result = np.empty(image.shape, np.float32)
    arrays = [image, scaled.largest, scaled.mean, scaled.deviation, result]
    options = IN_PIECES | {"op_flags": [["readonly"]] * 4 + [["writeonly"]]}
    with np.nditer(arrays, op_dtypes=[np.float64] * 4 + [np.float32], **options) as pieces:
        for values, largest, mean, deviation, target in pieces:
            target[...] = (values / largest - mean) / deviation
    return result


def _scale(channel: np.ndarray) -> tuple[float, float, float]:
    """The largest magnitude of a channel, and, of its values divided by that, mean and deviation.

    A constant channel has the deviation infinity, and becomes zeros.
    """
    # Values near the end of the float range would overflow when squared.
    largest = max(abs(float(channel.min())), abs(float(channel.max()))) or 1.0
    mean = sum((values / largest).sum() for values in _pieces(channel)) / channel.size
    squares = sum(np.square(values / largest - mean).sum() for values in _pieces(channel))
    deviation = math.sqrt(squares / channel.size)
    return largest, mean, deviation if deviation > CONSTANT_BELOW else math.inf


def _pieces(channel: np.ndarray) -> Iterator[np.ndarray]:
    return map(np.asarray, np.nditer(channel, op_dtypes=[np.float64], **IN_PIECES))
