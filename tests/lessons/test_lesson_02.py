"""The references of lesson 02 against the package and against counting."""

import functools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from xlstm_unet_lab.course.checks import lesson_02
from xlstm_unet_lab.ops import mlstm, mlstm_recurrence

few_examples = settings(deadline=None, max_examples=25)
lengths = st.integers(1, 12)


def drawn(length, seed, width=4, value_width=3, gates=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, width), (length, width), (length, value_width), (length,), (length,)]
    q, k, v, i, f = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v, gates * i, gates * f + 2


def recurrent(*inputs, **options):
    """The package's definition for one sequence and one head, without the 1e-6 that the exercises leave out."""
    with mock.patch.object(mlstm_recurrence, "EPSILON", 0.0):
        return mlstm.recurrent(*(x[None, None] for x in inputs), **options)


def assert_close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@few_examples
@given(length=lengths, size=st.integers(1, 13), seed=st.integers(0, 99), gates=st.sampled_from([0.1, 1.0, 300.0]))
def test_all_forms_of_lesson_02_are_the_recurrence(length, size, seed, gates):
    inputs = drawn(length, seed, gates=gates)
    expected = recurrent(*inputs)[0, 0]
    q, k, v, i, f = inputs
    exponents = lesson_02.decay_matrix(i, f)
    torch.testing.assert_close(exponents, mlstm.decay_matrix(i, f), rtol=1e-12, atol=1e-9)
    assert_close(lesson_02.parallel(q, k, v, exponents), expected)
    assert_close(lesson_02.chunkwise(*inputs, size), expected)


@few_examples
@given(first=lengths, second=lengths, seed=st.integers(0, 99), gates=st.sampled_from([1.0, 300.0]))
def test_joined_memories_are_the_memory_of_the_whole(first, second, seed, gates):
    inputs = drawn(first + second, seed, gates=gates)
    parts = ([x[:first] for x in inputs], [x[first:] for x in inputs])
    _, whole = recurrent(*inputs, return_state=True)
    (_, one), (_, two) = (recurrent(*part, return_state=True) for part in parts)
    decay = torch.nn.functional.logsigmoid(parts[1][4]).sum()
    join = functools.partial(lesson_02.join, m_first=one.m, m_second=two.m, decay=decay)
    assert_close(join(first=one.C, second=two.C), whole.C)
    assert_close(join(first=one.n, second=two.n), whole.n)


@pytest.mark.parametrize(("length", "width", "size"), [(8, 4, 2), (12, 5, 3), (6, 3, 6), (7, 2, 1)])
def test_multiplications_are_those_that_pytorch_counts(length, width, size):
    with FlopCounterMode(display=False) as counter:
        lesson_02.chunkwise(*drawn(length, 0, width, width), size)
    assert counter.get_total_flops() == 2 * lesson_02.multiplications(length, width, size)  # a product and a sum
