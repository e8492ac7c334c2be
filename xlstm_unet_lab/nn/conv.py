"""Convolutional parts of the U-Net, one code for 2-D and 3-D: residual block and upsampling.

Source: Ma et al., U-Mamba (arXiv 2401.04722), and Chen et al., xLSTM-UNet (arXiv 2407.01530): the same residual U-Net.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
SLOPE = 0.01  # of the leaky ReLU


class ResBlock(nn.Module):
    """conv - norm - act - conv - norm, plus the input, then act; (B, in_channels, *size) -> (B, out_channels, *size').

    The first convolution takes the stride. `project` sends the input through a 1x1 convolution on its way to the sum;
    a change of width or stride needs it. Raises ValueError for a change without it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] | None = None,
        project: bool = True,
    ):
        super().__init__()
        dims = len(kernel_size)
        stride = tuple(stride or [1] * dims)
        if not project and (in_channels != out_channels or set(stride) != {1}):
            raise ValueError(f"{in_channels} -> {out_channels} channels with stride {stride} needs project=True")
        conv, norm = CONV[dims], INSTANCE_NORM[dims]
        kernel, padding = tuple(kernel_size), tuple(size // 2 for size in kernel_size)
        self.conv1 = conv(in_channels, out_channels, kernel, stride, padding)
        self.norm1 = norm(out_channels, affine=True)
        self.conv2 = conv(out_channels, out_channels, kernel, 1, padding)
        self.norm2 = norm(out_channels, affine=True)
        self.projection = conv(in_channels, out_channels, 1, stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE, inplace=True)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.projection(x), SLOPE, inplace=True)


class Upsample(nn.Module):
    """1x1 convolution, then every value repeated `stride` times along each axis, then cropped to `size`.

    (B, in_channels, *coarse) -> (B, out_channels, *size). A 1x1 convolution sees one position at a time, so it gives
    the same values before the repetition as after it, at 1/4 (2-D) or 1/8 (3-D) of the cost for stride 2. A strided
    convolution leaves ceil(n / stride) positions, so the repeated grid is never smaller than the skip's.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__()
        self.stride = tuple(stride)
        self.conv = CONV[len(self.stride)](in_channels, out_channels, 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        y = F.interpolate(self.conv(x), scale_factor=[float(step) for step in self.stride], mode="nearest")
        if y.shape[2:] == tuple(size):
            return y
        return y[(..., *(slice(extent) for extent in size))]


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming-normal weights for the leaky ReLU and zero biases, on every convolution that is not depthwise."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1:
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            nn.init.zeros_(module.bias)
