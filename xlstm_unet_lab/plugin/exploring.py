"""What reaches one pixel through a network's mixers: image layers that lie on the image, and words. Needs no viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xlstm_unet_lab.data.colours import BLUE, ORANGE
from xlstm_unet_lab.inference.load import load_predictor
from xlstm_unet_lab.inference.mixer_rows import MixerRows, Patch, explore, patch_at
from xlstm_unet_lab.ops.devices import checked_device
from xlstm_unet_lab.overlays.layers import LayerData
from xlstm_unet_lab.plugin.tasks import Place, is_turned, place_of, read_image

HALF = 0.5  # of a token: where the forget gates have let go of it
SIGNED = {"name": "blue, black, orange", "colors": [BLUE, "#000000", ORANGE]}  # below, at, above 0: 0 does not show
PERCENTILE = 99.5  # of a receptive field: its centre would leave the rest black


def explore_layers(
    run_directory: str | Path, layers: Sequence, position: Sequence[int], *, device: str = "cpu"
) -> tuple[list[LayerData], str]:
    """What reaches one pixel through a run's mixers, as image layers, and the same in words.

    position: of the pixel, whole numbers in the order of the layers' axes. The network sees one patch around it, on the
    layers' own grid; one trained on slices sees a patch of the slice through it. Every mixer has two layers (direction,
    head, *grid): the weights of the row, and the decay of the forget gates. The effective receptive field has the
    image's grid. Raises FileNotFoundError for a folder that is no run directory and ValueError for layers, a position
    or a network that do not fit.
    """
    predictor = load_predictor(run_directory)
    image, place = read_image(predictor, layers), place_of(layers[0])
    if is_turned(layers[0]):
        raise ValueError(f"layer {layers[0].name!r} is turned, sheared or registered: choose one that lies straight")
    patch = patch_at(predictor, image, position)
    rows, field = explore(predictor.network.to(checked_device(device)), patch.pixels, patch.position)
    bright = float(np.percentile(field, PERCENTILE)) or 1.0
    found = [_on_image(field, "receptive field", patch, place, contrast_limits=(0, bright), colormap="magma")]
    for number, (name, row) in enumerate(rows.items(), start=1):
        largest = float(np.abs(row.weights).max()) or 1.0
        decay = {"contrast_limits": (0, 1), "colormap": "viridis"}
        weights = {"contrast_limits": (-largest, largest), "colormap": SIGNED, "visible": number == len(rows)}
        found.append(_on_image(row.decay, f"decay, {name}", patch, place, **decay))
        found.append(_on_image(row.weights, f"weights, {name}", patch, place, **weights))
    seen = np.delete(list("zyx"[-len(patch.size) :]), patch.cut)
    return found, "\n".join(_in_words(name, row, seen) for name, row in rows.items())


def _on_image(data: np.ndarray, name: str, patch: Patch, place: Place, **style) -> LayerData:
    """A layer of data whose last axes are a grid over the patch, put where the patch lies."""
    ahead = data.ndim - len(patch.position)  # direction and head
    data = np.expand_dims(data, [ahead + axis for axis in patch.cut])
    factors = np.divide(patch.size, data.shape[ahead:])
    # The middle of a coarse position lies between the middles of the pixels it stands for.
    corner = np.add(patch.start, (factors - 1) / 2) * place.spacing + place.translate
    count = len(patch.size)
    lies = {"scale": (*(1,) * ahead, *factors * place.spacing), "translate": (*(0,) * ahead, *corner)}
    lies |= {"units": (*("pixel",) * ahead, *(place.unit,) * count)}
    lies |= {"axis_labels": (*("direction", "head")[:ahead], *"zyx"[-count:])}
    looks = {"name": name, "metadata": {"part": name}, "blending": "additive", "visible": False}
    return data, lies | looks | style, "image"


def _in_words(name: str, row: MixerRows, axes: Sequence[str]) -> str:
    grid = " x ".join(map(str, row.weights.shape[2:]))
    lines = [f"{name}, {grid} tokens, row of token {row.position}; half of it is left after that many tokens, by head:"]
    for number, (traversal, decay) in enumerate(zip(row.traversals, row.decay, strict=True)):
        way = "backward" if traversal.reverse else "forward"
        kept = ", ".join(str(np.count_nonzero(head >= HALF)) for head in decay)
        lines.append(f"  direction {number} ({way}, {axes[traversal.fastest]} fastest): {kept}")
    return "\n".join(lines)
