"""A number that is not finite stops a run: name where it arose first, and keep what is needed to look at it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from xlstm_unet_lab.inference.sliding_window import evaluation_mode
from xlstm_unet_lab.models.weights import save_tensors, save_weights
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.training.config import TrainConfig


def first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in named if not torch.isfinite(tensor).all()), None)


def bad_in_forward(fabric, model: nn.Module, image: Tensor, outputs: list[Tensor]) -> str:
    """Where a loss went wrong: the image, a weight, else the first module whose output is not finite, run once more."""
    if culprit := first_bad([("the image", image), *model.named_parameters()]):
        return culprit
    bad: list[str] = []
    names = {module: name for name, module in model.named_modules() if name}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        tensors = output if isinstance(output, (list, tuple)) else [output]
        if module in names and any(isinstance(x, Tensor) and not torch.isfinite(x).all() for x in tensors):
            bad.append(names[module])

    with register_module_forward_hook(note), torch.no_grad(), fabric.autocast():
        model(image)
    bad_output = first_bad((f"output {level}", output) for level, output in enumerate(outputs))
    return f"the output of {bad[0]}" if bad else bad_output or "the loss"


def bad_gradient(model: nn.Module) -> str:
    """The parameter whose gradient went wrong first; gradients are computed backwards, the last layer's first."""
    named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    culprit = first_bad(reversed(named))
    return f"the gradient of {culprit}" if culprit else "the norm of all gradients"


def wrong_in_bfloat16(model: nn.Module, image: Tensor) -> str | None:
    """Why training in bfloat16 on a CPU would go wrong unseen, at an image (1, C, z, y, x); None where it would not.

    There, with torch 2.15 and oneDNN 3.13, the weight gradient of a convolution that is deeper than its input holds
    whatever lay in memory: often finite, always wrong. The model computes the image once.
    """
    shallow: list[str] = []
    convolutions = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv3d)}

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        if module in convolutions and module.stride[0] == 1 and module.kernel_size[0] > inputs[0].shape[2] > 1:
            shallow.append(f"{convolutions[module]} ({inputs[0].shape[2]} deep, its kernel {module.kernel_size[0]})")

    with evaluation_mode(model), register_module_forward_pre_hook(note), torch.no_grad():
        model(image)
    words = "on this CPU 'bf16-mixed' gives wrong gradients where a kernel is deeper than its input"
    return f"{words}: {shallow[0]}. Train in '32-true', or with deeper patches or fewer stages" if shallow else None


def not_finite(
    fabric, model: nn.Module, batch: dict, step: int, what: str, config: TrainConfig, folder: Path | None
) -> FloatingPointError:
    """The error to raise. With a run's `folder`, batch, weights and facts are written to not_finite_step_N in it."""
    kept = ""
    if folder is not None:
        place = folder / f"not_finite_step_{step}"
        place.mkdir(exist_ok=True)
        save_tensors({k: batch[k] for k in ("image", "label")}, place / f"batch_{fabric.global_rank}.safetensors")
        if fabric.is_global_zero:
            save_weights(model, place / "weights.safetensors", {"step": step})
            facts = {"step": step, "tensor": what, "precision": config.precision, "cases": list(batch["name"])}
            write_whole(place / "facts.json", json.dumps(facts, indent=2).encode())
        kept = f" The batch and the weights are in {place}."
    return FloatingPointError(
        f"step {step}: {what} is not finite, and the step was not taken. Check the images for extreme values, lower "
        f"learning_rate={config.learning_rate}, or compute in '32-true' (now precision={config.precision!r}).{kept}"
    )
