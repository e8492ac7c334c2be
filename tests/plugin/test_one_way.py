"""The same image takes the same way to the network from a file, an array and napari's layers."""

import numpy as np
import pytest
import tifffile
import torch
from plain_layer import layer

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.images import read_label
from xlstm_unet_lab.inference.trained import EIGHT_BITS, Z_SCORE
from xlstm_unet_lab.plugin.tasks import compare, read_image

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


def kinds_of_layers():
    from napari.layers import Labels, Points, Shapes, Vectors

    numbers = np.zeros((16, 24), np.uint8)
    corners = np.array([[0, 0], [8, 0], [8, 8]])
    return {
        "labels": Labels(numbers),
        "points": Points(corners),
        "shapes": Shapes([corners], shape_type="polygon"),
        "vectors": Vectors(np.zeros((3, 2, 2))),
    }


@pytest.mark.parametrize("kind", ["labels", "points", "shapes", "vectors"])
def test_a_layer_that_is_no_image_is_refused_in_words(kind):
    with pytest.raises((ValueError, TypeError), match=r"layer '.*' is of the kind"):
        read_image(network_of(1, EIGHT_BITS), [kinds_of_layers()[kind]])


@pytest.mark.parametrize("kind", ["points", "shapes", "vectors"])
def test_a_layer_that_holds_no_labels_is_not_compared(kind):
    layers = kinds_of_layers()
    for truth, found in ((layers["labels"], layers[kind]), (layers[kind], layers["labels"])):
        with pytest.raises(ValueError, match=r"is of the kind .* choose one of the kind Labels"):
            compare(truth, [found])


def test_soft_edges_in_a_layer_are_not_compared():
    from napari.layers import Labels

    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    soft = mask.copy()
    soft[7, 8:24:3], soft[24, 9:24:3], soft[8, 9:24:3], soft[23, 9:24:4] = 1, 2, 254, 253
    with pytest.raises(ValueError, match="layer 'soft' holds 5 numbers beside 0, of which 4 lie on edges only"):
        compare(Labels(mask, name="truth"), [Labels(soft, name="soft")])


def test_a_picture_of_one_bit_is_read_as_from_a_file(tmp_path):
    predictor, picture = network_of(1, EIGHT_BITS), RANDOM.random((16, 24)) > 0.5
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="minisblack")
    (path,) = predictor.files(tmp_path / "a.tif", tmp_path / "out")
    np.testing.assert_array_equal(predictor(read_image(predictor, [layer(data=picture)])), read_label(path)[0])
