"""The site as a reader sees it: built strictly, opened from the disk, nothing fetched from elsewhere."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, PATIENCE
from conftest import absent
from places import REPOSITORY


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    """What `make site` does with a folder of pages."""
    if importlib.util.find_spec("sphinx") is None:
        absent("Sphinx is not installed", "install the extra named site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-n", "-c", str(REPOSITORY / "docs")]
    command += ["-d", str(out.with_name("doctrees")), str(source), str(out)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "tools/site_pages.py", str(folder / "source")]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    done = build(folder / "source", folder / "site")
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def page(require_browser) -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_browser, args=CHROMIUM)
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        yield page
        browser.close()


def test_a_reader_goes_from_the_readme_to_a_lesson_and_the_reference(site, page):
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto((site / "index.html").as_uri())
    assert page.locator("h1").first.inner_text().startswith("xLSTM-UNet Lab")
    page.get_by_role("link", name="lstm_to_mlstm").first.click()
    assert page.locator("h1").first.inner_text().startswith("01")
    assert page.locator("math").count() > 50
    widths = page.locator(".cell_output img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) >= 3 and all(widths)
    page.locator("nav, aside").get_by_role("link", name="xlstm_unet_lab.ops", exact=True).first.click()
    assert "chunk" in page.locator("[id='xlstm_unet_lab.ops.mlstm.chunkwise'] + dd").inner_text()
    assert errors == []
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []


def test_what_leads_nowhere_stops_the_build(tmp_path):
    (tmp_path / "source").mkdir()
    texts = ["[page](gone.md)", "[place](#gone)", "![picture](gone.png)", "{py:obj}`xlstm_unet_lab.gone`"]
    (tmp_path / "source" / "index.md").write_text("\n\n".join(["# Title", *texts]))
    done = build(tmp_path / "source", tmp_path / "site")
    assert done.returncode != 0
    complaints = (
        "target not found: 'gone.md'",
        "target not found: 'gone'",
        "gone.png",
        "not found: xlstm_unet_lab.gone",
    )
    assert [words for words in complaints if words not in done.stderr] == []
