"""The slices of a 3-D data set as a 2-D one."""

import dataclasses

import nibabel
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_recipes.shared.writing import write_volume
from xlstm_unet_lab.data.augment import PatchDataset
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.data.slices import SliceDataset

SHAPE, SIZES = (7, 6, 5), (1.0, 2.0, 3.0)  # x, y, z


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Two channels; case k has labels in the z slices 1 and 2 only, and k + 5 slices in all."""

    def convert(source, out, track):
        random = np.random.default_rng(0)
        for number in range(6):
            shape = (*SHAPE[:2], SHAPE[2] + number)
            label = np.zeros(shape, np.uint8)
            label[2:4, 1:5, 1:3] = 1
            arrays = [random.normal(size=shape).astype(np.float32) * scale for scale in (1, 50)]
            images = [nibabel.Nifti1Image(array, np.diag([*SIZES, 1.0])) for array in (*arrays, label)]
            write_volume(out, "Tr" if number < 5 else "Ts", f"case_{number}", images[:2], images[2], {0, 1, 2})
        return {}

    recipe = dataclasses.replace(
        get_recipe("hippocampus"),
        name="toy",
        dataset_id=997,
        files=(),
        channel_names=("one", "two"),
        flip_axes=(0, 2),
        convert=convert,
    )
    root = tmp_path_factory.mktemp("volumes")
    prepare(recipe, root, progress=False)
    return load_dataset(recipe, "all", root)


@pytest.mark.parametrize(
    ("axis", "letter", "spacing", "flips", "slices"),
    [
        (0, "z", (2.0, 1.0), (1,), 5 + 6 + 7 + 8 + 9),
        (1, "y", (3.0, 1.0), (0, 1), 5 * 6),
        (2, "x", (3.0, 2.0), (0,), 5 * 7),
    ],
)
def test_every_slice_is_a_case(volumes, axis, letter, spacing, flips, slices):
    dataset = SliceDataset(volumes, axis)
    assert len(dataset) == len(dataset.names) == len(set(dataset.names)) == slices
    assert dataset[0]["label"].ndim == 2 and dataset.facts.flip_axes == flips
    assert dataset.facts.recipe is volumes.recipe and volumes.recipe.spatial_dims == 3
    index = dataset.names.index(f"case_3_{letter}002")
    item = dataset[index]
    whole = volumes.raw(3).take(2, axis + 1)
    assert item["name"] == f"case_3_{letter}002" and item["spacing"] == spacing
    assert np.array_equal(dataset.raw(index), whole)
    np.testing.assert_allclose(item["image"], normalise(whole), atol=1e-5)
    assert torch.equal(item["label"], volumes[3]["label"].select(axis, 2)) and item["label"].dtype == torch.int64
    assert item["image"].is_contiguous() and item["image"].shape == (2, *item["label"].shape)


def test_labelled_slices_only(volumes):
    dataset = SliceDataset(volumes, foreground_only=True)
    assert dataset.names == [f"case_{case}_z00{position}" for case in range(5) for position in (1, 2)]
    assert all(item["label"].any() for item in dataset)
    assert len(SliceDataset(volumes, axis=2, foreground_only=True)) == 5 * 2


def test_flips_of_all_axes_stay_all(volumes):
    volumes = type(volumes)(
        dataclasses.replace(volumes.recipe, flip_axes=None), volumes.folder, volumes.part, volumes.names
    )
    assert SliceDataset(volumes).facts.flip_axes is None


def test_slices_are_trained_on(volumes):
    from xlstm_unet_lab.inference.predictor import Predictor
    from xlstm_unet_lab.training.config import TrainConfig
    from xlstm_unet_lab.training.fit import fit

    dataset = SliceDataset(volumes, foreground_only=True)
    batch = next(iter(DataLoader(PatchDataset(dataset, (8, 8), 4, seed=0), batch_size=4)))
    assert batch["image"].shape == (4, 2, 8, 8)
    model = torch.nn.Conv2d(2, volumes.recipe.num_classes, 1)
    records = list(
        fit(model, dataset, dataset, TrainConfig(patch_size=(8, 8), steps=2, batch_size=2, accelerator="cpu"))
    )
    assert len(records) == 2 and set(records[-1].metrics) >= {"anterior", "posterior", "mean"}
    assert Predictor.known(model, (8, 8)).spacing == (2.0, 1.0)


@pytest.mark.parametrize("axis", [3, -1, "z"])
def test_another_axis_is_refused(volumes, axis):
    with pytest.raises(ValueError, match=r"axis is .*expected a whole number from 0 to 2"):
        SliceDataset(volumes, axis)


def test_a_set_of_pictures_and_one_without_labels_are_refused(volumes):
    with pytest.raises(ValueError, match="is 2-D; slices are cut from the volumes"):
        SliceDataset(SliceDataset(volumes))
    nothing = type(volumes)(volumes.recipe, volumes.folder, volumes.part, [])
    with pytest.raises(ValueError, match="no slice of the 0 cases holds a label above 0"):
        SliceDataset(nothing, foreground_only=True)
