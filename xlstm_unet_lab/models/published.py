"""The released networks: the paper's xLSTM-UNet with its quirks, its weights and Vision-LSTM's in our networks.

Our modules carry other names than the released ones. The rules below are that dictionary, applied in order.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlstm_unet_lab.models.presets import alternating, bottleneck
from xlstm_unet_lab.models.unet import UNetConfig
from xlstm_unet_lab.models.weights import differences, load_tensors
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
    (r"\.proj_(up|down)\.", r".\1."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.conv1d\.conv\.", ".conv.conv."),
    (r"\.layer\.(?:conv|conv1d)\.(weight|bias)$", r".layer.conv.conv.\1"),
    (r"\.learnable_skip$", ".skip"),
    (r"\.mlstm_cell\.outnorm\.", ".cell.norm."),
    (r"\.mlstm_cell\.([if])gate\.", r".cell.gates.\1."),
)
UNET = (
    (r"^encoder\.xlstm_layers\.(\d+)\.vil\.", r"encoder.mixers.\1.VIL."),
    (r"^encoder\.xlstm_layers\.", "encoder.mixers."),
    (r"^xlstm\.vil\.", "encoder.mixers.LAST.VIL."),
    (r"^decoder\.seg_layers\.", "decoder.heads."),
    (r"^decoder\.upsample_layers\.", "decoder.upsamplings."),
    (r"^((?:encoder|decoder)\..*)\.conv([12])\.(conv|norm)\.", r"\1.\3\2."),
    (r"\.conv3\.", ".projection."),
)
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


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file or a torch file (nnU-Net's, Vision-LSTM's or a bare state dict).

    Torch files are opened with weights_only=True: a file that holds anything but plain data is refused, ValueError.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .safetensors, .pth or .th file")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    import numpy

    # nnU-Net logs its scores as NumPy numbers; these types only rebuild plain values. NumPy 1 gave them another path.
    scalar = getattr(numpy, "_core", numpy).multiarray.scalar
    paths = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(numpy.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "b1")]
    plain: list[Callable | tuple[Callable, str]] = [*paths, numpy.dtype, *kinds]
    try:
        with torch.serialization.safe_globals(plain):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, runtime and zip errors alike
        first = (str(error).strip().splitlines() or ["it is cut short"])[0]  # what follows advises to open it unsafely
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {first}") from error
    return find_weights(checkpoint, path)


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
        prefix, inside, rest = name.partition(".VIL.")
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
    Raises ValueError that lists every parameter that `differences` finds; the model is then untouched.
    """
    of_kind("model", model, nn.Module)
    given = path_or_state_dict
    state = find_weights(given, "the mapping") if isinstance(given, Mapping) else read_checkpoint(given)
    state = translate(state, model)
    config = getattr(model, "config", None)
    if config is not None and not getattr(config, "deep_supervision", True):
        last = f"decoder.heads.{len(config.features) - 2}."
        state = {name: x for name, x in state.items() if not name.startswith("decoder.heads.") or name.startswith(last)}
    if lines := differences(state, model):
        listed = "\n  ".join(lines)
        raise ValueError(f"the checkpoint is for another configuration, {len(lines)} parameters differ:\n  {listed}")
    model.load_state_dict(state)
    return model


def published_config(
    variant: str,
    *,
    spatial_dims: int,
    features: Sequence[int],
    encoder_blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    **facts,
) -> UNetConfig:
    """The released xLSTM-UNet, variant "bot" or "enc", with its quirks, from the numbers of an nnU-Net plan.

    The plan's block counts are cut in the deeper stages of the encoder and the finest of the decoder, the mixers walk
    one way only, in 2-D the last decoder stage gets no skip, and in variant "enc" channels become the tokens where
    positions are no more than channels. The other numbers of a plan, `facts`, are taken as they are: in_channels,
    num_classes, patch_size, strides, kernel_sizes and, where it is wanted, deep_supervision.
    Source: code released with arXiv 2407.01530. Raises ValueError for an unknown variant and for what does not fit.
    """
    one_of("variant", variant, ("bot", "enc"))
    features = sizes("features", features)
    encoder_blocks, decoder_blocks = sizes("encoder_blocks", encoder_blocks), sizes("decoder_blocks", decoder_blocks)
    stages = len(features)
    if variant == "bot":
        mixers = bottleneck("vil")(stages)
    elif checked_spatial_dims(spatial_dims) == 2:
        mixers = ("none", "resblock", *alternating("vil")(stages)[2:])
    else:
        mixers = tuple("resblock" if s < 3 else "vil" for s in range(stages))
    cut_encoder, cut_decoder = math.ceil(stages / 2), math.ceil((stages - 1) / 2 + 0.5)
    encoder_blocks = tuple(1 if s >= cut_encoder else blocks for s, blocks in enumerate(encoder_blocks))
    decoder_blocks = tuple(1 if s >= cut_decoder else blocks for s, blocks in enumerate(decoder_blocks))
    own: dict[str, Any] = {"encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks, "mixers": mixers}
    own |= {"directions": "forward", "channel_tokens": variant == "enc"}
    own |= {"full_resolution_skip": checked_spatial_dims(spatial_dims) == 3}
    return UNetConfig(spatial_dims=spatial_dims, features=features, **own, **facts)
