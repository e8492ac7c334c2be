"""The chunkwise form of the mLSTM: memory linear in the length, forward and backward written out by hand.

Unrolling equations 19 to 27 of Beck et al., xLSTM (arXiv 2405.04517), makes every output a weighted sum over the past.
With a = logsigmoid(f) and

    B_t = a_1 + ... + a_t,   u_t = i_t - B_t,   mu_t = max(m_0, u_1, ..., u_t),   m_t = B_t + mu_t,

the stabilised weight of token s in row t is exp(u_s - mu_t), and the initial state weighs exp(m_0 - mu_t). So a state
stabilised by mu_j becomes one stabilised by mu_n through the factor exp(mu_j - mu_n), and B cancels everywhere.

Three ideas keep the cost low:
* The normaliser is one more column of the memory, fed with the value 1: [C | n], [v | 1], [numerator | denominator].
* A segment of N chunks is worked on at once. Inside a chunk the weights form an L x L matrix; from chunk to chunk the
  state decays. Segments follow one another and hand on their state.
* The backward pass recomputes a segment's weights and states from its first state instead of storing them. Only the
  last segment's are kept: that memory does not grow with the length, and a short sequence is one segment.

1 / sqrt(D) is a weight like any other: it is taken off u, after mu. Inputs are copied once, from however they lie in
memory to chunks, which are what the backward pass reads, and results lie as the inputs do.

Letters: B batch, H heads, X = B H, N chunks of L tokens in a segment of T = N L, Y = N X (chunks vary slowest, so that
a slice of states is one block of memory), D key width, V value width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from xlstm_unet_lab.ops.mlstm_recurrence import EPSILON, MLSTMState, compute_normaliser
from xlstm_unet_lab.ops.tensors import gate_dtype

# Tokens of a chunk measured fastest, for heads from this width on: work inside chunks and between them then balances.
FASTEST_CHUNK = {96: 64, 32: 32, 1: 16}
SEGMENT_TOKENS = 8192  # tokens worked on at once on a CPU: with fewer more is recomputed, and Python takes its time,
SEGMENT_MEMORY = 2**25  # but fewer where a state of D V numbers is large: tokens times D times V
SEGMENT_TOKENS_GPU = 16384  # a GPU wants few, large launches


class Segment(NamedTuple):
    """Where a segment lies in the sequence and how it is cut into chunks."""

    first: int  # first token
    chunks: int  # N
    size: int  # L

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + self.chunks * self.size)

    def view(self, x: Tensor) -> Tensor:
        """(B, H, S, ...) -> (N, B, H, L, ...), where it lies."""
        return x[:, :, self.tokens].unflatten(2, (self.chunks, self.size)).movedim(2, 0)

    def split(self, x: Tensor) -> Tensor:
        """(B, H, S, ...) -> (Y, L, ...): the segment's chunks as one batch in one block of memory."""
        return self.view(x).flatten(0, 2)

    def join(self, x: Tensor, whole: Tensor) -> None:
        """Write (Y, L, ...) to its place in (B, H, S, ...)."""
        there = self.view(whole)
        there.copy_(x.unflatten(0, there.shape[:3]))


def cut(length: int, chunk_size: int, state: Tensor) -> list[Segment]:
    """Cut a sequence into segments of whole chunks; what does not fill a chunk becomes one shorter chunk at the end."""
    on_cpu = state.device.type == "cpu"
    tokens = min(SEGMENT_TOKENS, SEGMENT_MEMORY // state[0].numel()) if on_cpu else SEGMENT_TOKENS_GPU
    most = max(1, tokens // chunk_size)
    whole, rest = divmod(length, chunk_size)
    cuts = [Segment(n * chunk_size, min(most, whole - n), chunk_size) for n in range(0, whole, most)]
    return [*cuts, Segment(whole * chunk_size, 1, rest)] if rest else cuts


class Gates(NamedTuple):
    """A segment's gates, in the gate dtype, and the weights they give, between 0 and 1, in the products' dtype."""

    m: Tensor  # (Y, L) stabiliser m_t
    m_last: Tensor  # (X)
    source: Tensor  # (X, T + 1) which token set the maximum mu; 0 is the initial state, t + 1 is token t
    inside: Tensor  # (Y, L, L) weight of token s in row t of the same chunk
    reading: Tensor  # (Y, L, 1) weight of the state before the chunk in row t
    writing: Tensor  # (Y, L, 1) weight of token s in the state after the chunk
    carrying: Tensor  # (N, X, 1, 1) weight of the state before the chunk in the state after it


def running_gates(i: Tensor, a: Tensor, m_first: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u and m (X, T), and mu and the token that set it (X, T + 1), where 0 is the initial state. i, a (X, T)."""
    summed = a.cumsum(-1)
    u = i - summed
    mu, source = torch.cat([m_first[:, None], u], -1).cummax(-1)
    return u, summed + mu[:, 1:], mu, source


def compute_gates(i: Tensor, a: Tensor, m_first: Tensor, segment: Segment, dtype: torch.dtype, width: int = 1) -> Gates:
    """Running sums and maxima, then weights. i, a (X, S); m_first (X), -inf for an empty memory; `width` of keys.

    Differences are taken in the gate dtype: u and mu can be large where they nearly cancel.
    """
    u, m, mu, source = running_gates(i[:, segment.tokens], a[:, segment.tokens], m_first)
    m_last = m[:, -1].clone()
    edges = mu[:, :: segment.size].T  # (N + 1, X) at the edges of the chunks
    before, after = edges[:-1].reshape(-1, 1), edges[1:].reshape(-1, 1)  # (Y, 1)
    u, mu, m = (x.unflatten(1, (segment.chunks, -1)).transpose(0, 1).flatten(0, 1) for x in (u, mu[:, 1:], m))  # (Y, L)
    u = u - math.log(width) / 2
    # The upper triangle may overflow to inf before it is cut away: tril writes zeros whatever stood there.
    inside = (u[:, None, :] - mu[:, :, None]).to(dtype).exp_().tril_()
    reading, writing = ((x - y).to(dtype).exp_()[..., None] for x, y in ((before, mu), (u, after)))
    carrying = (edges[:-1] - edges[1:]).to(dtype).exp_()[..., None, None]
    return Gates(m, m_last, source, inside, reading, writing, carrying)


def compute_states(k: Tensor, v: Tensor, gates: Gates, state: Tensor) -> Tensor:
    """[C | n] before every chunk and after the last, (N + 1, X, D, V + 1)."""
    states = state.new_empty(len(gates.carrying) + 1, *state.shape)
    states[0] = state
    torch.bmm((k * gates.writing).mT, v, out=states[1:].flatten(0, 1))
    for before, after, decay in zip(states[:-1], states[1:], gates.carrying, strict=True):
        after.addcmul_(before, decay)
    return states


def segment_forward(q: Tensor, k: Tensor, v: Tensor, gates: Gates, states: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs h (Y, L, V) and denominators (Y, L) of one segment.

    q, k (Y, L, D); v (Y, L, V + 1), its last column 1; states (N + 1, X, D, V + 1).
    """
    total = q.bmm(states[:-1].flatten(0, 1)).mul_(gates.reading)
    total.baddbmm_(q.bmm(k.mT).mul_(gates.inside), v)  # (Y, L, V + 1)
    denominator = total[..., -1]
    return total[..., :-1] / compute_normaliser(denominator, gates.m)[..., None], denominator


def segment_backward(q, k, v, gates, states, along, denominator, dh, dstate, dm_last):
    """Gradients (dq, dk, dv, di, da, dstate, dm_first) of one segment from dh and those of its last state.

    `along` (Y, L) is h . dh, and minus the gradient of the normaliser's logarithm. dh (Y, L, V + 1) has a last column
    of any numbers; here it becomes the gradient of [numerator | denominator].

    The gates' gradients need no L x L product: as q enters linearly, q . dq is the sum over a row of (weight times its
    gradient), and k . dk the sum over a column. The stabiliser adds to both, as it cancels only up to epsilon.
    """
    normaliser = compute_normaliser(denominator, gates.m)
    dh[..., -1] = torch.where(denominator.abs() + EPSILON == normaliser, -along * denominator.sign(), 0)
    dtotal, along = dh.div_(normaliser[..., None]), along / normaliser

    dread = dtotal * gates.reading
    dstates = torch.empty_like(states)  # (N + 1, X, D, V + 1)
    dstates[-1] = dstate
    torch.bmm(q.mT, dread, out=dstates[:-1].flatten(0, 1))
    for before, after, decay in reversed(list(zip(dstates[:-1], dstates[1:], gates.carrying, strict=True))):
        before.addcmul_(after, decay)

    before, dafter = states[:-1].flatten(0, 1), dstates[1:].flatten(0, 1)
    dattention = dtotal.bmm(v.mT).mul_(gates.inside)  # (Y, L, L)
    dq = dread.bmm(before.mT).baddbmm_(dattention, k)
    dk = v.bmm(dafter.mT).mul_(gates.writing).baddbmm_(dattention.mT, q)
    attention = q.bmm(k.mT).mul_(gates.inside)
    dv = (k * gates.writing).bmm(dafter[..., :-1]).baddbmm_(attention.mT, dtotal[..., :-1])

    def per_token(x):  # (Y, L) -> (X, T) in the gate dtype
        return x.unflatten(0, (len(gates.carrying), -1)).transpose(0, 1).flatten(1).to(gates.m.dtype)

    through_state = (dstate * states[-1]).sum((1, 2)).to(gates.m.dtype)  # (X)
    dm = per_token(-EPSILON * along)  # through the stabiliser alone
    dm[:, -1] += dm_last - through_state  # the last state is stabilised by the last row's m
    row, column = per_token((q * dq).sum(-1)), per_token((k * dk).sum(-1))
    first = (dstates[0] * states[0]).sum((1, 2)).to(dm.dtype)
    di, da, dm_first = gate_gradients(row, column, first, dm, through_state, gates.source)
    return dq, dk, dv, di, da, dstates[0], dm_first


def gate_gradients(row, column, first, dm, through_state, source) -> tuple[Tensor, Tensor, Tensor]:
    """di, da (X, T) and dm_first (X), from sums of weights times their gradients over rows and columns, (X, T).

    `first` (X) is that sum for the initial state, `through_state` for the last; dm (X, T) came through m alone.
    """
    column = torch.cat([first[:, None], column], 1)
    column.scatter_add_(1, source[:, 1:], dm)  # (X, T + 1); m moves with the token that set the maximum
    da = (row + dm - column[:, 1:]).flip(-1).cumsum(-1).flip(-1) + through_state[:, None]
    return column[:, 1:], da, column[:, 0]


def with_last(segment: Segment, x: Tensor, value: float) -> Tensor:
    """(B, H, S, V) -> (Y, L, V + 1): the segment's chunks with one more column, of this value."""
    part = segment.view(x)
    return torch.cat([part, part.new_full((*part.shape[:-1], 1), value)], -1).flatten(0, 2)


class Chunkwise(torch.autograd.Function):
    """Segment after segment forward, and in reverse order backward.

    q, k (B, H, S, D), v (B, H, S, V), i, a (X, S), state (X, D, V + 1), m (X) -> h (B, H, S, V), state, m.
    """

    @staticmethod
    def forward(ctx, q, k, v, i, a, state, m, chunk_size):
        ctx.cuts = cut(q.shape[2], chunk_size, state)
        ctx.layouts = [torch.empty_like(x, device="meta") for x in (q, k, v, i, a)]  # shapes and strides, no memory
        h, denominator = torch.empty_like(v), torch.empty_like(v[..., 0])
        starts = []
        for segment in ctx.cuts:
            qs, ks, vs = segment.split(q), segment.split(k), with_last(segment, v, 1)
            starts += [qs, ks, vs, state, m]
            gates = compute_gates(i, a, m, segment, q.dtype, q.shape[-1])
            states = compute_states(ks, vs, gates, state)
            part, below = segment_forward(qs, ks, vs, gates, states)
            segment.join(part, h)
            segment.join(below, denominator)
            state, m = states[-1].clone(), gates.m_last  # a copy: kept as a view, it would keep all states alive
        ctx.save_for_backward(i, a, h, denominator, *starts, states, *gates)
        return h, state, m

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh, dstate, dm):
        i, a, h, denominator, *rest = ctx.saved_tensors
        starts, (states, *gates) = rest[: 5 * len(ctx.cuts)], rest[5 * len(ctx.cuts) :]
        dq, dk, dv, di, da = (torch.empty_like(x, device=h.device) for x in ctx.layouts)
        along = (dh * h).sum(-1)  # (B, H, S)
        for n, segment in reversed(list(enumerate(ctx.cuts))):
            qs, ks, vs, state, m = starts[5 * n : 5 * n + 5]
            below, alongs, dhs = segment.split(denominator), segment.split(along), with_last(segment, dh, 0)
            if segment is ctx.cuts[-1]:
                gates = Gates(*gates)
            else:
                gates = compute_gates(i, a, m, segment, qs.dtype, qs.shape[-1])
                states = compute_states(ks, vs, gates, state)
            *parts, di[:, segment.tokens], da[:, segment.tokens], dstate, dm = segment_backward(
                qs, ks, vs, gates, states, alongs, below, dhs, dstate, dm
            )
            for part, whole in zip(parts, (dq, dk, dv), strict=True):
                segment.join(part, whole)
        return dq, dk, dv, di, da, dstate, dm, None


def run_chunkwise(q, k, v, i, a, state, chunk_size=None):
    """h (B, H, S, V) and the last state; q, k (B, H, S, D), v (B, H, S, V), i, a (B, H, S)."""
    width = max(q.shape[-1], v.shape[-1]) if q.device.type == "cpu" else math.inf
    size = min(chunk_size or next(size for least, size in FASTEST_CHUNK.items() if width >= least), q.shape[2])
    i, a = (x.to(gate_dtype(q)).flatten(0, 1) for x in (i, a))
    memory = torch.cat([state.C, state.n[..., None]], -1).flatten(0, 1)
    h, memory, m = Chunkwise.apply(q, k, v, i, a, memory, state.m.to(gate_dtype(q)).flatten(), size)
    memory, m = (x.unflatten(0, state.m.shape) for x in (memory, m))
    return h, MLSTMState(memory[..., :-1], memory[..., -1], m)
