"""Commands about networks: what they leave behind is what the library gives."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from command_line import TRAIN, call
from imageio.v3 import imread, imwrite

import xlstm_unet_lab as lab
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.ops import progress

SHORT = ("--steps", "20", "--batch-size", "4", "--learning-rate", "0.01", "--accelerator", "cpu")
SHORT = (*SHORT, "--setting", "validation_cases=1", "--setting", "augment=false")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Prepared data with three small test cases only."""
    root = tmp_path_factory.mktemp("data")
    made = lab.prepare("phantom_microscopy", progress=False)
    folder = shutil.copytree(made, root / made.name)
    for part in ("images", "labels", "instances"):
        for place, path in enumerate(sorted((folder / f"{part}Ts").iterdir())):
            if place < 3:
                imwrite(path, imread(path)[:96, :128])
            else:
                path.unlink()
    return root


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A short run that has begun to tell objects from the background, and what the command printed."""
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


def test_train_reports_the_last_step(trained):
    run, result = trained
    assert result["run_directory"] == str(run)
    assert result["step"] == 20
    assert {"loss", "seconds", "dice mean", "dice interior", "dice boundary"} <= set(result)
    assert (run / "best.safetensors").is_file()


def test_a_finished_run_is_not_trained_again(trained, root):
    run, result = trained
    again = call("train", *TRAIN, *SHORT, "--root", root, "--run-directory", run, "--json")
    assert json.loads(again.stdout) == result
    assert "dice mean" in call("train", *TRAIN, *SHORT, "--root", root, "--run-directory", run).stdout


@pytest.mark.filterwarnings("ignore:.*log.csv lacks")
@pytest.mark.parametrize("left", [0, 0.5, -5])
def test_a_finished_run_whose_log_was_cut_still_says_how_it_ended(trained, root, left):
    run, result = trained
    whole = (run / "log.csv").read_bytes()
    cut = whole[: int(left * len(whole)) if left >= 0 else left]
    (run / "log.csv").write_bytes(cut)
    try:
        again = call("train", *TRAIN, *SHORT, "--root", root, "--run-directory", run, "--json")
    finally:
        (run / "log.csv").write_bytes(whole)
    assert json.loads(again.stdout) == result


def test_other_settings_in_the_same_folder_are_refused(trained, root):
    more = call("train", *TRAIN, *SHORT, "--seed", "1", "--root", root, "--run-directory", trained[0], code=2)
    assert "seed: 0 there, 1 now" in more.stderr


def test_the_seed_decides_the_first_weights(monkeypatch, root, tmp_path):
    weights = []

    def fit(network, *_, **__):
        weights.append([parameter.detach().clone() for parameter in network.parameters()])
        raise ValueError("enough")

    monkeypatch.setattr("xlstm_unet_lab.training.fit.fit", fit)
    for seed in (5, 5, 6):
        call("train", *TRAIN, "--seed", seed, "--root", root, "--run-directory", tmp_path, code=2)
    same, other = (all(map(torch.equal, weights[0], one)) for one in weights[1:])
    assert same and not other


def test_predict_writes_a_label_for_each_image(predicted, truth):
    out, printed = predicted
    names = sorted(path.name for path in truth.iterdir())
    assert sorted(path.name for path in out.glob("*.png")) == names
    assert sorted(printed) == [str(out / name) for name in names]
    assert sorted(path.name for path in (out / "coloured").iterdir()) == names


@pytest.mark.parametrize("others", [(), ("b.png",), ("good.png",)])
def test_files_that_fail_are_listed_whether_they_come_alone_or_not(trained, tmp_path, others):
    for name in ("a.png", *others):
        (tmp_path / name).write_bytes(b"junk")
    if "good.png" in others:
        imwrite(tmp_path / "good.png", np.zeros((64, 64), np.uint8), plugin="pillow")
    names = [tmp_path / name for name in ("a.png", *others)]
    said = call("predict", trained[0], *names, "--out", tmp_path / "out", "--device", "cpu", code=1).stderr
    failed = 1 + ("b.png" in others)
    assert f"{failed} of {len(names)} cases were left out (all others are in {tmp_path}/out); " in said
    assert f"; {tmp_path}/a.png cannot be read" in said


def test_files_hold_what_the_library_predicts(trained, predicted, truth, root):
    """Of the weights and the settings that the run's folder holds, in full size and with some structure."""
    out, model = predicted[0], lab.load_run(trained[0])
    cases = lab.load_dataset("phantom_microscopy", "test", root)
    for place, name in enumerate(cases.names):
        label = lab.predict(model, cases.raw(place), patch_size=(64, 64))
        assert np.unique(label).tolist() == [0, 1, 2] and np.array_equal(imread(out / f"{name}.png"), label)
        numbered = imread(out / "instances" / f"{name}.png")
        assert numbered.dtype == np.uint16 and np.array_equal(numbered, instances_from_classes(label))
    scores = json.loads(call("evaluate", out, truth, "--json").stdout)
    foreground = [row["dice"] for row in scores if row["label"] == "foreground"]
    assert min(foreground) > 0.3 and len(set(foreground)) == 3


def test_uncertainty_is_written_beside_the_labels(trained, truth, tmp_path):
    image = sorted((truth.parent / "imagesTs").iterdir())[0]
    call("predict", trained[0], image, "--out", tmp_path, "--uncertainty", "--overlap", "0", "--device", "cpu")
    maps = [imread(next((tmp_path / what).iterdir())) for what in ("probability", "entropy", "disagreement")]
    assert all(one.dtype == np.float32 and one.shape == (96, 128) and one.max() > 0.01 for one in maps)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Eight pictures of a user's own, whose labels are 3 and 255, and a run on them where LAB_DATA does not look."""
    folder = tmp_path_factory.mktemp("own")
    source, root, run = folder / "my cells", folder / "data", folder / "run"
    for number in range(8):
        image = np.random.default_rng(number).integers(0, 255, (32, 32)).astype(np.uint8)
        for what, array in (("images", image), ("labels", np.choose(image // 86, [0, 3, 255]).astype(np.uint8))):
            (source / what).mkdir(parents=True, exist_ok=True)
            imwrite(source / what / f"cell_{number}.png", array)
    lab.prepare("folder", root, source, progress=False)
    network = ("--model", "unet", "--model-option", "features=[4,8]", "--patch-size", "32,32")
    call("train", "my_cells", *network, *SHORT, "--root", root, "--run-directory", run)
    return source, root, run


def test_a_run_on_own_files_predicts_where_its_data_is_unknown_and_in_their_numbers(own, tmp_path):
    source, root, run = own
    call("predict", run, source / "images", "--out", tmp_path, "--coloured", "--uncertainty", "--device", "cpu")
    for path in (source / "labels").iterdir():
        label = lab.predict(lab.load_run(run), imread(source / "images" / path.name)[None], patch_size=(32, 32))
        assert len(np.unique(label)) > 1 and np.array_equal(imread(tmp_path / path.name), np.choose(label, [0, 3, 255]))
    theirs = json.loads(call("evaluate", tmp_path, source / "labels", "--json").stdout)
    prepared = json.loads(call("evaluate", tmp_path, root / "Dataset501_my_cells" / "labelsTr", "--json").stdout)
    scores = [[row["dice"] for row in rows] for rows in (theirs, prepared)]
    assert scores[0] == scores[1] and max(scores[0]) > 0.3


def test_a_run_on_own_files_is_scored_where_its_data_is(own, tmp_path):
    _, root, run = own
    lost = call("evaluate", run, "--device", "cpu", code=2).stderr
    assert "no recipe is named 'my_cells'" in lost and "name another by root=, --root or LAB_DATA" in lost
    for command in (("evaluate", run), ("view", run), ("report", run, "--out", tmp_path / "page.html")):
        nothing = call(*command, "--root", root, "--device", "cpu", code=2)
        assert "no test cases of my_cells were held out: use --split val" in nothing.stderr
    rows = json.loads(call("evaluate", run, "--root", root, "--split", "val", "--device", "cpu", "--json").stdout)
    assert {row["label"] for row in rows} == {"label 3", "label 255", "foreground"}
    marker = root / "Dataset501_my_cells" / "recipe.json"
    kept = marker.read_text()
    marker.write_text(kept.replace("label 255", "debris"))
    other = call("evaluate", run, "--root", root, "--split", "val", "--device", "cpu", code=2)
    marker.write_text(kept)
    assert "the run learnt" in other.stderr and "'debris': 2" in other.stderr


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


def test_report_of_a_run_shows_its_cases(trained, root, tmp_path):
    page = tmp_path / "page.html"
    call("report", trained[0], "--root", root, "--out", page, "--device", "cpu")
    text = page.read_text()
    assert text.count("<img") >= 3
    assert all(f"The {what} case of {trained[0]}" in text for what in ("best", "median", "worst"))


def test_results_go_to_folders_that_are_made(predicted, truth, tmp_path):
    table, page = tmp_path / "a" / "b" / "scores.csv", tmp_path / "c" / "page.html"
    call("evaluate", predicted[0], truth, "--out", table)
    call("report", predicted[0], "--truth", truth, "--out", page)
    assert table.is_file() and page.is_file()


def test_distances_to_nothing_are_null_in_json(truth, tmp_path):
    for path in truth.iterdir():
        imwrite(tmp_path / path.name, np.zeros_like(imread(path)))
    rows = json.loads(call("evaluate", tmp_path, truth, "--json").stdout)
    assert [row["dice"] for row in rows] == [0] * 9 and [row["hd95_pixel"] for row in rows] == [None] * 9


def test_slices_of_pictures_are_refused(root, tmp_path):
    result = call("train", *TRAIN, *SHORT, "--slices", "--root", root, "--run-directory", tmp_path, code=2)
    assert "of a 3-D data set" in result.stderr


def test_train_says_how_far_it_is_in_plain_lines(monkeypatch, root, tmp_path):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    short = ("--steps", 2, "--batch-size", 1, "--accelerator", "cpu", "--setting", "validation_cases=1")
    said = call("train", *TRAIN, *short, "--root", root, "--run-directory", tmp_path / "run").stderr
    assert "\r" not in said and "training: 2 of 2 steps" in said and "validating: 0 of 1 parts" in said
