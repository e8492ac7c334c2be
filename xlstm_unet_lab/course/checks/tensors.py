"""Tensors that the cases of several lessons are made of; float64, the same numbers on every machine."""

import math

import torch
from torch import Tensor, nn


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counting(*shape: int) -> Tensor:
    """0, 1, 2 ... in the order they lie in memory."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def redrawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, without gradients and with normally distributed weights from a seed, in place."""
    module.double().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(0.5 * randn(*parameter.shape, seed=seed))
    return module
