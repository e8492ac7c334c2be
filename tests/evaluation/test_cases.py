"""Predictions beside the truth, from folders: names that match, orientations, labels with and without a recipe."""

import json

import nibabel
import numpy as np
import pytest
from imageio.v3 import imwrite
from torch import nn

from xlstm_unet_lab.data.cases import Facts
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.evaluation.cases import from_folders, from_run
from xlstm_unet_lab.inference.load import facts_of_run
from xlstm_unet_lab.inference.predictor import Predictor


@pytest.fixture
def folders(tmp_path):
    """Two folders to write labels to."""
    made = tmp_path / "predictions", tmp_path / "labelsTs"
    for folder in made:
        folder.mkdir()
    return made


def write_png(folder, name, label):
    imwrite(folder / f"{name}.png", label.astype(np.uint8))


def square(first):
    label = np.zeros((24, 24), int)
    label[first : first + 8, 4:12] = 1
    return label


def test_labels_are_compared_by_name(folders):
    for name in ("cell_0001", "cell_0002"):  # like channels of one case, but labels have none
        write_png(folders[0], name, square(4))
    write_png(folders[1], "cell_0001", square(4))
    write_png(folders[1], "cell_0002", square(8))
    table = from_folders(*folders).table().set_index(["case", "label"])
    assert table.loc[("cell_0001", "label 1"), "dice"] == 1
    assert table.loc[("cell_0002", "label 1"), "dice"] == 0.5
    assert "hd95_pixel" in table


def test_volumes_in_other_orientations_lie_on_the_same_anatomy(folders):
    label = np.zeros((6, 8, 10), np.uint8)
    label[1:3, 2:5, 3:9] = 2
    volume = nibabel.Nifti1Image(label, np.diag([1.0, 2, 3, 1]))
    nibabel.save(volume, folders[1] / "a.nii.gz")
    turned = volume.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    assert turned.shape != volume.shape
    nibabel.save(turned, folders[0] / "a.nii")
    cases = from_folders(*folders)
    outcome = cases.outcome("a")
    assert np.array_equal(outcome.prediction, outcome.truth)
    assert outcome.spacing == (3.0, 2.0, 1.0)
    assert cases.table()["dice"].eq(1).all()
    assert cases.scoring == {"labels": {"label 2": 2}, "unit": "mm"} and cases.credit == ""


def test_a_recipe_says_what_labels_mean(folders, tmp_path):
    for folder in folders:
        write_png(folder, "a", square(4))
    named = from_folders(*folders, recipe="nuclei")
    assert named.scoring["labels"] == {"interior": (1,), "boundary": (2,)}
    assert list(named.colours.values()) == list(get_recipe("nuclei").colours.values()) and "CC0" in named.credit
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "nuclei"}))
    assert from_folders(*folders).scoring == named.scoring


@pytest.fixture
def own(tmp_path):
    """A user's own labels, whose numbers are 3 and 7, and those prepared from them where LAB_DATA does not look."""
    source = tmp_path / "my cells"
    for name in "abcde":
        for what, array in (("images", 9 * square(4)), ("labels", 3 * square(4) + 7 * square(14))):
            (source / what).mkdir(parents=True, exist_ok=True)
            write_png(source / what, name, array)
    prepared = prepare("folder", tmp_path / "elsewhere", source, progress=False)
    return source / "labels", prepared / "labelsTr"


def test_prepared_labels_of_own_files_name_their_recipe_and_count_on_from_1(own, folders):
    theirs, prepared = own
    for name in "abcde":
        write_png(folders[0], name, 3 * square(4))
    for truth, recipe in ((prepared, None), (theirs, get_recipe("my_cells", prepared.parents[1]))):
        cases = from_folders(folders[0], truth, recipe=recipe)
        assert cases.scoring["labels"] == {"label 3": (1,), "label 7": (2,)}
        assert set(np.unique(cases.outcome("a").truth)) == {0, 1, 2}
        dice = cases.table().groupby("label")["dice"].mean().to_dict()
        assert dice == pytest.approx({"label 3": 1, "label 7": 0, "foreground": 2 / 3})
    assert from_folders(folders[0], theirs).scoring["labels"] == {"label 3": 3, "label 7": 7}
    (folders[0] / "dataset.json").touch()  # as nnU-Net leaves it beside what it predicts
    with pytest.raises(ValueError, match=r"case a: prediction holds \[3\], which no label has"):
        from_folders(folders[0], prepared).table()
    (folders[0] / "dataset.json").unlink()
    write_png(folders[0], "a", square(4))
    with pytest.raises(ValueError, match=r"a\.png holds \[1\]; your files of my_cells have .*'label 7': 7\}"):
        from_folders(folders[0], prepared).table()


def test_volumes_on_different_grids_are_not_compared(folders):
    label = np.ones((4, 5, 6), np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folders[1] / "a.nii.gz")
    for affine, message in ((np.diag([1.0, 1, 2, 1]), "up to 5 mm off"), (np.diag([-1.0, 1, 1, 1]), "up to 3 mm off")):
        nibabel.save(nibabel.Nifti1Image(label, affine), folders[0] / "a.nii.gz")
        with pytest.raises(ValueError, match=rf"predictions.a\.nii\.gz .*{message} .*labelsTs.a\.nii\.gz"):
            from_folders(*folders).table()


def test_instances_beside_the_truth_are_counted(folders, tmp_path):
    (tmp_path / "instancesTs").mkdir()
    for folder in (*folders, tmp_path / "instancesTs"):
        write_png(folder, "a", square(8))
    table = from_folders(*folders, recipe="nuclei").table().set_index("label")
    assert table.loc["foreground", ["instance_tp", "instance_f1"]].tolist() == [1, 1]


def test_images_go_with_the_labels(folders, tmp_path):
    for folder in folders:
        write_png(folder, "a", square(4))
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "images", "a_0000", 9 * square(4))
    assert from_folders(*folders).image is None
    assert from_folders(*folders, images=tmp_path / "images").image("a").max() == 9
    write_png(tmp_path / "images", "b", square(4))
    (tmp_path / "images" / "a_0000.png").unlink()
    with pytest.raises(ValueError, match=r"holds no image of \['a'\]"):
        from_folders(*folders, images=tmp_path / "images")


def test_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="labelsTs holds no label files"):
        from_folders(*folders)
    write_png(folders[1], "a", square(4))
    with pytest.raises(ValueError, match=r"only one of .* has labels of \['a'\]"):
        from_folders(*folders)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        from_folders(tmp_path / "nowhere", folders[1])
    write_png(folders[0], "a", np.stack([square(4), 2 * square(4), square(4)], -1))
    with pytest.raises(ValueError, match=r"a\.png is in colour; a label holds one number a pixel"):
        from_folders(*folders).table()
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        from_run(tmp_path)


def test_a_run_on_data_without_a_recipe(tmp_path, monkeypatch):
    (tmp_path / "model.json").write_text('{"build": null, "recipe": null}')
    assert facts_of_run(tmp_path) == Facts(None, 0, None) and facts_of_run(tmp_path).flip_axes is None
    unused = Predictor(nn.Identity(), (16, 16))
    monkeypatch.setattr("xlstm_unet_lab.evaluation.cases.load_predictor", lambda path, which: unused)
    with pytest.raises(ValueError, match="does not name its data set"):
        from_run(tmp_path)


def test_a_run_is_scored_on_its_own_fold_unless_another_is_named(tmp_path, monkeypatch):
    """Another fold's validation cases are training cases of the run."""
    (tmp_path / "model.json").write_text('{"build": null, "recipe": "phantom_microscopy", "fold": 2}')
    unused = Predictor(nn.Identity(), (16, 16))
    monkeypatch.setattr("xlstm_unet_lab.evaluation.cases.load_predictor", lambda path, which: unused)
    wanted = {fold: load_dataset("phantom_microscopy", "val", fold=fold).names for fold in (1, 2)}
    assert wanted[1] != wanted[2]
    assert from_run(tmp_path, split="val").names == tuple(wanted[2])
    assert from_run(tmp_path, split="val", fold=1).names == tuple(wanted[1])


def test_frames_of_one_video_are_one_group(folders):
    names = ("instrument_dataset_1_001", "instrument_dataset_1_002", "instrument_dataset_2_001")
    for name in names:
        for folder in folders:
            write_png(folder, name, square(4))
    table = from_folders(*folders, recipe="endoscopy").table()
    groups = dict(zip(table["case"], table["group"], strict=True))
    assert groups == {name: get_recipe("endoscopy").group(name) for name in names} and len(set(groups.values())) == 2
    assert "group" not in from_folders(*folders, recipe="nuclei").table()


def test_labels_that_are_scored_in_labelled_slices_only_come_from_the_recipe(folders):
    label = np.zeros((6, 6, 8), np.uint8)
    label[2:4, 2:4, 2:4] = get_recipe("abdomen_mri").labels["aorta"]
    longer = label.copy()
    longer[2:4, 2:4, 2:8] = label.max()
    for folder, array in zip(folders, (longer, label), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / "a.nii.gz")
    table = from_folders(*folders, recipe="abdomen_mri").table().set_index("label")
    assert table.loc["aorta", "dice"] == 1 and table.loc["foreground", "dice"] < 1


@pytest.mark.parametrize(
    ("predicted", "true", "dice"),
    [(1, 0, {"label 1": 0.0, "foreground": 0.0}), (0, 0, {"label 1": 1.0, "foreground": 1.0})],
    ids=["predicted only", "nothing anywhere"],
)
def test_what_the_truth_lacks_is_scored(tmp_path, predicted, true, dice):
    for folder, value in (("found", predicted), ("truth", true)):
        (tmp_path / folder).mkdir()
        imwrite(tmp_path / folder / "a.png", np.full((6, 6), value, np.uint8), plugin="pillow")
    table = from_folders(tmp_path / "found", tmp_path / "truth").table()
    assert dict(zip(table["label"], table["dice"], strict=True)) == dice


def test_images_are_found_by_the_names_of_labels(tmp_path):
    for name in ("found/s_0000", "truth/s_0000", "images/s_0000", "images/s_0001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        imwrite(tmp_path / f"{name}.png", np.eye(6, dtype=np.uint8), plugin="pillow")
    compared = from_folders(tmp_path / "found", tmp_path / "truth", images=tmp_path / "images")
    assert compared.image("s_0000").shape == (1, 6, 6)


def test_files_without_a_recipe_are_read_once(folders, monkeypatch):
    from xlstm_unet_lab.evaluation import cases

    for folder in folders:
        write_png(folder, "a", square(4))
    asked, read = [], cases.read_label
    monkeypatch.setattr(cases, "read_label", lambda path: asked.append(path) or read(path))
    found = from_folders(*folders)
    assert found.table()["dice"].eq(1).all() and found.outcome("a").truth.dtype == np.int32
    assert len(asked) == len(set(asked)) == 2


def test_what_a_lossy_file_left_is_no_label(folders):
    import io

    from PIL import Image

    content = io.BytesIO()
    Image.fromarray((square(5) * 255).astype(np.uint8)).save(content, "JPEG", quality=97)
    write_png(folders[0], "a", np.asarray(Image.open(content)))
    write_png(folders[1], "a", square(5) * 255)
    with pytest.raises(ValueError, match=r"predictions.a\.png holds .* JPEG makes, are no labels"):
        from_folders(*folders)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"overlap": 1.5}, "overlap is 1.5"), ({"batch_size": 0}, "batch_size is 0"), ({"split": "tset"}, "test")],
)
def test_options_are_judged_before_a_file_is_opened(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        from_run(tmp_path / "no run", **options)
