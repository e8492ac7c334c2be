"""Arguments for the cases of several lessons, most of them random, the same for the same seed."""

import math

import torch
from torch import nn


def random_tensors(*shapes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Normal numbers in float64, one tensor a shape."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return random_tensors(shape, seed=seed)[0]


def redrawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The same module in float64, without gradients and with normal weights of standard deviation 0.5."""
    parameters = tuple(module.double().requires_grad_(False).parameters())
    drawn = random_tensors(*(parameter.shape for parameter in parameters), seed=seed)
    for parameter, values in zip(parameters, drawn, strict=True):
        parameter.copy_(0.5 * values)
    return module


def counting(*shape: int) -> torch.Tensor:
    """0, 1, 2 ... in the order in which they lie in memory, float64."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def mlstm_inputs(length: int, seed: int, gates: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, ...]:
    """q, k (length, 4), v (length, 3), i, f (length,) of one head; `gates` scales both gates, `shift` moves i."""
    q, k, v, i, f = random_tensors((length, 4), (length, 4), (length, 3), (length,), (length,), seed=seed)
    return q, k, v, gates * i + shift, gates * f + 2
