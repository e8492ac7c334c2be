"""The mLSTM, a linear recurrence with a matrix memory, in every form: one token, recurrent, parallel, chunkwise.

    a_t = logsigmoid(f_t)                m_t = max(a_t + m_{t-1}, i_t)                          the stabiliser
    C_t = exp(a_t + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_t^T / sqrt(D)                 the memory
    n_t = exp(a_t + m_{t-1} - m_t) n_{t-1} + exp(i_t - m_t) k_t / sqrt(D)                       the normaliser
    h_t = q_t C_t / (max(|q_t . n_t|, exp(-m_t)) + 1e-6)                                        the output

Source: Beck et al., xLSTM (arXiv 2405.04517), equations 19 to 27 and appendix A.3.

Every form takes q, k (B, H, S, D), v (B, H, S, V) in float64, float32 or bfloat16 and gate pre-activations i, f
(B, H, S), and returns h (B, H, S, V) in q's dtype. V may differ from D. Sums, gates and the stabiliser are computed in
at least float32, whatever autocast says. All forms give the same function and the same gradients for finite values of
any size, at another cost:

    form        time       memory    written as
    recurrent   S D V      D V       a Python loop: the definition, slow
    parallel    S^2 D      S^2       one matrix of weights
    chunkwise   S D V      S         matrices inside chunks, states between them
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.ops.checks import flag, of_kind, one_of, whole_number
from xlstm_unet_lab.ops.mlstm_chunkwise import CHUNK_SIZE, EPSILON, Chunkwise, stabilised_one
from xlstm_unet_lab.ops.mlstm_triton import obstacle, triton
from xlstm_unet_lab.ops.tensors import check_tensors, has_values, is_recorded, largest, widest, without_autocast

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


def step(state: MLSTMState | None, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, MLSTMState]:
    """Read one token and answer it.

    q, k (B, H, D), v (B, H, V), i, f (B, H); `state` None means an empty memory. Returns h (B, H, V) and the new state.
    Raises ValueError for a wrong rank, dtype or length and for values that are not finite.
    """
    check_inputs(q, k, v, i, f, state, axes="")
    given, dtype = q.dtype, _computing_dtype(q, k, v, state)
    with without_autocast(q):
        q, k, v, i, f = (x.to(dtype) for x in (q, k, v, i, f))
        h, state = _step(_start(state, q, v), q, k, v, i, F.logsigmoid(f))
    return h.to(given), state


def _step(state: MLSTMState, q, k, v, i, a) -> tuple[Tensor, MLSTMState]:
    m = torch.maximum(a + state.m, i)
    forget, store = (a + state.m - m).exp()[..., None], (i - m).exp()[..., None]  # (B, H, 1)
    k = k * (store / math.sqrt(k.shape[-1]))
    C = forget[..., None] * state.C + k[..., :, None] * v[..., None, :]  # (B, H, D, V)
    n = forget * state.n + k
    overlap = (q * n).sum(-1, keepdim=True)  # (B, H, 1)
    h = (q[..., None, :] @ C).squeeze(-2) / (torch.maximum(overlap.abs(), stabilised_one(m)[..., None]) + EPSILON)
    return h, MLSTMState(C, n, m)


def _computed(form, inputs, initial_state, return_state, check_values):
    """Check the input, compute in at least float32 outside autocast, give h back in q's dtype."""
    flag("return_state", return_state)
    q, k, v, i, f = inputs
    check_inputs(q, k, v, i, f, initial_state, check_values)
    given, dtype = q.dtype, _computing_dtype(q, k, v, initial_state, check_values)
    with without_autocast(q):
        q, k, v, i, f = (x.to(dtype) for x in inputs)
        state, a = _start(initial_state, q, v), F.logsigmoid(f)
        if check_values and has_values(q) and largest(i, state.m.clamp(min=-LARGE)) > LARGE:
            form = _recurrent  # which adds up nothing that large
        if form is not _recurrent:
            i, a = _cut(i, a, state.m)
        h, state = form(q, k, v, i, a, state)
    return (h.to(given), state) if return_state else h.to(given)


def _computing_dtype(q, k, v, state, check_values=True) -> torch.dtype:
    """At least float32, and float64 where values are so large that their products might overflow float32."""
    dtype = widest(q, *(state or ()))
    look = check_values and has_values(q) and dtype == torch.float32
    return gate_dtype(q) if look and largest(q, k, v, *(state or ())[:2]) > LARGE else dtype


def _cut(i: Tensor, a: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Gates of any finite size, small enough for sums, without a look at them that a GPU would have to wait for.

    What is cut away is the exponent of a weight that is 0 either way: of an input below exp(-LARGE), and of all that
    was there before a forget gate which leaves less than that of the largest beside the smallest input.
    """
    i = i.clamp(-LARGE, HIGHEST)
    with torch.no_grad():
        least = ZERO_BELOW - torch.maximum(i.amax(-1), m) + i.amin(-1)
    return i, torch.maximum(a, least[..., None])


def recurrent(q, k, v, i, f, *, initial_state=None, return_state=False, check_values=True):
    """The definition: one token after the other. Arguments, result and errors as `run`."""
    return _computed(_recurrent, (q, k, v, i, f), initial_state, return_state, check_values)


def _recurrent(q, k, v, i, a, state):
    outputs = []
    for token in zip(*(x.unbind(2) for x in (q, k, v, i, a)), strict=True):
        h, state = _step(state, *token)
        outputs.append(h)
    return torch.stack(outputs, 2), state


def parallel(q, k, v, i, f, *, initial_state=None, return_state=False, check_values=True):
    """All tokens at once through the S x S matrix of weights exp(B_t - B_s + i_s - m_t), s <= t.

    Arguments, result and errors as `run`.
    """
    return _computed(_parallel, (q, k, v, i, f), initial_state, return_state, check_values)


def _parallel(q, k, v, i, a, state):
    length, width = q.shape[2:]
    k = k / math.sqrt(width)
    summed = a.cumsum(-1, dtype=gate_dtype(q))  # B_t, (B, H, S)
    u = i - summed
    tokens = torch.arange(length, device=q.device)
    future = tokens > tokens[:, None]  # (S, S)
    # ONNX has no running maximum.
    highest = u[..., None, :].masked_fill(future, -torch.inf).amax(-1) if is_recorded() else u.cummax(-1).values
    mu = torch.maximum(highest, state.m[..., None])
    weights = _differences(u, mu, q.dtype).masked_fill(future, -torch.inf).exp()  # (B, H, S, S)
    from_state = (state.m[..., None] - mu).to(q.dtype).exp()[..., None]  # (B, H, S, 1)
    m = (summed + mu).to(q.dtype)
    attention = (q @ k.transpose(-1, -2)) * weights
    numerator = attention @ v + from_state * (q @ state.C)  # (B, H, S, V)
    overlap = attention.sum(-1, keepdim=True) + from_state * (q @ state.n[..., None])
    h = numerator / (torch.maximum(overlap.abs(), stabilised_one(m)[..., None]) + EPSILON)
    k = k * weights[..., -1, :, None]
    C = from_state[..., -1:, :] * state.C + k.transpose(-1, -2) @ v
    n = from_state[..., -1, :] * state.n + k.sum(-2)
    return h, MLSTMState(C, n, m[..., -1])


def decay_matrix(i: Tensor, f: Tensor) -> Tensor:
    """The logarithm of what row t of the parallel form lets token s weigh, before it is stabilised.

    i, f (..., S) -> (..., S, S) in the dtype of sums of gates: i_s + a_{s+1} + ... + a_t for s <= t, -inf beyond. From
    an empty memory its largest value in row t is m_t, and exp(decay - m_t) is the stabilised matrix. Raises ValueError
    for shapes that differ. Source: arXiv 2405.04517, appendix A.3.
    """
    if i.ndim < 1 or i.shape != f.shape:
        raise ValueError(f"i has shape {tuple(i.shape)} and f {tuple(f.shape)}, expected the same (..., S)")
    length = i.shape[-1]
    a = F.logsigmoid(f.to(gate_dtype(f)))[..., :, None].expand(*f.shape, length)
    summed = a.tril(-1).cumsum(-2)  # column s from s + 1 on: no difference of sums, which a gate of -1e30 would spoil
    future = torch.ones(length, length, dtype=torch.bool, device=i.device).triu(1)
    return (summed + i[..., None, :]).masked_fill(future, -torch.inf)


def _differences(u: Tensor, mu: Tensor, dtype: torch.dtype) -> Tensor:
    """u_s - mu_t as (..., t, s) in `dtype`, exact to its last digits where u and mu are large and nearly cancel.

    Each number is split into its rounded value and the rest, so that no S x S matrix of the wider type is needed.
    """
    u_rounded, mu_rounded = u.to(dtype), mu.to(dtype)
    u_rest, mu_rest = ((x - rounded).to(dtype).detach() for x, rounded in ((u, u_rounded), (mu, mu_rounded)))
    return (u_rounded[..., None, :] - mu_rounded[..., :, None]).add_(u_rest[..., None, :]).sub_(mu_rest[..., :, None])


def chunkwise(q, k, v, i, f, chunk_size=None, *, initial_state=None, return_state=False, check_values=True):
    """Matrices inside chunks of `chunk_size` tokens, states between them; `mlstm_chunkwise` derives it.

    Any length; memory linear in it, forward and backward. `chunk_size` None is the size measured fastest; one below
    1 raises ValueError. The backward pass is written by hand, so there is no second derivative, and ValueError where
    operations are recorded (torch.export and its like). Other arguments, result and errors as `run`.
    """
    _must_not_be_recorded("chunkwise")
    if chunk_size is not None:
        chunk_size = whole_number("chunk_size", chunk_size, fix="; None picks one")
    form = functools.partial(_chunkwise, chunk_size=chunk_size)
    return _computed(form, (q, k, v, i, f), initial_state, return_state, check_values)


def _chunkwise(q, k, v, i, a, state, chunk_size):
    size = min(chunk_size or CHUNK_SIZE, q.shape[2])
    ones = v.new_ones(*v.shape[:-1], 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k / math.sqrt(k.shape[-1]), torch.cat([v, ones], -1)))
    i, a = (x.to(gate_dtype(q)).flatten(0, 1) for x in (i, a))
    memory = torch.cat([state.C, state.n[..., None]], -1).flatten(0, 1)
    h, memory, m = Chunkwise.apply(q, k, v, i, a, memory, state.m.to(gate_dtype(q)).flatten(), size)
    batch_and_heads = state.m.shape
    memory = memory.unflatten(0, batch_and_heads)
    state = MLSTMState(memory[..., :-1], memory[..., -1], m.to(memory.dtype).view(batch_and_heads))
    return h.unflatten(0, batch_and_heads), state


def gate_dtype(q: Tensor) -> torch.dtype:
    """Of sums of gates, whose differences count: float64 wherever the device has it."""
    return torch.float32 if q.device.type == "mps" else torch.float64


def _must_not_be_recorded(form: str) -> None:
    if is_recorded():
        tools = "torch.export, torch.jit.trace, the export to ONNX and torch.func cannot follow"
        advice = 'use form="parallel" (in build mlstm_form="parallel"), or "auto"'
        raise ValueError(f"form {form!r} has a gradient written by hand, which {tools}: {advice}")


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}


def check_form(form: str) -> None:
    """Raise ValueError unless `form` is one that `run` knows."""
    one_of("form", form, ("auto", "triton", *FORMS))


def run(q, k, v, i, f, form="auto", *, initial_state=None, return_state=False, check_values=True):
    """The mLSTM in the form named: "recurrent", "parallel", "chunkwise", "triton" or "auto".

    q, k (B, H, S, D), v (B, H, S, V), i, f (B, H, S) -> h (B, H, S, V) in q's dtype; with `return_state` a pair of h
    and the MLSTMState after the last token. `initial_state` continues from such a state, None from an empty memory.
    `check_values=False` leaves out the look at values, which a GPU would have to wait for: for NaN and infinity, which
    are refused, and for sizes from LARGE on, which are computed with more care, and more time. Forget gates may then be
    of any finite size still, input gates count as `HIGHEST` beyond it.

    "auto" takes the Triton kernels on an NVIDIA GPU where they fit, and chunkwise everywhere else; parallel under
    torch.export, torch.jit.trace, the export to ONNX and torch.func. The kernels leave the normaliser out of the
    gradient (see `mlstm_triton`); name "chunkwise" for the exact gradient on a GPU.
    Raises ValueError, naming the tensor and the fix, for wrong ranks, lengths, dtypes, values that are not finite, an
    unknown form, and "triton" where the kernels do not fit.
    """
    check_form(form)
    flag("return_state", return_state)
    if form == "auto" and is_recorded():
        form = "parallel"
    if form in ("auto", "triton"):
        _must_not_be_recorded(form)
        check_inputs(q, k, v, i, f, initial_state, check_values=False)
        reason = obstacle(q, v, with_state=return_state or initial_state is not None)
        if reason is None and check_values:
            check_inputs(q, k, v, i, f)
            reason = f"values are larger than {LARGE:g}" if largest(q, k, v, i, f) > LARGE else None
        if reason is None:
            return triton(q, k, v, i, f)
        if form == "triton":
            raise ValueError(f"form 'triton' does not fit: {reason}; use form='auto' or 'chunkwise'")
        form = "chunkwise"
    options = {"initial_state": initial_state, "return_state": return_state, "check_values": check_values}
    return FORMS[form](q, k, v, i, f, **options)


def _start(state: MLSTMState | None, q: Tensor, v: Tensor) -> MLSTMState:
    return empty_state(q, v) if state is None else MLSTMState(*(x.to(q.dtype) for x in state))


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
