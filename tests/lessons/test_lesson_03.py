"""The references of lesson 03 against the package."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.course.checks import lesson_03, lesson_03_blocks
from xlstm_unet_lab.nn.vil import ViLBlock
from xlstm_unet_lab.ops import slstm

BLOCK_OF_XLSTM = {  # its parameters by the package's names
    "norm.weight": ("xlstm_norm.weight",),
    "layer.skip": ("xlstm.learnable_skip",),
    "layer.up.weight": ("xlstm.proj_up.weight",),
    "layer.conv.conv.weight": ("xlstm.conv1d.conv.weight",),
    "layer.conv.conv.bias": ("xlstm.conv1d.conv.bias",),
    "layer.q.weight": ("xlstm.q_proj.weight",),
    "layer.k.weight": ("xlstm.k_proj.weight",),
    "layer.v.weight": ("xlstm.v_proj.weight",),
    "layer.cell.gates.weight": ("xlstm.mlstm_cell.igate.weight", "xlstm.mlstm_cell.fgate.weight"),
    "layer.cell.gates.bias": ("xlstm.mlstm_cell.igate.bias", "xlstm.mlstm_cell.fgate.bias"),
    "layer.cell.norm.weight": ("xlstm.mlstm_cell.outnorm.weight",),
    "layer.down.weight": ("xlstm.proj_down.weight",),
}

few_examples = settings(deadline=None, max_examples=25)


@few_examples
@given(length=st.integers(1, 12), width=st.integers(1, 5), seed=st.integers(0, 99), gates=st.sampled_from([1.0, 300.0]))
def test_the_slstm_of_lesson_03_is_that_of_the_package(length, width, seed, gates):
    generator = torch.Generator().manual_seed(seed)
    z, i, f, o = torch.randn(4, length, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, width, width, generator=generator, dtype=torch.float64)
    inputs = (z, gates * i, gates * f, o)
    expected = slstm.scan(*(x[None, None] for x in inputs), weights[None])[0, 0]
    torch.testing.assert_close(lesson_03.slstm_sequence(*inputs, weights), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (8, 4), (6, 6)])
def test_recurrent_parameters_are_what_the_scan_takes(width, heads):
    weights = torch.zeros(heads, 4, width // heads, width // heads)
    slstm.scan(*torch.zeros(4, 1, heads, 2, width // heads), weights)
    assert lesson_03.recurrent_parameters(width, heads) == weights.numel()


@few_examples
@given(st.tuples(*[st.floats(-3, 3)] * 5))
def test_joined_steps_do_what_both_do(numbers):
    g1, u1, g2, u2, c = torch.tensor(numbers, dtype=torch.float64)
    g, u = lesson_03.join_steps(torch.stack([g1, u1]), torch.stack([g2, u2]))
    torch.testing.assert_close(g * c + u, g2 * (g1 * c + u1) + u2)


@few_examples
@given(st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_the_unit_tracks_parity(bits):
    bits = torch.tensor(bits)
    found = lesson_03_blocks.said_by_unit(lesson_03_blocks.parity_unit, bits)
    assert found.tolist() == (bits.cumsum(0) % 2).tolist()


@pytest.mark.parametrize(
    ("made", "message"),
    [(torch.zeros(3, 4), "two tensors"), ((torch.zeros(4, 3), torch.zeros(4)), r"\(4, 3\).*expected \(3, 4\)")],
)
def test_a_unit_of_another_shape_is_told_so(made, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lesson_03_blocks.said_by_unit(lambda bits: made, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("width", [4, 6, 8])
def test_the_block_from_its_parts_is_the_block(width):
    torch.manual_seed(0)
    block, x = ViLBlock(width).double(), torch.randn(2, 7, width, dtype=torch.float64)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    parts = lesson_03_blocks.parts_of(block)
    torch.testing.assert_close(lesson_03_blocks.vil_block(x, parts), block(x, (7,)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("length", "heads"), [(1, 4), (11, 4), (32, 2), (32, 8)])
def test_the_block_of_version_1_is_the_mlstm_block_of_xlstm(length, heads):
    from xlstm.blocks.mlstm.block import mLSTMBlock, mLSTMBlockConfig
    from xlstm.blocks.mlstm.layer import mLSTMLayerConfig

    width, generator = 32, torch.Generator().manual_seed(heads)
    layer = mLSTMLayerConfig(embedding_dim=width, context_length=32, num_heads=heads)
    theirs = mLSTMBlock(mLSTMBlockConfig(mlstm=layer, _num_blocks=1, _block_idx=0)).double()
    for parameter in theirs.parameters():  # as drawn, gates have weight 0 and norms scale 1
        parameter.data.normal_(std=0.5, generator=generator)
    ours, state = ViLBlock(width, heads=heads).double(), theirs.state_dict()
    ours.load_state_dict({name: torch.cat([state.pop(one) for one in of]) for name, of in BLOCK_OF_XLSTM.items()})
    assert not state, "weights of theirs that ours does not have"
    x = torch.randn(2, length, width, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ours(x, (length,)), theirs(x), rtol=1e-9, atol=1e-9)
