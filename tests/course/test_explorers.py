"""Explorers, driven as a keyboard would drive them: a control changes, and picture and text follow."""

import functools
import re

import numpy as np
import pytest
import torch
from random_pairs import pair, random_source

from xlstm_unet_lab.course.authoring.accessibility import widget_problems
from xlstm_unet_lab.course.pictures import explorers
from xlstm_unet_lab.data.patches import sample_patch
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.scan_order import traversals

COLOURS = {"cell": "#0072B2", "rim": "#E69F00"}


def mask():
    disc = np.hypot(*np.mgrid[-12:12, -12:12]) < 6
    return disc.astype(bool)


def make(name):
    image, label = pair(2)
    return {
        "gate": lambda: explorers.gate_explorer(pairs=4),
        "chunk": lambda: explorers.chunk_size_explorer(length=96, width=8, sizes=(8, 32, 512)),
        "scan": lambda: explorers.scan_order_explorer((3, 4)),
        "scan in 3-D": lambda: explorers.scan_order_explorer((2, 3, 4)),
        "tolerance": lambda: explorers.boundary_tolerance_explorer(mask()),
        "patches": lambda: explorers.patch_explorer(image, label, COLOURS, patch_sizes=(4, 8)),
    }[name]()


CHANGES = {
    "gate": {"forget_gate": -6.0, "input_gate": 5.0, "pair": 3, "asked": 2},
    "chunk": {"chunk_size": 8},
    "scan": {"fastest": "y", "direction": "both ways", "y": 0, "x": 3},
    "scan in 3-D": {"fastest": "each in turn", "z": 0},
    "tolerance": {"down": 3, "right": -4, "tolerance": 4.0},
    "patches": {"size": 4, "share": 1.0, "count": 3, "seed": 5},
}


@pytest.mark.parametrize(("name", "control"), [(name, control) for name in CHANGES for control in CHANGES[name]])
def test_every_control_changes_picture_and_text(name, control):
    explorer = make(name)
    before = explorer.picture.value, explorer.text.value
    if name == "gate" and control == "pair":
        explorer.controls["input_gate"].value = 3.0  # a gate that is 0 is that of the others
        before = explorer.picture.value, explorer.text.value
    explorer.controls[control].value = CHANGES[name][control]
    after = explorer.picture.value, explorer.text.value
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert re.search(r'<img alt="[^"]{40,}"', after[0]) and 'role="status"' in after[1]
    assert widget_problems(explorer) == []


def similarity(explorer):
    return float(re.search(r"cosine similarity (-?\d\.\d\d)", explorer.text.value)[1])


def test_what_was_forgotten_is_not_recalled():
    explorer = make("gate")
    explorer.controls["forget_gate"].value = -6.0
    assert similarity(explorer) < 0.9, "the first pair was forgotten"
    explorer.controls["asked"].value = 3
    assert similarity(explorer) > 0.99, "the last one is all there is"


def test_a_strong_input_gate_stands_out():
    explorer = make("gate")
    explorer.controls["input_gate"].value = 6.0
    assert similarity(explorer) > 0.99


@pytest.mark.parametrize("bad", [{"pairs": 1}, {"width": 0}], ids=str)
def test_gate_explorer_needs_pairs(bad):
    with pytest.raises(ValueError, match=r"(pairs is 1|width is 0), expected a whole number"):
        explorers.gate_explorer(**bad)


def test_chunk_sizes_are_measured_once_and_those_too_long_left_out():
    explorer = make("chunk")
    assert explorer.controls["chunk_size"].options == (8, 32)
    assert "time:" in explorer.text.value and "96 tokens in 3 chunks of 32" in explorer.text.value
    explorer.controls["chunk_size"].value = 8
    both = explorer.text.value
    assert "at 8 tokens a chunk" in both and "at 32" in both
    explorer.controls["chunk_size"].value = 32
    explorer.controls["chunk_size"].value = 8
    assert explorer.text.value == both


def test_smaller_chunks_keep_more_states_and_smaller_squares():
    inputs = [torch.randn(1, 1, 256, 32) for _ in "qkv"] + [torch.randn(1, 1, 256) for _ in "if"]
    kept = {size: explorers.measure_chunk_size(inputs, size)[1] for size in (4, 32, 256)}
    assert kept[4] > kept[32] < kept[256]
    assert kept[256] > 256 * 256 * 4, "the square of one large chunk, in float32"
    assert kept[4] > 64 * 32 * 33 * 4, "a state for every chunk"


def test_kept_bytes_are_those_of_the_tensors_autograd_keeps():
    x, y = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert explorers.kept_bytes(lambda x, y: x + y, [x, y]) == 0, "the gradient of a sum needs no value"
    assert explorers.kept_bytes(lambda x, y: x * y, [x, y]) == 2 * 5 * 8
    assert explorers.kept_bytes(lambda x: x * x, [x]) == 5 * 8, "one tensor kept twice"
    assert explorers.kept_bytes(lambda x: x.exp().exp(), [x]) == 2 * 5 * 8, "the result inside, and the last"
    assert not x.requires_grad


def test_only_the_parallel_form_keeps_squares():
    def kept(form, length):
        inputs = [torch.randn(1, 1, length, 8) for _ in "qkv"] + [torch.randn(1, 1, length) for _ in "if"]
        return explorers.kept_bytes(form, inputs)

    assert kept(mlstm.parallel, 256) > 3 * kept(mlstm.parallel, 128)
    for form in (mlstm.recurrent, functools.partial(mlstm.chunkwise, chunk_size=16)):
        assert kept(form, 256) < 2.2 * kept(form, 128)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
def test_all_walks_together_show_everything(size):
    explorer = explorers.scan_order_explorer(size)
    explorer.controls["direction"].value = "both ways"
    total = int(np.prod(size))
    assert f"Together they show it {total} of {total} tokens" in explorer.text.value
    explorer.controls["fastest"].value = "each in turn"
    assert f"{len(traversals(len(size), 'axes'))} walks" in explorer.text.value


def test_tolerance_explorer_says_what_the_metric_says():
    explorer = make("tolerance")
    shifted = np.roll(mask(), 2, axis=1)
    score = metrics.surface_dice(shifted, mask(), spacing=(1, 1), tolerance=1.0)
    assert f"the surface Dice is {score:.2f}" in explorer.text.value
    with pytest.raises(ValueError, match="not empty"):
        explorers.boundary_tolerance_explorer(np.zeros((4, 4)))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("length", [5, 15])
def test_patches_lie_where_the_sampler_cut_them(spatial_dims, length):
    """A patch of 15 is larger than some axes of the image: it starts before the image does."""
    image, label = pair(spatial_dims)
    size = (length,) * spatial_dims
    boxes = explorers.patch_places_of(image, label, size, count=6, share=0.5, seed=3)
    generator = random_source(3)
    for box in boxes:
        patch, _ = sample_patch(image, label, size, generator, 0.5)
        inside = tuple(slice(max(place.start, 0), place.stop) for place in box)
        shown = tuple(slice(max(-place.start, 0), n - place.start) for place, n in zip(box, label.shape, strict=True))
        torch.testing.assert_close(patch[(slice(None), *shown)], image[(slice(None), *inside)])


def test_patches_aimed_at_foreground_hit_it():
    image, label = torch.zeros(1, 40, 40), torch.zeros(40, 40, dtype=torch.int64)
    label[2:5, 2:5] = 1
    explorer = explorers.patch_explorer(image, label, COLOURS, patch_sizes=(8, 16))
    explorer.controls["size"].value = 8
    explorer.controls["share"].value = 1.0
    assert "20 random patches: 20 hold foreground" in explorer.text.value


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_patches_are_drawn_where_they_lie(spatial_dims):
    label = np.zeros((6, 10, 20)[-spatial_dims:], int)
    label[..., 2:4, 4:8] = 1
    boxes = [
        (*[slice(0, 6)] * (spatial_dims - 2), slice(1, 5), slice(4, 8)),
        (*[slice(0, 6)] * (spatial_dims - 2), slice(-2, 2), slice(16, 22)),  # beyond the image's edge
    ]
    picture = explorers.patch_places(np.zeros((1, *label.shape)), label, boxes, {"cell": "#0072B2"})
    assert "2 random patches: 1 hold foreground, 25.0% of an average patch" in picture.description
    assert "Of the whole image 4.0% is foreground." in picture.description
    drawn = picture.figure.axes[0].patches
    assert [patch.get_xy() for patch in drawn] == [(3.5, 0.5), (15.5, -2.5)]
    assert [(patch.get_width(), patch.get_height()) for patch in drawn] == [(4, 4), (6, 4)]


def test_of_a_volume_only_patches_that_cross_the_slice_are_drawn():
    label = np.zeros((6, 10, 10), int)
    label[4, 2:4, 2:4] = 1
    boxes = [(slice(0, 3), slice(0, 4), slice(0, 4)), (slice(2, 6), slice(0, 4), slice(0, 4))]
    picture = explorers.patch_places(np.zeros((1, *label.shape)), label, boxes, {"cell": "#0072B2"})
    assert len(picture.figure.axes[0].patches) == 1 and "slice 4" in picture.figure.axes[0].get_title()
