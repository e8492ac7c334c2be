"""U-Nets of one residual block a stage, and how far they look."""

from torch import nn

import xlstm_unet_lab as lab


def build(name: str, size: tuple[int, ...], features: tuple[int, ...]) -> nn.Module:
    return lab.build(name, spatial_dims=len(size), in_channels=1, num_classes=3, patch_size=size, features=features)


def reach(stages: int, kernel: int = 3) -> int:
    """How many pixels away from a pixel its logits still look, in a U-Net of one residual block a stage, strides 2."""
    # The stem has as many convolutions as a block. The first one of a deeper stage works on the finer grid.
    half, encoder = kernel // 2, 4 * (kernel // 2)
    for stage in range(1, stages):
        encoder += half * 2 ** (stage - 1) + half * 2**stage
    # A decoder block has two convolutions; coming up, a pixel may lie at the far side of the coarse one it grew from.
    decoder = sum(2 * half * 2**stage + 2**stage for stage in range(stages - 1))
    return encoder + decoder
