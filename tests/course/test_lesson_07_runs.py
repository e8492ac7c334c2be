"""Lesson 07: its references against autograd, MONAI and the package; its probes and runs, whose answers are known."""

import dataclasses

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from monai.metrics import compute_hausdorff_distance
from monai.metrics.utils import get_edge_surface_distance
from torch import nn
from torch.nn import functional as F

from xlstm_unet_lab.course import lesson_07_probes as probes
from xlstm_unet_lab.course import lesson_07_runs as runs
from xlstm_unet_lab.course.checks import lesson_07, lesson_07_metrics, lesson_07_supervision
from xlstm_unet_lab.course.checks.lesson_07_runs import diagnose
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.training import losses

pytestmark = pytest.mark.usefixtures("one_thread")


def arguments_of(exercise):
    return [pytest.param(*case.arguments, id=case.description) for case in exercise.cases]


# ------------------------------------------------------------------------------------------------- the references


@pytest.mark.parametrize(("logits", "label"), arguments_of(lesson_07.CROSS_ENTROPY_GRADIENT))
def test_cross_entropy_gradient(logits, label):
    logits = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, label), logits)
    torch.testing.assert_close(lesson_07.cross_entropy_gradient(logits.detach(), label), expected)


@pytest.mark.parametrize(("probabilities", "truth"), arguments_of(lesson_07.SOFT_DICE_LOSS))
def test_soft_dice_loss(probabilities, truth):
    expected = DiceLoss(batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(probabilities, truth)
    torch.testing.assert_close(lesson_07.soft_dice_loss(probabilities, truth), expected)


@pytest.mark.parametrize(("probabilities", "truth"), arguments_of(lesson_07.DICE_GRADIENT))
def test_dice_gradient(probabilities, truth):
    p = probabilities.clone().requires_grad_()
    (expected,) = torch.autograd.grad(1 - 2 * (p * truth).sum() / (p.sum() + truth.sum()), p)
    torch.testing.assert_close(lesson_07.dice_gradient(probabilities, truth), expected)


@pytest.mark.parametrize(("outputs", "label"), arguments_of(lesson_07_supervision.DEEP_LOSS))
def test_deep_loss_is_the_package_s_with_cross_entropy_alone(outputs, label, monkeypatch):
    monkeypatch.setattr(losses, "segmentation_loss", lambda logits, label, *_: F.cross_entropy(logits, label))
    expected = losses.deep_supervision_loss(outputs, label)
    torch.testing.assert_close(lesson_07_supervision.deep_loss(outputs, label), expected)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 0.5)])
def test_hausdorff95(spacing):
    masks = torch.from_numpy(np.random.default_rng(0).random((2, 1, 1, 14, 18)) < 0.4)
    edges, *_ = get_edge_surface_distance(masks[0, 0, 0], masks[1, 0, 0])
    points = [np.argwhere(edge.numpy()) for edge in edges]
    expected = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
    assert lesson_07_metrics.hausdorff95(*points, spacing) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("prediction", "truth"), arguments_of(lesson_07_metrics.CELL_F1))
def test_cell_f1(prediction, truth):
    expected = metrics.instance_f1(prediction, truth, iou=np.nextafter(0.5, 1), drop_border=0).f1
    assert lesson_07_metrics.cell_f1(prediction, truth) == pytest.approx(expected)


# ----------------------------------------------------------------------------------------------------- the probes


def item(seed, label=None, spacing=(1.0, 1.0), size=(16, 16)):
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(seed))
    return {"image": image, "label": torch.zeros(size).long() if label is None else label, "spacing": spacing}


def run_of(train, val, **facts):
    return probes.Run("", train, val, **facts)


def test_shared_share():
    whole, other = item(0), item(1)
    piece = {name: x[..., 3:13, 2:12] if name != "spacing" else x for name, x in whole.items()}
    assert probes.shared_share(run_of([whole], [piece])) == 1
    assert probes.shared_share(run_of([whole], [other])) == 0
    assert probes.shared_share(run_of([whole], [whole, other])) == 0.5


def test_flat_windows_are_not_shared():
    empty = item(0)
    empty["image"] = torch.zeros(1, 16, 16)
    assert probes.shared_share(run_of([empty, item(1)], [empty, item(2)])) == 0


def test_extent():
    assert probes.extent(run_of([], [item(0, spacing=(2.0, 0.5))])) == [(32.0, 8.0)]


@pytest.mark.parametrize(("weight", "overflows"), [(1.0, ()), (1e5, ("float16",)), (1e39, ("float16", "float32"))])
def test_replay_names_what_overflows(weight, overflows):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity()).double()
    nn.init.constant_(model[0].weight, weight)
    nn.init.zeros_(model[0].bias)
    batch = item(0)
    image, label = batch["image"][None], batch["label"][None]
    run = run_of([batch], [batch], model=model, loss=losses.segmentation_loss, image=image, label=label)
    largest = weight * image.abs().max().item()
    words = f"network.0, which gives {largest:.4g}"
    assert probes.replay(run) == {name: words if name in overflows else "finite" for name in probes.PRECISIONS}
    assert probes.readings(run)["overflow"] == (words if "float32" in overflows else "")
    assert probes.largest_gate(run) == 0


def test_pulls_of_patches_without_foreground():
    label = torch.zeros(16, 16).long()
    label[4:9, 4:9] = 1
    train = [item(0), item(1, label), item(2)]
    run = run_of(train, train, model=nn.Conv2d(1, 2, 1), loss=losses.segmentation_loss)
    drawn = probes.pulls(run)
    assert [share for share, _ in drawn] == [0, 0, 25 / 256] and all(pull > 0 for _, pull in drawn)
    alone = probes.pulls(dataclasses.replace(run, loss=runs._dice_of_each_patch))
    assert [pull > 0 for _, pull in alone] == [False, False, True]


# ------------------------------------------------------------------------------------------------------- the runs


@pytest.mark.parametrize(
    ("name", "disease"),
    [
        ("A", "leak"),
        ("B", "float16 overflow"),
        ("C", "empty class"),
        ("D", "wrong spacing"),
        ("E", "gate overflow"),
    ],
)
def test_every_run_has_its_disease_and_no_other(name, disease):
    run = runs.start(name, steps=2)
    before = [x.clone() for x in run.model.state_dict().values()] if run.model else []
    readings = probes.readings(run)
    assert diagnose(readings) == disease, readings
    assert (readings["shared"] > 0) == (name == "A") and bool(readings["overflow"]) == (name in "BE")
    assert (readings["pull of empty patches"] == 0) == (name == "C")
    if run.model:
        assert all(torch.equal(*pair) for pair in zip(before, run.model.state_dict().values(), strict=True))
        assert np.isfinite(run.records[-1].loss) == (name in "AC")
    else:
        assert probes.replay(run) == {} and readings["extent"] == (72.0, 288.0, 1024.0)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_gates_of_run_e_overflow_whatever_the_rounding(threads):
    torch.set_num_threads(threads)  # changes the order of sums; the fixture puts it back
    run = runs.start("E")
    readings = probes.readings(run)
    assert diagnose(readings) == "gate overflow", readings
    assert readings["largest gate"] > 95 and ".cell.weights, which gives" in readings["overflow"], readings
    assert run.records[-1].step < runs.PATIENCE / 2
    assert probes.replay(run)["float64"] == "finite"


def test_unknown_run():
    with pytest.raises(ValueError, match="run 'F' is unknown"):
        runs.start("F")
