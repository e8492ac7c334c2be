"""The slicer in a bare page, without JupyterLab: how fast slices follow each other, and what it leaves to the page."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, allowed, slice_times
from test_browser import large_case

from xlstm_unet_lab.overlays import slicer

TRAITS = ("axis", "slice", "channel", "opacity", "window", "level", "layers")
# A model as anywidget hands it to the script, with nobody behind it.
MODEL = """async ([script, state]) => {
    const bytes = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
    const unpacked = JSON.parse(state, (key, value) => (value?.bytes === undefined ? value : bytes(value.bytes)));
    const changed = {};
    window.model = {
        get: (name) => unpacked[name],
        set: (name, value) => { unpacked[name] = value; },
        save_changes: () => Object.values(changed)[0](),
        on: (name, update) => { changed[name] = update; },
    };
    const { default: slicer } = await import(`data:text/javascript;base64,${script}`);
    await slicer.render({ model, el: document.body });
}"""


@pytest.fixture(scope="module")
def page(require_browser):
    from playwright.sync_api import sync_playwright

    widget = slicer.slicer(large_case())
    state = {name: getattr(widget, name) for name in ("scene", *TRAITS)}
    packed = json.dumps(state, default=lambda data: {"bytes": base64.b64encode(data).decode()})
    script = Path(slicer.__file__).with_name("slicer.js").read_bytes()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_browser, args=CHROMIUM)
        page = browser.new_page()
        page.evaluate(MODEL, [base64.b64encode(script).decode(), packed])
        yield page
        browser.close()


def wheel(page, across, down):
    """Turn the wheel: whether the page is left to scroll, and the slice then."""
    event = f"new WheelEvent('wheel', {{ deltaX: {across}, deltaY: {down}, cancelable: true }})"
    return page.evaluate(f"() => [document.querySelector('canvas').dispatchEvent({event}), model.get('slice')]")


def test_sideways_the_page_scrolls(page):
    first = page.evaluate("() => model.get('slice')")
    assert wheel(page, 120, 0) == wheel(page, -120, 30) == [True, first]
    assert wheel(page, 30, -120) == [False, first + 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_slice_takes_less_than_50_ms_along_every_axis(page, axis):
    start = "(axis) => [['axis', axis], ['slice', 60]].forEach(([name, value]) => model.set(name, value))"
    page.evaluate(start, axis)
    milliseconds, probes = slice_times(page, "document.querySelector('canvas')")
    assert np.quantile(milliseconds, 0.9) < allowed(probes), milliseconds
