"""From an image of any size to labels or probabilities: NumPy in, NumPy out."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_unet_lab.data.dataset import normalise
from xlstm_unet_lab.training.sliding_window import sliding_window

SAME_SPACING = 0.01  # spacings that differ by less than this share are taken as equal


def predict(
    model: nn.Module,
    image: np.ndarray,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    spacing: Sequence[float] | None = None,
    batch_size: int = 4,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """The most probable label at every position: (*spatial), uint8 (uint16 above 256 classes).

    Arguments and errors as in `predict_probabilities`.
    """
    probabilities = predict_probabilities(
        model, image, patch_size=patch_size, overlap=overlap, spacing=spacing, batch_size=batch_size, device=device
    )
    return probabilities.argmax(axis=0).astype(np.uint8 if len(probabilities) <= 256 else np.uint16)


def predict_probabilities(
    model: nn.Module,
    image: np.ndarray,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    spacing: Sequence[float] | None = None,
    batch_size: int = 4,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """Probabilities of all classes, (num_classes, *spatial) float32, summing to 1 at every position.

    image: (C, *spatial), 2-D or 3-D, any real dtype, not normalised (it is here, as training images are). Windows of
    `patch_size` share `overlap` of their size and weigh most in their middle; an image smaller than the patch is padded
    and cut back. `batch_size` windows are computed at once, on `device` (the model moves there and stays; by default
    where it is). `spacing` is the image's, in the order of its axes: when it differs from the model's
    `training_spacing`, the image is resampled to that and the probabilities back; without `spacing` the image is used
    as it is. The model computes in evaluation mode and is put back as it was.
    Raises ValueError for an image, patch size, overlap or spacing that does not fit, TypeError for values that are not
    numbers. Warns when `spacing` is given and the model carries no `training_spacing`: the image is then used as it is.
    """
    image = np.asarray(image)
    if image.ndim != len(patch_size) + 1:
        raise ValueError(
            f"image has shape {image.shape}; patch_size={tuple(patch_size)} needs (C, *spatial) with {len(patch_size)} "
            "spatial dimensions: image[None] adds the channel axis, image[0] drops a batch axis"
        )
    if device is not None:
        model.to(device)
    size = image.shape[1:]
    working_size = _working_size(model, size, spacing)
    if working_size != size:
        image = _resized(torch.from_numpy(image.astype(np.float32)), working_size).numpy()
    logits = sliding_window(
        model, torch.from_numpy(normalise(image)), patch_size=patch_size, overlap=overlap, batch_size=batch_size
    )
    return _resized(logits.float().softmax(dim=0), size).numpy()


def _working_size(model: nn.Module, size: tuple[int, ...], spacing: Sequence[float] | None) -> tuple[int, ...]:
    """The grid size at which the image has the spacing the model was trained at."""
    if spacing is None:
        return size
    if len(spacing) != len(size) or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"spacing={tuple(spacing)} must have {len(size)} finite sizes above 0, one a spatial axis")
    wanted = getattr(model, "training_spacing", None)
    if wanted is None:
        warnings.warn(
            f"spacing={tuple(spacing)} was not used: the model does not say what spacing it was trained at; "
            "set model.training_spacing, as fit and load_weights do",
            stacklevel=4,
        )
        return size
    if np.allclose(spacing, wanted, rtol=SAME_SPACING, atol=0):
        return size
    return tuple(max(1, round(n * own / other)) for n, own, other in zip(size, spacing, wanted, strict=True))


def _resized(channels: Tensor, size: tuple[int, ...]) -> Tensor:
    """(C, *spatial) at another grid size, by linear interpolation."""
    if tuple(channels.shape[1:]) == size:
        return channels
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(channels[None], size=size, mode=mode, align_corners=False)[0]
