"""The kernel's half of the slicer, driven without a browser: what it sends, its traits and what they refuse."""

import gzip
import re

import numpy as np
import pytest
import traitlets
from places import REPOSITORY

from xlstm_unet_lab.evaluation.metrics import ERRORS
from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.slicer import LEVELS, Slicer, scene, slicer

SCRIPT = REPOSITORY / "xlstm_unet_lab" / "overlays" / "slicer.js"
SIZE = {2: (6, 5), 3: (4, 6, 5)}


def make(spatial_dims=3, channels=2, **options):
    size = SIZE[spatial_dims]
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, size)
    given = {"truth": truth, "prediction": np.roll(truth, 1, -1), "label_names": {"liver": 1, "aorta": 2}}
    given["spacing"] = (3.0, 1.0, 0.5)[-spatial_dims:]
    return overlay(generator.normal(100, 20, (channels, *size)), **(given | options))


def unpacked(data, dtype, shape):
    return np.frombuffer(gzip.decompress(data), dtype).reshape(shape)


def layer_of(sent, name):
    return next(layer for layer in sent["layers"] if layer["name"] == name)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_whole_case_is_sent(spatial_dims):
    case = make(spatial_dims)
    sent = scene(case)
    shape = sent["shape"]
    assert shape == [1] * (3 - spatial_dims) + list(SIZE[spatial_dims]) and len(sent["axes"]) == (3, 1)[shape[0] == 1]
    assert [channel["name"] for channel in sent["channels"]] == ["channel 0", "channel 1"]
    for channel, image in zip(sent["channels"], case.image, strict=True):
        (plane,) = channel["planes"]
        restored = channel["low"] + channel["step"] * unpacked(plane, "<u2", image.shape)
        np.testing.assert_allclose(restored, image, atol=0.51 * np.ptp(image) / (LEVELS - 1))
        assert image.min() <= channel["window"][0] < channel["window"][1] <= image.max()
    maps = {"truth": case.truth, "prediction": case.prediction, "errors": case.errors, "outlines": case.outlines}
    assert [layer["name"] for layer in sent["layers"]] == list(maps)
    for name, expected in maps.items():
        np.testing.assert_array_equal(unpacked(layer_of(sent, name)["data"], np.uint8, expected.shape), expected)


def test_bytes_and_constant_images_keep_their_values():
    values = np.arange(30, dtype=np.uint8).reshape(1, 6, 5)
    (channel,) = scene(overlay(values))["channels"]
    np.testing.assert_array_equal(unpacked(channel["planes"][0], "<u2", (1, 6, 5)), values)
    assert (channel["low"], channel["step"], channel["high"]) == (0, 1, 255)
    constant = slicer(overlay(np.full((1, 6, 5), 7.0)))
    assert constant.window == [1.0] and constant.scene["channels"][0]["low"] == 7


def test_a_few_bright_voxels_do_not_set_the_window_but_are_all_there_is_in_a_black_image():
    image = np.zeros((1, 100, 100))
    image[0, :50] = np.linspace(0, 1, 100)
    image[0, 0, 0] = 1000
    assert slicer(overlay(image)).window[0] < 2
    image = np.zeros((1, 100, 100))
    image[0, 0, 0] = 5
    shown = slicer(overlay(image))
    assert (shown.window, shown.level) == ([5], [2.5])


def test_colours_and_names_are_those_of_the_overlay():
    case = make(colours={1: "#0072B2", 2: "#E69F00"})
    sent = scene(case)
    truth = layer_of(sent, "truth")
    table = np.frombuffer(truth["table"], np.uint8).reshape(256, 4)
    assert table[1].tolist() == [0, 0x72, 0xB2, 255] and table[2].tolist() == [0xE6, 0x9F, 0, 255]
    assert not table[0].any() and not table[3:].any()
    assert truth["names"] == {"0": "background", "1": "liver", "2": "aorta"}
    assert layer_of(sent, "errors")["names"] == {"1": "missed", "2": "extra", "3": "confused"}
    assert [entry["name"] for entry in sent["legend"]] == ["liver", "aorta", *ERRORS]
    assert sent["legend"][0]["dice"] == case.scores["liver"] and sent["legend"][1]["colour"] == "#E69F00"
    assert sent["description"] == case.describe()


def test_entropy_is_clear_where_the_network_is_certain():
    probabilities = np.stack([np.full(SIZE[3], share) for share in (1.0, 0.0, 0.0)])
    probabilities[:, 2] = 1 / 3
    layer = layer_of(scene(make(probabilities=probabilities)), "entropy")
    sent = unpacked(layer["data"], np.uint8, SIZE[3])
    table = np.frombuffer(layer["table"], np.uint8).reshape(256, 4)
    assert (sent[2] == 255).all() and not sent[:2].any()
    assert layer["step"] * 255 == pytest.approx(1) and table[[0, 255], 3].tolist() == [0, 255]


def test_the_probability_of_the_prediction_is_a_layer_clear_where_it_is_certain():
    probabilities = np.stack([np.full(SIZE[3], share) for share in (1.0, 0.0, 0.0)])
    probabilities[:, 2] = np.array([0.6, 0.4, 0.0])[:, None, None]
    shown = slicer(make(probabilities=probabilities))
    layer = layer_of(shown.scene, "probability")
    sent = unpacked(layer["data"], np.uint8, SIZE[3]) * layer["step"]
    np.testing.assert_allclose(sent[:3, 0, 0], [1, 1, 0.6], atol=1 / 255)
    assert np.frombuffer(layer["table"], np.uint8).reshape(256, 4)[[0, 255], 3].tolist() == [255, 0]
    assert "probability" not in shown.layers


def test_labels_make_way_for_errors_whose_colours_they_share():
    shown = slicer(make(truth=np.ones(SIZE[3], int), instances=np.ones(SIZE[3], int)))
    assert shown.layers == ["prediction", "outlines"]
    shown.set_state({"layers": ["prediction", "outlines", "errors"]})  # as the browser does
    assert shown.layers == ["outlines", "errors"]
    shown.layers = ["outlines", "errors", "prediction"]  # asked for again
    assert shown.layers == ["outlines", "errors", "prediction"]


def test_the_slice_of_another_axis_goes_by_its_name():
    assert scene(make(2, anatomical=True, cut=1))["axes"][0]["name"] == "coronal (y)"


@pytest.mark.parametrize("anatomical", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_slices_are_turned_as_the_overlay_shows_them(anatomical, spatial_dims):
    case = make(spatial_dims, anatomical=anatomical)
    axes = scene(case)["axes"]
    for axis, facts in enumerate(axes):
        index = 1 if spatial_dims == 3 else 0
        plain = case.truth.take(index, axis) if spatial_dims == 3 else case.truth
        turned = np.flip(plain, [place for place, reverse in enumerate(facts["turned"]) if reverse])
        np.testing.assert_array_equal(turned, case.shown("truth", axis, index))
        assert facts["turned"] == [anatomical, anatomical]
    assert axes[0]["name"] == ("axial (z)" if anatomical else "z")


def test_what_is_seen_first():
    case = make()
    shown = slicer(case)
    assert (shown.axis, shown.slice, shown.channel) == (0, case.initial_slice, 0)
    assert shown.layers == ["prediction"] and slicer(make(prediction=None)).layers == ["truth"]
    assert slicer(make(instances=np.ones(SIZE[3], int))).layers == ["prediction", "outlines"]
    assert slicer(make(truth=None, prediction=None)).layers == []
    dark, bright = shown.scene["channels"][1]["window"]
    assert shown.level[1] - shown.window[1] / 2 == pytest.approx(dark)
    assert shown.level[1] + shown.window[1] / 2 == pytest.approx(bright)


def test_colour_images_are_one_channel_of_three_planes():
    photo = overlay(np.full((3, 6, 5), 40, np.uint8), channel_names=("red", "green", "blue"))
    (channel,) = scene(photo)["channels"]
    assert channel["name"] == "colour" and len(channel["planes"]) == 3
    assert (slicer(photo).window, slicer(photo).level) == ([255], [127.5]), "photographs are shown as they are"


def test_traits_are_set_and_followed():
    shown, seen = slicer(make()), []
    shown.slice = 0
    shown.observe(lambda change: seen.append((change["name"], change["new"])))
    shown.slice = 3
    shown.axis = 2
    shown.slice = 4
    shown.axis = 0  # which has four slices only
    assert shown.slice == 3
    shown.layers = ["errors", "truth"]
    expected = [("slice", 3), ("axis", 2), ("slice", 4), ("slice", 3), ("axis", 0), ("layers", ["errors", "truth"])]
    assert seen == expected
    shown.set_state({"axis": 1, "slice": 5})  # as the browser does, both at once
    assert (shown.axis, shown.slice) == (1, 5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("axis", 3, "axis is 3; it goes from 0 to 2 here"),
        ("slice", 4, "slice is 4; it goes from 0 to 3 here"),
        ("slice", -1, "slice is -1"),
        ("channel", 2, "channel is 2; it goes from 0 to 1"),
        ("opacity", 1.5, "opacity is 1.5; it goes from 0 to 1"),
        ("opacity", float("nan"), "opacity is nan"),
        ("window", [3.0], "give one finite number above 0 for each of channel 0, channel 1"),
        ("window", [3.0, 0.0], "above 0"),
        ("level", [3.0, float("nan")], "level is .*give one finite number for each"),
        ("layers", ["eror"], "no layer is called 'eror': did you mean 'errors'"),
    ],
)
def test_values_that_do_not_fit_are_refused(name, value, message):
    shown = slicer(make())
    before = getattr(shown, name)
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(shown, name, value)
    assert getattr(shown, name) == before


def test_label_values_must_fit_in_a_byte():
    truth = np.full(SIZE[2], 300)
    with pytest.raises(ValueError, match=r"label value 300, the slicer shows values up to 255: .* as instances"):
        slicer(overlay(np.zeros((1, *SIZE[2])), truth=truth))


def test_the_description_stands_in_where_the_widget_cannot_be_shown():
    case = make()
    data, _ = slicer(case)._repr_mimebundle_()
    assert data["text/plain"] == case.describe() and "application/vnd.jupyter.widget-view+json" in data


def test_the_script_needs_no_network_and_uses_every_trait():
    script = SCRIPT.read_text(encoding="utf-8")
    assert not re.search(r"https?://|\bimport\b|fetch\(", script)
    synced = {name for name, trait in Slicer.class_traits(sync=True).items() if trait.this_class is Slicer}
    assert all(f'"{name}"' in script for name in synced)
    assert len(script.splitlines()) < 350
