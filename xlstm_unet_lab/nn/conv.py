"""Convolutional parts of the U-Net, one code for 2-D and 3-D: residual block and upsampling.

Source: Ma et al., U-Mamba (arXiv 2401.04722), and Chen et al., xLSTM-UNet (arXiv 2407.01530): the same residual U-Net.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_unet_lab.ops.scan_order import has_open_size

CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the tensor's number of axes
SLOPE = 0.01  # of the leaky ReLU


class InstanceNorm(nn.Module):
    """Every channel of every image to mean 0 and variance 1, times `weight`, plus `bias`; (B, channels, *size) alike.

    PyTorch's instance norm copies a channels-last input to the default layout, and every convolution after it copies
    it back: a quarter of a training step in 3-D. Its batch norm keeps the layout, and for a batch of one image the two
    are the same function. So channels-last images are normalised one at a time.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous() or not x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim]):
            return F.instance_norm(x, weight=self.weight, bias=self.bias)
        images = [F.batch_norm(image, None, None, self.weight, self.bias, training=True) for image in x.split(1)]
        return images[0] if len(images) == 1 else torch.cat(images)


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
        conv = CONV[dims]
        kernel, padding = tuple(kernel_size), tuple(size // 2 for size in kernel_size)
        self.conv1 = conv(in_channels, out_channels, kernel, stride, padding)
        self.norm1 = InstanceNorm(out_channels)
        self.conv2 = conv(out_channels, out_channels, kernel, 1, padding)
        self.norm2 = InstanceNorm(out_channels)
        self.projection = conv(in_channels, out_channels, 1) if project else nn.Identity()
        # A 1x1 convolution with this stride would be the same, but on CPUs its backward pass corrupts memory for
        # channels-last images of fewer than 16 channels (torch 2.15 with oneDNN 3.13).
        self.kept = tuple(slice(None, None, step) for step in (1, 1, *stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE, inplace=True)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.projection(x[self.kept]), SLOPE, inplace=True)


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
        y = self.conv(x)
        if has_open_size(size):
            for axis, (extent, step) in enumerate(zip(size, self.stride, strict=True), 2):
                y = y.index_select(axis, torch.arange(extent, device=y.device) // step)
            return y
        y = F.interpolate(y, scale_factor=[float(step) for step in self.stride], mode="nearest")
        return y[tuple(slice(extent) for extent in (*y.shape[:2], *size))]


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming-normal weights for the leaky ReLU and zero biases, on every convolution that is not depthwise."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1:
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
