"""A network for images on a data set of volumes, from training to a look at the result; and looking at image files."""

import json
import sys
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from command_line import call
from imageio.v3 import imwrite

import xlstm_unet_lab as lab
from data_recipes import phantom_abdomen
from xlstm_unet_lab.inference.load import facts_of_run, load_predictor
from xlstm_unet_lab.overlays.description import Overlay

pytestmark = pytest.mark.usefixtures("one_thread")
PREDICT = ("--device", "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small abdomen phantom: six patients, thick slices."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TRAINING": 5, "TEST": 1, "SIZE": (8, 48, 64)}.items():
            patch.setattr(phantom_abdomen, name, value)
        lab.prepare("phantom_abdomen", root, progress=False)
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    network = (
        "--model",
        "unet",
        "--model-option",
        "features=[4,8]",
        "--patch-size",
        "32,32",
        "--slices",
        "--fold",
        "1",
    )
    # Hardly trained: soon it would call everything background, which any mistake predicts as well.
    short = ("--steps", "1", "--batch-size", "2", "--learning-rate", "0.0001", "--accelerator", "cpu")
    call("train", "phantom_abdomen", *network, *short, "--root", root, "--run-directory", folder)
    return folder


@pytest.fixture(scope="module")
def predicted(run, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    images = root / "Dataset901_phantom_abdomen" / "imagesTs"
    call("predict", run, images, "--out", out, "--uncertainty", *PREDICT)
    return out


def test_the_run_says_that_it_saw_slices_and_of_which_fold(run):
    facts, predictor = facts_of_run(run), load_predictor(run)
    assert (facts.recipe.name, facts.fold) == ("phantom_abdomen", 1)
    assert (predictor.patch_size, predictor.slice_axis, predictor.spatial_dims) == ((32, 32), 0, 3)
    assert lab.load_run(run).config.spatial_dims == 2


def test_a_volume_is_predicted_slice_by_slice(run, root, predicted):
    (path,) = predicted.glob("*.nii.gz")
    cases = lab.load_dataset("phantom_abdomen", "test", root)
    label, spacing = nibabel.load(path), cases[0]["spacing"]
    network = lab.load_run(run)
    slices = cases.raw(0).swapaxes(0, 1)
    wanted = np.stack([lab.predict(network, one, patch_size=(32, 32), spacing=spacing[1:]) for one in slices])
    assert len(np.unique(wanted)) > 2 and np.array_equal(np.asarray(label.dataobj).T, wanted)
    entropy = nibabel.load(predicted / "entropy" / path.name)
    assert entropy.get_data_dtype() == np.float32 and np.array_equal(entropy.affine, label.affine)
    assert not (predicted / "disagreement").exists(), "no mirror image of a patient is a patient"


def test_the_run_is_scored_on_volumes(run, root, predicted):
    truth = root / "Dataset901_phantom_abdomen" / "labelsTs"
    of_files = json.loads(call("evaluate", predicted, truth, "--root", root, "--json").stdout)
    of_run = json.loads(call("evaluate", run, "--root", root, "--json", *PREDICT).stdout)
    assert of_run == of_files and {row["case"] for row in of_run} == {"abdomen_005"}
    assert "volume_truth_mm3" in of_run[0] and any(0 < row["dice"] < 1 for row in of_run)


def test_mirroring_where_nothing_may_be_mirrored_is_refused(run, root, tmp_path):
    for command in (("evaluate", run, "--root", root), ("predict", run, root, "--out", tmp_path)):
        result = call(*command, "--mirror", *PREDICT, code=2)
        assert "no mirror image of the data is as likely" in result.stderr


@pytest.fixture
def pictured(monkeypatch):
    """The overlays that were asked for a picture, each with the number of dimensions it shows."""
    seen = []

    def screenshot(overlay, path, ndisplay=2):
        seen.append((overlay, ndisplay))
        return path

    monkeypatch.setattr(Overlay, "screenshot", screenshot)
    return seen


def test_view_shows_a_case_of_a_run(run, root, predicted, pictured, tmp_path):
    out = tmp_path / "new" / "a.png"
    printed = call("view", run, "--root", root, "--out", out, "--3d", *PREDICT).stdout
    ((overlay, ndisplay),) = pictured
    (path,) = predicted.glob("*.nii.gz")
    assert ndisplay == 3 and overlay.title == "abdomen_005" and out.parent.is_dir()
    assert np.array_equal(overlay.prediction, np.asarray(nibabel.load(path).dataobj).T)
    assert overlay.describe() in printed and printed.split()[-1] == str(out)
    validation = lab.load_dataset("phantom_abdomen", "val", root, 1).names[0]
    call("view", run, "--root", root, "--out", out, "--split", "val", "--case", validation, *PREDICT)
    assert pictured[1][0].title == validation
    wrong = call("view", run, "--root", root, "--case", "abdomen_05", *PREDICT, code=2)
    assert "no case is named 'abdomen_05': did you mean 'abdomen_005'" in wrong.stderr
    assert "leave out --truth" in " ".join(call("view", run, "--truth", out, code=2).stderr.split())


def test_view_shows_an_image_file(predicted, root, pictured, tmp_path):
    folder, (label,) = root / "Dataset901_phantom_abdomen", predicted.glob("*.nii.gz")
    image, truth = folder / "imagesTs" / "abdomen_005_0000.nii.gz", folder / "labelsTs" / label.name
    call("view", image, "--labels", label, "--truth", truth, "--out", tmp_path / "a.png")
    picture = tmp_path / "colour.png"
    imwrite(picture, np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8))
    call("view", picture, "--out", tmp_path / "b.png", "--3d")
    (volume, _), (flat, ndisplay) = pictured
    assert volume.anatomical and volume.spacing == (24.0, 6.0, 6.0) and volume.errors.any()
    assert flat.is_colour and ndisplay == 2 and flat.unit == "pixel" and flat.prediction is None


def test_view_opens_a_window_where_there_is_a_screen(monkeypatch, tmp_path):
    imwrite(tmp_path / "a.png", np.eye(8, dtype=np.uint8))
    viewer, done = SimpleNamespace(dims=SimpleNamespace(ndisplay=None)), []
    monkeypatch.setattr(Overlay, "napari", lambda overlay: viewer)
    monkeypatch.setattr("xlstm_unet_lab.overlays.viewer.arrange", lambda *arguments: done.append(arguments[0]))
    monkeypatch.setitem(sys.modules, "napari", SimpleNamespace(run=lambda: done.append("run")))
    call("view", tmp_path / "a.png")
    assert done == [viewer, "run"] and viewer.dims.ndisplay == 2


def test_view_without_a_screen_says_what_to_do(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("napari needs a screen")

    imwrite(tmp_path / "a.png", np.eye(8, dtype=np.uint8))
    monkeypatch.setattr(Overlay, "napari", fail)
    result = call("view", tmp_path / "a.png", code=1)
    assert result.stderr.strip() == "error: napari needs a screen; --out writes a picture"
    monkeypatch.setattr(Overlay, "screenshot", fail)
    result = call("view", tmp_path / "a.png", "--out", tmp_path / "b.png", code=1)
    assert result.stderr.strip() == "error: napari needs a screen"
