"""Servers that send pieces of another file, more than there is, or hardly anything: no mixture, and always an end."""

import inspect
import os

import numpy as np
import pytest
from file_server import serving

from xlstm_unet_lab.data import download
from xlstm_unet_lab.data.download import BLOCK, fetch

ONE, TWO = (np.random.default_rng(seed).bytes(400_000) for seed in (1, 2))
pytestmark = pytest.mark.filterwarnings("ignore:no checksum is known")


@pytest.fixture
def server():
    with serving(ONE) as server:
        yield server


def get(server, folder, **options):
    return fetch(server.file(None).address, None, folder / "file.zip", progress=False, **options)[0]


def begun(server, folder):
    """A download whose connection broke."""
    server.cut = 3 * BLOCK
    with pytest.raises(OSError, match=f"{3 * BLOCK:,} bytes arrived and are kept; call again"):
        get(server, folder)
    server.cut = None


@pytest.mark.parametrize("etag", ['"two"', None, 'W/"one"'])
def test_the_rest_of_another_file_is_never_taken(server, tmp_path, etag):
    begun(server, tmp_path)
    server.content, server.etag, server.ignores_if_range = TWO, etag, True
    assert get(server, tmp_path).read_bytes() == TWO
    assert server.ranges == [None, f"bytes={3 * BLOCK}-", None]
    assert os.listdir(tmp_path) == ["file.zip"]


@pytest.mark.parametrize(
    "place",
    ["bytes 0-399999/400000", "bytes 196609-399999/400000", "bytes */400000", "", "196608-399999", "bytes a-b/c"],
)
def test_a_piece_that_is_not_the_rest_is_never_taken(server, tmp_path, place):
    begun(server, tmp_path)
    server.content_range = place or "no words"
    assert get(server, tmp_path).read_bytes() == ONE


def test_a_piece_that_nobody_asked_for_is_refused(server, tmp_path):
    server.content_range = "bytes 10-399999/400000"
    server.always_a_piece = True
    with pytest.raises(OSError, match=r"a piece of the file when asked for all of it.*call again"):
        get(server, tmp_path)
    assert len(server.ranges) == 1


def test_a_rest_that_ends_early_is_not_taken_for_the_whole(server, tmp_path):
    begun(server, tmp_path)
    server.content, whole = ONE[:300_000], server.content
    server.content_range = f"bytes {3 * BLOCK}-299999/{len(whole)}"
    with pytest.raises(OSError, match=r"the connection ended after 300,000 of 400,000 bytes.*call again"):
        get(server, tmp_path)
    server.content, server.content_range = whole, None
    assert get(server, tmp_path).read_bytes() == whole


def test_a_rest_of_the_same_file_is_taken(server, tmp_path):
    begun(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == ONE
    assert server.ranges == [None, f"bytes={3 * BLOCK}-"]


@pytest.mark.parametrize("says_length", [True, False])
def test_more_than_the_stated_size_is_refused(server, tmp_path, says_length):
    server.says_length = says_length
    with pytest.raises(ValueError, match=r"has more than the .* bytes that are allowed for it.*source="):
        get(server, tmp_path, size=100_000)
    assert os.listdir(tmp_path) == []


def test_a_stream_without_end_is_refused(server, tmp_path, monkeypatch):
    server.says_length, server.pieces = False, bytes(BLOCK)
    with pytest.raises(ValueError, match="has more than the"):
        get(server, tmp_path, size=500_000)
    assert os.listdir(tmp_path) == []


def test_without_a_stated_size_there_is_a_limit_too():
    assert inspect.signature(fetch).parameters["size"].default == download.MOST < 2**40


@pytest.mark.parametrize("size", [370_000, 400_000, 40_000_000])
def test_stated_sizes_may_be_about_right(server, tmp_path, size):
    assert get(server, tmp_path, size=size).read_bytes() == ONE


def test_a_byte_now_and_then_is_given_up_and_what_came_is_kept(server, tmp_path, monkeypatch):
    """However slow this machine is: then even less comes."""
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    server.says_length, server.pieces, server.pause = False, b"a", 0.02
    with pytest.raises(OSError, match=r"sent only .* bytes in 0.1 seconds\. .* bytes arrived and are kept; call again"):
        get(server, tmp_path)
    assert (tmp_path / "file.zip.part").read_bytes().removeprefix(ONE).strip(b"a") == b""


def test_nothing_at_all_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.says_length, server.pieces, server.pause = False, b"a", 1.0
    with pytest.raises(OSError, match=r"timed out.*call again"):
        get(server, tmp_path)


def test_headers_that_come_a_byte_at_a_time_are_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ANSWER", 0.2)
    server.drips = 0.02
    with pytest.raises(OSError, match=r"did not say within 0.2 seconds what it sends.* 0 bytes arrived .*call again"):
        get(server, tmp_path)
    server.drips = 0.0
    monkeypatch.setattr(download, "ANSWER", 60)
    assert get(server, tmp_path).read_bytes() == ONE


def test_what_an_interrupted_download_has_outlives_headers_that_never_end(server, tmp_path, monkeypatch):
    begun(server, tmp_path)
    monkeypatch.setattr(download, "ANSWER", 0.2)
    server.drips = 0.02
    with pytest.raises(OSError, match=f"{3 * BLOCK:,} bytes arrived and are kept; call again"):
        get(server, tmp_path)


# What a chunked answer can do without end: its bytes, one by one, after these first ones.
WITHOUT_END = {
    "size of a chunk": (b"", b"0"),
    "words after the size": (b"10; ", b"a"),
    "end of a chunk's line": (b"1\r\na\r\n1", b" "),
    "trailers": (b"3\r\nabc\r\n0\r\nName: ", b"a"),
    "many trailers": (b"3\r\nabc\r\n0\r\n", b"A: b\r\n"),
    "inside a chunk": (b"FFFFFF\r\n", b"a"),
    "tiny chunks": (b"", b"1\r\na\r\n"),
}


@pytest.mark.parametrize(("first", "again"), WITHOUT_END.values(), ids=WITHOUT_END)
def test_chunked_answers_that_never_end_are_given_up(server, tmp_path, monkeypatch, first, again):
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    server.says_length, server.chunked, server.content, server.pieces, server.pause = False, True, first, again, 0.02
    with pytest.raises(OSError, match=r"file\.zip could not be downloaded: .*call again"):
        get(server, tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "http://[::",
        "http://",
        "http://[",
        "http://a:b/",
        "//[::",
        "file:///etc/passwd",
        "ftp://x/y",
        "http://\xff:99999/",
        "x",
    ],
)
def test_redirects_to_what_is_no_address_are_words_and_cost_nothing(server, tmp_path, address):
    begun(server, tmp_path)
    server.redirect = address
    with pytest.raises(
        OSError, match=rf"file\.zip could not be downloaded: .*{3 * BLOCK:,} bytes arrived and are kept"
    ):
        get(server, tmp_path)
    server.redirect = None
    assert get(server, tmp_path).read_bytes() == ONE and server.ranges[-1] == f"bytes={3 * BLOCK}-"
