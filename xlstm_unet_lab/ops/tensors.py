"""What every operator asks of its input tensors, and the dtype it computes in."""

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from xlstm_unet_lab.ops.checks import flag, of_kind

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def widest(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that holds what every one of them holds, at least float32."""
    return functools.reduce(torch.promote_types, (x.dtype for x in tensors if x is not None), torch.float32)


def gate_dtype(x: Tensor) -> torch.dtype:
    """Of sums of gates, whose differences count: float64 wherever the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Where autocast shortens nothing. The meta device, which computes nothing, has no autocast to turn off."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def is_recorded() -> bool:
    """Whether operations are being read off, not only run: by torch.export, torch.jit.trace, the export to ONNX, or a
    transform of torch.func. None of them can follow a gradient written by hand.
    """
    transformed = torch._C._are_functorch_transforms_active()  # as torch.autograd.Function asks; there is no public way
    return transformed or torch.jit.is_tracing() or torch.compiler.is_exporting()


def has_values(x: Tensor) -> bool:
    """Whether a decision can hang on values: not while they are recorded, compiled or counted, nor on "meta"."""
    return not (x.is_meta or isinstance(x, FakeTensor) or is_recorded() or torch.compiler.is_compiling())


def largest(*tensors: Tensor) -> float:
    """The largest magnitude in tensors that hold no NaN."""
    return max(abs(end.item()) for x in tensors for end in x.detach().aminmax())


def widened(dtype: torch.dtype, limit: float, *watched: Tensor) -> torch.dtype:
    """The dtype, but that of sums of gates where tensors without NaN are seen to hold values beyond `limit`."""
    return gate_dtype(watched[0]) if has_values(watched[0]) and largest(*watched) > limit else dtype


def parts_of(state: Sequence[Tensor] | None, kind: type[NamedTuple]) -> dict[str, Tensor]:
    """The parts of a state of this kind as "state.NAME", of None none; ValueError for another number of parts.

    TypeError for what is no tuple or list.
    """
    wanted = f"an {kind.__name__} ({', '.join(kind._fields)})"
    of_kind("initial_state", state, tuple, list, type(None), fix=f": {wanted}, or None to start from an empty one")
    if state is not None and len(state) != len(kind._fields):
        raise ValueError(f"the state has {len(state)} parts, expected {wanted}")
    return {f"state.{name}": part for name, part in zip(kind._fields, state or (), strict=False)}


def check_tensors(given: Mapping[str, Tensor], layouts: Mapping[str, str], check_values: bool = True) -> None:
    """Raise ValueError for the first tensor of another shape, dtype or device, or with values that are not finite.

    `layouts` names the axes of each, as "B, H, S, D": those of one name have one size in all, at least 1. The first
    tensor of `given` sets the device and is named beside a wrong shape. A stabiliser, "state.m", may hold -infinity: an
    empty memory has one. `check_values=False` skips the search for NaN and infinity, which a GPU would have to wait
    for; it is skipped, too, where there are no values to look at.
    """
    flag("check_values", check_values)
    lead, first = next(iter(given.items()))
    known: dict[str, int] = {"4": 4}  # an axis whose size is its name, beside those that have been seen
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, expected a tensor: use torch.as_tensor({name})")
        axes, shape = layouts[name].split(", "), tuple(tensor.shape)
        for axis, size in zip(axes, shape, strict=False) if 0 not in shape and len(shape) == len(axes) else ():
            known.setdefault(axis, size)
        wanted = tuple([known.get(axis, axis) for axis in axes])
        if shape != wanted:
            fit = "" if tensor is first else f" to fit {lead} {tuple(first.shape)}"
            words = str(wanted).replace("'", "") + fit
            raise ValueError(
                f"{name} has shape {shape}, expected {words}: ({layouts[name]}) with every size at least 1"
            )
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected floating point: call {name}.float()")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {first.device} as {lead}: use .to({lead}.device)")
    for name, tensor in given.items() if check_values and has_values(first) else ():
        # A sum is not finite if any term is not; the exact look is only taken then (finite terms can overflow).
        if tensor.detach().sum().isfinite():
            continue
        allowed = tensor.isfinite() | tensor.isneginf() if name == "state.m" else tensor.isfinite()
        if not allowed.all():
            bad = int((~allowed).sum())
            raise ValueError(f"{name} holds {bad} values that are not finite (NaN or infinity): find where they arise")
