"""Random arguments for the cases of several lessons, the same for the same seed."""

import torch


def random_tensors(*shapes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Normal numbers in float64, one tensor a shape."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def mlstm_inputs(length: int, seed: int, gates: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, ...]:
    """q, k (length, 4), v (length, 3), i, f (length,) of one head; `gates` scales both gates, `shift` moves i."""
    q, k, v, i, f = random_tensors((length, 4), (length, 4), (length, 3), (length,), (length,), seed=seed)
    return q, k, v, gates * i + shift, gates * f + 2
