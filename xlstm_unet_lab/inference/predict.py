"""From an image and a network to the probabilities of its channels, slab by slab: windows, mirror images, spacings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_unet_lab.data.dataset import normalise
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.resample import resized
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.sliding_window import check_rank, first_output, resized_slabs, sliding_slabs

WINDOWS_AT_ONCE = {2: 4, 3: 1}  # by spatial dimensions


@dataclass(frozen=True)
class Windows:
    """How windows cover an image, and how they are computed."""

    overlap: float = 0.5  # share of their size that neighbours share; they weigh most in their middle
    # Whether every window is predicted mirrored too, along each combination of axes, and the probabilities averaged: 2
    # axes take 4 times as long, 3 take 8. True: along those where the data allows it; or axes, counted from 0.
    mirror: bool | Sequence[int] = False
    batch_size: int | None = None  # windows at once; None: 4 in 2-D, 1 in 3-D, which is work enough and memory is short
    device: torch.device | str | None = None  # the network moves there and stays; None: where it is
    track: Track = iter  # wraps the batches of windows, to draw a progress bar or, by raising, to stop between two


class Mirrored(nn.Module):
    """A network that averages its probabilities over mirrored copies of every window, and answers with their logits.

    axes: spatial axes of the windows; exclusive: whether the channels are classes (softmax) or regions (sigmoid).
    """

    def __init__(self, network: nn.Module, axes: Sequence[int], exclusive: bool):
        super().__init__()
        self.network, self.axes, self.exclusive = network, tuple(axes), exclusive
        self.config = getattr(network, "config", None)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, num_classes, *spatial), in at least float32."""
        # Sums of probabilities, as logarithms: dividing by their number would change neither softmax nor sigmoid.
        if self.exclusive:
            return reduce(torch.logaddexp, (logits.log_softmax(1) for logits in self._answers(windows)))
        both = (torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)]) for logits in self._answers(windows))
        inside, outside = reduce(torch.logaddexp, both)
        return inside - outside

    def _answers(self, windows: Tensor) -> Iterator[Tensor]:
        for axes in mirrorings(self.axes):
            turned = [axis + 2 for axis in axes]
            logits = first_output(self.network(windows.flip(turned))).flip(turned)
            yield logits.to(torch.promote_types(logits.dtype, torch.float32))


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every combination of axes to mirror along, none first: 2 to the power of their number."""
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


def checked_axes(name: str, axes: Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """Spatial axes as a tuple; ValueError for one that is not there or stands twice."""
    axes = tuple(axes)
    if len(set(axes)) != len(axes) or not set(axes) <= set(range(spatial_dims)):
        raise ValueError(f"{name}={axes} must be True, False or different axes from 0 to {spatial_dims - 1}")
    return axes


def probability_slabs(
    network: nn.Module,
    image: np.ndarray,
    targets: Targets,
    *,
    patch_size: Sequence[int],
    working_size: Sequence[int],
    windows: Windows,
    mirror_axes: Sequence[int] = (),
) -> Iterator[Tensor]:
    """Probabilities (channels, rows, ...) of an image on its own grid, slab by slab along its first spatial axis.

    image (C, *spatial), 2-D or 3-D, any real dtype: brought to `working_size`, then normalised, as training images
    are; smaller than the patch it is padded, and cut back. What each channel means is said by `targets`.
    Raises ValueError for an image, patch size or overlap that does not fit, TypeError for values that are no numbers.
    """
    check_rank(image.shape, patch_size)
    size, working_size = image.shape[1:], tuple(working_size)
    if windows.device is not None:
        network.to(windows.device)
    if working_size != size:
        image = resized(torch.from_numpy(image.astype(np.float32)), working_size).numpy()
    batch_size = WINDOWS_AT_ONCE[len(patch_size)] if windows.batch_size is None else windows.batch_size
    slabs = sliding_slabs(
        Mirrored(network, mirror_axes, targets.exclusive) if mirror_axes else network,
        torch.from_numpy(normalise(image)),
        patch_size=patch_size,
        overlap=windows.overlap,
        batch_size=batch_size,
        track=windows.track,
    )
    # map and not a generator: that would hold on to a slab while the windows of the next one are computed
    probabilities = map(targets.probabilities, slabs)
    return probabilities if working_size == size else resized_slabs(probabilities, working_size, size)
