"""Napari layers of random numbers, without a viewer."""

import numpy as np
from napari.layers import Image


def layer(shape=(40, 48), **facts) -> Image:
    """A layer of random numbers, or of `data`; `unit`, one for all axes, and the keywords of a napari layer."""
    data = facts.pop("data", None)
    data = np.random.default_rng(0).random(shape) if data is None else data
    ndim = data.ndim - facts.get("rgb", False)
    return Image(data, **{"units": (facts.pop("unit", "pixel"),) * ndim, "name": "image"} | facts)
