"""A run on the slices of volumes in the plugin: volumes are segmented slice by slice, and explored in one slice."""

import numpy as np
import pytest
import torch
from plain_layer import layer

import xlstm_unet_lab as lab
from data_recipes import phantom_abdomen
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.slices import SliceDataset
from xlstm_unet_lab.inference.load import load_run
from xlstm_unet_lab.inference.mixer_rows import receptive_field
from xlstm_unet_lab.plugin.exploring import explore_layers
from xlstm_unet_lab.plugin.tasks import segment

AXIS, PATCH = 1, (8, 32)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """One step of training on coronal slices."""
    root, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs") / "coronal"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TRAINING": 5, "TEST": 1, "SIZE": (8, 48, 64)}.items():
            patch.setattr(phantom_abdomen, name, value)
        lab.prepare("phantom_abdomen", root, progress=False)
    slices = SliceDataset(lab.load_dataset("phantom_abdomen", "train", root), AXIS)
    facts = {"spatial_dims": 2, "in_channels": 1, "num_classes": slices.facts.recipe.num_classes, "patch_size": PATCH}
    network = lab.build("xlstm_unet_bot", **facts, features=(4, 8), strides=((1, 1), (2, 2)))
    config = lab.TrainConfig(patch_size=PATCH, steps=1, batch_size=2, accelerator="cpu")
    for _ in lab.fit(network, slices, None, config, run_directory=folder):
        pass
    return folder


def test_a_volume_is_segmented_slice_by_slice_under_one_progress_bar(run_directory):
    image, totals = layer((6, 20, 40)), []

    def track(batches):
        for batch in batches:
            totals.append(len(batches))
            yield batch

    ((prediction, keywords, _),) = segment(run_directory, [image], track=track)
    network, slices = load_run(run_directory, "last"), np.moveaxis(image.data, AXIS, 0)
    found = [lab.predict(network, one[None], patch_size=PATCH) for one in slices]
    wanted = np.stack(found, AXIS)
    np.testing.assert_array_equal(prediction, wanted)
    assert totals == [20] * 20 and list(keywords["scale"]) == [1, 1, 1]


def test_the_slice_through_the_pixel_is_explored(run_directory):
    volume = layer((8, 20, 32), scale=np.array([3, 2, 2]), translate=np.array([0, 10, 0]))
    found, words = explore_layers(run_directory, [volume], (4, 17, 30))
    field, decay, weights = found
    assert field[0].shape == (8, 1, 32) and decay[0].shape == weights[0].shape == (2, 4, 4, 1, 16)
    assert tuple(field[1]["scale"]) == (3, 2, 2) and tuple(field[1]["translate"]) == (0, 10 + 2 * 17, 0)
    assert tuple(weights[1]["scale"]) == (1, 1, 6, 2, 4) and weights[1]["axis_labels"][2:] == ("z", "y", "x")
    assert "y fastest" not in words and "x fastest" in words and "4 x 16 tokens" in words
    slice_alone = torch.from_numpy(normalise(volume.data[None, :, 17]))
    np.testing.assert_array_equal(
        field[0][:, 0], receptive_field(load_run(run_directory, "last"), slice_alone, (4, 30))
    )
    with pytest.raises(ValueError, match=r"lies outside the image of size \(8, 20, 32\)"):
        explore_layers(run_directory, [volume], (4, 30))
