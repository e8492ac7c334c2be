"""Small layers on tokens (B, S, width): block-diagonal linear, causal convolution, and norms whose weight is an offset.

Source: Beck et al., xLSTM (arXiv 2405.04517), figure 11; Alkin et al., Vision-LSTM (arXiv 2406.04303).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_unet_lab.ops.checks import require_divisible, whole_number

JOINED = 4  # blocks multiplied as one matrix, where 4 divides their number


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
        # Neighbouring blocks are joined into one matrix, zero between them: it multiplies more and takes a third of the
        # time, since products of 4 x 4 are too small for any processor.
        joined = math.gcd(blocks, JOINED)
        own = torch.eye(joined, dtype=self.weight.dtype, device=x.device)[:, None, :, None]
        weight = (self.weight.view(-1, joined, block_size, 1, block_size) * own).flatten(3).flatten(1, 2)
        y = torch.einsum("...ni,noi->...no", x.unflatten(-1, weight.shape[::2]), weight).flatten(-2)
        return y if self.bias is None else y + self.bias.to(y.dtype)  # which autocast may have shortened


class CausalConvolution(nn.Module):
    """Depthwise convolution along the sequence that sees the present token and kernel_size - 1 tokens before it.

    (B, S, width) -> (B, S, width). Weight (width, 1, kernel_size), bias (width).
    """

    def __init__(self, width: int, kernel_size: int = 4, bias: bool = True):
        super().__init__()
        whole_number("CausalConvolution's width", width)
        whole_number("CausalConvolution's kernel_size", kernel_size)
        self.conv = nn.Conv1d(width, width, kernel_size, groups=width, bias=bias)

    # It sees a sequence, never the grid: the argument is there so that both convolutions of ViL are called in one way.
    def forward(self, x: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        # Tokens are an image of height 1 in the channels-last layout, where it need not be copied to another. The bias
        # comes after: oneDNN takes longer for its gradient than for all the rest.
        image = F.pad(x, (0, 0, weight.shape[-1] - 1, 0)).transpose(1, 2).unsqueeze(2)
        y = F.conv2d(image, weight.unsqueeze(2), groups=len(weight)).squeeze(2).transpose(1, 2)
        return y if bias is None else y + bias.to(y.dtype)


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
        one, zero = h.new_ones(h.shape[-1]), h.new_zeros(h.shape[-1])  # without them PyTorch takes twice as long
        y = F.layer_norm(h.transpose(1, 2), one.shape, one, zero, self.eps).flatten(2) * (1 + self.weight)
        return y if self.bias is None else y + self.bias
