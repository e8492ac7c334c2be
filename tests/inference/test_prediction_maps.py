"""What is written beside labels: objects, probability, entropy, disagreement; on the input's grid, and whole."""

import os
import signal
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from imageio.v3 import imread, imwrite
from stubs import predictor
from torch import nn

from data_recipes.shared.instances import interior_and_boundary
from xlstm_unet_lab.data.images import read_case
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.files import predict_files
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.uncertainty import entropy, mirrored_disagreement, predicted_probability

pytestmark = pytest.mark.usefixtures("one_thread")
INTERIOR_AND_BOUNDARY = Targets.classes(LABELS)
MAPS = ("probability", "entropy", "disagreement")


def by_brightness(patch_size=(20, 40), targets=INTERIOR_AND_BOUNDARY):
    spacing = (2.0, 1.0, 1.0)[3 - len(patch_size) :]
    return Predictor(ByBrightness(), patch_size, spacing, targets)


class ByBrightness(nn.Module):
    """Background, interior or boundary by the brightness of the pixel: dark, bright, between. It is sure of it."""

    def forward(self, windows):
        grey = windows[:, :1]
        middle = (windows.amax() + windows.amin()) / 2
        return 40 * torch.cat([grey < middle - 0.5, grey > middle + 0.5, (grey - middle).abs() <= 0.5], 1).float()


class Unsure(nn.Module):
    """A convolution that looks to one side, so that mirror images disagree; its volumes have a spacing."""

    def __init__(self, spatial_dims):
        super().__init__()
        torch.manual_seed(0)
        self.layer = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2](1, 3, 3, padding=1)
        self.spacing = (2.0, 1.0, 1.0)[3 - spatial_dims :]

    def forward(self, windows):
        return self.layer(windows)


def objects(count=3):
    """Boxes that touch, in a row, each with its number."""
    numbers = np.zeros((20, 4 + 12 * count), np.int32)
    for number in range(count):
        numbers[4:16, 2 + 12 * number : 14 + 12 * number] = number + 1
    return numbers


def brightness(numbers):
    return np.array([0, 200, 100], np.uint8)[interior_and_boundary(numbers)]


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_objects_are_numbered_beside_the_labels(tmp_path, ending):
    imwrite(tmp_path / f"cells{ending}", brightness(objects()))
    (path,) = predict_files(by_brightness(), tmp_path, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"cells{ending}", "instances"]
    (numbered,) = (tmp_path / "out" / "instances").iterdir()
    read = imread if ending == ".png" else tifffile.imread
    label, found = read(path), read(numbered)
    assert numbered.name == path.name and found.dtype == np.uint16 and label.dtype == np.uint8
    assert np.array_equal(label, interior_and_boundary(objects()))
    assert np.array_equal(found, instances_from_classes(label)) and found.max() == 3


def test_objects_of_a_volume_lie_on_its_grid(tmp_path):
    volume = np.repeat(brightness(objects())[..., None], 6, axis=2)
    affine = np.diag([-1.0, 1, 2, 1])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "a.nii.gz")
    (path,) = predict_files(by_brightness((6, 40, 20)), tmp_path, tmp_path / "out")
    found = nibabel.load(tmp_path / "out" / "instances" / "a.nii.gz")
    assert found.get_data_dtype() == np.uint16 and np.array_equal(found.affine, nibabel.load(path).affine)
    assert np.unique(found.dataobj).tolist() == [0, 1, 2, 3] and found.dataobj[3, 1, 3] == 0 != found.dataobj[8, 8, 3]


def test_more_objects_than_16_bits_hold(tmp_path, monkeypatch):
    many = np.arange(20 * 40, dtype=np.int32).reshape(20, 40) + 70_000
    monkeypatch.setattr("xlstm_unet_lab.inference.files.instances_from_classes", lambda label: many)
    for name in ("a.png", "b.tif"):
        imwrite(tmp_path / name, brightness(objects()))
    list(predict_files(by_brightness(), tmp_path / "b.tif", tmp_path / "out"))
    found = tifffile.imread(tmp_path / "out" / "instances" / "b.tif")
    assert found.dtype == np.uint32 and np.array_equal(found, many)
    with pytest.raises(OSError, match=r"a\.png: numbers up to 70799 do not fit into a PNG file.*give a TIFF"):
        list(predict_files(by_brightness(), tmp_path / "a.png", tmp_path / "out"))
    assert not (tmp_path / "out" / "a.png").exists(), "without its instances a case is not done"


def test_other_networks_number_nothing(tmp_path):
    imwrite(tmp_path / "a.png", brightness(objects()))
    for targets in (None, Targets.classes({"background": 0, "liver": 1, "spleen": 2})):
        list(predict_files(by_brightness(targets=targets), tmp_path / "a.png", tmp_path / "out"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.png"]


def noise(*size):
    return np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)


@pytest.mark.parametrize("mirror", [False, True])
def test_uncertainty_of_pictures(tmp_path, mirror):
    unsure, options = predictor(Unsure(2), (16, 12)), {"mirror": mirror}
    imwrite(tmp_path / "a.png", noise(16, 12))
    (path,) = predict_files(unsure, tmp_path, tmp_path / "out", uncertainty=(1,), **options)
    image = noise(1, 16, 12)
    assert np.array_equal(imread(path), unsure(image, **options))
    maps = {what: tifffile.imread(tmp_path / "out" / what / "a.tif") for what in MAPS}
    probabilities = unsure.probabilities(image, **options)
    np.testing.assert_allclose(maps["probability"], probabilities.max(0))
    np.testing.assert_allclose(maps["entropy"], entropy(probabilities))
    wanted = mirrored_disagreement(unsure, image, axes=(1,))
    np.testing.assert_allclose(maps["disagreement"], wanted)
    assert all(one.dtype == np.float32 and one.max() > 0.01 for one in maps.values())


@pytest.mark.parametrize("slice_axis", [None, 0, 2])
def test_uncertainty_of_volumes(tmp_path, slice_axis):
    """Of a network for volumes, and of one for slices; turned, and resampled."""
    volume = nibabel.Nifti1Image(noise(7, 8, 9), np.diag([1.0, 1.0, 3.0, 1.0]))
    stored = volume.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nibabel.save(stored, tmp_path / "a.nii")
    patch = (6, 6, 6) if slice_axis is None else (6, 6)
    unsure = predictor(Unsure(len(patch)), patch, slice_axis=slice_axis)
    (path,) = predict_files(unsure, tmp_path / "a.nii", tmp_path / "out", uncertainty=True)
    case = read_case(tmp_path / "a.nii")
    probabilities = unsure.probabilities(case.image, case.spacing)
    wanted = {
        "": unsure(case.image, case.spacing),
        "probability": probabilities.max(0),
        "entropy": entropy(probabilities),
        "disagreement": mirrored_disagreement(unsure, case.image, case.spacing),
    }
    for what, array in wanted.items():
        file = tmp_path / "out" / what / "a.nii"
        read = nibabel.load(file)
        assert read.shape == stored.shape and np.allclose(read.affine, stored.affine)
        assert read.get_data_dtype() == (np.float32 if what else np.uint8)
        np.testing.assert_allclose(read_case(file).image[0], array, atol=1e-6)
    assert path == tmp_path / "out" / "a.nii" and len(np.unique(wanted[""])) > 1


def test_probability_of_regions_is_that_of_the_least_certain_answer():
    shares = np.array([[0.9, 0.2, 0.5], [0.6, 0.1, 1.0]], np.float32)[:, None]
    np.testing.assert_allclose(predicted_probability(shares, exclusive=False), [[0.6, 0.8, 0.5]])
    with pytest.raises(ValueError, match="do not sum to 1"):
        predicted_probability(shares)


def test_where_no_mirror_image_is_likely_there_is_no_disagreement(tmp_path):
    imwrite(tmp_path / "a.png", noise(16, 12))
    list(predict_files(predictor(Unsure(2), (16, 12), mirror_axes=()), tmp_path, tmp_path / "out", uncertainty=True))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "entropy", "probability"]


def test_a_network_for_slices_wants_volumes_and_no_input_is_replaced(tmp_path):
    (tmp_path / "entropy").mkdir()
    imwrite(tmp_path / "entropy" / "a.png", noise(16, 12))
    with pytest.raises(OSError, match=r"a\.png has 2 spatial dimensions; 3 are expected"):
        list(predict_files(predictor(Unsure(2), (6, 6), slice_axis=0), tmp_path / "entropy", tmp_path / "out"))
    with pytest.raises(ValueError, match=r"entropy.a\.png is an input and would be replaced"):
        predict_files(predictor(Unsure(2), (6, 6)), tmp_path / "entropy", tmp_path)


KILLED = """
import os, signal, sys
from torch import nn
from xlstm_unet_lab.inference.files import predict_files
from xlstm_unet_lab.inference.predictor import Predictor

left, fsync = iter(range(6)), os.fsync

def deadly(file):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = deadly
list(predict_files(Predictor(nn.Conv2d(1, 2, 1), (8, 8)), sys.argv[1], sys.argv[2], uncertainty=(0,)))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_killed_in_the_middle_of_a_file_nothing_looks_whole_that_is_not(tmp_path):
    for name in "abc":
        imwrite(tmp_path / f"{name}.png", noise(8, 8))
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, out], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {file.relative_to(out).as_posix() for file in out.rglob("*.[pt]*") if not file.name.startswith(".")}
    maps = {f"{what}/a.tif" for what in MAPS} | {f"{what}/b.tif" for what in MAPS[:2]}
    assert kept == {"a.png", *maps}, "the seventh file is not there"
    assert all(read_case(out / name).image.shape == (1, 8, 8) for name in kept)
    again = list(predict_files(predictor(Unsure(2), (8, 8)), tmp_path, out))
    assert [path.name for path in again] == ["a.png", "b.png", "c.png"]
