"""The mLSTM: every form against every other and against the published forms; states, dtypes, extremes, bad input."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from xlstm_unet_lab.ops import mlstm, mlstm_chunkwise

NATIVE_KERNELS = ("parallel--native_{}", "parallel--native_stablef_{}", "chunkwise--native_{}")
STATE_NAMES = ("state.C", "state.n", "state.m")


def make_inputs(batch=2, heads=2, length=9, width=3, value_width=5, dtype=torch.float64, seed=0):
    """q, k, v, i, f as leaves; the forget gates are mostly open, as in a trained network."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, width), (length, width), (length, value_width), (length,), (length,)]
    drawn = [torch.randn(batch, heads, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    drawn[4] += 2
    return [x.to(dtype).requires_grad_() for x in drawn]


def make_state(batch=2, heads=2, width=3, value_width=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(width, value_width), (width,), ()]
    drawn = (torch.randn(batch, heads, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return mlstm.MLSTMState(*(x.requires_grad_() for x in drawn))


def step_by_step(q, k, v, i, f, initial_state=None, return_state=False):
    state, outputs = initial_state, []
    for t in range(q.shape[2]):
        h, state = mlstm.step(state, *(x[:, :, t] for x in (q, k, v, i, f)))
        outputs.append(h)
    return (torch.stack(outputs, 2), state) if return_state else torch.stack(outputs, 2)


FORMS = {"step": step_by_step, "recurrent": mlstm.recurrent, "parallel": mlstm.parallel, "chunkwise": mlstm.chunkwise}
FORMS |= {f"chunkwise {size}": partial(mlstm.chunkwise, chunk_size=size) for size in (1, 3, 16, 1000)}
FORMS |= {f"run {name}": partial(mlstm.run, form=name) for name in ("auto", "recurrent", "parallel", "chunkwise")}


def weighted(tensors):
    """A number that every element of every tensor moves, each differently."""
    generator = torch.Generator().manual_seed(9)
    return sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)).sum() for x in tensors)


def results(form, inputs, state=None):
    """Output, last state and the gradients of all inputs and of the initial state, by name."""
    h, last = form(*inputs, initial_state=state, return_state=True)
    leaves = [*inputs, *(state or ())]
    gradients = torch.autograd.grad(weighted([h, *last]), leaves)
    names = [*"qkvif", *STATE_NAMES][: len(leaves)]
    found = {"h": h, **dict(zip(STATE_NAMES, last, strict=True))}
    return found | {f"gradient of {name}": x for name, x in zip(names, gradients, strict=True)}


def assert_same(found, wanted, tolerance=1e-10):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        difference = (found[name].double() - value.double()).abs().max().item()
        assert difference <= tolerance * max(1.0, value.abs().max().item()), f"{name} differs by {difference:.1e}"


def norm(h):
    return F.layer_norm(h.double(), h.shape[-1:], eps=0.0)


def with_gradients(form, inputs, after=lambda h: h):
    """Output, and the gradients of q, k, v, i, f through `after`."""
    h = form(*inputs)
    return [h, *torch.autograd.grad(weighted([after(h)]), inputs)]


def assert_near(found, wanted, tolerance):
    """Equal within a part of the largest value: for floats shorter than those they are compared with."""
    for x, y in zip(found, wanted, strict=True):
        assert (x.double() - y).abs().max() <= tolerance * y.abs().max()


def textbook(q, k, v, i, f):
    """The published recurrence as it is written down, for one batch entry and head; NumPy in, NumPy out."""
    width = q.shape[1]
    C, n, m, outputs = np.zeros((width, v.shape[1])), np.zeros(width), -np.inf, []
    for q_t, k_t, v_t, i_t, f_t in zip(q, k, v, i, f, strict=True):
        a_t = -np.log1p(np.exp(-f_t))
        m, before = max(a_t + m, i_t), m
        forget, store = np.exp(a_t + before - m), np.exp(i_t - m) / np.sqrt(width)
        C = forget * C + store * np.outer(k_t, v_t)
        n = forget * n + store * k_t
        outputs.append(q_t @ C / (max(abs(q_t @ n), np.exp(-m)) + 1e-6))
    return np.stack(outputs), C, n, m


@pytest.mark.parametrize("form", FORMS)
def test_textbook_recurrence(form):
    inputs = [x.detach() for x in make_inputs(batch=1, heads=1, length=4, width=2, value_width=3)]
    h, state = FORMS[form](*inputs, return_state=True)
    expected = textbook(*(x[0, 0].numpy() for x in inputs))
    for found, wanted in zip((h, *state), expected, strict=True):
        np.testing.assert_allclose(found[0, 0].numpy(), wanted, rtol=0, atol=1e-12)


def test_one_token_by_hand():
    # i = 0 gives m = 0; C = k v / 2 and n = k / 2 for D = 4; q . n = 3, so h = 3 v / (3 + 1e-6).
    q, k = torch.tensor([1.0, 0, 0, 2]).double(), torch.tensor([2.0, 5, 7, 2]).double()
    v, zero = torch.tensor([3.0, -6]).double(), torch.zeros(1, 1, dtype=torch.float64)
    h, state = mlstm.step(None, q[None, None], k[None, None], v[None, None], zero, zero)
    torch.testing.assert_close(h[0, 0], 3 * v / (3 + 1e-6), rtol=0, atol=1e-14)
    torch.testing.assert_close(state.C[0, 0], k[:, None] * v / 2)
    assert state.m.item() == 0


@pytest.mark.parametrize("with_state", [False, True], ids=["from nothing", "from a state"])
@pytest.mark.parametrize("length", [1, 17])
@pytest.mark.parametrize("form", [name for name in FORMS if name != "recurrent"])
def test_ladder(form, length, with_state):
    inputs, state = make_inputs(length=length), make_state() if with_state else None
    assert_same(results(FORMS[form], inputs, state), results(mlstm.recurrent, inputs, state))


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 16])
def test_several_segments(chunk_size, monkeypatch):
    monkeypatch.setattr(mlstm_chunkwise, "SEGMENT_TOKENS", 8)
    inputs, state = make_inputs(length=45), make_state()
    assert len(mlstm_chunkwise.cut(45, chunk_size, torch.zeros(1, 3, 6))) >= 3
    assert_same(
        results(partial(mlstm.chunkwise, chunk_size=chunk_size), inputs, state), results(mlstm.recurrent, inputs, state)
    )


@pytest.mark.parametrize(
    ("width", "tokens"), [(1, 16), (24, 16), (31, 16), (32, 32), (64, 32), (95, 32), (96, 64), (512, 64)]
)
def test_wider_heads_take_longer_chunks(width, tokens, monkeypatch):
    cut, chosen = mlstm_chunkwise.cut, []
    monkeypatch.setattr(
        mlstm_chunkwise, "cut", lambda length, size, state: chosen.append(size) or cut(length, size, state)
    )
    for length in (100, 10):
        q, k, v = torch.randn(3, 1, 1, length, width)
        mlstm.chunkwise(q, k, v[..., :1], q[..., 0], k[..., 0])
    assert chosen == [tokens, 10]


def test_xlstm_package():
    from xlstm.blocks.mlstm import backends

    def published(q, k, v, i, f):
        return backends.parallel_stabilized_simple(q, k, v, i[..., None], f[..., None])

    inputs = make_inputs(length=33, width=4, value_width=4)
    for form in FORMS.values():
        assert_near(with_gradients(form, inputs), with_gradients(published, inputs), 1e-12)


@pytest.mark.parametrize("backward", ["autograd", "custbw"])
@pytest.mark.parametrize("kernel", NATIVE_KERNELS)
def test_mlstm_kernels(kernel, backward):
    from mlstm_kernels import torch as kernels

    compute = kernels.get_mlstm_kernel(kernel.format(backward))
    options = {"chunk_size": 16} if kernel.startswith("chunkwise") else {}
    inputs = make_inputs(length=64, width=8, value_width=8)
    # Their written-out backward passes leave out the normaliser's gradient, as a norm follows that removes the scale of
    # every output. Under such a norm (epsilon 0) all gradients must agree.
    found = with_gradients(mlstm.chunkwise, inputs, norm)
    wanted = with_gradients(partial(compute, **options), inputs, norm)
    assert_near(found[:1], wanted[:1], 1e-6 if options else 1e-12)  # their chunkwise form rounds a part to float32
    assert_near(found[1:], wanted[1:], 1e-12)


def test_gradcheck():
    sizes = {"batch": 1, "heads": 1, "width": 2, "value_width": 3}
    inputs, state = make_inputs(length=5, **sizes), make_state(**sizes)

    def outputs(*leaves):
        first = mlstm.MLSTMState(*leaves[5:])
        h, last = mlstm.chunkwise(*leaves[:5], chunk_size=2, initial_state=first, return_state=True)
        return h, *last

    assert torch.autograd.gradcheck(outputs, (*inputs, *state))


SIZE = st.integers(1, 3)


@settings(deadline=None, max_examples=20)
@given(SIZE, SIZE, st.integers(1, 21), st.integers(1, 5), st.integers(1, 5), st.integers(1, 25), st.booleans())
def test_any_shape(batch, heads, length, width, value_width, chunk_size, with_state):
    sizes = {"batch": batch, "heads": heads, "width": width, "value_width": value_width}
    inputs, state = make_inputs(length=length, **sizes), make_state(**sizes) if with_state else None
    wanted = results(mlstm.recurrent, inputs, state)
    for form in (mlstm.parallel, partial(mlstm.chunkwise, chunk_size=chunk_size)):
        assert_same(results(form, inputs, state), wanted)


@pytest.mark.parametrize("split", range(1, 9))
def test_state_handed_over(split):
    inputs = make_inputs(length=9)
    first, second = [x[:, :, :split] for x in inputs], [x[:, :, split:] for x in inputs]
    forms = [FORMS[name] for name in ("recurrent", "parallel", "chunkwise 3")]
    whole, last = mlstm.recurrent(*inputs, return_state=True)
    for before in forms:
        for after in forms:
            h1, state = before(*first, return_state=True)
            h2, end = after(*second, initial_state=state, return_state=True)
            torch.testing.assert_close(torch.cat([h1, h2], 2), whole, rtol=0, atol=1e-11)
            torch.testing.assert_close(tuple(end), tuple(last), rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunkwise"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_short_floats(form, dtype, tolerance):
    inputs = make_inputs(length=150, width=16, value_width=16, dtype=dtype)
    rounded = [x.detach().double().requires_grad_() for x in inputs]
    h, state = FORMS[form](*inputs, return_state=True)
    assert h.dtype == dtype
    assert {x.dtype for x in state} == {torch.float32}
    assert_near(with_gradients(FORMS[form], inputs), with_gradients(mlstm.recurrent, rounded), tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(form):
    inputs = [x.detach() for x in make_inputs(length=20, dtype=torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = FORMS[form](*inputs)
    torch.testing.assert_close(inside, FORMS[form](*inputs), rtol=0, atol=0)  # compares the dtypes, too


def extreme_inputs(length, dtype):
    """Gates of -100, 0 or 100, tokens of width 4."""
    inputs = make_inputs(1, 1, length, 4, 4, dtype)
    gates = 100.0 * torch.randint(-1, 2, (2, 1, 1, length), generator=torch.Generator().manual_seed(3)).to(dtype)
    return [*inputs[:3], *(gate.requires_grad_() for gate in gates)]


@pytest.mark.parametrize("gates", ["mixed", (-100.0, -100.0), (100.0, -100.0), (-100.0, 100.0), (100.0, 100.0)])
def test_extreme_gates_stay_finite(gates):
    inputs = extreme_inputs(50_000, torch.float32)
    if gates != "mixed":
        inputs[3:] = [torch.full((1, 1, 50_000), gate, requires_grad=True) for gate in gates]
    h, state = mlstm.chunkwise(*inputs, return_state=True)
    gradients = torch.autograd.grad((h**2).sum() + sum(x.sum() for x in state), inputs)
    assert all(x.isfinite().all() for x in (h, *state, *gradients))


@pytest.mark.parametrize("form", ["parallel", "chunkwise"])
def test_extreme_gates_stay_right(form):
    short, exact = extreme_inputs(2_000, torch.float32), extreme_inputs(2_000, torch.float64)
    assert_near(with_gradients(FORMS[form], short), with_gradients(mlstm.recurrent, exact), 1e-4)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor any operation gives back."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        given_back = operation(*arguments, **(options or {}))
        for x in given_back if isinstance(given_back, tuple | list) else (given_back,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return given_back


def memory(form, length):
    """Elements of the largest tensor in the forward and backward pass, and bytes kept between the two."""
    inputs, kept = make_inputs(1, 1, length, 8, 8, torch.float32), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            total = form(*inputs).sum()
        total.backward()
    return largest.elements, sum(kept.values())


def test_memory_grows_linearly():
    lengths = (2048, 4096, 8192)
    elements, kept = zip(*(memory(mlstm.chunkwise, length) for length in lengths), strict=True)
    assert all(count <= 32 * length for count, length in zip(elements, lengths, strict=True))
    assert kept[2] <= 4.2 * kept[0]  # four times the tokens
    assert memory(mlstm.parallel, 512)[0] >= 512**2  # the measure sees an S x S matrix where there is one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": lambda x: x[0]}, r"q has shape \(2, 9, 3\), expected \(B, H, S, D\)"),
        ({"v": lambda x: x[..., None]}, r"v has shape \(2, 2, 9, 5, 1\), expected \(2, 2, 9, V\) to fit q"),
        ({"k": lambda x: x[:, :, :-1]}, r"k has shape \(2, 2, 8, 3\), expected \(2, 2, 9, 3\)"),
        ({"v": lambda x: x[:, :1]}, r"v has shape \(2, 1, 9, 5\), expected \(2, 2, 9, 5\)"),
        ({"i": lambda x: x[..., None]}, r"i has shape \(2, 2, 9, 1\), expected \(2, 2, 9\)"),
        ({"q": lambda x: x.long()}, r"q has dtype torch.int64, expected floating point: call q.float\(\)"),
        ({"k": lambda x: x.long()}, r"k has dtype torch.int64, expected floating point: call k.float\(\)"),
        ({"f": lambda x: x > 0}, r"f has dtype torch.bool, expected floating point"),
        ({name: lambda x: x[:, :, :0] for name in "qkvif"}, "with every size at least 1"),
    ],
)
def test_bad_input(change, message):
    inputs = {name: change.get(name, torch.clone)(x) for name, x in zip("qkvif", make_inputs(), strict=True)}
    for form in (mlstm.recurrent, mlstm.parallel, mlstm.chunkwise, mlstm.run):
        with pytest.raises(ValueError, match=message):
            form(**inputs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", "qkvif")
def test_values_that_are_not_finite(name, value):
    inputs = {name: x.detach() for name, x in zip("qkvif", make_inputs(), strict=True)}
    inputs[name][1, 0, 4] = value
    for form in (mlstm.recurrent, mlstm.parallel, mlstm.chunkwise, mlstm.run):
        with pytest.raises(ValueError, match=rf"^{name} holds \d values? that are not finite"):
            form(*inputs.values())
        if math.isnan(value):
            assert form(*inputs.values(), check_values=False).isnan().any()
    with pytest.raises(ValueError, match=f"^{name} holds"):
        mlstm.step(None, *(x[:, :, 4] for x in inputs.values()))


@pytest.mark.parametrize("field", range(3), ids=STATE_NAMES)
def test_state_of_another_shape(field):
    state = list(make_state())
    state[field] = state[field][:1]
    with pytest.raises(ValueError, match=rf"{STATE_NAMES[field]} has shape \(1, .*expected \(2, "):
        mlstm.chunkwise(*make_inputs(), initial_state=mlstm.MLSTMState(*state))


@pytest.mark.parametrize("size", [0, -1, 1.5, "8"])
def test_bad_chunk_size(size):
    with pytest.raises(
        ValueError, match=f"chunk_size is {size!r}, expected a whole number of at least 1; None picks one"
    ):
        mlstm.chunkwise(*make_inputs(), chunk_size=size)
