"""From an image of any size to labels or probabilities: NumPy in, NumPy out."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.resample import checked_spacing, resampled_size, resized
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.sliding_window import check_rank, first_output, joined, resized_slabs, sliding_slabs

WINDOWS_AT_ONCE = {2: 4, 3: 1}  # by spatial dimensions


def predict(
    model: nn.Module,
    image: np.ndarray,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    mirror: bool | Sequence[int] = False,
    spacing: Sequence[float] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    track: Track = iter,
) -> np.ndarray:
    """The label at every position: (*spatial), uint8 (uint16 where label values pass 255).

    Of classes the most probable one; of regions (`model.targets`) those with a probability above 1/2, painted in their
    order. A large volume is predicted slab by slab, so that beside image and labels only a few patches' rows of
    probabilities are in memory. Arguments and errors as in `predict_probabilities`.
    """
    slabs = _probability_slabs(model, image, patch_size, overlap, mirror, spacing, batch_size, device, track)
    return joined(map(partial(labels_of, model), slabs), rows=np.shape(image)[1], axis=0).numpy()


def predict_probabilities(
    model: nn.Module,
    image: np.ndarray,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    mirror: bool | Sequence[int] = False,
    spacing: Sequence[float] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    track: Track = iter,
) -> np.ndarray:
    """Probabilities of all classes, (num_classes, *spatial) float32, summing to 1 at every position.

    Of a model whose `targets` are regions: one probability a region, each between 0 and 1.
    image: (C, *spatial), 2-D or 3-D, any real dtype, not normalised (it is here, as training images are). Windows of
    `patch_size` share `overlap` of their size and weigh most in their middle; an image smaller than the patch is padded
    and cut back. `mirror` names spatial axes, counted from 0 (True: all of them): every window is also predicted
    mirrored along each combination of them, and the probabilities are averaged; 2 axes take 4 times as long, 3 take 8.
    Mirror only along axes the model was trained to be mirrored along. `batch_size` windows are computed at once (None:
    4 in 2-D, 1 in 3-D, where one is work enough and memory is short), on `device` (the model moves there and stays; by
    default where it is). `spacing` is the image's, in the order of its axes: when it differs from the model's
    `training_spacing`, the image is resampled to that and the probabilities back; without `spacing` the image is used
    as it is. `track` wraps the batches of windows, to draw a progress bar or, by raising, to stop between two of them.
    The model computes in evaluation mode and is put back as it was.
    Raises ValueError for an image, patch size, overlap, axis or spacing that does not fit, TypeError for values that
    are not numbers. Warns when `spacing` is given and the model carries no `training_spacing`: the image is then used
    as it is.
    """
    slabs = _probability_slabs(model, image, patch_size, overlap, mirror, spacing, batch_size, device, track)
    return joined(map(Tensor.float, slabs), rows=np.shape(image)[1], axis=1).numpy()


def slice_by_slice(
    function: Callable[..., np.ndarray],
    model: nn.Module,
    image: np.ndarray,
    *,
    axis: int | None,
    spacing: Sequence[float] | None = None,
    **options,
) -> np.ndarray:
    """What `function` gives for every slice of a volume, put together again: how a network for images sees a volume.

    function: `predict`, `predict_probabilities` or another that takes (model, image, spacing=..., **options) and
    answers (*spatial) or (channels, *spatial). image (C, z, y, x) and the spacing of all three axes; slices are cut
    across `axis` 0, 1 or 2. With `axis=None` the image is handed over as it is. `track` wraps the slices here, and the
    batches of windows where the image is handed over. Raises ValueError for another axis or image, and as the function
    does.
    """
    if axis is None:
        return function(model, image, spacing=spacing, **options)
    if axis not in range(3) or np.ndim(image) != 4:
        raise ValueError(
            f"slices across axis {axis!r} of an image of shape {np.shape(image)} were asked for; they are cut across "
            "axis 0, 1 or 2 of (C, z, y, x)"
        )
    left = None if spacing is None else tuple(size for place, size in enumerate(spacing) if place != axis)
    slices = options.pop("track", iter)(list(np.moveaxis(image, axis + 1, 0)))
    found = [function(model, one, spacing=left, **options) for one in slices]
    return np.stack(found, axis=found[0].ndim - 2 + axis)


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


def mirror_axes(mirror: bool | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """The spatial axes `mirror` stands for; ValueError for one that is not there or stands twice."""
    axes = tuple(range(spatial_dims) if mirror else ()) if isinstance(mirror, bool) else tuple(mirror)
    if len(set(axes)) != len(axes) or not set(axes) <= set(range(spatial_dims)):
        raise ValueError(f"mirror={mirror} must be True, False or different axes from 0 to {spatial_dims - 1}")
    return axes


def targets_of(model: nn.Module, channels: int) -> Targets:
    """What the model's output channels stand for: `model.targets`, or as many classes, numbered from 0.

    Raises ValueError when the model carries targets of another number.
    """
    targets = getattr(model, "targets", None)
    if targets is None:
        return Targets.classes({f"class {value}": value for value in range(channels)})
    if len(targets.names) != channels:
        raise ValueError(
            f"model.targets names {len(targets.names)} channels {targets.names}, the model gives {channels}"
        )
    return targets


def is_exclusive(model: nn.Module) -> bool:
    """Whether the model's channels are classes, of which each position has one, and no regions."""
    targets = getattr(model, "targets", None)
    return targets is None or targets.exclusive


def _probabilities(model: nn.Module, logits: Tensor) -> Tensor:
    return targets_of(model, len(logits)).probabilities(logits)


def labels_of(model: nn.Module, probabilities: Tensor) -> Tensor:
    """(channels, *spatial) probabilities -> the labels `predict` gives, (*spatial), uint8 or uint16."""
    targets = targets_of(model, len(probabilities))
    largest = max(targets.painted or (values[0] for values in targets.values))
    return targets.labels(probabilities).to(torch.uint8 if largest < 256 else torch.uint16)


def _probability_slabs(
    model: nn.Module,
    image: np.ndarray,
    patch_size: Sequence[int],
    overlap: float,
    mirror: bool | Sequence[int],
    spacing: Sequence[float] | None,
    batch_size: int | None,
    device: torch.device | str | None,
    track: Track,
) -> Iterator[Tensor]:
    """Probabilities (channels, rows, ...) of the image on its own grid, slab by slab along its first axis."""
    image = np.asarray(image)
    check_rank(image.shape, patch_size)
    axes = mirror_axes(mirror, len(patch_size))
    size = image.shape[1:]
    working_size = _working_size(model, size, spacing)
    if device is not None:
        model.to(device)
    if working_size != size:
        image = resized(torch.from_numpy(image.astype(np.float32)), working_size).numpy()
    network = Mirrored(model, axes, exclusive=is_exclusive(model)) if axes else model
    if batch_size is None:
        batch_size = WINDOWS_AT_ONCE[len(patch_size)]
    slabs = sliding_slabs(
        network,
        torch.from_numpy(normalise(image)),
        patch_size=patch_size,
        overlap=overlap,
        batch_size=batch_size,
        track=track,
    )
    # map and not a generator: that would hold on to a slab while the windows of the next one are computed
    probabilities = map(partial(_probabilities, model), slabs)
    return probabilities if working_size == size else resized_slabs(probabilities, working_size, size)


def _working_size(model: nn.Module, size: tuple[int, ...], spacing: Sequence[float] | None) -> tuple[int, ...]:
    """The grid size at which the image has the spacing the model was trained at."""
    if spacing is None:
        return size
    spacing = checked_spacing(tuple(map(float, spacing)), len(size))
    wanted = getattr(model, "training_spacing", None)
    if wanted is None:
        warnings.warn(
            f"spacing={spacing} was not used: the model does not say what spacing it was trained at; "
            "set model.training_spacing, as fit and load_weights do",
            stacklevel=4,
        )
        return size
    return resampled_size(size, spacing, wanted)
