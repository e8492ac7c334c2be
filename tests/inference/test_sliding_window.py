"""Box by box gives what the whole volume at once gives, in the memory of a few windows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn
from whole_image import sliding_window

from xlstm_unet_lab.data.patches import sample_patch
from xlstm_unet_lab.inference.sliding_window import Windows, sliding_boxes, whole_from


def network(spatial_dims, num_classes=3):
    """A network that looks around, so that windows differ where they overlap."""
    torch.manual_seed(0)
    kind = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
    return kind(2, num_classes, 3, padding=1).double()


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 11), st.integers(2, 6)), min_size=2, max_size=3),
    st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    st.integers(1, 5),
    st.booleans(),
)
def test_boxes_are_the_whole(sizes, overlap, batch_size, row_by_row):
    size, patch_size = zip(*sizes, strict=True)
    model = network(len(size))
    image = torch.randn(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = sliding_window_inference(image[None], patch_size, 1, model, overlap=overlap, mode="gaussian")[0]
    known = {"patch_size": patch_size, "overlap": overlap, "batch_size": batch_size, "row_by_row": row_by_row}
    got = sliding_window(model, image, **known)
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=0, atol=1e-12)


class Remembers(nn.Module):
    """Answers every window with itself and keeps it."""

    def forward(self, windows):
        self.seen = windows
        return windows


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=2, max_size=3))
def test_an_image_smaller_than_the_patch_is_padded_as_in_training(sizes_and_margins):
    size = tuple(length for length, _ in sizes_and_margins)
    patch_size = tuple(length + margin for length, margin in sizes_and_margins)
    image, network = torch.rand(2, *size), Remembers()
    trained_on, _ = sample_patch(image, torch.zeros(size, dtype=torch.int64), patch_size, torch.Generator())
    sliding_window(network, image, patch_size=patch_size)
    assert torch.equal(network.seen[0], trained_on)


def test_boxes_fill_the_image_and_are_no_larger_than_a_patch():
    filled = torch.zeros(50, 9, 21)
    for place, values in sliding_boxes(network(3), torch.zeros(2, 50, 9, 21), (8, 9, 10), Windows(), False):
        assert values.shape == (3, *filled[place].shape) and np.all(np.array(values.shape[1:]) <= (8, 9, 10))
        filled[place] += 1
    assert (filled == 1).all()


@pytest.mark.parametrize(
    ("row_by_row", "patch_size", "axis"),
    [(True, (8, 8, 8), 0), (False, (8, 8, 8), 1), (False, (4, 8, 8), 0), (False, (4, 20, 4), 2)],
)
def test_boxes_fill_the_image_along_the_axis_of_most_patches_or_its_first(row_by_row, patch_size, axis):
    size = (20, 30, 25)
    boxes = sliding_boxes(network(3), torch.zeros(2, *size), patch_size, Windows(), row_by_row)
    starts = [place[axis].start for place, _ in boxes]
    assert starts == sorted(starts) and len(set(starts)) > 2


@pytest.mark.parametrize("stop_after", [0, 1])
def test_a_caller_that_stops_leaves_the_network_in_its_mode(stop_after):
    model = network(2).train()
    boxes = sliding_boxes(model, torch.zeros(2, 40, 8), (8, 8), Windows(batch_size=1), False)
    for _ in range(stop_after):
        next(boxes)
    boxes.close()
    assert model.training and torch.is_grad_enabled()


def test_half_precision_weights_are_added_up_in_float32():
    model = network(2).bfloat16()
    logits = sliding_window(model, torch.randn(2, 20, 20), patch_size=(8, 8))
    assert logits.dtype == torch.float32 and torch.isfinite(logits).all()


@pytest.mark.parametrize("channels", [(), (2,)])
def test_boxes_are_put_together_with_channels_or_without(channels):
    whole = torch.randn(*channels, 5, 4)
    places = [(slice(0, 3), slice(0, 4)), (slice(3, 5), slice(0, 1)), (slice(3, 5), slice(1, 4))]
    assert torch.equal(whole_from(((place, whole[(..., *place)]) for place in places), (5, 4)), whole)


def test_an_answer_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"windows of \(8, 8\) with logits of shape \(1, 3, 6, 6\)"):
        sliding_window(nn.Conv2d(2, 3, 3), torch.zeros(2, 8, 8), patch_size=(8, 8))
