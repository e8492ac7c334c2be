"""From a patch size to a whole U-Net: how often to halve it, how wide the stages are, how many blocks they have."""

import math
from collections.abc import Callable, Mapping, Sequence

from xlstm_unet_lab.models.unet import PER_STAGE, UNetConfig, checked_per_stage

WIDEST = {2: 512, 3: 320}  # channels of the deepest stages, as nnU-Net plans them
FIRST_WIDTH = 32
SMALLEST_MAP = 4  # positions an axis keeps: nnU-Net stops dividing an axis below twice this

PerStage = Callable[[int], tuple]  # from the number of stages to one entry a stage (decoder: one fewer)


def plan_strides(patch_size: Sequence[int], stages: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Strides that halve each axis while it keeps 4 positions, until no axis can be halved or `stages` are reached.

    With `stages` given there are exactly so many: once every axis is short, all of them go on being halved.
    """
    size, strides = tuple(patch_size), [(1,) * len(patch_size)]
    while stages is None or len(strides) < stages:
        stride = tuple(2 if extent >= 2 * SMALLEST_MAP else 1 for extent in size)
        if max(stride) == 1:
            if stages is None and len(strides) > 1:
                break
            stride = (2,) * len(size)
        strides.append(stride)
        size = tuple(math.ceil(extent / step) for extent, step in zip(size, stride, strict=True))
    return tuple(strides)


def plan(facts: Mapping, options: Mapping, **defaults: PerStage) -> UNetConfig:
    """A configuration from the facts of `build`, the fields of UNetConfig in `options`, and defaults for the rest.

    `patch_size` decides how many stages there are, unless an option with one entry a stage does. Every default is a
    function of that number. Raises ValueError as UNetConfig does.
    """
    dims, options = facts["spatial_dims"], dict(options)
    options |= {name: checked_per_stage(name, options[name], dims) for name in PER_STAGE if name in options}
    stages = next((len(options[key]) for key in ("features", "strides", "mixers") if key in options), None)
    strides = options.setdefault("strides", plan_strides(facts["patch_size"], stages))
    per_stage: dict[str, PerStage] = {
        "features": lambda stages: tuple(min(FIRST_WIDTH * 2**s, WIDEST[dims]) for s in range(stages)),
        "kernel_sizes": lambda stages: ((3,) * dims,) * stages,
        "encoder_blocks": lambda stages: (1,) * stages,
        "decoder_blocks": lambda stages: (1,) * (stages - 1),
        "mixers": lambda stages: ("none",) * stages,
    }
    options |= {name: entries(len(strides)) for name, entries in (per_stage | defaults).items() if name not in options}
    return UNetConfig(**facts, **options)
