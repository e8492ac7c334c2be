"""A run directory whose checkpoints are gone, spoilt, or those of another network."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from test_resume import SETTINGS, run, same, small_network, spoilt, weights
from tiny_problem import Tiny, cases, config

from xlstm_unet_lab.inference.load import load_predictor
from xlstm_unet_lab.models.weights import load_tensors, save_tensors
from xlstm_unet_lab.training.fit import fit

KEPT = {"model.json", "config.json", ".lock"}


def lose(folder, *kept):
    """All but the settings and these files."""
    for path in folder.iterdir():
        if path.name not in KEPT | set(kept):
            path.unlink()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kept", "steps"),
    [
        (("log.csv", "best.safetensors", "optimizer-4.safetensors", "optimizer-6.safetensors"), 6),
        (("log.csv",), 6),
        (("best.safetensors",), "[36]"),
        (("optimizer-4.safetensors",), 4),
    ],
)
def test_a_run_that_lost_its_checkpoints_is_not_begun_anew_without_a_word(tmp_path, kept, steps):
    run(tmp_path)
    lose(tmp_path, *kept)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"tells of {steps} steps, .* are gone: bring one back .* another run_dir"):
        run(tmp_path)
    assert contents(tmp_path) == before


def test_a_checkpoint_that_is_brought_back_is_gone_on_from(tmp_path):
    whole, resumed = Tiny(), Tiny()
    run(tmp_path / "run", whole)
    shutil.copy(tmp_path / "run" / "previous.safetensors", tmp_path)
    lose(tmp_path / "run", "log.csv", "best.safetensors", "optimizer-4.safetensors")
    with pytest.raises(ValueError, match="bring one back"):
        run(tmp_path / "run")
    shutil.copy(tmp_path / "previous.safetensors", tmp_path / "run" / "last.safetensors")
    assert [record.step for record in run(tmp_path / "run", resumed)] == [5, 6]
    assert same(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(("save_every", "stop_at"), [(5, 1), (5, 3), (5, 4), (None, 2)])
def test_steps_before_the_first_checkpoint_are_said_to_be_lost_and_computed_again(tmp_path, save_every, stop_at):
    whole, again = Tiny(), Tiny()
    records = run(tmp_path / "whole", whole, save_every=save_every)
    run(tmp_path / "run", stop_at=stop_at, save_every=save_every)
    assert not (tmp_path / "run" / "last.safetensors").exists()
    with pytest.warns(UserWarning, match=rf"before its first checkpoint: all up to step {stop_at} is lost and comp"):
        assert [one.loss for one in run(tmp_path / "run", again, save_every=save_every)] == [x.loss for x in records]
    assert same(whole.state_dict(), again.state_dict())
    assert same(weights(tmp_path / "whole" / "best.safetensors"), weights(tmp_path / "run" / "best.safetensors"))


def test_a_run_that_did_nothing_yet_begins_without_a_word(tmp_path):
    run(tmp_path, stop_at=1)
    lose(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(run(tmp_path)) == 6


def test_an_optimiser_of_another_network_is_passed_over(tmp_path):
    run(tmp_path)
    path = tmp_path / "optimizer-6.safetensors"
    tensors = load_tensors(path)[0]
    for name in ("optimizer.0.exp_avg", "optimizer.9.step", "optimizer.x.step", "optimizer.0.exp_avg.more"):
        save_tensors(tensors | {name: torch.zeros(3)}, path)
        with pytest.warns(UserWarning, match=r"last.safetensors in .* cannot be read(?s:.)*goes on from step 4"):
            assert [record.step for record in run(tmp_path)] == [5, 6]
    for value in (-1e38, float("nan")):
        save_tensors(tensors | {"optimizer.0.step": torch.tensor(value)}, path)
        with pytest.warns(UserWarning, match=r"last.safetensors in .* cannot be read(?s:.)*goes on from step 4"):
            assert [record.step for record in run(tmp_path)] == [5, 6]


@pytest.mark.parametrize("stop_at", [4, None])
@pytest.mark.parametrize(
    "spoil", [spoilt, Path.unlink, lambda path: path.write_bytes(b""), lambda path: (path.unlink(), path.mkdir())]
)
def test_lost_best_weights_are_said_and_the_next_validation_writes_others(tmp_path, spoil, stop_at):
    whole, resumed = Tiny(), Tiny()
    run(tmp_path / "whole", whole)
    folder = tmp_path / "run"
    run(folder, stop_at=stop_at)
    spoil(folder / "best.safetensors")
    if (folder / "best.safetensors").is_dir():  # nothing can be written there
        (folder / "best.safetensors").rmdir()
    with pytest.warns(UserWarning, match=r"the best weights are lost \(.*best\.safetensors.*the next validation"):
        records = run(folder, resumed)
    assert [record.step for record in records] == ([5, 6] if stop_at else [])
    assert same(whole.state_dict(), resumed.state_dict())
    if stop_at:
        assert load_tensors(folder / "best.safetensors")[1]["facts"]["step"] == 6
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run(folder) == []


def test_without_the_best_weights_the_last_are_taken_and_that_is_said(tmp_path):
    model = small_network()
    for _ in fit(model, cases(range(3)), cases([3]), config(**SETTINGS), tmp_path):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_predictor(tmp_path)
        (tmp_path / "best.safetensors").unlink()
        load_predictor(tmp_path, "last")
        load_predictor(tmp_path / "last.safetensors")
    with pytest.warns(UserWarning, match=r"had best weights, and they are gone: these are its last ones"):
        found = load_predictor(tmp_path)
    assert same(found.network.state_dict(), weights(tmp_path / "last.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"has no best\.safetensors; it has .*which='last'"):
        load_predictor(tmp_path, "best")


def test_a_run_that_never_validated_has_no_best_weights_to_miss(tmp_path):
    for _ in fit(small_network(), cases(range(3)), None, config(steps=2), tmp_path):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_predictor(tmp_path)


def test_a_folder_in_the_place_of_a_checkpoint_is_named(tmp_path):
    run(tmp_path)
    (tmp_path / "last.safetensors").unlink()
    (tmp_path / "last.safetensors").mkdir()
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(OSError, match="is a folder, exp") as error:
        run(tmp_path)
    assert "None" not in str(error.value) and "checkpoint is whole" not in str(error.value)
