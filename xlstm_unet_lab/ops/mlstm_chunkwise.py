"""The chunkwise form of the mLSTM: memory linear in the length, forward and backward written out by hand.

Unrolling equation 19 of Beck et al., xLSTM (arXiv 2405.04517) gives every output as a weighted sum over the past. With

    B_t = a_1 + ... + a_t,   u_t = i_t - B_t,   mu_t = max(m_0, u_1, ..., u_t),   m_t = B_t + mu_t        (a = logsigmoid f)

the stabilised weight of token s in row t is exp(u_s - mu_t), and the initial state weighs exp(m_0 - mu_t). So a state
stabilised by mu_j becomes one stabilised by mu_n through the factor exp(mu_j - mu_n), and B cancels everywhere.

Three ideas keep the cost low:
* The normaliser is one more column of the memory, fed with the value 1: [C | n], [v | 1], [numerator | denominator].
* A segment of N chunks is worked on at once. Inside a chunk the weights form an L x L matrix; between chunks the states
  travel by one (N + 1) x (N + 1) matrix of decays.  Segments follow one another and hand on their state.
* The backward pass recomputes a segment's weights from its first state instead of storing them.

Letters: X batch times heads, N chunks, L tokens of a chunk, T = N L tokens of a segment, D key width, V value width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-6  # added to the normaliser; part of the published function, and so of its gradient
SEGMENT_TOKENS = 1024  # tokens worked on at once on a CPU: the weights then stay in the cache
SEGMENT_TOKENS_GPU = 16384  # a GPU wants few, large launches


def stabilised_one(m: Tensor) -> Tensor:
    """exp(-m), held just below overflow: an output that small is zero either way, and its gradient stays finite."""
    return (-m).clamp(max=math.log(torch.finfo(m.dtype).max) - 1).exp()


class Gates(NamedTuple):
    """What a segment's gates say, all in the gate dtype."""

    u: Tensor  # (X, T) input gate minus accumulated forget gate
    mu: Tensor  # (X, T + 1) running maximum; entry 0 is the initial stabiliser
    source: Tensor  # (X, T + 1) which token set the maximum; 0 is the initial state
    m: Tensor  # (X, T) the stabiliser m_t
    m_last: Tensor  # (X)


def segments(length: int, chunk_size: int, device: torch.device) -> list[tuple[int, int, int]]:
    """Cut a sequence into (first token, number of chunks, tokens a chunk); what does not fill a chunk is a shorter one."""
    most = max(1, (SEGMENT_TOKENS if device.type == "cpu" else SEGMENT_TOKENS_GPU) // chunk_size)
    whole = length // chunk_size
    cuts = [(first * chunk_size, min(most, whole - first), chunk_size) for first in range(0, whole, most)]
    rest = length - whole * chunk_size
    return cuts + [(whole * chunk_size, 1, rest)] if rest else cuts


def read_gates(i: Tensor, a: Tensor, m_first: Tensor) -> Gates:
    """Running sums and maxima of one segment. i, a (X, T); m_first (X), -inf for an empty memory."""
    summed = a.cumsum(-1)
    u = i - summed
    mu, source = torch.cat([m_first[:, None], u], -1).cummax(-1)
    m = summed + mu[:, 1:]
    return Gates(u, mu, source, m, m[:, -1])


class Weights(NamedTuple):
    """Every weight a segment needs, in the dtype of the matrix products; all lie between 0 and 1."""

    inside: Tensor  # (X, N, L, L) of token s in row t of the same chunk
    reading: Tensor  # (X, N, L, 1) of the state before the chunk in row t
    writing: Tensor  # (X, N, L, 1) of token s in the state after its chunk
    carrying: Tensor  # (X, N + 1, N + 1) of the piece of state from chunk j in the state after chunk n


def read_weights(gates: Gates, chunks: int, dtype: torch.dtype) -> Weights:
    """Turn gates into weights. Differences are taken in the gate dtype: u and mu can be large where they nearly cancel."""
    u, mu = gates.u.unflatten(1, (chunks, -1)), gates.mu[:, 1:].unflatten(1, (chunks, -1))  # (X, N, L)
    edges = gates.mu[:, :: u.shape[-1]]  # (X, N + 1) before the segment, after every chunk
    # The upper triangle may overflow to inf before it is cut away: tril writes zeros whatever stood there.
    inside = (u[..., None, :] - mu[..., :, None]).to(dtype).exp_().tril_()
    reading = (edges[:, :-1, None] - mu).to(dtype).exp_()[..., None]
    writing = (u - edges[:, 1:, None]).to(dtype).exp_()[..., None]
    decay = edges[:, None, :] - edges[:, :, None]
    carrying = decay.masked_fill_(decay.isnan(), 0).to(dtype).exp_().tril_()  # an empty memory: -inf - -inf
    return Weights(inside, reading, writing, carrying)


def carry_states(carrying: Tensor, pieces: Tensor) -> Tensor:
    """States at the edges of the chunks: (X, N + 1, N + 1) times (X, N + 1, D, V + 1)."""
    return torch.bmm(carrying, pieces.flatten(2)).unflatten(2, pieces.shape[2:])


def segment_states(k: Tensor, v: Tensor, weights: Weights, state: Tensor) -> Tensor:
    """[C | n] at every edge of the segment, (X, N + 1, D, V + 1)."""
    return carry_states(weights.carrying, torch.cat([state[:, None], (k * weights.writing).mT @ v], 1))


def segment_forward(q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs h (X, N, L, V), denominators (X, N, L) and the last state (X, D, V + 1) of one segment.

    q, k (X, N, L, D), k already divided by sqrt(D); v (X, N, L, V + 1), its last column 1; state (X, D, V + 1).
    """
    weights = read_weights(gates, q.shape[1], q.dtype)
    states = segment_states(k, v, weights, state)
    total = (q @ k.mT).mul_(weights.inside) @ v
    total += (q * weights.reading) @ states[:, :-1]  # (X, N, L, V + 1)
    denominator = total[..., -1]
    return total[..., :-1] / normaliser(denominator, gates)[..., None], denominator, states[:, -1]


def normaliser(denominator: Tensor, gates: Gates) -> Tensor:
    """max(|q . n|, exp(-m)) + epsilon, (X, N, L)."""
    floor = stabilised_one(gates.m.to(denominator.dtype)).view_as(denominator)
    return torch.maximum(denominator.abs(), floor) + EPSILON


class SegmentGradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    a: Tensor
    state: Tensor
    m_first: Tensor


def segment_backward(q, k, v, gates, state, h, denominator, dh, dstate, dm_last) -> SegmentGradients:
    """Gradients of one segment from those of its outputs dh (X, N, L, V) and of its last state, dstate and dm_last.

    The gates' gradients need no L x L product: as q enters linearly, q . dq is the sum over a row of (weight times its
    gradient), and k . dk the sum over a column. The stabiliser adds to both, as it cancels only up to epsilon.
    """
    chunks = q.shape[1]
    weights = read_weights(gates, chunks, q.dtype)
    states = segment_states(k, v, weights, state)

    scale = normaliser(denominator, gates)
    along = (dh * h).sum(-1) / scale  # (X, N, L) minus the gradient of the normaliser
    ddenominator = torch.where(denominator.abs() + EPSILON == scale, -along * denominator.sign(), 0)
    dtotal = torch.cat([dh / scale[..., None], ddenominator[..., None]], -1)  # (X, N, L, V + 1)

    dstates = torch.cat([(q * weights.reading).mT @ dtotal, dstate[:, None]], 1)  # (X, N + 1, D, V + 1)
    dpieces = carry_states(weights.carrying.mT, dstates)
    dwritten = dpieces[:, 1:]

    attention = (q @ k.mT).mul_(weights.inside)
    dattention = (dtotal @ v.mT).mul_(weights.inside)
    dq = dattention @ k + (dtotal @ states[:, :-1].mT).mul_(weights.reading)
    dk = dattention.mT @ q + (v @ dwritten.mT).mul_(weights.writing)
    dv = attention.mT @ dtotal + (k @ dwritten).mul_(weights.writing)

    gate_dtype = gates.u.dtype
    dm = (-EPSILON * along).flatten(1).to(gate_dtype)  # (X, T) through the stabiliser alone
    dm_end = dm_last - (dstate * states[:, -1]).sum((1, 2)).to(gate_dtype)
    dm[:, -1] += dm_end  # the last state is stabilised by the last row's m
    row = (q * dq).sum(-1).flatten(1) + dm  # the rows' m move with B, and with the token that set the maximum
    column = torch.cat([(dpieces[:, 0] * state).sum((1, 2))[:, None], (k * dk).sum(-1).flatten(1)], 1).to(gate_dtype)
    column = column.scatter_add(1, gates.source[:, 1:], dm)  # (X, T + 1)
    through_state = (dstate * states[:, -1]).sum((1, 2)).to(gate_dtype)[:, None]
    da = (row - column[:, 1:]).flip(-1).cumsum(-1).flip(-1) + through_state
    return SegmentGradients(dq, dk, dv, column[:, 1:], da, dpieces[:, 0], column[:, 0])


class Chunkwise(torch.autograd.Function):
    """Segment after segment forward, and in reverse order backward. Arguments as in `segment_forward`, T = S."""

    @staticmethod
    def forward(ctx, q, k, v, i, a, state, m_first, chunk_size):
        ctx.cuts = segments(q.shape[1], chunk_size, q.device)
        ctx.value_width = v.shape[2] - 1
        h = q.new_empty(*v.shape[:2], ctx.value_width)
        denominator = q.new_empty(q.shape[:2])
        firsts = []
        for cut in ctx.cuts:
            firsts += [state, m_first]
            here, cells = slice(cut[0], cut[0] + cut[1] * cut[2]), cut[1:]
            gates = read_gates(i[:, here], a[:, here], m_first)
            part, below, state = segment_forward(*(x[:, here].unflatten(1, cells) for x in (q, k, v)), gates, state)
            h[:, here], denominator[:, here], m_first = part.flatten(1, 2), below.flatten(1), gates.m_last
        ctx.save_for_backward(q, k, v, i, a, h, denominator, *firsts)
        return h, state, m_first

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh, dstate, dm):
        q, k, v, i, a, h, denominator, *firsts = ctx.saved_tensors
        dq, dk, dv, di, da = (torch.empty_like(x) for x in (q, k, v, i, a))
        for cut, state, m_first in reversed(list(zip(ctx.cuts, firsts[::2], firsts[1::2], strict=True))):
            here, cells = slice(cut[0], cut[0] + cut[1] * cut[2]), cut[1:]
            gates = read_gates(i[:, here], a[:, here], m_first)
            qc, kc, vc, hc, denominator_c, dhc = (
                x[:, here].unflatten(1, cells) for x in (q, k, v, h, denominator, dh)
            )
            got = segment_backward(qc, kc, vc, gates, state, hc, denominator_c, dhc, dstate, dm)
            for whole, part in ((dq, got.q), (dk, got.k), (dv, got.v)):
                whole[:, here] = part.flatten(1, 2)
            di[:, here], da[:, here], dstate, dm = got.i, got.a, got.state, got.m_first
        return dq, dk, dv, di, da, dstate, dm, None
