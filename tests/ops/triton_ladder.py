"""The Triton kernels against the recurrence. `test_mlstm_triton.py` runs this file in a process of its own.

On the processor Triton's interpreter runs the kernels, which must be asked for before Triton is imported; where there
is a GPU they are compiled.
"""

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.ops import mlstm, mlstm_triton
from xlstm_unet_lab.ops.mlstm_triton import Tiles, failure, triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of the largest value of each result
SMALL = Tiles(chunk=32, rows=16, inner=16, outer=16)  # many tiles and chunks on a small input
HUGE = [1e9, 1e30, -1e5, -1e30, torch.finfo(torch.float32).min]


@pytest.fixture(autouse=True)
def trial(monkeypatch):
    """No trial of the kernels before their first use: it takes seconds in the interpreter, and these tests are one."""
    monkeypatch.setattr(mlstm_triton, "failure", lambda *kind: None)


def make_inputs(length, width, value_width, dtype=torch.float32, heads=1, seed=0):
    """q, k (1, H, S, D), v (1, H, S, V), i, f (1, H, S)."""
    generator = torch.Generator().manual_seed(seed)
    widths = (width, width, value_width)
    tensors = [torch.randn(1, heads, length, w, generator=generator) for w in widths]
    tensors += [torch.randn(1, heads, length, generator=generator) for _ in "if"]
    return [x.to(DEVICE, dtype) for x in tensors]


def make_state(width, value_width, heads=1):
    generator = torch.Generator().manual_seed(7)
    sizes = ((width, value_width), (width,), ())
    return mlstm.MLSTMState(*(torch.randn(1, heads, *size, generator=generator).to(DEVICE) for size in sizes))


def results(form, inputs, state=None, dtype=None):
    """h, the last state, and the gradients of all of it with respect to every input and the first state."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (*inputs, *(state or ()))]
    first = mlstm.MLSTMState(*leaves[5:]) if state else None
    outputs = form(*leaves[:5], initial_state=first, return_state=True)
    outputs = [outputs[0], *outputs[1]]
    signs = [torch.linspace(-1, 1, x.numel(), device=DEVICE).double().view(x.shape) for x in outputs]
    loss = sum((x.double() * sign).sum() for x, sign in zip(outputs, signs, strict=True))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def assert_near(found, wanted, tolerance):
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape and x.isfinite().all()
        assert (x.double() - y).abs().max() <= tolerance * max(y.abs().max().item(), 1e-2)


SHAPES = [(1, 8, 8), (17, 16, 5), (65, 24, 40), (130, 48, 20), (30, 100, 130), (20, 256, 16), (16, 8, 256)]
SHAPES += [(600, 24, 40), (1100, 200, 130)] if DEVICE.type == "cuda" else []  # chunks are longer there


@pytest.mark.parametrize("with_state", [False, True], ids=["from nothing", "from a state"])
@pytest.mark.parametrize(("length", "width", "value_width"), SHAPES)
def test_output_state_and_gradients_are_those_of_the_recurrence(length, width, value_width, with_state):
    inputs, state = make_inputs(length, width, value_width), make_state(width, value_width) if with_state else None
    wanted = results(mlstm.recurrent, inputs, state, torch.float64)
    assert_near(results(triton, inputs, state), wanted, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [33, 129])
def test_half_the_digits_of_the_products_leave_half_the_digits(length, dtype):
    inputs, state = make_inputs(length, 40, 24, dtype), make_state(40, 24)
    found = results(triton, inputs, state)
    assert [x.dtype for x in found[:4]] == [dtype, *[torch.float32] * 3]
    assert_near(found, results(mlstm.recurrent, inputs, state, torch.float64), TOLERANCE[dtype])


@pytest.mark.skipif(DEVICE.type == "cuda", reason="tiles of 16 are for the interpreter")
@settings(deadline=None, max_examples=5, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 2), st.integers(1, 50), st.integers(1, 33), st.integers(1, 33), st.booleans())
def test_any_shape_in_many_tiles(monkeypatch, heads, length, width, value_width, with_state):
    monkeypatch.setattr(mlstm_triton, "choose_tiles", lambda *kind: SMALL)
    inputs = make_inputs(length, width, value_width, heads=heads)
    state = make_state(width, value_width, heads) if with_state else None
    wanted = results(mlstm.recurrent, inputs, state, torch.float64)
    assert_near(results(triton, inputs, state), wanted, TOLERANCE[torch.float32])


@pytest.mark.parametrize("split", [1, 20, 39])
def test_a_state_is_handed_over_between_forms(split):
    inputs = make_inputs(40, 8, 12)
    wanted = mlstm.recurrent(*inputs)
    for before, after in ((triton, mlstm.chunkwise), (mlstm.recurrent, triton)):
        first, state = before(*(x[:, :, :split] for x in inputs), return_state=True)
        second = after(*(x[:, :, split:] for x in inputs), initial_state=state)
        assert_near([torch.cat([first, second], 2)], [wanted.double()], TOLERANCE[torch.float32])


@pytest.mark.parametrize("gate", [3, 4], ids=["i", "f"])
@pytest.mark.parametrize("value", HUGE)
def test_gates_of_any_size(gate, value):
    inputs = make_inputs(20, 3, 4)
    inputs[0], inputs[1] = inputs[0].abs() + 0.5, inputs[1].abs() + 0.5  # no output is a small difference
    inputs[gate][..., 9] = value
    found, wanted = results(triton, inputs), results(mlstm.recurrent, inputs)
    assert all(x.isfinite().all() for x in found)
    assert_near(found[:3], [x.double() for x in wanted[:3]], 1e-3)


def test_a_gate_between_chunks_loses_no_digits():
    inputs = make_inputs(100, 8, 8)
    inputs[3] += torch.linspace(0, 5000, 100, device=DEVICE)  # u and mu are large, and nearly cancel
    wanted = results(mlstm.recurrent, inputs, dtype=torch.float64)
    assert_near(results(triton, inputs)[:1], wanted[:1], TOLERANCE[torch.float32])


def test_the_same_input_gives_the_same_bits():
    inputs, state = make_inputs(70, 20, 20), make_state(20, 20)
    for x, y in zip(results(triton, inputs, state), results(triton, inputs, state), strict=True):
        assert torch.equal(x, y)


def test_inputs_may_lie_in_any_order_and_under_autocast():
    inputs = make_inputs(33, 16, 16)
    wanted = triton(*inputs)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(triton(*turned), wanted)


def test_states_beyond_float16_are_scaled():
    q, k, v, i, f = make_inputs(100, 16, 16, torch.float16)
    inputs = [q, k.abs() * 60, v.abs() * 200, i * 0, f * 0 + 12]  # C grows to 100 * 60 * 200 / 4
    found = results(triton, inputs)
    assert found[1].abs().max() > torch.finfo(torch.float16).max
    assert_near(found[:4], results(mlstm.recurrent, inputs, dtype=torch.float64)[:4], TOLERANCE[torch.float16])


@pytest.mark.skipif(DEVICE.type == "cpu", reason="auto takes the kernels on a GPU")
def test_auto_takes_the_kernels():
    inputs = make_inputs(300, 64, 64)
    assert torch.equal(mlstm.run(*inputs), triton(*inputs))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="about the interpreter")
def test_auto_does_not_take_the_interpreter():
    inputs = make_inputs(30, 8, 8)
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert torch.equal(mlstm.run(*inputs), mlstm.chunkwise(*inputs))


class TestTrial:
    @pytest.fixture(autouse=True)
    def trial(self):
        """The trial as it is, made anew before and after."""
        failure.cache_clear()
        yield
        failure.cache_clear()

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_kernels_that_work_pass(self, dtype):
        assert failure(DEVICE, dtype, 16, 24) is None

    @pytest.mark.parametrize("fault", ["wrong", "broken"])
    def test_kernels_that_do_not_work_are_named(self, monkeypatch, fault):
        from xlstm_unet_lab.ops import triton_kernels

        class Faulty:
            def __getitem__(self, grid):
                if fault == "broken":
                    raise RuntimeError("no such instruction")
                return lambda *arguments, **named: None

        monkeypatch.setattr(triton_kernels, "scan_states", Faulty())
        reason = "differ from the chunkwise form by" if fault == "wrong" else r"do not run \(RuntimeError: no such"
        with pytest.warns(UserWarning, match=f"no Triton for the mLSTM: on {DEVICE} in torch.float32.*{reason}"):
            assert failure(DEVICE, torch.float32, 16, 32)
        with warnings.catch_warnings(action="error"):  # said once
            assert mlstm_triton.obstacle(*make_inputs(5, 16, 32)[1:3])
        with pytest.raises(ValueError, match=f"'triton' does not fit.*{reason}.*use form='auto' or 'chunkwise'"):
            triton(*make_inputs(5, 16, 32))

    def test_a_first_use_within_a_checkpoint_is_no_part_of_it(self):
        leaves = [x.requires_grad_() for x in make_inputs(20, 16, 16)]
        h = torch.utils.checkpoint.checkpoint(triton, *leaves, use_reentrant=False)
        found = torch.autograd.grad(h.sum(), leaves)
        assert_near(found, [x.double() for x in torch.autograd.grad(mlstm.chunkwise(*leaves).sum(), leaves)], 1e-4)

    def test_a_gradient_that_is_no_number_fails_the_trial(self, monkeypatch):
        real = mlstm_triton.run_kernels

        def spoilt(q, k, v, *others):
            h, state = real(q, k, v * 1, *others)
            h.register_hook(lambda gradient: gradient * torch.nan)
            return h, state

        monkeypatch.setattr(mlstm_triton, "run_kernels", spoilt)
        with pytest.warns(UserWarning, match="differ from the chunkwise form by nan"):
            assert failure(DEVICE, torch.float32, 16, 16)

    def test_kernels_are_tried_where_no_gradient_is_asked_for(self):
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
            assert failure(DEVICE, torch.float32, 16, 16) is None
