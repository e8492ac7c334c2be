"""The command line: what each command prints and leaves behind, exit codes, and errors in one line."""

import csv
import inspect
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import xlstm_unet_lab as lab
from xlstm_unet_lab.cli import app, runs
from xlstm_unet_lab.cli.doctor import Finding
from xlstm_unet_lab.models.presets import MODELS

COMMANDS = ("doctor", "models", "prepare", "bench", "train", "predict", "evaluate", "report")
TRAIN = ("phantom_microscopy", "--model", "unet", "--model-option", "features=[4,8]", "--patch-size", "64,64")
SHORT = ("--steps", "2", "--batch-size", "2", "--accelerator", "cpu", "--setting", "validation_cases=1")


pytestmark = pytest.mark.usefixtures("one_thread")


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Prepared data with three test cases only."""
    root = tmp_path_factory.mktemp("data")
    made = lab.prepare("phantom_microscopy", progress=False)
    folder = shutil.copytree(made, root / made.name)
    for part in ("images", "labels", "instances"):
        for path in sorted((folder / f"{part}Ts").iterdir())[3:]:
            path.unlink()
    return root


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A run of two steps, and what the command printed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    result = call("train", *TRAIN, *SHORT, "--root", root, "--run-directory", run, "--json")
    return run, json.loads(result.stdout)


@pytest.fixture(scope="module")
def predicted(trained, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    images = root / "Dataset903_phantom_microscopy" / "imagesTs"
    result = call("predict", trained[0], images, "--out", out, "--coloured", "--device", "cpu")
    return out, result.stdout.split()


@pytest.fixture
def truth(root):
    return root / "Dataset903_phantom_microscopy" / "labelsTs"


def test_help_names_every_command_and_a_first_run():
    result = call("--help")
    assert [name for name in COMMANDS if name not in result.stdout] == []
    assert "A first run" in result.stdout
    assert "Usage" in call(code=2).output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    text = call(command, "-h").stdout
    assert f"{command} [OPTIONS]" in text
    assert "None" not in text


def test_help_does_not_wait_for_torch():
    code = "import sys; import xlstm_unet_lab.cli; print([x for x in ('torch', 'pandas', 'numpy') if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_also_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "xlstm_unet_lab", "-h"], capture_output=True, text=True, check=True)
    assert "xlstm-unet-lab [OPTIONS] COMMAND" in done.stdout


def test_defaults_are_those_of_the_library():
    settings = {field.name: field.default for field in lab.TrainConfig.__dataclass_fields__.values()}
    shared = {
        name: parameter.default
        for name, parameter in inspect.signature(runs.train).parameters.items()
        if name in settings and name != "patch_size"
    }
    assert len(shared) > 8
    assert shared == {name: settings[name] for name in shared}


@pytest.mark.parametrize("ok", [True, False])
def test_doctor_shows_what_to_do_and_fails_when_something_lacks(monkeypatch, ok):
    found = [Finding("python", "3.11"), Finding("display", "none", ok, "make system")]
    monkeypatch.setattr("xlstm_unet_lab.cli.doctor.doctor", lambda root: found)
    text = call("doctor", code=0 if ok else 1).stdout
    assert ("LACK" in text) is not ok
    assert "-> make system" in text
    listed = json.loads(call("doctor", "--json", code=0 if ok else 1).stdout)
    assert listed[1] == {"name": "display", "value": "none", "ok": ok, "advice": "make system"}


def test_models():
    assert [row["name"] for row in json.loads(call("models", "--json").stdout)] == list(MODELS)
    assert "swin_unetr" in call("models").stdout


def test_models_are_measured_for_a_patch_size(monkeypatch):
    monkeypatch.setattr("xlstm_unet_lab.models.presets.MODELS", {"unet": MODELS["unet"]})
    (row,) = json.loads(call("models", "--patch-size", "32,32", "--json").stdout)
    assert row["parameters"] > 0 and row["multiply_adds"] > 0 and row["fits"] == "yes"


def test_prepare_lists_data_sets(root):
    rows = {row["name"]: row for row in json.loads(call("prepare", "--list", "--json", "--root", root).stdout)}
    assert rows["phantom_microscopy"]["prepared"] is True
    assert rows["nuclei"]["prepared"] is False
    assert "licence" in call("prepare", "--list", "--root", root).stdout


def test_prepare_prints_the_folder(root):
    expected = str(root / "Dataset903_phantom_microscopy")
    assert call("prepare", "phantom_microscopy", "--root", root).stdout.split() == [expected]
    printed = json.loads(call("prepare", "phantom_microscopy", "--root", root, "--json").stdout)
    assert printed == {"phantom_microscopy": expected}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare",), "name a data set, or use --list"),
        (("prepare", "nuclei", "polyps", "--source", "x"), "--source belongs to one data set"),
        (("train", *TRAIN[:-1], "64x64"), "--patch-size is '64x64'"),
        (("train", *TRAIN, "--model-option", "features"), "--model-option is 'features'"),
        (("train",), "Missing argument 'DATA'"),
        (("train", *TRAIN, "--steps", "many"), "Invalid value for '--steps'"),
        (("evaluate", "somewhere"), "somewhere is no run directory"),
        (("trian",), "No such command 'trian'"),
    ],
)
def test_wrong_usage(arguments, message):
    shown = " ".join(call(*arguments, code=2).stderr.replace("│", " ").split())
    assert message in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "nuclie"), "no recipe is named 'nuclie': did you mean 'nuclei'"),
        (("train", "phantom_microscop"), "did you mean 'phantom_microscopy'"),
        (("train", TRAIN[0], "--model", "unett"), "no model is named 'unett': did you mean 'unet'"),
        (("train", *TRAIN, "--model-option", "feature=[4,8]"), "did you mean 'features'"),
        (("train", *TRAIN, "--precision", "8bit"), "precision='8bit' must be one of 32-true"),
        (("train", *TRAIN, "--setting", "ema=1"), "unexpected keyword argument 'ema'"),
        (("predict", "nowhere", "x.png", "--out", "y"), "nowhere is no run directory"),
        (("evaluate", "nowhere", "nowhere"), "nowhere is missing"),
        (("models", "--patch-size", "64"), "spatial_dims is 1, expected 2 or 3"),
    ],
)
def test_errors_of_the_library_are_one_line(arguments, message):
    result = call(*arguments, code=1)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_lets_the_error_through():
    result = CliRunner().invoke(app, ["--debug", "prepare", "nuclie"])
    assert isinstance(result.exception, KeyError)


def test_train_reports_the_last_step(trained):
    run, result = trained
    assert result["run_directory"] == str(run)
    assert result["step"] == 2
    assert {"loss", "seconds", "dice mean", "dice interior", "dice boundary"} <= set(result)
    assert (run / "best.safetensors").is_file()


def test_a_finished_run_is_not_trained_again(trained, root):
    run, result = trained
    again = call("train", *TRAIN, *SHORT, "--root", root, "--run-directory", run, "--json")
    assert json.loads(again.stdout) == result
    assert "dice mean" in call("train", *TRAIN, *SHORT, "--root", root, "--run-directory", run).stdout


def test_other_settings_in_the_same_folder_are_refused(trained, root):
    more = call("train", *TRAIN, *SHORT, "--seed", "1", "--root", root, "--run-directory", trained[0], code=1)
    assert "seed: 0 there, 1 now" in more.stderr


def test_the_seed_decides_the_first_weights(monkeypatch, root, tmp_path):
    weights = []

    def fit(network, *_, **__):
        weights.append([parameter.detach().clone() for parameter in network.parameters()])
        raise ValueError("enough")

    monkeypatch.setattr("xlstm_unet_lab.training.fit.fit", fit)
    for seed in (5, 5, 6):
        call("train", *TRAIN, "--seed", seed, "--root", root, "--run-directory", tmp_path, code=1)
    same, other = (all(map(torch.equal, weights[0], one)) for one in weights[1:])
    assert same and not other


def test_predict_writes_a_label_for_each_image(predicted, truth):
    out, printed = predicted
    names = sorted(path.name for path in truth.iterdir())
    assert sorted(path.name for path in out.glob("*.png")) == names
    assert sorted(printed) == [str(out / name) for name in names]
    assert sorted(path.name for path in (out / "coloured").iterdir()) == names


def test_evaluate_folders(predicted, truth, tmp_path):
    table = tmp_path / "scores.csv"
    rows = json.loads(call("evaluate", predicted[0], truth, "--out", table, "--json").stdout)
    assert {(row["case"], row["label"]) for row in rows} == {
        (path.stem, label) for path in truth.iterdir() for label in ("interior", "boundary", "foreground")
    }
    with table.open(newline="") as file:
        assert [float(row["dice"]) for row in csv.DictReader(file)] == pytest.approx([row["dice"] for row in rows])
    assert "foreground  instance_f1" in call("evaluate", predicted[0], truth).stdout


def test_evaluate_a_run_gives_what_its_files_give(trained, predicted, truth, root):
    of_files = json.loads(call("evaluate", predicted[0], truth, "--json").stdout)
    of_run = json.loads(call("evaluate", trained[0], "--root", root, "--json", "--device", "cpu").stdout)
    assert of_run == of_files


def test_report_compares_and_shows_cases(trained, predicted, truth, root, tmp_path):
    page = tmp_path / "page.html"
    images = truth.parent / "imagesTs"
    printed = call("report", predicted[0], truth, "--truth", truth, "--images", images, "--out", page)
    assert printed.stdout.strip() == str(page)
    text = page.read_text()
    assert f"{predicted[0]} against {truth}" in text
    assert all(f"The {what} case of {predicted[0]}" in text for what in ("best", "median", "worst"))


@pytest.mark.parametrize("code", [0, 1, 2])
def test_bench_runs_the_measurements_of_the_checkout(monkeypatch, code):
    called = []

    def run(command, cwd):
        called.append((command[1:], cwd))
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr("subprocess.run", run)
    call("bench", "import_time", code=code)
    ((command, folder),) = called
    assert command == ["-m", "benchmarks", "import_time"]
    assert (folder / "benchmarks" / "__main__.py").is_file()


def test_bench_outside_a_checkout_says_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr("xlstm_unet_lab.cli.machine.__file__", str(tmp_path / "a" / "b" / "machine.py"))
    assert "they come with the repository" in call("bench", code=1).stderr
