"""Explorers: a few controls, and the picture and the sentences that follow from them. What they show is computed by
the package's functions; what they draw by its figures.

    explorer = gate_explorer(); explorer                      show it in a notebook
    explorer.controls["forget_gate"].value = -2               what moving a slider does, by program

Every control is a native widget with a label: Tab goes to it, the arrow keys change it.
"""

import functools
import html
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.patches import Rectangle
from scipy import ndimage
from torch import Tensor

from xlstm_unet_lab.course.pictures.comparison import cost_curves
from xlstm_unet_lab.course.pictures.mechanisms import AXES, chunk_structure, recall, scan_paths
from xlstm_unet_lab.data.colours import BLUE, GREY, VERMILION
from xlstm_unet_lab.data.patches import sample_patch
from xlstm_unet_lab.figures.cases import boundary_tolerance, draw_panel, legend, numbered, paint, to_picture
from xlstm_unet_lab.figures.picture import Picture, new_figure
from xlstm_unet_lab.figures.training_plot import ipywidgets
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.checks import whole_number
from xlstm_unet_lab.ops.scan_order import Traversal

ONLY_ASKING = (-1e6, 1e6)  # gates i, f of a token that stores nothing and forgets nothing
BEST_OF = 3  # runs of a measurement
WIDE = {"style": {"description_width": "12rem"}, "layout": {"width": "32rem"}}  # a control with a long label


class Explorer(ipywidgets.VBox):
    """Controls above the pictures they decide, and the pictures' descriptions as text that screen readers announce.

    draw: called with the controls' values by name whenever one of them changes; returns a Picture, or several.
    """

    def __init__(self, draw: Callable[..., Picture | Sequence[Picture]], **controls: ipywidgets.ValueWidget):
        self.draw, self.controls = draw, controls
        self.picture = ipywidgets.HTML(layout={"width": "100%"})
        self.text = ipywidgets.HTML(layout={"width": "100%"})
        super().__init__([*controls.values(), self.picture, self.text])
        for control in controls.values():
            control.observe(lambda _: self.redraw(), "value")
        self.redraw()

    def redraw(self) -> None:
        """Draw anew from what the controls say."""
        drawn = self.draw(**{name: control.value for name, control in self.controls.items()})
        pictures = [drawn] if isinstance(drawn, Picture) else drawn
        self.picture.value = "".join(picture.html() for picture in pictures)
        words = " ".join(picture.description for picture in pictures)
        self.text.value = f'<p role="status">{html.escape(words)}</p>'


def _slider(kind: type, description: str, value, **options) -> ipywidgets.Widget:
    """A slider that reports when it is let go or a key is pressed, as drawing takes a moment."""
    return kind(value=value, description=description, continuous_update=False, **WIDE, **options)


def gate_explorer(pairs: int = 6, width: int = 8, seed: int = 0) -> Explorer:
    """Key-value pairs stored in an mLSTM's matrix memory one after the other, and what each key recalls.

    Keys (pairs, width) and values (pairs, width) are random; one pair has an input gate of its own, those of the others
    are 0; all share the forget gate. Raises ValueError for fewer than 2 pairs or a width below 1.
    """
    whole_number("pairs", pairs, 2)
    whole_number("width", width)
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 1, pairs, width, generator=generator, dtype=torch.float64)

    def draw(forget_gate: float, input_gate: float, pair: int, asked: int) -> Picture:
        i, f = keys.new_zeros(1, 1, pairs), keys.new_full((1, 1, pairs), forget_gate)
        i[..., pair] = input_gate
        _, state = mlstm.recurrent(keys, keys, values, i, f, return_state=True)
        i, f = (keys.new_full((1, 1, pairs), gate) for gate in ONLY_ASKING)
        nothing = torch.zeros_like(keys)
        answers = mlstm.recurrent(keys, nothing, nothing, i, f, initial_state=state)
        return recall(state.C[0, 0], values[0, 0], answers[0, 0], asked)

    return Explorer(
        draw,
        forget_gate=_slider(ipywidgets.FloatSlider, "forget gate f of all pairs", 6.0, min=-6.0, max=8.0, step=0.5),
        input_gate=_slider(ipywidgets.FloatSlider, "input gate i of one pair", 0.0, min=-6.0, max=6.0, step=0.5),
        pair=_slider(ipywidgets.IntSlider, "that pair", 0, min=0, max=pairs - 1),
        asked=_slider(ipywidgets.IntSlider, "key asked with", 0, min=0, max=pairs - 1),
    )


def kept_bytes(form: Callable[..., Tensor], inputs: Sequence[Tensor]) -> int:
    """Bytes of all tensors that `form(*inputs)` keeps for its backward pass; one kept twice counts once.

    form: takes q, k, v, i, f and returns h, as `mlstm.run` does, or any other function of tensors.
    """
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        h = form(*(x.detach().requires_grad_() for x in inputs))
    del h  # not before all is noted: it holds what was kept, and freed memory may be handed out again
    return sum(kept.values())


def measure_chunk_size(inputs: Sequence[Tensor], chunk_size: int) -> tuple[float, int]:
    """Seconds of `mlstm.chunkwise` forward and backward, and bytes it keeps in between, inputs and outputs included.

    inputs: q, k, v, i, f as `mlstm.run` takes them. The least of a few runs, as others only add to it.
    """
    form = functools.partial(mlstm.chunkwise, chunk_size=chunk_size)
    inputs, seconds = [x.detach().requires_grad_() for x in inputs], []
    for _ in range(BEST_OF):
        start = time.perf_counter()
        h = form(*inputs)
        torch.autograd.grad(h.sum(), inputs)
        if h.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds), kept_bytes(form, inputs)


def chunk_size_explorer(
    length: int = 1024, width: int = 32, heads: int = 2, sizes: Sequence[int] = (8, 16, 32, 64, 128, 256, 512, 1024)
) -> Explorer:
    """How the chunkwise form cuts a sequence, and what it costs here: time and memory of every size chosen so far."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, length, width, generator=generator) for _ in "qkv"]
    inputs += [torch.randn(1, heads, length, generator=generator) + bias for bias in (0, 3)]
    measured: dict[int, tuple[float, int]] = {}

    def draw(chunk_size: int) -> list[Picture]:
        measured.setdefault(chunk_size, measure_chunk_size(inputs, chunk_size))
        seconds, memory = ({size: measured[size][part] for size in sorted(measured)} for part in (0, 1))
        costs = cost_curves({"time": seconds}, {"memory": memory}, against="tokens a chunk", slopes=False)
        return [chunk_structure(length, chunk_size), costs]

    sizes = [size for size in sizes if size <= length]
    middle = sizes[len(sizes) // 2]
    return Explorer(draw, chunk_size=_slider(ipywidgets.SelectionSlider, "tokens a chunk", middle, options=sizes))


def scan_order_explorer(size: tuple[int, ...] = (5, 8)) -> Explorer:
    """A grid walked in an order and direction, and what the token at a position can see. size: 2-D or 3-D."""
    names = AXES[-len(size) :]
    orders = {name: (axis,) for axis, name in enumerate(names)} | {"each in turn": tuple(range(len(size)))}
    directions = {"forward": (False,), "backward": (True,), "both ways": (False, True)}

    def draw(fastest: str, direction: str, **position: int) -> Picture:
        walks = [Traversal(axis, reverse) for axis in orders[fastest] for reverse in directions[direction]]
        return scan_paths(size, walks, tuple(position[name] for name in names))

    fastest = ipywidgets.Dropdown(options=list(orders), value=names[-1], description="fastest axis", **WIDE)
    direction = ipywidgets.Dropdown(options=list(directions), description="direction", **WIDE)
    places = {}
    for name, length in zip(names, size, strict=True):
        places[name] = _slider(ipywidgets.IntSlider, f"position {name}", length // 2, min=0, max=length - 1)
    return Explorer(draw, fastest=fastest, direction=direction, **places)


def boundary_tolerance_explorer(
    mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0), unit: str = "mm", largest_shift: int = 8
) -> Explorer:
    """A mask (y, x) against itself shifted, and how much of the surface agrees within a tolerance (NSD).

    Raises ValueError for a mask that is not 2-D or is empty.
    """
    mask = np.asarray(mask, bool)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(f"mask has shape {mask.shape} and {mask.sum()} pixels: give a mask (y, x) that is not empty")

    def draw(down: int, right: int, tolerance: float) -> Picture:
        shifted = ndimage.shift(mask, (down, right), order=0)
        return boundary_tolerance(mask, shifted, spacing=spacing, tolerance=tolerance, unit=unit)

    farthest = 2 * largest_shift * max(spacing)
    return Explorer(
        draw,
        down=_slider(ipywidgets.IntSlider, "shift down, pixels", 0, min=-largest_shift, max=largest_shift),
        right=_slider(ipywidgets.IntSlider, "shift right, pixels", 2, min=-largest_shift, max=largest_shift),
        tolerance=_slider(ipywidgets.FloatSlider, f"tolerance, {unit}", 1.0, min=0.0, max=farthest, step=0.5),
    )


def patch_places(
    image: np.ndarray, label: np.ndarray, boxes: Sequence[Sequence[slice]], colours: Mapping[str, str]
) -> Picture:
    """An image with its labels and the outlines of patches cut from it, and how much of each patch is foreground.

    image (C, *spatial), label (*spatial); boxes: one slice for each axis, which may reach beyond the image. Of a volume
    the slice (first axis) with most foreground is shown, with the patches that cross it.
    """
    shares = np.array([(label[tuple(slice(max(s.start, 0), s.stop) for s in box)] > 0).mean() for box in boxes])
    whole, shown = (label > 0).mean(), "image"
    crossing = list(zip(boxes, shares, strict=True))
    if label.ndim == 3:
        place = int((label > 0).sum((1, 2)).argmax())
        crossing = [(box[1:], share) for box, share in crossing if box[0].start <= place < box[0].stop]
        image, label, shown = image[:, place], label[place], f"slice {place}"
    figure = new_figure(9, 3.6)
    axes = figure.add_subplot(1, 2, 1)
    draw_panel(axes, paint(to_picture(image), label, numbered(colours)), f"{shown}, {len(crossing)} patches cross it")
    for (rows, columns), share in crossing:
        corner, sizes = (columns.start - 0.5, rows.start - 0.5), (columns.stop - columns.start, rows.stop - rows.start)
        colour, line = (VERMILION, "-") if share else (GREY, "--")
        axes.add_patch(Rectangle(corner, *sizes, fill=False, edgecolor=colour, linewidth=1.2, linestyle=line))
    legend(figure, colours, {"patch with foreground": VERMILION, "without": GREY})
    right = figure.add_subplot(1, 2, 2)
    right.hist(shares, bins=np.linspace(0, 1, 21), color=BLUE)
    right.axvline(whole, color="black", linestyle="--")
    right.set(xlabel="share of foreground in a patch; dashed: in the image", ylabel="patches")
    text = (
        f"{len(boxes)} random patches: {np.count_nonzero(shares)} hold foreground, {shares.mean():.1%} of an average "
        f"patch. Of the whole image {whole:.1%} is foreground."
    )
    return Picture(figure, text)


def patch_places_of(
    image: Tensor, label: Tensor, patch_size: tuple[int, ...], count: int, share: float, seed: int
) -> list[tuple[slice, ...]]:
    """Where `count` patches of `data.patches.sample_patch` lie, one slice an axis; arguments and errors as there."""
    # Each pixel's own coordinates, counted from 1, are cut in place of the image: what comes back says where from.
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(1.0, n + 1) for n in label.shape), indexing="ij"))
    generator, boxes = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        patch, _ = sample_patch(coordinates, label, patch_size, generator, share)
        # Along each axis the last place that is not padding, and the image's coordinate there.
        last = [int(line.movedim(axis, 0).flatten(1).amax(1).argmax()) for axis, line in enumerate(patch)]
        starts = [int(patch[axis].max()) - 1 - place for axis, place in enumerate(last)]
        boxes.append(tuple(slice(start, start + n) for start, n in zip(starts, patch_size, strict=True)))
    return boxes


def patch_explorer(
    image: Tensor, label: Tensor, colours: Mapping[str, str], patch_sizes: Sequence[int] = (16, 32, 64, 96)
) -> Explorer:
    """Where random patches fall on an image, and how much foreground they hold.

    image (C, *spatial) floating, label (*spatial) integer, as an item of a data set has them; colours: name -> colour
    of labels 1, 2, ...; patches have the same size along every axis.
    """

    def draw(size: int, share: float, count: int, seed: int) -> Picture:
        boxes = patch_places_of(image, label, (size,) * label.ndim, count, share, seed)
        return patch_places(image.numpy(), label.numpy(), boxes, colours)

    middle = patch_sizes[len(patch_sizes) // 2]
    return Explorer(
        draw,
        size=_slider(ipywidgets.SelectionSlider, "patch size", middle, options=patch_sizes),
        share=_slider(ipywidgets.FloatSlider, "share aimed at foreground", 0.3, min=0.0, max=1.0, step=0.1),
        count=_slider(ipywidgets.IntSlider, "patches", 20, min=1, max=100),
        seed=_slider(ipywidgets.IntSlider, "seed", 0, min=0, max=20),
    )
