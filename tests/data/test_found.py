"""What a prepared data set holds is told, and kept beside it."""

import numpy as np
from PIL import Image

from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import found_in


def test_what_was_found_is_kept(tmp_path):
    source = tmp_path / "mine"
    for case in range(5):
        label = np.zeros((20, 30), np.uint8)
        label[2:6, 3:9] = 7
        label[10:12, 3:5] = 200 * (case == 0)
        for what, array in (("images", label // 2 + case), ("labels", label)):
            (source / what).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(source / what / f"c{case}.png")
    folder = prepare("folder", root=tmp_path / "data", source=source, progress=False)
    labels, images = found_in(folder)
    assert labels.to_dict("records") == [
        {"label": "background", "number": 0, "cases": 5, "voxels": 5 * 600 - 5 * 24 - 4},
        {"label": "label 7", "number": 7, "cases": 5, "voxels": 5 * 24},
        {"label": "label 200", "number": 200, "cases": 1, "voxels": 4},
    ]
    sizes = images.set_index("of the images").T.to_dict("list")
    assert sizes["size y"] == [20, 20, 20] and sizes["spacing x, pixel"] == [1, 1, 1]
    assert sizes["intensity, image"] == [0, 3, 100]
