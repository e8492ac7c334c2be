"""Our trainers inside nnU-Net, by its own commands: plan, train, predict, evaluate; and its results here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from results_folder import labels_in
from small_nnunet import NAME, NUMBER, SHORT, prepared, run_commands

import xlstm_unet_lab as lab
from xlstm_unet_lab.nnunet.networks import TRAINERS

pytest.importorskip("nnunetv2")
SAME = 0.999  # share of voxels


def commands_of(configuration, trainer, raw, out):
    """Those that a user types, for one network: train two short epochs, predict the test cases, score them."""
    named = f"-tr {trainer} -p nnUNetPlansSmall -device cpu"
    return [
        f"nnUNetv2_train {NUMBER} {configuration} 0 {named}",
        f"nnUNetv2_predict -i {raw}/imagesTs -o {out} -d {NUMBER} -c {configuration} -f 0 {named} -npp 1 -nps 1",
        f"nnUNetv2_evaluate_folder {raw}/labelsTs {out} -djfile {out}/dataset.json -pfile {out}/plans.json -np 1",
    ]


def test_two_networks_are_trained_and_used_by_nnunets_own_commands(tmp_path):
    environment = prepared(tmp_path)
    environment["nnUNet_extTrainer"] = call("nnunet", "trainers").stdout.strip()
    raw = Path(environment["nnUNet_raw"]) / NAME
    chosen = {"2d": "nnUNetTrainerXLSTMBot", "3d_fullres": "nnUNetTrainerUxLSTMEnc_10epochs"}
    lines = [line for pair in chosen.items() for line in commands_of(*pair, raw, tmp_path / pair[0])]
    run_commands(
        f"nnUNetv2_plan_and_preprocess -d {NUMBER} -c 2d 3d_fullres -npfp 1 -np 1 --no_pbar",
        f"xlstm-unet-lab nnunet plans {NUMBER}",
        environment=environment,
    )
    run_commands(*lines, environment=environment | SHORT)
    for configuration, trainer in chosen.items():
        folder = Path(environment["nnUNet_results"]) / NAME / f"{trainer}__nnUNetPlansSmall__{configuration}"
        log = next((folder / "fold_0").glob("training_log*")).read_text()
        assert "Epoch 1" in log
        assert "Epoch 2" not in log
        assert json.loads((tmp_path / configuration / "summary.json").read_text())["mean"]
        predictor = lab.load_predictor(folder)
        assert predictor.mirror_axes == ((1,) if configuration == "2d" else (2,))  # of the head, left and right
        ours = tmp_path / f"ours_{configuration}"
        call("predict", folder, raw / "imagesTs", "--out", ours, "--mirror", "--device", "cpu")
        theirs = labels_in(tmp_path / configuration)
        assert list(labels_in(ours)) == list(theirs)
        for name, label in labels_in(ours).items():
            expected = np.asarray(theirs[name].dataobj)
            assert (np.asarray(label.dataobj) == expected).mean() >= SAME
            assert np.allclose(label.affine, theirs[name].affine)


@pytest.fixture
def find_trainer(monkeypatch):
    """nnU-Net's own search for a trainer."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", call("nnunet", "trainers").stdout.strip())
    return recursive_find_trainer_class_by_name


@pytest.mark.parametrize("ending", ["", "_1epoch", "_50epochs"])
def test_nnunet_finds_every_trainer_in_every_length(find_trainer, ending):
    for name in TRAINERS:
        found = find_trainer(f"{name}{ending}")
        assert found.__name__ == f"{name}{ending}"
        assert found.epochs == {"": 1000, "_1epoch": 1, "_50epochs": 50}[ending]


def test_a_trainer_compiles_only_when_asked_and_trains_with_adamw(find_trainer, monkeypatch):
    trainer = object.__new__(find_trainer("nnUNetTrainerXLSTMEnc"))
    monkeypatch.delenv("nnUNet_compile", raising=False)
    trainer.device, trainer.network, trainer.num_epochs = torch.device("cuda"), torch.nn.Linear(2, 2), 10
    trainer.initial_lr, trainer.weight_decay = 3e-4, 1e-2
    assert not trainer._do_i_compile()
    monkeypatch.setenv("nnUNet_compile", "t")
    assert trainer._do_i_compile()
    optimizer, schedule = trainer.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    schedule.step(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * 0.5**0.9)


def test_deep_supervision_is_switched_through_wrappers(find_trainer):
    trainer = object.__new__(find_trainer("nnUNetTrainerXLSTMBot"))
    network = lab.build(
        "unet", spatial_dims=2, in_channels=1, num_classes=2, patch_size=(16, 16), deep_supervision=True
    )
    for wrapped in (network, torch.nn.ModuleDict({"module": network})["module"], torch.compile(network)):
        trainer.network = wrapped
        for enabled in (False, True):
            trainer.set_deep_supervision_enabled(enabled)
            assert isinstance(network(torch.zeros(1, 1, 16, 16)), list) == enabled


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plans", "4"), "has 0 data sets '4' with nnUNetPlans.json"),
        (("plans",), "has 0 data sets '' with nnUNetPlans.json"),
        (("trainer",), "did you mean 'trainers'?"),
    ],
)
def test_what_nnunet_cannot_be_asked_for_is_said_in_words(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    code = 1 if arguments[0] == "plans" else 2
    assert words in call("nnunet", *arguments, code=code).stderr
