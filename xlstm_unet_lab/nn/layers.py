"""Small layers on tokens (B, S, width): block-diagonal linear, causal convolution, and norms whose weight is an offset.

Source: Beck et al., xLSTM (arXiv 2405.04517), figure 11; Alkin et al., Vision-LSTM (arXiv 2406.04303).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_unet_lab.ops.checks import whole_number


def require_divisible(width: int, parts: int, what: str) -> int:
    """Return width // parts; ValueError naming `what` when the division leaves a rest or either number is below 1."""
    whole_number(f"the divisor of {what}", parts)
    if width < 1 or width % parts:
        near = sorted({parts * max(width // parts, 1), parts * max(width // parts + 1, 1)})
        raise ValueError(f"{what} is {width}, not divisible by {parts}: use {' or '.join(map(str, near))}")
    return width // parts


class BlockDiagonalLinear(nn.Module):
    """Linear map whose matrix is block-diagonal: neighbouring channels mix in blocks, blocks do not mix.

    (..., width) -> (..., width). Weight (width / block_size, block_size out, block_size in), bias (width).
    """

    def __init__(self, width: int, block_size: int, bias: bool = False):
        super().__init__()
        blocks = require_divisible(width, block_size, "BlockDiagonalLinear's width")
        self.weight = nn.Parameter(torch.empty(blocks, block_size, block_size))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        nn.init.normal_(self.weight, std=math.sqrt(2 / (5 * block_size)))

    def forward(self, x: Tensor) -> Tensor:
        blocks, block_size, _ = self.weight.shape
        y = torch.einsum("...ni,noi->...no", x.unflatten(-1, (blocks, block_size)), self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias


class CausalConvolution(nn.Module):
    """Depthwise convolution along the sequence that sees the present token and kernel_size - 1 tokens before it.

    (B, S, width) -> (B, S, width). Weight (width, 1, kernel_size), bias (width).
    """

    def __init__(self, width: int, kernel_size: int = 4, bias: bool = True):
        super().__init__()
        whole_number("CausalConvolution's width", width)
        whole_number("CausalConvolution's kernel_size", kernel_size)
        self.conv = nn.Conv1d(width, width, kernel_size, groups=width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (self.conv.kernel_size[0] - 1, 0))  # (B, width, kernel_size - 1 + S)
        return self.conv(padded).transpose(1, 2)


class OffsetLayerNorm(nn.Module):
    """Layer norm over the last axis whose scale is 1 + weight, so that weight decay pulls the scale towards 1.

    (..., width) -> (..., width). Weight (width), starting at 0; bias (width) or None.
    """

    def __init__(self, width: int, bias: bool = False, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, 1 + self.weight, self.bias, self.eps)


class HeadNorm(OffsetLayerNorm):
    """Normalise every head's output over its own D channels, then scale by 1 + weight (and shift by bias).

    (B, H, S, D) -> (B, S, H * D). Weight (H * D), starting at 0; bias (H * D) or None.
    """

    def forward(self, h: Tensor) -> Tensor:
        # Heads are contiguous slices of a token, and the chunkwise form leaves them so in memory.
        y = F.layer_norm(h.transpose(1, 2), h.shape[-1:], eps=self.eps).flatten(2) * (1 + self.weight)
        return y if self.bias is None else y + self.bias
