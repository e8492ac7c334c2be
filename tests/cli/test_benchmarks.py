"""The measuring itself: turns are taken, memory is seen, failures are told."""

import itertools
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import xlstm_unet_lab as lab
from benchmarks import accuracy, gpu, measure, mlstm, overlay, page, training_step
from benchmarks.__main__ import NAMES, main
from xlstm_unet_lab.overlays.layers import layer_data


def test_cases_take_turns_after_one_warm_up():
    calls = []
    seconds = measure.times({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert all(0 <= row["best"] <= row["median"] < math.inf for row in seconds.values())


def test_peak_memory_is_seen_in_a_fresh_process():
    few = measure.in_fresh_process("benchmarks.mlstm", "ours chunkwise", "512", "16")["bytes"]
    many = measure.in_fresh_process("benchmarks.mlstm", "ours parallel", "2048", "16")["bytes"]
    assert many > few + 4 * 2048**2 * 4, "an S x S matrix a head was not seen"


def test_a_failing_process_is_reported():
    assert "failed" in measure.in_fresh_process("benchmarks.mlstm", "no such form", "16", "16")


def test_results_keep_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    kept = json.loads(measure.keep("x", {"rows": [1]}).read_text())
    assert kept["rows"] == [1] and kept["machine"]["cores"] >= 1 and kept["machine"]["versions"]["torch"]


def test_table_lines_up(capsys):
    measure.table("title", ["name", "value"], [["a", 1.23456], ["longer", None]])
    assert capsys.readouterr().out.splitlines()[1:] == ["title", "name    value", "a        1.23", "longer      -"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU measures other forms")
def test_every_native_form_computes_what_ours_does():
    inputs = [torch.randn(1, 2, 128, 16) for _ in "qkv"] + [torch.randn(1, 2, 128), torch.randn(1, 2, 128) + 3]
    known = mlstm.forms()
    assert sum(name.startswith("chunkwise--native") for name in known) == 4
    want = known["ours chunkwise"](*inputs).numpy()
    for name, form in known.items():
        got = form(*inputs)
        got = got[0] if isinstance(got, tuple) else got
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=2e-4 * np.abs(want).max(), err_msg=name)


def test_a_step_of_every_small_case_runs(monkeypatch):
    monkeypatch.setattr(training_step, "WIDTHS", {2: (8, 16, 32, 32, 32, 32, 32)})
    for form in ("parallel", "chunkwise"):
        training_step.step(training_step.Case(2, 128, form, "bfloat16", True))()


def test_a_large_volume_opens_and_scrolls_as_wanted():
    kept = json.loads((measure.RESULTS / "overlay.json").read_text())
    assert overlay.reached(kept)
    for name, value in {"seconds to open": 5.1, "megabytes read while scrolling": 2.0, "image copied": True}.items():
        assert not overlay.reached(kept | {name: value}), name


def test_a_volume_is_shown_as_it_lies_in_memory(monkeypatch):
    monkeypatch.setattr(overlay, "SIZE", (64, 64, 32))
    image, truth, prediction = overlay.volume()
    (shown, _, kind), *others = layer_data(lab.overlay(image, truth=truth, prediction=prediction))
    assert kind == "image" and np.shares_memory(shown, image), "neither copied nor converted"
    assert all(type(data) is np.ndarray and data.shape == shown.shape for data, _, _ in others), "nothing is read later"


def test_the_page_shows_what_was_measured():
    text = page.PAGE.read_text()
    assert page.insert(text, page.figures()) == text, "run python -m benchmarks.page"
    with pytest.raises(ValueError, match="figures"):
        page.insert("no marks", "x")


def test_the_comparison_ranks_networks_over_their_seeds():
    def row(model, seed, *dices):
        by_case = dict(zip("ab", dices, strict=True))
        facts = {"task": "nuclei", "model": model, "minutes": 4, "seed": seed, "processor": "AVX2"}
        facts |= {"parameters": 1_000_000, "steps": 10}
        return facts | {"scores": {"mean": sum(dices) / 2}, "by case": by_case}

    runs = [row("worse", 0, 0.5, 0.5), row("better", 0, 0.6, 0.8), row("better", 1, 0.8, 0.8)]
    first, second = page.comparison_rows({"rows": runs})
    assert first == ["nuclei", "better", "1.00 M", "AVX2", "4", "10", "0.750 [0.700, 0.800]", "0.700, 0.800"]
    assert second[1] == "worse" and second[6] == "0.500 [0.500, 0.500]"


def test_every_form_is_measured_or_says_why_not():
    known = {name: form for name, form in gpu.forms().items() if "compiled" not in name}
    rows = gpu.measure_forms(known, [(1, 1, 128, 16)], "cpu", time.monotonic() + 100, repeats=1)
    assert {(row["form"], row["dtype"]) for row in rows} == set(itertools.product(known, gpu.DTYPES))
    for row in rows:
        runs = row["form"] in ("chunkwise", "S x S") or (torch.cuda.is_available() and row["form"] == "triton")
        assert ("failed" in row) != runs, row
        assert not runs or (row["both ms"] > 0 and row["tokens a second"] == pytest.approx(128e3 / row["both ms"]))
    late, _ = gpu.measure_forms({"S x S": known["S x S"]}, [(1, 1, 8, 8)], "cpu", 0.0)
    assert late["failed"] == "no time was left"


def test_a_scan_is_measured_at_every_size_of_chunk_and_says_which_is_chosen(monkeypatch):
    monkeypatch.setattr(gpu, "SCANS", (4, 8, 64))
    monkeypatch.setattr(gpu, "choose_chunk_size", lambda device, numbers: {24: 16}[numbers])
    rows = gpu.measure_scan("cpu", (2, 3, 32, 4), repeats=1)
    assert [(row["chunk"], row["chosen"]) for row in rows] == [(4, False), (8, False), (16, True), (32, False)]
    assert all(row["both ms"] > 0 for row in rows)


def test_the_prediction_counts_operations_and_bytes():
    few, many = gpu.predict((1, 4, 16384, 64), "bfloat16"), gpu.predict((2, 4, 16384, 64), "bfloat16")
    assert all(many[name] == pytest.approx(2 * few[name]) for name in few)
    rows = 4 * 16384
    # Forward: sums of k^T v, then q C, q k^T and the weighted v, of which half a chunk of 256 and half a tile are seen.
    assert few["forward operations"] == rows * 2 * (64 * 64 + 64 * 64 + 2 * 64 * (128 + 32))
    least = max(few["forward bytes"] / 4.3e12, few["forward operations"] / 790e12)
    assert few["forward ms"] == pytest.approx(1e3 * least)


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "mlstmm"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert all(name in said for name in ("mlstmm", *NAMES))


@pytest.mark.parametrize(("recipe", "spatial_dims"), [("hippocampus", 3), ("nuclei", 2)])
def test_the_variants_that_are_compared_have_mixers_in_different_stages(recipe, spatial_dims):
    task = accuracy.TASKS[recipe]
    facts = {"spatial_dims": spatial_dims, "channel_names": ("image",), "num_classes": 3}
    train = SimpleNamespace(recipe=SimpleNamespace(**facts))
    stages = {}
    for model in ("xlstm_unet_enc", "xlstm_unet_bot"):
        names = accuracy.network(task, model, train).state_dict()
        stages[model] = {name.split(".")[2] for name in names if name.startswith("encoder.mixers.")}
    assert stages == {"xlstm_unet_enc": {"2", "4"}, "xlstm_unet_bot": {"3"}}


def test_nuclei_on_light_ground_are_drawn_more_often():
    dark = torch.full((3, 8, 8), -0.5)
    dark[:, 2:4, 2:4] = 7.5  # mean 0, as normalised images have it
    cases = [{"image": image} for image in (dark, -dark, dark)]
    assert accuracy.drawn(accuracy.TASKS["nuclei"], cases).indices == [0, 1, 1, 1, 1, 2]
    assert accuracy.drawn(accuracy.TASKS["hippocampus"], cases).indices == [0, 1, 2]


def test_a_goal_that_was_missed_is_said():
    scores = {"mean": 0.85, "instance F1": 0.82}
    row = {"goals": [["mean", 0.9], ["instance F1", 0.8]], "stays_below": 0.95, "scores": scores}
    met = {"mean at least 0.9": False, "instance F1 at least 0.8": True, "mean below 0.95": True}
    assert accuracy.goals_met(row) == met
    facts = {"task": "nuclei", "model": "unet", "members": 2, "minutes": 4, "parameters": 1_000_000, "steps": 10}
    facts |= {"processor": "AVX2"}
    (line,) = page.accuracy_rows({"rows": [row | facts | {"interval of the mean, 95%": [0.8, 0.9]}]})
    assert line[1] == "2 x unet" and "mean at least 0.9: missed, instance F1 at least 0.8: reached" in line[-1]
    assert accuracy.goals_met({"goals": [], "stays_below": None, "scores": scores}) == {}
