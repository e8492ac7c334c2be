"""The command line: what each command prints and leaves behind, exit codes, and errors in one line."""

import importlib
import inspect
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from command_line import TRAIN, call
from typer.testing import CliRunner

import xlstm_unet_lab as lab
from benchmarks import __main__ as benchmarks
from xlstm_unet_lab.cli import app, runs
from xlstm_unet_lab.cli.app import ORDER, print_json, print_table, say
from xlstm_unet_lab.cli.doctor import Finding
from xlstm_unet_lab.models.presets import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prepared():
    """The folder of a prepared phantom."""
    return lab.prepare("phantom_microscopy", progress=False)


def test_help_names_every_command_and_a_first_run():
    result = call("--help")
    listed = result.stdout[result.stdout.index("Commands") :]
    places = [listed.index(f" {name} ") for name in ORDER]
    assert places == sorted(places), "in the order in which a newcomer needs them"
    assert "A first run" in result.stdout
    assert "Usage" in call(code=2).output


@pytest.mark.parametrize("command", ORDER)
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
    assert len(shared) >= 6
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


def test_prepare_lists_data_sets(prepared):
    root = prepared.parent
    rows = {row["name"]: row for row in json.loads(call("prepare", "--list", "--json", "--root", root).stdout)}
    assert rows["phantom_microscopy"]["prepared"] is True
    assert rows["nuclei"]["prepared"] is False
    assert "licence" in call("prepare", "--list", "--root", root).stdout


def test_prepare_prints_the_folder(prepared):
    expected, root = str(prepared), prepared.parent
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
        (("evaluate", ".", ".", "--out", "/"), "/ is a folder: name the file to write"),
        (("view", "x.png", "--case", "a"), "x.png is no run directory: --case names a case of a run"),
        (("trian",), "No such command 'trian'"),
    ],
)
def test_wrong_usage(arguments, message):
    shown = " ".join(call(*arguments, code=2).stderr.replace("│", " ").split())
    assert message in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "nowhere", "x.png", "--out", "y"), "nowhere is no run directory"),
        (("evaluate", "nowhere", "nowhere"), "nowhere is missing"),
        (("view", "nowhere.png"), "nowhere.png is missing"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_line(arguments, message):
    check_one_line(arguments, message, code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "nuclie"), "no recipe is named 'nuclie': did you mean 'nuclei'"),
        (("train", "phantom_microscop"), "did you mean 'phantom_microscopy'"),
        (("train", TRAIN[0], "--model", "unett"), "no model is named 'unett': did you mean 'unet'"),
        (("train", *TRAIN, "--model-option", "feature=[4,8]"), "did you mean 'features'"),
        (("train", *TRAIN, "--precision", "8bit"), "precision is '8bit': there are auto, 32-true"),
        (("train", *TRAIN, "--setting", "ema=1"), "--setting is 'ema': did you mean 'ema_decay'"),
        (("train", *TRAIN, "--setting", f"ema_decay={'[' * 10**5}"), "ema_decay is '[["),
        (("train", *TRAIN, "--setting", "steps=3"), "--setting is 'steps': did you mean"),
        (("train", *TRAIN, "--accelerator", "cuda:99"), "accelerator is 'cuda:99', which PyTorch does not find here"),
        (("train", *TRAIN, "--accelerator", "gpus"), "accelerator is 'gpus', which PyTorch does not find here"),
        (("predict", "nowhere", "x.png", "--out", "y", "--device", "gpu"), "--device is 'gpu', which PyTorch does not"),
        (("predict", "x", "x.png", "--out", "y", "--device", "cuda:99"), "does not find here: there is"),
        (("models", "--patch-size", "64"), "patch_size is (64,), expected a tuple of 2 or 3 whole numbers"),
    ],
)
def test_what_cannot_be_as_it_was_asked_for_is_one_line(arguments, message):
    check_one_line(arguments, message, code=2)


def check_one_line(arguments, message, code):
    result = call(*arguments, code=code)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def fill_gpu(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def fill_processor(*_, **__):
    torch.empty(2**50, dtype=torch.uint8)


def fill_numpy(*_, **__):
    np.empty(2**50, np.uint8)


@pytest.mark.parametrize("fill", [fill_gpu, fill_processor, fill_numpy])
@pytest.mark.parametrize(
    ("arguments", "called", "advice"),
    [
        (("train", *TRAIN), "data.dataset.load_dataset", "use a smaller --batch-size or --patch-size"),
        (("models", "--patch-size", "64,64"), "models.presets.list_models", "use a smaller --patch-size"),
        (
            ("prepare", "nuclei"),
            "data.prepare.prepare",
            "use a smaller network, free some, or take a machine with more",
        ),
    ],
)
def test_full_memory_is_two_lines(monkeypatch, fill, arguments, called, advice):
    monkeypatch.setattr(f"xlstm_unet_lab.{called}", fill)
    error, said = call(*arguments, code=1).stderr.splitlines()
    assert error.startswith("error: ") and said == f"Memory is full: {advice}"


def test_other_errors_of_torch_are_bugs_and_keep_their_traceback(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("xlstm_unet_lab.data.prepare.prepare", fail)
    assert isinstance(CliRunner().invoke(app, ["prepare", "nuclei"]).exception, RuntimeError)


def test_notes_of_an_error_are_shown(monkeypatch):
    def fail(*_, **__):
        error = OSError("No space left on device")
        error.add_note("What was converted is kept")
        raise error

    monkeypatch.setattr("xlstm_unet_lab.data.prepare.prepare", fail)
    assert call("prepare", "nuclei", code=1).stderr.splitlines()[1] == "What was converted is kept"


def test_json_knows_no_infinity_and_no_nan(capsys):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    odd = [float("inf"), float("-inf"), float("nan")]
    print_json({"loss": odd[2], "by case": [{"hd95": odd[0], "dice": 0.5}, (odd[1], True, None, "NaN", 3)]})
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"loss": None, "by case": [{"hd95": None, "dice": 0.5}, [None, True, None, "NaN", 3]]}
    print_table(pd.DataFrame({"hd95": [*odd, 2.0], "value": pd.array([1, None, 2, 3], "Int64")}), as_json=True)
    rows = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert [row["hd95"] for row in rows] == [None, None, None, 2.0] and rows[1]["value"] is None


def test_stopped_by_the_keyboard_it_says_so_in_a_word(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("xlstm_unet_lab.data.prepare.prepare", stop)
    result = CliRunner().invoke(app, ["prepare", "nuclei"])
    assert result.exit_code not in (0, 2) and "Traceback" not in result.stderr


def test_debug_lets_the_error_through():
    result = CliRunner().invoke(app, ["--debug", "prepare", "nuclie"])
    assert isinstance(result.exception, KeyError)


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


@pytest.mark.parametrize(("names", "expected"), [([], list(benchmarks.NAMES)), (["accuracy"], ["accuracy"])])
def test_what_takes_hours_is_measured_only_when_asked_for(monkeypatch, names, expected):
    measured = []
    monkeypatch.setattr("sys.argv", ["benchmarks", *names])
    monkeypatch.setattr(
        importlib, "import_module", lambda name: SimpleNamespace(main=lambda: measured.append(name.split(".")[1]))
    )
    benchmarks.main()
    assert measured == expected


def test_bench_outside_a_checkout_says_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr("xlstm_unet_lab.cli.machine.__file__", str(tmp_path / "a" / "b" / "machine.py"))
    assert "they come with the repository" in call("bench", code=1).stderr


def test_names_that_others_chose_are_no_orders_to_a_terminal(tmp_path):
    name = "\x1b[31mred\n" + b"latin \xe4".decode(errors="surrogateescape")
    wrong = call("prepare", name, code=2)
    told = call("evaluate", tmp_path / name, tmp_path / name, code=1)
    usage = call("evaluate", tmp_path / name, code=2)
    command, option = call(name, code=2), call("evaluate", f"--{name}", code=2)
    for result in (wrong, told, usage, command, option):
        assert "\x1b[31mred" not in result.stderr and "Traceback" not in result.stderr
        assert not any(line.startswith("latin") for line in result.stderr.splitlines())
    table = pd.DataFrame({"case": [name], "dice": [np.float32(0.5)], "none": [np.nan]})
    for as_json in (False, True):
        result = CliRunner().invoke(printing(table, as_json))
        assert result.exit_code == 0 and "\x1b" not in result.stdout
        if as_json:
            assert json.loads(result.stdout) == [{"case": name, "dice": 0.5, "none": None}]


def test_lines_are_printed_one_by_one_whatever_they_hold(capsys):
    say("a\nb", "c\x1b[31m\nd")
    say("e\nf", err=True)
    assert capsys.readouterr() == ("a\\nb\nc\\x1b[31m\\nd\n", "e\\nf\n")


def test_warnings_are_one_line_of_words(tmp_path):
    code = "import sys, warnings; from xlstm_unet_lab import cli; sys.argv = ['x', 'models', '--help']\n"
    code += "try: cli.main()\nexcept SystemExit: warnings.warn('the run a\\x1b[31m\\nb is short')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said == "warning: the run a\\x1b[31m\\nb is short\n"


def printing(table, as_json):
    small = typer.Typer()
    small.command()(lambda: print_table(table, as_json))
    return small


def test_view_takes_no_soft_edges_for_labels(tmp_path):
    import numpy as np
    from imageio.v3 import imwrite

    from xlstm_unet_lab.overlays.description import overlay_files

    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    imwrite(tmp_path / "a.png", mask)
    mask[7, 8:24:3], mask[24, 9:24:3], mask[8, 9:24:3], mask[23, 9:24:4] = 1, 2, 254, 253
    imwrite(tmp_path / "soft.png", mask)
    for files in ((tmp_path / "soft.png", None), (tmp_path / "a.png", tmp_path / "soft.png")):
        with pytest.raises(ValueError, match=r"soft\.png holds 5 numbers beside 0"):
            overlay_files(tmp_path / "a.png", *files)
    assert set(overlay_files(tmp_path / "a.png", None, tmp_path / "a.png").labels) == {"label 255"}
