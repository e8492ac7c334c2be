"""What training makes small: Dice plus cross-entropy, at one resolution or at every one the network gives."""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from xlstm_unet_lab.data.resample import resized_label
from xlstm_unet_lab.data.targets import Targets

SMOOTHING = 1e-5  # voxels added to both sides of Dice's fraction, so that a class absent everywhere costs nothing
AddUp = Callable[[Tensor], Tensor]  # from the sums of this process to those of all processes


def segmentation_loss(
    logits: Tensor, label: Tensor, targets: Targets | None = None, add_up: AddUp | None = None
) -> Tensor:
    """Mean of soft Dice loss over what is to be found, plus cross-entropy.

    logits (B, channels, *spatial) float, 2-D or 3-D; label (B, *spatial) integer, 0 for background. Without `targets`,
    or with exclusive ones, channel k is class k (softmax; Dice leaves out the background). With regions every channel
    is a yes or no of its own (sigmoid and binary cross-entropy, the mean over channels). Returns a scalar, computed in
    at least float32. Dice sums over the whole batch before dividing, so that a patch without a class does not count as
    a failure; `add_up` lets it sum over the batches of other processes too. Raises ValueError for shapes that do not
    fit, a label that is not integer, and label values without a class. Source: Milletari et al. 2016, arXiv 1606.04797.
    """
    _check_shapes(logits, label, targets)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if _overlap(targets):
        truth = targets.one_hot(label).to(logits.dtype)
        return _dice_loss(logits.sigmoid(), truth, add_up) + F.binary_cross_entropy_with_logits(logits, truth)
    _check_label_values(label, num_classes=logits.shape[1])
    label = label.long()
    classes = torch.arange(1, logits.shape[1], device=label.device).view(-1, *[1] * (label.ndim - 1))
    truth = label[:, None] == classes  # (B, classes, *spatial)
    return _dice_loss(logits.softmax(1)[:, 1:], truth, add_up) + F.cross_entropy(logits, label)


def deep_supervision_loss(
    outputs: Tensor | Sequence[Tensor], label: Tensor, targets: Targets | None = None, add_up: AddUp | None = None
) -> Tensor:
    """`segmentation_loss` at every resolution, each half the weight of the one above; the weights sum to 1.

    outputs: logits (B, channels, *spatial), highest resolution first, or one such tensor; label (B, *spatial)
    integer, at the highest resolution. The label is brought to each size by its nearest value. Raises ValueError as
    `segmentation_loss` does, and for an empty list. Source: nnU-Net (arXiv 1904.08128).
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not outputs:
        raise ValueError("outputs is empty: give logits of at least one resolution, the highest first")
    _check_shapes(outputs[0], label, targets)
    weights = [0.5**level for level in range(len(outputs))]
    losses = [segmentation_loss(logits, resized_label(label, logits.shape[2:]), targets, add_up) for logits in outputs]
    weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
    return sum(weighted, start=torch.zeros_like(losses[0])) / sum(weights)


def _dice_loss(probabilities: Tensor, truth: Tensor, add_up: AddUp | None) -> Tensor:
    """1 - 2 |P T| / (|P| + |T|), averaged over channels; both (B, channels, *spatial)."""
    axes = [0, *range(2, truth.ndim)]
    overlap = (probabilities * truth).sum(axes)
    sizes = probabilities.sum(axes) + truth.sum(axes)
    if add_up is not None:
        overlap, sizes = add_up(torch.stack([overlap, sizes]))
    return 1 - ((2 * overlap + SMOOTHING) / (sizes + SMOOTHING)).mean()


def _overlap(targets: Targets | None) -> TypeGuard[Targets]:
    return targets is not None and not targets.exclusive


def _check_shapes(logits: Tensor, label: Tensor, targets: Targets | None) -> None:
    channels = logits.shape[1] if logits.ndim in (4, 5) else 0
    if _overlap(targets):
        fits, expected = channels == len(targets.names), f"{len(targets.names)} channels, one a region"
    else:
        fits, expected = channels >= 2, "at least 2 classes, background included"
    if not fits:
        rule = f"expected (B, channels, *spatial), 2-D or 3-D, and {expected}"
        raise ValueError(f"logits have shape {tuple(logits.shape)}; {rule}")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"label has dtype {label.dtype}; expected integers, as label.long() gives")
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(label.shape) != wanted:
        raise ValueError(f"label has shape {tuple(label.shape)}; logits {tuple(logits.shape)} need {wanted}")


def _check_label_values(label: Tensor, num_classes: int) -> None:
    if unknown := label[(label < 0) | (label >= num_classes)].unique().tolist():
        advice = f"build the network with num_classes={max(unknown) + 1} or map those values to a class"
        raise ValueError(f"label holds {unknown[:5]}, the logits have classes 0..{num_classes - 1}: {advice}")
