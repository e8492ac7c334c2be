"""What the doctor finds on machines of many kinds, each described to it."""

import importlib.metadata
import inspect
import re
import tomllib
from types import SimpleNamespace

import pytest
import torch
import typer
from places import REPOSITORY

from xlstm_unet_lab.cli import app
from xlstm_unet_lab.cli import doctor as findings
from xlstm_unet_lab.cli.doctor import Finding, doctor


def found_here(name):
    """What the doctor finds under this name."""
    return next(finding for finding in doctor() if finding.name == name)


def test_this_machine_is_described_completely():
    found = doctor()
    names = "python packages notebooks napari processor gpu training mLSTM profile display data nnU-Net"
    assert {finding.name for finding in found} == set(names.split())
    assert all(finding.value for finding in found)
    assert all(finding.advice for finding in found if not finding.ok)


def test_a_package_that_does_not_import_does_not_hide_the_rest(monkeypatch):
    def broken():
        raise ImportError("libcudart.so.12 is missing")

    monkeypatch.setattr(findings, "devices", broken)
    found = {finding.name: finding for finding in doctor()}
    assert found["devices"] == Finding(
        "devices", "libcudart.so.12 is missing", False, "install what is missing: pip install -e . in the checkout"
    )
    assert "data" in found


def test_what_the_doctor_names_exists():
    """Options of `train`, targets of the Makefile, extras of the project: all that its advice tells to use."""
    source = inspect.getsource(findings)
    options = {name for one in typer.main.get_command(app).commands["train"].params for name in one.opts}
    named = set(re.findall(r"--[a-z][a-z-]+", source))
    assert named and named <= options
    targets = re.findall(r"\bmake ([a-z]+) installs", source)
    makefile = (REPOSITORY / "Makefile").read_text()
    assert targets and [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*findings.EXTRAS, "nnunet"} <= set(extras)


def test_packages_are_those_the_project_declares(monkeypatch):
    declared = ["numpy>=1.26", "no-such-package>=1"]
    declared += ["napari[pyqt6]>=0.6; extra == 'napari'", "qtpy>=2.4; extra == 'napari'"]
    declared += ['jupyterlab>=4.2; extra == "notebooks"', "pytest>=8.2; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    installed = {"numpy": "2.0", "xlstm-unet-lab": "0.1", "jupyterlab": "4.3", "qtpy": "2.4"}
    monkeypatch.setattr(findings, "version_of", installed.get)
    assert findings.packages() == [
        Finding(
            "packages",
            "xlstm-unet-lab 0.1, numpy 2.0, no-such-package not installed",
            False,
            "pip install no-such-package",
        ),
        Finding("notebooks", "jupyterlab 4.3"),
        Finding(
            "napari",
            "napari not installed, qtpy 2.4",
            advice="to look at cases in napari: pip install 'xlstm-unet-lab[napari]'",
        ),
    ]


def test_packages_of_a_kit_that_is_not_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    finding = found_here("packages")
    assert not finding.ok and "xlstm-unet-lab" in finding.value and "pip install -e . in the checkout" in finding.advice


@pytest.mark.parametrize(
    ("flags", "value", "advice"),
    [
        ({"avx512f", "avx512_bf16", "amx_bf16"}, "in hardware (amx_bf16, avx512_bf16)", "bf16-mixed"),
        ({"asimd", "bf16"}, "in hardware (bf16)", "bf16-mixed"),
        ({"avx2"}, "only emulated", "32-true"),
        (set(), "only emulated", "32-true"),
    ],
)
def test_processor(monkeypatch, flags, value, advice):
    monkeypatch.setattr("xlstm_unet_lab.ops.devices.processor_flags", lambda: flags)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    finding = findings.devices()[0]
    assert finding.ok and value in finding.value and advice in finding.advice and "4 threads" in finding.value


def test_every_gpu_is_found(monkeypatch):
    cards = [SimpleNamespace(name=f"GPU {index}", total_memory=2**34) for index in range(2)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(cards))
    monkeypatch.setattr("torch.cuda.get_device_properties", cards.__getitem__)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: ((7, 5), (9, 0))[device.index])
    monkeypatch.setattr("torch.version.hip", None)
    found = [finding for finding in findings.devices() if finding.name == "gpu"]
    assert [finding.value for finding in found] == ["GPU 0, 16 GiB", "GPU 1, 16 GiB"]
    precisions = [finding.advice.removeprefix("--precision auto takes ") for finding in found]
    assert precisions == ["16-mixed here", "bf16-mixed here"]


def test_without_a_gpu_the_mlstm_is_computed_in_chunks():
    if not torch.cuda.is_available():
        assert findings.kernels().value == "chunkwise form in PyTorch, as there is no NVIDIA GPU"


@pytest.mark.parametrize(
    ("obstacle", "value"),
    [
        (None, "Triton kernels, tried here, for heads up to 512 wide"),
        ("the kernels do not run", "chunkwise form in PyTorch, as the kernels do not run"),
    ],
)
def test_on_a_gpu_the_kernels_are_tried(monkeypatch, obstacle, value):
    of_gpu = SimpleNamespace(is_cuda=True, device="cuda", dtype=torch.float32, shape=(1, 1, 1, 64))
    monkeypatch.setattr("torch.empty", lambda *sizes, device: of_gpu)
    monkeypatch.setattr("xlstm_unet_lab.ops.mlstm_triton.obstacle", lambda q, v: obstacle)
    assert findings.kernels().value.startswith(value)


def test_profile(monkeypatch):
    monkeypatch.setenv("LAB_PROFILE", "ci")
    assert findings.profile().value.startswith("ci: ")
    monkeypatch.setenv("LAB_PROFILE", "cpuu")
    finding = found_here("profile")
    assert not finding.ok and "did you mean 'cpu'" in finding.value and "unset" in finding.advice


@pytest.mark.parametrize(
    ("system", "environ", "programs", "ok", "text"),
    [
        ("linux", {"DISPLAY": ":1"}, (), True, ":1"),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, (), True, "wayland-0"),
        ("linux", {}, ("xvfb-run",), True, "xvfb-run -a"),
        ("linux", {"DISPLAY": ""}, (), False, "make system"),
        ("darwin", {}, (), True, "desktop"),
    ],
)
def test_display(monkeypatch, system, environ, programs, ok, text):
    monkeypatch.setattr("sys.platform", system)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, environ.get(name, ""))
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    finding = findings.display()
    assert finding.ok is ok
    assert text in finding.value + finding.advice


def test_data(tmp_path, monkeypatch):
    finding = findings.data(tmp_path / "not" / "there" / "yet")
    assert finding.ok and "prepared: nothing yet" in finding.value
    prepared = tmp_path / "Dataset903_phantom_microscopy"
    prepared.mkdir()
    (prepared / "recipe.json").write_text("{}")
    assert "prepared: phantom_microscopy" in findings.data(tmp_path).value
    monkeypatch.setattr(findings, "LEAST_FREE", 10**18)
    full = findings.data(tmp_path)
    assert not full.ok and "more room" in full.advice


def test_data_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    finding = findings.data(tmp_path)
    assert not finding.ok and "set LAB_DATA" in finding.advice


def test_nnunet(tmp_path, monkeypatch):
    def finding(version, folder, names=findings.NNUNET_FOLDERS):
        monkeypatch.setattr(findings, "version_of", {"nnunetv2": version}.get)
        for name in findings.NNUNET_FOLDERS:
            monkeypatch.setenv(name, str(folder) if name in names else "")
        return findings.nnunet()

    assert "pip install 'xlstm-unet-lab[nnunet]'" in finding(None, tmp_path).advice
    unset = finding("2.6", tmp_path, ("nnUNet_raw",))
    assert unset.ok and "set nnUNet_preprocessed, nnUNet_results" in unset.advice
    wrong = finding("2.6", tmp_path / "no")
    assert not wrong.ok and "make the folder" in wrong.advice
    assert finding("2.6", tmp_path) == Finding(
        "nnU-Net", ", ".join(["nnunetv2 2.6", *(f"{name}={tmp_path}" for name in findings.NNUNET_FOLDERS)])
    )
