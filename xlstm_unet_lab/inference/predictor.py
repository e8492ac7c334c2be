"""A trained network at work: images in, labels and probabilities out, NumPy to NumPy, or files to files.

predictor = load_predictor("runs/first")      a run directory, or one file that `predictor.save` wrote
labels = predictor(image, spacing)            image (C, *spatial) as stored -> labels (*spatial)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.recipe import Track
from xlstm_unet_lab.data.resample import resampled_size, resized
from xlstm_unet_lab.inference.files import predict_files
from xlstm_unet_lab.inference.mirror import Mirrored
from xlstm_unet_lab.inference.sliding_window import check_rank, resized_slabs, sliding_slabs, whole_from_slabs
from xlstm_unet_lab.inference.trained import DONE, TrainedNetwork
from xlstm_unet_lab.ops.checks import checked_spacing
from xlstm_unet_lab.ops.devices import checked_device

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


@dataclass(frozen=True)
class Predictor(TrainedNetwork):
    """A trained network at work. Options of its methods are the fields of `Windows`: overlap, mirror, batch_size,
    device, track."""

    def __call__(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        """The label at every position: (*spatial), uint8 (uint16 where label values pass 255).

        image (C, *spatial) as stored, any real dtype; spacing: of all its spatial axes, None: the image has the
        network's. Of classes the most probable one counts; of regions those with a probability above 1/2, painted in
        their order. A large volume is predicted slab by slab, so that beside image and labels only a few patches' rows
        of probabilities are in memory. The network computes in evaluation mode and is put back as it was.
        Raises ValueError for an image, spacing or option that does not fit, TypeError for values that are no numbers.
        Warns when `spacing` is given and the network's is not known: the image is then used as it is.
        """

        def labels(image: np.ndarray, spacing, windows: Windows) -> np.ndarray:
            slabs = self._slabs(image, spacing, windows)
            return whole_from_slabs(map(self.labels_of, slabs), rows=image.shape[1], axis=0).numpy()

        return self._by_slice(labels, image, spacing, Windows(**options))

    def probabilities(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        """Probabilities of all channels, (channels, *spatial) float32: of classes they sum to 1 at every position.

        Arguments and errors as in a call.
        """

        def probabilities(image: np.ndarray, spacing, windows: Windows) -> np.ndarray:
            slabs = self._slabs(image, spacing, windows)
            return whole_from_slabs(map(Tensor.float, slabs), rows=image.shape[1], axis=1).numpy()

        return self._by_slice(probabilities, image, spacing, Windows(**options))

    def files(self, inputs, out: str | Path, **options) -> Iterator[Path]:
        """Predict image files and write label files to `out`, one a case: see `inference.files.predict_files`."""
        return predict_files(self, inputs, out, **options)

    def _by_slice(
        self, function: Callable[..., np.ndarray], image: np.ndarray, spacing: Sequence[float] | None, windows: Windows
    ) -> np.ndarray:
        """What `function` gives for the image or, where a network for slices is to see a volume, for each slice, put
        together again: `windows.track` then wraps the slices and not the windows."""
        image, axis = np.asarray(image), self.slice_axis
        if spacing is not None:
            spacing = checked_spacing(spacing, image.ndim - 1)
        if axis is None or image.ndim != 4:
            return function(self.as_prepared(image), spacing, windows)
        left = None if spacing is None else (*spacing[:axis], *spacing[axis + 1 :])
        slices = windows.track(list(np.moveaxis(image, axis + 1, 0)))
        found = [function(self.as_prepared(one), left, replace(windows, track=iter)) for one in slices]
        return np.stack(found, axis=found[0].ndim - 2 + axis)

    def _slabs(self, image: np.ndarray, spacing: tuple[float, ...] | None, windows: Windows) -> Iterator[Tensor]:
        """Probabilities (channels, rows, ...) of what the network sees, (C, *spatial), slab by slab on its own grid."""
        check_rank(image.shape, self.patch_size)
        axes, size = self.mirrored_along(windows.mirror), image.shape[1:]
        working_size = self._working_size(size, spacing)
        if windows.device is not None:
            self.network.to(checked_device(windows.device))
        if working_size != size:
            image = resized(torch.from_numpy(image.astype(np.float32)), working_size).numpy()
        if self.normalisation != DONE or working_size != size:  # resampling may have changed mean and deviation
            image = normalise(image)
        slabs = sliding_slabs(
            Mirrored(self.network, axes, self.exclusive) if axes else self.network,
            torch.from_numpy(image),
            patch_size=self.patch_size,
            overlap=windows.overlap,
            batch_size=WINDOWS_AT_ONCE[len(size)] if windows.batch_size is None else windows.batch_size,
            track=windows.track,
        )
        # map and not a generator: that would hold on to a slab while the windows of the next one are computed
        probabilities = map(self._probabilities_of, slabs)
        return probabilities if working_size == size else resized_slabs(probabilities, working_size, size)

    def _probabilities_of(self, logits: Tensor) -> Tensor:
        return self.targets_of(len(logits)).probabilities(logits)

    def _working_size(self, size: tuple[int, ...], spacing: tuple[float, ...] | None) -> tuple[int, ...]:
        """The grid size at which the image has the network's spacing."""
        if spacing is None:
            return size
        if self.spacing is None:
            warnings.warn(
                f"spacing={spacing} was not used: the spacing this network was trained at is not known here; give it "
                "to the Predictor, as load_predictor does",
                stacklevel=5,
            )
            return size
        return resampled_size(size, spacing, self.spacing)
