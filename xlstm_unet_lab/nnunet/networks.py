"""The networks of this package from the numbers of an nnU-Net plan, by the names of the trainers that train them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from xlstm_unet_lab.models.presets import build
from xlstm_unet_lab.models.published import published_config, translate
from xlstm_unet_lab.models.unet import UNet

FAMILIES = {"XLSTM": "xlstm_unet_", "UxLSTM": "", "UMamba": "u_mamba_"}  # ours; released with the papers
TRAINERS = {  # name of a trainer -> network: a preset of `build`, or a variant of `published_config`
    f"nnUNetTrainer{family}{place}": f"{network}{place.lower()}"
    for family, network in FAMILIES.items()
    for place in ("Bot", "Enc")
} | {"nnUNetTrainerUMambaEncNoAMP": "u_mamba_enc"}
PUBLISHED = {trainer for trainer, network in TRAINERS.items() if not network.startswith("xlstm_unet_")}
SIGNS = {"encoder.xlstm_layers.": "UxLSTMEnc", "xlstm.": "UxLSTMBot"}  # how parameters of released networks begin
SIGNS |= {"encoder.mamba_layers.": "UMambaEnc", "mamba_layer.": "UMambaBot"}


def known_trainer(name: str) -> str:
    """The trainer among TRAINERS that this is, whatever its length ("..._50epochs"); "" for another project's."""
    return next((known for known in sorted(TRAINERS, reverse=True) if re.fullmatch(f"{known}(_.*)?", name)), "")


def network_from_plan(trainer: str, plan: Any, in_channels: int, num_classes: int, deep_supervision: bool) -> UNet:
    """The network that a trainer among TRAINERS trains; its heads are there without deep supervision, too.

    `plan` is nnU-Net's ConfigurationManager. A preset of ours gets a residual block, which has two convolutions, for
    two convolutions of the plan; a published network as many blocks as the plan has convolutions. It also loads weights
    under the names of the release. Raises ValueError for what does not fit.
    """
    name, architecture = TRAINERS[trainer], plan.network_arch_init_kwargs
    in_a_block = 1 if trainer in PUBLISHED else 2
    down, up = "n_conv_per_stage", "n_conv_per_stage_decoder"
    blocks = {part: [math.ceil(n / in_a_block) for n in architecture.get(part, ())] for part in (down, up)}
    facts = {
        "spatial_dims": len(plan.patch_size),
        "in_channels": in_channels,
        "num_classes": num_classes,
        "patch_size": plan.patch_size,
        "features": architecture["features_per_stage"],
        "strides": architecture["strides"],
        "kernel_sizes": architecture["kernel_sizes"],
        "encoder_blocks": architecture.get("n_blocks_per_stage", blocks[down]),
        "decoder_blocks": blocks[up],
        "deep_supervision": True,
    }
    network: Any = UNet(published_config(name, **facts)) if trainer in PUBLISHED else build(name, **facts)
    network.deep_supervision = deep_supervision
    network.register_load_state_dict_pre_hook(_translated)
    return network


def _translated(network: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Released names to ours, in place; torch hands over a copy."""
    ours = translate(state, network)
    state.clear()
    state.update(ours)


def mirror_axes(dataset: Mapping[str, Any], transposed: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """The axes of a patch along which a mirror image of the data is as likely, as its dataset.json says; else all.

    transposed: the order in which the plan takes the axes of an image, of which the last `dimensions` are the patch's.
    """
    allowed = dataset.get("mirror_axes", range(3))  # as `prepare` writes them
    return tuple(place for place, axis in enumerate(transposed[-dimensions:]) if axis in allowed)
