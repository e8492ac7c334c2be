"""Figures of what happens inside: they show what the operators compute, and their sentences give its numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.course.pictures import mechanisms
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.scan_order import Traversal, traversals


def gates(length=6):
    return torch.randn(2, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def lines_of(axes):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_gate_traces_are_those_of_the_recurrence():
    i, f = gates()
    i[3], f[4] = 5.0, -9.0
    picture = mechanisms.gate_traces(i, f)
    before, stabilised, stabiliser = (lines_of(axes) for axes in picture.figure.axes)
    np.testing.assert_array_equal(before["forget gate f"], f)
    state, one = None, torch.ones(1, 1, 1, dtype=torch.float64)
    for t in range(len(i)):
        last = -np.inf if state is None else state.m.item()
        _, state = mlstm.step(state, one, one, one, i[None, None, t], f[None, None, t])
        assert stabiliser["m"][t] == pytest.approx(state.m.item())
        kept = np.exp(torch.nn.functional.logsigmoid(f[t]).item() + last - state.m.item())
        assert stabilised["forget: exp(a + m before - m)"][t] == pytest.approx(kept)
        assert stabilised["input: exp(i - m)"][t] == pytest.approx(np.exp(i[t].item() - state.m.item()))
    assert "Gates of 6 tokens" in picture.description and "5.00 at most (token 3)" in picture.description
    assert "memory through at tokens 3, 4" in picture.description


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((3,), (2,)), ((0,), (0,))])
def test_gate_traces_take_one_head(shapes):
    with pytest.raises(ValueError, match="expected one head's"):
        mechanisms.gate_traces(*(torch.zeros(shape) for shape in shapes))


def test_decay_matrix_is_stabilised_row_by_row():
    i, f = gates()
    picture = mechanisms.decay_matrix(i, f)
    logarithms, weights = (axes.images[0].get_array() for axes in picture.figure.axes[:2])
    assert np.isnan(np.ma.filled(logarithms, np.nan)[np.triu_indices(6, 1)]).all()
    np.testing.assert_allclose(weights.max(1), 1)
    assert "6 tokens" in picture.description
    assert f"token {int(np.argmax(weights[-1]))} weighs most" in picture.description
    with pytest.raises(ValueError, match="one head's"):
        mechanisms.decay_matrix(*torch.zeros(2, 1, 3))


@settings(deadline=None, max_examples=20)
@given(length=st.integers(1, 40), chunk_size=st.integers(1, 40))
def test_chunks_cover_every_pair_once(length, chunk_size):
    picture = mechanisms.chunk_structure(length, chunk_size)
    covered = 0.0
    for patch in picture.figure.axes[0].patches:
        x, y = patch.get_path().transformed(patch.get_patch_transform()).vertices[:-1].T
        covered += abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2
    assert covered == pytest.approx(length**2 / 2)
    assert f"in {-(-length // chunk_size)} chunk" in picture.description


def test_chunk_structure_in_words():
    text = mechanisms.chunk_structure(10, 4).description
    assert "10 tokens in 3 chunks of 4, the last of 2: 41.8% of the 55 pairs" in text and "through 2 states" in text
    with pytest.raises(ValueError, match="chunk_size is 0"):
        mechanisms.chunk_structure(10, 0)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
def test_walks_say_where_they_go_and_what_a_token_sees(size):
    walks = traversals(len(size), "bidirectional")
    position = (*(length - 1 for length in size[:-1]), 0)
    total = int(np.prod(size))
    picture = mechanisms.scan_paths(size, walks, position)
    corner = tuple(length - 1 for length in size)
    number = total - 4
    assert f"x fastest, forward: from {(0,) * len(size)} to {corner}" in picture.description
    assert f"{position} is token {number} and sees {number + 1} of {total}" in picture.description
    assert f"{position} is token 3 and sees 4 of {total}" in picture.description
    assert f"Together they show it {total} of {total} tokens" in picture.description
    slices = size[0] if len(size) == 3 else 1
    assert len(picture.figure.axes) == 2 * slices
    numbers = [int(text.get_text()) for text in picture.figure.axes[0].texts]
    assert numbers == list(range(size[-1] * size[-2]))


def test_the_axis_that_runs_fastest_decides_the_numbers():
    (axes,) = mechanisms.scan_paths((2, 3), [Traversal(fastest=0)]).figure.axes
    assert [text.get_text() for text in axes.texts] == ["0", "2", "4", "1", "3", "5"]


def test_jumps_look_different_from_steps_to_a_neighbour():
    (axes,) = mechanisms.scan_paths((2, 3), [Traversal(fastest=0)]).figure.axes
    (steps,) = axes.collections
    assert (2 * steps.U).tolist() == [0, 0, 0] and (2 * steps.V).tolist() == [1, 1, 1]
    ends = [tuple(tuple(map(int, end)) for end in jump._posA_posB) for jump in axes.patches]  # (x, y), whole jumps
    assert ends == [((0, 1), (1, 0)), ((1, 1), (2, 0))]
    assert {jump.get_linestyle() for jump in axes.patches} == {"--"}


def test_jumps_lie_in_their_slice():
    first, second = mechanisms.scan_paths((2, 2, 3), [Traversal()]).figure.axes
    assert len(first.patches) == len(second.patches) == 1
    assert len(mechanisms.scan_paths((2, 3), [Traversal()]).figure.axes[0].collections[0].U) == 4


def test_a_large_grid_is_a_map():
    (axes,) = mechanisms.scan_paths((16, 16), traversals(2, "forward")).figure.axes
    assert not axes.texts and axes.images[0].get_array().shape == (16, 16)
    (axes,) = mechanisms.scan_paths((16, 16), traversals(2, "forward"), (8, 8)).figure.axes
    assert not axes.texts and axes.images[0].get_array().shape == (16, 16, 3)


@pytest.mark.parametrize(("size", "position"), [((4,), None), ((2, 3), (2, 0)), ((2, 3), (0, 0, 0)), ((2, 3), (0, -1))])
def test_positions_lie_on_the_grid(size, position):
    with pytest.raises(ValueError, match="a place inside it"):
        mechanisms.scan_paths(size, [Traversal()], position)


@pytest.mark.parametrize("size", [(9, 11), (5, 9, 11)])
def test_receptive_field_tells_its_extent(size):
    gradient = torch.zeros(size)
    box = (slice(1, 4),) * len(size)
    gradient[box], position = 0.5, (2,) * len(size)
    gradient[position] = -2.0
    gradient[(0,) * len(size)] = 1e-4
    picture = mechanisms.receptive_field(gradient, position)
    assert f"at {position} depends most on the input at {position}" in picture.description
    assert "y 1 to 3, x 1 to 3" in picture.description
    assert f"{3 ** len(size) / gradient.numel():.1%} of the input" in picture.description
    maps = [axes for axes in picture.figure.axes if axes.images]
    assert len(maps) == (1 if len(size) == 2 else 3)
    assert maps[0].images[0].get_array().max() == 0


@pytest.mark.parametrize(("size", "headings"), [((9, 11), [""]), ((5, 9, 11), ["z = 2", "y = 2", "x = 2"])])
def test_receptive_field_has_a_title_and_a_scale_in_whole_numbers(size, headings):
    for title in ("", "4 blocks"):
        picture = mechanisms.receptive_field(torch.ones(size), (2,) * len(size), title=title)
        picture.figure.draw_without_rendering()
        maps = [axes for axes in picture.figure.axes if axes.images]
        scales = [axes for axes in picture.figure.axes if not axes.images]
        assert [axes.get_title() for axes in maps] == [", ".join(filter(None, (title, one))) for one in headings]
        assert picture.description.startswith(f"{title}. The output" if title else "The output")
        assert picture.description.endswith("the darkest 0.001 or less.")
        assert {axes.get_ylabel() for axes in scales} == {"log10 of the share of the largest (-3: or less)"}
        for ticks in [axes.get_yticks() for axes in scales] + [axes.get_xticks() for axes in maps]:
            assert all(float(tick).is_integer() for tick in ticks)


def test_receptive_field_needs_a_gradient_and_a_place():
    with pytest.raises(ValueError, match="not all 0"):
        mechanisms.receptive_field(torch.zeros(3, 3), (1, 1))
    with pytest.raises(ValueError, match="position"):
        mechanisms.receptive_field(torch.ones(3, 3), (1, 3))


def test_recall_compares_answer_and_value():
    values = torch.eye(3, dtype=torch.float64)
    answers = values.clone()
    answers[2] = -answers[2]
    picture = mechanisms.recall(torch.ones(4, 3), values, answers, asked=2)
    assert "Asked with key 2 the memory gives its value with cosine similarity -1.00" in picture.description
    assert "1.00, 1.00, -1.00" in picture.description
