"""Walks over a grid: each is a permutation of its positions, undone exactly, and known for a small grid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.ops.scan_order import ROW_MAJOR, Traversal, to_grid, to_sequence, traversals, walked_size

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def numbered(size, batch=2, channels=3):
    return torch.arange(batch * channels * math.prod(size)).view(batch, channels, *size)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.sampled_from(["forward", "bidirectional", "axes"]))
def test_every_walk_is_a_permutation_and_is_undone(size, directions):
    grid = numbered(size)
    for traversal in traversals(len(size), directions):
        tokens = to_sequence(grid, traversal)
        assert tokens.shape == (2, math.prod(size), 3)
        for batch in range(2):
            for channel in range(3):
                assert sorted(tokens[batch, :, channel].tolist()) == grid[batch, channel].flatten().tolist()
        assert torch.equal(to_grid(tokens, size, traversal), grid)
        assert torch.equal(to_sequence(to_grid(tokens, size, traversal), traversal), tokens)


@settings(deadline=None, max_examples=20)
@given(SIZES)
def test_neighbours_in_the_sequence_are_neighbours_along_the_fastest_axis(size):
    for axis in range(len(size)):
        position = torch.arange(size[axis]).view(-1, *[1] * (len(size) - 1 - axis)).expand(size)
        tokens = to_sequence(position[None, None], Traversal(axis))[0, :, 0]
        assert tokens.tolist() == list(range(size[axis])) * (math.prod(size) // size[axis])


@pytest.mark.parametrize(
    ("traversal", "order"),
    [
        (ROW_MAJOR, [0, 1, 2, 3, 4, 5]),
        (Traversal(reverse=True), [5, 4, 3, 2, 1, 0]),
        (Traversal(fastest=0), [0, 3, 1, 4, 2, 5]),
        (Traversal(fastest=0, reverse=True), [5, 2, 4, 1, 3, 0]),
        (Traversal(fastest=1), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_known_order(traversal, order):
    assert to_sequence(torch.arange(6).view(1, 1, 2, 3), traversal)[0, :, 0].tolist() == order


def test_known_order_in_3d():
    grid = torch.arange(8).view(1, 1, 2, 2, 2)
    assert to_sequence(grid, Traversal(fastest=1))[0, :, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(("fastest", "walked"), [(-1, (2, 3, 4)), (0, (3, 4, 2)), (1, (2, 4, 3)), (-3, (3, 4, 2))])
def test_walked_size(fastest, walked):
    assert walked_size((2, 3, 4), Traversal(fastest)) == walked
    tokens = to_sequence(numbered((2, 3, 4)), Traversal(fastest))
    # Read as a plain grid of the walked size, the tokens have the fastest axis last.
    assert torch.equal(to_grid(tokens, walked), numbered((2, 3, 4)).movedim(2 + fastest % 3, -1))


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        ("forward", [(-1, False)]),
        ("bidirectional", [(-1, False), (-1, True)]),
        ("axes", [(1, False), (1, True), (0, False), (0, True)]),
    ],
)
def test_directions(directions, expected):
    assert [tuple(traversal) for traversal in traversals(2, directions)] == expected


def test_gradient_flows_back_to_its_place():
    grid = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    for traversal in traversals(2, "axes"):
        tokens, weights = (to_sequence(x, traversal) for x in (grid, weight))
        assert torch.equal(torch.autograd.grad((tokens * weights).sum(), grid)[0], weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: traversals(2, "backward"), "directions is 'backward': .*there are forward, bidirectional, axes"),
        (lambda: traversals(0, "forward"), "spatial_dims is 0, expected a whole number of at least 1"),
        (lambda: to_sequence(torch.zeros(2, 3)), r"expected a grid \(batch, channels, \*spatial\), got shape \(2, 3\)"),
        (lambda: to_sequence(torch.zeros(1, 1, 2, 3), Traversal(2)), "fastest axis is 2, expected -2 to 1"),
        (lambda: walked_size((2, 3), Traversal(-3)), "fastest axis is -3, expected -2 to 1"),
        (lambda: to_grid(torch.zeros(1, 5, 1), (2, 3)), r"expected \(batch, 6, channels\) for a grid \(2, 3\)"),
        (lambda: to_grid(torch.zeros(6, 1), (2, 3)), r"tokens have shape \(6, 1\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
