"""What reaches one position of an image through a network's mixers, read from the network itself while it computes.

The output of an mLSTM is linear in its values, h_t = sum_s w_ts v_s, with

    w_ts = exp(B_t - B_s + i_s - m_t) (q_t . k_s / sqrt(D)) / (max(|q_t . n_t|, exp(-m_t)) + 1e-6),   s <= t

the decay of the forget gates, times the input gate, times how well query and key agree, normalised (letters as in
`ops.mlstm`). Source: Beck et al., xLSTM (arXiv 2405.04517), appendix A.3. The effective receptive field is that of
Luo et al. 2016 (arXiv 1701.04128), of one position and one image.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.patches import PAD_IMAGE, cut_box, start_around
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.sliding_window import evaluation_mode, first_output
from xlstm_unet_lab.nn.mixer import Mixer
from xlstm_unet_lab.nn.vil import ViLBlock
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.scan_order import Traversal, to_grid, to_sequence


class MixerRows(NamedTuple):
    """What reaches one position through the mLSTMs of one mixer, one a direction; at least float32."""

    weights: np.ndarray  # (directions, heads, *grid): w_ts of every token s, 0 where s comes after t
    decay: np.ndarray  # (directions, heads, *grid): what the forget gates have left of token s when t is read
    traversals: tuple[Traversal, ...]  # the walk of each direction
    position: tuple[int, ...]  # of token t on the grid


class Patch(NamedTuple):
    """What the network sees around a pixel."""

    pixels: Tensor  # (C, *spatial), normalised; of slices without the axis they are cut across
    position: list[int]  # of the pixel in it
    start: list[int]  # where it starts in the image, by axis of the image
    size: list[int]  # likewise; 1 along the axis that slices are cut across
    cut: list[int]  # that axis, or none


def weights_row(q: Tensor, k: Tensor, i: Tensor, f: Tensor, token: int) -> Tensor:
    """The weights w_ts with which the values of all tokens s reach token t: (B, H, S), 0 where s > t.

    q, k (B, H, S, D), i, f (B, H, S), as `ops.mlstm.run` takes them; at least float32. They are the derivatives of the
    token's output by values of width 1, so that no S x S matrix is needed. Raises ValueError for a token that is not
    there, and as `ops.mlstm.run`.
    """
    _check_token(token, f)
    q, k, i, f = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, i, f))
    with torch.enable_grad():
        value = q.new_zeros(*q.shape[:-1], 1, requires_grad=True)
        h = mlstm.chunkwise(q, k, value, i, f)  # (B, H, S, 1)
        (row,) = torch.autograd.grad(h[:, :, token].sum(), value)
    return row[..., 0]


def forget_decay(f: Tensor, token: int) -> Tensor:
    """What the forget gates leave of token s when token t is read, exp(B_t - B_s): (B, H, S), 0 where s > t.

    f: pre-activations (B, H, S). Raises ValueError for a token that is not there.
    """
    _check_token(token, f)
    summed = F.logsigmoid(f.detach().to(mlstm.gate_dtype(f))).cumsum(-1)  # B_s
    decay = (summed[..., token, None] - summed[..., : token + 1]).exp()
    return F.pad(decay, (0, f.shape[-1] - 1 - token)).to(f.dtype)


def mlstm_mixers(model: nn.Module) -> dict[str, Mixer]:
    """The mixers of a network whose tokens are positions and whose blocks are mLSTMs: name -> module, in their order.

    Raises ValueError where there are none.
    """
    found = {
        f"stage {name.rpartition('.')[2]}": module
        for name, module in model.named_modules()
        if isinstance(module, Mixer) and all(isinstance(block, ViLBlock) for block in module.blocks)
    }
    if not found:
        raise ValueError("no mixer whose tokens are positions: take an xlstm_unet_enc built with channel_tokens=False")
    return found


def receptive_field(model: nn.Module, patch: Tensor, position: Sequence[int]) -> np.ndarray:
    """The effective receptive field of one position: how much each place of the patch moves the output there.

    patch (C, *spatial), normalised, on any device; position: whole numbers in the order of its axes. Returned is the
    absolute derivative of the position's largest logit by the image, summed over channels, float32 (*spatial). The
    network computes in evaluation mode and is put back as it was. Raises ValueError for a position outside the patch.
    """
    size = tuple(patch.shape[1:])
    if len(position) != len(size) or not all(0 <= p < length for p, length in zip(position, size, strict=True)):
        raise ValueError(f"position={tuple(position)} lies outside the patch of size {size}")
    image = patch.detach().to(next(model.parameters()))[None].requires_grad_()
    with evaluation_mode(model), torch.enable_grad():
        logits = first_output(model(image))  # (1, classes, *spatial)
        (gradient,) = torch.autograd.grad(logits[(0, slice(None), *position)].max(), image)
    return gradient[0].abs().sum(0).float().cpu().numpy()


def explore(model: nn.Module, patch: Tensor, position: Sequence[int]) -> tuple[dict[str, MixerRows], np.ndarray]:
    """What reaches one position: the rows of every mixer, by its name, and the `receptive_field`.

    A mixer's row belongs to the token whose place on the coarser grid covers the position. Arguments and errors as in
    `receptive_field`; ValueError too for a network without an mLSTM mixer.
    """
    mixers = mlstm_mixers(model)
    cells = [block.layer.cell for mixer in mixers.values() for block in mixer.blocks]
    inputs: dict[nn.Module, tuple[Tensor, ...]] = {}  # what each module was last called with
    with ExitStack() as hooks:  # which are removed at its end
        for module in [*mixers.values(), *cells]:
            hooks.enter_context(module.register_forward_pre_hook(inputs.__setitem__))
        field = receptive_field(model, patch, position)
    size = tuple(patch.shape[1:])
    return {name: _rows(mixer, size, tuple(position), inputs) for name, mixer in mixers.items()}, field


def patch_at(predictor: Predictor, image: np.ndarray, position: Sequence[int]) -> Patch:
    """The patch around a position of an image as stored, (C, *spatial), normalised and padded as in prediction.

    position: whole numbers in the order of the image's axes. Raises ValueError for one outside.
    """
    size, cut = image.shape[1:], [] if predictor.slice_axis is None else [predictor.slice_axis]
    if len(position) != len(size) or not all(0 <= p < length for p, length in zip(position, size, strict=True)):
        raise ValueError(f"position {tuple(position)} lies outside the image of size {size}")
    for axis in cut:  # the network knows nothing of other slices: this one is normalised by itself
        image = image.take(position[axis], axis + 1)
    place, seen = (np.delete(numbers, cut).tolist() for numbers in (position, size))
    start, lengths = start_around(place, predictor.patch_size, seen), list(predictor.patch_size)
    box = [(first, first + length) for first, length in zip(start, lengths, strict=True)]
    pixels, inside = cut_box(torch.from_numpy(normalise(image)), box, PAD_IMAGE), np.subtract(place, start).tolist()
    for axis in cut:
        start.insert(axis, position[axis])
        lengths.insert(axis, 1)
    return Patch(pixels, inside, start, lengths, cut)


def _rows(mixer: Mixer, size: tuple[int, ...], position: tuple[int, ...], inputs) -> MixerRows:
    grid = tuple(inputs[mixer][0].shape[2:])
    place = tuple(p * cells // length for p, cells, length in zip(position, grid, size, strict=True))
    numbers = torch.arange(math.prod(grid)).view(1, 1, *grid)  # every position's own
    weights, decay = [], []
    for traversal, block in zip(mixer.traversals, mixer.blocks, strict=True):
        token = int((to_sequence(numbers, traversal)[0, :, 0] == numbers[(0, 0, *place)]).nonzero())
        q, k, _, i, f = block.layer.cell.heads_and_gates(*inputs[block.layer.cell])
        for rows, row in ((weights, weights_row(q, k, i, f, token)), (decay, forget_decay(f, token))):
            rows.append(to_grid(row.mT, grid, traversal)[0])  # (H, *grid)
    stacked = (torch.stack(rows).cpu().numpy() for rows in (weights, decay))
    return MixerRows(*stacked, mixer.traversals, place)


def _check_token(token: int, f: Tensor) -> None:
    if not 0 <= token < f.shape[-1]:
        raise ValueError(f"token={token} is not there: {f.shape[-1]} tokens are counted from 0")
