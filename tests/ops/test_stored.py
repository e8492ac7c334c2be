"""JSON comes back whole, of the kind expected and within limits, or not at all, with the file's name."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from xlstm_unet_lab.ops import stored
from xlstm_unet_lab.ops.stored import check_fields, fits, read_fields, read_json


def test_what_was_written_comes_back(tmp_path):
    for content in ({"a": [1, 2.5, None, "ä"]}, []):
        (tmp_path / "x.json").write_text(json.dumps(content))
        assert read_json(tmp_path / "x.json", type(content)) == content
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')  # as some editors begin a file
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON, or not whole"),
        (b'{"a": [1, 2', "not whole"),
        (b'{"a": 1} {"a": 2}', "Extra data"),
        (b'{"a": "\xff"}', "can't decode byte"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -Infinity}', "-Infinity is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' stands there twice"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b"[1]", r"holds \[1\], expected names with values"),
        (b"null", "holds None, expected names with values"),
    ],
)
def test_a_spoilt_file_is_named_with_what_to_do(tmp_path, content, message):
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_json(tmp_path / "facts.json")
    assert str(tmp_path / "facts.json") in str(error.value) and "get it again" in str(error.value)
    assert len(str(error.value)) < 500


def test_only_regular_files_within_the_limit_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "queue.json")
    for path in (tmp_path, tmp_path / "queue.json", tmp_path / "absent.json", "/dev/zero"):
        with pytest.raises(FileNotFoundError, match="is missing, or no regular file"):
            read_json(path)
    monkeypatch.setattr(stored, "LARGEST", 100)
    (tmp_path / "large.json").write_text(json.dumps("a" * 99))
    with pytest.raises(ValueError, match=r"large\.json has more than 100 bytes"):
        read_json(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3, np.int64(2)], [True, 1.0, "1", None, float("nan")]),
        (float, [1, 2.5, np.float32(1)], [True, float("inf"), "1", None]),
        (str, ["", "a"], [1, b"a", None]),
        (bool, [True, False], [1, "yes", None]),
        (tuple[int, ...], [(), [1, 2], (3,)], [3, (1.5,), "12", {1: 2}]),
        (Mapping[str, tuple[int, ...]], [{}, {"a": [1]}], [[], {"a": 1}, {1: [1]}, None]),
        (str | None, ["a", None], [1, []]),
        (Mapping[str, Any], [{"a": object()}], ["a", {1: 2}]),
    ],
)
def test_values_are_held_against_annotations(hint, right, wrong):
    assert all(fits(value, hint) for value in right)
    assert not any(fits(value, hint) for value in wrong)


@dataclass
class Facts:
    name: str | None
    sizes: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"name": 3}, r"here: name is 3, expected str \| None"),
        ({"sizes": ["a"]}, r"here: sizes is \['a'\], expected tuple\[int, \.\.\.\]"),
        ({"later": 1}, "here: 'later' is not known here: the file may come from a newer version"),
        (["name"], r"here: \['name'\] is there, expected name, sizes by name"),
    ],
)
def test_a_fact_of_another_kind_is_named(facts, message):
    with pytest.raises(ValueError, match=message):
        check_fields(Facts, facts, "here")


def test_fields_that_a_file_lacks_are_none(tmp_path):
    (tmp_path / "x.json").write_text('{"name": "a", "more": 1, "sizes": []}')
    assert read_fields(tmp_path / "x.json", Facts) == {"name": "a", "sizes": []}
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json: sizes is None"):
        read_fields(tmp_path / "x.json", Facts)
