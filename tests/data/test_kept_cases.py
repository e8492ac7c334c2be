"""Cases kept in memory or on disk: the same numbers, made anew when their files change, read a piece at a time."""

import dataclasses
import os
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_pairs import random_source
from safetensors.torch import save
from torch.utils.data import Subset

from data_recipes.shared.writing import write_case, write_volume
from xlstm_unet_lab.data import dataset as dataset_module
from xlstm_unet_lab.data import kept_cases
from xlstm_unet_lab.data.augment import PatchDataset
from xlstm_unet_lab.data.cases import as_cases
from xlstm_unet_lab.data.dataset import SegmentationDataset
from xlstm_unet_lab.data.patches import Foreground, sample_patch
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.data.resample import ResampledDataset

CASES = 3
NAMES = [f"case_{number}" for number in range(CASES)]


@pytest.fixture(params=[2, 3])
def folder(request, tmp_path):
    """Three cases, the last without foreground; beside them their recipe."""
    random = np.random.default_rng(0)
    made = tmp_path / "root" / "Dataset999_toy"
    for number, name in enumerate(NAMES):
        size = (12, 20 + number, 16)[-request.param :]
        image, label = random.integers(0, 200, size, dtype=np.uint8), random.integers(0, 3, size, dtype=np.uint8)
        label[number == CASES - 1] = 0
        if request.param == 2:
            write_case(made, "Tr", name, image, label)
        else:
            affine = np.diag([1.0, 2.0, 3.0, 1.0])
            volumes = [nibabel.Nifti1Image(array.T, affine) for array in (image, label)]
            write_volume(made, "Tr", name, volumes[:1], volumes[1], {0, 1, 2})
    recipe = get_recipe({2: "phantom_microscopy", 3: "hippocampus"}[request.param])
    return SimpleNamespace(path=made, recipe=dataclasses.replace(recipe, name="toy", dataset_id=999))


def open_set(folder, cache_bytes=0):
    return SegmentationDataset(folder.recipe, folder.path, "Tr", NAMES, cache_bytes)


def kept_in(folder):
    kept = folder.path.parent / "kept" / "Dataset999_toy"
    return sorted(path.parent.name for path in kept.glob(f"*/*/{kept_cases.FILE}"))


def same(one, other):
    equal = all(one[key] == other[key] for key in ("name", "spacing"))
    return equal and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in ("image", "label")
    )


def test_the_disk_gives_what_memory_gives(folder):
    memory, disk = open_set(folder, 2**30), open_set(folder)
    assert all(same(one, other) for one, other in zip(memory, disk, strict=True))
    assert kept_in(folder) == NAMES, "what is in memory is not written"
    again = open_set(folder)
    for index in range(CASES):
        one, other = memory.view(index), again.view(index)
        assert same(one, other) and one["label"].dtype == torch.uint8
        assert one["foreground"][:2] == other["foreground"][:2]
        assert torch.equal(one["foreground"].places, other["foreground"].places)
    patches = [PatchDataset(cases, (8, 8, 8)[: other["label"].ndim], 20, seed=1) for cases in (memory, disk, again)]
    for one, *others in zip(*patches, strict=True):
        assert all(torch.equal(one[key], other[key]) for other in others for key in ("image", "label"))


def test_memory_is_filled_first(folder):
    view = open_set(folder, 2**30).view(0)
    size = view["image"].nbytes + view["label"].nbytes + view["foreground"].places.nbytes
    list(open_set(folder, size))
    assert kept_in(folder) == NAMES[1:]


def test_files_are_read_once(folder, monkeypatch):
    first = list(open_set(folder))
    monkeypatch.setattr(dataset_module, "read_case", None)
    assert all(same(one, other) for one, other in zip(first, open_set(folder), strict=True))


def cut_short(kept):
    (kept / kept_cases.FILE).write_bytes((kept / kept_cases.FILE).read_bytes()[:-50])


def another_file(kept):
    (kept / kept_cases.FILE).write_bytes(save({"image": torch.zeros(3)}))


@pytest.mark.parametrize("spoil", [cut_short, another_file, shutil.rmtree, None])
def test_what_is_spoilt_or_outdated_is_made_anew(folder, spoil):
    before = list(open_set(folder))
    label = next((folder.path / "labelsTr").glob("case_0.*"))
    if spoil:
        spoil(folder.path.parent / "kept" / "Dataset999_toy" / "Tr" / "case_0")
    else:  # the image of another case, which is smaller or larger, and its label
        for path in (folder.path / "imagesTr").glob("case_1_*"):
            shutil.copy(path, str(path).replace("case_1", "case_0"))
        shutil.copy(str(label).replace("case_0", "case_1"), label)
    after = list(open_set(folder))
    assert same(after[0], before[0] if spoil else before[1] | {"name": "case_0"})
    assert all(same(one, other) for one, other in zip(before[1:], after[1:], strict=True))


def test_a_touched_file_and_other_labels_count_as_changed(folder, monkeypatch):
    list(open_set(folder))
    label = next((folder.path / "labelsTr").glob("case_0.*"))
    os.utime(label, ns=(1, 1))
    read = []
    original = dataset_module.read_case
    monkeypatch.setattr(dataset_module, "read_case", lambda paths: read.append(paths[0].name[:6]) or original(paths))
    list(open_set(folder))
    assert read == ["case_0"]
    fewer = {"background": 0, "thing": 1}
    folder.recipe = dataclasses.replace(
        folder.recipe, labels=fewer, colours={"thing": "#0072B2"}, tolerances={"thing": 1.0}
    )
    with pytest.raises(ValueError, match=r"holds \[2\]"):
        open_set(folder)[0]


def test_a_change_to_an_item_or_a_view_never_reaches_the_disk(folder):
    dataset = open_set(folder)
    before = dataset[0]
    dataset[0]["image"].zero_()
    assert same(dataset[0], before)
    dataset.view(0)["image"].zero_()
    assert same(open_set(folder)[0], before)


def test_a_full_disk_is_said_once_and_costs_time_only(folder, monkeypatch):
    whole = list(open_set(folder, 2**30))
    monkeypatch.setattr(kept_cases, "SPARE_DISK", 2**70)
    dataset = open_set(folder)
    with pytest.warns(UserWarning, match=r"kept.*cannot be written .*left free.*larger cache_bytes") as said:
        assert all(same(one, other) for one, other in zip(whole, dataset, strict=True))
        assert all(same(one, other) for one, other in zip(whole, dataset, strict=True))
    assert len(said) == 1 and kept_in(folder) == []


def test_where_the_data_may_not_be_written_the_cache_is_used(folder, monkeypatch):
    monkeypatch.setattr(dataset_module.os, "access", lambda path, mode: path != folder.path.parent)
    monkeypatch.setenv("LAB_DATA", str(folder.path.parent.parent / "mine"))
    assert same(open_set(folder)[0], open_set(folder, 2**30)[0]) and kept_in(folder) == []
    assert (
        folder.path.parent.parent / "mine" / "kept" / "Dataset999_toy" / "Tr" / "case_0" / kept_cases.FILE
    ).is_file()


def test_several_at_once_and_another_process(folder):
    sets = [open_set(folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda one: one[0], sets)
    assert all(same(first, other) for other in others) and kept_in(folder) == NAMES[:1]
    filled = open_set(folder, 2**30)
    assert same(filled[0], first)
    handed_over = pickle.dumps(filled)
    assert len(handed_over) == len(pickle.dumps(open_set(folder, 2**30))), "what is in memory stays here"
    assert same(pickle.loads(handed_over)[0], first)


def test_resampled_cases_are_kept_too(folder, monkeypatch):
    spacing = (1.5, 1.5, 1.5)[: len(open_set(folder)[0]["spacing"])]
    memory = list(ResampledDataset(open_set(folder, 2**30), spacing))
    first = list(ResampledDataset(open_set(folder), spacing, 0))
    wrapped = list(ResampledDataset(Subset(open_set(folder), range(CASES)), spacing, 0))
    monkeypatch.setattr("xlstm_unet_lab.data.resample.resized", None)
    again = list(ResampledDataset(open_set(folder), spacing, 0))
    for one, *others in zip(memory, first, wrapped, again, strict=True):
        assert one["spacing"] == spacing and set(one) == {"image", "label", "spacing", "name"}
        assert all(same(one, other) for other in others)
    own = ResampledDataset(open_set(folder), open_set(folder)[0]["spacing"], 0)
    assert same(own[0], open_set(folder)[0])
    assert len(kept_in(folder)) == 2 * CASES, "cases and resampled ones; what stays as it is, once"


# What a patch needs of a case


@settings(deadline=None, max_examples=30)
@given(
    size=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    seed=st.integers(0, 100),
)
def test_foreground_is_every_place_by_class(size, dtype, seed):
    label = torch.randint(0, 4, size, generator=random_source(seed)).to(dtype)
    found, flat = Foreground.of(label), label.flatten()
    assert list(found.classes) == [value for value in (1, 2, 3) if (flat == value).any()]
    starts = (0, *found.ends)
    for value, start, end in zip(found.classes, starts, found.ends, strict=False):
        assert found.places[start:end].tolist() == (flat == value).nonzero().flatten().tolist()
    assert len(found.places) == int((flat > 0).sum())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_known_foreground_changes_no_patch(spatial_dims):
    label = torch.randint(0, 3, (9,) * spatial_dims, generator=random_source())
    image = label[None].float()
    for seed in range(20):
        arguments = ((4,) * spatial_dims, random_source(seed), 0.7)
        plain = sample_patch(image, label, *arguments)
        arguments = ((4,) * spatial_dims, random_source(seed), 0.7)
        known = sample_patch(image, label.to(torch.uint8), *arguments, foreground=Foreground.of(label))
        assert all(torch.equal(one, other.to(one.dtype)) for one, other in zip(plain, known, strict=True))


def test_any_sequence_can_be_viewed():
    items = [{"image": torch.zeros(1, 4, 4), "label": torch.zeros(4, 4).long()}]
    assert as_cases(items).view(0) is items[0] and as_cases(Subset(items * 2, [1])).view(0) is items[0]


def test_views_do_not_warn(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(open_set(folder))
        list(PatchDataset(open_set(folder), (4, 4, 4)[: open_set(folder).view(0)["label"].ndim], 5, seed=0))
