"""Public names called with odd arguments: the right result, or an error of four kinds, raised by us and in words."""

import contextlib
import linecache
import os
import random
import tempfile
import traceback
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xlstm_unet_lab as lab
from xlstm_unet_lab.evaluation.metrics import dice, error_map, hausdorff95, instance_f1, surface_dice
from xlstm_unet_lab.evaluation.report import bootstrap_interval
from xlstm_unet_lab.inference.uncertainty import entropy
from xlstm_unet_lab.ops import mlstm, selective_scan, slstm

KINDS = (ValueError, TypeError, KeyError, OSError)
EXAMPLES = 200  # of several odd arguments at once
TRIES = 16  # of the odd values, for each argument of a call that takes time
NUMBERS = (None, True, False, 0, -1, 3, 2**63, 10**400, 1.5, -0.0, np.nan, np.inf, 1e300, 1e-300, 1j, np.float32(2))
WORDS = ("", "a", "\0", "../x", "$", b"a", object, range(3), np.array("a"))
FUNCTIONS = (len, list, reversed, str, lambda *all_of_it: None, lambda *all_of_it: iter(()))
GROUPS = ((), [], {}, set(), [1], [None], ("a",), [1e300], [[1]], {"a": None}, {"a": 1.5}, {1: 3}, [True], (1, 2))
SIZES = ((0, 0), (-1, 4), (10**9, 10**9))
TENSORS = (torch.tensor(1.0), torch.zeros(2, 3), torch.zeros(0), torch.zeros(1, 2, 5, 4, dtype=torch.int64))
ARRAYS = (np.zeros(3), np.zeros((2, 3), complex), np.array([None]), np.zeros((2, 8, 8)), np.full((1, 8, 8), np.nan))
IMAGES = [np.zeros((1, 8, 8), kind) for kind in (bool, complex, object, "U1", "M8[s]", np.float16, np.longdouble)]
IMAGES += [np.zeros((0, 8, 8)), np.zeros((1, 0, 8)), np.zeros((1,) * 40), np.full((1, 8, 8), 1e300), [[[0, 1], [2]]]]
ODD = (*NUMBERS, *WORDS, *FUNCTIONS, *GROUPS, *SIZES, *TENSORS, *ARRAYS, *IMAGES, np.zeros((8, 8), int))


def tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def case(**facts):
    return {"image": np.zeros((1, 8, 8), np.float32), **facts}


Q, GATE, LABEL = tokens(1, 2, 5, 4), tokens(1, 2, 5), np.eye(8, dtype=np.int64)
NETWORK = lab.build("unet", spatial_dims=2, in_channels=1, num_classes=2, patch_size=(8, 8), features=(2, 4))
SEQUENCE = {**dict.fromkeys("qkv", Q), **dict.fromkeys("if", GATE), "initial_state": None}
SEQUENCE |= {"return_state": False, "check_values": True}
TOKEN = {"state": None, **dict.fromkeys("qkv", Q[..., 0, :]), **dict.fromkeys("if", GATE[..., 0])}
GATES = {**dict.fromkeys("zifo", Q), "recurrent_weights": None, "initial_state": None, "return_state": False}
SCANNED = dict.fromkeys(("u", "delta"), tokens(1, 3, 5)) | {"A": -torch.ones(3, 2), "chunk_size": 2, "D": None}
SCANNED |= dict.fromkeys("BC", tokens(1, 2, 5)) | {"initial_state": None, "return_state": False}
BUILT = {"spatial_dims": 2, "in_channels": 1, "num_classes": 2, "patch_size": (8, 8), "features": (2, 4)}
STAGES = BUILT | {"strides": ((1, 1), (2, 2)), "kernel_sizes": ((3, 3), (3, 3)), "encoder_blocks": (1, 1)}
STAGES |= {"decoder_blocks": (1,)}
WINDOWS = {"patch_size": (8, 8), "spacing": None, "overlap": 0.5, "mirror": False, "batch_size": 1, "device": None}
PAIR = {"prediction": LABEL, "truth": LABEL}
SHOWN = case(**PAIR, spacing=(1, 1), channel_names=("MRI",), label_names={"a": 1}, probabilities=None, instances=None)
SHOWN |= {"colours": None, "unit": "mm", "title": "t", "credit": "", "anatomical": False, "cut": 0}
SETTINGS = {"patch_size": (8, 8), "steps": 9, "batch_size": 1, "learning_rate": 1e-3, "ema_decay": 0.9, "seed": 0}
SETTINGS |= {"precision": "32-true", "accelerator": "cpu", "devices": 1, "workers": 0, "validate_every": None}
SETTINGS |= {"augment": True, "warmup_steps": None, "spacing": None, "targets": None, "compile": False}
FACTS = {"patch_size": (8, 8), "spacing": (1, 1), "targets": None, "channel_names": ("MRI",), "slice_axis": None}
FACTS |= {"colours": {1: "#0072B2"}, "label_numbers": {}, "mirror_axes": None, "normalisation": "z-score"}
SCORED = PAIR | {"spacing": (1.0, 2.0), "labels": {"a": 1}, "tolerance": 1.0, "unit": "mm", "labelled_slices_only": ()}
RESAMPLED = {"values": [1.0, 0.5], "groups": None}
OPENED = {"recipe": "hippocampus", "split": "train", "root": None, "fold": 0, "cache_bytes": 0}
CASES = [{"image": torch.zeros(1, 8, 8), "label": torch.zeros(8, 8, dtype=torch.long), "spacing": (1.0, 1.0)}]
SHORT, PREDICTOR = lab.TrainConfig((8, 8), steps=1, batch_size=1, accelerator="cpu"), lab.Predictor(NETWORK, (8, 8))
ASKED = {name: value for name, value in WINDOWS.items() if name != "patch_size"} | {"track": iter}
CALLS = {
    "mlstm.run": (mlstm.run, SEQUENCE | {"form": "auto"}),
    "mlstm.recurrent": (mlstm.recurrent, SEQUENCE),
    "mlstm.parallel": (mlstm.parallel, SEQUENCE),
    "mlstm.chunkwise": (mlstm.chunkwise, SEQUENCE | {"chunk_size": 2}),
    "mlstm.step": (mlstm.step, TOKEN),
    "slstm.scan": (slstm.scan, GATES),
    "selective_scan": (selective_scan.selective_scan, SCANNED),
    "build": (lab.build, BUILT | {"name": "xlstm_unet_bot", "full_resolution_skip": True}),
    "UNetConfig": (lab.UNetConfig, STAGES | {"mixers": ("none", "vil")}),
    "published_config": (lab.published_config, STAGES | {"variant": "bot"}),
    "VisionLSTM": (lab.VisionLSTM, {"depth": 1, "dim": 8, "image_size": 8, "patch_size": 4, "version": "v1"}),
    "TrainConfig": (lab.TrainConfig, SETTINGS),
    "predict": (lab.predict, case(model=NETWORK, **WINDOWS)),
    "predict_probabilities": (lab.predict_probabilities, case(model=NETWORK, **WINDOWS)),
    "Predictor": (lab.Predictor, FACTS | {"network": NETWORK, "unit": "mm", "credit": "", "card": {}}),
    "predictor": (PREDICTOR, case(**ASKED)),
    "predictor.probabilities": (PREDICTOR.probabilities, case(**ASKED)),
    "evaluate": (lab.evaluate, SCORED),
    "dice": (dice, PAIR),
    "error_map": (error_map, PAIR),
    "surface_dice": (surface_dice, PAIR | {"spacing": (1.0, 2.0), "tolerance": 1.0}),
    "hausdorff95": (hausdorff95, PAIR | {"spacing": (1.0, 2.0)}),
    "instance_f1": (instance_f1, PAIR | {"iou": 0.5, "drop_border": 2}),
    "bootstrap_interval": (bootstrap_interval, RESAMPLED),
    "entropy": (entropy, {"probabilities": np.full((2, 8, 8), 0.5, np.float32)}),
    "instances_from_classes": (lab.instances_from_classes, {"classes": LABEL}),
    "overlay": (lab.overlay, SHOWN),
    "prepare": (lab.prepare, {"recipe": "folder", "root": None, "source": None, "progress": False}),
    "load_dataset": (lab.load_dataset, OPENED),
    "list_recipes": (lab.list_recipes, {"root": None}),
    "load_predictor": (lab.load_predictor, {"path": "nowhere", "which": None}),
    "fit": (lab.fit, {"model": NETWORK, "train": CASES, "val": CASES, "config": SHORT, "run_directory": None}),
    "predict_files": (lab.predict_files, {"predictor": PREDICTOR, "inputs": "nowhere", "out_folder": "out"}),
    "predictor.save": (PREDICTOR.save, {"path": "a.safetensors"}),
    "list_models": (lab.list_models, {"spatial_dims": None, "in_channels": 1, "num_classes": 2, "patch_size": None}),
    "UNet": (lab.UNet, {"config": NETWORK.config}),
    "write_report": (lab.write_report, {"path": "a.html", "tables": {}, "overlays": None, "notes": ()}),
    "overlay_case": (lab.overlay_case, {"dataset": CASES, "index": 0, "prediction": None}),
    "load_published": (lab.load_published, {"model": NETWORK, "path_or_state_dict": "nowhere"}),
    "load_run": (lab.load_run, {"run_directory": "nowhere", "which": "best"}),
    "trained": (lab.trained, {"name": "nowhere"}),
}
SLOW = ("predict", "predict_probabilities", "build", "mlstm.run", "mlstm.chunkwise", "load_dataset")


def called(call, arguments):
    """Empty for a call that answers, or fails with an error of a kind that is allowed, by a line of ours, in words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**arguments)
            return ""
    except Exception as raised:
        error = raised
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(
        f"/{package}/" in last.filename for package in ("xlstm_unet_lab", "data_recipes")
    ) and "raise" in linecache.getline(last.filename, last.lineno)
    fits = isinstance(error, KINDS) and ours and len(str(error)) > 15
    return "" if fits else f"{type(error).__name__} at {last.filename}:{last.lineno}: {str(error)[:90]}"


@pytest.mark.parametrize("name", CALLS)
def test_odd_arguments_are_refused_in_words(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (call, good), chosen, wrong = CALLS[name], random.Random(name), []
    for argument in good:
        for odd in chosen.sample(ODD, TRIES) if name in SLOW else ODD:
            if trouble := called(call, good | {argument: odd}):
                wrong.append(f"{argument}={odd!r:.60}: {trouble}")
    assert not wrong, "\n".join(wrong)


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(ODD))
NESTED = st.one_of(st.lists(LEAVES, max_size=3), st.dictionaries(st.text(max_size=3), LEAVES, max_size=2), LEAVES)


@given(data=st.data())
@settings(max_examples=EXAMPLES)
def test_several_odd_arguments_at_once_are_refused_in_words(data):
    name = data.draw(st.sampled_from([name for name in CALLS if name not in SLOW]))
    call, good = CALLS[name]
    changed = data.draw(st.lists(st.sampled_from(list(good)), min_size=1, max_size=3, unique=True))
    odd = {argument: data.draw(NESTED) for argument in changed}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, LAB_DATA=folder),
        contextlib.chdir(folder),
    ):
        assert not called(call, good | odd)


WRONG = {
    "evaluate": {"unit": (3, "inch", None, b"mm"), "labels": ({1: 1}, {None: 1}, {b"a": 1})},
    "overlay": {
        "title": (3, None, b"a"),
        "credit": (3, ["a"]),
        "anatomical": (1, "yes", None),
        "label_names": ({1: 1},),
    },
    "TrainConfig": {"accelerator": (3, None, b"cpu"), "augment": (1, "no"), "targets": ({}, "a")},
    "Predictor": {"network": (None, 3, "a"), "unit": (3, "inch", None), "credit": (3, None)},
    "predict": {"track": (lambda batches: [1], lambda batches: [*batches, 1], enumerate), "device": ("meta", 3)},
    "predict_files": {"predictor": (NETWORK, None, 3)},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_of_another_kind_is_never_taken(name):
    (call, good), taken = CALLS[name], []
    for argument, values in WRONG[name].items():
        for value in values:
            with pytest.raises((ValueError, TypeError), match=argument):
                call(**good | {argument: value})
                taken.append(f"{argument}={value!r}")
    assert not taken
