"""The selective scan of Mamba: a diagonal linear recurrence whose decay, input and output change with every token.

With the step size delta_t > 0 of token t, for every channel w and every state entry n:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t            h_0 = 0 unless a state is handed in
    y_t = sum_n C_t h_t + D u_t

Source: Gu & Dao, Mamba (arXiv 2312.00752), equation 2 and algorithm 2, with the simplified (Euler) rule for B.
Letters: S tokens, W width (channels), N state size, L chunk size. Inside this file time comes first and width last, so
that one token of every channel is one contiguous row.
"""

import math
from typing import Any

import torch
from torch import Tensor

from xlstm_unet_lab.ops.checks import flag, of_kind, whole_number
from xlstm_unet_lab.ops.tensors import check_tensors, is_recorded, widest, without_autocast

# Between 64 and 576 time hardly changes on a CPU; below, the Python loop costs more; above, the work leaves the cache.
DEFAULT_CHUNK_SIZE = 256
OPEN_DOUBLINGS = 20  # a network exported for any size takes sequences of up to 2**20 tokens


def step(
    state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take one token through the recurrence and return (y, new state).

    `state` (batch, W, N), None before the first token; u, delta (batch, W); A (W, N); B, C (batch, N); D (W) or None;
    y (batch, W) in u's dtype. Dtypes, errors and source as in `selective_scan`.
    """
    _check(u, delta, A, B, C, D, state, token_sizes=())
    u, delta, B, C = (x.unsqueeze(-1) for x in (u, delta, B, C))
    y, state = _run(u, delta, A, B, C, D, state, chunk_size=1)
    return y.squeeze(-1), state


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    chunk_size: int | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    check_values: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan over a whole sequence in chunks, with memory linear in the number of tokens.

    u, delta (batch, W, S); A (W, N), negative for a state that decays; B, C (batch, N, S); D (W) or None. Any floating
    dtypes: computed in the widest of them, at least float32. Returns y (batch, W, S) in u's dtype, and with
    `return_state` also the last state (batch, W, N) in the computing dtype, ready to be the next `initial_state`.
    chunk_size: tokens worked on at once, at least 1; None picks one. It changes time and memory, never the function.
    check_values False skips the look at every value, which on a GPU waits for the device.

    Raises ValueError on shapes that do not fit, dtypes that are not floating, devices that differ, values that are not
    finite and a chunk size below 1. Source: arXiv 2312.00752, algorithm 2.
    """
    if chunk_size is None:
        chunk_size = DEFAULT_CHUNK_SIZE
    else:
        chunk_size = whole_number("chunk_size", chunk_size, fix="; None picks one")
    of_kind("u", u, Tensor)
    _check(u, delta, A, B, C, D, initial_state, u.shape[-1:], check_values)
    flag("return_state", return_state)
    y, last_state = _run(u, delta, A, B, C, D, initial_state, chunk_size)
    return (y, last_state) if return_state else y


def _check(u, delta, A, B, C, D, state, token_sizes: tuple[int, ...], check_values: bool = True) -> None:
    """Refuse what the scan cannot run on. token_sizes is (S,) for a sequence and () for a single token."""
    of_kind("A", A, Tensor)
    time_axis = ", S" if token_sizes else ""
    if u.ndim != 2 + len(token_sizes) or min(u.shape) < 1:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (batch, width{time_axis}) with every size at least 1")
    if A.ndim != 2 or min(A.shape) < 1:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected (width, state size) with every size at least 1")
    (batch, width), state_size = u.shape[:2], A.shape[1]
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C}
    given |= {name: tensor for name, tensor in {"D": D, "state": state}.items() if tensor is not None}
    channels, entries = (batch, width, *token_sizes), (batch, state_size, *token_sizes)
    expected = {"u": channels, "delta": channels, "A": (width, state_size), "B": entries, "C": entries, "D": (width,)}
    expected["state"] = (batch, width, state_size)
    axes = f"u, delta are (batch, width{time_axis}), B, C (batch, state size{time_axis}), A is (width, state size)"
    check_tensors(given, expected, axes, check_values)


def _run(u, delta, A, B, C, D, state, chunk_size: int) -> tuple[Tensor, Tensor]:
    dtype = widest(u, delta, A, B, C, D, state)
    state = A.new_zeros(u.shape[0], *A.shape) if state is None else state
    D = A.new_zeros(A.shape[0]) if D is None else D
    scan = _recorded_scan if is_recorded() else _SelectiveScan.apply
    y, last_state = scan(u, delta, A.to(dtype), B, C, D.to(dtype), state.to(dtype), chunk_size)
    return y.to(u.dtype), last_state


def _recorded_scan(u, delta, A, B, C, D, state, _chunk_size: int) -> tuple[Tensor, Tensor]:
    """The scan in operations that can be recorded, whatever the length: every token meets those 1, 2, 4, .. before it.

    About log2(S) times all hidden states in memory, where the other keeps one state a chunk.
    """
    u, delta, B, C = (x.to(A.dtype) for x in (u, delta, B, C))
    decay = torch.exp(delta.unsqueeze(2) * A.unsqueeze(-1))  # (batch, W, N, S)
    h = B.unsqueeze(1) * (delta * u).unsqueeze(2)
    h = torch.cat([h[..., :1] + decay[..., :1] * state.unsqueeze(-1), h[..., 1:]], -1)
    length = u.shape[-1]
    doublings = OPEN_DOUBLINGS if isinstance(length, torch.SymInt) else int(length - 1).bit_length()
    tokens = torch.arange(length, device=u.device)
    for reach in (2**n for n in range(doublings)):
        earlier = (tokens - reach).clamp(min=0)
        decay = decay * (tokens >= reach)  # nothing stands before the first token
        h, decay = h + decay * h[..., earlier], decay * decay[..., earlier]
    return (C.unsqueeze(1) * h).sum(2) + D.unsqueeze(-1) * u, h[..., -1]


class _SelectiveScan(torch.autograd.Function):
    """The scan. Keeps only its inputs and the state at every chunk's start; backward recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, u, delta, A, B, C, D, state, chunk_size: int) -> tuple[Tensor, Tensor]:
        A_rows = A.T.contiguous()  # (N, W)
        state = state.transpose(1, 2).contiguous()  # (batch, N, W)
        states, outputs = [], []
        with without_autocast(u):
            for start in range(0, u.shape[-1], chunk_size):
                states.append(state)
                u_c, delta_c, B_c, C_c = _time_first(start, chunk_size, A.dtype, u, delta, B, C)
                h = _hidden_states(u_c, delta_c, A_rows, B_c, state)
                outputs.append(torch.matmul(C_c.unsqueeze(-2), h).squeeze(-2) + D * u_c)  # (L, batch, W)
                state = h[-1].clone()
        ctx.save_for_backward(u, delta, A, B, C, D, torch.stack(states))
        ctx.chunk_size = chunk_size
        return _time_last(outputs), state.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, states = ctx.saved_tensors
        A_rows = A.T.contiguous()
        grad_A, grad_D = torch.zeros_like(A_rows), torch.zeros_like(D)
        grad_h = grad_state.transpose(1, 2)  # gradient that reaches the chunk's last state from later tokens
        grads: list[tuple[Tensor, ...]] = []
        with without_autocast(u):
            for state, start in zip(reversed(states), reversed(range(0, u.shape[-1], ctx.chunk_size)), strict=True):
                chunk = _time_first(start, ctx.chunk_size, A.dtype, u, delta, B, C, grad_y)
                grad_h, grad_A_chunk, grad_u, *others = _chunk_backward(A_rows, state, grad_h, *chunk)
                grad_A += grad_A_chunk
                grad_D += (chunk[0] * chunk[-1]).sum((0, 1))
                grads.append((grad_u + D * chunk[-1], *others))
        whole = (_time_last(parts[::-1]) for parts in zip(*grads, strict=True))
        grad_u, grad_delta, grad_B, grad_C = (g.to(x.dtype) for g, x in zip(whole, (u, delta, B, C), strict=True))
        return grad_u, grad_delta, grad_A.T, grad_B, grad_C, grad_D, grad_h.transpose(1, 2), None


def _chunk_backward(A_rows, state, grad_last, u, delta, B, C, grad_y) -> tuple[Tensor, ...]:
    """Gradients of sum_n C_t h_t in one chunk: (state before it, A, u, delta, B, C).

    u, delta, grad_y (L, batch, W); B, C (L, batch, N); state and grad_last, the gradient of the last state,
    (batch, N, W).
    """
    h = _hidden_states(u, delta, A_rows, B, state)
    grad_C = torch.matmul(h, grad_y.unsqueeze(-1)).squeeze(-1)

    # grad h_t = C_t grad y_t + exp(delta_{t+1} A) grad h_{t+1}: the same recurrence, run from the last token back.
    decay = torch.exp(delta.unsqueeze(-2) * A_rows)  # (L, batch, N, W)
    grad_h = (C.unsqueeze(-1) * grad_y.unsqueeze(-2)).flip(0)
    grad_h[0] += grad_last
    later_decay = torch.cat([torch.zeros_like(decay[:1]), decay[1:].flip(0)])
    grad_h = _linear_recurrence(later_decay, grad_h).flip(0)

    decayed_grad = decay * grad_h
    grad_B = torch.matmul(grad_h, (delta * u).unsqueeze(-1)).squeeze(-1)
    grad_input = torch.matmul(B.unsqueeze(-2), grad_h).squeeze(-2)  # gradient of delta_t u_t, (L, batch, W)
    previous = torch.cat([state.unsqueeze(0), h[:-1]])
    grad_exponent = decayed_grad * previous  # gradient of delta_t A
    grad_A = (grad_exponent * delta.unsqueeze(-2)).sum((0, 1))
    grad_delta = (grad_exponent * A_rows).sum(-2) + grad_input * u
    return decayed_grad[0], grad_A, grad_input * delta, grad_delta, grad_B, grad_C


def _hidden_states(u: Tensor, delta: Tensor, A_rows: Tensor, B: Tensor, state: Tensor) -> Tensor:
    """h_1 .. h_L of one chunk, (L, batch, N, W), from the state before it (batch, N, W)."""
    decay = torch.exp(delta.unsqueeze(-2) * A_rows)
    h = B.unsqueeze(-1) * (delta * u).unsqueeze(-2)
    h[0].addcmul_(decay[0], state)
    return _linear_recurrence(decay, h)


def _linear_recurrence(decay: Tensor, source: Tensor) -> Tensor:
    """Solve h_t = decay_t h_{t-1} + source_t along the first axis, h_0 = 0; overwrites both, returns source's memory.

    The L tokens are cut into segments. All segments advance together from an empty start, then each receives what its
    predecessor left, weighted by the product of its decays: about 2 sqrt(L) steps instead of L where L has such
    divisors. Nothing is divided, so a product that underflows to zero is simply a state that has been forgotten.
    """
    length = len(source)
    steps = max(n for n in range(1, math.isqrt(length) + 1) if length % n == 0)
    h, product = (x.unflatten(0, (length // steps, steps)) for x in (source, decay))
    for t in range(1, steps):
        h[:, t].addcmul_(product[:, t], h[:, t - 1])
        product[:, t].mul_(product[:, t - 1])
    for segment in range(1, length // steps):
        h[segment].addcmul_(product[segment], h[segment - 1, -1])
    return source


def _time_first(start: int, chunk_size: int, dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """One chunk of every (batch, X, S) tensor as (L, batch, X), contiguous, in the computing dtype."""
    return [x[..., start : start + chunk_size].movedim(-1, 0).to(dtype).contiguous() for x in tensors]


def _time_last(chunks: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Chunks (L, batch, X) in order back to (batch, X, S)."""
    return torch.cat(list(chunks)).movedim(0, -1)
