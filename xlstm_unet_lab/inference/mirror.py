"""Averaging over mirror images: a network that sees every window as it is and turned over, along chosen axes."""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_unet_lab.inference.sliding_window import first_output
from xlstm_unet_lab.ops.checks import is_whole


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
    given = tuple(axes) if isinstance(axes, Sequence | range) else (axes,)
    if not all(is_whole(axis, 0, spatial_dims - 1) for axis in given) or len(set(given)) != len(given):
        raise ValueError(f"{name}={axes!r} must be True, False or different axes from 0 to {spatial_dims - 1}")
    return given
