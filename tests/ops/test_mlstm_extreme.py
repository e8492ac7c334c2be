"""Finite values of any size: every form of the mLSTM says what the recurrence says, and gradients stay finite."""

import math
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xlstm_unet_lab as lab
from xlstm_unet_lab.ops import mlstm, mlstm_recurrence, slstm

LOWEST = torch.finfo(torch.float32).min
FORMS = {"recurrent": mlstm.recurrent, "parallel": mlstm.parallel, "chunkwise": mlstm.chunkwise, "run": mlstm.run}
FORMS["chunks of 3"] = partial(mlstm.chunkwise, chunk_size=3)
DTYPES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 2e-2}  # with the difference allowed
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def make_inputs(length=20, dtype=torch.float64, seed=0):
    """q, k (1, 2, S, 3), v (1, 2, S, 4), i, f (1, 2, S). No q is at right angles to a k, so no output is a small
    difference.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.rand(1, 2, length, 3, generator=generator) + 0.5 for _ in "qk")
    v = torch.randn(1, 2, length, 4, generator=generator)
    i, f = (torch.randn(1, 2, length, generator=generator) for _ in "if")
    return [x.to(dtype) for x in (q, k, v, i, f)]


def outputs_and_gradients(form, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    h, state = form(*leaves, return_state=True)
    signs = torch.linspace(-1, 1, h.numel()).view(h.shape).to(h.dtype)
    return [h, *state, *torch.autograd.grad((h * signs).sum(), leaves)]


def inputs_with(gates, dtype, seed):
    """Inputs whose gates are these pairs (i, f), a token each, as large as the dtype holds."""
    bounds = torch.finfo(dtype)
    drawn = torch.tensor(gates, dtype=torch.float64).T.clamp(bounds.min, bounds.max)
    return [*make_inputs(len(gates), dtype, seed)[:3], *(x.expand(1, 2, -1).to(dtype) for x in drawn)]


def assert_near(found, wanted, tolerance):
    """Finite, and equal within a part of the largest value, or of 1."""
    for x, y in zip(found, wanted, strict=True):
        assert x.isfinite().all()
        assert (x.double() - y.double()).abs().max() <= tolerance * max(1.0, y.double().abs().max().item())


SIZES = [0.0, 1e3, 1e5, 1e9, 1e30, -1e3, -1e5, -1e9, -1e30, LOWEST, -LOWEST]
gate = st.floats(-3, 3, width=32) | st.sampled_from(SIZES)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(gate, gate), min_size=1, max_size=12), st.sampled_from(list(DTYPES)), st.integers(0, 99))
def test_every_form_agrees_with_the_recurrence_whatever_the_gates(gates, dtype, seed):
    inputs = inputs_with(gates, dtype, seed)
    wanted = outputs_and_gradients(mlstm.recurrent, inputs)
    for form in (mlstm.parallel, mlstm.chunkwise, FORMS["chunks of 3"]):
        assert_near(outputs_and_gradients(form, inputs), wanted, max(DTYPES[dtype], 1e-5))


@contextmanager
def unseen():
    """As on a GPU, where nobody looks at values with check_values=False."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlstm_recurrence, "has_values", lambda x: False)
        yield


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(gate, gate), min_size=1, max_size=12), st.sampled_from(list(DTYPES)), st.integers(0, 99))
def test_without_a_look_all_forms_agree_and_know_forget_gates_of_any_size(gates, dtype, seed):
    inputs = inputs_with(gates, dtype, seed)
    most = max(i for i, f in gates)
    wanted = outputs_and_gradients(mlstm.recurrent, inputs)
    for form in FORMS.values():
        with unseen() if most < mlstm_recurrence.LARGE else nullcontext():
            found = outputs_and_gradients(partial(form, check_values=False), inputs)
        for chosen in (found, wanted):
            del chosen[1:-5]  # states may be the same memory at another scale
        assert_near(found, wanted, max(DTYPES[dtype], 1e-5))


@every_dtype
@pytest.mark.parametrize(("i", "f"), [(1e30, -1e30), (-1e30, 1e30), (LOWEST, LOWEST), (-LOWEST, LOWEST)])
def test_gates_of_any_size_that_nobody_sees_give_one_finite_answer_in_all_forms(dtype, i, f):
    bounds, inputs = torch.finfo(dtype), make_inputs(200, dtype)
    inputs[3][..., 3::5] = min(max(i, bounds.min), bounds.max)
    inputs[4][..., 4::7] = min(max(f, bounds.min), bounds.max)
    with unseen():
        wanted, *others = (outputs_and_gradients(partial(form, check_values=False), inputs) for form in FORMS.values())
    for found in others:
        assert_near(found[:1], wanted[:1], max(DTYPES[dtype], 1e-5))
        assert all(x.isfinite().all() for x in found + wanted)


LADDER = {
    "large": (lambda t: 9000.0, lambda t: 0.0),
    "kept": (lambda t: 9990.0, lambda t: 9.0),
    "rising": (lambda t: 15.0 * t, lambda t: -15.3),
    "falling as fast as memory": (lambda t: 9000 - 15.3 * t, lambda t: -15.3),
    "low": (lambda t: -9000.0, lambda t: 3.0),
    "cancelled": (lambda t: 9000.3 * (t % 9 == 3), lambda t: -9000.3 * (t % 9 == 4)),
    "beyond": (lambda t: 3e4, lambda t: 2.0),
    "cancelled far beyond": (lambda t: 1e30 * (t % 9 == 3), lambda t: -1e30 * (t % 9 == 4)),
}


@every_form
@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize(("of_i", "of_f"), LADDER.values(), ids=LADDER)
def test_in_float32_large_gates_and_their_sums_lose_no_digits(form, checked, of_i, of_f):
    inputs, tokens = make_inputs(300, torch.float32), range(300)
    inputs[3] += torch.tensor([of_i(t) for t in tokens])
    inputs[4] += torch.tensor([of_f(t) for t in tokens])
    h, last = form(*inputs, check_values=checked, return_state=True)
    exact, state = mlstm.recurrent(*(x.double() for x in inputs), return_state=True)
    assert_near([h], [exact], 1e-5)
    assert last.m.dtype == torch.float32
    scale = (last.m.double() - state.m).exp()[..., None]
    assert_near([last.n.double() * scale], [state.n], 1e-5)


@pytest.mark.parametrize(("of_i", "of_f"), LADDER.values(), ids=LADDER)
def test_a_token_at_a_time_large_gates_lose_no_digits(of_i, of_f):
    inputs, tokens, state, outputs = make_inputs(60, torch.float32), range(60), None, []
    inputs[3] += torch.tensor([of_i(t) for t in tokens])
    inputs[4] += torch.tensor([of_f(t) for t in tokens])
    for t in tokens:
        h, state = mlstm.step(state, *(x[:, :, t] for x in inputs))
        outputs.append(h)
    assert_near([torch.stack(outputs, 2)], [mlstm.recurrent(*(x.double() for x in inputs))], 1e-5)


@pytest.mark.parametrize("offset", [0, 99, 9000, 1e6])
@pytest.mark.parametrize("mixed", [True, False], ids=["recurrent weights", "without"])
def test_large_input_gates_of_the_slstm_lose_no_digits(offset, mixed):
    generator = torch.Generator().manual_seed(0)
    z, i, f, o = (torch.randn(1, 2, 200, 3, generator=generator) for _ in "zifo")
    weights = torch.randn(2, 4, 3, 3, generator=generator) / 4 if mixed else None
    inputs = z, i + offset, f + 5, o
    exact = slstm.scan(*(x.double() for x in inputs), None if weights is None else weights.double())
    assert_near([slstm.scan(*inputs, weights)], [exact], 1e-5)


@pytest.mark.parametrize("form", ["auto", "parallel", "chunkwise"])
def test_a_network_with_huge_gates_says_what_the_recurrence_says(form):
    options = {"spatial_dims": 2, "in_channels": 1, "num_classes": 2, "patch_size": (16, 16), "features": (4, 8)}
    network, plain = (lab.build("xlstm_unet_bot", mlstm_form=one, **options).eval() for one in (form, "recurrent"))
    weights = {name: x * 1e12 if name.endswith("gates.bias") else x for name, x in plain.state_dict().items()}
    weights |= {name: x - 2e13 for name, x in weights.items() if name.endswith("gates.bias")}
    for one in (network, plain):
        one.load_state_dict(weights)
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(image), plain(image), rtol=1e-4, atol=1e-5)


@every_form
@every_dtype
@pytest.mark.parametrize("value", [-1e30, LOWEST, "least of the dtype"])
def test_a_gate_that_forgets_all_restarts_the_memory(form, dtype, value):
    inputs = make_inputs(100, dtype)
    inputs[4][..., 50] = torch.finfo(dtype).min if isinstance(value, str) else max(value, torch.finfo(dtype).min)
    h = form(*inputs)
    assert_near([h[:, :, 50:]], [mlstm.recurrent(*(x[:, :, 50:] for x in inputs))], DTYPES[dtype])
    assert_near([h[:, :, :50]], [mlstm.recurrent(*(x[:, :, :50] for x in inputs))], DTYPES[dtype])


@every_form
@every_dtype
def test_where_nothing_is_ever_kept_every_token_answers_itself(form, dtype):
    q, k, v, i, f = make_inputs(dtype=dtype)
    h = form(q, k, v, i + 20, torch.full_like(f, torch.finfo(dtype).min))
    assert_near([h], [v], max(DTYPES[dtype], 1e-5))  # the epsilon of the normaliser


@every_form
@every_dtype
def test_a_token_whose_input_gate_is_shut_might_not_be_there(form, dtype):
    inputs = make_inputs(dtype=dtype)
    inputs[3][..., 7], inputs[4][..., 7] = -1e30, 1e30
    others = [n for n in range(20) if n != 7]
    without = mlstm.recurrent(*(x[:, :, others] for x in inputs))
    assert_near([form(*inputs)[:, :, others]], [without], DTYPES[dtype])


@every_form
@every_dtype
def test_a_token_whose_input_gate_is_huge_answers_until_it_is_forgotten(form, dtype):
    inputs = make_inputs(dtype=dtype)
    inputs[3][..., 5], inputs[4][..., 15] = 1e30, LOWEST if dtype != torch.bfloat16 else -3e38
    h = form(*inputs)
    assert_near([h[:, :, 5:15]], [inputs[2][:, :, 5:6].expand(-1, -1, 10, -1)], max(DTYPES[dtype], 1e-5))
    assert_near([h[:, :, 15:]], [mlstm.recurrent(*(x[:, :, 15:] for x in inputs))], DTYPES[dtype])


@every_form
@every_dtype
@pytest.mark.parametrize(("of_q", "of_k"), [(1e30, 1), (1, 1e30), (1e30, 1e30), (1e19, 1e19), (1e-30, 1e30)])
def test_huge_queries_and_keys_are_right_and_their_gradients_finite(form, dtype, of_q, of_k):
    inputs = make_inputs(dtype=dtype)
    inputs[0], inputs[1] = inputs[0] * of_q, inputs[1] * of_k
    exact = [x.double() for x in inputs]
    found, wanted = outputs_and_gradients(form, inputs), outputs_and_gradients(mlstm.recurrent, exact)
    assert_near(found[:1], wanted[:1], DTYPES[dtype])
    assert all(x.isfinite().all() for x in found)


@every_form
@pytest.mark.parametrize("split", [1, 8, 15])
def test_a_state_carries_huge_gates_on(form, split):
    inputs = make_inputs(dtype=torch.float32)
    inputs[3][..., 5], inputs[3][..., 12], inputs[4][..., 9] = 1e30, -1e30, -1e30
    h1, state = form(*(x[:, :, :split] for x in inputs), return_state=True)
    h2 = form(*(x[:, :, split:] for x in inputs), initial_state=state)
    assert_near([torch.cat([h1, h2], 2)], [mlstm.recurrent(*inputs)], 1e-4)


@pytest.mark.parametrize("form", ["parallel", "chunkwise"])
def test_the_way_of_large_gates_changes_nothing_for_ordinary_ones(form, monkeypatch):
    inputs = make_inputs()
    wanted = outputs_and_gradients(FORMS[form], inputs)
    monkeypatch.setattr(mlstm_recurrence, "LARGE", 1e-9)
    assert_near(outputs_and_gradients(FORMS[form], inputs), wanted, 1e-10)


def test_rows_of_the_decay_matrix_outlive_a_gate_that_forgets_all():
    i, f = torch.zeros(6), torch.full((6,), 2.0)
    f[3] = LOWEST
    decay = mlstm.decay_matrix(i, f)
    a = math.log(1 / (1 + math.exp(-2)))
    assert (decay[3:, :3] < -1e38).all() and not decay.isnan().any()
    torch.testing.assert_close(decay[5, 3:].tolist(), [2 * a, a, 0.0])


@every_dtype
@pytest.mark.parametrize("value", [-1e30, 1e30, "least", "most"])
@pytest.mark.parametrize("name", "zifo")
def test_the_slstm_stays_finite_and_restarts(name, value, dtype):
    bounds = torch.finfo(dtype)
    value = {"least": bounds.min, "most": bounds.max}.get(value, value)
    generator = torch.Generator().manual_seed(2)
    inputs = {letter: torch.randn(1, 2, 12, 3, generator=generator).to(dtype) for letter in "zifo"}
    inputs[name][:, :, 6] = value
    leaves = [x.requires_grad_() for x in inputs.values()]
    h = slstm.scan(*leaves)
    assert_near([h], [slstm.scan(*(x.double() for x in leaves))], DTYPES[dtype])
    assert all(x.isfinite().all() for x in torch.autograd.grad(h.sum(), leaves))
    if name == "f" and value < 0:
        assert_near([h[:, :, 6:]], [slstm.scan(*(x[:, :, 6:] for x in leaves))], DTYPES[dtype])
