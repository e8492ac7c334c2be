"""A network that was made for patches, applied to an image of any size."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_unet_lab.data.cases import check_built
from xlstm_unet_lab.data.normalise import Normalised
from xlstm_unet_lab.data.patches import PAD_IMAGE, padding
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.resample import resized
from xlstm_unet_lab.ops.checks import number, tracked, whole_number
from xlstm_unet_lab.ops.devices import checked_device
from xlstm_unet_lab.ops.tensors import widest

Box = tuple[tuple[slice, ...], Tensor]  # where something lies in an image, and what, (*channels, *box)
WINDOWS_AT_ONCE = {2: 4, 3: 1}  # by spatial dimensions


@dataclass(frozen=True)
class Windows:
    """How windows cover an image, and how they are computed; raises ValueError for what cannot be."""

    overlap: float = 0.5  # share of their size that neighbours share; they weigh most in their middle
    # Whether every window is predicted mirrored too, along each combination of axes, and the probabilities averaged: 2
    # axes take 4 times as long, 3 take 8. True: along those where the data allows it; or axes, counted from 0.
    mirror: bool | Sequence[int] = False
    batch_size: int | None = None  # windows at once; None: 4 in 2-D, 1 in 3-D, which is work enough and memory is short
    device: torch.device | str | None = None  # the network moves there and stays; None: where it is
    track: Track = iter  # wraps the batches of windows, to draw a progress bar or, by raising, to stop between two

    def __post_init__(self) -> None:
        number("overlap", self.overlap, at_least=0, below=1, fix=": 0.5 lets windows share half their size")
        whole_number("batch_size", 1 if self.batch_size is None else self.batch_size)
        if self.device is not None:
            checked_device(self.device)


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """After the block every layer is back in the mode (training or evaluation) it was in before."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Dropout and the like off inside the block; afterwards every layer is back in the mode it was in."""
    with modes_kept(network):
        network.eval()
        yield


def first_output(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The logits that count: of a network with deep supervision those of the highest resolution."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def whole_from(boxes: Iterable[Box], size: Sequence[int]) -> Tensor:
    """What boxes hold, at least one of them, put together on a grid of this size; one at a time is in memory."""
    whole = torch.empty(0)
    for place, values in boxes:
        if not whole.numel():
            whole = values.new_empty(*values.shape[: -len(size)], *size)
        whole[(*[slice(None)] * (values.ndim - len(size)), *place)] = values
    return whole


def changed(boxes: Iterator[Box], how: Callable[[Tensor], Tensor]) -> Iterator[Box]:
    """What `how` makes of every box; `starmap` holds on to none while the windows of the next one are computed."""
    return itertools.starmap(lambda place, values: (place, how(values)), boxes)


# no_grad and not inference_mode: a tensor the network keeps for its next call must stay usable in training.
@torch.no_grad()
def sliding_boxes(
    network: nn.Module, image: Tensor | Normalised, patch_size: tuple[int, ...], windows: Windows, row_by_row: bool
) -> Iterator[Box]:
    """Logits of the image box by box, from windows that weigh most in their middle (Gaussian).

    image (C, *spatial), normalised, 2-D or 3-D, on any device; smaller than the patch is padded with zeros and cut
    back. Yields boxes that fill the image, each with its place: (num_classes, *box) on the CPU, in at least float32.
    Memory holds a few windows and, num_classes + 1 numbers a position, what windows to come share with those that were:
    a part of one patch's rows, across the axis that is the most patches long. Only windows travel to the network's
    device. Of a network with deep supervision the first output counts.
    Of `windows` overlap, batch_size and track count; the rest is the caller's. row_by_row: let the boxes fill the image
    along its first axis and not along that one.
    Raises ValueError for an image of another channel count than the network was built for, and a network whose answer
    has another size than its window or is not finite. What else a caller may get wrong the `Predictor` checks.
    """
    given, *size = image.shape
    check_built(getattr(network, "config", None), {"in_channels": given}, "the image has")
    from monai.data.utils import compute_importance_map

    margins = padding(patch_size, size)
    around = [side for margin in reversed(margins) for side in margin]  # F.pad begins at the last axis
    inside = tuple(slice(m, m + min(n, p)) for (m, _), n, p in zip(margins, size, patch_size, strict=True))
    dtype = widest(next(network.parameters(), torch.empty(0)))  # windows are added up in full precision
    weights = compute_importance_map(patch_size, mode="gaussian", dtype=dtype)[inside]
    grid = [_starts(n, p, windows.overlap) for n, p in zip(size, patch_size, strict=True)]
    along = [[slice(start, start + n) for start in starts] for starts, n in zip(grid, weights.shape, strict=True)]
    # Outermost first: the axis that is the most patches long, across which the least is shared.
    order = sorted(range(len(size)), key=lambda axis: 0 if row_by_row else weights.shape[axis] / size[axis])
    walks = itertools.product(*(along[axis] for axis in order))
    places = [tuple(walk[order.index(axis)] for axis in range(len(size))) for walk in walks]
    at_once = windows.batch_size or WINDOWS_AT_ONCE[len(size)]
    batches = [places[first : first + at_once] for first in range(0, len(places), at_once)]

    def weighted() -> Iterator[Box]:
        for batch in tracked(windows.track, batches):
            patches = torch.stack([torch.as_tensor(image[(slice(None), *place)]) for place in batch])
            logits = _logits(network, F.pad(patches, around, value=PAD_IMAGE)).to("cpu", dtype)
            logits = logits[(slice(None), slice(None), *inside)]
            sums = torch.cat([logits, logits.new_ones(len(batch), 1, *weights.shape)], 1).mul_(weights)
            del logits  # nothing is held on to while the next windows are computed
            yield from zip(batch, sums.unbind(), strict=True)
            del sums

    boxes = weighted()
    for turn, axis in reversed([*enumerate(order)]):
        boxes = _joined(boxes, axis, grid[axis], {later: size[later] for later in order[turn + 1 :]})
    with evaluation_mode(network):
        yield from changed(boxes, lambda sums: sums[:-1].div_(sums[-1]))  # by what the weights add up to


def _starts(length: int, patch: int, overlap: float) -> dict[int, tuple[int, int]]:
    """Where windows start along an axis: how much each shares with those before it, and how much with none after it."""
    patch, step = min(length, patch), max(1, int(patch * (1 - overlap)))
    starts = [*range(0, length - patch, step), length - patch]
    edges = zip([-patch, *starts], starts, [*starts[1:], length], strict=False)
    return {start: (before + patch - start, after - start) for before, start, after in edges}


def _logits(network: nn.Module, patches: Tensor) -> Tensor:
    """The network's answer to a batch of windows; ValueError for one of another size or that is not finite."""
    like = next(network.parameters(), torch.empty(0))
    logits = first_output(network(patches.to(like.device, like.dtype)))
    if logits.shape[2:] != patches.shape[2:]:
        words = f"the network answers windows of {tuple(patches.shape[2:])} with logits of shape {tuple(logits.shape)}"
        raise ValueError(f"{words}; expected (B, num_classes, *patch_size)")
    if not logits.isfinite().all():
        raise ValueError("logits that are not finite: the network's weights are spoilt, or too large")
    return logits


def _joined(
    boxes: Iterator[Box], axis: int, starts: Mapping[int, tuple[int, int]], across: Mapping[int, int]
) -> Iterator[Box]:
    """Boxes that overlap along one axis, added up there: of each is given what no later one reaches, in its memory.

    They come in turn along the axes `across`, in which they do not overlap any more; of each the image's length.
    """
    kept = torch.empty(0)  # what later boxes reach, everywhere along the axes across
    for place, values in boxes:
        shared, done = starts[place[axis].start]
        rest = values.shape[axis + 1] - done
        if not kept.numel():
            most = {axis: max(shared for shared, _ in starts.values()), **across}
            kept = values.new_empty(len(values), *(most.get(at, values.shape[at + 1]) for at in range(len(place))))
        beside = kept[(slice(None), *(where if at in across else slice(None) for at, where in enumerate(place)))]
        values.narrow(axis + 1, 0, shared).add_(beside.narrow(axis + 1, 0, shared))
        beside.narrow(axis + 1, 0, rest).copy_(values.narrow(axis + 1, done, rest))
        finished = slice(place[axis].start, place[axis].start + done)
        yield (*place[:axis], finished, *place[axis + 1 :]), values.narrow(axis + 1, 0, done)
        del values


def resized_boxes(boxes: Iterator[Box], size: Sequence[int], wanted: Sequence[int]) -> Iterator[Box]:
    """What `resized` gives, slab by slab: boxes that fill a grid of `size` row by row become boxes of one of `wanted`.

    Memory holds all values of the rows of a box, in both sizes.
    """
    place = ((torch.arange(wanted[0], dtype=torch.float64) + 0.5) * (size[0] / wanted[0]) - 0.5).clamp(min=0)
    above = place.long().clamp(max=size[0] - 1)
    below = (above + 1).clamp(max=size[0] - 1)
    shares = (place - above).float().reshape(-1, *[1] * (len(wanted) - 1))
    kept, top, done = None, 0, 0  # rows from `top` on that are still needed; rows given out so far
    for rows, layer in itertools.groupby(boxes, lambda box: box[0][0]):
        in_slab = (((slice(None), *place[1:]), values) for place, values in layer)
        slab = whole_from(in_slab, (rows.stop - rows.start, *size[1:]))
        flat = resized(slab.flatten(0, 1), wanted[1:]).reshape(*slab.shape[:2], *wanted[1:])
        kept = flat if kept is None else torch.cat([kept, flat], 1)
        del slab, flat  # not to hold on to them while the windows of the next slab are computed
        bottom = top + kept.shape[1]
        ready = int((below < bottom).sum())
        if ready > done:
            now = slice(done, ready)
            rest = tuple(map(slice, wanted[1:]))
            yield (now, *rest), kept[:, above[now] - top].lerp_(kept[:, below[now] - top], shares[now])
        done = ready
        needed = min(int(above[done]), bottom) if done < len(above) else bottom
        kept, top = kept[:, needed - top :].clone(), needed
