"""The Vision-LSTM block, version 1 and 2: an mLSTM with projections, convolution, gates and a skip around it.

Source: Alkin et al., Vision-LSTM (arXiv 2406.04303); the cell is the mLSTM of Beck et al., xLSTM (arXiv 2405.04517).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_unet_lab.nn.conv import CONV
from xlstm_unet_lab.nn.layers import BlockDiagonalLinear, CausalConvolution, HeadNorm, OffsetLayerNorm
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.checks import one_of, require_divisible
from xlstm_unet_lab.ops.scan_order import to_grid, to_sequence
from xlstm_unet_lab.ops.tensors import widest, without_autocast

VERSIONS = ("v1", "v2")


class MLSTMCell(nn.Module):
    """Gates computed from q, k and v, the mLSTM, and a norm over each head. q, k, v (B, S, width) -> (B, S, width).

    `form` is a form of `ops.mlstm.run`. Raises ValueError when the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, bias: bool = False, form: str = "auto"):
        super().__init__()
        require_divisible(width, heads, f"the width of an MLSTMCell with {heads} heads")
        mlstm.check_form(form)
        self.heads, self.form = heads, form
        self.gates = nn.Linear(3 * width, 2 * heads)  # rows: input gates of all heads, then forget gates
        self.norm = HeadNorm(width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gates start from their biases alone; forget gates from 0.95 to 0.998, so heads remember over many lengths."""
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[: self.heads].normal_(std=0.1)
            self.gates.bias[self.heads :] = torch.linspace(3, 6, self.heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # `fit` watches loss and gradients: looking at every value here would stall a GPU in each layer.
        return self.norm(mlstm.run(*self.heads_and_gates(q, k, v), form=self.form, check_values=False))

    def heads_and_gates(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the mLSTM reads: q, k, v (B, S, width) -> q, k, v (B, H, S, D) and the gates' i, f (B, H, S)."""
        i, f = self._gates(q, k, v).transpose(-1, -2).chunk(2, 1)
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return q, k, v, i, f

    def _gates(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The linear map of [q, k, v], (B, S, 2 H), in at least float32.

        Gates are exponents, and summed over the sequence: under autocast, bfloat16's two digits would not do.
        """
        dtype = widest(self.gates.weight)
        with without_autocast(q):
            row = torch.cat([x.to(dtype) for x in (q, k, v)], -1)  # one product takes half the time of three
            return F.linear(row, self.gates.weight.to(dtype), self.gates.bias.to(dtype))


class GridConvolution(nn.Module):
    """Depthwise convolution with kernel 3 on the grid of tokens: (B, S, width) -> (B, S, width)."""

    def __init__(self, width: int, spatial_dims: int):
        super().__init__()
        self.conv = CONV[spatial_dims](width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        return to_sequence(self.conv(to_grid(x, grid)))


class ViLLayer(nn.Module):
    """The mLSTM layer of Vision-LSTM: (B, S, width) -> (B, S, width).

    Version "v1" has a causal convolution along the sequence and no biases; "v2" a 3x3 (3x3x3) convolution on the token
    grid and biases everywhere. q, k and v are block-diagonal in blocks of 4 channels (2 where 4 does not divide the
    width). The published layer has as many heads as a block has channels, so `heads` defaults to that.
    Raises ValueError for an unknown version and for heads that do not divide the inner width, twice the width.
    """

    def __init__(
        self, width: int, version: str = "v1", spatial_dims: int = 2, heads: int | None = None, form: str = "auto"
    ):
        super().__init__()
        one_of("vil_version", version, VERSIONS)
        bias, inner = version == "v2", 2 * width
        block_size = 4 if width % 4 == 0 else 2
        self.up = nn.Linear(width, 2 * inner, bias=bias)
        self.conv = GridConvolution(inner, spatial_dims) if version == "v2" else CausalConvolution(inner, 4)
        self.q, self.k, self.v = (BlockDiagonalLinear(inner, block_size, bias) for _ in range(3))
        self.cell = MLSTMCell(inner, block_size if heads is None else heads, bias, form)
        self.skip = nn.Parameter(torch.ones(inner))
        self.down = nn.Linear(inner, width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal weights with the published deviations."""
        width = self.up.in_features
        for layer in (self.up, self.q, self.k, self.v):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (5 * width)))
        nn.init.normal_(self.down.weight, std=2 / math.sqrt(width))
        for layer in (self.up, self.q, self.k, self.v, self.down):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        memory, gate = self.up(x).chunk(2, -1)  # (B, S, inner) each
        convolved = F.silu(self.conv(memory, grid))
        h = self.cell(self.q(convolved), self.k(convolved), self.v(memory))
        return self.down((h + self.skip * convolved) * F.silu(gate))


class ViLBlock(nn.Module):
    """x + layer(norm(x)) on tokens: (B, S, width) -> (B, S, width). `grid` holds the sizes of the axes walked.

    A token sees the tokens before it. To look the other way, hand over the sequence in the other order.
    `drop_path` is a module applied to the branch, such as timm's DropPath.
    """

    def __init__(self, width: int, version: str = "v1", drop_path: nn.Module | None = None, **options):
        super().__init__()
        self.norm = OffsetLayerNorm(width, bias=version == "v2")
        self.layer = ViLLayer(width, version, **options)
        self.drop_path = drop_path or nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        return x + self.drop_path(self.layer(self.norm(x), grid))
