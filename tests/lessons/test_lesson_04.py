"""The references of lesson 04 against the package's walks and against automatic differentiation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xlstm_unet_lab.course.checks import lesson_04, lesson_04_reach
from xlstm_unet_lab.nn.vil import ViLBlock
from xlstm_unet_lab.ops.scan_order import Traversal, to_grid, to_sequence, walked_size

SIDES = st.integers(1, 5)
WALKS = st.tuples(st.booleans(), st.booleans())


def traversal(columns_first, backwards):
    return Traversal(0 if columns_first else -1, backwards)


@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, SIDES, SIDES)
def test_patches_are_those_of_unfold(channels, rows, columns, size):
    image = torch.randn(channels, rows * size, columns * size, dtype=torch.float64)
    expected = nn.Unfold(size, stride=size)(image[None])[0].T
    assert torch.equal(lesson_04.to_patches(image, size), expected)


@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, WALKS)
def test_walks_are_those_of_the_package(rows, columns, walk):
    grid = torch.randn(3, rows, columns)
    assert torch.equal(lesson_04.walk(grid, *walk), to_sequence(grid[None], traversal(*walk))[0])


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, st.lists(WALKS, min_size=1, max_size=4), st.data())
def test_hearing_is_a_product_of_matrices(rows, columns, walks, data):
    size = (rows, columns)
    position = (data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1)))
    ways = torch.eye(math.prod(size))
    for walk in walks:
        number = to_grid(torch.arange(math.prod(size))[None, :, None], size, traversal(*walk)).flatten()
        ways = (number[None, :] <= number[:, None]).float() @ ways
    expected = (ways > 0)[position[0] * columns + position[1]].view(size)
    assert torch.equal(lesson_04_reach.heard_after(size, position, tuple(walks)), expected)
    if len(walks) == 1:
        assert torch.equal(lesson_04_reach.heard(size, position, *walks[0]), expected)


@pytest.mark.parametrize("walks", [((False, False),), ((True, True),), ((False, False), (True, False))])
def test_gradients_of_blocks_reach_what_is_heard(walks):
    size, position = (3, 4), (1, 2)
    torch.manual_seed(0)
    grid = image = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)
    for walk in walks:
        way, block = traversal(*walk), ViLBlock(4).double()
        grid = to_grid(block(to_sequence(grid, way), walked_size(size, way)), size, way)
    (gradient,) = torch.autograd.grad((grid[0, :, *position] * torch.randn(4)).sum(), image)
    assert torch.equal(gradient[0].abs().sum(0) > 0, lesson_04_reach.heard_after(size, position, walks))


def test_there_and_back_is_what_two_blocks_do():
    tokens = torch.randn(6, 4, dtype=torch.float64)
    forward, backward = ViLBlock(4).double(), ViLBlock(4).double()
    found = lesson_04_reach.both_ways(tokens, lambda x: forward(x[None], (6,))[0], lambda x: backward(x[None], (6,))[0])
    grid = forward(tokens[None], (6,))
    expected = to_grid(backward(to_sequence(grid.mT, Traversal(-1, True)), (6,)), (6,), Traversal(-1, True)).mT[0]
    torch.testing.assert_close(found, expected)
