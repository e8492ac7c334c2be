"""What a predictor knows is held together, and against its network, where it is made and where it is read."""

import itertools
from functools import partial

import numpy as np
import pytest
from tqdm import tqdm

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.models.weights import load_tensors, save_tensors

CLASSES = {"background": 0, "box": 1, "rim": 2}
FACTS = {"targets": Targets.classes(CLASSES), "channel_names": ("T1", "T2"), "colours": {1: "#0072B2"}}
FACTS |= {"label_numbers": {"box": 7, "rim": 9}, "spacing": (1.0, 2.0)}
NETWORK = lab.build("unet", spatial_dims=2, in_channels=2, num_classes=3, patch_size=(8, 8), features=(2, 4))


def classes(*values, names="abcd"):
    return {"names": list(names[: len(values)]), "values": [[value] for value in values], "painted": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [32_000, 32_000]}, "patch_size is .* at most 134,217,728 voxels"),
        (
            {"patch_size": [8, 8, 8], "spacing": None, "mirror_axes": None},
            "spatial_dims=2, its data need spatial_dims=3",
        ),
        ({"channel_names": ["T1"]}, "in_channels=2, its data need in_channels=1"),
        ({"channel_names": ["T1", "T2", "T3"]}, "in_channels=2, its data need in_channels=3"),
        ({"targets": classes(0, 1)}, "num_classes=3, its data need num_classes=2"),
        ({"targets": classes(0, 1, 2, 3)}, "num_classes=3, its data need num_classes=4"),
        ({"targets": classes(0, 1, 1)}, "expected one of its own for each class"),
        ({"targets": classes(0, 1, 2, names="aab")}, "expected another each"),
        ({"targets": classes(0, 1, 2) | {"values": [[0], [1, 2], [3]]}}, "one of its own for each class"),
        ({"colours": {"3": "#0072B2"}}, r"colours has the labels \[3\], and targets the labels \[1, 2\]"),
        ({"label_numbers": {"box": 7}}, "a number above 0 of its own for each of the labels 1 to 2"),
        ({"label_numbers": {"box": 7, "rim": 7}}, "a number above 0 of its own"),
        ({"label_numbers": {"box": 7, "rim": 0}}, "a number above 0 of its own"),
        ({"label_numbers": {"a": 7, "b": 8, "c": 9}}, "a number above 0 of its own"),
        ({"mirror_axes": [2]}, "mirror_axes"),
        ({"slice_axis": 3}, "slice_axis is 3"),
        ({"spacing": [1.0]}, "spacing is .*2 finite numbers"),
    ],
)
def test_facts_that_contradict_each_other_are_refused_with_the_name_of_the_file(tmp_path, change, message):
    path = lab.Predictor(NETWORK, (8, 8), **FACTS).save(tmp_path / "odd.safetensors")
    tensors, header = load_tensors(path)
    header["facts"]["trained_on"] |= change
    save_tensors(tensors, path, header)
    with pytest.raises(ValueError, match=message) as error:
        lab.load_predictor(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("facts", ["text", [], 3, None, {"targets": "text"}])
def test_facts_that_are_none_are_refused(tmp_path, facts):
    path = lab.Predictor(NETWORK, (8, 8)).save(tmp_path / "odd.safetensors")
    tensors, header = load_tensors(path)
    header["facts"]["trained_on"] = facts
    save_tensors(tensors, path, header)
    with pytest.raises(ValueError, match=r"odd\.safetensors"):
        lab.load_predictor(path)


def test_facts_that_fit_are_read_as_they_were(tmp_path):
    predictor = lab.Predictor(NETWORK, (8, 8), **FACTS)
    again = lab.load_predictor(predictor.save(tmp_path / "whole.safetensors"))
    assert again.to_json() == predictor.to_json()
    labels = predictor(np.random.default_rng(0).normal(size=(2, 9, 9)))
    assert set(np.unique(predictor.numbered(labels))) <= {0, 7, 9}


@pytest.mark.parametrize(
    "track",
    [
        *(None, 3, "bar", len, lambda windows: None, lambda windows: iter(()), lambda all: all[1:]),
        *(reversed, enumerate, itertools.cycle, lambda windows: [1], lambda windows: range(10**9)),
        *(lambda windows: [*windows, windows[0]], lambda windows: windows[:1] * len(windows)),
    ],
)
def test_what_is_no_progress_bar_is_refused(track):
    with pytest.raises((TypeError, ValueError), match="track"):
        lab.Predictor(NETWORK, (8, 8))(np.zeros((2, 20, 20)), track=track)


@pytest.mark.parametrize("track", [iter, list, tuple, partial(tqdm, disable=True)])
def test_a_progress_bar_changes_nothing(track):
    predictor, image = lab.Predictor(NETWORK, (8, 8)), np.random.default_rng(0).normal(size=(2, 20, 20))
    assert np.array_equal(predictor(image, track=track), predictor(image))
