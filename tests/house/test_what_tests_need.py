"""What tests ask of a machine: what LAB_REQUIRE names must be there, and the list of slow tests is true."""

from pathlib import Path

import pytest
from conftest import SLOW, pytest_configure, required_folder
from places import REPOSITORY


@pytest.mark.parametrize(
    ("named", "outcome"), [("opengl,shared", pytest.fail), ("browser", pytest.skip), ("", pytest.skip)]
)
def test_absent_data_fail_where_they_are_named_and_skip_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, outcome
) -> None:
    monkeypatch.setenv("LAB_REQUIRE", named)
    monkeypatch.setenv("LAB_DEMO", str(tmp_path / "nowhere"))
    with pytest.raises(outcome.Exception, match=r"no demo data in .*nowhere.*: set LAB_DEMO to the folder that holds"):
        required_folder("LAB_DEMO", tmp_path, "demo data")
    monkeypatch.delenv("LAB_DEMO")
    assert required_folder("LAB_DEMO", tmp_path, "demo data") == tmp_path


def test_an_unknown_requirement_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_REQUIRE", "shared,openg1")
    with pytest.raises(pytest.UsageError, match="LAB_REQUIRE names openg1: it may name shared, opengl, browser"):
        pytest_configure(None)


def test_slow_tests_that_are_listed_exist() -> None:
    for line in SLOW:
        path, _, name = line.partition("::")  # a whole file, or one test of it
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        assert f"\ndef {name or 'test_'}" in source, f"tests/slow.txt names {line}"
