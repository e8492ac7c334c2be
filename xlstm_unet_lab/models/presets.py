"""Networks by name: from a few facts (dimensions, channels, classes, patch size) to a full configuration.

Each preset says only where its mixers stand. `published_config` follows the released code to the letter.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from xlstm_unet_lab.models.unet import SEQUENCES, UNet, UNetConfig, check_spatial_dims, frozen
from xlstm_unet_lab.ops.checks import did_you_mean

if TYPE_CHECKING:
    import pandas
    from torch import nn

WIDEST = {2: 512, 3: 320}  # channels of the deepest stages, as nnU-Net plans them
FIRST_WIDTH = 32
SMALLEST_MAP = 4  # positions an axis keeps: nnU-Net stops dividing an axis below twice this


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


def no_mixers(stages: int) -> tuple[str, ...]:
    return ("none",) * stages


def bottleneck(kind: str) -> Callable[[int], tuple[str, ...]]:
    """One mixer on the deepest feature map."""
    return lambda stages: ("none",) * (stages - 1) + (kind,)


def alternating(kind: str, first: int = 2) -> Callable[[int], tuple[str, ...]]:
    """A mixer at every second stage from `first` on, counted from the deepest, which always has one."""

    def mixers(stages: int) -> tuple[str, ...]:
        chosen = {stages - 1, *range(stages - 1, first - 1, -2)}
        return tuple(kind if s in chosen else "none" for s in range(stages))

    return mixers


class Preset(NamedTuple):
    family: str
    mixers: Callable[[int], tuple[str, ...]]
    source: str


PRESETS = {
    "unet": Preset("residual U-Net", no_mixers, "the convolutional frame of arXiv 2407.01530 without mixers"),
    "xlstm_unet_bot": Preset("xLSTM-UNet", bottleneck("vil"), "after arXiv 2407.01530, both directions"),
    "xlstm_unet_enc": Preset("xLSTM-UNet", alternating("vil"), "after arXiv 2407.01530, both directions"),
    "u_mamba_bot": Preset("U-Mamba", bottleneck("mamba"), "after arXiv 2401.04722, both directions"),
    "u_mamba_enc": Preset("U-Mamba", alternating("mamba"), "after arXiv 2401.04722, both directions"),
}


def build(
    name: str,
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    deep_supervision: bool = False,
    **overrides,
) -> "nn.Module":
    """Build a network by name (`list_models` shows them); it returns logits (B, num_classes, *size).

    `patch_size` decides how many stages there are, unless `features` (a width a stage) does. Overrides are the fields
    of UNetConfig: features, strides, kernel_sizes, encoder_blocks, decoder_blocks, mixers, vil_version, directions, ...
    With deep_supervision the network returns a list, highest resolution first.
    Raises KeyError for an unknown name and ValueError for anything that does not fit, with what would.
    """
    if name not in PRESETS:
        raise KeyError(f"no model is named {name!r}: {did_you_mean(name, PRESETS)}")
    known = {field.name for field in dataclasses.fields(UNetConfig)}
    for key in overrides:
        if key not in known:
            raise ValueError(f"{key}={overrides[key]!r} is no option of {name!r}: {did_you_mean(key, sorted(known))}")
    check_spatial_dims(spatial_dims)
    patch_size = frozen("patch_size", patch_size)
    if len(patch_size) != spatial_dims or any(not isinstance(extent, int) or extent < 1 for extent in patch_size):
        raise ValueError(f"patch_size is {patch_size}, expected {spatial_dims} whole numbers of 1 or more")
    options = {key: frozen(key, value) if key in SEQUENCES else value for key, value in overrides.items()}
    stages = next((len(options[key]) for key in ("features", "strides", "mixers") if key in options), None)
    strides = options.setdefault("strides", plan_strides(patch_size, stages))
    stages = len(strides)
    options.setdefault("features", tuple(min(FIRST_WIDTH * 2**s, WIDEST[spatial_dims]) for s in range(stages)))
    options.setdefault("kernel_sizes", ((3,) * spatial_dims,) * stages)
    options.setdefault("encoder_blocks", (1,) * stages)
    options.setdefault("decoder_blocks", (1,) * (stages - 1))
    options.setdefault("mixers", PRESETS[name].mixers(stages))
    config = UNetConfig(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        num_classes=num_classes,
        patch_size=patch_size,
        deep_supervision=deep_supervision,
        **options,
    )
    return UNet(config)


def list_models() -> "pandas.DataFrame":
    """A table of the networks `build` knows: name, family, spatial_dims, where each comes from."""
    import pandas

    rows = [(name, preset.family, "2, 3", preset.source) for name, preset in PRESETS.items()]
    return pandas.DataFrame(rows, columns=["name", "family", "spatial_dims", "source"])


def published_config(
    variant: str,
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    encoder_blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    deep_supervision: bool = False,
) -> UNetConfig:
    """The released xLSTM-UNet, variant "bot" or "enc", with its quirks, from the numbers of an nnU-Net plan.

    The plan's block counts are cut in the lower half, the mixers walk one way only, in 2-D the last decoder stage gets
    no skip, and in variant "enc" channels become the tokens where positions are no more than channels.
    Source: code released with arXiv 2407.01530. Raises ValueError for an unknown variant and for what does not fit.
    """
    if variant not in ("bot", "enc"):
        raise ValueError(f"variant is {variant!r}, expected 'bot' or 'enc'")
    features = frozen("features", features)
    stages = len(features)
    if variant == "bot":
        mixers = bottleneck("vil")(stages)
    elif spatial_dims == 2:
        mixers = ("none", "resblock", *alternating("vil")(stages)[2:])
    else:
        mixers = tuple("resblock" if s < 3 else "vil" for s in range(stages))
    cut_encoder, cut_decoder = math.ceil(stages / 2), math.ceil((stages - 1) / 2 + 0.5)
    return UNetConfig(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        num_classes=num_classes,
        patch_size=patch_size,
        features=features,
        strides=strides,
        kernel_sizes=kernel_sizes,
        encoder_blocks=tuple(1 if s >= cut_encoder else blocks for s, blocks in enumerate(encoder_blocks)),
        decoder_blocks=tuple(1 if s >= cut_decoder else blocks for s, blocks in enumerate(decoder_blocks)),
        mixers=mixers,
        deep_supervision=deep_supervision,
        directions="forward",
        full_resolution_skip=spatial_dims == 3,
        channel_tokens=variant == "enc",
    )
