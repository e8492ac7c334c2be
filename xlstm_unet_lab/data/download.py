"""Fetch files over the network, and unpack archives that nobody vouches for."""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

TIMEOUT = 30  # seconds without a byte
BLOCK = 2**16  # bytes; a broken connection loses at most one block


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(address: str, sha256: str | None, target: Path, progress: bool = True) -> tuple[Path, str]:
    """Download a file unless it is there already; returns its path and sha256.

    A broken download is continued by the next call where the server allows it. The file takes its name only when it is
    complete and its checksum right; without a known checksum a warning gives the one it has.
    Raises OSError when the server or the network fails, ValueError for a wrong checksum (the file is then deleted).
    """
    import pooch

    target.parent.mkdir(parents=True, exist_ok=True)
    pooch.retrieve(
        address,
        known_hash=None if sha256 is None else f"sha256:{sha256}",
        fname=target.name,
        path=target.parent,
        downloader=ResumingDownloader(target.with_name(target.name + ".part"), progress),
    )
    digest = sha256_of(target)
    if sha256 is None:
        warnings.warn(
            f"no checksum is known for {address}; the file that came has sha256 {digest}, recorded in recipe.json",
            stacklevel=2,
        )
    return target, digest


class ResumingDownloader:
    """A downloader for pooch that keeps what has arrived in `part` and asks only for the rest next time.

    The rest is asked for only if the server still has the same file (HTTP If-Range, RFC 9110 section 13.1.5).
    """

    def __init__(self, part: Path, progress: bool):
        self.part, self.progress = part, progress
        self.validator = part.with_name(part.name + ".version")  # the ETag or date the first bytes came with

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        import requests

        try:
            self._download(url)
        except requests.RequestException as error:
            arrived = self.part.stat().st_size if self.part.exists() else 0
            raise OSError(
                f"{url} could not be downloaded: {error}. {arrived:,} bytes arrived and are kept; call again to "
                "continue, or download the file by hand and pass source= (in a shell --source)"
            ) from error
        os.replace(self.part, output_file)
        self.validator.unlink(missing_ok=True)

    def _download(self, url: str) -> None:
        import requests
        from tqdm.auto import tqdm

        start = self.part.stat().st_size if self.part.exists() and self.validator.exists() else 0
        headers = {"Accept-Encoding": "identity"}  # a compressed stream could not be continued
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": self.validator.read_text()}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing left to ask for: what is here cannot be trusted
                self.part.unlink()
                raise requests.ConnectionError("the server has no bytes after those already here")
            response.raise_for_status()
            start = start if response.status_code == 206 else 0
            self._remember_version(response.headers)
            left = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
            bar = tqdm(
                desc=self.part.stem,
                initial=start,
                total=None if left is None else start + left,
                unit="B",
                unit_scale=True,
                disable=not self.progress,
            )
            with bar, self.part.open("ab" if start else "wb") as file:
                for block in response.iter_content(BLOCK):
                    file.write(block)
                    bar.update(len(block))
        arrived = self.part.stat().st_size
        if left is not None and arrived != start + left:
            raise requests.ConnectionError(f"the connection ended after {arrived:,} of {start + left:,} bytes")

    def _remember_version(self, headers: Mapping[str, str]) -> None:
        etag = headers.get("ETag", "")
        version = headers.get("Last-Modified") if etag.startswith("W/") or not etag else etag  # weak tags do not serve
        if version:
            self.validator.write_text(version)
        else:
            self.validator.unlink(missing_ok=True)


@dataclass(frozen=True)
class UnpackLimits:
    """What an archive may grow to; past any of these it is taken for a bomb."""

    total_bytes: int = 64 * 2**30
    members: int = 200_000
    ratio: float = 200.0  # unpacked bytes for each byte of the archive
    small: int = 2**24  # bytes; below this the ratio is not looked at, for a few empty masks pack very well


DEFAULT_LIMITS = UnpackLimits()


def unpack(archive: Path, folder: Path, limits: UnpackLimits = DEFAULT_LIMITS) -> None:
    """Unpack a zip or tar archive into `folder`; members of a zip that lie there already, whole, are passed over.

    Raises ValueError, naming the member, for one that would land outside, a link or a device, an encrypted one, or an
    archive that grows past `limits`; also for a file that is neither zip nor tar, and a damaged one. Nothing is written
    for a refused member; what came before it stays.
    """
    try:
        _unpack(archive, folder, limits)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError) as error:
        raise ValueError(f"{archive} is damaged or packed in an unknown way ({error}): get it again") from error


def _unpack(archive: Path, folder: Path, limits: UnpackLimits) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if zipfile.is_zipfile(archive):
        members = _zip_members(archive)
    elif tarfile.is_tarfile(archive):
        members = _tar_members(archive)
    else:
        raise ValueError(f"{archive} is neither a zip nor a tar archive")
    packed, total = archive.stat().st_size, 0
    for count, (name, size, problem, extract) in enumerate(members, start=1):
        total += size
        problem = problem or _problem_with_name(name) or _too_large(count, total, packed, limits)
        if problem:
            raise ValueError(f"{archive.name}: member {name!r} {problem}; the archive is refused")
        extract(folder)


def _problem_with_name(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or "\\" in name:  # a backslash parts folders on Windows only
        return "has an absolute or unclear name"
    return "lies outside the target folder" if ".." in path.parts else None


def _too_large(count: int, total: int, packed: int, limits: UnpackLimits) -> str | None:
    if count > limits.members:
        return f"is one more than the {limits.members:,} members allowed"
    if total > limits.total_bytes:
        return f"brings the unpacked size to {total:,} bytes, {limits.total_bytes:,} are allowed"
    if total > limits.small and total > limits.ratio * packed:
        return f"brings the unpacked size to {total / packed:,.0f} times the archive's, {limits.ratio:g} are allowed"
    return None


def _zip_members(archive: Path) -> Iterator[tuple]:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            problem = None
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                problem = "is a link or a device"
            elif member.flag_bits & 1:
                problem = "is encrypted"
            yield member.filename, member.file_size, problem, lambda folder, m=member: _extract(bundle, m, folder)


def _extract(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """Write one member, unless a file of its size and checksum is there: reading takes less time than unpacking."""
    there = folder / member.filename
    if not (there.is_file() and there.stat().st_size == member.file_size and _crc32_of(there) == member.CRC):
        bundle.extract(member, folder)


def _crc32_of(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _tar_members(archive: Path) -> Iterator[tuple]:
    with tarfile.open(archive) as bundle:
        for member in bundle:
            problem = None if member.isfile() or member.isdir() else "is a link or a device"
            yield (
                member.name,
                member.size,
                problem,
                lambda folder, m=member: bundle.extract(m, folder, filter="data"),
            )
