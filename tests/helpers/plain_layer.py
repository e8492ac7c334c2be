"""As much of a napari layer as the plugin's tasks read, without napari."""

from types import SimpleNamespace

import numpy as np
import pint


def layer(shape=(40, 48), **facts):
    """A layer of random numbers, or of `data`; `unit`, and the attributes of a napari layer, in `facts`."""
    data = facts.pop("data", None)
    data = np.random.default_rng(0).random(shape) if data is None else data
    ndim = data.ndim - facts.get("rgb", False)
    unit = pint.get_application_registry().Unit(facts.pop("unit", "pixel"))
    known = {
        "data": data,
        "ndim": ndim,
        "scale": np.ones(ndim),
        "translate": np.zeros(ndim),
        "units": (unit,) * ndim,
        "rgb": False,
        "name": "image",
        "metadata": {},
    }
    return SimpleNamespace(**known | facts)
