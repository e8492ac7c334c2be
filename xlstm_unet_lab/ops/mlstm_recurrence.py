"""The recurrence of `mlstm`, a token at a time, and what every form has from it: state, checks, values of any size."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.ops import tensors
from xlstm_unet_lab.ops.checks import flag
from xlstm_unet_lab.ops.tensors import gate_dtype, has_values, largest, widened, widest, without_autocast

EPSILON = 1e-6  # added to the normaliser; part of the published function, and so of its gradient
# Values up to here have products that float32 holds, and input gates up to here have running sums that float64 holds to
# the digit; beyond, both are computed in another way.
LARGE = 1e4
ZERO_BELOW = -1000.0  # exp of it is 0 in float64, too
HIGHEST = 1e8  # input gates beyond, which float32 knows to within 8, count as this where nobody looks at values


class MLSTMState(NamedTuple):
    """What an mLSTM remembers after a token, in at least float32."""

    C: Tensor  # (B, H, D, V) matrix memory, divided by exp(m)
    n: Tensor  # (B, H, D) normaliser, divided by exp(m)
    m: Tensor  # (B, H) stabiliser, the logarithm of the scale; -inf where nothing is stored


def empty_state(q: Tensor, v: Tensor) -> MLSTMState:
    """The state before the first token: nothing stored. q (B, H, ..., D), v (B, H, ..., V)."""
    C = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], device=q.device, dtype=widest(q))
    return MLSTMState(C, C.new_zeros(C.shape[:3]), C.new_full(C.shape[:2], -torch.inf))


def stabilised_one(m: Tensor) -> Tensor:
    """exp(-m), held just below overflow: an output that small is zero either way, and its gradient stays finite."""
    return (-m).clamp(max=math.log(torch.finfo(m.dtype).max) - 1).exp()


def compute_normaliser(overlap: Tensor, m: Tensor) -> Tensor:
    """max(|q . n|, exp(-m)) + epsilon in the dtype of `overlap`, which is q . n; it and m have the same shape."""
    return torch.maximum(overlap.abs(), stabilised_one(m.to(overlap.dtype))) + EPSILON


def step(state: MLSTMState | None, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, MLSTMState]:
    """Read one token and answer it.

    q, k (B, H, D), v (B, H, V), i, f (B, H); `state` None means an empty memory. Returns h (B, H, V) and the new state.
    Raises ValueError for a wrong rank, dtype or length and for values that are not finite.
    """
    check_inputs(q, k, v, i, f, state, axes="")
    given, dtype = q.dtype, computing_dtype(q, k, v, state)
    with without_autocast(q):
        q, k, v = (x.to(dtype) for x in (q, k, v))
        h, state = one_token(start(state, q, v, dtype), q, k, v, *gates_of(i, f))
    return h.to(given), state


def one_token(state: MLSTMState, q, k, v, i, a) -> tuple[Tensor, MLSTMState]:
    """h (B, H, V) and the next state, from the equations of `mlstm`; gates i and a as `gates_of` gives them."""
    kept = a + state.m
    m = torch.maximum(kept, i).to(k.dtype)  # rounded first: then exp of just this m is what the memory is divided by
    forget, store = ((x - m).to(k.dtype).exp()[..., None] for x in (kept, i))  # (B, H, 1)
    k = k * (store / math.sqrt(k.shape[-1]))
    C = forget[..., None] * state.C + k[..., :, None] * v[..., None, :]  # (B, H, D, V)
    n = forget * state.n + k
    overlap = (q * n).sum(-1, keepdim=True)  # (B, H, 1)
    h = (q[..., None, :] @ C).squeeze(-2) / compute_normaliser(overlap, m[..., None])
    return h, MLSTMState(C, n, m)


def every_token(q, k, v, i, a, state) -> tuple[Tensor, MLSTMState]:
    """The recurrence over tokens on axis 2, right for gates of any size: it adds up nothing."""
    outputs = []
    for token in zip(*(x.unbind(2) for x in (q, k, v, i, a)), strict=True):
        h, state = one_token(state, *token)
        outputs.append(h)
    return torch.stack(outputs, 2), state


def computed(form, inputs, initial_state, return_state, check_values, dtype=None):
    """Check the input, run `form` outside autocast, give h back in q's dtype.

    `form` takes q, k, v in `dtype`, or None: at least float32; gates as `gates_of` gives them; a state in at least
    float32, whose m it returns in the dtype of sums of gates. Where a look at values finds input gates that are too
    large for sums, the recurrence takes its place; only a GPU, which would have to wait, may be spared the look.
    """
    flag("return_state", return_state)
    q, k, v, i, f = inputs
    check_inputs(q, k, v, i, f, initial_state, check_values)
    given, wide = q.dtype, computing_dtype(q, k, v, initial_state, check_values)
    with without_autocast(q):
        (i, a), state = gates_of(i, f), start(initial_state, q, v, wide)
        look = has_values(q) and (check_values or q.device.type == "cpu")
        if look and largest(i, state.m.clamp(min=-LARGE)) > LARGE:
            form, dtype = every_token, wide
        else:
            i, a = cut_away(i, a, state.m)
        h, state = form(*(x.to(dtype or wide) for x in (q, k, v)), i, a, state)
        return (h.to(given), rounded(state, wide)) if return_state else h.to(given)


def gates_of(i: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """i and a = logsigmoid(f) in the dtype of sums of gates."""
    return i.to(gate_dtype(i)), F.logsigmoid(f.to(gate_dtype(f)))


def rounded(state: MLSTMState, dtype: torch.dtype) -> MLSTMState:
    """The state with m in `dtype`, and a memory divided by exp of just that."""
    m = state.m.to(dtype)
    rest = (state.m - m).to(dtype).exp()[..., None]
    return MLSTMState(state.C * rest[..., None], state.n * rest, m)


def computing_dtype(q, k, v, state, check_values=True) -> torch.dtype:
    """At least float32, and float64 where values are so large that their products might overflow float32."""
    dtype = widest(q, *(state or ()))
    return widened(dtype, LARGE, q, k, v, *(state or ())[:2]) if check_values else dtype


def cut_away(i: Tensor, a: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Gates of any finite size, small enough for sums, without a look at them that a GPU would have to wait for.

    What is cut away is the exponent of a weight that is 0 either way: of an input below exp(-LARGE), and of all that
    was there before a forget gate which leaves less than that of the largest beside the smallest input.
    """
    i = i.clamp(-LARGE, HIGHEST)
    with torch.no_grad():
        least = ZERO_BELOW - torch.maximum(i.amax(-1), m) + i.amin(-1)
    return i, torch.maximum(a, least[..., None])


def start(state: MLSTMState | None, q: Tensor, v: Tensor, dtype: torch.dtype) -> MLSTMState:
    """The state to begin with, in `dtype`; None is an empty memory."""
    return MLSTMState(*(x.to(dtype) for x in (empty_state(q, v) if state is None else state)))


def check_inputs(q, k, v, i, f, state=None, check_values=True, axes=", S") -> None:
    """Raise ValueError that names the tensor, what was expected, and the fix; `axes` is "" for a single token."""
    token = f"B, H{axes}"
    layouts = {"q": f"{token}, D", "k": f"{token}, D", "v": f"{token}, V", "i": token, "f": token}
    layouts |= {"state.C": "B, H, D, V", "state.n": "B, H, D", "state.m": "B, H"}
    given = {"q": q, "k": k, "v": v, "i": i, "f": f} | tensors.parts_of(state, MLSTMState)
    tensors.check_tensors(given, layouts, check_values)
