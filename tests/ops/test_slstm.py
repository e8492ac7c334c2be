"""The sLSTM against a scalar loop and the `xlstm` package: values, gradients, states, dtypes, extremes, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.ops import slstm

NAMES = ("z", "i", "f", "o", "recurrent_weights")


def make_inputs(batch=2, heads=2, length=7, width=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    gates = {name: normal(batch, heads, length, width) for name in "zifo"}
    return gates | {"recurrent_weights": normal(heads, 4, width, width)}


def make_state(batch=2, heads=2, width=3, seed=5):
    generator = torch.Generator().manual_seed(seed)
    c, n, h, m = torch.randn(4, batch, heads, width, generator=generator, dtype=torch.float64)
    return slstm.SLSTMState(*(x.detach().requires_grad_() for x in (c, n.exp(), h.tanh(), m)))


def unstabilised_loop(z, i, f, o, recurrent_weights):
    """The definition without the stabiliser, one scalar after the other: exponentials as they stand."""
    z, i, f, o, recurrent_weights = (x.detach() for x in (z, i, f, o, recurrent_weights))
    batch, heads, length, width = z.shape
    outputs = torch.zeros(z.shape, dtype=torch.float64)
    for b in range(batch):
        for head in range(heads):
            c, n, h = [0.0] * width, [0.0] * width, [0.0] * width
            for t in range(length):
                new = []
                for d in range(width):
                    before = [
                        float(gate[b, head, t, d])
                        + sum(float(recurrent_weights[head, g, d, e]) * h[e] for e in range(width))
                        for g, gate in enumerate((z, i, f, o))
                    ]
                    keep = 1 / (1 + math.exp(-before[2]))
                    c[d] = keep * c[d] + math.exp(before[1]) * math.tanh(before[0])
                    n[d] = keep * n[d] + math.exp(before[1])
                    new.append(c[d] / n[d] / (1 + math.exp(-before[3])))
                h = new
                outputs[b, head, t] = torch.tensor(h, dtype=torch.float64)
    return outputs


def gradients(outputs, inputs):
    generator = torch.Generator().manual_seed(1)
    total = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in outputs)
    return torch.autograd.grad(total, list(inputs))


def largest_difference(ours, theirs):
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_equals_a_scalar_loop_without_stabiliser():
    inputs = make_inputs()
    assert largest_difference([slstm.scan(**inputs)], [unstabilised_loop(**inputs)]) < 1e-12


def test_known_answer():
    """Equal input gates and an open forget gate average tanh(z); the output gate at 0 halves it."""
    z = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).view(1, 1, 3, 1)
    zero = torch.zeros_like(z)
    h = slstm.scan(z, zero, zero + 50, zero)
    expected = z.tanh().flatten().cumsum(0) / torch.tensor([1.0, 2.0, 3.0]) / 2
    torch.testing.assert_close(h.flatten(), expected)


def run_xlstm(inputs):
    """The `xlstm` package's vanilla backend on our tensors; gradients arrive in our tensors through the copies."""
    from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

    batch, heads, length, width = inputs["z"].shape
    order = [1, 2, 0, 3]  # i, f, z, o
    gates = torch.stack([inputs[name] for name in "zifo"])[order]  # (4, B, H, S, D)
    gates = gates.permute(3, 1, 0, 2, 4).reshape(length, batch, 4 * heads * width)
    weights = inputs["recurrent_weights"][:, order].reshape(heads, 4 * width, width)
    zeros = torch.zeros(4, batch, heads * width, dtype=gates.dtype)
    bias = torch.zeros(4 * heads * width, dtype=gates.dtype)
    states, last, _ = slstm_forward(gates, zeros, weights, bias, slstm_pointwise_function_registry["slstm"])
    h = states[0, 1:].reshape(length, batch, heads, width).permute(1, 2, 0, 3)
    h_last, c, n, m = last.reshape(4, batch, heads, width)
    return h, slstm.SLSTMState(c, n, h_last, m)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", [(2, 2, 12, 3), (1, 1, 1, 1), (3, 4, 5, 8)])
def test_equals_the_xlstm_package(shape, dtype, tolerance):
    inputs = make_inputs(*shape, dtype=dtype)
    h, state = slstm.scan(**inputs, return_state=True)
    their_h, their_state = run_xlstm(inputs)
    assert largest_difference((h, *state), (their_h, *their_state)) < tolerance
    ours, theirs = gradients((h,), inputs.values()), gradients((their_h,), inputs.values())
    assert largest_difference(ours, theirs) < tolerance


def test_equals_the_xlstm_cell_module():
    """The same through the package's public module: its layouts, its bias, its way of holding the weights."""
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    batch, heads, length, width = 2, 2, 6, 4
    cell = sLSTMCell(sLSTMCellConfig(hidden_size=heads * width, num_heads=heads, backend="vanilla")).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in cell.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(batch, length, 4, heads, width, generator=generator, dtype=torch.float64)  # i, f, z, o
    expected, _ = cell(x.flatten(2))

    gates = x + cell.bias.clone().transpose(0, 1)  # the package's (heads, gates, width) to (gates, heads, width)
    i, f, z, o = gates.permute(2, 0, 3, 1, 4)
    weights = cell.recurrent_kernel.clone().permute(0, 2, 3, 1)[:, [2, 0, 1, 3]]  # (heads, in, gates, out) to ours
    assert largest_difference([slstm.scan(z, i, f, o, weights)], [expected]) < 1e-12


def test_without_recurrent_weights_equals_zero_weights():
    inputs = make_inputs()
    inputs["recurrent_weights"] = torch.zeros_like(inputs["recurrent_weights"])
    without = slstm.scan(*(inputs[name] for name in "zifo"))
    torch.testing.assert_close(without, slstm.scan(**inputs), rtol=0, atol=1e-15)


def test_heads_do_not_mix():
    inputs = make_inputs(heads=3)
    alone = {name: x[1:2] if name == "recurrent_weights" else x[:, 1:2] for name, x in inputs.items()}
    torch.testing.assert_close(slstm.scan(**alone), slstm.scan(**inputs)[:, 1:2], rtol=0, atol=1e-14)


def test_gradcheck():
    inputs, state = make_inputs(batch=1, heads=1, length=4, width=2), make_state(batch=1, heads=1, width=2)

    def function(*tensors):
        h, last = slstm.scan(*tensors[:5], initial_state=slstm.SLSTMState(*tensors[5:]), return_state=True)
        return h, *last

    assert torch.autograd.gradcheck(function, (*inputs.values(), *state))


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(1, 9),
    width=st.integers(1, 5),
    cut=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_state_is_handed_over_mid_sequence(batch, heads, length, width, cut, seed):
    inputs = make_inputs(batch, heads, length + 1, width, seed=seed)
    cut = 1 + cut % length
    first, second = (
        {name: x if name == "recurrent_weights" else x[:, :, part] for name, x in inputs.items()}
        for part in (slice(None, cut), slice(cut, None))
    )
    h, state = slstm.scan(**inputs, return_state=True)
    h_first, middle = slstm.scan(**first, return_state=True)
    h_second, last = slstm.scan(**second, initial_state=middle, return_state=True)
    halves = torch.cat([h_first, h_second], 2)
    assert largest_difference((halves, *last), (h, *state)) < 1e-12
    ours, theirs = gradients((halves,), inputs.values()), gradients((h,), inputs.values())
    assert largest_difference(ours, theirs) < 1e-10


@pytest.mark.parametrize("start", [None, "empty", "state"])
def test_step_by_step_equals_the_scan(start):
    z, i, f, o, weights = make_inputs().values()
    initial = {None: None, "empty": slstm.empty_state(z), "state": make_state()}[start]
    state, outputs = initial, []
    for t in range(z.shape[2]):
        h, state = slstm.step(state, z[:, :, t], i[:, :, t], f[:, :, t], o[:, :, t], weights)
        outputs.append(h)
    h, last = slstm.scan(z, i, f, o, weights, initial_state=initial, return_state=True)
    assert largest_difference((torch.stack(outputs, 2), *state), (h, *last)) < 1e-13


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_state_may_be_a_plain_tuple_or_list(kind):
    inputs, state = make_inputs(), make_state()
    assert torch.equal(slstm.scan(**inputs, initial_state=kind(state)), slstm.scan(**inputs, initial_state=state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 100])
def test_stable_for_large_pre_activations(dtype, scale):
    signs = make_inputs(length=60, dtype=dtype)
    inputs = {name: (x.sign() * scale if name != "recurrent_weights" else x).detach() for name, x in signs.items()}
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    h, state = slstm.scan(**inputs, return_state=True)
    assert h.isfinite().all() and all(x.isfinite().all() for x in state)
    assert h.abs().max() <= 1  # an average of tanh values, gated
    h.float().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs.values())


def test_half_precision_is_computed_in_float32():
    half = make_inputs(dtype=torch.bfloat16)
    full = {name: x.detach().float() for name, x in half.items()}
    h, state = slstm.scan(**half, return_state=True)
    expected, expected_state = slstm.scan(**full, return_state=True)
    assert h.dtype == torch.bfloat16 and all(x.dtype == torch.float32 for x in state)
    torch.testing.assert_close(tuple(state), tuple(expected_state), rtol=0, atol=0)
    torch.testing.assert_close(h, expected.bfloat16(), rtol=0, atol=0)


def test_autocast_does_not_lower_the_precision():
    inputs = make_inputs(dtype=torch.float32)
    expected = slstm.scan(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = slstm.scan(**inputs)
    torch.testing.assert_close(h, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "alter", "message"),
    [
        ("z", lambda x: x[0], r"z has shape \(2, 7, 3\), expected \(B, H, S, D\)"),
        ("z", lambda x: x[:, :, :0], r"z has shape \(2, 2, 0, 3\).*at least 1"),
        ("i", lambda x: x[:, :, 1:], r"i has shape \(2, 2, 6, 3\), expected \(2, 2, 7, 3\)"),
        ("o", lambda x: x.mT, r"o has shape \(2, 2, 3, 7\), expected \(2, 2, 7, 3\)"),
        (
            "recurrent_weights",
            lambda x: x[:, :3],
            r"recurrent_weights has shape \(2, 3, 3, 3\), expected \(2, 4, 3, 3\)",
        ),
        ("f", lambda x: x.int(), r"f has dtype torch.int32, expected floating point"),
        ("f", lambda x: x.to("meta"), r"f is on meta, expected cpu"),
        ("z", lambda x: x / 0, r"z holds 84 values that are not finite"),
        ("recurrent_weights", lambda x: x * torch.nan, r"recurrent_weights holds 72 values that are not finite"),
    ],
)
def test_bad_input(name, alter, message):
    inputs = make_inputs()
    with pytest.raises(ValueError, match=message):
        slstm.scan(**(inputs | {name: alter(inputs[name].detach())}))


@pytest.mark.parametrize(
    ("name", "alter", "message"),
    [
        ("c", lambda x: x[:1], r"state.c has shape \(1, 2, 3\), expected \(2, 2, 3\)"),
        ("h", lambda x: x.long(), r"state.h has dtype torch.int64"),
        ("m", lambda x: x * torch.nan, r"state.m holds 12 values that are not finite"),
        ("n", torch.zeros_like, r"state.n goes down to 0.0, expected values above 0"),
    ],
)
def test_bad_state(name, alter, message):
    state = make_state()
    with pytest.raises(ValueError, match=message):
        slstm.scan(**make_inputs(), initial_state=state._replace(**{name: alter(getattr(state, name).detach())}))


def test_bad_token_and_bad_number_of_states():
    z, i, f, o, weights = make_inputs().values()
    with pytest.raises(ValueError, match=r"z has shape \(2, 2, 7, 3\), expected \(B, H, D\)"):
        slstm.step(None, z, i, f, o, weights)
    with pytest.raises(ValueError, match="the state has 2 parts, expected an SLSTMState"):
        slstm.scan(z, i, f, o, weights, initial_state=tuple(make_state())[:2])


def test_values_can_go_unchecked():
    inputs = make_inputs()
    z = inputs["z"].detach().index_fill(2, torch.tensor(4), torch.nan)
    h = slstm.scan(**(inputs | {"z": z}), check_values=False)
    assert h[:, :, :4].isfinite().all() and h[:, :, 4:].isnan().all()


def test_a_large_stabiliser_is_accepted():
    state = make_state()
    state = state._replace(m=torch.full_like(state.m, 1e4))
    assert slstm.scan(**make_inputs(), initial_state=state).isfinite().all()
