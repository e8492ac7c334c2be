"""The long-range phantom: only the order of two far marks gives the class away, and no small network can see it."""

import hashlib

import numpy as np
import pytest
import torch
from reach_of_a_unet import build, reach
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from data_recipes import phantom_long_range
from data_recipes.phantom_long_range import ALIGNMENT, clear_rows, draw_layout, paint, scene
from data_recipes.shared.phantom_physics import streams
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.nn.conv import InstanceNorm

SIZES = {2: (384, 32), 3: (24, 160, 24)}
DIGESTS = {  # sha256 of the label of seed 4
    2: "06e2f2d04faf449ec2fa696f0f1e3344860f41bd6a75b8e77eb5014dfe2e01f9",
    3: "93bae1c6caa74b2d38dddb271467d9ed0b3c31795199df99ec298fa8069892b6",
}
LEVELS = {2: (104.2931, 11.9508), 3: (102.8766, 12.7906)}  # mean and deviation of its image
SMALL = (216, 24)  # for the networks here: what holds for its windows holds for larger ones in larger images


@pytest.mark.parametrize("stages", [2, 3])
def test_the_reach_computed_is_the_reach_measured(stages):
    torch.manual_seed(0)
    size = (32 * stages, 4)
    model = build("unet", size, (2,) * stages).double()
    for module in list(model.modules()):  # instance norm, which sees the whole image, is taken out for this
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                setattr(module, name, nn.Identity())
    image = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    logits, farthest = model(image)[0].sum(0)[:, 2], 0
    for row in range(size[0] // 2, size[0] // 2 + 2 ** (stages - 1)):  # the alignment to the coarse grid matters
        (gradient,) = torch.autograd.grad(logits[row], image, retain_graph=True)
        seen = gradient[0, 0].abs().sum(1).nonzero().flatten()
        farthest = max(farthest, *(abs(int(edge) - row) for edge in (seen[0], seen[-1])))
    assert farthest == reach(stages)


def test_no_window_of_a_u_net_of_four_stages_holds_two_things():
    assert (reach(3), reach(4)) == (22, 46)
    assert clear_rows() >= 2 * reach(4) + 4  # the blur reaches two pixels out of everything
    assert clear_rows((240, 24)) >= 2 * reach(3), "the twins below are far enough apart for three stages"


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_seed_gives_one_image(spatial_dims):
    image, label = scene(4, SIZES[spatial_dims])
    assert image.shape == label.shape == SIZES[spatial_dims] and image.dtype == label.dtype == np.uint8
    assert hashlib.sha256(label.tobytes()).hexdigest() == DIGESTS[spatial_dims]
    # The image goes through more arithmetic, whose last digit may differ between machines.
    assert (image.mean(), image.std()) == pytest.approx(LEVELS[spatial_dims], rel=1e-4)
    again, same = scene(4, SIZES[spatial_dims])
    assert np.array_equal(image, again) and np.array_equal(label, same)
    assert not np.array_equal(label > 0, scene(6, SIZES[spatial_dims])[1] > 0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_things_lie_where_they_should(spatial_dims):
    size = SIZES[spatial_dims]
    clear = clear_rows(size)
    for seed in range(12):
        layout = draw_layout(streams(seed)[0], size, bright_first=seed % 2 == 0)
        image, label = paint(layout, size)
        half = size[-2] // 2
        classes = [np.unique(part[part > 0]).tolist() for part in (label[..., :half, :], label[..., half:, :])]
        assert classes == ([[1], [2]] if seed % 2 == 0 else [[2], [1]]), "each disc has the class of the nearer mark"
        others = tuple(axis for axis in range(spatial_dims) if axis != spatial_dims - 2)
        busy = np.flatnonzero((image != phantom_long_range.GROUND).any(axis=others))
        gaps = np.diff([*busy, size[-2]]) - 1  # clear rows after each one that holds something
        wide = gaps[gaps >= clear]
        assert len(wide) == 3 and gaps[gaps < clear].max(initial=0) < phantom_long_range.DISC_BAND
        assert abs(layout.bright[-2] - layout.dark[-2]) % ALIGNMENT == 0


def twins(size: tuple[int, ...], seed: int) -> list[tuple[torch.Tensor, np.ndarray]]:
    """The same discs with the marks in one order and in the other, on even ground."""
    layout = draw_layout(streams(seed)[0], size, bright_first=True)
    bright, dark = layout.bright.copy(), layout.dark.copy()
    bright[-2], dark[-2] = dark[-2], bright[-2]
    pair = [paint(layout, size), paint(layout._replace(bright=bright, dark=dark), size)]
    return [(torch.from_numpy(image / 100)[None, None], label) for image, label in pair]


def test_a_small_u_net_answers_alike_for_both_orders_and_a_mixer_does_not():
    """Weights do not matter: whatever a U-Net of this reach has learnt, it cannot tell the twins apart."""
    size = (240, 24)
    (first, label), (second, other) = twins(size, 3)
    assert np.array_equal(label > 0, other > 0) and (label != other)[label > 0].all()
    discs = torch.from_numpy(label > 0)
    for name, differs in (("unet", False), ("xlstm_unet_enc", True)):
        torch.manual_seed(1)
        model = build(name, size, (4, 4, 8)).double()
        with torch.no_grad():
            change = (model(first) - model(second))[0][:, discs].abs().max() / model(first).abs().max()
        assert (change > 1e-4) if differs else (change < 1e-9), f"{name}: {change}"


def statistics(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What can be pooled from images (n, 1, y, x) without position: moments, histogram, filters and their moments."""
    histogram = torch.stack([image.histc(32, 0, 255) for image in images])
    pooled, x = [], (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True)
    for in_channels in (1, 16, 16):
        x = F.relu(F.conv2d(x, torch.randn(16, in_channels, 5, 5) / (5 * in_channels**0.5), padding=2))
        pooled += [x.mean((2, 3)), x.std((2, 3)), x.amax((2, 3))]
        x = F.avg_pool2d(F.instance_norm(x), 2)
    moments = torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)
    return {"moments": moments, "histogram": histogram, "filters": torch.cat(pooled, 1)}


def accuracy(features: torch.Tensor, classes: torch.Tensor, folds: int = 5) -> float:
    """Of ridge regression, cross-validated."""
    features = ((features - features.mean(0)) / features.std(0).clamp_min(1e-6)).double()
    target, right = 2.0 * classes.double() - 1, []
    for fold in range(folds):
        held = torch.arange(len(classes)) // 2 % folds == fold  # pairs: as many of each class
        x, y = features[~held], target[~held]
        weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        right.append((features[held] @ weights > 0) == classes[held])
    return torch.cat(right).double().mean().item()


def test_no_pooled_statistic_gives_the_class_away():
    pairs = [scene(seed, SMALL) for seed in range(240)]
    images = torch.from_numpy(np.stack([image for image, _ in pairs]))[:, None].float()
    classes = torch.tensor([label[: SMALL[0] // 2].max() == 1 for _, label in pairs])
    assert classes.double().mean() == 0.5
    found = statistics(images)
    for name, features in found.items():
        assert accuracy(features, classes) == pytest.approx(0.5, abs=0.1), name
    # The same features and classifier see it at once in half an image: one mark is left there.
    for name, features in statistics(images[:, :, : SMALL[0] // 2]).items():
        least = 0.65 if name == "moments" else 0.9  # moments change with each image's exposure too
        assert accuracy(features, classes) > least, name


def test_the_cue_read_off_tells_the_class():
    for seed in range(40):
        image, label = scene(seed)
        light = ndimage.gaussian_filter(image * 1.0, 3)
        light[: phantom_long_range.DISC_BAND] = light[-phantom_long_range.DISC_BAND :] = np.median(light)
        bright, dark = (np.unravel_index(found, light.shape)[0] for found in (light.argmax(), light.argmin()))
        for row, value in zip(np.nonzero(label)[0], label[label > 0], strict=True):
            assert value == (1 if abs(bright - row) < abs(dark - row) else 2)


def test_prepared_by_the_data_set_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_long_range, "TRAINING", 10)
    monkeypatch.setattr(phantom_long_range, "TEST", 4)
    train, val, test = (load_dataset("phantom_long_range", split, root=tmp_path) for split in ("train", "val", "test"))
    for dataset in (train, val, test):
        assert [case["label"][:192].max().item() for case in dataset].count(1) * 2 == len(dataset), "balanced"
    image, label = scene(phantom_long_range.SEED)
    whole = load_dataset("phantom_long_range", "all", root=tmp_path)
    assert np.array_equal(whole.raw(0)[0], image) and np.array_equal(whole[0]["label"].numpy(), label)
    with pytest.raises(ValueError, match="reads nothing; got source"):
        phantom_long_range.convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("arguments", "message"), [((-1,), "seed is -1"), ((0, (64, 64)), "y at least 128")])
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        scene(*arguments)
