"""A mixer lets every position of a feature map hear from far away: grid in, grid out, a recurrence in between."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from xlstm_unet_lab.nn.mamba import MambaBlock
from xlstm_unet_lab.nn.vil import ViLBlock
from xlstm_unet_lab.ops.checks import one_of
from xlstm_unet_lab.ops.scan_order import to_grid, to_sequence, traversals, walked_size

SEQUENCE_KINDS = ("vil", "mamba")


@dataclass(frozen=True)
class BlockChoice:
    """Which block stands in a mixer: a kind and the options of that kind."""

    kind: str  # "vil" or "mamba"
    vil_version: str = "v1"
    mlstm_form: str = "auto"
    mamba_residual: bool = True

    def make(self, width: int, spatial_dims: int) -> nn.Module:
        """A block that maps tokens (B, S, width), with the walked sizes of the grid, to tokens."""
        if one_of("mixer kind", self.kind, SEQUENCE_KINDS) == "mamba":
            return MambaBlock(width, residual=self.mamba_residual)
        return ViLBlock(width, self.vil_version, spatial_dims=spatial_dims, form=self.mlstm_form)


class Mixer(nn.Module):
    """Blocks one after the other, each on its own walk over the grid: (B, channels, *size) -> the same shape.

    `directions`: "forward" one block; "bidirectional" a block each way; "axes" a block each way along every axis.
    """

    def __init__(self, choice: BlockChoice, channels: int, spatial_dims: int, directions: str = "bidirectional"):
        super().__init__()
        self.traversals = traversals(spatial_dims, directions)
        self.blocks = nn.ModuleList(choice.make(channels, spatial_dims) for _ in self.traversals)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        for traversal, block in zip(self.traversals, self.blocks, strict=True):
            x = to_grid(block(to_sequence(x, traversal), walked_size(size, traversal)), size, traversal)
        return x


class ChannelMixer(nn.Module):
    """The published quirk: channels are the tokens and positions their width. (B, C, *size) -> the same shape.

    Its weights belong to one grid size, `size`; any other raises ValueError.
    """

    def __init__(self, choice: BlockChoice, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)
        self.block = choice.make(math.prod(size), spatial_dims=1)

    def forward(self, x: Tensor) -> Tensor:
        if (got := tuple(x.shape[2:])) != self.size:
            words = "a mixer with channels as tokens was built for a feature map"
            words += f" of {self.size} positions and got {got}"
            raise ValueError(f"{words}: give the patch_size it was built for, or build with channel_tokens=False")
        return self.block(x.flatten(2), (x.shape[1],)).view_as(x)
