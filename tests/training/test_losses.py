"""The loss against its formula, its behaviour at the ends, and what it refuses."""

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch.nn import functional as F

from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.training.losses import deep_supervision_loss, resized_label, segmentation_loss

SIZES = {2: (6, 5), 3: (4, 6, 5)}


def example(spatial_dims, num_classes=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    size = SIZES[spatial_dims]
    logits = torch.randn((2, num_classes, *size), generator=generator, dtype=dtype)
    label = torch.randint(num_classes, (2, *size), generator=generator)
    return logits, label


def written_out(logits, label):
    """Dice of each foreground class over the whole batch (smoothed by 1e-5), plus cross-entropy."""
    probabilities = logits.softmax(1)
    terms = []
    for value in range(1, logits.shape[1]):
        p, t = probabilities[:, value], (label == value).double()
        terms.append(1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
    chosen = probabilities.gather(1, label[:, None]).log()
    return sum(terms) / len(terms) - chosen.mean()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equals_the_formula(spatial_dims):
    logits, label = example(spatial_dims)
    assert segmentation_loss(logits, label).item() == pytest.approx(written_out(logits, label).item(), abs=1e-7)


REGIONS = Targets(("whole", "core"), ((1, 2), (2,)), (1, 2))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equals_monai(spatial_dims):
    logits, label = example(spatial_dims)
    options = {"batch": True, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
    classes = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, **options)
    assert segmentation_loss(logits, label).item() == pytest.approx(classes(logits, label[:, None]).item(), rel=1e-12)
    exclusive = Targets.classes({"background": 0, "a": 1, "b": 2})
    assert segmentation_loss(logits, label, exclusive) == segmentation_loss(logits, label)
    logits, truth = logits[:, :2], REGIONS.one_hot(label).double()
    wanted = DiceLoss(sigmoid=True, **options)(logits, truth) + F.binary_cross_entropy_with_logits(logits, truth)
    assert segmentation_loss(logits, label, REGIONS).item() == pytest.approx(wanted.item(), rel=1e-12)
    assert deep_supervision_loss([logits], label, REGIONS) == segmentation_loss(logits, label, REGIONS)


def test_one_region_and_labels_outside_of_all_regions():
    one = Targets(("core",), ((2,),), (2,))
    logits, label = example(2)
    sure = 100 * (2.0 * (label == 2) - 1)[:, None].double()
    assert segmentation_loss(sure, label, one).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3, 6, 5\).* 2 channels, one a region"):
        segmentation_loss(logits, label, REGIONS)


@pytest.mark.parametrize("targets", [None, REGIONS])
def test_sums_over_processes_give_the_loss_of_the_whole_batch(targets):
    """Two halves of a batch, each adding the other's sums: the mean of the losses and gradients is the whole's."""
    logits, label = example(2)
    logits = logits[:, : 3 if targets is None else 2].clone().requires_grad_()
    whole = segmentation_loss(logits, label, targets)
    (wanted,) = torch.autograd.grad(whole, logits)
    seen = []
    for half in range(2):  # what each process would send
        segmentation_loss(logits[half : half + 1], label[half : half + 1], targets, lambda s: seen.append(s) or s)
    total = sum(seen).detach()
    losses = [
        segmentation_loss(
            logits[half : half + 1], label[half : half + 1], targets, lambda s: total + 2 * (s - s.detach())
        )
        for half in range(2)
    ]
    mean = sum(losses) / 2
    assert mean.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(mean, logits)[0], wanted)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_sure_and_right_answer_costs_nothing(spatial_dims):
    logits, label = example(spatial_dims)
    right = 100 * F.one_hot(label, 3).movedim(-1, 1).double()
    assert segmentation_loss(right, label).item() == pytest.approx(0, abs=1e-6)
    assert segmentation_loss(logits, label) > segmentation_loss(right, label)


def test_absent_classes_do_not_blow_up():
    logits, label = example(2)
    loss = segmentation_loss(logits.requires_grad_(), torch.zeros_like(label))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_label_and_half_precision_logits(dtype):
    logits, label = example(2, dtype=torch.float32)
    loss = segmentation_loss(logits.bfloat16(), label.to(dtype))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(segmentation_loss(logits, label).item(), rel=0.02)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_deep_supervision_weights(spatial_dims):
    logits, label = example(spatial_dims)
    half = logits[(..., *[slice(None, None, 2)] * spatial_dims)].clone()
    quarter = half[(..., *[slice(None, None, 2)] * spatial_dims)].clone()
    parts = [segmentation_loss(x, resized_label(label, x.shape[2:])) for x in (logits, half, quarter)]
    wanted = (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75
    assert deep_supervision_loss([logits, half, quarter], label).item() == pytest.approx(wanted.item(), rel=1e-12)
    assert deep_supervision_loss(logits, label) == deep_supervision_loss((logits,), label) == parts[0]


def test_label_takes_the_nearest_value():
    label = torch.arange(8).reshape(1, 1, 8).expand(1, 4, 8)
    assert resized_label(label, (2, 4))[0, 0].tolist() == [1, 3, 5, 7]
    assert resized_label(label, (4, 8)).equal(label)


@pytest.mark.parametrize(
    ("logits", "label", "message"),
    [
        ((2, 3, 4, 4), torch.full((2, 4, 4), 3), r"label holds \[3\].*classes 0\.\.2.*num_classes=4"),
        ((2, 3, 4, 4), torch.full((2, 4, 4), -1), r"label holds \[-1\]"),
        ((2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.long), r"label has shape \(2, 1, 4, 4\)"),
        ((2, 3, 4, 4), torch.zeros(2, 4, 5, dtype=torch.long), r"need \(2, 4, 4\)"),
        ((2, 3, 4, 4), torch.zeros(2, 4, 4), "label has dtype torch.float32"),
        ((2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool), "label has dtype torch.bool"),
        ((2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), "at least 2 classes"),
        ((3, 4, 4), torch.zeros(4, 4, dtype=torch.long), r"logits have shape \(3, 4, 4\)"),
    ],
)
def test_bad_input(logits, label, message):
    for loss in (segmentation_loss, deep_supervision_loss):
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(logits), label)


def test_no_outputs():
    with pytest.raises(ValueError, match="outputs is empty"):
        deep_supervision_loss([], torch.zeros(1, 2, 2, dtype=torch.long))
