"""The references of lesson 01 against the package's functions and against sums written down from the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.course.checks import find_exercise, lesson_01, random_cases
from xlstm_unet_lab.ops import mlstm

SEEDS = st.integers(0, 10_000)


def tensors(seed, *shapes):
    return random_cases.random_tensors(*shapes, seed=seed)


def weights(i, f):
    """exp(i_s) times the forget gates after token s, in row t up to token t."""
    return mlstm.decay_matrix(i, f).exp()


@pytest.mark.parametrize("f", [-2.0, 0.0, 1.0, 3.0, 6.0])
def test_after_the_half_life_half_is_left(f):
    gate = torch.sigmoid(torch.tensor(f, dtype=torch.float64))
    assert float(gate) ** lesson_01.half_life(f) == pytest.approx(0.5, rel=1e-9)


def test_the_half_life_of_a_gate_that_rounds_to_1():
    assert lesson_01.half_life(40.0) == pytest.approx(math.log(2) * math.exp(40), rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 9))
def test_a_weighted_memory_is_a_weighted_mean(seed, length):
    z, i, f = tensors(seed, (length,), (length,), (length,))
    expected = weights(i, f) @ z / weights(i, f).sum(1)
    torch.testing.assert_close(lesson_01.weighted_memory(z, i, f), expected, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_what_is_read_is_the_sum_of_values_weighted_by_their_keys(seed, pairs, width, depth, queries):
    keys, values, asked = tensors(seed, (pairs, width), (pairs, depth), (queries, width))
    expected = torch.stack([sum((q @ k) * v for k, v in zip(keys, values, strict=True)) for q in asked])
    torch.testing.assert_close(lesson_01.write_and_read(keys, values, asked), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", find_exercise("01.4").cases, ids=lambda case: case.description)
def test_the_mlstm_is_the_packages(case):
    package = mlstm.recurrent(*(x[None, None] for x in case.arguments))[0, 0]
    torch.testing.assert_close(lesson_01.mlstm(*case.arguments), package, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_the_mlstm_is_a_sum_over_tokens(seed, length, width, depth):
    q, k, v, i, f = tensors(seed, (length, width), (length, width), (length, depth), (length,), (length,))
    strengths = weights(i, f) * (q @ k.T) / math.sqrt(width)
    expected = strengths @ v / strengths.sum(1, keepdim=True).abs().clamp(min=1)
    torch.testing.assert_close(lesson_01.mlstm(q, k, v, i, f), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [1.0, 500.0])
def test_the_influence_is_the_last_row_of_the_weights(size):
    i, f = (size * x for x in tensors(0, (12,), (12,)))
    last = mlstm.decay_matrix(i, f)[-1]
    torch.testing.assert_close(lesson_01.influence(i, f), (last - last.max()).exp(), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_the_gradients_of_values_are_those_of_autograd(seed, length, width, depth):
    q, k, v, i, f, y_gradient = tensors(
        seed, (length, width), (length, width), (length, depth), (length,), (length,), (length, depth)
    )
    v.requires_grad_()
    # What is read before the division, from the answers of the package and what they were divided by.
    strengths = weights(i, f) * (q @ k.T) / math.sqrt(width)
    divisor = strengths.sum(1, keepdim=True).abs().clamp(min=1)
    h = mlstm.recurrent(*(x[None, None] for x in (q, k, v, i, f)))[0, 0]
    (gradient,) = torch.autograd.grad((h * divisor * y_gradient).sum(), v)
    found = lesson_01.value_gradients(q, k, i, f, y_gradient)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)  # the package adds 1e-6 to the divisor
