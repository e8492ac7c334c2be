"""The selective scan against a plain recurrence: values, gradients, states, dtypes, extremes, memory and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from xlstm_unet_lab.ops import selective_scan as scans
from xlstm_unet_lab.ops.selective_scan import choose_chunk_size, selective_scan, step

NAMES = ("u", "delta", "A", "B", "C", "D", "initial_state")


def make_inputs(batch=2, width=3, state_size=4, length=9, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "u": normal(batch, width, length),
        "delta": normal(batch, width, length).exp() / 4,
        "A": -normal(width, state_size).exp(),
        "B": normal(batch, state_size, length),
        "C": normal(batch, state_size, length),
        "D": normal(width),
        "initial_state": normal(batch, width, state_size),
    }
    return {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}


def plain_recurrence(u, delta, A, B, C, D, initial_state):
    h, outputs = initial_state, []
    for t in range(u.shape[-1]):
        h = torch.exp(delta[:, :, None, t] * A) * h + delta[:, :, None, t] * B[:, None, :, t] * u[:, :, None, t]
        outputs.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(outputs, -1), h


def gradients(outputs, inputs):
    """Gradients of a fixed random weighting of every output, the last state included."""
    generator = torch.Generator().manual_seed(1)
    total = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in outputs)
    return torch.autograd.grad(total, list(inputs.values()))


def largest_difference(ours, theirs):
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


def assert_equals_recurrence(inputs, chunk_size):
    ours = selective_scan(**inputs, chunk_size=chunk_size, return_state=True)
    theirs = plain_recurrence(**inputs)
    assert largest_difference(ours, theirs) < 1e-10
    assert largest_difference(gradients(ours, inputs), gradients(theirs, inputs)) < 1e-10


@pytest.mark.parametrize("length", [1, 2, 9, 30, 37])
@pytest.mark.parametrize("chunk_size", [1, 4, 9, 30, 64, None])
def test_equals_the_plain_recurrence(length, chunk_size):
    assert_equals_recurrence(make_inputs(length=length), chunk_size)


def test_equals_the_plain_recurrence_over_several_default_chunks():
    assert_equals_recurrence(make_inputs(batch=1, width=2, state_size=2, length=600), None)


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 3),
    width=st.integers(1, 5),
    state_size=st.integers(1, 5),
    length=st.integers(1, 40),
    chunk_size=st.integers(1, 45),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_chunk_size(batch, width, state_size, length, chunk_size, seed):
    assert_equals_recurrence(make_inputs(batch, width, state_size, length, seed=seed), chunk_size)


def test_known_answer():
    """Decay 1/2 a token and unit inputs: h = 1, 3/2, 7/4, and y = C h + D u."""
    one = torch.ones(1, 1, 3, dtype=torch.float64)
    half = torch.tensor([[0.5]], dtype=torch.float64).log()
    y = selective_scan(one, one, half, one, 2 * one, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(y.flatten(), torch.tensor([3.0, 4.0, 4.5], dtype=torch.float64))


def test_without_skip_and_without_state():
    inputs = make_inputs()
    y = selective_scan(*(inputs[name] for name in NAMES[:5]))
    zeros = {name: torch.zeros_like(inputs[name]) for name in ("D", "initial_state")}
    expected, _ = plain_recurrence(**(inputs | zeros))
    assert float((y - expected).detach().abs().max()) < 1e-12


def test_gradcheck():
    inputs = make_inputs(batch=1, width=2, state_size=2, length=7)

    def function(*tensors):
        return selective_scan(**dict(zip(NAMES, tensors, strict=True)), chunk_size=3, return_state=True)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_state_is_handed_over_mid_sequence(cut):
    inputs = make_inputs()
    whole = selective_scan(**inputs, chunk_size=4, return_state=True)
    along_time = ("u", "delta", "B", "C")
    first = inputs | {name: inputs[name][..., :cut] for name in along_time}
    second = inputs | {name: inputs[name][..., cut:] for name in along_time}
    y_first, state = selective_scan(**first, chunk_size=4, return_state=True)
    y_second, last_state = selective_scan(**(second | {"initial_state": state}), chunk_size=4, return_state=True)
    halves = torch.cat([y_first, y_second], -1), last_state
    assert largest_difference(halves, whole) < 1e-12
    assert largest_difference(gradients(halves, inputs), gradients(whole, inputs)) < 1e-10


def test_step_by_step_equals_the_scan():
    inputs = make_inputs()
    u, delta, A, B, C, D, _ = inputs.values()
    state, outputs = None, []
    for t in range(u.shape[-1]):
        y, state = step(state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D)
        outputs.append(y)
    expected = selective_scan(u, delta, A, B, C, D, return_state=True)
    assert largest_difference((torch.stack(outputs, -1), state), expected) < 1e-12


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stable_for_any_decay(scale, dtype):
    """From a state that is all but frozen to one forgotten at once, over more tokens than a chunk holds."""
    inputs = make_inputs(batch=1, length=700)
    inputs["A"] = (inputs["A"] * scale).detach().requires_grad_()
    exact = plain_recurrence(**inputs)
    exact_gradients = gradients(exact, inputs)
    inputs = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
    ours = selective_scan(**inputs, return_state=True)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for a, b in zip((*ours, *gradients(ours, inputs)), (*exact, *exact_gradients), strict=True):
        assert a.isfinite().all()
        assert float((a - b).detach().abs().max()) <= tolerance * float(b.detach().abs().max() + 1)


def test_half_precision_is_computed_in_float32():
    half = make_inputs(length=300, dtype=torch.bfloat16)
    full = {name: x.detach().float().requires_grad_() for name, x in half.items()}
    y, state = selective_scan(**half, return_state=True)
    expected, expected_state = selective_scan(**full, return_state=True)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)
    y.float().sum().backward()
    expected.bfloat16().float().sum().backward()
    for name in half:
        assert half[name].grad.dtype == torch.bfloat16
        torch.testing.assert_close(half[name].grad, full[name].grad.bfloat16(), rtol=0, atol=0)


def test_autocast_does_not_lower_the_precision():
    inputs = make_inputs(dtype=torch.float32)
    expected = selective_scan(**inputs)
    expected_gradients = torch.autograd.grad(expected.sum(), list(inputs.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(**inputs)
        grads = torch.autograd.grad(y.sum(), list(inputs.values()))
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close(grads, expected_gradients, rtol=0, atol=0)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            self.largest = max(self.largest, x.numel() if isinstance(x, torch.Tensor) else 0)
        return result


def test_memory_never_holds_the_states_of_all_tokens():
    width, state_size, length, chunk_size = 4, 8, 256, 8
    inputs = make_inputs(1, width, state_size, length)
    with LargestTensor() as seen:
        y = selective_scan(**inputs, chunk_size=chunk_size)
        y.sum().backward()
    assert seen.largest == max(width, state_size) * length  # as large as an input, and no larger


@pytest.mark.parametrize(
    ("device", "numbers", "tokens"),
    [
        ("cpu", 1, 256),
        ("cpu", 10**9, 256),
        ("cuda", 2 * 192 * 16, 1024),
        ("cuda", 2**12, 4096),
        ("cuda", 2**12 + 1, 1024),
        ("cuda", 10**9, 256),
        ("mps", 2**4, 4**10),
    ],
)
def test_a_gpu_takes_chunks_as_long_as_their_states_fit(device, numbers, tokens):
    assert choose_chunk_size(torch.device(device), numbers) == tokens


@pytest.mark.parametrize("chosen", [1, 5, 64])
def test_where_nobody_says_the_chunks_are_those_chosen(monkeypatch, chosen):
    asked = []
    monkeypatch.setattr(scans, "choose_chunk_size", lambda device, numbers: asked.append((device, numbers)) or chosen)
    assert_equals_recurrence(make_inputs(batch=2, width=3, state_size=4, length=30), None)
    assert asked == [(torch.device("cpu"), 2 * 3 * 4)]


def change(name, alter):
    inputs = make_inputs()
    return inputs | {name: alter(inputs[name].detach())}


@pytest.mark.parametrize(
    ("name", "alter", "message"),
    [
        ("u", lambda x: x[0], r"u has shape \(3, 9\), expected \(batch, width, S\)"),
        ("u", lambda x: x[None], r"u has shape \(1, 2, 3, 9\), expected \(batch, width, S\)"),
        ("u", lambda x: x[..., :0], r"u has shape \(2, 3, 0\).*at least 1"),
        ("delta", lambda x: x[..., 1:], r"delta has shape \(2, 3, 8\), expected \(2, 3, 9\)"),
        ("A", lambda x: x[0], r"A has shape \(4,\), expected \(3, state size\) to fit u"),
        ("A", lambda x: x[1:], r"A has shape \(2, 4\), expected \(3, 4\)"),
        ("B", lambda x: x.mT, r"B has shape \(2, 9, 4\), expected \(2, 4, 9\)"),
        ("C", lambda x: x[:, 1:], r"C has shape \(2, 3, 9\), expected \(2, 4, 9\)"),
        ("D", lambda x: x[1:], r"D has shape \(2,\), expected \(3,\)"),
        ("initial_state", lambda x: x.mT, r"state has shape \(2, 4, 3\), expected \(2, 3, 4\)"),
        ("u", lambda x: x.long(), r"u has dtype torch.int64, expected floating point"),
        ("B", lambda x: x.to(torch.complex64), r"B has dtype torch.complex64, expected floating point"),
        ("delta", lambda x: x.index_fill(2, torch.tensor(4), torch.nan), r"delta holds 6 values that are not finite"),
        ("C", lambda x: x.index_fill(2, torch.tensor(4), torch.inf), r"C holds 8 values that are not finite"),
        ("initial_state", lambda x: x / 0, r"state holds 24 values that are not finite"),
        ("D", lambda x: x.to("meta"), r"D is on meta, expected cpu"),
    ],
)
def test_bad_input(name, alter, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**change(name, alter))


@pytest.mark.parametrize("chunk_size", [0, -3, 2.0, "8", True])
def test_bad_chunk_size(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size is {chunk_size!r}, expected a whole number"):
        selective_scan(**make_inputs(), chunk_size=chunk_size)


def test_bad_token():
    inputs = make_inputs()
    u, delta, A, B, C, *_ = inputs.values()
    with pytest.raises(ValueError, match=r"u has shape \(2, 3, 9\), expected \(batch, width\)"):
        step(None, u, delta, A, B, C)
    with pytest.raises(ValueError, match=r"B has shape \(2, 3\), expected \(2, 4\)"):
        step(None, u[..., 0], delta[..., 0], A, B[:, 1:, 0], C[..., 0])


def test_values_can_go_unchecked():
    y = selective_scan(**change("u", lambda x: x.index_fill(2, torch.tensor(4), torch.nan)), check_values=False)
    assert y[..., :4].isfinite().all() and y[..., 4:].isnan().all()
