"""The selective scan of Mamba: a diagonal linear recurrence whose decay, input and output change with every token.

With the step size delta_t > 0 of token t, for every channel w and every state entry n:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t            h_0 = 0 unless a state is handed in
    y_t = sum_n C_t h_t + D u_t

Source: Gu & Dao, Mamba (arXiv 2312.00752), equation 2 and algorithm 2, with the simplified (Euler) rule for B.
Letters: S tokens, W width (channels), N state size, L chunk size. Below `_run` time comes first and width last, so that
one token of every channel is one contiguous row.
"""

import math
from typing import Any

import torch
from torch import Tensor

from xlstm_unet_lab.ops.checks import flag, whole_number
from xlstm_unet_lab.ops.tensors import check_tensors, is_recorded, widest, without_autocast

# Between 64 and 576 time hardly changes on a CPU; below, the Python loop costs more; above, the work leaves the cache.
CPU_CHUNK = 256
# A GPU has no such cache to stay in. There a chunk of L tokens is some 2 sqrt(L) launches, so a few long chunks are
# best, as long as their states, of this many numbers at most, fit. Reckoned; `python -m benchmarks.gpu` measures it.
GPU_STATES = 2**24
OPEN_DOUBLINGS = 20  # a network exported for any size takes sequences of up to 2**20 tokens


def step(
    state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take one token through the recurrence and return (y, new state).

    `state` (batch, W, N), None before the first token; u, delta (batch, W); A (W, N); B, C (batch, N); D (W) or None;
    y (batch, W) in u's dtype. Dtypes, errors and source as in `selective_scan`.
    """
    _check(u, delta, A, B, C, D, state, time_axis="")
    u, delta, B, C = (x.unsqueeze(-1) for x in (u, delta, B, C))
    y, state = _run(u, delta, A, B, C, D, state, chunk_size=1)
    return y.squeeze(-1), state


def selective_scan(
    u, delta, A, B, C, D=None, chunk_size=None, initial_state=None, return_state=False, check_values=True
):
    """Run the selective scan over a whole sequence in chunks, with memory linear in the number of tokens.

    u, delta (batch, W, S); A (W, N), negative for a state that decays; B, C (batch, N, S); D (W) or None. Any floating
    dtypes: computed in the widest of them, at least float32. Returns y (batch, W, S) in u's dtype, and with
    `return_state` also the last state (batch, W, N) in the computing dtype, ready to be the next `initial_state`.
    chunk_size: tokens worked on at once, at least 1; None picks one. It changes time and memory, never the function.
    check_values False skips the look at every value, which on a GPU waits for the device.

    Raises ValueError on shapes that do not fit, dtypes that are not floating, devices that differ, values that are not
    finite and a chunk size below 1. Source: arXiv 2312.00752, algorithm 2.
    """
    if chunk_size is not None:
        whole_number("chunk_size", chunk_size, fix="; None picks one")
    _check(u, delta, A, B, C, D, initial_state, ", S", check_values)
    flag("return_state", return_state)
    y, last_state = _run(u, delta, A, B, C, D, initial_state, chunk_size)
    return (y, last_state) if return_state else y


def choose_chunk_size(device: torch.device, numbers: int) -> int:
    """Tokens of a chunk where nobody says; `numbers`: of all that is remembered of one token, batch * W * N."""
    if device.type == "cpu":
        return CPU_CHUNK
    fitting = max(CPU_CHUNK, GPU_STATES // numbers)
    return 4 ** ((fitting.bit_length() - 1) // 2)  # a square number is cut into the fewest steps


def _check(u, delta, A, B, C, D, state, time_axis: str, check_values: bool = True) -> None:
    """Refuse what the scan cannot run on. time_axis is ", S" for a sequence and "" for a single token."""
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C}
    given |= {name: tensor for name, tensor in {"D": D, "state": state}.items() if tensor is not None}
    layouts = dict.fromkeys(("u", "delta"), f"batch, width{time_axis}")
    layouts |= dict.fromkeys(("B", "C"), f"batch, state size{time_axis}")
    layouts |= {"A": "width, state size", "D": "width", "state": "batch, width, state size"}
    check_tensors(given, layouts, check_values)


def _run(u, delta, A, B, C, D, state, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    dtype = widest(u, delta, A, B, C, D, state)
    state = A.new_zeros(u.shape[0], *A.shape) if state is None else state
    tokens = [x.to(dtype).movedim(-1, 0).contiguous() for x in (u, delta, B, C)]  # (S, batch, W or N)
    rows, start = A.T.to(dtype).contiguous(), state.to(dtype).transpose(1, 2).contiguous()
    scan = _recorded_scan if is_recorded() else _SelectiveScan.apply
    y, last_state = scan(rows, start, chunk_size, *tokens)
    y = y if D is None else y + D * tokens[0]
    return y.movedim(0, -1).to(u.dtype), last_state.transpose(1, 2)


def _recorded_scan(A, state, _chunk_size: int | None, u, delta, B, C) -> tuple[Tensor, Tensor]:
    """The scan in operations that can be recorded, whatever the length: every token meets those 1, 2, 4, .. before it.

    About log2(S) times all hidden states in memory, where the other keeps one state a chunk.
    """
    decay, h = _decay_and_input(u, delta, B, A)
    h = torch.cat([h[:1] + decay[:1] * state, h[1:]])
    length = u.shape[0]
    doublings = OPEN_DOUBLINGS if isinstance(length, torch.SymInt) else int(length - 1).bit_length()
    tokens = torch.arange(length, device=u.device)
    for reach in (2**n for n in range(doublings)):
        earlier = (tokens - reach).clamp(min=0)
        decay = decay * (tokens >= reach)[:, None, None, None]  # nothing stands before the first token
        h, decay = h + decay * h[earlier], decay * decay[earlier]
    return (C.unsqueeze(-1) * h).sum(2), h[-1]


class _SelectiveScan(torch.autograd.Function):
    """The scan. Keeps only its inputs and the state at every chunk's start; backward recomputes the rest.

    u, delta (S, batch, W); B, C (S, batch, N); A (N, W); state (batch, N, W).
    """

    @staticmethod
    def forward(ctx: Any, A, state, chunk_size: int | None, u, delta, B, C) -> tuple[Tensor, Tensor]:
        chunk_size = chunk_size or choose_chunk_size(A.device, state.numel())
        states, outputs = [], []
        with without_autocast(u):
            for u_c, delta_c, B_c, C_c in zip(*(x.split(chunk_size) for x in (u, delta, B, C)), strict=True):
                states.append(state)
                h = _hidden_states(u_c, delta_c, B_c, A, state)
                outputs.append(torch.matmul(C_c.unsqueeze(-2), h).squeeze(-2))  # (L, batch, W)
                state = h[-1].clone()
        ctx.save_for_backward(u, delta, B, C, A, torch.stack(states))
        ctx.chunk_size = chunk_size
        return torch.cat(outputs), state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        *tokens, A, states = ctx.saved_tensors
        chunks = zip(*(x.split(ctx.chunk_size) for x in (*tokens, grad_y.contiguous())), states, strict=True)
        grad_A, grads = torch.zeros_like(A), []
        with without_autocast(A):
            for *chunk, state in reversed(list(chunks)):  # grad_state reaches its last state from later tokens
                *grads_chunk, grad_A_chunk, grad_state = _chunk_backward(A, state, grad_state, *chunk)
                grad_A += grad_A_chunk
                grads.append(grads_chunk)
        whole = (torch.cat(parts[::-1]) for parts in zip(*grads, strict=True))
        return grad_A, grad_state, None, *whole


def _chunk_backward(A, state, grad_last, u, delta, B, C, grad_y) -> tuple[Tensor, ...]:
    """Gradients of sum_n C_t h_t in one chunk: (u, delta, B, C, A, state before it).

    u, delta, grad_y (L, batch, W); B, C (L, batch, N); state and grad_last, the gradient of the last state,
    (batch, N, W).
    """
    h = _hidden_states(u, delta, B, A, state)
    grad_C = torch.matmul(h, grad_y.unsqueeze(-1)).squeeze(-1)

    # grad h_t = C_t grad y_t + exp(delta_{t+1} A) grad h_{t+1}: the same recurrence, run from the last token back.
    decay = torch.exp(delta.unsqueeze(-2) * A)  # (L, batch, N, W)
    grad_h = (C.unsqueeze(-1) * grad_y.unsqueeze(-2)).flip(0)
    grad_h[0] += grad_last
    later_decay = torch.cat([torch.zeros_like(decay[:1]), decay[1:].flip(0)])
    grad_h = _linear_recurrence(later_decay, grad_h).flip(0)

    decayed_grad = decay * grad_h
    grad_B = torch.matmul(grad_h, (delta * u).unsqueeze(-1)).squeeze(-1)
    grad_input = torch.matmul(B.unsqueeze(-2), grad_h).squeeze(-2)  # gradient of delta_t u_t, (L, batch, W)
    grad_exponent = decayed_grad * torch.cat([state.unsqueeze(0), h[:-1]])  # gradient of delta_t A
    grad_A = (grad_exponent * delta.unsqueeze(-2)).sum((0, 1))
    grad_delta = (grad_exponent * A).sum(-2) + grad_input * u
    return grad_input * delta, grad_delta, grad_B, grad_C, grad_A, decayed_grad[0]


def _decay_and_input(u: Tensor, delta: Tensor, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta_t A) and delta_t B_t u_t, (L, batch, N, W) each."""
    return torch.exp(delta.unsqueeze(-2) * A), B.unsqueeze(-1) * (delta * u).unsqueeze(-2)


def _hidden_states(u: Tensor, delta: Tensor, B: Tensor, A: Tensor, state: Tensor) -> Tensor:
    """h_1 .. h_L of one chunk, (L, batch, N, W), from the state before it (batch, N, W)."""
    decay, h = _decay_and_input(u, delta, B, A)
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
