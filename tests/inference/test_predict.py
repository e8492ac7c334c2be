"""Whole images from windows: equal to the plain network where they must be, any size, and the model left as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from whole_image import sliding_window

from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.inference.predict import predict, predict_probabilities
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.sliding_window import Windows, sliding_boxes

WHOLE = {2: (13, 18), 3: (9, 11, 7)}


pytestmark = pytest.mark.usefixtures("one_thread")


def pointwise(spatial_dims, channels=2, num_classes=3):
    """A network whose answer at a position depends on that position only, so that windows cannot matter."""
    torch.manual_seed(0)
    return (nn.Conv2d, nn.Conv3d)[spatial_dims - 2](channels, num_classes, 1)


def picture(spatial_dims, size=None, channels=2, dtype=np.float32):
    random = np.random.default_rng(0)
    return (100 * random.random((channels, *(size or WHOLE[spatial_dims])))).astype(dtype)


class Watching(nn.Module):
    """Foreground where the one channel is above its mean; remembers the size of the windows it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, windows):
        self.seen.append(tuple(windows.shape[2:]))
        return torch.cat([-windows, windows], dim=1)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_windows_of_a_pointwise_network_change_nothing(spatial_dims, overlap):
    model, image = pointwise(spatial_dims), picture(spatial_dims)
    probabilities = predict_probabilities(model, image, patch_size=(6,) * spatial_dims, overlap=overlap)
    with torch.no_grad():
        wanted = model(torch.from_numpy(normalise(image))[None])[0].softmax(0).numpy()
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    assert probabilities.dtype == np.float32
    labels = predict(model, image, patch_size=(6,) * spatial_dims, overlap=overlap)
    assert labels.dtype == np.uint8 and (labels == wanted.argmax(0)).mean() > 0.99


@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_any_size_comes_back(size, patch):
    spatial_dims = len(size)
    probabilities = predict_probabilities(
        pointwise(spatial_dims), picture(spatial_dims, size), patch_size=(patch,) * spatial_dims
    )
    assert probabilities.shape == (3, *size)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_windows_weigh_most_in_their_middle():
    class Centre(nn.Module):  # answers 1 in the middle of its window and 0 at the rim
        def forward(self, windows):
            answer = torch.zeros_like(windows)
            answer[..., 2:-2, 2:-2] = 1
            return answer

    logits = sliding_window(Centre(), torch.zeros(1, 8, 12), patch_size=(8, 8))
    assert logits.shape == (1, 8, 12)
    assert 0.5 < logits[0, 4, 6].item() <= 1  # the rim of one window lies under the middle of another


def test_float64_networks_stay_float64():
    image = torch.from_numpy(picture(2)).double()
    model = pointwise(2).double()
    logits = sliding_window(model, image, patch_size=(5, 5))
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, model(image[None])[0].detach(), rtol=0, atol=1e-10)


def test_first_of_several_outputs_counts():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = pointwise(2)

        def forward(self, image):
            logits = self.head(image)
            return [logits, logits[..., ::2, ::2]]

    model = Deep()
    options = {"patch_size": (8, 8)}
    assert (predict(model, picture(2), **options) == predict(model.head, picture(2), **options)).all()


def test_evaluation_mode_inside_and_the_old_modes_after():
    model = nn.Sequential(pointwise(2), nn.Dropout(0.9), nn.BatchNorm2d(3)).train()
    model[2].eval()
    first, again = (predict_probabilities(model, picture(2), patch_size=(8, 8)) for _ in range(2))
    assert (first == again).all()
    assert model.training and model[1].training and not model[2].training
    model(torch.zeros(1, 2, 8, 8)).sum().backward()  # nothing predicted earlier gets in the way of training

    class Failing(nn.Dropout):
        def forward(self, image):
            raise RuntimeError("out of memory")

    model[1] = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(model, picture(2), patch_size=(8, 8))
    assert model.training and not model[2].training


@pytest.mark.parametrize(("num_classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_label_dtype(num_classes, dtype):
    labels = predict(pointwise(2, num_classes=num_classes), picture(2), patch_size=(8, 8))
    assert labels.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float64])
def test_dtype_scale_and_memory_order_of_the_image_do_not_matter(dtype):
    image = picture(2).round()
    wanted = predict_probabilities(pointwise(2), image, patch_size=(32, 32))
    turned = (2 * image + 5).astype(dtype)[:, ::-1]
    got = predict_probabilities(pointwise(2), turned, patch_size=(32, 32))
    np.testing.assert_allclose(got[:, ::-1], wanted, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_spacing_leads_to_the_training_grid_and_back(spatial_dims):
    model = Watching()
    image = np.zeros((1, *(16,) * spatial_dims))
    image[(0, *[slice(4, 12)] * spatial_dims)] = 1
    labels = Predictor(model, (8,) * spatial_dims, (2.0,) * spatial_dims)(image, (1.0,) * spatial_dims)
    assert model.seen == [(8,) * spatial_dims]  # one window covers an image of half the size
    assert dice(labels, image[0]) > 0.9


@pytest.mark.parametrize(
    ("spacing", "size"), [((1.0, 2.0), (6, 24)), ((2.01, 1.0), (12, 12)), ((2.0, 2.01), (12, 24)), (None, (12, 24))]
)
def test_the_network_sees_the_training_spacing(spacing, size):
    model = Watching()
    labels = Predictor(model, size, (2.0, 2.0))(picture(2, (12, 24), channels=1), spacing)
    assert model.seen == [size], "one window of that size covers the resampled image"
    assert labels.shape == (12, 24)


def test_spacing_that_cannot_be_used_is_said():
    with pytest.warns(UserWarning, match=r"spacing=\(1.0, 1.0\) was not used.* trained at is not known"):
        labels = predict(pointwise(2), picture(2), patch_size=(8, 8), spacing=(1.0, 1.0))
    assert labels.shape == WHOLE[2]


@pytest.mark.parametrize("size", [(16, 20), (5, 7), (23, 3)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_probabilities_come_back_to_the_grid_slab_by_slab_as_a_whole(spatial_dims, size):
    size = (*size, 6)[:spatial_dims]
    model, image = pointwise(spatial_dims), picture(spatial_dims, (11, 9, 8)[:spatial_dims])
    spacing = tuple(wanted / own for wanted, own in zip(size, image.shape[1:], strict=True))
    seen = F.interpolate(torch.from_numpy(image)[None], size=size, mode=("bilinear", "trilinear")[spatial_dims - 2])
    with torch.no_grad():
        inside = model(torch.from_numpy(normalise(seen[0].numpy()))[None]).softmax(1)
    wanted = F.interpolate(inside, size=image.shape[1:], mode=("bilinear", "trilinear")[spatial_dims - 2])[0]
    got = Predictor(model, (4,) * spatial_dims, (1.0,) * spatial_dims).probabilities(image, spacing)
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("mirror", [True, (0,), (1, 0)])
def test_mirroring_averages_probabilities(mirror, regions):
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=1)  # looks around, so that mirroring matters
    targets = Targets(("a", "b", "c"), ((1, 2, 3), (2, 3), (3,)), (1, 2, 3)) if regions else None
    predictor, image = Predictor(model, (8, 10), targets=targets), picture(2, (8, 10))
    axes = [(), (1,), (2,), (1, 2)] if mirror != (0,) else [(), (1,)]
    turned = [predictor.probabilities(np.flip(image, axis)) for axis in axes]
    wanted = np.mean([np.flip(one, axis) for one, axis in zip(turned, axes, strict=True)], axis=0)
    got = predictor.probabilities(image, mirror=mirror)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    labels = predictor(image, mirror=mirror)
    painted = np.where(wanted[2] > 0.5, 3, np.where(wanted[1] > 0.5, 2, wanted[0] > 0.5))
    sure = (np.abs(wanted - 0.5) > 1e-4).all(0)  # elsewhere rounding may decide
    assert len(np.unique(labels)) > 1 and sure.mean() > 0.95
    assert (labels == (painted if regions else wanted.argmax(0)))[sure].all()


def test_regions_are_painted_over_one_another():
    model = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        model.weight[:], model.bias[:] = torch.tensor([1.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([0.5, -0.5])
    predictor = Predictor(model, (4, 4), targets=Targets(("whole", "core"), ((1, 4), (4,)), (1, 4)))
    image = np.linspace(-1, 1, 16).reshape(1, 4, 4)
    inside = normalise(image)[0]
    labels = predictor(image)
    assert labels.dtype == np.uint8
    assert (labels == np.where(inside > 0.5, 4, np.where(inside > -0.5, 1, 0))).all()
    probabilities = predictor.probabilities(image)
    assert probabilities.shape == (2, 4, 4) and probabilities.sum(0).max() > 1


def test_label_values_need_not_be_channel_numbers():
    model = pointwise(2)
    plain = predict(model, picture(2), patch_size=(8, 8))
    targets = Targets.classes({"background": 0, "liver": 6, "large": 300})
    labels = Predictor(model, (8, 8), targets=targets)(picture(2))
    assert labels.dtype == np.uint16 and (labels == np.array([0, 6, 300])[plain]).all()


def test_targets_of_another_number_are_refused():
    targets = Targets.classes({"background": 0, "liver": 1})
    with pytest.raises(ValueError, match=r"name 2 channels \('background', 'liver'\), the model gives 3"):
        Predictor(pointwise(2), (8, 8), targets=targets)(picture(2))


class Travelling(nn.Module):
    """Remembers on which device it was asked; answers on the CPU, for nothing comes back from PyTorch's "meta"."""

    def __init__(self):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.zeros(1)), set()

    def forward(self, windows):
        self.asked.add((windows.device.type, self.weight.device.type))
        return torch.zeros(len(windows), 3, *windows.shape[2:])

    def to(self, device):
        self.moved = device
        return self


def test_windows_travel_to_where_the_model_is():
    model, image = Travelling(), torch.from_numpy(picture(2))
    for device in ("cpu", "meta"):
        model.weight = nn.Parameter(model.weight.to(device))
        model.asked.clear()
        boxes = [*sliding_boxes(model, image, (8, 8), Windows(), False)]
        filled = sum(values[0].numel() for _, values in boxes)
        assert model.asked == {(device, device)} and filled == np.prod(WHOLE[2])


def test_the_model_moves_to_the_device_and_stays():
    model = Travelling()
    assert predict(model, picture(2), patch_size=(8, 8), device="cpu").shape == WHOLE[2]
    assert str(model.moved) == "cpu"
    del model.moved
    predict(model, picture(2), patch_size=(8, 8))
    assert not hasattr(model, "moved"), "without a device it stays where it is"


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "meta:0", "vulkan", "cuda:77", 3])
def test_a_device_that_holds_no_numbers_is_refused_and_the_model_left_alone(device):
    model = Travelling()
    for method in (predict, predict_probabilities):
        with pytest.raises(ValueError, match=r"device is .*, which PyTorch does not find here: there is .*cpu"):
            method(model, picture(2), patch_size=(8, 8), device=device)
    assert not hasattr(model, "moved") and not model.weight.is_meta


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_model_without_numbers_is_refused(device):
    model = nn.Sequential(pointwise(2), nn.Conv2d(3, 3, 1, device="meta"))
    with pytest.raises(ValueError, match=r'of model 2 weights, such as 1\.weight, are on the device "meta".*to_empty'):
        predict(model, picture(2), patch_size=(8, 8), device=device)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_for_images_sees_a_volume_slice_by_slice(axis):
    volume, spacing = picture(3), (6.0, 2.0, 3.0)  # in (z, y, x)
    of_volumes = Predictor(pointwise(2), (6, 6), (3.0, 1.0), slice_axis=axis)
    of_images = Predictor(pointwise(2), (6, 6), (3.0, 1.0))
    tracked, left = [], tuple(np.delete(spacing, axis).tolist())

    def track(slices):
        tracked.append(len(slices))
        return slices

    for method in ("__call__", "probabilities"):
        whole = getattr(of_volumes, method)(volume, spacing, track=track, overlap=0.25)
        for place in (0, WHOLE[3][axis] - 1):
            alone = getattr(of_images, method)(volume.take(place, axis + 1), left, overlap=0.25)
            assert whole.shape[-3:] == WHOLE[3] and whole.dtype == alone.dtype
            assert np.array_equal(whole.take(place, axis - 3), alone)
    assert tracked == [WHOLE[3][axis]] * 2, "one progress bar for all slices"
    assert np.array_equal(of_volumes(volume[:, 0]), of_images(volume[:, 0])), "a slice is an image"


def test_slices_are_cut_from_volumes_only():
    for axis, patch in ((3, (8, 8)), (0, (8, 8, 8))):
        with pytest.raises(
            ValueError, match=rf"slice_axis is {axis} with patch_size=\(8, 8.*slices are cut across 0, 1 or 2"
        ):
            Predictor(pointwise(2), patch, slice_axis=axis)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (picture(2)[0], {}, r"image has shape \(13, 18\).*image\[None\]"),
        (picture(2)[None], {}, r"image\[0\] drops a batch axis"),
        (picture(2), {"patch_size": (8, 0)}, r"patch_size is \(8, 0\)"),
        (picture(2), {"overlap": 1.0}, "overlap is 1.0"),
        (picture(2), {"batch_size": 0}, "batch_size is 0"),
        (picture(2), {"mirror": (0, 2)}, r"mirror=\(0, 2\) must be .* from 0 to 1"),
        (picture(2), {"mirror": (1, 1)}, "different axes"),
        (picture(2), {"spacing": (1.0,)}, "expected 2 finite numbers above 0"),
        (picture(2), {"spacing": (1.0, -1.0)}, "above 0"),
        (np.full((2, 4, 4), np.nan), {}, "NaN or infinite"),
    ],
)
def test_bad_input(image, options, message):
    with pytest.raises(ValueError, match=message):
        predict(pointwise(2), image, **({"patch_size": (8, 8)} | options))


def test_channels_are_compared_with_the_configuration():
    model = pointwise(2)
    model.config = type("Config", (), {"in_channels": 2})
    with pytest.raises(ValueError, match="built with in_channels=2, the image has in_channels=1"):
        predict(model, picture(2, channels=1), patch_size=(8, 8))
