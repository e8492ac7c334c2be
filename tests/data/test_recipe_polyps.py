"""The polyps recipe: on real images where they are at hand, and on small trees with every known quirk."""

import json
import shutil

import numpy as np
import pytest
from imageio.v3 import imread, imwrite

from data_recipes.polyps import convert, read_mask
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare

CASES = 10


@pytest.fixture
def tree(tmp_path):
    """Six made-up pairs in the original layout: a bright disc each, its mask a JPEG as published."""
    top = tmp_path / "original" / "Kvasir-SEG"
    y, x = np.mgrid[:48, :64]
    for name in "abcdef":
        disc = (y - 24) ** 2 + (x - 20 - ord(name) % 8) ** 2 < 150
        image = np.where(disc[..., None], (200, 120, 110), (120, 50, 40)).astype(np.uint8)
        for what, array in (("images", image), ("masks", np.stack([disc * np.uint8(255)] * 3, axis=-1))):
            (top / what).mkdir(parents=True, exist_ok=True)
            imwrite(top / what / f"{name}.jpg", array, quality=92)
    return top


def test_real_images(real_data, tmp_path):
    original, copy = real_data / "polyps" / "Kvasir-SEG", tmp_path / "Kvasir-SEG"
    smallest = sorted((original / "images").iterdir(), key=lambda path: (path.stat().st_size, path.name))[:CASES]
    for what in ("images", "masks"):
        (copy / what).mkdir(parents=True)
        (copy / what / ".DS_Store").write_text("")
        for path in smallest:
            shutil.copy(original / what / path.name, copy / what)
    folder = prepare("polyps", tmp_path, source=copy, progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    names = sorted(path.stem for path in smallest)
    assert marker["counts"] == {"training": 8, "test": 2} and marker["facts"]["images"] == CASES
    assert marker["facts"]["empty_masks"] == 0
    train, test = (load_dataset("polyps", split, root=tmp_path) for split in ("all", "test"))
    assert test.names == [names[4], names[9]] and sorted(train.names + test.names) == names
    for dataset in (train, test):
        for index, item in enumerate(dataset):
            jpeg = imread(original / "masks" / f"{item['name']}.jpg")[..., 0] > 127
            assert np.array_equal(item["label"].numpy(), jpeg) and 0.001 < jpeg.mean() < 0.9
            image = imread(original / "images" / f"{item['name']}.jpg")
            assert np.array_equal(dataset.raw(index), np.moveaxis(image, -1, 0))


def test_all_the_real_masks_are_masks(real_data):
    paths = sorted((real_data / "polyps" / "Kvasir-SEG" / "masks").iterdir())
    assert len(paths) == 100
    for path in paths:
        shape = imread(path).shape[:2]
        mask, unclear = read_mask(path, shape)
        assert mask.any() and unclear == 0


def test_both_layouts_and_the_folder_above(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "hyper" / "segmented-images")
    (tmp_path / "hyper" / "segmented-images" / "bounding-boxes.json").write_text("{}")
    sources = (tree, tree.parent, tmp_path / "hyper", tmp_path / "hyper" / "segmented-images")
    results = [convert(source, tmp_path / f"out{k}") for k, source in enumerate(sources)]
    assert results[0]["images"] == 6 and all(facts == results[0] for facts in results)
    assert [path.name for path in (tmp_path / "out0" / "imagesTs").iterdir()] == ["e_0000.png"]


def test_other_kinds_of_pictures_are_read(tree, tmp_path):
    grey, rgba = np.full((48, 64), 90, np.uint8), np.full((48, 64, 4), 90, np.uint8)
    for name, image, mask in (("a", grey, (grey > 100) * np.uint8(255)), ("b", rgba, grey > 10)):
        for what in ("images", "masks"):
            (tree / what / f"{name}.jpg").unlink()
        imwrite(tree / "images" / f"{name}.PNG", image)
        imwrite(tree / "masks" / f"{name}.png", mask)
    (tree / "masks" / "._a.png").write_text("")
    assert convert(tree, tmp_path / "out")["empty_masks"] == 1
    assert imread(tmp_path / "out/imagesTr/b_0000.png").shape == (48, 64, 3)
    assert imread(tmp_path / "out/labelsTr/b.png").all() and not imread(tmp_path / "out/labelsTr/a.png").any()


def _replace(folder, name, array):
    def spoil(top):
        (top / folder / f"{name}.jpg").unlink()
        imwrite(top / folder / f"{name}.png", array)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda top: (top / "masks" / "b.jpg").unlink(), ValueError, r"images without a label \['b'\]"),
        (lambda top: (top / "images" / "b.jpg").unlink(), ValueError, r"labels without an image \['b'\]"),
        (lambda top: shutil.rmtree(top / "masks"), FileNotFoundError, r"holds no masks; give segmented-images or"),
        (
            lambda top: shutil.copy(top / "masks/a.jpg", top / "masks/a.png"),
            ValueError,
            r"holds both a\.jpg and a\.png",
        ),
        (_replace("masks", "b", np.zeros((48, 65), np.uint8)), ValueError, r"b\.png has shape \(48, 65\), its image"),
        (_replace("masks", "b", np.zeros((48, 64), np.uint16)), ValueError, r"b\.png is uint16; masks are 8-bit"),
        (_replace("masks", "b", np.full((48, 64), 100, np.uint8)), ValueError, r"b\.png has 100% of its pixels betw"),
        (_replace("images", "b", np.zeros((48, 64), np.uint16)), ValueError, r"b\.png is uint16; 8-bit images"),
        (lambda top: (top / "masks" / "b.jpg").write_text("?"), ValueError, r"b\.jpg cannot be read"),
    ],
)
def test_bad_files_are_named(tree, tmp_path, spoil, error, message):
    spoil(tree)
    with pytest.raises(error, match=message):
        convert(tree, tmp_path / "out")
