"""Probes: what can be read off a training run that went wrong, in few numbers. The failure lab of lesson 07 uses them.

A probe says what it finds and draws no conclusion.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from xlstm_unet_lab.nn.vil import MLSTMCell

PRECISIONS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
WINDOW = 5  # pixels along each axis; noise makes windows of this size unique
Loss = Callable[[Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """What a run noted after a step."""

    step: int
    loss: float


@dataclass(frozen=True)
class Run:
    """What its owner hands over: a complaint, the data, the log, and the network as it was at the last step."""

    complaint: str
    train: list[dict]  # items: image (C, *spatial) float32, normalised; label (*spatial) int64; spacing
    val: list[dict]
    precision: str = "float32"  # the numbers it was computed in
    records: list[Step] = field(default_factory=list)
    model: nn.Module | None = None  # a run that was only scored has none, and neither loss nor batch
    loss: Loss | None = None
    image: Tensor | None = None  # the batch of the last step
    label: Tensor | None = None


def replay(run: Run) -> dict[str, str]:
    """The last batch once more, with numbers as large as float16, float32 and float64 can hold: what overflows first.

    Computes in float64 and rounds the result of every module of network and loss to the format asked for. Answers with
    the module and the largest number that it gives, or "finite"; empty for a run that kept no network.
    """
    if run.model is None:
        return {}
    return {name: (_overflows(run, dtype) or ["finite"])[0] for name, dtype in PRECISIONS.items()}


def largest_gate(run: Run) -> float:
    """The largest input-gate pre-activation of all mLSTM cells on the last batch; 0 where there is no such cell."""
    largest, model = [0.0], copy.deepcopy(run.model)
    cells = [module for module in model.modules() if isinstance(module, MLSTMCell)] if model else []
    for cell in cells:
        cell.register_forward_pre_hook(
            lambda cell, inputs: largest.append(cell.heads_and_gates(*inputs)[3].max().item())
        )
    if cells:
        with torch.no_grad():
            model.eval()(run.image)
    return max(largest)


def shared_share(run: Run) -> float:
    """The share of validation windows of WINDOW pixels along each axis that also occur in a training image.

    Windows that are all one value are left out: empty background is alike everywhere.
    """
    weights = np.random.default_rng(0).integers(1, 2**63, WINDOW ** run.val[0]["label"].ndim, dtype=np.uint64)
    known = np.unique(np.concatenate([_fingerprints(item["image"], weights, 1) for item in run.train]))
    asked = np.concatenate([_fingerprints(item["image"], weights, WINDOW) for item in run.val])
    return float(np.isin(asked, known).mean())


def extent(run: Run) -> list[tuple[float, ...]]:
    """How long each validation image is along its axes (z, y, x), in the unit of its spacing: size times spacing."""
    return [tuple(float(n * s) for n, s in zip(item["label"].shape, item["spacing"], strict=True)) for item in run.val]


def pulls(run: Run, most: int = 8) -> list[tuple[float, float]]:
    """For some training patches (foreground share, pull): how strongly the patch pulls on its logits.

    The pull is the sum of absolute gradients of the loss over the patch's logits, up to `most` patches without
    foreground and as many with, in one batch, sorted by share. Empty for a run that kept no network.
    """
    if run.model is None:
        return []
    shares = [float((item["label"] > 0).float().mean()) for item in run.train]
    chosen = [n for n, share in enumerate(shares) if share == 0][:most] + [n for n, s in enumerate(shares) if s][:most]
    image, label = (torch.stack([run.train[n][what] for n in chosen]) for what in ("image", "label"))
    with torch.no_grad():
        logits = copy.deepcopy(run.model).double().eval()(image.double())
    (gradient,) = torch.autograd.grad(run.loss(logits.requires_grad_(), label), logits)
    return sorted(zip([shares[n] for n in chosen], gradient.abs().flatten(1).sum(1).tolist(), strict=True))


def readings(run: Run) -> dict[str, float | str | tuple[float, ...]]:
    """What the probes read, in few numbers.

    precision; overflow: what `replay` says of it, "" where nothing overflows; largest gate; shared: `shared_share`;
    extent: of the first validation volume, () for pictures; pull of empty patches: of the mean patch without foreground
    as a share of that with, 1 where there are no two to compare.
    """
    without, with_it = ([pull for share, pull in pulls(run) if bool(share) is there] for there in (False, True))
    return {
        "precision": run.precision,
        "overflow": replay(run).get(run.precision, "").replace("finite", ""),
        "largest gate": largest_gate(run),
        "shared": shared_share(run),
        "extent": extent(run)[0] if run.val[0]["label"].ndim == 3 else (),
        "pull of empty patches": float(np.mean(without) / np.mean(with_it)) if without and with_it else 1.0,
    }


def _overflows(run: Run, dtype: torch.dtype) -> list[str]:
    """Compute network and loss on the last batch; name every innermost module whose result the format cannot hold."""
    found: list[str] = []

    def rounded(name: str, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return tuple(rounded(name, part) for part in output)
        result = output.to(dtype).to(output.dtype)
        if not torch.isfinite(result).all():
            found.append(f"{name}, which gives {output.abs().max():.4g}")
        return result

    model, loss = copy.deepcopy((run.model, run.loss))
    parts = nn.ModuleDict({"network": model} | ({"loss": loss} if isinstance(loss, nn.Module) else {}))
    for name, module in parts.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output, name=name: rounded(name, output))
    with torch.no_grad():
        loss(model.double().eval()(run.image.double()), run.label)
    return found


def _fingerprints(image: Tensor, weights: np.ndarray, step: int) -> np.ndarray:
    """One number for what is in each window of the first channel, at every `step`-th place; flat windows left out."""
    channel = np.ascontiguousarray(image[0].numpy())
    windows = np.lib.stride_tricks.sliding_window_view(channel, (WINDOW,) * channel.ndim)
    windows = windows[(slice(None, None, step),) * channel.ndim].reshape(-1, len(weights))
    windows = windows[windows.min(1) < windows.max(1)]
    # The sum runs round at 2^64, which is as good as any other number.
    return windows.view(np.uint32).astype(np.uint64) @ weights
