"""JupyterLab in a headless Chromium, for tests: start both, open a notebook, run it, type into it, look at it.

with jupyterlab(folder, chromium) as lab:
    notebook = lab.open(["1 + 1"])
    notebook.run_all()
    assert notebook.text(0) == "2"
"""

import json
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat

ARTEFACTS = Path(os.environ.get("LAB_ARTEFACTS", Path(__file__).parent / "artefacts"))
PATIENCE = 600  # seconds for a server, a page or a kernel to start, and for cells to run, on a slow, busy machine
LIMIT = 50  # ms for another slice, where a million square roots take PROBE ms; on slower machines as much longer
PROBE = 3
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
# Nothing from the network, no notices over the page, and every cell in the page even where it is not in view.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
PANEL = "jupyterapp.shell.currentWidget"
OUTPUTS = f"{PANEL}.content.widgets.map(cell => cell.model.outputs?.toJSON() ?? [])"


def write_notebook(path: Path, sources: Sequence[str]) -> Path:
    """Write a notebook with these code cells."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook, path)
    return path


def in_plain_text(output: dict) -> str:
    """What an output shows, in words."""
    if output["output_type"] == "error":
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output["traceback"]))
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return "".join(text).rstrip("\n")


class Notebook:
    """An open notebook, whose kernel has started; `page` is playwright's."""

    def __init__(self, page):
        self.page = page
        self.wait_until(f"window.jupyterapp && {PANEL}?.sessionContext?.session?.kernel?.status === 'idle'")

    def wait_until(self, condition: str, seconds: float = PATIENCE) -> None:
        """Wait until a JavaScript expression is true."""
        self.page.wait_for_function(f"() => {condition}", timeout=1000 * seconds)

    def command(self, name: str, arguments: dict | None = None) -> None:
        """Start one of JupyterLab's commands; `finish` waits for its end."""
        call = f"jupyterapp.commands.execute({json.dumps(name)}, {json.dumps(arguments or {})})"
        self.page.evaluate(f"() => {{ window.ended = false; {call}.finally(() => {{ window.ended = true; }}); }}")

    def finish(self, seconds: float = PATIENCE) -> None:
        """Wait until the command has ended and the kernel is idle; AssertionError with the trace of a failed cell."""
        self.wait_until(f"window.ended && {PANEL}.sessionContext.session.kernel.status === 'idle'", seconds)
        failed = [output for cell in self.outputs() for output in cell if output["output_type"] == "error"]
        assert not failed, in_plain_text(failed[0])

    def run_all(self, seconds: float = PATIENCE) -> None:
        """Run all cells and wait for their end."""
        self.command("notebook:run-all-cells")
        self.finish(seconds)

    def run(self, cell: int, source: str | None = None, seconds: float = PATIENCE) -> str:
        """Run one cell, with another source if there is one, wait for its end and return what it shows."""
        if source is not None:
            self.type_into(cell, source)
        self.page.evaluate(f"() => {{ {PANEL}.content.activeCellIndex = {cell}; }}")
        self.command("notebook:run-cell")
        self.finish(seconds)
        return self.text(cell)

    def type_into(self, cell: int, source: str) -> None:
        """Replace a cell's source by what a hand would paste."""
        self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(source)

    def outputs(self) -> list[list[dict]]:
        """The outputs of every cell, as the notebook's file would hold them."""
        return self.page.evaluate(f"() => {OUTPUTS}")

    def text(self, cell: int) -> str:
        """What a cell shows, in words."""
        return "\n".join(map(in_plain_text, self.outputs()[cell]))

    def use_theme(self, theme: str) -> None:
        """Change to "JupyterLab Light" or "JupyterLab Dark"."""
        self.command("apputils:change-theme", {"theme": theme})
        self.wait_until(f"document.body.dataset.jpThemeName === {json.dumps(theme)}")

    def keep(self, name: str) -> Path:
        """Keep a picture of the page in the folder of artefacts."""
        path = ARTEFACTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that serves `folder`, and a browser to look at it."""

    folder: Path
    address: str
    token: str
    browser: object

    def open(self, notebook: Path | Sequence[str]) -> Notebook:
        """Open a notebook of the folder, or a new one with these code cells, in a page of its own."""
        if not isinstance(notebook, Path):
            notebook = write_notebook(self.folder / f"{secrets.token_hex(4)}.ipynb", notebook)
        page = self.browser.new_page(viewport={"width": 1280, "height": 1300})
        page.set_default_timeout(1000 * PATIENCE)
        name = notebook.relative_to(self.folder).as_posix()
        page.goto(f"{self.address}/lab/tree/{name}?reset&token={self.token}")
        return Notebook(page)


@contextmanager
def jupyterlab(folder: Path, chromium: str) -> Iterator[Lab]:
    """JupyterLab on a free port with settings of its own, and a browser; both end with the block, whatever happens.

    When the block fails, a picture of every open page is kept in the folder of artefacts.
    """
    from playwright.sync_api import Error, sync_playwright

    with _server(folder) as (address, token), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        try:
            yield Lab(folder, address, token, browser)
        except BaseException:
            for number, page in enumerate(page for context in browser.contexts for page in context.pages):
                with suppress(Error):  # a page that broke must not hide why the block failed
                    page.screenshot(path=ARTEFACTS / f"failed_{number}.png")
            raise
        finally:
            browser.close()


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, str]]:
    own = folder / ".jupyter"
    for name, settings in SETTINGS.items():
        path = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    # Not this run's Matplotlib backend: the notebook's kernel brings its own.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {name: str(own / place) for name, place in folders.items()} | {"JUPYTER_TOKEN": token}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser"]
    command += [f"--ServerApp.root_dir={folder}", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    address = f"http://127.0.0.1:{port}"
    with open(own / "log.txt", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(server, f"{address}/api/status?token={token}", own / "log.txt")
        yield address, token
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()  # its kernels notice and end by themselves
            server.wait()


def _wait_for(server: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"JupyterLab did not start within {PATIENCE} s; its log:\n{log.read_text()[-3000:]}")


def slice_times(page, canvas: str) -> tuple[list[float], list[float]]:
    """Milliseconds that each of 40 other slices took, and that a million square roots took before each of them."""
    return page.evaluate(
        f"""async () => {{
        const canvas = {canvas}, taken = [], probes = [];
        for (let turn = 0; turn < 40; turn++) {{
            await new Promise(requestAnimationFrame);
            const before = performance.now();
            let sum = 0;
            for (let number = 0; number < 1_000_000; number++) sum += Math.sqrt(number);
            const start = performance.now();
            probes.push(sum > 0 ? start - before : 0);
            const key = turn < 20 ? "ArrowUp" : "ArrowDown";
            canvas.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
            canvas.getContext("2d").getImageData(0, 0, 1, 1);
            taken.push(performance.now() - start);
        }}
        return [taken, probes];
    }}"""
    )


def allowed(probes: list[float]) -> float:
    """Milliseconds another slice may take on this machine: 50, and on a slower one as many times more."""
    return LIMIT * max(1, statistics.median(probes) / PROBE)
