"""Predictions of a network that is handed over alone: `predict` and `predict_probabilities`, NumPy in, NumPy out."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from xlstm_unet_lab.inference.predictor import Predictor


def predict(
    model: nn.Module, image: np.ndarray, *, patch_size: Sequence[int], spacing: Sequence[float] | None = None, **options
) -> np.ndarray:
    """The label at every position: (*spatial), uint8 (uint16 where label values pass 255).

    image: (C, *spatial), 2-D or 3-D, any real dtype, not normalised (it is here, as training images are). Windows of
    `patch_size` cover it; an image smaller than the patch is padded and cut back. `spacing` is the image's, in the
    order of its axes: when it differs from that of training, the image is resampled and the answer brought back.
    options: overlap, mirror, batch_size, device and track, the fields of `predictor.Windows`.
    What the model was trained on is known where `fit` trained it or `load_run` read it; of any other model channels are
    classes, and `spacing` cannot be used. `Predictor` says, with all errors, what happens.
    """
    return Predictor.known(model, patch_size)(image, spacing, **options)


def predict_probabilities(
    model: nn.Module, image: np.ndarray, *, patch_size: Sequence[int], spacing: Sequence[float] | None = None, **options
) -> np.ndarray:
    """Probabilities of all channels, (num_classes, *spatial) float32; of classes they sum to 1 at every position.

    Arguments and errors as in `predict`; of a model that learnt regions, one probability a region, each from 0 to 1.
    """
    return Predictor.known(model, patch_size).probabilities(image, spacing, **options)
