"""The napari plugin: its manifest, what it computes without a viewer, and its widgets in one (`inside_napari.py`)."""

import json
import os
import subprocess
import sys
import tomllib
import warnings

import nibabel
import npe2
import numpy as np
import pytest
import torch
from napari.layers import Image, Labels
from places import HELPERS, REPOSITORY
from plain_layer import layer

import xlstm_unet_lab as lab
from xlstm_unet_lab.data.colours import GREY
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.pictures import in_eight_bits
from xlstm_unet_lab.data.registry import get_recipe, recipe_names
from xlstm_unet_lab.inference.load import load_predictor, load_run
from xlstm_unet_lab.inference.mixer_rows import receptive_field
from xlstm_unet_lab.plugin import files, widgets
from xlstm_unet_lab.plugin.exploring import explore_layers
from xlstm_unet_lab.plugin.tasks import Place, compare, lies_like, parts_of, place_of, segment

MANIFEST = REPOSITORY / "xlstm_unet_lab" / "plugin" / "napari.yaml"


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory):
    """Two steps of training on cells made here: a run knows no more than what its files say."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    facts = {"spatial_dims": 2, "in_channels": 1, "num_classes": 3, "patch_size": (32, 32)}
    network = lab.build("xlstm_unet_bot", **facts, features=(4, 8), strides=((1, 1), (2, 2)))
    config = lab.TrainConfig(patch_size=(32, 32), steps=2, batch_size=2, accelerator="cpu")
    for _ in lab.fit(network, lab.load_dataset("phantom_microscopy", "train"), None, config, run_directory=folder):
        pass
    return folder


@pytest.fixture
def case_file(tmp_path):
    """A volume of two channels in nnU-Net's raw format, prepared elsewhere."""
    folder, label = tmp_path / "Dataset321_elsewhere", np.zeros((7, 6, 5), np.float32)
    label[:, :, 1] = 2  # the slice z=1
    for name, array in {"imagesTr/a_0000": label * 3, "imagesTr/a_0001": label + 1, "labelsTr/a": label}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 1, 2, 1])), folder / f"{name}.nii.gz")
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    facts = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder / "imagesTr" / "a_0000.nii.gz"


def test_manifest_is_valid():
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["napari.manifest"] == {manifest.name: "xlstm_unet_lab.plugin:napari.yaml"}
    assert manifest.name == project["project"]["name"]
    made_here = {name for name in recipe_names() if get_recipe(name).made_here}
    assert {sample.key for sample in manifest.contributions.sample_data} == made_here
    for sample in manifest.contributions.sample_data:
        assert sample.command == f"{manifest.name}.{sample.key}"
        command = next(one for one in manifest.contributions.commands if one.id == sample.command)
        assert getattr(files, command.python_name.partition(":")[2]).args == (sample.key,)


def test_widgets_in_napari(require_display, run_directory, case_file, tmp_path):
    known = {"PLUGIN_RUN": run_directory, "PLUGIN_DATA": os.environ["LAB_DATA"], "PLUGIN_CASE": case_file}
    known["NAPARI_CONFIG"] = tmp_path / "napari.yaml"  # not the user's settings
    helpers = [str(HELPERS / name) for name in ("inside_napari.py", "inside_cases.py")]
    command = [*require_display, sys.executable, "-m", "pytest", "-q", "--tb=short", *helpers]
    inner = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env=os.environ | {name: str(value) for name, value in known.items()},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert inner.returncode == 0, f"{inner.stdout[-6000:]}\n{inner.stderr[-3000:]}"


def test_triton_loads_beside_an_open_canvas(require_display):
    program = (
        "import napari; viewer = napari.Viewer(show=False)\n"
        "from xlstm_unet_lab.overlays.triton_first import load_triton; load_triton()\n"
        "import torch._dynamo, sys; sys.exit(0)"
    )
    run = subprocess.run([*require_display, sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]


TURNS = ({"rotate": 30}, {"shear": [0.3]}, {"affine": np.array([[1.1, 0, 5], [0, 1, 9], [0, 0, 1.0]])})


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: next(iter(turn)))
def test_what_is_found_lies_on_a_turned_layer(run_directory, turn):
    image = layer((50, 40), scale=(2, 3), translate=(4, 6), unit="um", **turn)
    with warnings.catch_warnings(record=True):
        (prediction, _) = segment(run_directory, [image])
    truth = Labels(prediction[0], **lies_like(image))
    (errors,) = compare(truth, [Labels(prediction[0], name="p", **lies_like(image))]).layers
    for data, keywords in (prediction[:2], errors[:2]):
        found = Labels(data, **{name: keywords[name] for name in lies_like(image)})
        for corner in ((0, 0), (30, 30), (49, 39)):
            np.testing.assert_allclose(found.data_to_world(corner), image.data_to_world(corner))
    with pytest.raises(ValueError, match="'image' is turned, sheared or registered"):
        explore_layers(run_directory, [image], (12, 30))


def test_a_stretched_layer_has_the_spacing_it_is_stretched_to():
    stretched = layer(scale=(2, 3), affine=np.diag([5.0, 1.0, 1.0]), rotate=90)
    assert place_of(stretched).spacing == (2, 15)


def test_channels_of_layers():
    grey, colour = layer(), layer((40, 48, 4), rgb=True)
    np.testing.assert_array_equal(parts_of([grey, grey], 2), [grey.data[None], grey.data[None]])
    np.testing.assert_array_equal(parts_of([colour], 2), [np.moveaxis(colour.data[..., :3], -1, 0)])
    assert parts_of([layer((4, 5, 6))], 3)[0].shape == (1, 4, 5, 6)


def test_of_several_levels_the_finest_is_read():
    fine = np.random.default_rng(0).random((40, 48))
    levels = Image([fine, fine[::2, ::2]], multiscale=True)
    np.testing.assert_array_equal(parts_of([levels], 2), [fine[None]])
    assert place_of(levels).spacing == (1, 1)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "no image layer is chosen"),
        ([layer((4, 5, 6))], "layer 'image' is 3-D, the network was trained on 2-D images"),
        ([layer(), layer((40, 40), name="other")], "'image' and 'other' lie on different grids"),
        ([layer(), layer(scale=np.array([2, 1]))], "different grids"),
        ([layer(), layer(translate=np.array([2, 1]))], "different grids"),
        *(([layer(), layer(**turn)], "different grids") for turn in TURNS),
    ],
)
def test_layers_that_do_not_fit(layers, words):
    with pytest.raises(ValueError, match=words):
        parts_of(layers, 2)


def test_place():
    scale, translate = np.array([2.0, 500.0]), np.array([0.0, 1000.0])
    assert place_of(layer(scale=scale, translate=translate)) == Place((2, 500), (0, 1000), "pixel")
    assert place_of(layer(scale=scale, translate=translate, unit="um")) == Place((0.002, 0.5), (0, 1), "mm")


def test_segment(run_directory):
    image = layer((50, 40), translate=np.array([4.0, 6.0]))
    (prediction, outlines) = segment(run_directory, [image])
    expected = lab.predict(load_run(run_directory, "last"), image.data[None], patch_size=(32, 32))
    np.testing.assert_array_equal(prediction[0], expected)
    assert prediction[1]["name"] == "prediction of tiny" and prediction[2] == "labels"
    assert [list(prediction[1][name]) for name in ("translate", "scale")] == [[4, 6], [1, 1]]
    assert prediction[1]["metadata"]["labels"] == {"interior": (1,), "boundary": (2,)}
    recipe = get_recipe("phantom_microscopy")
    assert {value: prediction[1]["colormap"][value] for value in (1, 2)} == {
        recipe.labels[name]: colour for name, colour in recipe.colours.items()
    }
    assert outlines[1]["name"] == "outlines of tiny"
    assert (segment(run_directory, [image], mirror=True)[0][0] != expected).any()


def test_segment_tracks_its_windows(run_directory):
    seen = []

    def track(batches):
        for batch in batches:
            seen.append(len(batches))
            yield batch

    segment(run_directory, [layer((100, 40))], track=track)
    assert len(seen) == seen[0] > 1

    class Enough(Exception):
        pass

    def stop(batches):
        raise Enough

    with pytest.raises(Enough):
        segment(run_directory, [layer((100, 40))], track=stop)


def test_segment_refuses(run_directory, tmp_path):
    with pytest.raises(ValueError, match=r"reads 1 channel \(.+\), the chosen layers have 2: choose as many layers"):
        segment(run_directory, [layer(), layer()])
    with pytest.raises(FileNotFoundError, match="is no run directory: it has no model"):
        segment(tmp_path, [layer()])


def labels(name, data, **facts):
    return layer(data=data, name=name, **facts)


@pytest.mark.parametrize("size", [(10, 20), (6, 10, 20)])
def test_compare(size):
    truth = np.zeros(size, int)
    truth[..., 2:6, 5:15] = 4
    poor = truth.copy()
    poor[-2] = 0
    place = {"scale": np.full(len(size), 2), "translate": np.ones(len(size))}
    found = compare(labels("truth", truth, **place), [labels("same", truth, **place), labels("poor", poor, **place)])
    assert list(found.table.columns[:4]) == ["prediction", "label", "value", "dice"]
    assert found.table[found.table["prediction"] == "same"]["dice"].tolist() == [1, 1]
    assert [keywords["name"] for _, keywords, _ in found.layers] == ["errors of same", "errors of poor"]
    np.testing.assert_array_equal(found.layers[1][0], (truth != poor).astype(np.uint8))
    assert [set(found.layers[1][1][name]) for name in ("scale", "translate")] == [{2}, {1}]
    assert found.worst == (0 if len(size) == 2 else 4)


def test_compare_takes_the_names_from_whichever_layer_has_them():
    drawn, known = np.eye(4, dtype=int), {"metadata": {"labels": {"liver": (1,)}}}
    for truth, prediction in (({}, known), (known, {"metadata": {"labels": {"lung": (1,)}}})):
        table = compare(labels("truth", drawn, **truth), [labels("same", drawn, **prediction)]).table
        assert table["label"][0] == "liver"


def test_compare_refuses():
    truth = labels("truth", np.ones((4, 4), int))
    with pytest.raises(ValueError, match="no prediction is chosen"):
        compare(truth, [])
    wrong = ({"data": np.ones((4, 5), int)}, {"scale": np.array([1, 2])}, {"translate": np.array([0, 1])})
    for facts in (*wrong, {"unit": "mm"}):
        with pytest.raises(ValueError, match="'truth' and 'other' lie on different grids: choose layers of one size"):
            compare(truth, [layer(**{"data": truth.data, "name": "other"} | facts)])
    with pytest.raises(ValueError, match=r"hold the values \[1\]"):
        compare(labels("truth", truth.data, metadata={"labels": {"liver": (2,)}}), [truth])
    with pytest.raises(
        ValueError, match=r"some labels hold \[255\], such as layer 'white', others \[1\], such as layer 'truth'"
    ):
        compare(truth, [labels("white", 255 * truth.data)])
    empty = labels("nothing", np.zeros((4, 4), int))
    with pytest.raises(ValueError, match="'nothing' and the predictions are empty: draw a label first"):
        compare(empty, [empty])


@pytest.mark.parametrize("size", [(64, 50), (20, 40)])  # larger than the patch, and smaller along one axis
def test_explored_layers_lie_on_the_image(run_directory, size):
    found, words = explore_layers(run_directory, [layer(size, scale=np.array([2, 2]))], (12, 30))
    field, decay, weights = found
    assert [keywords["name"] for _, keywords, _ in found] == ["receptive field", "decay, stage 1", "weights, stage 1"]
    assert field[0].shape == (32, 32) and weights[0].shape == decay[0].shape == (2, 4, 16, 16)
    at_pixel = (np.array([12, 30]) * 2 - field[1]["translate"]) / field[1]["scale"]
    np.testing.assert_allclose(at_pixel, at_pixel.round())
    coarse = (np.array([12, 30]) * 2 - weights[1]["translate"][2:]) / weights[1]["scale"][2:]
    y, x = (int(np.floor(place + 0.5)) for place in coarse)
    assert (decay[0][:, :, y, x] == 1).all()  # the forget gates leave all of the pixel's own token
    assert weights[1]["scale"][:2] == (1, 1) and weights[1]["translate"][:2] == (0, 0)
    assert "half of it is left after that many tokens" in words


def test_explored_field_is_that_of_the_network(run_directory):
    image = layer((32, 32))
    field = explore_layers(run_directory, [image], (9, 20))[0][0][0]
    patch = torch.from_numpy(normalise(in_eight_bits([image.data[None]])))  # as its training data
    np.testing.assert_array_equal(field, receptive_field(load_run(run_directory, "last"), patch, (9, 20)))


def test_explore_refuses(run_directory):
    for position in ((64, 0), (0, -1), (3,)):
        with pytest.raises(ValueError, match=r"lies outside the image of size \(64, 64\)"):
            explore_layers(run_directory, [layer((64, 64))], position)


def test_reader_takes_what_is_ours(run_directory, tmp_path):
    folder = get_recipe("phantom_microscopy").folder()
    lab.load_dataset("phantom_microscopy", "test")
    case = sorted((folder / "imagesTs").iterdir())[0]
    assert files.reader(str(case)) is not None and files.reader(str(run_directory)) is not None
    (tmp_path / "imagesTr").mkdir()
    for path in (tmp_path, tmp_path / "imagesTr" / "a_0000.png", folder / "labelsTs" / case.name, folder):
        assert files.reader(str(path)) is None
    assert files.reader([str(case)]) is None
    shown = files.case_overlay(case)
    assert shown.title == case.name.removesuffix("_0000.png") and shown.truth is not None and shown.credit
    shown = files.run_overlay(run_directory)
    expected = lab.predict(
        load_run(run_directory, "last"), shown.image, patch_size=load_predictor(run_directory).patch_size
    )
    np.testing.assert_array_equal(shown.prediction, expected)


def test_case_of_a_data_set_from_elsewhere(case_file):
    shown = files.case_overlay(case_file)
    assert shown.channel_names == ("T1", "T2") and shown.spacing == (2, 1, 0.5) and shown.anatomical
    assert shown.labels == {"whole": (1, 2), "core": (2,)} and shown.title == "a"
    assert (shown.truth[1] == 2).all() and shown.truth.sum() == 2 * 42
    (case_file.parents[1] / "labelsTr" / "a.nii.gz").unlink()
    assert files.case_overlay(case_file).truth is None


def test_voxels_to_be_ignored_are_a_grey_label(case_file):
    folder = case_file.parents[1]
    facts = json.loads((folder / "dataset.json").read_text())
    facts["labels"]["ignore"] = 3
    (folder / "dataset.json").write_text(json.dumps(facts))
    label = nibabel.load(folder / "labelsTr" / "a.nii.gz")
    values = np.asarray(label.dataobj).copy()
    values[:, :, 4] = 3
    nibabel.save(nibabel.Nifti1Image(values, label.affine), folder / "labelsTr" / "a.nii.gz")
    shown = files.case_overlay(case_file)
    assert (shown.truth[4] == 3).all() and shown.value_names[3] == "ignore" and shown.colours[3] == GREY
    assert shown.colours[1] != GREY


def test_devices_end_with_the_processor():
    assert widgets.available_devices()[-1] == "cpu"
