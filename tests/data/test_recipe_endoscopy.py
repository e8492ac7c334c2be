"""The endoscopy recipe, on small trees in the original layout; frames are shrunk but for one of full size."""

import json
import shutil

import numpy as np
import pytest
from imageio.v3 import imread, imwrite

from data_recipes import endoscopy
from data_recipes.endoscopy import convert, find_sequences, instrument_type, read_frame
from xlstm_unet_lab.data.dataset import load_dataset
from xlstm_unet_lab.data.prepare import prepare

FULL, CROPPED, CORNER = (20, 30), (12, 16), (4, 7)
INSTRUMENTS = {  # the folders of the original, with their irregular names, and the types they stand for
    1: {"Left_Prograsp_Forceps_labels": 2, "Maryland_Bipolar_Forceps_labels": 1, "Other_labels": 7},
    3: {"Left_Large_Needle_Driver_labels": 3, "Right_Large_Needle_Driver_labels": 3},
    4: {"Large_Needle_Driver_Left_labels": 3, "Prograsp_Forceps_labels": 2},
    5: {"Bipolar_Forceps_labels": 1, "Grasping_Retractor_labels": 5, "Vessel_Sealer_labels": 4},
    6: {"Monopolar_Curved_Scissors_labels": 6, "Prograsp_Forceps": 2},
    7: {"Left_Bipolar_Forceps": 1, "Right_Vessel_Sealer": 4},
    8: {"Left_Grasping_Retractor_labels": 5},
}


@pytest.fixture
def small(monkeypatch):
    for name, value in (("FULL", FULL), ("CROPPED", CROPPED), ("CORNER", CORNER)):
        monkeypatch.setattr(endoscopy, name, value)


def write_picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    imwrite(path, array)


def mask_of(column, value=10):
    """Two columns of the cropped picture, on the full frame."""
    mask = np.zeros(FULL, np.uint8)
    mask[CORNER[0] : CORNER[0] + CROPPED[0], CORNER[1] + column : CORNER[1] + column + 2] = value
    return mask


def write_training(top, numbers=tuple(INSTRUMENTS), frames=2):
    for number in numbers:
        folder = top / f"instrument_dataset_{number}"
        for frame in range(frames):
            picture = np.full((*FULL, 3), 10 * number + frame, np.uint8)
            write_picture(folder / "left_frames" / f"frame{frame:03d}.png", picture)
            write_picture(folder / "right_frames" / f"frame{frame:03d}.png", picture)
            for place, name in enumerate(INSTRUMENTS[number]):
                write_picture(folder / "ground_truth" / name / f"frame{frame:03d}.png", mask_of(3 * place))
    return top


def write_test(top, numbers, labels=True):
    """Frames and labels of the official test set, in the two trees in which they come."""
    for number in numbers:
        name = f"instrument_dataset_{number}"
        write_picture(
            top / "instrument_1_4_testing" / name / "left_frames/frame225.png", np.zeros((*FULL, 3), np.uint8)
        )
        if labels:
            gt = top / "instrument_2017_test" / "instrument_2017_test" / name / "gt"
            write_picture(gt / "TypeSegmentation" / "frame225.png", mask_of(0, value=5))
            write_picture(gt / "BinarySegmentation" / "frame225.png", mask_of(0, value=255))


@pytest.fixture
def tree(tmp_path, small):
    top = tmp_path / "original"
    write_training(top / "instrument_1_4_training", (1, 3, 4))
    write_training(top / "instrument_5_8_training", (5, 6, 7, 8))
    (top / "__MACOSX" / "instrument_dataset_1" / "left_frames").mkdir(parents=True)
    (top / "instrument_1_4_training" / "instrument_dataset_1" / "left_frames" / "._frame000.png").write_text("")
    (top / "instrument_1_4_training" / "instrument_dataset_1" / "ground_truth" / ".cache").mkdir()
    return top


def test_whole_sequences_are_held_out_without_a_labelled_test_set(tree, tmp_path):
    write_test(tree, (1, 2), labels=False)
    folder = prepare("endoscopy", tmp_path, source=tree, progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["counts"] == {"training": 10, "test": 4}
    assert marker["facts"] == {
        "sequences": 7,
        "test_frames_without_labels": 2,
        "pixels_of_several_instruments": 0,
        "pixels_of_unknown_part": 0,
    }
    train, test = (load_dataset("endoscopy", split, root=tmp_path) for split in ("all", "test"))
    assert {name[:11] for name in train.names} == {f"sequence_{k:02d}" for k in (1, 3, 4, 5, 6)}
    assert {name[:11] for name in test.names} == {"sequence_07", "sequence_08"}
    for fold in json.loads((folder / "splits_final.json").read_text()):
        assert len({name[:11] for name in fold["val"]}) == 1 and len(fold["val"]) == 2  # a whole sequence
    for dataset in (train, test):
        for index, item in enumerate(dataset):
            number, frame = int(item["name"][9:11]), int(item["name"][-3:])
            assert (dataset.raw(index) == 10 * number + frame).all() and dataset.raw(index).shape == (3, *CROPPED)
            expected = np.zeros(CROPPED, int)
            for place, value in enumerate(INSTRUMENTS[number].values()):
                expected[:, 3 * place : 3 * place + 2] = value
            assert np.array_equal(item["label"].numpy(), expected)


def test_the_official_test_set_is_used_where_it_has_labels(tree, tmp_path):
    write_test(tree, (2, 7, 9))
    facts = convert(tree, tmp_path / "out")
    assert facts["sequences"] == 10 and facts["test_frames_without_labels"] == 0
    names = sorted(path.name for path in (tmp_path / "out" / "labelsTs").iterdir())
    assert names == [f"sequence_{number:02d}_frame225.png" for number in (2, 7, 9)]
    assert (imread(tmp_path / "out/labelsTs" / names[0])[:, :2] == 5).all()
    assert len(list((tmp_path / "out" / "labelsTr").iterdir())) == 14  # sequences 7 and 8 are for training now


def test_of_two_instruments_the_later_wins_and_other_loses(tree, tmp_path):
    truth = tree / "instrument_1_4_training" / "instrument_dataset_1" / "ground_truth"
    for name in INSTRUMENTS[1]:
        write_picture(truth / name / "frame000.png", mask_of(4))
    facts = convert(tree, tmp_path / "out")
    label = imread(tmp_path / "out/labelsTr/sequence_01_frame000.png")
    assert (label[:, 4:6] == INSTRUMENTS[1]["Maryland_Bipolar_Forceps_labels"]).all() and (label > 0).sum() == 24
    assert facts["pixels_of_several_instruments"] == 2 * 24  # prograsp over other, then bipolar over prograsp


def test_rgb_masks_other_parts_and_cropped_pictures_are_read(tree, tmp_path):
    folder = tree / "instrument_5_8_training" / "instrument_dataset_8"
    write_picture(folder / "left_frames/frame000.png", np.full((*CROPPED, 4), 9, np.uint8))
    mask = np.stack([mask_of(3, value=25)] * 3, axis=-1)
    write_picture(folder / "ground_truth/Left_Grasping_Retractor_labels/frame000.png", mask)
    facts = convert(tree, tmp_path / "out")
    assert facts["pixels_of_unknown_part"] == 24
    assert (imread(tmp_path / "out/labelsTs/sequence_08_frame000.png")[:, 3:5] == 5).all()


def test_the_crop_of_a_frame_of_full_size(tmp_path):
    frame = np.zeros((1080, 1920, 3), np.uint8)
    frame[28, 320] = frame[28 + 1023, 320 + 1279] = (1, 2, 3)
    imwrite(tmp_path / "frame000.png", frame)
    cropped = read_frame(tmp_path / "frame000.png")
    assert cropped.shape == (1024, 1280, 3) and cropped.sum() == 12
    assert cropped[0, 0].tolist() == cropped[-1, -1].tolist() == [1, 2, 3]


def test_names_of_instruments():
    for folders in INSTRUMENTS.values():
        assert {name: instrument_type(name) for name in folders} == folders
    with pytest.raises(ValueError, match="folder 'Left_Suction_labels' names no known instrument; known are bipolar"):
        instrument_type("Left_Suction_labels")


def _unknown_instrument(top):
    (top / "instrument_dataset_3/ground_truth/Suction_labels").mkdir()


def _unknown_type(top):
    write_test(top, (2,))
    write_picture(next(top.rglob("TypeSegmentation/*.png")), mask_of(0, value=8))


def _twice(top):
    shutil.copytree(top / "instrument_dataset_3", top / "copy" / "instrument_dataset_3")


def _no_masks(top):
    for path in (top / "instrument_dataset_3" / "ground_truth").iterdir():
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_unknown_instrument, ValueError, "'Suction_labels' names no known instrument"),
        (_unknown_type, ValueError, r"frame225\.png holds type 8; types are 0 to 7"),
        (_twice, ValueError, "left_frames are the frames of one sequence; remove one"),
        (_no_masks, FileNotFoundError, "ground_truth holds no folders of masks"),
        (
            lambda top: shutil.rmtree(top / "instrument_dataset_3/ground_truth"),
            FileNotFoundError,
            "no folder ground_tr",
        ),
        (lambda top: shutil.rmtree(top / "instrument_dataset_3/left_frames"), FileNotFoundError, "no folder left_fram"),
        (lambda top: shutil.rmtree(top), FileNotFoundError, "holds no folders instrument_dataset_N"),
        (
            lambda top: (top / "instrument_dataset_4/ground_truth/Prograsp_Forceps_labels/frame001.png").unlink(),
            FileNotFoundError,
            r"Prograsp_Forceps_labels/frame001\.png is missing",
        ),
        (
            lambda top: imwrite(top / "instrument_dataset_4/left_frames/frame001.png", np.zeros((9, 9, 3), np.uint8)),
            ValueError,
            r"frame001\.png is uint8 \(9, 9, 3\); expected uint8, \(20, 30\) or",
        ),
        (
            lambda top: imwrite(top / "instrument_dataset_4/left_frames/frame001.png", np.zeros(FULL, np.uint16)),
            ValueError,
            r"frame001\.png is uint16",
        ),
    ],
)
def test_bad_files_are_named(small, tmp_path, spoil, error, message):
    top = write_training(tmp_path / "original")
    spoil(top)
    with pytest.raises(error, match=message):
        convert(top, tmp_path / "out")


def test_no_fold_splits_a_sequence_and_fewer_sequences_than_folds_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match="4 groups that must stay together"):
        prepare("endoscopy", tmp_path, source=write_training(tmp_path / "original", (1, 3, 4, 5)), progress=False)


def test_sequences_come_in_order(tree):
    write_test(tree, (10, 2))
    assert list(find_sequences(tree)) == [*(("Tr", k) for k in (1, 3, 4, 5, 6, 7, 8)), ("Ts", 2), ("Ts", 10)]


def test_it_is_not_downloaded():
    with pytest.raises(ValueError, match=r"register at https://endovissub2017.*source="):
        prepare("endoscopy")
