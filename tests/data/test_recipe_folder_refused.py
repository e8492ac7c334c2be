"""A user's folder: masks that were compressed with loss, and what was prepared when files were read in another way."""

import io
import json

import numpy as np
import pytest
from imageio.v3 import imwrite
from PIL import Image

from data_recipes.folder import recipe_for
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A folder of five pictures with masks."""
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "data"))
    for number in range(5):
        for what in ("images", "labels"):
            put(tmp_path / "cells" / what / f"{'abcde'[number]}.png", np.eye(12, dtype=np.uint8))
    return tmp_path / "cells"


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    imwrite(path, array)


def test_a_mask_that_was_a_jpeg_once_is_a_problem(cells):
    content = io.BytesIO()
    Image.fromarray(np.pad(np.full((21, 17), 255, np.uint8), 13)).save(content, "JPEG", quality=96)
    mask = np.asarray(Image.open(content))
    put(cells / "labels" / "a.png", mask)
    put(cells / "images" / "a.png", np.zeros(mask.shape, np.uint8))
    with pytest.raises(ValueError, match=r"a: the label holds .* blurring or JPEG makes, are no labels"):
        recipe_for(cells)


def test_what_was_prepared_when_files_were_read_in_another_way_is_refused(cells):
    folder = prepare("folder", source=cells, progress=False)
    assert prepare("folder", source=cells, progress=False) == folder
    marker = json.loads((folder / "recipe.json").read_text())
    del marker["read_as"]  # as older versions wrote it
    (folder / "recipe.json").write_text(json.dumps(marker))
    for ask in (lambda: prepare("folder", source=cells), lambda: load_dataset(marker["name"], "all")):
        with pytest.raises(FileExistsError, match="read some files in another way: delete it and prepare it again"):
            ask()
