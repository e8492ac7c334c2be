"""Fetch files over the network, and unpack archives that nobody vouches for."""

import bz2
import functools
import gzip
import lzma
import os
import re
import stat
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from xlstm_unet_lab.ops.files import is_plain
from xlstm_unet_lab.ops.progress import bar

TIMEOUT = 30  # seconds without a byte
ANSWER = 60  # seconds until all that a server says before the first byte of a file is there, however it comes
PATIENCE, SLOWEST = 60, 2**10  # seconds, and the bytes a second that must come in them
BLOCK = 2**16  # bytes; a broken connection loses at most one block
MOST = 2**38  # bytes of a download whose size is not known
HEADERS = 2**14  # bytes of all that stands in a tar archive before a member; what is read in one piece
# All of these headers together, each line in them counted as A_LINE more; and by their kind, how many times they count.
# What holds for all members to come Python copies for every one: Git writes one such header, with a comment.
ALL_HEADERS, A_LINE = 2**26, 128
COUNTED = {b"x": 1, b"X": 1, b"L": 1, b"K": 1, b"g": 2**15}
DIRECTORY = 2**25  # bytes of a zip archive's list of its members, which is read in one piece
# What an archive may grow to; past any of these it is taken for a bomb.
MOST_UNPACKED, MOST_MEMBERS = 2**36, 200_000  # bytes
RATIO = 200  # unpacked bytes for each byte of the archive
SMALL = 2**24  # bytes; below this the ratio is not looked at, for a few empty masks pack very well
RECORD = re.compile(rb"(\d{1,5}) [^=]{1,255}=")
LONG_NUMBER = re.compile(rb"\d{256}")  # longer than any name
OPENERS: dict[bytes, Callable] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def fetch(url: str, sha256: str | None, target: Path, progress: bool = True, size: int = MOST) -> tuple[Path, str]:
    """Download a file unless it is there already; returns its path and sha256.

    A broken download is continued by the next call where the server allows it. The file takes its name only when it is
    complete and its checksum right; without a known checksum a warning gives the one it has. size: its bytes, about.
    Raises OSError when the server or the network fails or hardly anything comes any more, ValueError for a wrong
    checksum and for a tenth more bytes than `size` (the file is then deleted).
    """
    import pooch

    downloader = ResumingDownloader(target.with_name(f"{target.name}.part"), progress, size + size // 10 + BLOCK)
    pooch.retrieve(url, sha256, target.name, target.parent, downloader=downloader)
    digest = pooch.file_hash(target)
    if sha256 is None:
        warnings.warn(f"no checksum is known for {url}; what came has sha256 {digest}, as recorded", stacklevel=2)
    return target, digest


class ResumingDownloader:
    """A downloader for pooch that keeps what has arrived in `part` and asks only for the rest next time.

    The rest is asked for only if the server still has the same file (HTTP If-Range, RFC 9110 section 13.1.5), and what
    comes is taken for the rest only if it says so. `most`: bytes of the whole file.
    """

    def __init__(self, part: Path, progress: bool, most: int = MOST):
        self.part, self.progress, self.most = part, progress, most
        self.validator = part.with_name(part.name + ".version")  # the ETag or date the first bytes came with

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        try:
            self._download(url)
        except OSError as error:
            arrived = self.part.stat().st_size if self.part.exists() else 0
            kept = f"{arrived:,} bytes arrived and are kept; call again to continue, or get it by hand and pass source="
            raise OSError(f"{url} could not be downloaded: {error}. {kept}") from error
        except ValueError:
            self._forget()
            raise
        os.replace(self.part, output_file)
        self.validator.unlink(missing_ok=True)

    def _download(self, url: str) -> None:
        import requests

        version = self.validator.read_text() if self.part.exists() and self.validator.exists() else ""
        start = self.part.stat().st_size if version else 0
        rest = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
        headers = {"Accept-Encoding": "identity"} | rest  # a compressed stream could not be continued
        options: dict[str, Any] = {"headers": headers, "stream": True, "timeout": TIMEOUT}
        # Nobody closes the response: a thread left behind may be reading from it, and would hold up whoever did.
        response = _within(ANSWER, f"did not say within {ANSWER} seconds what it sends", requests.get, url, **options)
        if response.status_code == 416:  # nothing left to ask for: what is here cannot be trusted
            self._forget()
            raise ConnectionError("the server has no bytes after those already here")
        response.raise_for_status()
        whole = response.headers.get("Content-Length", "")
        if response.status_code == 206:
            place = re.fullmatch(rf"bytes {start}-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if place is None or _version(response.headers) != version:  # some other piece, or of another file
                self._forget()
                if start:
                    return self._download(url)
                raise ConnectionError("the server sent a piece of the file when asked for all of it")
            whole = place[1]
        else:
            start = 0
            self._forget()  # lest what is there be taken for a part of this version
            self.validator.write_text(_version(response.headers))
        self._write(url, response.raw, start, int(whole) if whole.isdecimal() else None)

    def _write(self, url: str, stream, start: int, whole: int | None) -> None:
        """Write what comes to `part`, whose first `start` bytes are there; `whole`: bytes of the file, where known."""
        arrived = start
        shown: dict[str, Any] = {"desc": self.part.stem, "unit": "B", "unit_scale": True, "disable": not self.progress}
        with bar(initial=start, total=whole, **shown) as arriving, self.part.open("ab" if start else "wb") as file:
            for block in _pieces(stream):
                arrived += len(block)
                if max(arrived, whole or 0) > self.most:
                    problem = f"has more than the {self.most:,} bytes that are allowed for it, so it is another file"
                    raise ValueError(f"{url} {problem}: get it by hand and pass source= (in a shell --source)")
                file.write(block)
                arriving.update(len(block))
        if whole is not None and arrived != whole:
            raise ConnectionError(f"the connection ended after {arrived:,} of {whole:,} bytes")

    def _forget(self) -> None:
        for path in (self.part, self.validator):
            path.unlink(missing_ok=True)


def _within(seconds: float, problem: str, call: Callable, *arguments: Any, **options: Any) -> Any:
    """The result of a call to a server; ConnectionError for whatever goes wrong in it, and once it takes longer.

    In a thread of its own, which may be left behind: a server that sends a header, the size of a chunk or what follows
    the last one a byte at a time holds up whoever reads them, and the timeout of requests begins anew with each byte.
    """
    found: Future = Future()

    def ask() -> None:
        try:
            found.set_result(call(*arguments, **options))
        except Exception as error:  # a redirect to what is no address raises others than those of requests
            found.set_exception(ConnectionError(str(error)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        return found.result(max(seconds, 0))
    except TimeoutError as error:
        raise ConnectionError(f"the server {problem}") from error


def _pieces(stream) -> Iterator[bytes]:
    """What comes, piece by piece; ConnectionError once it comes more slowly than SLOWEST for PATIENCE seconds."""
    since, came, piece = time.monotonic(), 0, b"_"
    while piece:  # read would wait for all of the block, however long that takes
        left = since + PATIENCE - time.monotonic()
        yield (piece := _within(left, f"sent only {came:,} bytes in {PATIENCE} seconds", stream.read1, BLOCK))
        came += len(piece)
        if came >= SLOWEST * PATIENCE:
            since, came = time.monotonic(), 0


def _version(headers: Mapping[str, str]) -> str:
    """What tells a file on a server from any other there under the same address; empty where the server does not."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")  # weak tags do not serve


class Refused(ValueError):
    """An archive that may be whole, but is not to be trusted."""


class Bounded:
    """A file of which only `left` bytes may be read; None: all there is.

    Archives state the sizes of their headers, and Python's readers ask for as much as is stated. That tar's headers in
    pax format hold records, Python 3.11 takes for granted; of other bytes it makes quadratic work.
    """

    kind = b""  # of the header that was read just now

    def __init__(self, file: IO[bytes], left: int | None):
        self.file, self.left, self.in_all = file, left, ALL_HEADERS

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def read(self, size: int = -1) -> bytes:
        """The next bytes; Refused for more than are left, and for other bytes where records must be."""
        if self.left is None:
            return self.file.read(size)
        content = self.file.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        self.in_all -= COUNTED.get(self.kind, 0) * (len(content) + A_LINE * content.count(b"\n"))
        if min(self.left, self.in_all) < 0 or (self.kind in (b"x", b"g", b"X") and not _are_records(content)):
            raise Refused(f"{self.file.name} has a header far from what names and sizes need; the archive is refused")
        self.kind = b"" if self.kind in COUNTED or len(content) != tarfile.BLOCKSIZE else content[156:157]
        return content


def _are_records(content: bytes) -> bool:
    """Whether bytes are records of a pax header: "LENGTH NAME=VALUE" and a line feed each, then nothing but zeros."""
    place = 0
    while found := RECORD.match(content, place):
        end = place + int(found[1])
        if end < found.end() or content[end - 1 : end] != b"\n":
            return False
        place = end
    return not content[place:].strip(b"\0") and not LONG_NUMBER.search(content)


def unpack(archive: Path, folder: Path, progress: bool = False) -> None:
    """Unpack a zip or tar archive into `folder`; members of a zip that lie there already, whole, are passed over.

    Raises ValueError, naming the member, for one that would land outside, a link or a device, an encrypted one, or an
    archive that grows past the limits; also for a file that is neither zip nor tar, and a damaged one. Nothing is
    written for a refused member; what came before it stays.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        members = _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)
        packed, total = archive.stat().st_size, 0
        members = bar(members, desc=f"unpacking {archive.name}", unit="file", disable=not progress)
        for count, (name, size, problem, extract) in enumerate(members, start=1):
            total += size
            if problem := problem or _problem_with(name, count, total, packed):
                raise Refused(f"{archive.name}: member {name!r} {problem}; the archive is refused")
            extract(folder)
    except Exception as error:  # whatever Python's readers raise when bytes make no sense to them
        if isinstance(error, Refused | MemoryError) or getattr(error, "errno", None) is not None:  # a full disk, say
            raise
        raise ValueError(f"{archive} is damaged or packed in an unknown way ({error}): get it again") from error


def _problem_with(name: str, count: int, total: int, packed: int) -> str | None:
    if not all(map(is_plain, PurePosixPath(name).parts)):  # a first "/" is a part of its own
        return "lies outside the target folder, or has an unclear name"
    if count > MOST_MEMBERS:
        return f"is one more than the {MOST_MEMBERS:,} members allowed"
    if total > MOST_UNPACKED:
        return f"brings the unpacked size to {total:,} bytes, {MOST_UNPACKED:,} are allowed"
    if total > SMALL and total > RATIO * packed:
        return f"brings the unpacked size to {total / packed:,.0f} times the archive's, {RATIO} are allowed"
    return None


def _zip_members(archive: Path) -> Iterator[tuple]:
    with archive.open("rb") as file, zipfile.ZipFile(bounded := Bounded(file, DIRECTORY)) as bundle:
        bounded.left = None
        for member in bundle.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            problem = "is encrypted" if member.flag_bits & 1 else None
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                problem = "is a link or a device"
            yield member.filename, member.file_size, problem, lambda folder, m=member: _extract(bundle, m, folder)


def _extract(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """Write one member, unless a file of its size and checksum is there: reading takes less time than unpacking."""
    there = folder / member.filename
    is_there = there.is_file() and there.stat().st_size == member.file_size
    # An empty file cannot be mapped into memory.
    if not (is_there and member.file_size and zlib.crc32(np.memmap(there, mode="r")) == member.CRC):
        bundle.extract(member, folder)


def _tar_members(archive: Path) -> Iterator[tuple]:
    with archive.open("rb") as file:
        start = file.read(6)
    openers = [opener for magic, opener in OPENERS.items() if start.startswith(magic)]
    with (openers[0] if openers else open)(archive, "rb") as file:
        bounded = Bounded(file, HEADERS)
        try:
            bundle = tarfile.TarFile(fileobj=bounded)
        except tarfile.ReadError as error:
            raise Refused(f"{archive} is neither a zip nor a tar archive") from error
        for member in bundle:
            more = max(0, HEADERS - (bounded.left or 0) - 2 * tarfile.BLOCKSIZE)  # than a plain header has
            bounded.left = None
            plain = (member.isfile() or member.isdir()) and not member.issparse() and member.size >= 0
            problem = None if plain else "is a link or a device, or not stored as a whole"
            yield member.name, member.size + more, problem, functools.partial(bundle.extract, member, filter="data")
            bounded.left = HEADERS
