"""A run directory: what is in it, and that a run which was stopped anywhere goes on to the same end."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from places import HELPERS
from tiny_problem import Tiny, boxes, cases, config
from torch.utils.data import Subset

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.data.cases import Facts, Listed
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.load import load_predictor, load_run
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.models.weights import load_tensors, load_weights
from xlstm_unet_lab.training import run_directory
from xlstm_unet_lab.training.config import learning_rate_at
from xlstm_unet_lab.training.fit import fit
from xlstm_unet_lab.training.run_directory import RunDirectory

SCRIPT = HELPERS / "killed_runs.py"
SETTINGS = {"steps": 6, "save_every": 2, "validate_every": 3}


def run(folder, model=None, stop_at=None, **changes):
    """Train in a folder and return the records; `stop_at` ends the run after that step."""
    records = []
    for record in fit(model or Tiny(), cases(range(3)), cases([3]), config(**(SETTINGS | changes)), folder):
        records.append(record)
        if record.step == stop_at:
            break
    return records


def weights(path):
    return load_tensors(path)[0]


def same(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_a_run_killed_anywhere_ends_as_if_it_had_not_been(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if line["differences"]] == []
    killed = [(line["variant"], line["where"]) for line in lines if line["killed"]]
    assert killed.count(("plain", "after step")) == killed.count(("mean", "after step")) == 3
    assert killed.count(("plain", "before os.fsync")) >= 12
    assert killed.count(("mean", "before os.replace")) >= 10


def test_what_a_run_leaves_behind(tmp_path):
    folder = tmp_path / "new" / "run"
    model = Tiny()
    records = run(folder, model)
    names = ["best", "last", "optimizer-6", "previous", "optimizer-4"]
    expected = ["config.json", "environment.json", "log.csv", "model.json", *(f"{name}.safetensors" for name in names)]
    assert sorted(set(os.listdir(folder)) - {".lock"}) == sorted(expected)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["patch_size"] == [16, 16] and settings["steps"] == 6 and settings["targets"] is None
    facts = json.loads((folder / "model.json").read_text())
    assert facts == dict.fromkeys(("build", "recipe", "own", "fold", "slice_axis")) | {"cases": 3, "names": 0}
    environment = json.loads((folder / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"]) and environment["device"] == "cpu"
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(row["loss"]) for row in rows] == [record.loss for record in records]
    assert [row["dice label 1"] for row in rows if row["dice mean"]] == [
        str(record.metrics["label 1"]) for record in records if record.metrics
    ]
    assert [bool(row["dice mean"]) for row in rows] == [False, False, True] * 2
    assert same(weights(folder / "last.safetensors"), model.state_dict())
    best = max((record for record in records if record.metrics), key=lambda record: record.metrics["mean"])
    facts = load_weights(Tiny(), folder / "best.safetensors")
    assert (facts["step"], facts["metrics"]) == (best.step, best.metrics)


def test_a_finished_run_yields_nothing_and_gives_its_weights(tmp_path):
    trained, fresh = Tiny(), Tiny()
    run(tmp_path, trained)
    assert run(tmp_path, fresh) == []
    assert same(trained.state_dict(), fresh.state_dict())
    assert Predictor.known(fresh, (16, 16)).spacing == (2.0, 1.0)


def test_a_run_without_settings_for_it_is_saved_twenty_times(tmp_path, monkeypatch):
    """Killed at step 39 of 40, it must not start from the first again."""
    monkeypatch.setattr(RunDirectory, "_tidy", lambda self, step: None)
    run(tmp_path, steps=40, save_every=None, validate_every=None)
    assert sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("optimizer-*")) == list(range(2, 41, 2))


def test_other_cases_are_another_run(tmp_path):
    first, other = Listed(cases(range(2))), Listed(cases(range(2)))
    first.names, other.names = ("a", "b"), ("a", "c")
    for number, (one, another) in enumerate([(first, other), (Subset(first, [0]), Subset(first, [1]))]):
        for spacing in (None, (1.0, 1.0)):  # resampled, the cases are still the same
            folder, settings = tmp_path / f"{number}-{spacing}", config(steps=1, spacing=spacing)
            assert len(list(fit(Tiny(), one, None, settings, folder))) == 1
            with pytest.raises(ValueError, match=r"names: [0-9]+ there, [0-9]+ now"):
                next(fit(Tiny(), another, None, settings, folder))


def test_stopped_by_the_caller_and_resumed(tmp_path):
    model, resumed = Tiny(), Tiny()
    whole = run(None, model, workers=1)
    first = run(tmp_path, stop_at=5, workers=1)
    second = run(tmp_path, resumed, workers=1)
    assert [record.step for record in second] == [5, 6], "the last checkpoint was at step 4"
    assert [record.loss for record in first[:4] + second] == [record.loss for record in whole]
    assert second[0].seconds > first[3].seconds
    assert same(model.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.01}, r"learning_rate: 0\.02 there, 0\.01 now"),
        ({"augment": Augmentation(noise=0.0)}, "augment: True there, .*noise"),
        ({"targets": Targets.classes({"background": 0, "box": 1})}, "targets: None there, .*'box'"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, changes, message):
    run(tmp_path, stop_at=2)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(ValueError, match=f"(?s)holds another run.*{message}") as error:
        fit(Tiny(), cases(range(3)), cases([3]), config(**(SETTINGS | changes)), tmp_path)
    assert "batch_size" not in str(error.value)
    with pytest.raises(ValueError, match="cases: 3 there, 2 now"):
        fit(Tiny(), cases(range(2)), cases([3]), config(**SETTINGS), tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_run_is_lengthened_and_says_so(tmp_path):
    run(tmp_path)
    with pytest.warns(UserWarning, match=r"becomes one of 9 steps: from step 7 on its learning rates are those of the"):
        records = run(tmp_path, steps=9)
    assert [record.step for record in records] == [7, 8, 9]
    assert records[0].learning_rate == learning_rate_at(7, config(**(SETTINGS | {"steps": 9})))
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 9
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *map(str, range(1, 10))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tmp_path, steps=9) == []
    with pytest.raises(ValueError, match="steps: 9 there, 6 now"):
        run(tmp_path)


def test_a_run_of_another_length_with_other_settings_stays_as_it_is(tmp_path):
    run(tmp_path, stop_at=2)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.02 there, 0\.01 now"):
        run(tmp_path, steps=9, learning_rate=0.01)
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6


def test_two_processes_cannot_train_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "PATIENCE", 0.1)
    program = """
import sys, time
sys.path[:0] = sys.argv[2:]
from test_resume import SETTINGS, Tiny, cases, config, fit
for record in fit(Tiny(), cases(range(3)), cases([3]), config(**SETTINGS), sys.argv[1]):
    if record.step == 2:
        print("trains", flush=True)
        time.sleep(600)
"""
    command = [sys.executable, "-c", program, tmp_path / "run", HELPERS, Path(__file__).parent]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "trains\n"
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        model = Tiny().eval()
        with pytest.raises(BlockingIOError, match=r"another process is training in .*run: wait until it ends"):
            run(tmp_path / "run", model)
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
        assert not model.training
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert [record.step for record in run(tmp_path / "run")] == [3, 4, 5, 6], "a killed process holds nothing"


def test_a_run_left_standing_does_not_shut_its_successor_out(tmp_path):
    """As in a notebook, where a cell that was stopped may keep its loop alive."""
    standing = fit(Tiny(), cases(range(3)), cases([3]), config(**SETTINGS), tmp_path)
    next(standing)
    assert [record.step for record in run(tmp_path)] == [1, 2, 3, 4, 5, 6]
    standing.close()
    assert run(tmp_path) == []


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    whole = Tiny()
    run(None, whole)
    real = os.fsync

    def full(descriptor):
        if (tmp_path / "last.safetensors").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match=r"cannot be written \(No space left on device\); the last checkpoint is whole"
        ) as error:
            run(tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert load_weights(Tiny(), tmp_path / "last.safetensors")["step"] == 2
    assert not list(tmp_path.glob(".*partial*"))
    resumed = Tiny()
    assert [record.step for record in run(tmp_path, resumed)] == [3, 4, 5, 6]
    assert same(whole.state_dict(), resumed.state_dict())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot be written \(Permission denied\)"):
        fit(Tiny(), cases([0]), None, config(), tmp_path / "run")
    tmp_path.chmod(0o700)


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(OSError, match=r"file.* cannot be written .*the first is to come.*another one"):
            fit(Tiny(), cases([0]), None, config(), tmp_path / place)


def small_network(**changes):
    options = {"in_channels": 1, "num_classes": 2, "patch_size": (16, 16), "features": (4, 8)}
    return lab.build("unet", spatial_dims=2, **(options | changes))


def test_load_run_builds_the_model_again(tmp_path):
    model, facts = small_network(), Facts(boxes())
    list(fit(model, Listed(cases(range(2)), facts), Listed(cases([3]), facts), config(steps=3), tmp_path))
    assert json.loads((tmp_path / "model.json").read_text())["recipe"] == "boxes"
    for which in ("best", "last"):
        loaded = load_run(tmp_path, which)
        assert same(dict(loaded.state_dict()), dict(model.state_dict())) and not loaded.training
        known = load_predictor(tmp_path, which)
        assert known.targets == Targets.classes({"background": 0, "box": 1}) and known.spacing == (2.0, 1.0)


def test_load_run_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="which is 'first'"):
        load_run(tmp_path, "first")
    list(fit(Tiny(), cases([0]), None, config(steps=1), tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no best\.safetensors; it has \['last'\].*which='last'"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"build it and load_weights\(model, .*last\.safetensors\)"):
        load_run(tmp_path, "last")


def spoilt(path):
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", ["last", "optimizer-6"])
@pytest.mark.parametrize("spoil", [spoilt, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_spoilt_checkpoint_is_passed_over_for_the_one_before(tmp_path, name, spoil):
    whole, resumed = Tiny(), Tiny()
    first = run(tmp_path, whole)
    before = {path.name: {k: x.clone() for k, x in weights(path).items()} for path in tmp_path.glob("*.safetensors")}
    spoil(tmp_path / f"{name}.safetensors")
    with pytest.warns(UserWarning, match=r"last\.safetensors in .* cannot be read(?s:.)*goes on from step 4"):
        records = run(tmp_path, resumed)
    assert [(one.step, one.loss) for one in records] == [(one.step, one.loss) for one in first[4:]]
    assert same(whole.state_dict(), resumed.state_dict())
    after = {path.name: weights(path) for path in tmp_path.glob("*.safetensors")}
    assert after.keys() == before.keys() and all(same(after[name], before[name]) for name in after)
    assert run(tmp_path) == []


def test_a_run_without_any_whole_checkpoint_says_so_and_changes_nothing(tmp_path):
    run(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        spoilt(path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"last(?s:.)*previous\.safetensors in (?s:.)*give another run_directory"):
        run(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def logged(folder):
    return [line.split(",")[:2] for line in (folder / "log.csv").read_text().splitlines()]


@pytest.mark.parametrize(
    ("spoil", "lost"),
    [
        (lambda text: text[:-20], 0),  # the last row is that of the checkpoint, which knows it
        (lambda text: text[: text.rindex("\n3,") + 5], 3),
        (lambda text: "", 5),
        (lambda text: '\0\x1b\ud800"' * 3000 + text, 0),
        (lambda text: text.replace("\n2,", "\nx,").replace("\n4,", '\n"4,'), 2),
        (lambda text: text + "6,1\n7,2,3,4,5,6,7,8\n" + "9" * 5000 + "\n", 0),
        (lambda text: text.replace("\n", "\r\n"), 0),
        (lambda text: re.sub("\n3,", "\n3,--..e", text), 1),
        (lambda text: re.sub("\n([234]),", r"\n\1,0.1.", text), 3),
    ],
)
def test_a_spoilt_log_is_mended_and_what_is_lost_is_said(tmp_path, spoil, lost):
    run(tmp_path)
    whole, text = logged(tmp_path), (tmp_path / "log.csv").read_bytes().decode()
    (tmp_path / "log.csv").write_bytes(spoil(text).encode(errors="surrogatepass"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run(tmp_path) == []
    assert [str(one.message).partition("log.csv")[2] for one in caught if "log.csv" in str(one.message)] == (
        [f" lacks {lost} of 6 steps, the run itself nothing"] if lost else []
    )
    assert len(logged(tmp_path)) == 7 - lost and logged(tmp_path)[-1] == whole[-1]
    assert all(row in whole for row in logged(tmp_path))


def test_a_run_of_another_model_is_refused(tmp_path):
    run(tmp_path, stop_at=2)
    with pytest.raises(ValueError, match=r"last\.safetensors does not fit this model"):
        run(tmp_path, Tiny(deep=True))
