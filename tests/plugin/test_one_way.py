"""The same image takes the same way to the network from a file, an array and napari's layers."""

import numpy as np
import pytest
import tifffile
import torch
from plain_layer import layer

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.images import read_label
from xlstm_unet_lab.inference.trained import EIGHT_BITS, Z_SCORE
from xlstm_unet_lab.plugin.tasks import read_image

RANDOM = np.random.default_rng(0)


def network_of(channels, normalisation):
    torch.manual_seed(0)
    network = lab.build(
        "unet", spatial_dims=2, in_channels=channels, num_classes=3, patch_size=(16, 16), features=(4, 8)
    )
    return lab.Predictor(network.eval(), (16, 16), normalisation=normalisation)


def hot(*shape):
    """16 bits, with a pixel so bright that percentiles and extremes scale the rest to other values."""
    picture = RANDOM.integers(400, 800, shape).astype(np.uint16)
    picture[..., 3, 5] = 65535
    return picture


@pytest.mark.parametrize("normalisation", [EIGHT_BITS, Z_SCORE])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_deep_picture(tmp_path, normalisation, channels):
    predictor, picture = network_of(channels, normalisation), hot(channels, 16, 24)
    shown = np.moveaxis(picture, 0, -1) if channels == 3 else picture[0]
    tifffile.imwrite(tmp_path / "a.tif", shown, photometric="rgb" if channels == 3 else "minisblack")
    (path,) = predictor.files(tmp_path / "a.tif", tmp_path / "out")
    from_array, (from_file, _) = predictor(picture), read_label(path)
    from_layer = predictor(read_image(predictor, [layer(data=shown, rgb=channels == 3)]))
    assert len(np.unique(from_array)) > 1
    np.testing.assert_array_equal(from_file, from_array)
    np.testing.assert_array_equal(from_layer, from_array)


def test_channels_in_files_and_layers_of_their_own(tmp_path):
    predictor, parts = network_of(2, EIGHT_BITS), [hot(16, 24), RANDOM.integers(0, 20, (16, 24)).astype(np.uint16)]
    for number, part in enumerate(parts):
        tifffile.imwrite(tmp_path / f"a_{number:04d}.tif", part)
    (path,) = predictor.files(tmp_path, tmp_path / "out")
    from_layers = predictor(read_image(predictor, [layer(data=part) for part in parts]))
    np.testing.assert_array_equal(read_label(path)[0], from_layers)


def test_grey_fills_the_channels_of_a_network_for_colour(tmp_path):
    predictor, picture = network_of(3, EIGHT_BITS), hot(16, 24)
    tifffile.imwrite(tmp_path / "a.tif", picture)
    (path,) = predictor.files(tmp_path / "a.tif", tmp_path / "out")
    from_layer = predictor(read_image(predictor, [layer(data=picture)]))
    np.testing.assert_array_equal(read_label(path)[0], from_layer)
    np.testing.assert_array_equal(predictor(picture[None]), from_layer)
