"""The sLSTM cell: scalar memory, exponential input gate, and recurrent weights inside each head.

From the pre-activations z, i, f, o of token t, where R_z, R_i, R_f, R_o are one D x D matrix for each head:

    zhat_t = z_t + R_z h_{t-1}                              and in the same way ihat_t, fhat_t, ohat_t
    m_t = max(logsigmoid(fhat_t) + m_{t-1}, ihat_t)         the stabiliser: keeps both exponentials at or below 1
    c_t = exp(logsigmoid(fhat_t) + m_{t-1} - m_t) c_{t-1} + exp(ihat_t - m_t) tanh(zhat_t)
    n_t = exp(logsigmoid(fhat_t) + m_{t-1} - m_t) n_{t-1} + exp(ihat_t - m_t)
    h_t = sigmoid(ohat_t) c_t / n_t

Source: Beck et al., xLSTM (arXiv 2405.04517), section 2.2 and appendix A.2, with the sigmoid forget gate.
Letters: B batch, H heads, S tokens, D head width. Because h_{t-1} enters the gates, tokens can only be taken in order.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_unet_lab.ops import tensors
from xlstm_unet_lab.ops.checks import flag
from xlstm_unet_lab.ops.tensors import has_values, widened, widest, without_autocast

LARGE = 100.0  # input gates beyond, and sums with them, are known too coarsely in float32: all is computed in float64


class SLSTMState(NamedTuple):
    """What an sLSTM remembers after a token, each (B, H, D), in at least float32."""

    c: Tensor  # memory, divided by exp(m)
    n: Tensor  # normaliser, divided by exp(m)
    h: Tensor  # output, which enters the next token's gates
    m: Tensor  # stabiliser, the logarithm of the scale; -inf where nothing is stored


def empty_state(z: Tensor) -> SLSTMState:
    """The state before the first token: nothing stored. z (B, H, ..., D)."""
    zeros = torch.zeros(*z.shape[:2], z.shape[-1], device=z.device, dtype=widest(z))
    return SLSTMState(zeros, zeros, zeros, torch.full_like(zeros, -torch.inf))


def step(
    state: SLSTMState | None, z: Tensor, i: Tensor, f: Tensor, o: Tensor, recurrent_weights: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """Take one token through the cell and return (h, new state).

    `state` None before the first token; z, i, f, o (B, H, D); recurrent_weights (H, 4, D, D) or None; h (B, H, D) in
    z's dtype. Meaning of the weights, dtypes, errors and source as in `scan`.
    """
    _check(z, i, f, o, recurrent_weights, state, "B, H, D")
    h, state = _run(recurrent_weights, state, *(x.unsqueeze(2) for x in (z, i, f, o)))
    return h.squeeze(2), state


def scan(z, i, f, o, recurrent_weights=None, initial_state=None, return_state=False, check_values=True):
    """Run the cell over a whole sequence, token by token.

    z, i, f, o (B, H, S, D): pre-activations with the bias already added. recurrent_weights (H, 4, D out, D in) in the
    order z, i, f, o; None means that h does not enter the gates. Any floating dtypes: computed in the widest of them,
    at least float32. Returns h (B, H, S, D) in z's dtype, and with `return_state` also the last state.
    check_values False skips the look at every value, which on a GPU waits for the device: for what is not finite, and
    for input gates beyond `LARGE`.

    Raises ValueError on shapes that do not fit, dtypes that are not floating, devices that differ, values that are not
    finite, and an initial state whose normaliser is not positive. Source: arXiv 2405.04517, equations 8 to 17.
    """
    flag("return_state", return_state)
    _check(z, i, f, o, recurrent_weights, initial_state, "B, H, S, D", check_values)
    h, state = _run(recurrent_weights, initial_state, z, i, f, o, check_values)
    return (h, state) if return_state else h


def _run(weights: Tensor | None, state: SLSTMState | None, z, i, f, o, look=True) -> tuple[Tensor, SLSTMState]:
    state = state or empty_state(z)
    dtype = widest(z, i, f, o, weights, *state)
    if look:
        dtype = widened(dtype, LARGE, i, state[-1].clamp(min=-LARGE))
    gates = torch.stack([x.to(dtype) for x in (z, i, f, o)], dim=3)  # (B, H, S, 4, D)
    # (S, H, B, 4 D): heads first, so that one batched product serves all
    gates = gates.permute(2, 1, 0, 3, 4).flatten(3)
    state = SLSTMState(*(x.to(dtype).transpose(0, 1) for x in state))  # (H, B, D)
    if weights is not None:
        weights = weights.to(dtype).permute(0, 3, 1, 2).flatten(2)  # (H, D in, 4 D out)

    outputs = []
    with without_autocast(z):  # autocast would round the recurrent product to 16 bits
        for token in gates.unbind():
            if weights is not None:
                token = torch.baddbmm(token, state.h, weights)
            state = _update(state, *token.chunk(4, dim=-1))
            outputs.append(state.h)
    return torch.stack(outputs, dim=2).transpose(0, 1).to(z.dtype), SLSTMState(*(x.transpose(0, 1) for x in state))


def _update(state: SLSTMState, z: Tensor, i: Tensor, f: Tensor, o: Tensor) -> SLSTMState:
    """One token, element by element; z, i, f, o already hold the recurrent part."""
    kept = F.logsigmoid(f) + state.m
    m = torch.maximum(kept, i)
    forget_gate, input_gate = torch.exp(kept - m), torch.exp(i - m)
    c = forget_gate * state.c + input_gate * torch.tanh(z)
    n = forget_gate * state.n + input_gate  # one of the two gates is 1, so n never falls below 1 from an empty start
    return SLSTMState(c, n, torch.sigmoid(o) * c / n, m)


def _check(z, i, f, o, recurrent_weights, state, layout: str, check_values: bool = True) -> None:
    """Refuse what the cell cannot run on. layout names the axes of the pre-activations."""
    given, parts = {"z": z, "i": i, "f": f, "o": o}, tensors.parts_of(state, SLSTMState)
    layouts = dict.fromkeys(given, layout) | dict.fromkeys(parts, "B, H, D") | {"recurrent_weights": "H, 4, D, D"}
    given |= parts
    if recurrent_weights is not None:
        given["recurrent_weights"] = recurrent_weights
    tensors.check_tensors(given, layouts, check_values)
    if check_values and parts and has_values(z) and ((parts["state.n"] <= 0) & (parts["state.m"] > -torch.inf)).any():
        raise ValueError(f"state.n goes down to {parts['state.n'].min()}, expected values above 0 where m is finite")
