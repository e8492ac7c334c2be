"""Training on a tiny problem: what is yielded, what is repeatable, and what stops a run."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tiny_problem import Tiny, boxes, case, cases, config
from torch import nn

from xlstm_unet_lab.data.cases import Facts, Listed
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.training.config import TrainConfig, learning_rate_at
from xlstm_unet_lab.training.fit import fit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("spatial_dims", "deep"), [(2, False), (2, True), (3, False), (3, True)])
def test_loss_falls_and_records_are_complete(spatial_dims, deep, capfd):
    model = Tiny(spatial_dims, deep).eval()
    train, val = cases(range(4), spatial_dims), cases(range(4, 6), spatial_dims)
    settings = config(spatial_dims, steps=30, validate_every=12, channels_last=True)
    records = list(fit(model, train, val, settings))
    assert capfd.readouterr() == ("", "")
    assert [record.step for record in records] == list(range(1, 31))
    assert sum(record.loss for record in records[-5:]) < 0.8 * sum(record.loss for record in records[:5])
    assert [record.step for record in records if record.metrics] == [12, 24, 30]
    assert set(records[-1].metrics) == {"label 1", "mean"}
    assert records[-1].metrics["mean"] == records[-1].metrics["label 1"] > 0.6
    assert [record.learning_rate for record in records] == [learning_rate_at(step, settings) for step in range(1, 31)]
    assert all(a.seconds < b.seconds for a, b in pairwise(records))
    assert all(record.images_per_second > 0 and record.memory > 1e6 for record in records)
    assert Predictor.known(model, settings.patch_size).spacing == (2.0, 1.0, 0.5)[:spatial_dims]
    assert not model.training


def test_mixed_precision_follows_full_precision_and_prints_nothing(capfd):
    losses = [
        [record.loss for record in fit(Tiny(), cases(range(3)), None, config(precision=precision))]
        for precision in ("32-true", "bf16-mixed")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_same_run(workers):
    def run(**changes):
        model = Tiny()
        losses = [record.loss for record in fit(model, cases(range(3)), None, config(**changes))]
        return losses, model.state_dict()

    first, again = run(), run(workers=workers)
    assert first[0] == again[0]
    assert all(first[1][name].equal(again[1][name]) for name in first[1])
    assert first[0] != run(seed=4)[0]


def test_names_come_from_the_recipe_and_cases_can_be_limited():
    labels = {"background": 0, "box": 1, "absent": 2}
    known = {"colours": {"box": "#0072B2", "absent": "#E69F00"}, "tolerances": {"box": 1.0, "absent": 1.0}}
    facts = Facts(boxes(labels=labels, flip_axes=(1,), **known))
    model = Tiny()
    model.head = nn.Conv2d(8, 3, 1)
    records = list(
        fit(model, Listed(cases(range(2)), facts), Listed(cases(range(4)), facts), config(validation_cases=2))
    )
    metrics = records[-1].metrics
    assert Predictor.known(model, (16, 16)).targets == Targets.classes(labels)
    assert list(metrics) == ["box", "absent", "mean"]
    assert metrics["mean"] == pytest.approx((metrics["box"] + metrics["absent"]) / 2)


def test_stopping_early_leaves_a_usable_model():
    model = Tiny().train()
    model.dropout.eval()  # a layer the caller froze stays frozen
    before = model.first.weight.clone()
    for record in fit(model, cases(range(2)), None, config()):
        if record.step == 3:
            break
    assert not before.equal(model.first.weight)
    assert model.training and not model.dropout.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert list(model.state_dict()) == list(Tiny().state_dict())
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)
    assert len(list(fit(model, cases(range(2)), None, config()))) == 8


def test_the_model_is_usable_between_records():
    model = Tiny()
    for record in fit(model, cases(range(2)), cases(range(2)), config(validate_every=1)):
        assert record.metrics is not None and model.training
        with torch.no_grad():
            assert torch.isfinite(model(torch.zeros(1, 1, 16, 16))).all()


class Spoiled(Tiny):
    """Goes wrong in its third forward pass, in a way the test chooses."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil, self.calls = spoil, 0

    def forward(self, image):
        self.calls += 1
        logits = super().forward(image)
        return self.spoil(self, logits) if self.calls == 3 else logits


def infinite_gradient(model, logits):
    model.first.bias.register_hook(lambda gradient: gradient * math.inf)
    return logits


def broken_weight(model, logits):
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    return logits * math.nan


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda model, logits: logits * math.nan, "output 0"),
        (infinite_gradient, r"the gradient of first\.bias"),
        (broken_weight, r"head\.weight"),
    ],
)
def test_what_is_not_finite_stops_the_run_before_the_weights_change(spoil, culprit):
    model, records = Spoiled(spoil), []
    with pytest.raises(FloatingPointError, match=rf"step 3: {culprit} is not finite.*learning_rate=0.02"):
        for record in fit(model, cases(range(2)), None, config()):
            records.append(record)
            weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(records) == 2
    if spoil is not broken_weight:
        assert all(weights[name].equal(value) for name, value in model.state_dict().items())


def test_not_finite_image_is_named():
    spoiled = case(0)
    spoiled["image"][...] = math.inf
    with pytest.raises(FloatingPointError, match="step 1: the image is not finite"):
        list(fit(Tiny(), [spoiled], None, config(augment=False)))


def test_learning_rate_climbs_and_falls():
    settings = config(steps=100, warmup_steps=10, learning_rate=1.0, polynomial_power=2.0)
    rates = [learning_rate_at(step, settings) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx((1 / 90) ** 2)
    assert learning_rate_at(1, replace(settings, warmup_steps=0)) == 1.0
    assert learning_rate_at(100, replace(settings, warmup_steps=None, polynomial_power=0.0)) == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": (16,)},
        {"patch_size": (16, 0)},
        {"patch_size": (16, 16.0)},
        {"steps": 0},
        {"batch_size": True},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"weight_decay": -1.0},
        {"warmup_steps": 8},
        {"warmup_steps": -1},
        {"polynomial_power": -0.5},
        {"gradient_clip": 0.0},
        {"precision": "16-true"},
        {"devices": 0},
        {"num_nodes": 3, "batch_size": 4},
        {"workers": -1},
        {"workers": 100_000},
        {"seed": -1},
        {"validate_every": 0},
        {"validation_cases": 0},
        {"channels_last": "yes"},
        {"augment": None},
        {"foreground_probability": 1.5},
        {"save_every": 0},
        {"ema_decay": 1.0},
        {"compile": 1},
        {"targets": "classes"},
        {"spacing": (1.0,)},
        {"spacing": (1.0, -1.0)},
    ],
)
def test_settings_that_cannot_work_name_the_field(changes):
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(changes))}(=| is )"):
        TrainConfig(**({"patch_size": (16, 16), "steps": 8} | changes))


@pytest.mark.parametrize(
    ("train", "val", "changes", "message"),
    [
        ([], None, {}, "train holds no cases"),
        (cases([0]), [], {}, "val holds no cases"),
        (cases([0], 3), None, {}, r"train has image \(1, 20, 20, 20\).*2 spatial dimensions"),
        (cases([0]), [case(0) | {"label": torch.zeros(4, 4, dtype=torch.long)}], {}, r"val .* label \(4, 4\)"),
        (cases([0]), [case(0) | {"label": torch.zeros(20, 20, dtype=torch.long)}], {}, "background only"),
        (cases([0]), None, {"precision": "16-mixed"}, "needs a GPU"),
        (cases([0]), None, {"accelerator": "abacus"}, "abacus"),
    ],
)
def test_data_and_machine_are_checked_at_once(train, val, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(Tiny(), train, val, config(**changes))  # not iterated


def test_a_label_without_a_class():
    spoiled = case(0)
    spoiled["label"][:] = 2
    with pytest.raises(ValueError, match=r"label holds \[2\].*num_classes=3"):
        list(fit(Tiny(), [spoiled], None, config()))


def test_a_model_for_other_data_is_refused_before_the_first_step():
    config = TrainConfig(patch_size=(16, 16), steps=1, batch_size=1)
    case = {"image": torch.randn(1, 16, 16), "label": torch.zeros(16, 16, dtype=torch.long), "spacing": (1.0, 1.0)}
    refused = {"in_channels=3, train needs in_channels=1": {"in_channels": 3}}
    refused["num_classes=2, train needs num_classes=3"] = {"num_classes": 2}
    for message, built in refused.items():
        facts = {"spatial_dims": 2, "in_channels": 1, "num_classes": 3} | built
        model = torch.nn.Conv2d(1, 3, 1)
        model.config = SimpleNamespace(**facts)
        labels = {"background": 0, "a": 1, "b": 2}
        known = {"colours": {"a": "#0072B2", "b": "#E69F00"}, "tolerances": {"a": 1.0, "b": 1.0}}
        with pytest.raises(ValueError, match=message):
            fit(model, Listed([case], Facts(boxes(labels=labels, **known))), None, config)
