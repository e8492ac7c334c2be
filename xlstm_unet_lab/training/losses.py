"""What training makes small: Dice plus cross-entropy, at one resolution or at every one the network gives."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean of soft Dice loss over the foreground classes, plus cross-entropy over all classes.

    logits (B, num_classes, *spatial) float, 2-D or 3-D, for exclusive classes (softmax); label (B, *spatial) integer,
    0 for background. Returns a scalar, computed in at least float32. Dice sums over the whole batch before dividing,
    so that a patch without a class does not count as a failure. Raises ValueError for shapes that do not fit, a label
    that is not integer, and label values without a class. Source: Milletari et al. 2016 (arXiv 1606.04797).
    """
    _check_shapes(logits, label)
    _check_label_values(label, num_classes=logits.shape[1])
    return _dice_and_cross_entropy()(_at_least_float32(logits), label[:, None].long())


def deep_supervision_loss(outputs: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
    """`segmentation_loss` at every resolution, each half the weight of the one above; the weights sum to 1.

    outputs: logits (B, num_classes, *spatial), highest resolution first, or one such tensor; label (B, *spatial)
    integer, at the highest resolution. The label is brought to each size by its nearest value. Raises ValueError as
    `segmentation_loss` does, and for an empty list. Source: nnU-Net (arXiv 1904.08128).
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not outputs:
        raise ValueError("outputs is empty: give logits of at least one resolution, the highest first")
    _check_shapes(outputs[0], label)
    weights = [0.5**level for level in range(len(outputs))]
    losses = [segmentation_loss(logits, resized_label(label, logits.shape[2:])) for logits in outputs]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)


def resized_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """The label (B, *spatial) at another grid size, each position taking the nearest value; dtype int64."""
    if tuple(label.shape[1:]) == tuple(size):
        return label.long()
    # float32 holds every integer up to 2^24 exactly, far above any class number
    return F.interpolate(label[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


@lru_cache(maxsize=1)
def _dice_and_cross_entropy() -> nn.Module:
    from monai.losses import DiceCELoss

    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_shapes(logits: Tensor, label: Tensor) -> None:
    if logits.ndim not in (4, 5) or logits.shape[1] < 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; expected (B, num_classes, *spatial) with 2 or 3 spatial "
            "dimensions and at least 2 classes, background included"
        )
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"label has dtype {label.dtype}; expected integers, as label.long() gives")
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(label.shape) != wanted:
        raise ValueError(
            f"label has shape {tuple(label.shape)}; logits {tuple(logits.shape)} need {wanted}, without a channel axis"
        )


def _check_label_values(label: Tensor, num_classes: int) -> None:
    lowest, highest = torch.aminmax(label)
    if lowest < 0 or highest >= num_classes:
        values = torch.unique(label)
        unknown = values[(values < 0) | (values >= num_classes)].tolist()
        raise ValueError(
            f"label holds {unknown[:5]}, the logits have classes 0..{num_classes - 1}: build the network with "
            f"num_classes={max(unknown) + 1} or map those values to a class"
        )
