"""The residual U-Net behind every network built here: an encoder, a decoder, and a mixer wherever the config says so.

Source: Chen et al., xLSTM-UNet (arXiv 2407.01530), figure 1; the convolutional frame is nnU-Net's as used by U-Mamba.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xlstm_unet_lab.nn.conv import CONV, ResBlock, Upsample, initialise_convolutions
from xlstm_unet_lab.nn.mixer import SEQUENCE_KINDS, BlockChoice, ChannelMixer, Mixer
from xlstm_unet_lab.nn.vil import VERSIONS
from xlstm_unet_lab.ops.checks import WIDEST, checked_spatial_dims, flag, of_kind, one_of, sizes, whole_number
from xlstm_unet_lab.ops.mlstm import check_form
from xlstm_unet_lab.ops.scan_order import DIRECTIONS

MIXER_KINDS = ("none", "resblock", *SEQUENCE_KINDS)
HEAD_DEVIATION = 1e-2  # logits start near zero, so the loss starts at that of guessing
PER_STAGE = ("features", "strides", "kernel_sizes", "encoder_blocks", "decoder_blocks", "mixers")
FLAGS = ("deep_supervision", "full_resolution_skip", "mamba_residual", "channel_tokens")


def checked_per_stage(name: str, entries: Sequence, spatial_dims: int) -> tuple:
    """A field with one entry a stage as a tuple, its sizes as tuples too; ValueError for anything else."""
    if not isinstance(entries, list | tuple):
        raise ValueError(f"{name} is {entries!r}, expected a tuple with an entry for every stage")
    if name == "mixers":
        return tuple(one_of(f"mixers[{stage}]", mixer, MIXER_KINDS) for stage, mixer in enumerate(entries))
    if name in ("strides", "kernel_sizes"):
        return tuple(sizes(f"{name}[{stage}]", entry, spatial_dims) for stage, entry in enumerate(entries))
    counts = enumerate(sizes(name, entries))
    return tuple(whole_number(f"{name}[{stage}]", count, at_most=WIDEST) for stage, count in counts)


@dataclass(frozen=True)
class NetworkConfig:
    """What every network says of itself, ours and those of others. Sizes are in the order (z, y, x) or (y, x)."""

    spatial_dims: int  # 2 or 3
    in_channels: int
    num_classes: int
    patch_size: tuple[int, ...]  # the size trained on; most networks take others too
    built_by: Mapping | None = field(default=None, compare=False, repr=False, kw_only=True)  # arguments of `build`


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """Everything that defines a U-Net; n is the number of stages. Only `channel_tokens` ties it to its patch size."""

    features: tuple[int, ...]  # n channel widths, highest resolution first
    strides: tuple[tuple[int, ...], ...]  # n, the first all ones: what each stage divides the resolution by
    kernel_sizes: tuple[tuple[int, ...], ...]  # n
    encoder_blocks: tuple[int, ...]  # n residual blocks of each stage; the first number also serves the stem
    decoder_blocks: tuple[int, ...]  # n - 1, deepest first
    mixers: tuple[str, ...]  # n of "none", "resblock", "vil", "mamba": what follows each encoder stage
    deep_supervision: bool = False  # logits at every decoder resolution, not only at the last
    vil_version: str = "v1"  # "v1" causal convolution along the sequence; "v2" 3 x 3 convolution on the grid, biases
    directions: str = "bidirectional"  # walks of a mixer, a block each; or "axes"; published: "forward"
    mlstm_form: str = "auto"  # a form of ops.mlstm.run
    # Quirks of the published networks, off by default:
    full_resolution_skip: bool = True  # False: the last decoder stage gets no skip, so fine detail must come from below
    mamba_residual: bool = True  # False: as in U-Mamba's code, the scan's output replaces the feature map
    channel_tokens: bool = False  # True: where positions are no more than channels they swap roles, for one patch size

    def __post_init__(self):
        checked: dict[str, object] = {"spatial_dims": checked_spatial_dims(self.spatial_dims)}
        checked["patch_size"] = sizes("patch_size", self.patch_size, self.spatial_dims)
        checked |= {name: whole_number(name, getattr(self, name)) for name in ("in_channels", "num_classes")}
        checked |= {name: checked_per_stage(name, getattr(self, name), self.spatial_dims) for name in PER_STAGE}
        checked |= {name: flag(name, getattr(self, name)) for name in FLAGS}
        vars(self).update(checked)  # as the class is frozen; a configuration shares no list with its caller
        check_stages(self)
        one_of("vil_version", self.vil_version, VERSIONS)
        one_of("directions", self.directions, DIRECTIONS)
        check_form(self.mlstm_form)

    def grid_sizes(self, size: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """The feature map's size at every stage for an image of this size, by default `patch_size`."""
        sizes, size = [], size or self.patch_size
        for stride in self.strides:
            size = tuple(math.ceil(extent / step) for extent, step in zip(size, stride, strict=True))
            sizes.append(size)
        return sizes


def check_stages(c: UNetConfig) -> None:
    """Raise ValueError, naming the field, where the stages do not fit one another or the patch."""
    stages = len(c.features)
    for name in PER_STAGE:
        length = stages - 1 if name == "decoder_blocks" else stages
        if len(getattr(c, name)) != length:
            raise ValueError(f"{name} is {getattr(c, name)}, expected {length} entries ({stages} stages)")
    if stages < 2:
        raise ValueError(f"features is {c.features}, expected 2 widths or more: a U-Net has at least 2 stages")
    if set(c.strides[0]) != {1}:
        raise ValueError(f"strides[0] is {c.strides[0]}, expected all ones: the first stage keeps full resolution")
    if even := [size for kernel in c.kernel_sizes for size in kernel if size % 2 == 0]:
        raise ValueError(f"kernel_sizes holds {even[0]}, expected odd numbers, which keep a feature map's size")
    if math.prod(c.grid_sizes()[-1]) == 1:  # nothing is left that instance norm could normalise
        total = total_stride(c)
        words = f"{c.patch_size} with total stride {total} leaves one position in the deepest of {stages} stages"
        better = tuple(2 * step for step in total)
        raise ValueError(f"patch_size {words}: use at least {smallest_size(c)}, better {better}, or fewer stages")


def total_stride(c: UNetConfig) -> tuple[int, ...]:
    return tuple(math.prod(steps) for steps in zip(*c.strides, strict=True))


def smallest_size(c: UNetConfig) -> tuple[int, ...]:
    """The smallest image whose deepest feature map keeps two positions, on its last axis."""
    *others, last = total_stride(c)
    return (*others, last + 1)


def check_image(image: Tensor, channels: int, spatial_dims: int) -> None:
    """ValueError unless these are images (batch, channels, *size)."""
    if image.ndim != spatial_dims + 2 or image.shape[1] != channels:
        axes = ", ".join("zyx"[-spatial_dims:])
        raise ValueError(f"image has shape {tuple(image.shape)}, expected (batch, {channels}, {axes})")


def residual_blocks(count: int, in_channels: int, channels: int, kernel, stride=None) -> nn.Sequential:
    """A ResBlock that may change width and stride, then count - 1 that keep both."""
    first = ResBlock(in_channels, channels, kernel, stride)
    return nn.Sequential(first, *(ResBlock(channels, channels, kernel, project=False) for _ in range(count - 1)))


def build_mixer(c: UNetConfig, stage: int) -> nn.Module:
    """The module behind the word in `c.mixers[stage]`."""
    kind, channels, size = c.mixers[stage], c.features[stage], c.grid_sizes()[stage]
    if kind == "none":
        return nn.Identity()
    if kind == "resblock":
        return ResBlock(channels, channels, c.kernel_sizes[stage], project=False)
    choice = BlockChoice(kind, c.vil_version, c.mlstm_form, c.mamba_residual)
    if c.channel_tokens and math.prod(size) <= channels:
        return ChannelMixer(choice, size)
    return Mixer(choice, channels, c.spatial_dims, c.directions)


class Encoder(nn.Module):
    """Stem, then stages of residual blocks, each followed by its mixer. Returns the feature map of every stage."""

    def __init__(self, c: UNetConfig):
        super().__init__()
        widths = (c.features[0], *c.features)
        self.stem = residual_blocks(c.encoder_blocks[0], c.in_channels, c.features[0], c.kernel_sizes[0])
        self.stages = nn.ModuleList(
            residual_blocks(c.encoder_blocks[s], widths[s], widths[s + 1], c.kernel_sizes[s], c.strides[s])
            for s in range(len(c.features))
        )
        self.mixers = nn.ModuleList(build_mixer(c, s) for s in range(len(c.features)))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.stem(x), []
        for stage, mixer in zip(self.stages, self.mixers, strict=True):
            x = mixer(stage(x))
            features.append(x)
        return features


class Decoder(nn.Module):
    """Back up, one stage a skip; position 0 is the deepest. Returns logits, highest resolution first."""

    def __init__(self, c: UNetConfig):
        super().__init__()
        self.upsamplings, self.stages, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        self.takes_skip = []
        for position, blocks in enumerate(c.decoder_blocks):
            stage = len(c.features) - 2 - position  # of the encoder, at the same resolution
            width, kernel, takes_skip = c.features[stage], c.kernel_sizes[stage], stage > 0 or c.full_resolution_skip
            self.takes_skip.append(takes_skip)
            self.upsamplings.append(Upsample(c.features[stage + 1], width, c.strides[stage + 1]))
            self.stages.append(residual_blocks(blocks, 2 * width if takes_skip else width, width, kernel))
            # Without deep supervision only the last head exists: one nobody reads would hold weights nobody trains.
            if c.deep_supervision or stage == 0:
                self.heads[str(position)] = CONV[c.spatial_dims](width, c.num_classes, 1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x, logits = features[-1], []
        for position, skip in enumerate(features[-2::-1]):
            x = self.upsamplings[position](x, skip.shape[2:])
            x = self.stages[position](torch.cat([x, skip], 1) if self.takes_skip[position] else x)
            if str(position) in self.heads:
                logits.append(self.heads[str(position)](x))
        return logits[::-1]


class UNet(nn.Module):
    """Image (B, in_channels, *size) -> logits (B, num_classes, *size); with deep supervision a list, finest first.

    `deep_supervision`, as the config has it at first, may be turned off and on again: the heads stay.
    Any size runs whose deepest feature map keeps more than one position. Raises ValueError for another rank or number
    of channels.
    """

    def __init__(self, config: UNetConfig):
        of_kind("config", config, UNetConfig)
        super().__init__()
        self.config, self.deep_supervision = config, config.deep_supervision
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        initialise_convolutions(self)
        for head in self.decoder.heads.values():
            nn.init.normal_(head.get_parameter("weight"), std=HEAD_DEVIATION)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        c = self.config
        check_image(image, c.in_channels, c.spatial_dims)
        if math.prod(c.grid_sizes(image.shape[2:])[-1]) == 1:
            raise ValueError(f"image {tuple(image.shape)} ends as one position: pad it to at least {smallest_size(c)}")
        logits = self.decoder(self.encoder(image))
        return logits if self.deep_supervision else logits[0]
