"""Cases brought to one spacing: sizes, values, what is refused."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xlstm_unet_lab.data.cases import Facts
from xlstm_unet_lab.data.resample import ResampledDataset, resampled_size


def ramp_case(spatial_dims, spacing):
    """An image that rises by 1 a millimetre along its last axis, and a label with a box."""
    size = (8, 10, 12)[-spatial_dims:]
    label = torch.zeros(size, dtype=torch.int64)
    label[(slice(2, 6),) * spatial_dims] = 7
    image = ((torch.arange(size[-1]) + 0.5) * spacing[-1]).expand(1, *size).clone()
    return {"image": image, "label": label, "spacing": spacing, "name": "ramp"}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_known_values(spatial_dims):
    spacing, wanted = (4.0, 1.0, 2.0)[-spatial_dims:], (2.0, 1.0, 1.0)[-spatial_dims:]
    case = ramp_case(spatial_dims, spacing)
    dataset = ResampledDataset([case], wanted)
    item = dataset[0]
    assert item["label"].shape == (16, 10, 24)[-spatial_dims:] and item["image"].shape[1:] == item["label"].shape
    assert item["spacing"] == wanted and item["name"] == "ramp" and item["label"].dtype == torch.int64
    ends = torch.arange(24) + 0.5  # mm
    assert torch.allclose(item["image"][..., 1:-1], ends[1:-1].expand_as(item["image"][..., 1:-1]))
    box = item["label"][(slice(4, 12), slice(2, 6), slice(4, 12))[-spatial_dims:]]
    assert (box == 7).all() and (item["label"] == 7).sum() == box.numel()
    item["image"].zero_()
    assert dataset[0]["image"].any(), "a change does not reach what is kept"


def test_nearly_the_same_spacing_changes_nothing():
    case = ramp_case(2, (1.0, 2.0))
    dataset = ResampledDataset([case], (1.005, 1.99))
    assert torch.equal(dataset[0]["image"], case["image"]) and dataset[0]["spacing"] == (1.005, 1.99)
    assert len(dataset) == 1 and dataset.facts == Facts()


def test_memory_is_limited():
    read = []

    class Cases(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    cases = Cases([ramp_case(2, (1.0, 2.0)) for _ in range(2)])
    one = ResampledDataset(cases, (1.0, 1.0)).view(0)
    size = sum(tensor.nbytes for tensor in (one["image"], one["label"], one["foreground"].places))
    dataset = ResampledDataset(cases, (1.0, 1.0), cache_bytes=size)
    read.clear()
    for _ in range(3):
        assert [dataset[index]["name"] for index in range(2)] == ["ramp", "ramp"]
    assert read == [0, 1, 1, 1]


@settings(deadline=None, max_examples=30)
@given(
    size=st.lists(st.integers(1, 300), min_size=2, max_size=3),
    spacing=st.floats(0.1, 10),
    wanted=st.floats(0.1, 10),
)
def test_sizes_keep_the_length(size, spacing, wanted):
    assume(spacing < 4 * wanted)  # more would make too large an image of some
    new = resampled_size(size, [spacing] * len(size), [wanted] * len(size))
    for before, after in zip(size, new, strict=True):
        assert after >= 1
        assert after == 1 or abs(after * wanted - before * spacing) <= wanted / 2 + 0.011 * before * spacing


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, -1.0), "ab", 1.0])
def test_bad_spacing(spacing):
    with pytest.raises(ValueError, match="expected 2 finite numbers above 0"):
        ResampledDataset([ramp_case(2, (1.0, 1.0))], spacing)


def test_a_spacing_far_below_that_of_the_cases_is_refused_before_anything_is_resampled():
    with pytest.raises(ValueError, match=r"would be brought to .*: a spacing is wrong"):
        ResampledDataset([ramp_case(2, (1.0, 1.0))], (1e-4, 1e-4))[0]


@pytest.mark.parametrize(
    ("size", "spacing"), [((1200, 1200, 1200), 0.7), ((4000, 4000), 0.1), ((2000, 2000, 2000), 1.0)]
)
def test_no_image_is_brought_to_more_voxels_than_a_memory_holds(size, spacing):
    with pytest.raises(ValueError, match=r"expected [0-9,]+ voxels at most"):
        resampled_size(size, [1.0] * len(size), [spacing * 0.98] * len(size))


def test_a_huge_image_may_become_smaller():
    assert resampled_size((4000, 4000, 4000), (1, 1, 1), (1.1, 1.1, 1.1)) == (3636, 3636, 3636)
