"""A mixer lets every position of a feature map hear from far away: grid in, grid out, a recurrence in between."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from xlstm_unet_lab.nn.mamba import MambaBlock
from xlstm_unet_lab.nn.vil import ViLBlock
from xlstm_unet_lab.ops.scan_order import to_grid, to_sequence, traversals, walked_size

SEQUENCE_KINDS = ("vil", "mamba")


def make_block(kind: str, width: int, spatial_dims: int, vil_version: str, mlstm_form: str) -> nn.Module:
    """A block that maps tokens (B, S, width), with the walked sizes of the grid, to tokens."""
    if kind == "vil":
        return ViLBlock(width, vil_version, spatial_dims=spatial_dims, form=mlstm_form)
    if kind == "mamba":
        return MambaBlock(width)
    raise ValueError(f"mixer kind is {kind!r}, expected one of {SEQUENCE_KINDS}")


class Mixer(nn.Module):
    """Blocks one after the other, each on its own walk over the grid: (B, channels, *size) -> the same shape.

    `directions`: "forward" one block; "bidirectional" a block each way; "axes" a block each way along every axis.
    """

    def __init__(
        self,
        kind: str,
        channels: int,
        spatial_dims: int,
        directions: str = "bidirectional",
        vil_version: str = "v1",
        mlstm_form: str = "auto",
    ):
        super().__init__()
        self.traversals = traversals(spatial_dims, directions)
        self.blocks = nn.ModuleList(
            make_block(kind, channels, spatial_dims, vil_version, mlstm_form) for _ in self.traversals
        )

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        for traversal, block in zip(self.traversals, self.blocks, strict=True):
            x = to_grid(block(to_sequence(x, traversal), walked_size(size, traversal)), size, traversal)
        return x


class ChannelMixer(nn.Module):
    """The published quirk: channels are the tokens and positions their width. (B, C, *size) -> the same shape.

    Its weights belong to one grid size, `size`; any other raises ValueError.
    """

    def __init__(self, kind: str, size: Sequence[int], vil_version: str = "v1", mlstm_form: str = "auto"):
        super().__init__()
        self.size = tuple(size)
        self.block = make_block(kind, math.prod(size), 1, vil_version, mlstm_form)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"a mixer with channels as tokens was built for a feature map of {self.size} positions and got "
                f"{tuple(x.shape[2:])}: give the patch_size it was built for, or build with channel_tokens=False"
            )
        return self.block(x.flatten(2), (x.shape[1],)).view_as(x)
