"""Two processes on the CPU train as one does with the same global batch."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes

from xlstm_unet_lab.models.weights import load_tensors

RUNS = ("classes", "regions", "resumed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same runs by one process, this one, and by two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    two_processes.main(1, one)
    torch.set_num_threads(threads)
    command = [sys.executable, two_processes.__file__, "2", two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Warning" not in done.stderr and "deprecated" not in done.stderr
    return one, two


def column(folder: Path, name: str) -> list[float]:
    with (folder / "log.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize("run", RUNS)
def test_same_losses_metrics_and_weights(folders, run):
    one, two = (folder / run for folder in folders)
    for name, count in (("loss", 6), ("dice mean", 2)):
        assert len(column(one, name)) == count
        assert column(two, name) == pytest.approx(column(one, name), rel=1e-6 if "dice" in name else 1e-12)
    weights = [load_tensors(folder / "last.safetensors")[0] for folder in (one, two)]
    for name, value in weights[0].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(weights[1][name], value, rtol=1e-9, atol=1e-12)


def test_both_generators_are_kept(folders):
    states = load_tensors(folders[1] / "resumed" / "optimizer-6.safetensors")[0]["random.cpu"]
    assert len(states) == 2 and not states[0].equal(states[1])


def test_stopping_changes_nothing(folders):
    for folder in folders:
        assert column(folder / "resumed", "loss") == column(folder / "regions", "loss")
