"""The microscopy recipe, on small trees in the original layout with many formats and every known quirk."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import tifffile
from imageio.v3 import imread, imwrite

from data_recipes import microscopy
from data_recipes.microscopy import convert, read_instances
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare

CELLS = np.zeros((24, 32), np.uint16)
CELLS[2:12, 2:12], CELLS[2:12, 12:24], CELLS[14:22, 5:30] = 7, 300, 9  # two touch; the numbers have gaps
GREY = (40 + CELLS % 200).astype(np.uint8)
IMAGES = {  # name -> file ending, picture: the formats of the original
    "cell_00001": ("bmp", np.stack([GREY] * 3, axis=-1)),
    "cell_00002": ("png", GREY),
    "cell_00003": ("tif", np.where(CELLS > 0, 9000, 300).astype(np.uint16)),
    "cell_00004": ("TIFF", np.moveaxis(np.stack([CELLS * 100] * 3), 0, 0)),
    "cell_00005": ("jpg", np.stack([GREY] * 3, axis=-1)),
    "cell_00006": ("tiff", CELLS.astype(np.float32) / 300),
    "cell_00007": ("png", np.stack([GREY] * 4, axis=-1)),
}


def write_set(folder, names=tuple(IMAGES)):
    for what in ("images", "labels"):
        (folder / what).mkdir(parents=True)
        (folder / what / "._cell_00001.tiff").write_text("")
    for name in names:
        ending, picture = IMAGES[name]
        write = tifffile.imwrite if ending.lower().startswith("tif") else imwrite
        write(folder / "images" / f"{name}.{ending}", picture)
        tifffile.imwrite(folder / "labels" / f"{name}_label.tiff", CELLS, compression="zlib")
    return folder


@pytest.fixture
def tree(tmp_path):
    write_set(tmp_path / "original" / "Training-labeled")
    return tmp_path / "original"


def test_formats_become_rgb_in_8_bits_with_interior_and_boundary(tree, tmp_path):
    write_set(tree / "Tuning", ("cell_00001", "cell_00003"))
    write_set(tree / "Testing" / "Public", ("cell_00002",))
    (tree / "Testing" / "Hidden" / "images").mkdir(parents=True)
    folder = prepare("microscopy", tmp_path, source=tree, progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["counts"] == {"training": 7, "test": 3}
    assert marker["facts"] == {"cells": 30, "images_scaled_to_8_bits": 4, "images_without_cells": 0}
    test = load_dataset("microscopy", "test", root=tmp_path)
    assert test.names == ["testing_cell_00002", "tuning_cell_00001", "tuning_cell_00003"]
    train = load_dataset("microscopy", "all", root=tmp_path)
    assert train.names == [f"training_{name}" for name in IMAGES]
    for index, item in enumerate(train):
        assert item["image"].shape == (3, 24, 32) and item["label"].unique().tolist() == [0, 1, 2]
        instances = train.instances(index)
        # Numbered without gaps, in the order of the original numbers; touching cells stay two.
        assert [instances[5, 5], instances[18, 10], instances[5, 15]] == [1, 2, 3] and instances.max() == 3
        assert (item["label"][5, 11:13] == 2).all() and np.array_equal(instances > 0, CELLS > 0)
    deep = train.raw(2)
    assert deep.dtype == np.uint8 and set(deep[:, CELLS > 0].ravel()) == {255} and deep[:, 0, 0].tolist() == [0] * 3
    assert np.array_equal(train.raw(0), np.stack([GREY] * 3))


def test_without_test_sets_every_tenth_is_held_out(tree, tmp_path):
    for number in range(8, 22):
        for what, ending in (("images", "png"), ("labels", "tiff")):
            original = next((tree / "Training-labeled" / what).glob(f"cell_00002*.{ending}"))
            shutil.copy(original, original.with_name(original.name.replace("00002", f"{number:05d}")))
    facts = [convert(source, tmp_path / name) for source, name in ((tree, "one"), (tree / "Training-labeled", "two"))]
    assert facts[0] == facts[1] and facts[0]["cells"] == 3 * 21
    for out in ("one", "two"):
        held_out = sorted(path.name for path in (tmp_path / out / "imagesTs").iterdir())
        assert held_out == ["training_cell_00010_0000.png", "training_cell_00020_0000.png"]


def test_an_archive_as_source(tree, tmp_path):
    with zipfile.ZipFile(tmp_path / "Training-labeled.zip", "w") as bundle:
        for path in tree.rglob("*.*"):
            bundle.write(path, path.relative_to(tree))
    folder = prepare("microscopy", tmp_path, source=tmp_path / "Training-labeled.zip", progress=False)
    assert len(list((folder / "labelsTr").iterdir())) == 7


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (CELLS.astype(np.float32), 3),  # whole numbers in a float file
        (CELLS.astype(np.int32) * 100_000, 3),  # numbers beyond 16 bits, of few cells
        (CELLS > 0, 1),
        (CELLS * 0, 0),
        (CELLS + 1, 4),  # no background at all
    ],
)
def test_labels_are_numbered_anew(tmp_path, label, expected):
    tifffile.imwrite(tmp_path / "a.tif", label)
    instances = read_instances(tmp_path / "a.tif", CELLS.shape)
    assert instances.dtype == np.int32 and instances.shape == CELLS.shape and instances.max() == expected
    assert len(np.unique(instances)) == len(np.unique(label))


def test_an_image_without_cells_is_counted(tree, tmp_path):
    tifffile.imwrite(tree / "Training-labeled/labels/cell_00002_label.tiff", CELLS * 0)
    assert convert(tree, tmp_path / "out")["images_without_cells"] == 1
    assert not imread(tmp_path / "out/labelsTr/training_cell_00002.png").any()


def _label(array):
    return lambda top: tifffile.imwrite(top / "labels/cell_00003_label.tiff", array)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_label(CELLS[:-1]), ValueError, r"cell_00003_label\.tiff has shape \(23, 32\), its image \(24, 32\)"),
        (_label(np.stack([CELLS, CELLS, CELLS * 0], -1)), ValueError, r"cell_00003_label\.tiff is in colour"),
        (_label(CELLS + np.float32(0.5)), ValueError, r"cell_00003_label\.tiff holds \[0\.5, 7\.5, 9\.5\]; a label"),
        (_label(-CELLS.astype(np.int32)), ValueError, r"cell_00003_label\.tiff holds \[-300, -9, -7\]"),
        (_label(np.full(CELLS.shape, np.nan, np.float32)), ValueError, r"label\.tiff cannot be read: .*NaN"),
        (lambda top: (top / "labels/cell_00003_label.tiff").unlink(), ValueError, r"without a label \['cell_00003'\]"),
        (lambda top: (top / "images/cell_00003.tif").unlink(), ValueError, r"without an image \['cell_00003'\]"),
        (
            lambda top: shutil.copy(top / "images/cell_00002.png", top / "images/cell_00003.png"),
            ValueError,
            "holds both",
        ),
        (lambda top: tifffile.imwrite(top / "images/cell_00003.tif", np.stack([CELLS] * 5)), ValueError, "cannot be r"),
        (lambda top: shutil.rmtree(top / "labels"), FileNotFoundError, "labels is missing"),
        (lambda top: shutil.rmtree(top), FileNotFoundError, "holds no Training-labeled/images"),
    ],
)
def test_bad_files_are_named(tree, tmp_path, spoil, error, message):
    spoil(tree / "Training-labeled")
    with pytest.raises(error, match=message):
        convert(tree, tmp_path / "out")


def test_more_cells_than_16_bits_can_number(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.arange(65_537, dtype=np.int32).reshape(1, -1))
    with pytest.raises(ValueError, match=r"a\.tif holds 65,536 cells; at most 65,535"):
        read_instances(tmp_path / "a.tif", (1, 65_537))


def test_the_download_is_what_published_results_use():
    assert [file.address.rpartition("/")[2] for file in microscopy.RECIPE.files] == [
        "Training-labeled.zip",
        "Tuning.zip",
    ]
    assert all(len(file.sha256) == 64 for file in microscopy.RECIPE.files)
