"""Figures of what happens inside a network: gates, memories, weights, walks over a grid, and what they cost.

Arrays or tensors in, a `Picture` out. What is computed here is computed by the package's operators.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from xlstm_unet_lab.data.colours import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION
from xlstm_unet_lab.figures.cases import paint
from xlstm_unet_lab.figures.picture import AMOUNT, SIGNED, Picture, in_words, line_style, new_figure
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.checks import whole_number
from xlstm_unet_lab.ops.mlstm_chunkwise import Segment, compute_gates, cut
from xlstm_unet_lab.ops.scan_order import Traversal, to_grid

AXES = ("z", "y", "x")
MANY_TOKENS = 120  # above, numbers and arrows on a grid would no longer be readable
SMALLEST_SHARE = 1e-3  # of the largest gradient: a field is what lies above it
CLOSED = 0.5  # a stabilised gate below this lets less than half through


def _count(*axes) -> None:
    """Whole numbers along these axes, as tokens are counted."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator("auto", integer=True))


def _map(axes: Axes, values: np.ndarray, title: str, signed: bool = True, **options) -> Colorbar:
    """An image of numbers with its scale, which is returned; signed values in two hues around 0."""
    most = np.abs(values[np.isfinite(values)]).max(initial=0) or 1.0
    limits = {"cmap": SIGNED, "vmin": -most, "vmax": most} if signed else {"cmap": AMOUNT}
    image = axes.imshow(values, interpolation="nearest", **(limits | options))
    axes.set_title(title, fontsize=9)
    scale = axes.figure.colorbar(image, ax=axes, shrink=0.7)
    scale.ax.tick_params(labelsize=7)
    axes.tick_params(labelsize=7)
    return scale


def gate_traces(i: Tensor, f: Tensor) -> Picture:
    """Gates over the tokens of one head: pre-activations, what the stabiliser makes of them, and the stabiliser m_t.

    i, f (S,) pre-activations. Raises ValueError for another rank or shapes that differ.
    """
    i, f = (torch.as_tensor(x).detach().double() for x in (i, f))
    if i.ndim != 1 or i.shape != f.shape or not len(i):
        raise ValueError(f"i has shape {tuple(i.shape)} and f {tuple(f.shape)}, expected one head's (S,) for both")
    whole = Segment(0, len(i), 1)  # in chunks of one token the weights between chunks are the gates
    gates = compute_gates(i[None], F.logsigmoid(f)[None], i.new_full((1,), -torch.inf), whole, i.dtype)
    stored, kept, m = gates.writing.flatten().numpy(), gates.carrying.flatten().numpy(), gates.m.flatten().numpy()
    figure = new_figure(7, 4.6)
    panels = {
        "pre-activation": {"input gate i": i.numpy(), "forget gate f": f.numpy()},
        "stabilised gate": {"input: exp(i - m)": stored, "forget: exp(a + m before - m)": kept},
        "stabiliser m": {"m": m},
    }
    first = None
    for row, (name, lines) in enumerate(panels.items(), start=1):
        axes = first = figure.add_subplot(3, 1, row, sharex=first)
        for place, (label, values) in enumerate(lines.items()):
            axes.plot(values, **line_style(place if row < 3 else 2), label=label)
        axes.set_ylabel(name, fontsize=8)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("token")
    _count(axes.xaxis)
    closed = np.flatnonzero(kept[1:] < CLOSED) + 1  # before the first token there is nothing to forget
    text = (
        f"Gates of {len(m)} tokens. i goes from {i.min():.2f} to {i.max():.2f}, f from {f.min():.2f} to {f.max():.2f}. "
        f"The stabiliser is {m[0]:.2f} at first, {m.max():.2f} at most (token {m.argmax()}), {m[-1]:.2f} at the end. "
        f"The stabilised forget gate lets less than half of the memory through at {in_words(closed, 'token')}, the "
        f"input gate less than half of its token at {in_words(np.flatnonzero(stored < CLOSED), 'token')}."
    )
    return Picture(figure, text)


def decay_matrix(i: Tensor, f: Tensor) -> Picture:
    """The decay matrix of the parallel form, as logarithms and as stabilised weights. i, f (S,) of one head."""
    decay = mlstm.decay_matrix(*(torch.as_tensor(x).detach().double() for x in (i, f)))
    if decay.ndim != 2:
        raise ValueError(f"i has shape {tuple(decay.shape[:-1])}, expected one head's (S,)")
    weights = (decay - decay.amax(-1, keepdim=True)).exp()
    figure = new_figure(8, 3.4)
    left, right = figure.subplots(1, 2)
    _map(left, decay.masked_fill(decay.isinf(), torch.nan).numpy(), "logarithm: i_s + a_{s+1} + ... + a_t")
    _map(right, weights.numpy(), "stabilised: exp(logarithm - m_t)", signed=False, vmin=0, vmax=1)
    for axes in (left, right):
        axes.set(xlabel="token s, which is read", ylabel="token t, which reads")
    _count(left.xaxis, left.yaxis, right.xaxis, right.yaxis)
    last = weights[-1]
    reach = int((last >= CLOSED).sum())
    text = (
        f"The decay matrix of {len(decay)} tokens: 0 above the diagonal, where the future is. Its logarithms go from "
        f"{decay[decay.isfinite()].min():.2f} to {decay.max():.2f}. In the last row token {int(last.argmax())} weighs "
        f"most; {reach} of {len(last)} tokens weigh at least half as much."
    )
    return Picture(figure, text)


def chunk_structure(length: int, chunk_size: int) -> Picture:
    """Which pairs of tokens the chunkwise form puts into matrices, and which it reaches through states.

    Raises ValueError for a length or chunk size below 1.
    """
    whole_number("length", length)
    whole_number("chunk_size", chunk_size)
    chunks = [
        (start, start + segment.size)
        for segment in cut(length, chunk_size, torch.zeros(1))
        for start in range(segment.tokens.start, segment.tokens.stop, segment.size)
    ]
    figure = new_figure(4, 4)
    axes = figure.add_subplot()
    for start, end in chunks:
        axes.add_patch(Polygon([(start, start), (start, end), (end, end)], facecolor=BLUE, edgecolor="white"))
        if start:
            axes.add_patch(Rectangle((0, start), start, end - start, facecolor=SKY, edgecolor="white", alpha=0.6))
    axes.set(xlim=(0, length), ylim=(length, 0), aspect="equal")
    axes.set(xlabel="token s; dark: in a matrix, light: through a state", ylabel="token t, which reads")
    pairs = sum((end - start) * (end - start + 1) // 2 for start, end in chunks)
    every = length * (length + 1) // 2
    last = chunks[-1][1] - chunks[-1][0]
    text = (
        f"{length} tokens in {len(chunks)} {'chunks' if len(chunks) > 1 else 'chunk'} of {chunk_size}"
        + (f", the last of {last}" if last != chunk_size else "")
        + f": {pairs / every:.1%} of the {every} pairs of tokens are computed in matrices, the others through "
        f"{len(chunks) - 1} states handed on from chunk to chunk."
    )
    return Picture(figure, text)


def scan_paths(size: tuple[int, ...], walks: Sequence[Traversal], position: tuple[int, ...] | None = None) -> Picture:
    """How walks go over a grid, one row a walk, one column a slice of a volume; with a position, what it can see.

    size: of the grid, 2-D or 3-D; walks: as `scan_order.traversals` gives them. Cells a token at `position` can see,
    itself and those before it, are tinted. Raises ValueError for another rank and a position outside the grid.
    """
    if len(size) not in (2, 3) or (position is not None and tuple(position) not in np.ndindex(*size)):
        raise ValueError(f"size {size} and position {position}: expected a 2-D or 3-D grid and a place inside it")
    total, names = math.prod(size), AXES[-len(size) :]
    layers = (*[1] * (3 - len(size)), *size)  # a 2-D grid is a volume of one slice
    width, height = min(0.45 * size[-1] * layers[0], 9), min(0.45 * size[-2], 3)
    figure = new_figure(width + 1, (height + 0.6) * len(walks))
    rows = figure.subplots(len(walks), layers[0], squeeze=False)
    lines, together = [], np.zeros(total, bool)
    for row, walk in zip(rows, walks, strict=True):
        order = to_grid(torch.arange(total)[None, :, None], size, walk)[0, 0].numpy()
        path = np.argwhere(np.ones(layers))[order.ravel().argsort()]  # positions in the order walked
        name = f"{names[walk.fastest]} fastest, {'backward' if walk.reverse else 'forward'}"
        first, last = (tuple(map(int, path[end, -len(size) :])) for end in (0, -1))
        lines.append(f"{name}: from {first} to {last}")
        tint = np.zeros(size, int)
        if position is not None:
            number = int(order[tuple(position)])
            tint[order <= number], tint[tuple(position)] = 1, 2
            together |= order.ravel() <= number
            lines[-1] += f"; {tuple(position)} is token {number} and sees {number + 1} of {total}"
        for z, axes in enumerate(row):
            _draw_walk(axes, order.reshape(layers)[z], path, tint.reshape(layers)[z], z)
            axes.set_title(f"{name}, z = {z}" if len(size) == 3 else name, fontsize=8)
    text = f"{len(walks)} {'walks' if len(walks) > 1 else 'walk'} over a grid of {' x '.join(map(str, size))} tokens. "
    text += ". ".join(lines) + "."
    if position is not None:
        text += f" Together they show it {np.count_nonzero(together)} of {total} tokens."
    return Picture(figure, text)


def _draw_walk(axes: Axes, order: np.ndarray, path: np.ndarray, tint: np.ndarray, z: int) -> None:
    """One slice: numbers and arrows where they can be read, else the tint, or without one the numbers as a map.

    A step to a neighbour is a solid arrow, a jump to the next row or column a thin dashed one.
    """
    axes.set(xticks=[], yticks=[])
    if order.size > MANY_TOKENS and not tint.any():
        axes.imshow(order, cmap=AMOUNT, interpolation="nearest")
        return
    axes.imshow(paint(np.ones((*order.shape, 3)), tint, {1: SKY, 2: VERMILION}, opacity=0.6), interpolation="nearest")
    if order.size > MANY_TOKENS:
        return
    (_, y, x), steps = path[:-1].T, np.diff(path, axis=0)
    here = (path[:-1, 0] == z) & (steps[:, 0] == 0)
    beside = here & (np.abs(steps).sum(1) == 1)
    dy, dx = steps[beside, 1:].T
    axes.quiver(  # the middle half of each step to a neighbour, so that the numbers stay free
        *(x[beside] + dx / 4, y[beside] + dy / 4, dx / 2, dy / 2),
        **{"angles": "xy", "scale_units": "xy", "scale": 1, "units": "dots", "width": 1.5, "color": GREY},
    )
    gaps = {"shrinkA": 6, "shrinkB": 6}  # points, so that the numbers stay free
    turns = here & ~beside
    for start, step in zip(path[:-1][turns, :0:-1], steps[turns, :0:-1], strict=True):  # (x, y) each
        arrow = FancyArrowPatch(start, start + step, arrowstyle="-|>", mutation_scale=6, **gaps)
        axes.add_patch(arrow).set(linestyle="--", linewidth=0.8, color=GREY)
    for place, number in np.ndenumerate(order):
        axes.text(*place[::-1], str(number), ha="center", va="center", fontsize=7)


def receptive_field(gradient: Tensor, position: tuple[int, ...], title: str = "") -> Picture:
    """How much each input position moves one output: absolute gradients (*spatial), in powers of ten of the largest.

    Of a volume the three planes through `position` are shown. The title also begins the description. Raises ValueError
    for another rank, a position outside, and a gradient that is 0 everywhere.
    """
    gradient = torch.as_tensor(gradient).detach().double().abs().numpy()
    names = AXES[-gradient.ndim :]
    if gradient.ndim not in (2, 3) or tuple(position) not in np.ndindex(*gradient.shape) or not gradient.any():
        raise ValueError(f"gradient {gradient.shape} and position {position}: expected (y, x) or (z, y, x), not all 0")
    share = gradient / gradient.max()
    log, least = np.log10(np.maximum(share, SMALLEST_SHARE)), round(math.log10(SMALLEST_SHARE))
    planes = [None] if gradient.ndim == 2 else [0, 1, 2]
    figure = new_figure(3.6 * len(planes), 3.2)
    for axes, plane in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes, strict=True):
        shown = log if plane is None else log.take(position[plane], plane)
        rest = [axis for axis in range(gradient.ndim) if axis != plane]
        heading = ", ".join(filter(None, (title, "" if plane is None else f"{names[plane]} = {position[plane]}")))
        scale = _map(axes, shown, heading, signed=False, vmin=least, vmax=0)
        scale.set_label(f"log10 of the share of the largest ({least}: or less)", fontsize=7)
        _count(axes.xaxis, axes.yaxis, scale.ax.yaxis)
        axes.plot(position[rest[1]], position[rest[0]], "+", color=VERMILION, markersize=12, markeredgewidth=2)
        axes.set(xlabel=names[rest[1]], ylabel=names[rest[0]])
    inside = np.argwhere(share >= SMALLEST_SHARE)
    spans = [f"{name} {low} to {high}" for name, low, high in zip(names, inside.min(0), inside.max(0), strict=True)]
    strongest = tuple(map(int, np.unravel_index(gradient.argmax(), gradient.shape)))
    text = (f"{title}. " if title else "") + (
        f"The output at {tuple(position)} depends most on the input at {strongest}. "
        f"{len(inside) / gradient.size:.1%} of the input matters at least {SMALLEST_SHARE:g} times as much: "
        f"{', '.join(spans)}. The colours are powers of ten, the darkest {SMALLEST_SHARE:g} or less."
    )
    return Picture(figure, text)


def recall(memory: Tensor, values: Tensor, answers: Tensor, asked: int) -> Picture:
    """A memory matrix (D, V), how alike answers and stored values (S, V) are, and one answer beside its value."""
    memory, values, answers = (torch.as_tensor(x).detach().double() for x in (memory, values, answers))
    alike = F.cosine_similarity(values, answers, dim=-1).numpy()
    figure = new_figure(9, 2.8)
    left, middle, right = figure.subplots(1, 3)
    _map(left, memory.numpy(), "memory C")
    middle.bar(range(len(alike)), alike, color=[VERMILION if s == asked else BLUE for s in range(len(alike))])
    middle.set(xlabel="pair, in the order stored", ylabel="cosine similarity", ylim=(-1.05, 1.05))
    middle.set_title("how well each value is recalled", fontsize=9)
    right.plot(values[asked].numpy(), color=GREEN, marker="s", label="value stored")
    right.plot(answers[asked].numpy(), color=ORANGE, marker="o", linestyle="--", label="answer")
    right.set_title(f"asked with key {asked}", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    every = ", ".join(f"{one:.2f}" for one in alike)
    text = (
        f"Asked with key {asked} the memory gives its value with cosine similarity {alike[asked]:.2f}. Of the "
        f"{len(alike)} pairs in the order stored: {every}. The largest entry of the memory is {memory.abs().max():.2f}."
    )
    return Picture(figure, text)
