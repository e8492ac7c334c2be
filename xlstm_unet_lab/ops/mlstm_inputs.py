"""What goes into an mLSTM and stays behind, for every form: the state, the checks, and values of any size."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.ops.checks import flag, of_kind
from xlstm_unet_lab.ops.tensors import check_tensors, has_values, largest, widest, without_autocast

# Values up to here have products that float32 holds, and gates up to here have running sums that float64 holds to the
# digit; beyond, both are computed in another way.
LARGE = 1e4
ZERO_BELOW = -1000.0  # exp of it is 0 in float64, too


class MLSTMState(NamedTuple):
    """What an mLSTM remembers after a token, in at least float32."""

    C: Tensor  # (B, H, D, V) matrix memory, divided by exp(m)
    n: Tensor  # (B, H, D) normaliser, divided by exp(m)
    m: Tensor  # (B, H) stabiliser, the logarithm of the scale; -inf where nothing is stored


def empty_state(q: Tensor, v: Tensor) -> MLSTMState:
    """The state before the first token: nothing stored. q (B, H, ..., D), v (B, H, ..., V)."""
    C = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], device=q.device, dtype=widest(q))
    return MLSTMState(C, C.new_zeros(C.shape[:3]), C.new_full(C.shape[:2], -torch.inf))


def computed(form, inputs, initial_state, return_state, check_values, *, any_gates=False, dtype=None):
    """Check the input, run `form` outside autocast, give h back in q's dtype.

    `form` takes q, k, v in `dtype`, or None: at least float32, gates i and a = logsigmoid(f) and a state in at least
    float32. `any_gates` says that it is right for gates of any size as it stands.
    """
    flag("return_state", return_state)
    q, k, v, i, f = inputs
    check_inputs(q, k, v, i, f, initial_state, check_values)
    given, wide = q.dtype, computing_dtype(q, k, v, initial_state, check_values)
    with without_autocast(q):
        i, a, state = i.to(wide), F.logsigmoid(f.to(wide)), start(initial_state, q, v, wide)
        q, k, v = (x.to(dtype or wide) for x in (q, k, v))
        careful = check_values and not any_gates and has_values(q) and largest(i, a) > LARGE
        h, state = with_large_gates(form, q, k, v, i, a, state) if careful else form(q, k, v, i, a, state)
    return (h.to(given), state) if return_state else h.to(given)


def computing_dtype(q, k, v, state, check_values=True) -> torch.dtype:
    """At least float32, and float64 where values are so large that their products might overflow float32."""
    dtype = widest(q, *(state or ()))
    look = check_values and has_values(q) and dtype == torch.float32
    return gate_dtype(q) if look and largest(q, k, v, *(state or ())[:2]) > LARGE else dtype


def with_large_gates(form, q, k, v, i, a, state) -> tuple[Tensor, MLSTMState]:
    """Run a form on smaller gates that give the same function: a running sum that holds -1e30 holds nothing else.

    Adding c_t to i_t and to m_t, and c_t - c_{t-1} to a_t, changes no weight. c_t pulls m_t to where exp(-m_t) is 0 or
    as large as it is let; what is left of a gate is the exponent of a weight, and is 0 or a weight of 0. m_t itself
    comes from the recurrence, whose rounding decides what 1e30 - 1e30 leaves.
    """
    with torch.no_grad():
        m = [state.m]
        for i_t, a_t in zip(i.unbind(-1), a.unbind(-1), strict=True):
            m.append(torch.maximum(a_t + m[-1], i_t))
        before, after = torch.stack(m[:-1], -1), torch.stack(m[1:], -1)
        bounded = torch.stack(m, -1).to(gate_dtype(q)).clamp(ZERO_BELOW, -ZERO_BELOW)
    i = (i - after).clamp(min=ZERO_BELOW) + bounded[..., 1:]
    a = (a + before - after).clamp(min=ZERO_BELOW) + bounded.diff()
    h, last = form(q, k, v, i, a, state._replace(m=state.m.clamp(ZERO_BELOW, -ZERO_BELOW)))
    return h, last._replace(m=last.m + (after[..., -1] - bounded[..., -1].to(last.m.dtype)))


def gate_dtype(q: Tensor) -> torch.dtype:
    """Of sums of gates, whose differences count: float64 wherever the device has it."""
    return torch.float32 if q.device.type == "mps" else torch.float64


def start(state: MLSTMState | None, q: Tensor, v: Tensor, dtype: torch.dtype) -> MLSTMState:
    """The state to begin with, in `dtype`; None is an empty memory."""
    return MLSTMState(*(x.to(dtype) for x in (empty_state(q, v) if state is None else state)))


def check_inputs(q, k, v, i, f, state=None, check_values=True, axes=", S") -> None:
    """Raise ValueError that names the tensor, what was expected, and the fix; `axes` is "" for a single token."""
    rank = 3 + bool(axes)
    for name, x in {"q": q, "k": k, "v": v}.items():
        shape = tuple(getattr(x, "shape", ()))
        if len(shape) != rank or 0 in shape:
            found = f"shape {shape}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            raise ValueError(f"{name} has {found}, expected a tensor (B, H{axes}, width) with every size at least 1")
    *tokens, width = q.shape
    given = {"q": q, "k": k, "v": v, "i": i, "f": f}
    expected = {"q": q.shape, "k": q.shape, "v": (*tokens, v.shape[-1]), "i": tuple(tokens), "f": tuple(tokens)}
    if state is not None:
        of_kind("initial_state", state, tuple, list, fix=": an MLSTMState (C, n, m)")
        if len(state) != len(MLSTMState._fields):
            raise ValueError(f"the state has {len(state)} parts, expected an MLSTMState (C, n, m)")
        given |= {f"state.{name}": part for name, part in zip("Cnm", state, strict=True)}
        heads = tuple(q.shape[:2])
        expected |= {"state.C": (*heads, width, v.shape[-1]), "state.n": (*heads, width), "state.m": heads}
    layout = f"q, k are (B, H{axes}, D), v (B, H{axes}, V), i, f (B, H{axes})"
    check_tensors(given, expected, layout, check_values)
