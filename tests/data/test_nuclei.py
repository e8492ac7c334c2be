"""The nuclei recipe: on real images where they are at hand, and on small trees with every known quirk."""

import json
import shutil

import numpy as np
import pytest
from imageio.v3 import imread, imwrite

from data_recipes.nuclei import convert, read_instances
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare

CASES = 8


@pytest.fixture(scope="module")
def original(real_data, tmp_path_factory):
    """Eight real image folders, the smallest ones, beside the clutter of an archive packed on a Mac."""
    folders = sorted((real_data / "nuclei" / "stage1_train").iterdir())
    smallest = sorted(folders, key=lambda folder: sum(file.stat().st_size for file in folder.rglob("*.png")))[:CASES]
    top = tmp_path_factory.mktemp("original") / "stage1_train"
    for folder in smallest:
        shutil.copytree(folder, top / folder.name)
    (top / "__MACOSX").mkdir()
    (top / ".DS_Store").write_text("")
    return top


@pytest.fixture
def tree(tmp_path):
    """One made-up image folder: two square nuclei that overlap in one pixel column."""
    (tmp_path / "abc" / "images").mkdir(parents=True)
    (tmp_path / "abc" / "masks").mkdir()
    imwrite(tmp_path / "abc" / "images" / "abc.png", np.full((20, 24, 4), 7, np.uint8))
    for name, columns in (("a", slice(2, 12)), ("b", slice(11, 17))):
        mask = np.zeros((20, 24), np.uint8)
        mask[4:14, columns] = 255
        imwrite(tmp_path / "abc" / "masks" / f"{name}.png", mask)
    return tmp_path


def test_real_images(original, tmp_path):
    folder = prepare("nuclei", tmp_path, source=original.parent, progress=False)
    ids = sorted(path.name for path in original.iterdir() if len(path.name) > 12)
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["counts"] == {"training": 6, "test": 2}
    assert marker["facts"]["nuclei"] == len(list(original.rglob("masks/*.png")))
    test = load_dataset("nuclei", "test", root=tmp_path)
    assert test.names == [ids[3][:12], ids[7][:12]]
    train = load_dataset("nuclei", "all", root=tmp_path)
    assert len(train) == 6 and sorted(train.names + test.names) == [name[:12] for name in ids]
    for dataset in (train, test):
        for index, item in enumerate(dataset):
            assert item["image"].shape == (3, *item["label"].shape) and set(item["label"].unique().tolist()) <= {
                0,
                1,
                2,
            }
            instances = dataset.instances(index)
            assert np.array_equal(instances > 0, item["label"].numpy() > 0)
            # Every nucleus keeps an interior, from which it can be found again.
            assert set(instances[item["label"].numpy() == 1]) == set(range(1, instances.max() + 1))
            name = next(name for name in ids if name.startswith(item["name"]))
            assert np.array_equal(
                dataset.raw(index), imread(original / name / "images" / f"{name}.png")[..., :3].T.swapaxes(1, 2)
            )
            masks = [imread(path) > 0 for path in sorted((original / name / "masks").iterdir())]
            assert len(masks) == instances.max()
            assert all(len(np.unique(instances[mask])) == 1 for mask in masks)


def test_source_may_be_the_folder_or_the_one_above(original, tmp_path):
    one, two = (convert(source, tmp_path / name) for source, name in ((original, "one"), (original.parent, "two")))
    assert one == two and one["pixels_in_several_masks"] == one["empty_masks"] == 0


def test_the_smaller_nucleus_wins_a_shared_pixel(tree):
    instances, empty, shared = read_instances(tree / "abc" / "masks", (20, 24))
    assert (empty, shared) == (0, 10)
    assert (instances == 1).sum() == 90 and (instances == 2).sum() == 60  # 10 x 10 less the column, and 10 x 6


def test_a_hidden_nucleus_leaves_no_gap_and_an_empty_mask_is_counted(tree):
    imwrite(tree / "abc" / "masks" / "c.png", np.zeros((20, 24), np.uint8))
    whole = np.zeros((20, 24), np.uint8)
    whole[4:14, 2:17] = 255
    imwrite(tree / "abc" / "masks" / "d.png", whole)
    instances, empty, _ = read_instances(tree / "abc" / "masks", (20, 24))
    assert empty == 1 and set(np.unique(instances)) == {0, 1, 2}


def _sixteen_bit(case):
    imwrite(case / "images" / "abc.png", np.zeros((20, 24), np.uint16))


def _other_shape(case):
    imwrite(case / "masks" / "b.png", np.zeros((20, 25), np.uint8))


def _noisy_mask(case):
    imwrite(case / "masks" / "b.png", np.full((20, 24), 3, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_sixteen_bit, ValueError, r"abc\.png is uint16; 8-bit images are expected"),
        (_other_shape, ValueError, r"b\.png has shape \(20, 25\), its image \(20, 24\)"),
        (_noisy_mask, ValueError, r"b\.png is uint8 with values 3 to 3; masks hold 0 and 255 only"),
        (lambda case: (case / "images" / "abc.png").unlink(), FileNotFoundError, r"abc\.png is missing"),
        (lambda case: shutil.rmtree(case / "masks"), FileNotFoundError, "masks holds no masks"),
        (lambda case: shutil.rmtree(case), FileNotFoundError, "holds no folders ID/images"),
        (lambda case: shutil.copytree(case, case.parent / "a"), FileNotFoundError, r"a/images/a\.png is missing"),
    ],
)
def test_bad_files_are_named(tree, tmp_path_factory, spoil, error, message):
    spoil(tree / "abc")
    with pytest.raises(error, match=message):
        convert(tree, tmp_path_factory.mktemp("out"))


def test_ids_that_begin_alike_are_refused(tree, tmp_path_factory):
    for name in ("0123456789abX", "0123456789abY"):
        (tree / name / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="two image ids start with '0123456789ab'"):
        convert(tree, tmp_path_factory.mktemp("out"))
