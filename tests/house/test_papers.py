"""What a stranger and a contributor read: README, guides, citation, workflow; nothing they name is missing."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from places import REPOSITORY

from xlstm_unet_lab.cli.app import ORDER
from xlstm_unet_lab.course.authoring.assignments import links
from xlstm_unet_lab.data.registry import recipe_names
from xlstm_unet_lab.models.presets import MODELS

LONGEST_README = 180  # lines
PAPERS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_readme_is_a_map_and_no_more() -> None:
    assert len(read("README.md").splitlines()) <= LONGEST_README


def test_the_map_names_every_folder_and_nothing_else() -> None:
    block = read("README.md").partition("## Map of the house")[2].split("```")[1]
    open_folders, named = {}, set()
    for margin, name in re.findall(r"^( *)(\w+)/(?: |$)", block, re.MULTILINE):
        depth = len(margin) // 2
        open_folders = {above: part for above, part in open_folders.items() if above < depth} | {depth: name}
        named.add("/".join(open_folders.values()))
    packages = {one.parent for one in (REPOSITORY / "xlstm_unet_lab").glob("*/__init__.py")}
    assert [name for name in named if not (REPOSITORY / name).is_dir()] == []
    assert {one.relative_to(REPOSITORY).as_posix() for one in packages} <= named


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(paper: Path) -> None:
    targets = [target.partition("#")[0] for target in links(paper.read_text(encoding="utf-8"))]
    assert [target for target in targets if target and not (paper.parent / target).exists()] == []


@pytest.mark.parametrize(
    ("guide", "names"),
    [("data_sets.md", recipe_names()), ("command_line.md", ORDER), ("networks.md", MODELS)],
    ids=["data sets", "commands", "networks"],
)
def test_a_guide_names_all_there_are(guide: str, names) -> None:
    text = read(f"docs/{guide}")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_files_that_are_named_exist() -> None:
    """Paths in the README and in CONTRIBUTING, from the repository or from the package."""
    for paper in ("README.md", "CONTRIBUTING.md"):
        found = set(re.findall(r"\b[a-z_]+/[\w/]+\.(?:py|md|toml|yml)\b", read(paper)))
        paths = [one for one in found if "NN" not in one and "NAME" not in one]  # those stand for what is to be made
        roots = (REPOSITORY, REPOSITORY / "xlstm_unet_lab")
        assert paths and [one for one in paths if not any((root / one).exists() for root in roots)] == []


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and str(citation["version"]) == VERSION
    assert citation["message"] and citation["title"] and citation["authors"]
    (paper,) = citation["references"]
    assert paper["url"].endswith("2407.01530") and paper["authors"][0]["family-names"] == "Chen"


def test_the_workflow_runs_the_two_commands() -> None:
    (job,) = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make lab LAB_ARGS=--version", "make test"]
    assert "LAB_REQUIRE" not in str(job), "the real data is not there"


def test_the_hooks_run_the_ruff_of_the_project() -> None:
    (local,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local", "another repository would bring another version of ruff"
    assert ["ruff" in hook["entry"] and hook["language"] for hook in local["hooks"]] == ["system", "system"]
