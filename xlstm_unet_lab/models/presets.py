"""Networks by name: from a few facts (dimensions, channels, classes, patch size) to a network.

Each preset says only where its mixers stand. `published.published_config` follows the released code to the letter.
"""

import dataclasses
import json
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xlstm_unet_lab.models.baselines import BASELINES, Model
from xlstm_unet_lab.models.plan import PerStage, plan
from xlstm_unet_lab.models.unet import UNet, UNetConfig
from xlstm_unet_lab.nn import layers
from xlstm_unet_lab.ops.checks import WIDEST, checked_spatial_dims, did_you_mean, flag, of_kind, sizes, whole_number

if TYPE_CHECKING:
    import pandas


def bottleneck(kind: str) -> PerStage:
    """One mixer on the deepest feature map."""
    return lambda stages: ("none",) * (stages - 1) + (kind,)


def alternating(kind: str, first: int = 2) -> PerStage:
    """A mixer at every second stage from the first on, counted from the deepest, which always has one."""
    return lambda n: tuple(kind if s == n - 1 or (s >= first and (n - s) % 2) else "none" for s in range(n))


OPTIONS = tuple(field.name for field in dataclasses.fields(UNetConfig) if field.compare)


def preset(mixers: PerStage, family: str, source: str) -> Model:
    """A row of the table for a network of the family built here."""
    return Model(family, source, lambda facts, options: UNet(plan(facts, options, mixers=mixers)), OPTIONS)


OURS = "after arXiv 2407.01530, both directions"
MAMBA = "after arXiv 2401.04722; unlike the published it goes both ways, has all skips and a residual around each mixer"
PRESETS = {
    "unet": preset(bottleneck("none"), "residual U-Net", "the convolutional frame of arXiv 2407.01530 without mixers"),
    "xlstm_unet_bot": preset(bottleneck("vil"), "xLSTM-UNet", OURS),
    "xlstm_unet_enc": preset(alternating("vil"), "xLSTM-UNet", OURS),
    "u_mamba_bot": preset(bottleneck("mamba"), "U-Mamba", MAMBA),
    "u_mamba_enc": preset(alternating("mamba"), "U-Mamba", f"{MAMBA}, none before the third stage or over channels"),
}
MODELS = PRESETS | BASELINES


def build(
    name: str,
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    deep_supervision: bool = False,
    **overrides,
) -> nn.Module:
    """Build a network by name (`list_models` shows them); it returns logits (B, num_classes, *size).

    `patch_size` decides how many stages there are, unless `features` (a width a stage) does. Overrides are the fields
    of UNetConfig: features, strides, kernel_sizes, encoder_blocks, decoder_blocks, mixers, vil_version, directions, ...
    and, for networks of other projects, the options that `models.baselines` lists for each.
    With deep_supervision the network returns a list, highest resolution first. `arguments_of` says what builds the same
    network again.
    Raises KeyError for an unknown name, ValueError for anything that does not fit, with what would, and OSError when
    weights asked for by `pretrained=True` cannot be reached.
    """
    of_kind("name", name, str)
    if name not in MODELS:
        raise KeyError(f"no model is named {name!r}: {did_you_mean(name, MODELS)}")
    model = MODELS[name]
    facts: dict[str, Any] = {"spatial_dims": checked_spatial_dims(spatial_dims)}
    for count, value in {"in_channels": in_channels, "num_classes": num_classes}.items():
        facts[count] = whole_number(count, value, at_most=WIDEST)
    facts |= {"patch_size": sizes("patch_size", patch_size, spatial_dims)}
    facts |= {"deep_supervision": flag("deep_supervision", deep_supervision)}
    for key in overrides:
        if key not in model.options:
            known = sorted({*facts, *model.options})
            raise ValueError(f"{key}={overrides[key]!r} is no option of {name!r}: {did_you_mean(key, known)}")
    alike = [other for other, row in MODELS.items() if spatial_dims in row.spatial_dims]
    if name not in alike:
        raise ValueError(f"{name!r} has no {spatial_dims}-D form: {', '.join(alike)} have")
    supervised = [other for other in alike if MODELS[other].deep_supervision]
    if deep_supervision and name not in supervised:
        raise ValueError(f"{name!r} has no deep supervision: {', '.join(supervised)} have")
    network: Any = model.make(facts, overrides)  # with a config of its own class
    # Weights trained elsewhere only start a network: who rebuilds one brings its own.
    again = {"pretrained": False} if "pretrained" in overrides else {}
    # as JSON keeps it: NumPy's whole numbers become Python's
    text = json.dumps({"name": name, **facts, **overrides, **again}, default=operator.index)
    network.config = dataclasses.replace(network.config, built_by=json.loads(text))
    return network


def arguments_of(network: nn.Module) -> dict | None:
    """What builds the same network again with `build(**arguments)`, as JSON can keep it; None where that is not known.

    Known is it of every network that `build` made, and of every UNet.
    """
    config = getattr(network, "config", None)
    if isinstance(config, UNetConfig) and config.built_by is None:
        return json.loads(json.dumps({"name": "unet", **{name: getattr(config, name) for name in OPTIONS}}))
    return getattr(config, "built_by", None)


def list_models(
    spatial_dims: int | None = None, in_channels: int = 1, num_classes: int = 2, patch_size: Sequence[int] | None = None
) -> "pandas.DataFrame":
    """A table of the networks `build` knows: name, family, spatial_dims, where each comes from.

    With `patch_size` each is built for it and measured: parameters in millions, and multiply-adds in billions of one
    image of that size (convolutions and matrix products, as `multiply_adds` counts them). Where a network does not
    take the size, the column "fits" says why. Raises ValueError when `patch_size` contradicts `spatial_dims`.
    """
    import pandas

    known = (2, 3) if spatial_dims is None else (checked_spatial_dims(spatial_dims),)
    if patch_size is not None:
        patch_size = sizes("patch_size", patch_size, *known)
        known = (len(patch_size),)
    rows = []
    for name, model in MODELS.items():
        if set(known) & set(model.spatial_dims):
            dimensions = ", ".join(map(str, model.spatial_dims))
            row = {"name": name, "family": model.family, "spatial_dims": dimensions, "source": model.source}
            facts = {"in_channels": in_channels, "num_classes": num_classes, "patch_size": patch_size}
            rows.append(row | (_measured(name, facts) if patch_size else {}))
    return pandas.DataFrame(rows)


def _measured(name: str, facts: dict) -> dict:
    try:
        network = build(name, spatial_dims=len(facts["patch_size"]), **facts)
        operations = multiply_adds(network, (1, facts["in_channels"], *facts["patch_size"]))
    except (ValueError, RuntimeError) as error:  # torch's, for a size beyond any memory
        return {"parameters": math.nan, "multiply_adds": math.nan, "fits": str(error)}
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return {"parameters": parameters / 1e6, "multiply_adds": operations / 1e9, "fits": "yes"}


def multiply_adds(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of one forward pass for an image (B, C, *size) of this shape, computed without doing the work.

    Counts convolutions and matrix products, the mLSTM's included; sums, norms and elementwise products, and with them
    Mamba's recurrence, are left out. So are the zeros that a BlockDiagonalLinear multiplies for speed.
    """
    from unittest.mock import patch

    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    # torch counts baddbmm but not its form that writes in place, which the mLSTM uses: here that of matrices of shapes
    # (batch, rows, inner) and (batch, inner, columns)
    in_place = {torch.ops.aten.baddbmm_: lambda _, left, right, **options: 2 * math.prod(left) * right[-1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    # What a network asks for is counted: its blocks one by one, though as many products of joined ones run faster.
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), patch.object(layers, "JOINED", 1), counter:
        network(torch.empty(tuple(shape)))
    return counter.get_total_flops() // 2
