"""A user's own folder: pictures and volumes, what is read off them, and what is wrong with them."""

import dataclasses
import json
import os
import pickle
import re

import nibabel
import numpy as np
import pytest
import tifffile
from imageio.v3 import imread, imwrite
from PIL import Image

from data_recipes.folder import COLOURS, RECIPE, look_through, recipe_for
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import get_recipe, list_recipes

SIZE, VOLUME = (12, 14), (7, 6, 5)  # (y, x) and (x, y, z)
AFFINE = np.diag([1.0, 1.5, 4.0, 1.0])


def label_of(shape, values=(0, 1), seed=0):
    return np.random.default_rng(seed).choice(values, shape).astype(np.uint8)


def put(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array)
    else:
        imwrite(path, array, plugin="pillow")


def fill(source, cases=6, ending=".png", channels=None, values=(0, 1)):
    """A folder with cases a, b, c, ...; `channels` numbered files for each image, or None: one without a number."""
    volumes = ending.startswith(".nii")
    shape = VOLUME if volumes else SIZE
    for position, name in enumerate("abcdefghijkl"[:cases]):
        image = np.random.default_rng(position).integers(0, 200, shape).astype(np.uint8)
        numbers = [""] if channels is None else [f"_{channel:04d}" for channel in range(channels)]
        for number in numbers:
            put(source / "images" / f"{name}{number}{ending}", image)
        suffix = ending if volumes else ".png"
        put(source / "labels" / f"{name}{suffix}", label_of(shape, values, position))
    return source


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def cells(tmp_path):
    return fill(tmp_path / "my cells")


# What comes out


def test_pictures(tmp_path, root):
    source = fill(tmp_path / "my cells", cases=11, values=(0, 3, 255))
    (source / "labels.json").write_text('{"background": 0, "debris": 255, "nucleus": 3}')
    for folder in ("images", "labels"):
        (source / folder / "._a.png").write_bytes(b"\0")
        (source / folder / "Thumbs.db").write_bytes(b"\0")
    folder = prepare("folder", source=source, progress=False)
    assert folder == root / "Dataset501_my_cells"
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["counts"] == {"training": 9, "test": 2}
    assert marker["facts"] == {"images_scaled_to_8_bits": 0}
    train, test = load_dataset("my_cells", "all"), load_dataset("my_cells", "test")
    assert test.names == ["e", "j"] and train.recipe.labels == {"background": 0, "nucleus": 1, "debris": 2}
    assert train.recipe.label_numbers == {"nucleus": 3, "debris": 255} and train.recipe.flip_axes is None
    assert train.recipe.colours == {"nucleus": COLOURS[0], "debris": COLOURS[1]} and train.recipe.spatial_dims == 2
    assert train[0]["spacing"] == (1.0, 1.0) and train.recipe.spacing_unit == "pixel"
    original = imread(source / "labels" / "a.png")
    assert np.array_equal(train[0]["label"], np.searchsorted([0, 3, 255], original))
    assert np.array_equal(train.raw(0)[0], imread(source / "images" / "a.png"))


def test_volumes_of_two_channels(tmp_path):
    source = fill(tmp_path / "scans", ending=".nii.gz", channels=2, values=(0, 1, 5))
    recipe = load_dataset(
        json.loads((prepare("folder", source=source) / "recipe.json").read_text())["name"], "all"
    ).recipe
    assert recipe.channel_names == ("channel 0", "channel 1") and recipe.spatial_dims == 3
    assert recipe.labels == {"background": 0, "label 1": 1, "label 5": 2} and recipe.flip_axes == ()
    assert recipe.tolerances == {"label 1": 4.0, "label 5": 4.0} and recipe.spacing_unit == "mm"
    item = load_dataset("scans", "train")[0]
    assert item["image"].shape == (2, *VOLUME[::-1]) and item["spacing"] == (4.0, 1.5, 1.0)
    assert len(load_dataset("scans", "all")) == 6 and len(load_dataset("scans", "test")) == 0
    assert not recipe.made_here and pickle.loads(pickle.dumps(recipe)).labels == recipe.labels


def test_volumes_are_flipped_along_the_axes_that_labels_json_names(tmp_path):
    source = fill(tmp_path / "scans", ending=".nii")
    for text, axes in (('{"flip_axes": [2, 1]}', (1, 2)), ('{"tumour": 1, "flip_axes": []}', ())):
        (source / "labels.json").write_text(text)
        recipe = recipe_for(source)
        assert recipe.flip_axes == axes and len(recipe.labels) == 2 and recipe.label_numbers == {}


def test_labels_with_another_affine_in_whole_floats(tmp_path):
    source = fill(tmp_path / "scans", ending=".nii")
    turned = np.diag([-1.0, -1.5, 4.0, 1.0])
    for what, dtype in (("images", np.int16), ("labels", np.float32)):
        put(source / what / "a.nii", np.arange(210).reshape(VOLUME).astype(dtype) % 2, turned)
    prepare("folder", source=source, progress=False)
    dataset = load_dataset("scans", "all")
    assert np.array_equal(dataset[0]["label"], np.arange(210).reshape(VOLUME)[::-1, ::-1].T % 2)
    assert np.array_equal(dataset[0]["label"], dataset.raw(0)[0])


@pytest.mark.parametrize(
    ("ending", "image", "channels", "scaled"),
    [
        (".png", label_of(SIZE, range(256)), 1, 0),
        (".PNG", label_of(SIZE, range(256)), 1, 0),
        (".png", label_of((*SIZE, 3), range(256)), 3, 0),
        (".png", label_of((*SIZE, 4), range(256)), 3, 0),
        (".png", label_of(SIZE, range(256)).astype(np.uint16) * 200, 1, 6),
        (".bmp", label_of((*SIZE, 3), range(256)), 3, 0),
        (".jpg", label_of((*SIZE, 3), range(256)), 3, 0),
        (".jpeg", label_of(SIZE, range(256)), 1, 0),
        (".tif", label_of(SIZE, range(256)).astype(np.uint16) * 200, 1, 6),
        (".tiff", np.random.default_rng(0).normal(size=SIZE).astype(np.float32), 1, 6),
        (".tif", label_of((*SIZE, 3), range(256)), 3, 0),
    ],
)
def test_kinds_of_pictures(tmp_path, ending, image, channels, scaled):
    source = fill(tmp_path / "mixed")
    for path in list((source / "images").iterdir()):
        path.unlink()
        put(path.with_suffix(ending.lower()), image)
        path.with_suffix(ending.lower()).rename(path.with_suffix(ending))
    folder = prepare("folder", source=source, progress=False)
    dataset = load_dataset("mixed", "all")
    assert dataset[0]["image"].shape == (channels, *SIZE)
    assert json.loads((folder / "recipe.json").read_text())["facts"]["images_scaled_to_8_bits"] == scaled
    if not scaled and ending.lower() not in (".jpg", ".jpeg"):
        assert np.array_equal(dataset.raw(0), np.atleast_3d(image)[..., :3].transpose(2, 0, 1))


def test_three_grey_files_are_the_channels_of_a_picture(tmp_path):
    source = fill(tmp_path / "stains", channels=3)
    put(source / "images" / "a_0002.png", np.full(SIZE, 9, np.uint8))
    prepare("folder", source=source, progress=False)
    dataset = load_dataset("stains", "all")
    assert dataset.recipe.channel_names == ("channel 0", "channel 1", "channel 2")
    assert (dataset.raw(0)[2] == 9).all() and np.array_equal(dataset.raw(0)[0], dataset.raw(0)[1])


def test_a_number_at_the_end_of_a_name_is_no_channel_where_the_label_has_it_too(tmp_path):
    source = tmp_path / "photos"
    for number in range(5):
        for what in ("images", "labels"):
            put(source / what / f"IMG_{number:04d}.png", label_of(SIZE, seed=number))
    assert list(look_through(source).cases) == [f"IMG_{number:04d}" for number in range(5)]


def test_palettes_masks_of_one_bit_and_grey_in_three_channels(cells):
    numbers = label_of(SIZE, (0, 1))
    palette = Image.fromarray(numbers, mode="L").convert("P")
    palette.putdata(numbers.ravel().tolist())
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.save(cells / "labels" / "a.png")
    put(cells / "labels" / "b.png", np.stack([numbers] * 3, -1))
    put(cells / "labels" / "c.png", np.dstack([numbers] * 3 + [np.full(SIZE, 255, np.uint8)]))
    assert look_through(cells).values == {"label 1": 1}
    prepare("folder", source=cells, progress=False)
    dataset = load_dataset("my_cells", "all")
    assert all(np.array_equal(dataset[position]["label"], numbers) for position in range(3))
    for path in (cells / "labels").iterdir():
        Image.fromarray(numbers > 0).save(path)  # one bit a pixel
    assert look_through(cells).values == {"label 1": 1}


# Finding it again


def test_several_folders_have_numbers_of_their_own(tmp_path, root):
    sources = [fill(tmp_path / name) for name in ("one", "two", "three")]
    folders = [prepare("folder", source=source, progress=False).name for source in sources]
    assert folders == ["Dataset501_one", "Dataset502_two", "Dataset503_three"]
    assert prepare("folder", source=sources[1], progress=False).name == "Dataset502_two"
    assert prepare("two", progress=False) == prepare("two", source=sources[1], progress=False)
    table = list_recipes().set_index("name")
    assert table.loc["two", "prepared"] and not table.loc["folder", "prepared"]
    assert table.loc["two", "how it comes"] == table.loc["folder", "how it comes"] == "source=, your own files"
    assert get_recipe("two").folder() == root / "Dataset502_two" and get_recipe("two").licence == "your own"
    with pytest.raises(KeyError, match=r"no recipe is named 'thre': did you mean 'three'\?"):
        get_recipe("thre")
    with pytest.raises(ValueError, match=r"ask for it by that name\. Prepared so far: one, two, three"):
        load_dataset("folder", "train")


def test_unchanged_files_are_not_read_again_and_changed_ones_are_noticed(cells):
    folder = prepare("folder", source=cells, progress=False)
    kept = get_recipe("my_cells")
    assert recipe_for(cells, {"my_cells": kept}) is kept
    put(cells / "labels" / "a.png", np.zeros(SIZE, np.uint8))
    os.utime(cells / "labels" / "a.png", ns=(1, 1))
    with pytest.raises(FileExistsError, match="because the files are others or have changed since: move or delete it"):
        prepare("folder", source=cells, progress=False)
    assert load_dataset("my_cells", "all").folder == folder


def test_the_facts_survive_being_recorded(tmp_path):
    source = fill(tmp_path / "scans", ending=".nii.gz", channels=2, values=(0, 1, 5))
    original = recipe_for(source)
    prepare("folder", source=source, progress=False)
    again = get_recipe("scans")
    for field in dataclasses.fields(again):
        if field.name not in ("convert", "dataset_id", "read_by"):
            assert getattr(again, field.name) == getattr(original, field.name), field.name


# What does not fit


def _remove(name):
    return lambda source: (source / name).unlink()


def _write(name, array, **options):
    return lambda source: put(source / name, array, **options)


def _text(name, text):
    return lambda source: (source / name).write_text(text)


PICTURE_PROBLEMS = [
    (_remove("labels/b.png"), r"images/b\.png has no label: labels/b\.png is expected"),
    (_remove("images/b.png"), r"labels/b\.png has no image"),
    (_write("labels/b.png", label_of((12, 13))), r"b: the label has shape \(12, 13\), its image \(12, 14\)"),
    (_write("images/b.png", label_of((*SIZE, 3))), "b has 3 channels, most have 1"),
    (_write("images/b_0000.png", label_of(SIZE)), r"images/b_0000\.png is channel 0, after 1 others"),
    (_write("labels/b.png", label_of((*SIZE, 3))), r"b: .*labels/b\.png is in colour"),
    (_text("images/b.png", "not a picture"), r"b: .*b\.png cannot be read"),
    (_text("labels/b.png", "not a picture"), r"b: .*b\.png cannot be read"),
    (_text("labels.json", '{"nucleus": 2}'), r"a: the label holds \[1\], not in labels\.json"),
]


@pytest.mark.parametrize(("spoil", "message"), PICTURE_PROBLEMS)
def test_problems_of_pictures_are_listed(cells, root, spoil, message):
    spoil(cells)
    with pytest.raises(ValueError, match=message):
        prepare("folder", source=cells, progress=False)
    assert not root.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_write("labels/b.nii", np.zeros((7, 6, 4), np.uint8)), r"b: labels/b\.nii has shape \(7, 6, 4\), the first"),
        (_write("labels/b.nii", np.zeros(VOLUME, np.uint8), affine=np.eye(4)), r"b: labels/b\.nii lies up to"),
        (_write("images/b.nii", np.zeros((*VOLUME, 2), np.uint8)), r"b: images/b\.nii has shape \(7, 6, 5, 2\)"),
        (_write("labels/b.nii", np.full(VOLUME, 0.5, np.float32)), r"b: .*b\.nii holds \[0.5\]; a label holds whole"),
        (_write("labels/b.nii", np.full(VOLUME, -1, np.int16)), r"b: .*b\.nii holds \[-1\]"),
        (_write("labels/b.nii", np.full(VOLUME, np.nan, np.float32)), r"b: .*b\.nii holds 210 values that are NaN"),
        (_write("labels/b.nii", np.arange(300).reshape(10, 6, 5).astype(np.int16)), "b: .*has shape"),
        (_text("labels/b.nii", "not a volume"), r"b: .*b\.nii is not a NIfTI file"),
    ],
)
def test_problems_of_volumes_are_listed(tmp_path, spoil, message):
    source = fill(tmp_path / "scans", ending=".nii")
    spoil(source)
    with pytest.raises(ValueError, match=message):
        recipe_for(source)


def test_all_problems_come_at_once_but_not_without_end(tmp_path):
    source = fill(tmp_path / "bad", cases=12)
    for path in (source / "labels").iterdir():
        put(path, label_of((3, 3)))
    with pytest.raises(ValueError) as caught:
        recipe_for(source)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("bad cannot be prepared, 12 problems:") and lines[-1] == "- ... and 2 more"
    assert [line[:4] for line in lines[1:-1]] == [f"- {name}:" for name in "abcdefghij"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{", "is not valid JSON"),
        ('["nucleus"]', "expected names with values"),
        ('{"nucleus": "1"}', "a number of its own for every name"),
        ('{"nucleus": 1, "debris": 1}', "a number of its own for every name"),
        ('{"nothing": 0, "nucleus": 1}', "background is 0 and 0 is background"),
        ('{"background": 1}', "background is 0 and 0 is background"),
        ('{"nucleus": 1, "flip_axes": [2]}', r'"flip_axes": \[2\]; a list of axes from 0 to 1 is expected'),
        ('{"nucleus": 1, "flip_axes": "y"}', r'"flip_axes": y; a list of axes from 0 to 1 is expected'),
    ],
)
def test_bad_names_of_labels(cells, names, message):
    (cells / "labels.json").write_text(names)
    with pytest.raises(ValueError, match=message):
        recipe_for(cells)


def test_folders_that_cannot_be_a_data_set(tmp_path, cells):
    for source, error, message in (
        (fill(tmp_path / "empty", values=(0,)), ValueError, r"the labels hold background \(0\) only"),
        (fill(tmp_path / "stains", channels=2), ValueError, "a: it has 2 files; a picture is one grey or colour file"),
        (fill(tmp_path / "nuclei"), ValueError, "prepared as 'nuclei', which is a recipe here: rename the folder"),
        (fill(tmp_path / "!"), ValueError, "needs letters or digits"),
        (cells / "images" / "a.png", ValueError, r"a\.png is not a folder; unpack it"),
        (tmp_path / "nowhere", FileNotFoundError, "does not exist"),
        (tmp_path, FileNotFoundError, "images is missing"),
    ):
        with pytest.raises(error, match=message):
            prepare("folder", source=source, progress=False)
    with pytest.raises(ValueError, match=r"made of your own files: call prepare\('folder', source=your folder\)"):
        prepare("folder")
    put(cells / "images" / "scan.nii.gz", np.zeros(VOLUME, np.uint8))
    with pytest.raises(ValueError, match="images holds both pictures and volumes"):
        recipe_for(cells)
    put(cells / "labels" / "a.jpg", imread(cells / "labels" / "a.png"))
    (cells / "labels" / "a.png").unlink()
    (cells / "images" / "scan.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"labels/a\.jpg cannot be read: it is a JPEG file, whose compression changes"):
        recipe_for(cells)


def test_instance_maps_are_recognised(cells):
    objects = np.arange(np.prod(SIZE) * 2).reshape(2 * SIZE[0], SIZE[1]).astype(np.uint16)
    put(cells / "labels" / "a.png", objects)
    put(cells / "images" / "a.png", np.zeros(objects.shape, np.uint8))
    with pytest.raises(ValueError, match=re.escape("give every class, not every object, its number")):
        recipe_for(cells)


def test_the_placeholder_states_no_files():
    assert not RECIPE.made_here and RECIPE.of_own_files and RECIPE.dataset_id == 500
