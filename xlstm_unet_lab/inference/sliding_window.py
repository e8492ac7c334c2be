"""A network that was made for patches, applied to an image of any size."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_unet_lab.data.patches import PAD_IMAGE, check_windows, padding
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.resample import resized
from xlstm_unet_lab.ops.checks import sizes, tracked
from xlstm_unet_lab.ops.tensors import widest

PIECE = 2**24  # logits that are handed out at once, about


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


def sliding_window(
    network: nn.Module, image: Tensor, *, patch_size: Sequence[int], overlap: float = 0.5, batch_size: int = 1
) -> Tensor:
    """Logits of the whole image, (num_classes, *spatial), from overlapping windows. Arguments as `sliding_slabs`."""
    slabs = sliding_slabs(network, image, patch_size=patch_size, overlap=overlap, batch_size=batch_size)
    return whole_from_slabs(slabs, rows=image.shape[1], axis=1)


def whole_from_slabs(slabs: Iterable[Tensor], rows: int, axis: int) -> Tensor:
    """Successive slabs put together along `axis`, where they have `rows` in all; one slab at a time is in memory."""
    whole, row = None, 0
    for slab in slabs:
        if whole is None:
            whole = slab.new_empty(*slab.shape[:axis], rows, *slab.shape[axis + 1 :])
        whole.narrow(axis, row, slab.shape[axis]).copy_(slab)
        row += slab.shape[axis]
    assert whole is not None  # an image has rows
    return whole


# no_grad and not inference_mode: a tensor the network keeps for its next call must stay usable in training.
@torch.no_grad()
def sliding_slabs(
    network: nn.Module,
    image: Tensor,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    batch_size: int = 1,
    track: Track = iter,
) -> Iterator[Tensor]:
    """Logits of the image slab by slab along its first axis, from windows that weigh most in their middle (Gaussian).

    image (C, *spatial), normalised, 2-D or 3-D, on any device; smaller than the patch is padded with zeros and cut
    back. Yields (num_classes, rows, ...) on the CPU, in at least float32, valid until the next slab is asked for;
    together the slabs have the image's rows. Memory holds the logits of about one patch's rows, however many rows there
    are, and only windows travel to the network's device. Of a network with deep supervision the first output counts.
    `track` wraps the list of batches of windows, to draw a progress bar or, by raising, to stop between two of them.
    Raises ValueError for an image of another rank or channel count, a patch size below 1, an overlap outside [0, 1),
    and a network whose answer has another size than its window or is not finite.
    """
    patch_size = sizes("patch_size", patch_size, 2, 3)
    check_windows(overlap, batch_size)
    check_rank(image.shape, patch_size)
    channels = getattr(getattr(network, "config", None), "in_channels", len(image))
    if len(image) != channels:
        given = f"{len(image)} channels (shape {tuple(image.shape)})"
        raise ValueError(f"image has {given}, the network was built with in_channels={channels}")
    from monai.data.utils import compute_importance_map, dense_patch_slices

    reference = next(network.parameters(), torch.empty(0))
    dtype = widest(reference)  # windows are added up in full precision
    padded, inside = _padded(image.cpu(), patch_size)
    weights = compute_importance_map(patch_size, mode="gaussian", dtype=dtype)
    windows = dense_patch_slices(padded.shape[1:], patch_size, [max(1, int(n * (1 - overlap))) for n in patch_size])

    batches: list[Any] = [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]
    height = max(batch[-1][0].stop - batch[0][0].start for batch in batches)
    totals, top = None, 0  # weighted logits of the rows from `top` on; the last channel adds up the weights
    with evaluation_mode(network):
        for batch in tracked(track, batches):  # in the order of their rows
            patches = torch.stack([padded[(slice(None), *window)] for window in batch])
            logits = first_output(network(patches.to(reference.device, reference.dtype))).to("cpu", dtype)
            if logits.shape[2:] != patch_size:
                found = f"the network answers windows of {patch_size} with logits of shape {tuple(logits.shape)}"
                raise ValueError(f"{found}; expected (B, num_classes, *patch_size)")
            if not logits.isfinite().all():
                raise ValueError("logits that are not finite: the network's weights are spoilt, or too large")
            if totals is None:
                totals = logits.new_zeros(logits.shape[1] + 1, height, *padded.shape[2:])
            finished = batch[0][0].start - top  # rows above the windows to come
            if finished:
                yield from _weighted_means(totals, top, top + finished, inside)
                totals[:, : height - finished] = totals[:, finished:].clone()
                totals[:, height - finished :] = 0
                top += finished
            for window, answer in zip(batch, logits, strict=True):
                place = (slice(window[0].start - top, window[0].stop - top), *window[1:])
                totals[(slice(-1), *place)].addcmul_(answer, weights)
                totals[(-1, *place)] += weights
        assert totals is not None  # an image has windows
        yield from _weighted_means(totals, top, padded.shape[1], inside)


def _padded(image: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """An image (C, *spatial) of at least the patch's size, padded as training does, and where the given one lies."""
    size = image.shape[1:]
    margins = padding(patch_size, size)
    sides = [side for margin in reversed(margins) for side in margin]  # F.pad begins at the last axis
    inside = [slice(before, before + length) for (before, _), length in zip(margins, size, strict=True)]
    return F.pad(image, sides, value=PAD_IMAGE) if any(sides) else image, inside


def _weighted_means(totals: Tensor, top: int, bottom: int, inside: Sequence[slice]) -> Iterator[Tensor]:
    """Logits of the image's rows between top and bottom, in place, in pieces that leave room for what is made of them.

    totals: weighted sums from row `top` on, their last channel the sum of the weights; inside: where the image lies.
    """
    rows = slice(max(inside[0].start, top) - top, min(inside[0].stop, bottom) - top)
    visible = totals[(slice(None), rows, *inside[1:])]
    for piece in visible.split(max(1, PIECE // visible[:, 0].numel()), dim=1):
        yield piece[:-1].div_(piece[-1])


def resized_slabs(slabs: Iterator[Tensor], size: Sequence[int], wanted: Sequence[int]) -> Iterator[Tensor]:
    """What `resized` gives, slab by slab: slabs (C, rows, ...) of an image of `size` become slabs of `wanted` size."""
    place = ((torch.arange(wanted[0], dtype=torch.float64) + 0.5) * (size[0] / wanted[0]) - 0.5).clamp(min=0)
    above = place.long().clamp(max=size[0] - 1)
    below = (above + 1).clamp(max=size[0] - 1)
    shares = (place - above).float().reshape(-1, *[1] * (len(wanted) - 1))
    kept, top, done = None, 0, 0  # rows from `top` on that are still needed; rows given out so far
    for slab in slabs:
        flat = resized(slab.flatten(0, 1), wanted[1:]).reshape(*slab.shape[:2], *wanted[1:])
        kept = flat if kept is None else torch.cat([kept, flat], 1)
        del slab, flat  # not to hold on to them while the windows of the next slab are computed
        bottom = top + kept.shape[1]
        ready = int((below < bottom).sum())
        if ready > done:
            now = slice(done, ready)
            yield kept[:, above[now] - top].lerp_(kept[:, below[now] - top], shares[now])
        done = ready
        needed = min(int(above[done]), bottom) if done < len(above) else bottom
        kept, top = kept[:, needed - top :].clone(), needed


def check_rank(shape: Sequence[int], patch_size: Sequence[int]) -> None:
    """ValueError unless an image of this shape has a channel axis and as many spatial ones as the patch."""
    if len(shape) != len(patch_size) + 1:
        wanted = f"patch_size={tuple(patch_size)} needs (C, *spatial) with {len(patch_size)} spatial dimensions"
        advice = "image[None] adds the channel axis, image[0] drops a batch axis"
        raise ValueError(f"image has shape {tuple(shape)}; {wanted}: {advice}")
