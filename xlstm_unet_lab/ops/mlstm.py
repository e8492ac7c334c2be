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

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.ops import mlstm_recurrence, mlstm_triton
from xlstm_unet_lab.ops.checks import one_of, whole_number
from xlstm_unet_lab.ops.mlstm_chunkwise import run_chunkwise
from xlstm_unet_lab.ops.mlstm_recurrence import MLSTMState, compute_normaliser, computed, empty_state, step
from xlstm_unet_lab.ops.tensors import check_tensors, gate_dtype, is_recorded

__all__ = ["MLSTMState", "chunkwise", "decay_matrix", "empty_state", "parallel", "recurrent", "run", "step"]


def recurrent(q, k, v, i, f, *, initial_state=None, return_state=False, check_values=True):
    """The definition: one token after the other. Arguments, result and errors as `run`."""
    return computed(mlstm_recurrence.every_token, (q, k, v, i, f), initial_state, return_state, check_values)


def parallel(q, k, v, i, f, *, initial_state=None, return_state=False, check_values=True):
    """All tokens at once through the S x S matrix of weights exp(B_t - B_s + i_s - m_t), s <= t.

    Arguments, result and errors as `run`.
    """
    return computed(_parallel, (q, k, v, i, f), initial_state, return_state, check_values)


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
    m = summed + mu
    attention = (q @ k.transpose(-1, -2)) * weights
    numerator = attention @ v + from_state * (q @ state.C)  # (B, H, S, V)
    overlap = attention.sum(-1, keepdim=True) + from_state * (q @ state.n[..., None])
    h = numerator / compute_normaliser(overlap, m[..., None])
    k = k * weights[..., -1, :, None]
    C = from_state[..., -1:, :] * state.C + k.transpose(-1, -2) @ v
    n = from_state[..., -1, :] * state.n + k.sum(-2)
    return h, MLSTMState(C, n, m[..., -1])


def decay_matrix(i: Tensor, f: Tensor) -> Tensor:
    """The logarithm of what row t of the parallel form lets token s weigh, before it is stabilised.

    i, f (..., S) -> (..., S, S) in the dtype of sums of gates: i_s + a_{s+1} + ... + a_t for s <= t, -inf beyond. From
    an empty memory its largest value in row t is m_t, and exp(decay - m_t) is the stabilised matrix. Raises ValueError
    for shapes that differ, and for what is no floating-point tensor of finite values. Source: arXiv 2405.04517,
    appendix A.3.
    """
    axes = ", ".join([*(f"axis {n}" for n in range(getattr(i, "ndim", 1) - 1)), "S"])
    check_tensors({"i": i, "f": f}, {"i": axes, "f": axes})
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
    form = functools.partial(run_chunkwise, chunk_size=chunk_size)
    return computed(form, (q, k, v, i, f), initial_state, return_state, check_values)


def _must_not_be_recorded(form: str) -> None:
    if is_recorded():
        tools = "a gradient written by hand, which torch.export, torch.jit.trace, ONNX and torch.func cannot follow"
        raise ValueError(f'form {form!r} has {tools}: use form="parallel" (in build mlstm_form="parallel"), or "auto"')


def run(q, k, v, i, f, form="auto", *, initial_state=None, return_state=False, check_values=True):
    """The mLSTM in the form named: "recurrent", "parallel", "chunkwise", "triton" or "auto".

    q, k (B, H, S, D), v (B, H, S, V), i, f (B, H, S) -> h (B, H, S, V) in q's dtype; with `return_state` a pair of h
    and the MLSTMState after the last token. `initial_state` continues from such a state, None from an empty memory.
    `check_values=False` leaves out the look at values, which a GPU would have to wait for: for NaN and infinity, which
    are refused, and for sizes from LARGE on, which are computed with more care, and more time. Forget gates may then be
    of any finite size still, and so may input gates on a CPU; elsewhere those count as `HIGHEST` beyond, in all forms.

    "auto" takes the Triton kernels on an NVIDIA GPU where they fit (see `mlstm_triton`), and chunkwise everywhere else;
    parallel under torch.export, torch.jit.trace, the export to ONNX and torch.func. Where the kernels fit but do not
    work, it takes chunkwise as well, and one warning says why.
    Raises ValueError, naming the tensor and the fix, for wrong ranks, lengths, dtypes, values that are not finite, an
    unknown form, and "triton" where the kernels do not fit or do not work.
    """
    check_form(form)
    if form == "triton":
        _must_not_be_recorded(form)
    if form == "auto":
        form = "parallel" if is_recorded() else _fastest(q, k, v, i, f, initial_state, check_values)
    compute = mlstm_triton.triton if form == "triton" else FORMS[form]
    return compute(q, k, v, i, f, initial_state=initial_state, return_state=return_state, check_values=check_values)


def _fastest(q, k, v, i, f, initial_state, check_values) -> str:
    """The kernels, or the chunkwise form where they do not fit."""
    mlstm_recurrence.check_inputs(q, k, v, i, f, initial_state, check_values=False)
    if q.device.type != "cuda" or mlstm_triton.obstacle(q, v):
        return "chunkwise"
    dtype = mlstm_recurrence.computing_dtype(q, k, v, initial_state, check_values)  # float64 where values are large
    return "triton" if dtype == torch.float32 else "chunkwise"


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}


def check_form(form: str) -> None:
    """Raise ValueError unless `form` is one that `run` knows."""
    one_of("form", form, ("auto", "triton", *FORMS))
