"""The released networks: xLSTM-UNet and U-Mamba with their quirks, their weights and Vision-LSTM's in our networks.

Our modules carry other names than the released ones. The rules below are that dictionary, applied in order.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlstm_unet_lab.models.plan import PerStage
from xlstm_unet_lab.models.presets import alternating, bottleneck
from xlstm_unet_lab.models.unet import UNet, UNetConfig
from xlstm_unet_lab.models.weights import check_weights, load_tensors
from xlstm_unet_lab.ops.checks import checked_spatial_dims, of_kind, one_of, sizes
from xlstm_unet_lab.ops.files import as_path

# Parameters a released file repeats, or that no computation reads.
IGNORED = (
    r"^decoder\.encoder\.",  # the decoder holds a second reference to the encoder
    r"\.all_modules\.\d+\.",  # a convolution and its norm, listed a second time
    r"^(?:.*\.)?xlstm(?:_layers\.\d+)?\.norm\.",  # a norm the released mixer owns and never calls
    r"\.outnorm\.eps$|num_batches_tracked$",
)

LAYER = (
    (r"\.mamba\.(in|out)_proj\.", r".layer.\1put_projection."),
    (r"\.mamba\.conv1d\.", ".layer.convolution.conv."),
    (r"\.mamba\.x_proj\.", ".layer.parameter_projection."),
    (r"\.mamba\.dt_proj\.", ".layer.step_projection."),
    (r"\.mamba\.A_log$", ".layer.log_decay"),
    (r"\.mamba\.D$", ".layer.skip"),
    (r"\.proj_(up|down)\.", r".\1."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.layer\.(?:conv|conv1d)\.(?:conv\.)?(weight|bias)$", r".layer.conv.conv.\1"),
    (r"\.learnable_skip$", ".skip"),
    (r"\.mlstm_cell\.outnorm\.", ".cell.norm."),
    (r"\.mlstm_cell\.([if])gate\.", r".cell.gates.\1."),
)
UNET = (
    (r"^encoder\.xlstm_layers\.(\d+)\.vil\.", r"encoder.mixers.\1.BLOCK."),
    (r"^encoder\.xlstm_layers\.", "encoder.mixers."),
    (r"^encoder\.mamba_layers\.(\d+)\.", r"encoder.mixers.\1.BLOCK."),
    (r"^(?:xlstm\.vil|mamba_layer)\.", "encoder.mixers.LAST.BLOCK."),
    (r"^decoder\.seg_layers\.", "decoder.heads."),
    (r"^decoder\.upsample_layers\.", "decoder.upsamplings."),
    (r"^((?:encoder|decoder)\..*)\.conv([12])\.(conv|norm)\.", r"\1.\3\2."),
    (r"\.conv3\.", ".projection."),
)
# Where the released networks have their mixers, in 2-D and in 3-D.
VARIANTS: dict[str, dict[int, PerStage]] = {
    "bot": dict.fromkeys((2, 3), bottleneck("vil")),
    "enc": {
        2: lambda stages: ("none", "resblock", *alternating("vil")(stages)[2:]),
        3: lambda stages: ("resblock",) * min(stages, 3) + ("vil",) * (stages - 3),
    },
    "u_mamba_bot": dict.fromkeys((2, 3), bottleneck("mamba")),
    "u_mamba_enc": {2: alternating("mamba", first=0), 3: lambda stages: ("mamba",) * stages},
}
CLASSIFIER = (
    (r"^xlstm\.", ""),  # this and the next two: names of the training run, which the released ImageNet files carry
    (r"^(blocks\.\d+\.)xlstm\.", r"\1layer."),
    (r"^(blocks\.\d+\.)xlstm_norm\.", r"\1norm."),
    (r"^head\.1\.", "head."),
    (r"^patch_embed\.proj\.", "embedding."),
    (r"^pos_embed\.embed$", "position"),
    (r"^legacy_norm\.", "second_norm."),
)
# The training run names norms by where they stand, we by which of the two the paper draws.
CLASSIFIER_NORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "v1": ((r"^post_blocks_norm\.", "second_norm."), (r"^head\.0\.", "norm.")),
    "v2": ((r"^post_blocks_norm\.", "norm."), (r"^head\.0\.", "second_norm.")),
}
PAIR = re.compile(r"^blocks\.(\d+)\.rowwise_from_(top_left|bot_right)\.")  # version 2 counts blocks in pairs
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # DistributedDataParallel, torch.compile


def read_checkpoint(path: str | Path) -> Mapping:
    """What a .safetensors file or a torch file (nnU-Net's, Vision-LSTM's or a bare state dict) holds.

    Torch files are opened with weights_only=True: a file that holds anything but plain data is refused, ValueError.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .safetensors, .pth or .th file")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    import numpy

    # nnU-Net logs its scores as NumPy numbers; these types only rebuild plain values. NumPy 1 gave them another path.
    scalar: Any = numpy._core.multiarray.scalar  # type: ignore[attr-defined]  # a private name
    kinds = [type(numpy.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "b1")]
    plain = [scalar, (scalar, "numpy.core.multiarray.scalar"), numpy.dtype, *kinds]
    try:
        with torch.serialization.safe_globals(plain):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, runtime and zip errors alike
        first = (str(error).strip().splitlines() or ["it is cut short"])[0]  # what follows advises to open it unsafely
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {first}") from error


def find_weights(checkpoint: object, where: object) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, which may hold it under a name; ValueError when there is none."""
    for key in ("network_weights", "state_dict", "model"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise ValueError(f"{where} holds no state dict: expected tensors by name, as released with arXiv 2407.01530")
    return dict(checkpoint)


def translate(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Released names to ours; the two gate maps become one. Repeats and unused parameters are left out."""
    wanted = set(model.state_dict())
    last = max((int(name.split(".")[2]) for name in wanted if name.startswith("encoder.mixers.")), default=0)
    rules = (*UNET, *CLASSIFIER, *CLASSIFIER_NORMS.get(getattr(model, "version", ""), ()), *LAYER)
    renamed = {}
    for name, tensor in state.items():
        name = WRAPPERS.sub("", name)
        if name not in wanted and any(re.search(pattern, name) for pattern in IGNORED):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        name = name.replace(".LAST.", f".{last}.")
        prefix, inside, rest = name.partition(".BLOCK.")
        if inside:  # a mixer over channels holds one block, a mixer over positions a list of them
            name = f"{prefix}.block.{rest}" if f"{prefix}.block.norm.weight" in wanted else f"{prefix}.blocks.0.{rest}"
        renamed[PAIR.sub(lambda m: f"blocks.{2 * int(m[1]) + (m[2] == 'bot_right')}.", name)] = tensor
    for name in [name for name in renamed if ".gates.i." in name]:
        forget = name.replace(".gates.i.", ".gates.f.")
        if forget in renamed:
            renamed[name.replace(".gates.i.", ".gates.")] = torch.cat([renamed.pop(name), renamed.pop(forget)])
    return renamed


def load_published(model: nn.Module, path_or_state_dict: str | Path | Mapping[str, Tensor]) -> nn.Module:
    """Load released weights into `UNet(published_config(...))` or `VisionLSTM`, in place; returns the model.

    The ImageNet weights of Vision-LSTM need `VisionLSTM(..., second_norm=True)`.
    Heads of lower resolution are left out for a model without deep supervision, which has none.
    Raises ValueError as `check_weights`, which lists every parameter that differs; the model is then untouched.
    """
    of_kind("model", model, nn.Module)
    held = path_or_state_dict if isinstance(path_or_state_dict, Mapping) else read_checkpoint(path_or_state_dict)
    state = translate(find_weights(held, "the mapping" if held is path_or_state_dict else path_or_state_dict), model)
    if any("decoder.transpconvs." in name for name in state.keys() - model.state_dict().keys()):
        words = "decoder.transpconvs: the checkpoint does not fit, it is of the network called U-Mamba until 2024-03-27"
        raise ValueError(f"{words}, or nnU-Net's own, whose results folder load_predictor takes")
    if isinstance(model, UNet) and not model.config.deep_supervision:
        last = f"decoder.heads.{len(model.config.features) - 2}."
        state = {name: x for name, x in state.items() if not name.startswith("decoder.heads.") or name.startswith(last)}
    check_weights(state, model, "the checkpoint is for another configuration")
    model.load_state_dict(state)
    return model


def published_config(variant: str, *, spatial_dims: int, features: Sequence[int], **facts) -> UNetConfig:
    """The released xLSTM-UNet ("bot", "enc") or U-Mamba ("u_mamba_bot", "u_mamba_enc"), from an nnU-Net plan's numbers.

    The plan's block counts are cut in the deeper stages of the encoder and the finest of the decoder, the mixers walk
    one way only, in 2-D the last decoder stage gets no skip, and in both "enc" variants channels become the tokens
    where positions are no more than channels. U-Mamba has no residual around its mixers. The other numbers of a plan,
    `facts`, are encoder_blocks, decoder_blocks, in_channels, num_classes, patch_size, strides, kernel_sizes and, where
    it is wanted, deep_supervision.
    Source: code released with arXiv 2407.01530, and with arXiv 2401.04722 since 2024-03-27. Raises ValueError for an
    unknown variant and for what does not fit.
    """
    mixers = VARIANTS[one_of("variant", variant, VARIANTS)][checked_spatial_dims(spatial_dims)]
    features = sizes("features", features)
    for name in ("encoder_blocks", "decoder_blocks"):  # both are cut from half of the stages on
        counts = enumerate(sizes(name, facts.get(name)))
        facts[name] = tuple(1 if s >= len(features) / 2 else blocks for s, blocks in counts)
    own: dict[str, Any] = {"mixers": mixers(len(features)), "directions": "forward"}
    own |= {"full_resolution_skip": spatial_dims == 3, "channel_tokens": variant.endswith("enc")}
    own |= {"mamba_residual": variant in ("bot", "enc")}
    return UNetConfig(spatial_dims=spatial_dims, features=features, **own, **facts)
