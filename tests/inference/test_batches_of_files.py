"""Many files in one call: what each is called, and that one which cannot be read stops no other."""

import errno
import unicodedata

import nibabel
import numpy as np
import pytest
from imageio.v3 import imwrite
from test_prediction_files import BrightAndRight, head, of_pictures, predictor

import xlstm_unet_lab as lab
from xlstm_unet_lab.data import images
from xlstm_unet_lab.data.files import channels_of, files_by_name
from xlstm_unet_lab.inference.files import find_cases, predict_files

FLAT = np.zeros((8, 8), np.uint8)


def save(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith(".png"):
            imwrite(folder / name, FLAT, plugin="pillow")
        else:
            nibabel.save(head(), folder / name)


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_with_one_channel_every_file_keeps_its_name(tmp_path, ending):
    names = [f"s_{number:04d}" for number in range(3)]
    save(tmp_path, *(f"{name}{ending}" for name in names))
    assert list(find_cases(tmp_path, channels=1)) == names
    assert list(find_cases(tmp_path / f"s_0000{ending}", channels=1)) == ["s_0000"]


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
@pytest.mark.parametrize("folder", ["imagesTr", "imagesTs"])
def test_in_folders_of_nnu_net_the_last_number_is_the_channel(tmp_path, ending, folder):
    save(tmp_path / folder, f"a_0000{ending}", f"s_0001_0000{ending}")
    assert list(find_cases(tmp_path / folder, channels=1)) == ["a", "s_0001"]


def test_volumes_of_several_channels_are_put_together(tmp_path):
    save(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0007.nii.gz")
    assert {name: len(files) for name, files in find_cases(tmp_path, channels=2).items()} == {"a": 2, "b_0007": 1}


def test_a_file_that_cannot_be_read_stops_no_other(tmp_path):
    save(tmp_path / "in", "a.png", "c.png", "e.png")
    (tmp_path / "in" / "b.png").write_bytes(b"junk")
    imwrite(tmp_path / "in" / "d.png", np.zeros((8, 8, 3), np.uint8), plugin="pillow")
    written = []
    with pytest.raises(OSError, match=r"1 of 5 cases were left out .*; .*b\.png cannot be read: cannot") as info:
        for path in predict_files(of_pictures(BrightAndRight()), tmp_path / "in", tmp_path / "out"):
            written.append(path.name)
    assert written == ["a.png", "c.png", "d.png", "e.png"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert str(info.value).count("b.png") == 1 and str(tmp_path / "out") in str(info.value)


def test_a_label_that_cannot_be_written_and_a_file_that_is_gone_stop_no_other(tmp_path):
    save(tmp_path / "in", "a.png", "c.png")
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "moved away.png")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    with pytest.raises(OSError, match=r"2 of 3 cases were left out .*; .*a\.png is a folder.*; .*b\.png"):
        list(predict_files(of_pictures(BrightAndRight()), tmp_path / "in", tmp_path / "out"))
    assert (tmp_path / "out" / "c.png").is_file()


def test_a_full_disk_ends_it_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path / "in", "a.png", "c.png")
    monkeypatch.setattr(images, "write_whole", full)
    with pytest.raises(OSError, match=r"^.Errno 28. No space left on device$"):
        list(predict_files(of_pictures(BrightAndRight()), tmp_path / "in", tmp_path / "out"))


@pytest.mark.parametrize("coloured", ["no", None, 1, np.zeros(2)])
def test_a_flag_is_true_or_false(tmp_path, coloured):
    save(tmp_path / "in", "a.png")
    with pytest.raises(ValueError, match=r"coloured is .*, expected True or False"):
        predict_files(of_pictures(BrightAndRight()), tmp_path / "in", tmp_path / "out", coloured=coloured)


@pytest.mark.parametrize("count", [1, 2])
def test_where_no_file_can_be_read_they_are_listed_too(tmp_path, count):
    files = [tmp_path / f"{letter}.nii.gz" for letter in "bc"[:count]]
    for file in files:
        file.write_bytes(b"junk")
    with pytest.raises(OSError, match=rf"^{count} of {count} cases were left out .*; \S+b\.nii\.gz is not") as info:
        list(predict_files(predictor(BrightAndRight(), (14, 12, 10)), files, tmp_path / "out"))
    assert str(info.value).count("b.nii.gz") == 1


def test_composed_and_decomposed_letters_are_one_name(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Jürgen_é") for form in ("NFC", "NFD"))
    save(tmp_path / "images", f"{decomposed}.png")
    save(tmp_path / "labels", f"{composed}.png")
    names = [set(files_by_name(tmp_path / what, (".png",))) for what in ("images", "labels")]
    assert names == [{composed}] * 2 == [set(find_cases(tmp_path / what)) for what in ("images", "labels")]


def test_the_files_of_a_case_are_found_by_its_name(tmp_path):
    save(tmp_path, "a.png", "a_0000.png", "b_0000.png", "b_0001.png", "b_0003.png")
    files = files_by_name(tmp_path, (".png",))
    found = {name: [file.stem for file in channels_of(name, files)] for name in "abc"}
    assert found == {"a": ["a"], "b": ["b_0000", "b_0001"], "c": []}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 1.5}, "overlap is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"uncertainty": (7,)}, "axes|from 0 to"),
    ],
)
def test_options_are_judged_before_a_file_is_opened(tmp_path, options, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_text("no picture")
    network = lab.build("unet", spatial_dims=2, in_channels=1, num_classes=2, patch_size=(8, 8), features=(4, 8))
    with pytest.raises(ValueError, match=words):
        lab.Predictor(network, (8, 8)).files(tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
