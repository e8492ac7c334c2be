"""Headers of archives that state far too much: refused before Python's readers work on them, whatever they hold."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

from xlstm_unet_lab.data import download
from xlstm_unet_lab.data.download import unpack

MEGABYTE = 2**20
END = bytes(2 * tarfile.BLOCKSIZE)


def padded(content):
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


def header(kind=b"0", size=0, name="a", **fields):
    """A header block, its checksum right; `fields` are offsets, as at_482, and what stands there."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for place, content in fields.items():
        start = int(place.removeprefix("at_"))
        block[start : start + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(content, kind=b"x"):
    return header(kind, len(content)) + padded(content)


def record(name, value):
    return next(text for n in range(4, 40_000) if len(text := b"%d %s=%s\n" % (n, name, value)) == n)


FILE = header(name="file")
SPARSE = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
MORE_SPARSE = bytes(504) + b"\1" + bytes(7)  # a block that says that another one follows
ATTACKS = {
    "one number of 200,000 digits": pax(b"1" * 200_000) + FILE,
    "short numbers of digits": pax(b"1" * 8000) + FILE,
    "digits inside a record": pax(record(b"comment", b"1" * 8000)) + FILE,
    "records that overlap": (pax(b"2 " * 5999 + b"=") + FILE) * 50,
    "a record longer than all there is": pax(b"99999 a=b\n") + FILE,
    "a record of no length": pax(b"0 a=b\n") + FILE,
    "zeros": pax(bytes(8 * MEGABYTE)) + FILE,
    "zeros for all files": pax(bytes(8 * MEGABYTE), b"g") + FILE,
    "zeros in Sun's words": pax(bytes(8 * MEGABYTE), b"X") + FILE,
    "a long name": pax(b"a" * 8 * MEGABYTE, b"L") + FILE,
    "a long name of a link": pax(b"a" * 8 * MEGABYTE, b"K") + FILE,
    "headers that follow headers": pax(record(b"a", b"b")) * 3000 + FILE,
    "headers for all that follow each other": pax(record(b"a", b"b"), b"g") * 3000 + FILE,
    "a size below 0": header(b"x", at_124=b"\xff" * 12) + bytes(MEGABYTE) + FILE,
    "gaps without end": header(b"S", at_482=b"\1") + MORE_SPARSE * 10_000,
    "gaps listed in the file": pax(SPARSE) + FILE + b"9999999\n" + b"1\n" * 500_000,
    "gaps in a record": pax(record(b"GNU.sparse.map", b",".join([b"1"] * 2000))) + FILE,
    "a file of a size below 0": pax(record(b"size", b"-1024")) + FILE * 3,
}


@pytest.mark.parametrize("content", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("packed", [True, False], ids=["gz", "tar"])
def test_headers_of_a_tar_are_bounded(tmp_path, content, packed):
    path = tmp_path / "attack"
    path.write_bytes(gzip.compress(content + END) if packed else content + END)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"attack.*(the archive is refused|nor a tar archive|get it again)"):
            unpack(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert not any(place.is_file() and place.stat().st_size for place in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_long_names_and_remarks_of_whole_archives_are_read(tmp_path, format, mode):
    names = ["a/" * 20 + "n" * 200, "über" * 30, "1" * 200, "short"]
    with tarfile.open(tmp_path / "a", mode, format=format) as bundle:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 5, 1234567890.25
            info.pax_headers = {"comment": "x = y\n" * 500, "LIBARCHIVE.xattr.com.apple.quarantine": "MDA4MTs2" * 20}
            bundle.addfile(info, io.BytesIO(b"12345"))
    unpack(tmp_path / "a", tmp_path / "out")
    assert all((tmp_path / "out" / name).read_bytes() == b"12345" for name in names)


def test_many_headers_count_for_the_size_of_an_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SMALL", MEGABYTE)
    content = (pax(record(b"comment", b"x" * 10_000)) + FILE) * 200
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content + END))
    with pytest.raises(ValueError, match=r"times the archive's, 200 are allowed; the archive is refused"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_the_list_of_a_zip_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "DIRECTORY", 20_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        for number in range(500):
            bundle.writestr(f"{number}", b"")
    with pytest.raises(ValueError, match=r"a\.zip has a header far from .*the archive is refused"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    monkeypatch.setattr(download, "DIRECTORY", 40_000)
    unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("size", [2**31, 2**32 - 2])
def test_a_zip_that_states_more_than_it_has_is_refused(tmp_path, size):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr("a", b"content")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[-10:-6] = struct.pack("<L", size)  # of the list of members
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.zip .*(refused|get it again)"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def records(count, first=0):
    return b"".join(record(b"%d" % number, b"") for number in range(first, first + count))


MANY = {
    "headers for all, one a file": b"".join(pax(records(30, 30 * one), b"g") + FILE for one in range(300)),
    "one large header for all": pax(records(1300), b"g") + FILE * 300,
    "records": (pax(b"6 a=b\n" * 2500) + FILE) * 10,
    "headers": (pax(record(b"comment", b"x" * 15_000)) + FILE) * 100,
    "long names": (pax(b"a" + bytes(14_000), b"L") + FILE) * 100,
    "names of links": (pax(b"a" + bytes(14_000), b"K") + FILE) * 100,
}


@pytest.mark.parametrize("content", MANY.values(), ids=MANY)
def test_headers_are_bounded_over_the_whole_archive(tmp_path, monkeypatch, content):
    monkeypatch.setattr(download, "ALL_HEADERS", MEGABYTE)
    (tmp_path / "attack").write_bytes(content + END)
    with pytest.raises(ValueError, match=r"attack has a header far from .*the archive is refused"):
        unpack(tmp_path / "attack", tmp_path / "out")


def test_a_comment_for_all_as_git_writes_it_is_read(tmp_path):
    files = b"".join(header(name=f"file{number}") for number in range(300))
    (tmp_path / "a.tar").write_bytes(pax(record(b"comment", b"0" * 40), b"g") + files + END)
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 300


@pytest.mark.parametrize("letter", ["x", "g", "L"])
def test_a_long_name_is_no_header_whatever_letters_it_has(tmp_path, letter):
    name = "/".join([letter * 100] * 5)  # a block, with the letter where headers say their kind
    (tmp_path / "a.tar").write_bytes(pax(name.encode() + b"\0", b"L") + FILE + END)
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out" / name).is_file()
