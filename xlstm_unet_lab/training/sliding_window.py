"""A network that was made for patches, applied to an image of any size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Dropout and the like off inside the block; afterwards every layer is back in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# no_grad and not inference_mode: a tensor the network keeps for its next call must stay usable in training.
@torch.no_grad()
def sliding_window(
    network: nn.Module, image: Tensor, *, patch_size: Sequence[int], overlap: float = 0.5, batch_size: int = 1
) -> Tensor:
    """Logits of the whole image from overlapping windows, each weighing most in its middle (Gaussian).

    image (C, *spatial), normalised, 2-D or 3-D, on any device; smaller than the patch is padded with zeros and cut
    back. Returns (num_classes, *spatial) in the network's floating dtype, on the CPU: only windows travel to the
    network's device. Of a network with deep supervision the first output counts. Raises ValueError for an image of
    another rank or channel count, a patch size below 1 and an overlap outside [0, 1).
    """
    patch_size = checked_patch_size(patch_size)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap} must be at least 0 and below 1: 0.5 lets windows share half their size")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1 window")
    _check_image(network, image, patch_size)
    from monai.inferers import sliding_window_inference

    reference = next(network.parameters(), torch.empty(0))

    def first_output(windows: Tensor) -> Tensor:
        outputs = network(windows)
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        return logits.to(reference.dtype)  # windows are added up in full precision, whatever autocast computes in

    with evaluation_mode(network):
        return sliding_window_inference(
            image[None].to("cpu", reference.dtype),
            roi_size=patch_size,
            sw_batch_size=batch_size,
            predictor=first_output,
            overlap=overlap,
            mode="gaussian",
            sw_device=reference.device,
            device="cpu",
        )[0]


def checked_patch_size(patch_size: Sequence[int]) -> tuple[int, ...]:
    """The patch size as a tuple of ints; ValueError unless it is 2 or 3 whole numbers of at least 1."""
    patch_size = tuple(patch_size) if isinstance(patch_size, Sequence) else (patch_size,)
    if len(patch_size) not in (2, 3) or not all(isinstance(size, Integral) and size >= 1 for size in patch_size):
        raise ValueError(f"patch_size={patch_size} must be 2 or 3 whole numbers of at least 1, in the order (z, y, x)")
    return tuple(int(size) for size in patch_size)


def _check_image(network: nn.Module, image: Tensor, patch_size: tuple[int, ...]) -> None:
    shape = tuple(image.shape)
    if len(shape) != len(patch_size) + 1:
        raise ValueError(
            f"image has shape {shape}; patch_size={patch_size} needs (C, *spatial) with {len(patch_size)} spatial "
            "dimensions: image[None] adds the channel axis, image[0] drops a batch axis"
        )
    channels = getattr(getattr(network, "config", None), "in_channels", shape[0])
    if shape[0] != channels:
        raise ValueError(
            f"image has {shape[0]} channels (shape {shape}), the network was built with in_channels={channels}"
        )
