"""Downloads from a server on this machine, and archives that must be refused."""

import dataclasses
import hashlib
import io
import json
import re
import tarfile
import zipfile

import numpy as np
import pytest
from file_server import Server, serving
from imageio.v3 import imwrite

from data_recipes.phantom_microscopy import RECIPE
from data_recipes.shared.writing import write_case
from xlstm_unet_lab.data import download
from xlstm_unet_lab.data.download import fetch, unpack
from xlstm_unet_lab.data.prepare import prepare
from xlstm_unet_lab.data.registry import get_recipe, prepared_folder

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def write_cases(source, out, track=iter):
    for number in range(5):
        write_case(out, "Tr", f"toy_{number}", GREY, GREY % 3)
    return {"kind_of_source": sorted(path.name for path in source.iterdir())}


def toy_recipe(**changes):
    return dataclasses.replace(RECIPE, **({"name": "toy", "dataset_id": 999, "convert": write_cases} | changes))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in members.items():
            bundle.writestr(name, data)
    return buffer.getvalue()


# Downloads, from a server on this machine


@pytest.fixture
def server():
    with serving(zip_of({"a.bin": np.random.default_rng(0).bytes(700_000)})) as server:
        yield server


def test_download_and_prepare(server, tmp_path):
    recipe = toy_recipe(files=(server.file(sha256(server.content)),))
    folder = prepare(recipe, tmp_path, progress=False)
    marker = json.loads((folder / "recipe.json").read_text())
    assert marker["source"]["kind"] == "download" and marker["facts"] == {"kind_of_source": ["a.bin"]}
    assert marker["source"]["files"][0]["sha256"] == sha256(server.content)
    assert prepare(recipe, tmp_path, progress=False) == folder and len(server.ranges) == 1
    # The downloaded file stays, so that a new version of the recipe need not fetch it again.
    prepare(dataclasses.replace(recipe, name="again"), tmp_path, progress=False)
    assert len(server.ranges) == 1


def test_without_a_known_checksum_the_one_found_is_warned_about_and_recorded(server, tmp_path):
    digest = sha256(server.content)
    with pytest.warns(UserWarning, match=f"no checksum is known for .* has sha256 {digest}"):
        folder = prepare(toy_recipe(files=(server.file(None),)), tmp_path, progress=False)
    assert json.loads((folder / "recipe.json").read_text())["source"]["files"][0]["sha256"] == digest


@pytest.mark.filterwarnings("ignore:no checksum is known")
@pytest.mark.parametrize("spoil", [lambda content: b"the server is busy", lambda content: content[:300_000]])
def test_without_a_known_checksum_a_bad_download_is_fetched_anew(server, tmp_path, spoil):
    recipe, whole = toy_recipe(files=(server.file(None),)), server.content
    server.says_length = False  # so that the download cannot tell that something is missing
    server.content = spoil(whole)
    with pytest.raises(ValueError, match=r"file\.zip is neither a zip nor a tar archive") as caught:
        prepare(recipe, tmp_path, progress=False)
    assert caught.value.__notes__ == [
        "No checksum vouches for this download, so it was deleted: call again to get it anew"
    ]
    assert [path for folder in tmp_path.iterdir() if folder.is_dir() for path in folder.iterdir()] == []
    server.content = whole
    assert prepare(recipe, tmp_path, progress=False).is_dir()


def test_an_archive_that_is_refused_stays_where_its_checksum_is_known(server, tmp_path):
    server.content = b"no archive"
    with pytest.raises(ValueError, match="neither a zip nor a tar archive"):
        prepare(toy_recipe(files=(server.file(sha256(server.content)),)), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["downloads"]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["file.zip"]


def test_a_wrong_checksum_is_refused_and_nothing_stays(server, tmp_path):
    with pytest.raises(ValueError, match="does not match the known hash"):
        prepare(toy_recipe(files=(server.file("0" * 64),)), tmp_path, progress=False)
    assert prepared_folder(toy_recipe(), tmp_path) is None and list((tmp_path / "downloads").iterdir()) == []


def test_a_connection_cut_midway_is_continued(server, tmp_path):
    recipe = toy_recipe(files=(server.file(sha256(server.content)),))
    server.cut = 300_000
    with pytest.raises(OSError, match="300,000 bytes arrived and are kept; call again to continue"):
        prepare(recipe, tmp_path, progress=False)
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == [
        "file.zip.part",
        "file.zip.part.version",
    ]
    server.cut = None
    assert prepare(recipe, tmp_path, progress=False).is_dir()
    assert server.ranges == [None, "bytes=300000-"]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["file.zip"]


@pytest.mark.parametrize("etag", ['"two"', ""])
def test_a_file_that_changed_on_the_server_is_fetched_whole(server, tmp_path, etag):
    server.etag = etag or None
    server.cut = 300_000
    with pytest.raises(OSError, match="call again"):
        fetch(server.file(None).address, None, tmp_path / "file.zip", progress=False)
    server.cut, server.etag, server.content = None, '"three"', server.content[::-1]
    path, digest = fetch(server.file(None).address, sha256(server.content), tmp_path / "file.zip", progress=False)
    assert path.read_bytes() == server.content and digest == sha256(server.content)


def test_a_missing_file_on_the_server(server, tmp_path):
    server.status = 404
    with pytest.raises(OSError, match=r"could not be downloaded: 404 .*source="):
        prepare(toy_recipe(files=(server.file("0" * 64),)), tmp_path, progress=False)


def test_of_several_files_those_that_came_are_kept(server, tmp_path):
    digest = sha256(server.content)
    recipe = toy_recipe(files=(server.file(digest, "one.zip"), server.file(digest, "two.zip")))
    server.missing = ("/two.zip",)
    with pytest.raises(OSError, match=r"two\.zip could not be downloaded: 404"):
        prepare(recipe, tmp_path, progress=False)
    assert prepared_folder(recipe, tmp_path) is None
    server.missing = ()
    marker = json.loads((prepare(recipe, tmp_path, progress=False) / "recipe.json").read_text())
    assert [file["name"] for file in marker["source"]["files"]] == ["one.zip", "two.zip"] and len(server.ranges) == 3


def test_more_than_the_server_has_is_thrown_away(server, tmp_path):
    address = server.file(None).address
    (tmp_path / "file.zip.part").write_bytes(server.content + b"more")
    (tmp_path / "file.zip.part.version").write_text(server.etag)
    with pytest.raises(OSError, match=r"the server has no bytes after those already here.*call again"):
        fetch(address, sha256(server.content), tmp_path / "file.zip", progress=False)
    path, _ = fetch(address, sha256(server.content), tmp_path / "file.zip", progress=False)
    assert path.read_bytes() == server.content and server.ranges[-1] is None


@pytest.mark.parametrize("name", ["polyps", "microscopy"])
def test_recipes_prepare_what_they_download(server, tmp_path, name):
    images, labels, suffix = {
        "polyps": ("segmented-images/images", "segmented-images/masks", ".png"),
        "microscopy": ("Training-labeled/images", "Training-labeled/labels", "_label.tiff"),
    }[name]
    picture, mask = io.BytesIO(), io.BytesIO()
    imwrite(picture, GREY, extension=".png")
    imwrite(mask, (GREY > 31) * np.uint8(255), extension=suffix[suffix.index(".") :])
    cases = {f"{images}/case_{k}.png": picture.getvalue() for k in range(10)}
    server.content = zip_of(cases | {f"{labels}/case_{k}{suffix}": mask.getvalue() for k in range(10)})
    recipe = dataclasses.replace(get_recipe(name), files=(server.file(sha256(server.content)),))
    folder = prepare(recipe, tmp_path, progress=False)
    counts = json.loads((folder / "recipe.json").read_text())["counts"]
    assert counts == {"polyps": {"training": 8, "test": 2}, "microscopy": {"training": 9, "test": 1}}[name]


def test_an_unreachable_server(tmp_path):
    with Server() as closed:
        file = closed.file("0" * 64)
    with pytest.raises(OSError, match=r"could not be downloaded.*source="):
        prepare(toy_recipe(files=(file,)), tmp_path, progress=False)


# Archives


def tar_of(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as bundle:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            bundle.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "a\\..\\evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_outside_the_target_are_refused(tmp_path, name, kind):
    archive = tmp_path / "archive"
    if kind == "zip":
        archive.write_bytes(zip_of({"good.txt": "good", name: "evil"}))
    else:
        tar_of(archive, ("good.txt", tarfile.REGTYPE, b"good"), (name, tarfile.REGTYPE, b"evil"))
    with pytest.raises(ValueError, match=f"member {re.escape(repr(name))} .*the archive is refused"):
        unpack(archive, tmp_path / "inner" / "target")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    tar_of(tmp_path / "a.tar.gz", ("link", kind, b""))
    with pytest.raises(ValueError, match="member 'link' is a link or a device"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "target")


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        bundle.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="member 'link' is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "target")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"SMALL": 1000}, "times the archive's, 200 are allowed"),
        ({"MOST_UNPACKED": 1_500_000}, "unpacked size to 2,000,000 bytes, 1,500,000 are allowed"),
        ({"MOST_MEMBERS": 1}, "is one more than the 1 members allowed"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bombs_are_refused(tmp_path, monkeypatch, limits, message, kind):
    for name, limit in limits.items():
        monkeypatch.setattr(download, name, limit)
    zeros = bytes(1_000_000)
    if kind == "zip":
        (tmp_path / "bomb").write_bytes(zip_of({"a": zeros, "b": zeros}))
    else:
        tar_of(tmp_path / "bomb", ("a", tarfile.REGTYPE, zeros), ("b", tarfile.REGTYPE, zeros))
    with pytest.raises(ValueError, match=message):
        unpack(tmp_path / "bomb", tmp_path / "target")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_is_refused(tmp_path, kind):
    """The end of a member's bytes overwritten or missing, as after a bad copy."""
    content = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint8).tobytes()
    path = tmp_path / "damaged"
    if kind == "zip":
        packed = zip_of({"a": content})
        path.write_bytes(packed[:500] + bytes(100) + packed[600:])
    else:
        tar_of(path, ("a", tarfile.REGTYPE, content))
        path.write_bytes(path.read_bytes()[:-6000])
    with pytest.raises(ValueError, match=r"damaged is damaged or packed in an unknown way .*: get it again"):
        unpack(path, tmp_path / "target")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"a page that says the server is busy")
    with pytest.raises(ValueError, match=r"a\.zip is neither a zip nor a tar archive"):
        prepare(toy_recipe(registration="x"), tmp_path, source=tmp_path / "a.zip", progress=False)
