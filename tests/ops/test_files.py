"""Files that are written whole, whoever else writes there, and names that may become part of a path."""

import os
import stat
import threading

import pytest

from xlstm_unet_lab.ops import files
from xlstm_unet_lab.ops.files import is_plain, plain_name, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links as POSIX has them")


def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path):
    for content in (b"one", b"", b"two"):
        assert write_whole(tmp_path / "file", content).read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o440, 0o777])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(mode)
    write_whole(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@posix
def test_a_copy_has_the_permissions_of_what_it_is_a_copy_of(tmp_path):
    (tmp_path / "file").write_bytes(b"secret")
    (tmp_path / "file").chmod(0o600)
    for _ in range(2):
        write_whole(tmp_path / "copy", b"secret", like=tmp_path / "file")
        assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
        (tmp_path / "copy").chmod(0o644)


@posix
def test_a_new_file_has_the_permissions_of_new_files(tmp_path):
    (tmp_path / "usual").touch()
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


@posix
def test_a_private_file_is_never_open_to_others(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o600)
    seen, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_mode) or sync(handle))
    opened = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: (h := opened(*a, **k), seen.append(os.fstat(h).st_mode))[0])
    write_whole(tmp_path / "file", b"secret")
    assert [stat.S_IMODE(mode) for mode in seen] == [0o600, 0o600]


@posix
def test_a_link_laid_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "foreseen")
    (tmp_path / ".partial-foreseen").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"precious" and (tmp_path / ".partial-foreseen").is_symlink()


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path, monkeypatch):
    (tmp_path / "of_others").write_bytes(b"precious")
    old = {f".partial-{digits * 4}": digits != "zzzz" for digits in ("0af3", "9e11", "zzzz")}
    for name in old:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".partial-0123456789abcdef").symlink_to(tmp_path / "of_others")
    (tmp_path / ".partial-0123456789abcde0").mkdir()
    kept = {"of_others", ".partial-0123456789abcdef", ".partial-0123456789abcde0"}

    write_whole(tmp_path / "first", b"new")
    assert {path.name for path in tmp_path.iterdir()} == {*old, *kept, "first"}, "what is young may still be written"

    files._tidy.cache_clear()
    today = files.time.time()
    monkeypatch.setattr(files.time, "time", lambda: today + 2 * files.DAY)
    write_whole(tmp_path / "second", b"new")
    left = {name for name, is_ours in old.items() if not is_ours}
    assert {path.name for path in tmp_path.iterdir()} == {*left, *kept, "first", "second"}

    (tmp_path / ".partial-0af30af30af30af3").write_bytes(b"half")
    write_whole(tmp_path / "third", b"new")
    assert (tmp_path / ".partial-0af30af30af30af3").exists(), "a folder is looked through once"


def test_temporary_names_are_never_the_same(tmp_path, monkeypatch):
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: names.append(os.fspath(old)) or replace(old, new))
    for _ in range(5):
        write_whole(tmp_path / "file", b"new")
    assert len(set(names)) == 5


def test_all_who_write_one_file_at_once_succeed(tmp_path, monkeypatch):
    """All of them have opened theirs before any goes on."""
    together, sync = threading.Barrier(4), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: together.wait(timeout=60) or sync(handle))
    contents, failed = [bytes([number]) * 1000 for number in range(4)], []

    def work(content):
        try:
            write_whole(tmp_path / "file", content)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and (tmp_path / "file").read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_a_refused_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", b"old")

    def full(handle):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    assert write_whole(tmp_path / ("n" * 255), b"new").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["case_1", "a b", "..a", "a..b", ".hidden", "über", "scan:1", "Icon\r", "nul.txt"])
def test_plain_names_are_taken_as_they_are(name):
    assert plain_name("name", name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../victim", "/etc/passwd", "a/b", "a/", "a\\b", "..\\victim", "C:", "C:a", "C:\\a"),
        *("\\\\server\\share", "a\0b", None, 3, True, ["a"], {"a": 1}, b"a", "../" * 10_000),
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(name):
    assert not is_plain(name)
    with pytest.raises(ValueError, match=r"name of a case is .* expected a plain file name") as error:
        plain_name("name of a case", name)
    assert len(str(error.value)) < 300
