"""Networks of other projects behind the same call and the same logits as ours, to compare with.

`BASELINES` lists them. Their libraries are imported when one is built. `model.network` is the other project's own
module, so its weights load there.
"""

import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xlstm_unet_lab.models.plan import PerStage, plan
from xlstm_unet_lab.models.unet import Decoder, NetworkConfig, UNetConfig, check_image, total_stride
from xlstm_unet_lab.nn.conv import CONV, ResBlock, initialise_convolutions

NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
PLANNED = ("features", "strides", "kernel_sizes", "encoder_blocks", "decoder_blocks")


@dataclass(frozen=True)
class Model:
    """One row of the table of networks `build` knows."""

    family: str
    source: str
    make: Callable[[Mapping, Mapping], nn.Module]  # from what `build` was asked for, and the options
    options: tuple[str, ...]
    spatial_dims: tuple[int, ...] = (2, 3)
    deep_supervision: bool = True


@dataclass(frozen=True)
class BaselineConfig(NetworkConfig):
    """What was asked for and which sizes the network takes; ValueError, with sizes that work, where they clash."""

    deep_supervision: bool
    multiple: tuple[int, ...]  # every axis of an image is a multiple of this, and one axis at least twice it
    any_size: bool = True  # False: images have the patch size and no other

    def __post_init__(self):
        self.check_size("patch_size", self.patch_size)

    def check_size(self, what: str, size: Sequence[int]) -> None:
        """Raise ValueError for a size that the network cannot divide, or whose deepest map would be one position."""
        steps = self.multiple
        if all(extent % step == 0 for extent, step in zip(size, steps, strict=True)) and tuple(size) != steps:
            return
        nearest = []
        for rounded in (math.floor, math.ceil):
            counts = [max(1, rounded(extent / step)) for extent, step in zip(size, steps, strict=True)]
            if math.prod(counts) == 1:
                counts[-1] = 2
            nearest.append(tuple(count * step for count, step in zip(counts, steps, strict=True)))
        near = " or ".join(map(str, dict.fromkeys(nearest)))
        raise ValueError(f"{what} is {tuple(size)}, expected multiples of {steps}, in all more than one: use {near}")


class Baseline(nn.Module):
    """Image (B, in_channels, *size) -> logits (B, num_classes, *size); with deep supervision a list, finest first.

    Raises ValueError for another rank, number of channels or size than the network takes.
    """

    def __init__(self, config: BaselineConfig, network: nn.Module):
        super().__init__()
        self.config, self.network = config, network

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        c, size = self.config, tuple(image.shape[2:])
        check_image(image, c.in_channels, c.spatial_dims)
        if not c.any_size and size != c.patch_size:
            raise ValueError(f"the image's size is {size}, expected {c.patch_size}: this network is tied to its patch")
        c.check_size("the image's size", size)
        return self.network(image)


def of_nnunet(architecture: str, blocks: str, defaults: Mapping[str, PerStage], paper: str) -> Model:
    """A U-Net as nnU-Net builds it, planned for the patch; `blocks` is the architecture's word for encoder_blocks."""

    def make(facts: Mapping, options: Mapping) -> Baseline:
        from dynamic_network_architectures.architectures import unet

        c = plan(facts, options, **defaults)
        ends = {"input_channels": c.in_channels, "num_classes": c.num_classes, "deep_supervision": c.deep_supervision}
        stages = {"n_stages": len(c.features), "features_per_stage": c.features, "strides": c.strides}
        stages |= {"kernel_sizes": c.kernel_sizes, blocks: c.encoder_blocks}
        layers = {"conv_op": CONV[c.spatial_dims], "conv_bias": True, "norm_op": NORM[c.spatial_dims]}
        layers |= {"norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
        network = getattr(unet, architecture)(n_conv_per_stage_decoder=c.decoder_blocks, **ends, **stages, **layers)
        network.apply(network.initialize)
        # The heads of the other resolutions always exist. Weights that no output depends on must not be trained:
        # several devices would wait for their gradients.
        network.decoder.seg_layers[:-1].requires_grad_(c.deep_supervision)
        return Baseline(BaselineConfig(**facts, multiple=total_stride(c)), network)

    return Model("nnU-Net", f"dynamic-network-architectures; Isensee et al., {paper}", make, PLANNED)


def of_monai(family: str, paper: str, defaults: Mapping, divisor: Callable, any_size: bool = True) -> Model:
    """A network of MONAI; images have any size that `divisor` allows, or the patch size only.

    divisor: from the options to what every axis is divided by on the way down.
    """

    def make(facts: Mapping, options: Mapping) -> Baseline:
        from monai.networks import nets

        dims = facts["spatial_dims"]
        own = {key: value[dims] if isinstance(value, dict) else value for key, value in defaults.items()}
        options = {**own, **options}
        # first: its errors say what would work
        config = BaselineConfig(**facts, multiple=(divisor(options),) * dims, any_size=any_size)
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        given |= {} if any_size else {"img_size": config.patch_size}
        given |= {"in_channels": config.in_channels, "out_channels": config.num_classes}
        network = getattr(nets, family.replace(" ", ""))(spatial_dims=dims, **given)
        for name, parameter in network.named_parameters():
            if "cross_attn" in name:  # MONAI's transformer blocks hold this layer even where nothing calls it
                parameter.requires_grad_(False)
        return Baseline(config, network)

    return Model(family, f"MONAI; {paper}", make, tuple(defaults), deep_supervision=False)


class TimmUNet(nn.Module):
    """A classifier of timm as encoder, residual blocks of ours at full resolution and on the way up."""

    def __init__(self, encoder: nn.Module, config: UNetConfig):
        super().__init__()
        self.stem = ResBlock(config.in_channels, config.features[0], config.kernel_sizes[0])
        self.decoder = Decoder(config)
        initialise_convolutions(self)
        self.encoder, self.deep_supervision = encoder, config.deep_supervision

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        features = self.encoder(image)
        if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC":
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        logits = self.decoder([self.stem(image), *features])
        return logits if self.deep_supervision else logits[0]


def timm_unet(facts: Mapping, options: Mapping) -> Baseline:
    """A U-Net on an encoder of timm, `encoder="resnet18"` unless another is named, trained on photographs or not."""
    options = {**TIMM, **options}
    encoder = timm_encoder(options["encoder"], options["pretrained"], facts["in_channels"], facts["patch_size"])
    reductions = [1, *encoder.feature_info.reduction()]
    strides = [(deep // shallow,) * 2 for shallow, deep in itertools.pairwise(reductions)]
    features = (options["stem_width"], *encoder.feature_info.channels())
    config = BaselineConfig(**facts, multiple=(reductions[-1],) * 2, any_size=not encoder_is_tied(options["encoder"]))
    return Baseline(config, TimmUNet(encoder, plan(facts, {"features": features, "strides": ((1, 1), *strides)})))


def encoder_is_tied(name: str) -> bool:
    """Whether timm builds this encoder for one size of image."""
    import timm

    return bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))


def timm_encoder(name: str, pretrained: bool, in_channels: int, patch_size: tuple[int, ...]) -> Any:
    """The encoder as timm makes it: a module of one of several classes, all of them with `feature_info`.

    Raises ValueError for one that does not serve, OSError when its trained weights are out of reach.
    """
    import timm

    if not timm.is_model(name):
        nearest = difflib.get_close_matches(str(name), timm.list_models(), n=3)
        advice = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        raise ValueError(f"encoder is {name!r}, which timm does not have: {advice}timm.list_models() lists all")
    if pretrained and not timm.is_model_pretrained(name):
        raise ValueError(f"timm has no trained weights for encoder={name!r}: use pretrained=False or another encoder")
    size: dict[str, Any] = {"img_size": patch_size} if encoder_is_tied(name) else {}
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=in_channels, **size)
    except Exception as error:  # timm and the hub below it raise errors of a dozen libraries
        if pretrained:
            words = f"the trained weights of encoder={name!r} could not be had ({error!r})"
            raise OSError(f"{words}: connect to the internet once, or use pretrained=False") from error
        raise ValueError(f"encoder={name!r} gives no feature maps at several depths ({error}): try another") from error


NNUNET: dict[str, PerStage] = {"encoder_blocks": lambda n: (2,) * n, "decoder_blocks": lambda n: (2,) * (n - 1)}
# At most half again as large as `unet`; nnU-Net's own plans have 1, 3, 4, then 6 blocks.
RESIDUAL: dict[str, PerStage] = {"encoder_blocks": lambda n: (1, *(2,) * (n - 1))}
TIMM = {"encoder": "resnet18", "pretrained": False, "stem_width": 32}
SEGRESNET = {"init_filters": 32, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1), "dropout_prob": None}
UNETR = {"feature_size": 16, "hidden_size": 384, "mlp_dim": 1536, "num_heads": 6, "dropout_rate": 0.0}
SWIN = {"feature_size": {2: 48, 3: 24}, "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24), "window_size": 7}
SWIN |= {"drop_rate": 0.0, "dropout_path_rate": 0.0}


BASELINES = {
    "nnunet": of_nnunet("PlainConvUNet", "n_conv_per_stage", NNUNET, "doi 10.1038/s41592-020-01008-z"),
    "nnunet_res_enc": of_nnunet("ResidualEncoderUNet", "n_blocks_per_stage", RESIDUAL, "arXiv 2404.09556"),
    "segresnet": of_monai(
        "SegResNet", "Myronenko, arXiv 1810.11654", SEGRESNET, lambda o: 2 ** len(o["blocks_down"]) // 2
    ),
    "unetr": of_monai("UNETR", "Hatamizadeh et al., arXiv 2103.10504", UNETR, lambda _: 16, any_size=False),
    "swin_unetr": of_monai("Swin UNETR", "Hatamizadeh et al., arXiv 2201.01266", SWIN, lambda _: 32),
    "timm_unet": Model("U-Net on a classifier", "timm's encoders, our decoder", timm_unet, tuple(TIMM), (2,)),
}
