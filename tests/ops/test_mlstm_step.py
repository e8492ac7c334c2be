"""One token at a time: the states it takes and the input it refuses."""

import pytest
import torch

from xlstm_unet_lab.ops import mlstm


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
    with pytest.raises(ValueError, match=r"q has shape \(3,\), expected a tensor \(B, H, width\)"):
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
