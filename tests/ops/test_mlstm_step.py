"""One token at a time: the states it takes and the input it refuses."""

import math

import pytest
import torch

from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.mlstm_recurrence import stabilised_one


def make_inputs():
    """q, k (2, 2, 4, 3), v (2, 2, 4, 5), i, f (2, 2, 4) in float64."""
    widths = (3, 3, 5)
    return [*(torch.randn(2, 2, 4, width).double() for width in widths), *(torch.randn(2, 2, 4).double() for _ in "if")]


@pytest.mark.parametrize("wrap", [tuple, list, lambda state: mlstm.MLSTMState(*(x.float() for x in state))])
def test_step_takes_the_states_the_other_forms_take(wrap):
    q, k, v, i, f = make_inputs()
    _, state = mlstm.recurrent(q, k, v, i, f, return_state=True)
    token = [x[:, :, 0] for x in (q, k, v, i, f)]
    h, _ = mlstm.step(wrap(state), *token)
    wanted = mlstm.chunkwise(*(x[:, :, None] for x in token), initial_state=wrap(state))
    torch.testing.assert_close(h, wanted[:, :, 0], rtol=0, atol=1e-10)


def test_step_refuses_with_the_shapes_it_was_given():
    q, k, v, i, f = (x[:, :, 0] for x in make_inputs())
    with pytest.raises(ValueError, match=r"q has shape \(3,\), expected \(B, H, D\)"):
        mlstm.step(None, q[0, 0], k, v, i, f)
    with pytest.raises(ValueError, match=r"i has shape \(1,\), expected \(2, 2\) to fit q \(2, 2, 3\)"):
        mlstm.step(None, q, k, v, i[0, :1], f)
    with pytest.raises(ValueError, match="the state has 2 parts"):
        mlstm.step((q, k), q, k, v, i, f)
    with pytest.raises(ValueError, match=r"k is a ndarray, expected a tensor"):
        mlstm.step(None, q, k.detach().numpy(), v, i, f)


def test_bad_form():
    with pytest.raises(ValueError, match=r"form is 'chunkwize': did you mean 'chunkwise'\?"):
        mlstm.run(*make_inputs(), form="chunkwize")
    with pytest.raises(ValueError, match=r"form 'triton' does not fit: the tensors are on cpu, .*use form='auto'"):
        mlstm.run(*make_inputs(), form="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_normaliser_is_exact_or_large_but_never_infinite(dtype):
    """exp(-m), until an output divided by it is zero either way: an infinity there would make its gradient NaN."""
    largest = math.log(torch.finfo(dtype).max)
    m = -torch.tensor([-20, 0, 3, largest - 2, largest - 1e-3, largest + 1e-3, 1e6], dtype=dtype)
    least = stabilised_one(m)
    torch.testing.assert_close(least[:4], (-m[:4]).exp(), rtol=1e-15, atol=0)
    assert least.isfinite().all() and (least[4:] >= math.exp(largest - 2)).all()


@pytest.mark.parametrize("form", [mlstm.recurrent, mlstm.parallel, mlstm.chunkwise])
def test_tokens_that_are_never_stored_leave_finite_gradients(form):
    inputs = [torch.randn(1, 1, 6, 4).requires_grad_() for _ in range(3)]
    inputs += [torch.full((1, 1, 6), -200.0, requires_grad=True), torch.zeros(1, 1, 6, requires_grad=True)]
    h = form(*inputs)
    assert h.abs().max() < 1e-30
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(h.sum(), inputs))
