"""Pictures of an original layout: in colour, and paired with their labels."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_recipes.shared.pictures import as_rgb, paired, pictures_in, read_rgb

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (6, 9, 3), dtype=np.uint16)


def test_grey_fills_three_channels_and_deep_pictures_are_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(read_rgb(tmp_path / "a.png"), as_rgb(GREY)) and as_rgb(RGB) is RGB
    tifffile.imwrite(tmp_path / "a.tif", DEEP)
    with pytest.raises(ValueError, match=r"a\.tif is uint16; 8-bit images are expected"):
        read_rgb(tmp_path / "a.tif")


def test_names_and_labels_are_found_whatever_else_lies_there(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder, names in ((images, ("b.PNG", "a-1.tif", "a.bmp")), (labels, ("b_x.TIFF", "a-1_x.png", "a_x.tif"))):
        folder.mkdir()
        for name in (*names, f"._{names[0]}", ".DS_Store", "Thumbs.db"):
            (folder / name).write_text("")
    assert list(pictures_in(images)) == ["a", "a-1", "b"]
    assert [(name, image.name, label.name) for name, image, label in paired(images, labels, "_x")] == [
        ("a", "a.bmp", "a_x.tif"),
        ("a-1", "a-1.tif", "a-1_x.png"),
        ("b", "b.PNG", "b_x.TIFF"),
    ]
    (labels / "c_x.png").write_text("")
    (images / "d.png").write_text("")
    with pytest.raises(ValueError, match=r"images without a label \['d'\], labels without an image \['c'\]"):
        paired(images, labels, "_x")


def test_two_pictures_of_one_name_are_refused(tmp_path):
    for name in ("a.png", "a.TIF"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"holds both a\.TIF and a\.png; keep one"):
        pictures_in(tmp_path)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_pictures_at_all(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name} (is missing|holds no pictures)"):
        pictures_in(tmp_path / name)
