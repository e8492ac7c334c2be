"""Options of training: regions, one spacing, mean weights, compilation, mixed precision, and what a failure keeps."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_problem import Tiny, boxes, case, cases, config
from torch import nn
from torch.utils.data import Subset

import xlstm_unet_lab as lab
from data_recipes import phantom_long_range
from xlstm_unet_lab.data.augment import Augmentation, PatchDataset
from xlstm_unet_lab.data.cases import Facts, Listed
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.evaluation.metrics import dice
from xlstm_unet_lab.inference import predictor
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.models.weights import load_tensors, load_weights
from xlstm_unet_lab.nn.vil import MLSTMCell
from xlstm_unet_lab.ops import devices, mlstm
from xlstm_unet_lab.training import fit as fit_module
from xlstm_unet_lab.training.config import TrainConfig
from xlstm_unet_lab.training.fit import fit
from xlstm_unet_lab.training.machine import chosen_precision

REGIONS = Targets(("whole", "core"), ((1, 2), (2,)), (1, 2))


pytestmark = pytest.mark.usefixtures("one_thread")


def nested(index, spatial_dims=2):
    """A box with a brighter core of another label."""
    item = case(index, spatial_dims)
    core = (slice(5 + index, 10 + index),) * spatial_dims
    item["label"][core] = 2
    item["image"][0][core] += 2
    return item


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_regions_are_learnt_and_scored(spatial_dims):
    model = Tiny(spatial_dims)
    train, val = [nested(index, spatial_dims) for index in range(3)], [nested(4, spatial_dims)]
    settings = config(spatial_dims, steps=60, targets=REGIONS, augment=Augmentation(contrast=(1, 1), brightness=0))
    *_, last = fit(model, train, val, settings)
    assert list(last.metrics) == ["whole", "core", "mean"]
    assert last.metrics["whole"] > 0.7 and last.metrics["core"] > 0.25, "a tenth of the box or less is core"
    assert Predictor.known(model, settings.patch_size).targets == REGIONS


def test_targets_must_fit_the_model():
    model = Tiny()
    model.config = SimpleNamespace(num_classes=2)
    three = Targets.classes({"background": 0, "a": 1, "b": 2})
    with pytest.raises(ValueError, match="num_classes=2, train needs num_classes=3"):
        fit(model, cases([0]), None, config(targets=three))
    with pytest.raises(ValueError, match=r"values \(\(1,\), \(0,\)\); classes must have \(0,\), \(1,\)"):
        fit(model, cases([0]), None, config(targets=Targets(("a", "b"), ((1,), (0,)))))


def test_what_a_recipe_says_about_mirrors_is_obeyed(monkeypatch):
    asked = []

    class Watched(PatchDataset):
        def __init__(self, *arguments, augment, **options):
            asked.append(augment)
            super().__init__(*arguments, augment=augment, **options)

    def held(items):
        return Listed(items, Facts(boxes(flip_axes=(0,))))

    monkeypatch.setattr(fit_module, "PatchDataset", Watched)
    mine = Augmentation(noise=0.0)
    part = Subset(held(cases([0, 1])), [0])  # a wrapped data set keeps what its recipe says
    for data, augment in ((part, True), (held(cases([0])), False), (held(cases([0])), mine)):
        next(fit(Tiny(), data, None, config(augment=augment)))
    next(fit(Tiny(), cases([0]), None, config()))
    assert asked == [Augmentation(flip_axes=(0,), rotate=False), False, mine, True]


def test_cases_of_mixed_spacing_are_brought_to_one():
    train = cases(range(3))
    train[1]["spacing"] = (1.0, 2.0)
    model = Tiny()
    records = list(fit(model, train, cases([3]), config(spacing=(1.0, 1.0))))
    assert Predictor.known(model, (16, 16)).spacing == (1.0, 1.0)
    assert len(records) == 8 and 0 <= records[-1].metrics["mean"] <= 1
    with pytest.raises(ValueError, match=r"spacing is \(1\.0, 1\.0, 1\.0\), expected 2 finite numbers"):
        config(spacing=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("spacing", [None, (1.5, 1.5)])
@pytest.mark.parametrize("targets", [None, REGIONS])
def test_validation_scores_what_predict_gives(spacing, targets):
    """Of a case whose spacing is not that of training, too: it is resampled for the network and back for the score."""
    train, val = [nested(index) for index in range(3)], [nested(3) | {"spacing": (1.0, 1.4)}, nested(4)]
    for item in (*train, *val):
        item["image"] = torch.from_numpy(normalise(item["image"].numpy()))
    model = Tiny(dropout=0.0)
    model.head = nn.Conv2d(8, 2 if targets else 3, 1)
    settings = config(steps=30, spacing=spacing, targets=targets, batch_size=3)
    metrics = list(fit(model, train, val, settings))[-1].metrics
    assert Predictor.known(model, (16, 16)).spacing == (spacing or (2.0, 1.0))
    wanted = targets.foreground if targets else {"label 1": (1,), "label 2": (2,)}
    for name, values in wanted.items():
        scores = []
        for item in val:
            label = lab.predict(model, item["image"].numpy(), patch_size=(16, 16), spacing=item["spacing"])
            truth = item["label"].numpy()
            assert label.shape == truth.shape
            scores.append(dice(np.isin(label, values), np.isin(truth, values)))
        assert metrics[name] == pytest.approx(sum(scores) / 2, abs=1e-3)
    assert list(metrics) == [*wanted, "mean"] and 0.3 < metrics["mean"] < 1


def test_validation_holds_the_logits_of_a_box_only(monkeypatch):
    """Not those of a whole case: a volume of 100 organs would not fit into memory."""
    seen, boxes = [], predictor.sliding_boxes

    def watched(*arguments, **options):
        for place, values in boxes(*arguments, **options):
            seen.append(values[0].numel())
            yield place, values

    monkeypatch.setattr(predictor, "sliding_boxes", watched)
    long = {what: torch.cat([case(0)[what]] * 10, dim) for what, dim in (("image", 1), ("label", 0))}
    list(fit(Tiny(), cases(range(2)), [case(0) | long], config(steps=1)))
    assert sum(seen) == long["label"].numel() and max(seen) <= 16 * 16


@pytest.mark.parametrize("until", [8, 5])
def test_the_running_mean_of_the_weights_is_kept(until, tmp_path):
    model, mean = Tiny(), None
    for record in fit(model, cases(range(2)), cases([3]), config(ema_decay=0.6, validate_every=4), tmp_path):
        now = {name: value.clone() for name, value in model.state_dict().items()}
        mean = now if mean is None else {name: 0.6 * mean[name] + 0.4 * now[name] for name in now}
        if record.metrics:
            saved = load_tensors(tmp_path / "last.safetensors")[0]
            assert all(torch.allclose(saved[name], mean[name], atol=1e-6) for name in mean)
        if record.step == until:
            break
    assert all(torch.allclose(value, mean[name], atol=1e-6) for name, value in model.state_dict().items())
    assert not any(torch.equal(value, now[name]) for name, value in model.state_dict().items())


def test_compilation_changes_speed_only(monkeypatch):
    compiled, compile_ = [], torch.compile

    def compile_quickly(model, **options):  # the same path without a compiler
        compiled.append(model)
        return compile_(model, **(options | {"backend": "eager"}))

    plain, other = Tiny(), Tiny()
    losses = [record.loss for record in fit(plain, cases(range(2)), cases([3]), config())]
    monkeypatch.setattr(torch, "compile", compile_quickly)
    again = [record.loss for record in fit(other, cases(range(2)), cases([3]), config(compile=True))]
    assert again == pytest.approx(losses, rel=1e-5)
    assert compiled and all(model is other for model in compiled)
    assert list(other.state_dict()) == list(plain.state_dict())


class Explosive(nn.Module):
    """Passes its input on, and infinity from the third training step on."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x / 0 if self.calls >= 3 else x


def test_a_failure_names_the_layer_and_keeps_what_it_needs(tmp_path):
    model = Tiny()
    model.head = nn.Sequential(Explosive(), model.head, nn.Identity())
    pattern = r"step 3: the output of head\.0 is not finite.*The batch and the weights are in .*not_finite_step_3"
    with pytest.raises(FloatingPointError, match=pattern):
        list(fit(model, cases(range(2)), None, config(), tmp_path))
    folder = tmp_path / "not_finite_step_3"
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["step"] == 3 and facts["tensor"] == "the output of head.0" and len(facts["cases"]) == 2
    batch, _ = load_tensors(folder / "batch_0.safetensors")
    assert batch["image"].shape == (2, 1, 16, 16) and batch["label"].shape == (2, 16, 16)
    again = Tiny()
    again.head = nn.Sequential(Explosive(), again.head, nn.Identity())
    assert load_weights(again, folder / "weights.safetensors") == {"step": 3}
    patches = PatchDataset(cases(range(2)), (16, 16), 16, seed=3)
    assert torch.equal(batch["image"], torch.stack([patches[k]["image"] for k in (4, 5)]))


# Mixed precision


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunkwise"])
def test_gates_and_stabiliser_stay_in_float32_under_autocast(form):
    """Gates that differ by less than bfloat16 can tell, and a state that stays in float32."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 8, generator=generator).bfloat16() for _ in range(3))
    i, f = torch.randn(1, 2, 40, generator=generator), 8 + torch.randn(1, 2, 40, generator=generator)
    i = 30 + i / 100  # bfloat16 has steps of 1/8 here
    with torch.autocast("cpu", torch.bfloat16):
        h, state = mlstm.run(q, k, v, i, f, form=form, return_state=True)
    exact, exact_state = mlstm.run(*(x.double() for x in (q, k, v, i, f)), form=form, return_state=True)
    assert h.dtype == torch.bfloat16 and {part.dtype for part in state} == {torch.float32}
    assert torch.allclose(state.m.double(), exact_state.m, rtol=1e-5)
    assert torch.allclose(h.double(), exact, rtol=1e-2, atol=1e-2)
    assert torch.allclose(state.C.double(), exact_state.C, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("depth", "fits"), [(8, False), (12, True), (16, True)])
def test_maps_shallower_than_the_kernel_are_refused_in_bfloat16_on_a_cpu(tmp_path, depth, fits):
    """The depths are 8, 4, 2 at the first: a convolution 3 deep would get a weight gradient from unwritten memory."""
    patch = (depth, 8, 8)
    facts = {"spatial_dims": 3, "in_channels": 1, "num_classes": 2, "patch_size": patch}
    model = lab.build("unet", **facts, features=(4, 6, 8), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
    train = [case(0, 3)]

    def settings(precision):
        return replace(config(3, steps=1), patch_size=patch, precision=precision, accelerator="cpu")

    if fits:
        assert len(list(fit(model, train, None, settings("bf16-mixed"), tmp_path / "run"))) == 1
    else:
        with pytest.raises(ValueError, match=r"encoder\.stages\.2\.0\.conv2 \(2 deep, its kernel 3\).*'32-true'"):
            fit(model, train, None, settings("bf16-mixed"), tmp_path / "run")
        assert not (tmp_path / "run").exists() and model.training
    assert len(list(fit(model, train, None, settings("32-true")))) == 1


@pytest.mark.parametrize(
    ("flags", "dims", "precision"),
    [(set(), 2, "32-true"), ({"amx_bf16"}, 2, "bf16-mixed"), ({"amx_bf16"}, 3, "bf16-mixed")],
)
def test_auto_takes_the_precision_that_the_processor_is_fast_in(monkeypatch, tmp_path, flags, dims, precision):
    monkeypatch.setattr(devices, "processor_flags", lambda: flags)
    settings = replace(config(dims, steps=1), precision="auto")
    assert len(list(fit(Tiny(dims), cases([0], dims), None, settings, tmp_path / "run"))) == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["precision"] == precision


@pytest.mark.parametrize(
    ("accelerator", "device", "words"),
    [
        ("meta", "cpu", "accelerator is 'meta', which"),
        ("cpu", "meta", "of model .* no numbers"),
    ],
)
def test_devices_that_hold_no_numbers_are_refused_before_training(accelerator, device, words):
    model = Tiny().to(device)
    with pytest.raises(ValueError, match=words):
        fit(model, cases([0]), None, replace(config(), accelerator=accelerator))
    assert {x.device.type for x in model.parameters()} == {device} and model.training


def test_auto_leaves_bfloat16_where_torch_computes_wrong_gradients(monkeypatch):
    monkeypatch.setattr(devices, "processor_flags", lambda: {"amx_bf16"})
    settings, train = replace(config(3, steps=1), precision="auto", patch_size=(2, 8, 8)), Listed(cases([0], 3))
    assert chosen_precision(settings, Tiny(3), train) == "32-true"
    with pytest.raises(ValueError, match="gives wrong gradients"):
        chosen_precision(replace(settings, precision="bf16-mixed"), Tiny(3), train)


def test_bfloat16_by_name_is_warned_of_where_it_is_emulated():
    settings = replace(config(), precision="bf16-mixed")
    with pytest.warns(UserWarning, match="emulates bfloat16, about 16 times as slow: use precision='auto'"):
        assert chosen_precision(settings, Tiny(), Listed(cases([0]))) == "bf16-mixed"


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_500_steps_with_extreme_gates_stay_finite(precision):
    """On the phantom that asks most of the gates: the class of a disc is to be carried over the whole image."""
    if precision == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("float16 needs a GPU")
    size, train = (128, 24), []
    for seed in range(4):
        image, label = phantom_long_range.scene(seed, size)
        tensors = {"image": torch.from_numpy(normalise(image[None])), "label": torch.from_numpy(label).long()}
        train.append(tensors | {"spacing": (1.0, 1.0), "name": f"discs {seed}"})
    model = lab.build("xlstm_unet_enc", spatial_dims=2, in_channels=1, num_classes=3, patch_size=size, features=(4, 8))
    cells = [module for module in model.modules() if isinstance(module, MLSTMCell)]
    with torch.no_grad():
        for cell in cells:  # input and forget gates wide open and shut, in every combination
            cell.gates.bias.copy_(torch.tensor([50.0, 50.0, -50.0, -50.0, 50.0, -50.0, 50.0, -50.0]))
    accelerator = "cuda" if precision == "16-mixed" else "cpu"
    settings = TrainConfig(
        patch_size=size,
        steps=500,
        batch_size=1,
        learning_rate=3e-3,
        precision=precision,
        accelerator=accelerator,
        augment=False,
    )
    losses = [record.loss for record in fit(model, train, None, settings)]
    assert len(cells) == 2 and len(losses) == 500
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert sum(losses[-50:]) < sum(losses[:50])


def test_layout_and_workers_left_open_are_chosen_once_for_a_run(tmp_path):
    def recorded(folder):
        kept = json.loads((folder / "config.json").read_text())
        return kept["channels_last"], kept["workers"]

    for name, chosen in {"new": {}, "old": {"channels_last": False, "workers": 1}}.items():
        list(fit(Tiny(), cases(range(2)), None, config(steps=2, **chosen), tmp_path / name))
        assert not list(fit(Tiny(), cases(range(2)), None, config(steps=2), tmp_path / name)), "it goes on as it began"
    assert recorded(tmp_path / "new") == (True, 0) and recorded(tmp_path / "old") == (False, 1)
    with pytest.raises(ValueError, match="channels_last: False there, True now"):
        list(fit(Tiny(), cases(range(2)), None, config(steps=2, channels_last=True), tmp_path / "old"))


def test_a_validation_shows_its_cases_and_their_windows():
    shown = []

    def track(items):
        shown.append(len(items))
        return iter(items)

    list(fit(Tiny(), cases(range(2)), cases(range(3)), config(steps=2, validate_every=1), track=track))
    assert shown[0] == 3 and len(shown) == 2 * (1 + 3) and min(shown) >= 1
