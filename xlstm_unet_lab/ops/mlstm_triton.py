"""The mLSTM through the kernels of `triton_kernels`, on an NVIDIA GPU: what fits them, tiles, launches, the gradient.

Function and gradient are those of the chunkwise form, normaliser and stabiliser included. Products run in q's dtype,
sums in float32; a float32 product as three of tf32, or as one where torch.set_float32_matmul_precision allows it. Gates
are summed in PyTorch, in float64, as they are few and large; kernels get weights of them, and sums in two halves.
"""

import functools
import importlib.util
import math
import os
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.ops import mlstm_recurrence
from xlstm_unet_lab.ops.mlstm_chunkwise import gate_gradients, run_chunkwise, running_gates
from xlstm_unet_lab.ops.mlstm_recurrence import EPSILON, LARGE, MLSTMState, computed, empty_state, stabilised_one
from xlstm_unet_lab.ops.tensors import gate_dtype

WIDEST_HEAD = 512
SCANNED = 256  # numbers of a state that one program of the scan carries
FAR_BELOW = -1e30  # instead of -inf, the stabiliser of an empty memory, whose two halves would have no difference
# How far the kernels may be from the chunkwise form, as a part of the largest value; tf32 and float16 have 11 bits.
NEAR = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Tiles(NamedTuple):
    """How the work is cut, chosen from registers, shared memory and the roofline: `benchmarks/triton_kernels.py`."""

    chunk: int  # tokens between two states; a multiple of `rows`
    rows: int  # tokens of a tile
    inner: int  # width that is summed over at a time
    outer: int  # width of a tile of the result


def choose_tiles(dtype: torch.dtype, of_gpu: tuple[int, int] | None, key_width: int, value_width: int) -> Tiles:
    """Tiles for heads of these widths, as large as a program can keep in its registers."""
    if of_gpu is None:  # the interpreter, for which a program costs the same whatever its size
        return Tiles(chunk=64, rows=64, inner=64, outer=64)
    width = max(key_width, value_width)
    chunk = 256 if width <= 128 else 512  # states then take about as much memory traffic as tokens
    if of_gpu < (8, 0):  # no matrix units that Triton would use
        return Tiles(chunk, rows=32, inner=16, outer=32)
    side = 32 if width <= 32 else 64
    if dtype == torch.float32:  # a product of float32 is three of tf32, with three times the numbers to keep
        return Tiles(chunk, rows=32, inner=32, outer=side)
    return Tiles(chunk, rows=64, inner=side, outer=side)


def triton(q, k, v, i, f, *, initial_state=None, return_state=False, check_values=True):
    """The mLSTM in Triton kernels; arguments and result as `mlstm.run`, q, k and v in float32, bfloat16 or float16.

    Runs on an NVIDIA GPU, and on the processor where TRITON_INTERPRET=1 stands in the environment before Triton is
    imported. Gradients of h and of the last state reach every input. No sum of a kernel depends on the order in which
    programs run. In float16 products of q and k beyond 65504 overflow; a head has at most 2^31 numbers. Raises
    ValueError as `mlstm.run`, for inputs that do not fit the kernels, and where they do not work.
    """
    return computed(_triton, (q, k, v, i, f), initial_state, return_state, check_values, getattr(q, "dtype", None))


def _triton(q, k, v, i, a, state):
    too_large = f"a state is float64, or values are larger than {LARGE:g}" if state.C.dtype == torch.float64 else None
    if reason := obstacle(q, v) or too_large:
        raise ValueError(f"form 'triton' does not fit: {reason}; use form='auto' or 'chunkwise'")
    return run_kernels(q, k, v, i, a, state)


def obstacle(q: Tensor, v: Tensor) -> str | None:
    """Why the kernels cannot take this input, as a clause; None when they can. q (B, H, S, D), v (B, H, S, V)."""
    interpreted = q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (q.device.type != "cuda" or torch.version.hip):
        return f"the tensors are on {q.device}, and the kernels run on an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if max(q.shape[-1], v.shape[-1]) > WIDEST_HEAD:
        return f"head widths are {q.shape[-1]} and {v.shape[-1]}, and the kernels take at most {WIDEST_HEAD}"
    if q.dtype not in NEAR:
        return f"the tensors are {q.dtype}, and the kernels take float32, bfloat16 and float16"
    if q.dtype == torch.bfloat16 and (capability(q.device) or (8, 0)) < (8, 0):
        return "this GPU has no units for bfloat16"
    return failure(q.device, q.dtype, q.shape[-1], v.shape[-1])


@functools.cache
def failure(device: torch.device, dtype: torch.dtype, key_width: int, value_width: int) -> str | None:
    """Try the kernels on a small input against the chunkwise form: how they fail, in a warning and as a clause."""
    try:
        if (error := _largest_error(device, dtype, key_width, value_width)) <= NEAR[dtype]:
            return None
        problem = f"differ from the chunkwise form by {error:.0e}"
    except Exception as raised:  # whatever a compiler or a driver raises: it is handed on in words
        problem = f"do not run ({type(raised).__name__}: {raised})"
    reason = f"on {device} in {dtype}, heads {key_width} and {value_width} wide, the kernels {problem}"
    warnings.warn(f"no Triton for the mLSTM: {reason}. The chunkwise form computes the same", stacklevel=2)
    return reason


def _largest_error(device, dtype, key_width, value_width) -> float:
    """Of the output, the last state and every gradient, each as a part of its largest value."""
    generator = torch.Generator().manual_seed(0)
    length = choose_tiles(dtype, capability(device), key_width, value_width).chunk + 67  # two chunks, one cut short
    results = []
    # Whatever surrounds the first use, a checkpoint that counts saved tensors among it, sees nothing of this.
    unseen = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False), unseen:
        draw = functools.partial(torch.randn, 1, 1, length, generator=generator, device="cpu", dtype=torch.float32)
        drawn = [draw(width).to(device, dtype) for width in (key_width, key_width, value_width, value_width)]
        gates = draw(2).to(device).movedim(-1, 0)
        for form, taken in ((run_kernels, dtype), (run_chunkwise, torch.float32)):
            copies = [*(x.to(taken, copy=True) for x in drawn[:3]), *gates.clone()]
            q, k, v, i, f = (x.requires_grad_() for x in copies)
            h, last = form(q, k, v, i, F.logsigmoid(f), empty_state(q, v))
            gradients = torch.autograd.grad((h * drawn[3]).sum() + last.C.sum(), (q, k, v, i, f))
            results.append([x.detach().float() for x in (h, *last, *gradients)])
    # torch's maximum is NaN where one is, Python's is not.
    return torch.stack([(x - y).abs().max() / y.abs().max() for x, y in zip(*results, strict=True)]).max().item()


def run_kernels(q, k, v, i, a, state) -> tuple[Tensor, MLSTMState]:
    """h (B, H, S, V) in v's dtype and the last state; q, k (B, H, S, D), v (B, H, S, V), i, a (B, H, S)."""
    batch_and_heads, key_width, value_width = q.shape[:2], q.shape[-1], v.shape[-1]
    q, k, v, n = (padded(x).flatten(0, 1) for x in (q, k, v, state.n))
    C = padded(padded(state.C).mT).flatten(0, 1)  # (X, V, D)
    i, a, m = (x.to(gate_dtype(q)).flatten(0, 1) for x in (i, a, state.m))
    with torch.cuda.device_of(q):  # Triton launches on the current GPU
        h, memory, m = Kernels.apply(q, k, v, i, a, torch.cat([C, n[:, None]], 1), m, key_width)
    h, memory, m = (x.unflatten(0, batch_and_heads) for x in (h, memory, m))
    C, n = memory[..., :value_width, :key_width].mT, memory[..., -1, :key_width]
    return h[..., :value_width], MLSTMState(C, n, m)


def padded(x: Tensor) -> Tensor:
    """Zeros up to a width that is a multiple of 16: rows then begin at addresses that are, which saves registers."""
    return (F.pad(x, (0, -x.shape[-1] % 16)) if x.shape[-1] % 16 else x).contiguous()


class Weights(NamedTuple):
    """What the gates give a kernel, in float32. N chunks of T tokens."""

    u: tuple[Tensor, Tensor]  # (X, S) rounded, and the rest; 1 / sqrt(D) is within it
    mu: tuple[Tensor, Tensor]  # (X, S) as u
    reading: Tensor  # (X, S) weight of the state before the chunk in row t
    writing: Tensor  # (X, S) weight of token s in the state after the chunk
    carrying: Tensor  # (X, N) weight of the state before the chunk in the state after it


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x rounded to float32, and what is left of it: together they have twice the digits."""
    return x.float(), (x - x.float()).float()


def compute_weights(u: Tensor, mu: Tensor, chunk: int, width: int) -> Weights:
    """From u (X, S) and mu (X, S + 1) for keys of this width."""
    length = u.shape[1]
    u, mu = u - math.log(width) / 2, mu.clamp(min=FAR_BELOW)
    edges = torch.cat([mu[:, :length:chunk], mu[:, -1:]], 1)  # (X, N + 1)
    before, after = (x.repeat_interleave(chunk, 1)[:, :length] for x in (edges[:, :-1], edges[:, 1:]))
    exponents = (before - mu[:, 1:], u - after, edges[:, :-1] - edges[:, 1:])
    return Weights(halves(u), halves(mu[:, 1:]), *(x.float().exp() for x in exponents))


class Kernels(torch.autograd.Function):
    """q, k (X, S, D), v (X, S, V), i, a (X, S), state (X, V + 1, D), m (X) -> h (X, S, V), state, m.

    D and V are padded; `key_width` is that of the keys as they were.
    """

    @staticmethod
    def forward(ctx, q, k, v, i, a, state, m, key_width):
        tiles = choose_tiles(q.dtype, capability(q.device), q.shape[-1], v.shape[-1])
        u, m_rows, mu, source = running_gates(i, a, m)
        weights = compute_weights(u, mu, tiles.chunk, key_width)
        least = stabilised_one(m_rows.float())
        ones = torch.ones_like(least)
        states, last = scan_chunks(k, v, ones, weights.writing, weights.carrying, state, tiles)
        h, denominator = torch.empty_like(v), torch.empty_like(least)
        attend(q, k, v, states, weights.reading, weights.mu, weights.u, h, tiles, normalise=(least, denominator))
        ctx.save_for_backward(q, k, v, state, m_rows, u, mu, source, h, denominator)
        ctx.tiles, ctx.key_width = tiles, key_width
        return h, last, m_rows[:, -1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh, dstate, dm_last):
        q, k, v, state, m, u, mu, source, h, denominator = ctx.saved_tensors
        tiles, dh = ctx.tiles, dh.contiguous()
        normaliser = mlstm_recurrence.compute_normaliser(denominator, m)
        along = (dh.float() * h).sum(-1)  # minus the gradient of the normaliser, times the normaliser
        dlast = torch.where(denominator.abs() + EPSILON == normaliser, -along * denominator.sign(), 0)
        weights, ones = compute_weights(u, mu, tiles.chunk, ctx.key_width), torch.ones_like(dlast)
        states, last = scan_chunks(k, v, ones, weights.writing, weights.carrying, state, tiles)
        reading, mu = weights.reading / normaliser, halves(mu[:, 1:] + normaliser.log())
        dstates, dfirst = scan_chunks(q, dh, dlast, reading, weights.carrying, dstate, tiles, backwards=True)
        minus_u, minus_mu = (tuple(-x for x in pair) for pair in (weights.u, mu))

        dq, dk = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k))
        dv = torch.empty_like(v)
        attend(dh, v, k, states, reading, mu, weights.u, dq, tiles, lasts=(dlast, ones))
        attend(v, dh, q, dstates, weights.writing, minus_u, minus_mu, dk, tiles, lasts=(ones, dlast), backwards=True)
        attend(k, q, dh, dstates, weights.writing, minus_u, minus_mu, dv, tiles, backwards=True)

        through_state, first = ((x * y).sum((1, 2)).to(m.dtype) for x, y in ((dstate, last), (dfirst, state)))
        dm = (-EPSILON * along / normaliser).to(m.dtype)  # through the stabiliser alone
        dm[:, -1] += dm_last - through_state  # the last state is stabilised by the last row's m
        row, column = ((x * dx).sum(-1).to(m.dtype) for x, dx in ((q, dq), (k, dk)))
        di, da, dm_first = gate_gradients(row, column, first, dm, through_state, source)
        return dq.to(q.dtype), dk.to(k.dtype), dv, di, da, dfirst, dm_first, None


def scan_chunks(a, b, b_last, weight, carrying, state, tiles: Tiles, backwards=False) -> tuple[Tensor, Tensor]:
    """The states around the chunks, (X, N, width of b + 1, width of a), and the one they end with.

    They come from sums of weight a [b | b_last]^T and begin with `state`: before every chunk, or after it, `backwards`.
    """
    from xlstm_unet_lab.ops import triton_kernels as kernels  # loads Triton

    (heads, length, width), chunks = a.shape, carrying.shape[1]
    states, state = state.new_empty(heads, chunks, *state.shape[1:]), state.contiguous().clone()
    count = math.ceil(width / tiles.inner) * math.ceil(b.shape[-1] / tiles.outer)
    kernels.sum_chunks[heads, chunks, count](
        a, b, b_last, weight, states, length, tiles.chunk, width, b.shape[-1],
        TOKENS=tiles.rows, A=tiles.inner, B=tiles.outer, **products(a),
    )  # fmt: skip
    size = state[0].numel()
    grid = heads, math.ceil(size / SCANNED)
    kernels.scan_states[grid](states, carrying, state, chunks, size, REVERSED=backwards, NUMBERS=SCANNED, num_warps=1)
    return states, state


def attend(a, b, c, memory, edge, row, col, total, tiles: Tiles, lasts=None, normalise=None, backwards=False) -> None:
    """Fill `total` from the kernel of this name, in whose table the arguments stand.

    `lasts` are the last columns of a and b where these have one; `normalise` is the least normaliser and a place for
    the denominators, where total is divided.
    """
    from xlstm_unet_lab.ops import triton_kernels as kernels  # loads Triton

    (heads, length, inner), outer, width = a.shape, c.shape[-1], memory.shape[-1]
    strides = (width, 1) if lasts else (1, width)  # the last columns are there where the memory is turned
    kernels.attend[math.ceil(length / tiles.rows), heads, math.ceil(outer / tiles.outer)](
        a, b, c, *(lasts or (edge, edge)), memory, memory[:, :, -1], edge, *row, *col,
        *(normalise or (edge, edge)), total,
        length, tiles.chunk, inner, outer, memory[0, 0].numel(), *strides,
        REVERSED=backwards, NORMALISED=normalise is not None, LAST=lasts is not None, EPSILON=EPSILON,
        ROWS=tiles.rows, COLUMNS=tiles.rows, INNER=tiles.inner, OUTER=tiles.outer, **products(a),
    )  # fmt: skip


def capability(device: torch.device) -> tuple[int, int] | None:
    """Of an NVIDIA GPU, as (9, 0) for an H100; None for the processor, in Triton's interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def products(x: Tensor) -> dict[str, Any]:
    """How a program multiplies: the dtype, float32 as exactly as torch was asked to, warps, and stages of loading."""
    import triton.language as tl

    of_gpu = capability(x.device)
    if of_gpu is None:
        # The interpreter cannot multiply bfloat16.
        return {"PRODUCT": tl.float16 if x.dtype == torch.float16 else tl.float32, "PRECISION": "ieee"}
    exact = getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") != "tf32"
    precision = "ieee" if of_gpu < (8, 0) else "tf32x3" if exact else "tf32"
    launch = {"num_warps": 4, "num_stages": 3 if of_gpu >= (10, 0) else 2}  # where no register is spilled
    return {"PRODUCT": getattr(tl, str(x.dtype).removeprefix("torch.")), "PRECISION": precision, **launch}
