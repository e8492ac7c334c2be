"""A preparation that is killed anywhere goes on where it was, and ends as if it had not been killed."""

import dataclasses
import errno
import os
import signal
import zipfile
from collections import Counter
from itertools import count

import filelock
import numpy as np
import pytest
from imageio.v3 import imread, imwrite
from killed_runs import in_a_fork, kill_at

from data_recipes.shared.conversion import Job, convert_cases
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data.download import unpack
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import get_recipe, prepared_folder

NAMES = [f"case_{number}" for number in range(6)]
CONVERTED = "converted.txt"  # beside the data: a line for every case that is worked on


def convert(source, out, track=iter):
    jobs = [Job("Tr" if position < 5 else "Ts", name, (source / f"{name}.png",)) for position, name in enumerate(NAMES)]
    return convert_cases(out, jobs, write, track)


def write(job, out):
    with (job.files[0].parents[2 if "unpacked" in str(job.files[0]) else 1] / CONVERTED).open("a") as file:
        file.write(f"{job.name}\n")
    image = imread(job.files[0])
    write_case(out, job.part, job.name, image, image % 3, image)
    return {"pixels": int(image.sum()), "empty": int(not image.any())}


RECIPE = dataclasses.replace(
    get_recipe("phantom_microscopy"), name="toy", dataset_id=999, convert=convert, registration="https://example.org"
)


@pytest.fixture
def originals(tmp_path):
    """The same pictures as a folder and as an archive."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        imwrite(folder / f"{name}.png", np.random.default_rng(number).integers(0, 256, (9, 8), dtype=np.uint8))
    with zipfile.ZipFile(tmp_path / "originals.zip", "w") as bundle:
        for path in sorted(folder.iterdir()):
            bundle.write(path, path.name)
    return {"folder": folder, "archive": tmp_path / "originals.zip"}


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def worked_on(root):
    """How often each case was worked on; forgotten afterwards."""
    files = list(root.rglob(CONVERTED))
    lines = Counter(line for file in files for line in file.read_text().split())
    for file in files:
        file.unlink()
    return lines


KILLS = {  # in the middle of converting: before the disk is asked to keep something, and before a case takes its name
    "fsync": (os, range(1, 100, 7)),
    "rename": (os, count(1)),
    "link": (os, range(1, 100, 4)),
}


@pytest.mark.parametrize("call", KILLS)
def test_killed_and_called_again(originals, tmp_path, call):
    whole = tree(prepare(RECIPE, tmp_path / "whole", source=originals["folder"], progress=False))
    worked_on(tmp_path)
    module, counts = KILLS[call]
    for number in counts:
        root = tmp_path / f"{call} {number}"

        def killed(root=root, number=number):
            kill_at(call, module, number)
            prepare(RECIPE, root, source=originals["folder"], progress=False)

        status = in_a_fork(killed)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        finished = {path.name for path in root.glob(".partial-*/.finished-*/T[rs]/[!.]*")}
        before = worked_on(tmp_path)
        done = prepared_folder(RECIPE, root) is not None
        prepare(RECIPE, root, source=originals["folder"], progress=False)
        left = set() if done else set(NAMES) - finished
        assert set(worked_on(tmp_path)) == left, "what is finished is not done again"
        assert done or finished <= set(before)
        assert tree(root / "Dataset999_toy") == whole
        assert not list(root.glob(".partial-*")), "nothing is left"
    assert number > 3


def test_what_a_finished_call_left_goes_unless_somebody_is_at_work_there(originals, tmp_path):
    folder = prepare(RECIPE, tmp_path / "root", source=originals["folder"], progress=False)
    left = folder.with_name(f".partial-{folder.name}")
    (left / "unpacked").mkdir(parents=True)
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=False):
        assert prepare(RECIPE, tmp_path / "root", progress=False) == folder and left.exists()
    assert prepare(RECIPE, tmp_path / "root", progress=False) == folder and not left.exists()


def test_unpacking_goes_on_where_it_was(originals, tmp_path, monkeypatch):
    whole = tree(prepare(RECIPE, tmp_path / "whole", source=originals["archive"], progress=False))
    extract, extracted = zipfile.ZipFile.extract, []

    def watched(bundle, member, folder):
        extracted.append(member.filename)
        return extract(bundle, member, folder)

    for number in (1, 3, 6):
        root = tmp_path / str(number)

        def killed(root=root, number=number):
            kill_at("extract", zipfile.ZipFile, number)
            prepare(RECIPE, root, source=originals["archive"], progress=False)

        assert in_a_fork(killed) == -signal.SIGKILL
        unpacked = next(root.glob(".partial-*/unpacked"), None)
        there = sorted(unpacked.iterdir()) if unpacked else []
        assert len(there) == number - 1
        if there:  # as if it had been killed in the middle of a file
            there[-1].write_bytes(there[-1].read_bytes()[:-7])
        extracted.clear()
        with monkeypatch.context() as patch:
            patch.setattr(zipfile.ZipFile, "extract", watched)
            folder = prepare(RECIPE, root, source=originals["archive"], progress=False)
        assert extracted == [f"{name}.png" for name in NAMES[max(number - 2, 0) :]]
        assert tree(folder) == whole


def test_a_member_of_the_right_size_but_other_bytes_is_unpacked_again(originals, tmp_path):
    unpack(originals["archive"], tmp_path / "out")
    path = tmp_path / "out" / f"{NAMES[2]}.png"
    right = path.read_bytes()
    path.write_bytes(bytes(len(right)))
    unpack(originals["archive"], tmp_path / "out")
    assert path.read_bytes() == right


def interrupt(originals, root, source, at):
    """Prepare until Ctrl+C is pressed at the case of this number."""

    def track(jobs):
        for number, job in enumerate(jobs):
            if number == at:
                raise KeyboardInterrupt
            yield job

    recipe = dataclasses.replace(RECIPE, convert=lambda source, out, _: convert(source, out, track))
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, root, source=originals[source], progress=False)
    worked_on(root.parent)


def test_a_changed_original_is_converted_again_and_a_lost_one_is_gone(originals, tmp_path):
    root = tmp_path / "root"
    interrupt(originals, root, "folder", at=4)
    os.utime(originals["folder"] / "case_1.png", ns=(5, 5))
    folder = prepare(RECIPE, root, source=originals["folder"], progress=False)
    assert set(worked_on(tmp_path)) == {"case_1", "case_4", "case_5"}
    whole = prepare(RECIPE, tmp_path / "whole", source=originals["folder"], progress=False)
    assert tree(folder) == tree(whole)


@pytest.mark.parametrize("change", ["version", "source"])
def test_another_task_starts_from_the_beginning(originals, tmp_path, change):
    interrupt(originals, tmp_path / "root", "folder", at=3)
    recipe = dataclasses.replace(RECIPE, version=2) if change == "version" else RECIPE
    prepare(recipe, tmp_path / "root", source=originals["archive" if change == "source" else "folder"], progress=False)
    assert set(worked_on(tmp_path)) == set(NAMES)
    assert not list((tmp_path / "root").glob(".partial-*"))


def broken_file():
    raise ValueError("no picture")


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fail", [broken_file, full_disk])
@pytest.mark.parametrize("source", ["folder", "archive"])
def test_after_an_error_it_goes_on_too_and_the_error_says_so(originals, tmp_path, monkeypatch, fail, source):
    root, read = tmp_path / "root", imread
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "imread", lambda path: fail() if path.stem == "case_4" else read(path))
        with pytest.raises((ValueError, OSError), match=r"no picture|No space left") as caught:
            prepare(RECIPE, root, source=originals[source], progress=False)
    (note,) = caught.value.__notes__
    assert f"kept in {root / '.partial-Dataset999_toy'}: put this right and prepare it again" in note
    assert prepared_folder(RECIPE, root) is None
    worked_on(tmp_path)
    folder = prepare(RECIPE, root, source=originals[source], progress=False)
    assert set(worked_on(tmp_path)) == {"case_4", "case_5"}
    assert tree(folder) == tree(prepare(RECIPE, tmp_path / "whole", source=originals[source], progress=False))
    assert not list(root.glob(".partial-*"))


def test_an_error_before_the_first_case_leaves_nothing(originals, tmp_path):
    recipe = dataclasses.replace(RECIPE, convert=lambda *_: broken_file())
    with pytest.raises(ValueError, match="no picture") as caught:
        prepare(recipe, tmp_path / "root", source=originals["folder"], progress=False)
    assert [path.name for path in (tmp_path / "root").iterdir() if path.is_dir()] == []
    assert not hasattr(caught.value, "__notes__")


def test_counts_are_added_up_and_names_must_differ(originals, tmp_path):
    facts = convert(originals["folder"], tmp_path / "out")
    total = sum(int(imread(path).sum()) for path in originals["folder"].iterdir())
    assert facts == {"pixels": total, "empty": 0}
    job = Job("Tr", "case_0", (originals["folder"] / "case_0.png",))
    with pytest.raises(ValueError, match=r"1 case names are there twice, such as \('Tr', 'case_0'\)"):
        convert_cases(tmp_path / "other", [job, job._replace(files=())], write)


def test_a_file_system_without_links(originals, tmp_path, monkeypatch):
    linked = tree(prepare(RECIPE, tmp_path / "linked", source=originals["folder"], progress=False))

    def refuse(*names):
        raise OSError("not here")

    monkeypatch.setattr(os, "link", refuse)
    assert tree(prepare(RECIPE, tmp_path / "copied", source=originals["folder"], progress=False)) == linked
