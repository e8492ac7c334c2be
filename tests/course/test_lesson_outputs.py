"""What of a notebook's outputs is kept: no large picture, no path of this machine, and what a widget showed."""

import base64
from pathlib import Path

import nbformat
import pytest

from xlstm_unet_lab.course.authoring.lesson import (
    PICTURE_LIMIT,
    WIDGET_STATE,
    WIDGET_VIEW,
    check_outputs,
    notebook_bytes,
    without_widgets,
)


def cell_with(**data):
    data = {kind.replace("_", "/"): content for kind, content in data.items()}
    cell = nbformat.v4.new_code_cell("draw()")
    cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    return cell


def picture(size):
    return base64.b64encode(bytes(size)).decode()


@pytest.mark.parametrize("over", [0, 1, 2, 3])
def test_a_large_picture_is_refused(tmp_path, over):
    encoded = picture(PICTURE_LIMIT + over)
    for cell in (cell_with(image_png=encoded), cell_with(text_html=f'<img src="data:image/png;base64,{encoded}">')):
        faults = list(check_outputs(cell, tmp_path))
        assert [f"a picture of {PICTURE_LIMIT + over:,} bytes" in fault for fault in faults] == [True] * bool(over)


def test_a_path_of_this_machine_is_refused(tmp_path):
    folder = tmp_path / "solutions"
    assert list(check_outputs(cell_with(text_plain="data/case_1.png"), folder)) == []
    assert list(check_outputs(cell_with(text_plain=f"{tmp_path}x/y"), folder)) == []
    for path in (tmp_path / "data", Path.home() / ".cache"):
        (fault,) = check_outputs(cell_with(text_plain=f"'{path}'"), folder)
        assert "shows a path of this machine" in fault


def test_widgets_give_way_to_what_they_show():
    def view(model_id):
        return {WIDGET_VIEW: {"model_id": model_id, "version_major": 2, "version_minor": 0}, "text/plain": model_id}

    def model(name, **state):
        return {"model_name": name, "state": state}

    drawn = '<b>5 &lt; 6</b> <img src="data:," alt="a curve">'
    captured = {"output_type": "stream", "name": "stdout", "text": "captured"}
    models = {
        "box": model(
            "VBoxModel", children=["IPY_MODEL_slider", "IPY_MODEL_output", "IPY_MODEL_picture", "IPY_MODEL_html"]
        ),
        "slider": model("IntSliderModel", value=3),
        "output": model("OutputModel", outputs=[captured]),
        "picture": model("ImageModel", format="png")
        | {"buffers": [{"encoding": "base64", "path": ["value"], "data": picture(3)}]},
        "html": model("HTMLModel", value=drawn),
    }
    cell = nbformat.v4.new_code_cell("show()")
    cell.outputs = [nbformat.v4.new_output("display_data", data=view(name)) for name in ("box", "slider", "gone")]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["widgets"] = {WIDGET_STATE: {"state": models}}
    before = notebook_bytes(notebook)
    outputs = nbformat.from_dict(without_widgets(notebook)).cells[0].outputs
    assert outputs[0].text == "captured"
    assert outputs[1].data["image/png"] == picture(3)
    assert outputs[2].data == {"text/html": drawn, "text/plain": "5 < 6 a curve"}
    assert [output.data for output in outputs[3:]] == [{"text/plain": "slider"}, {"text/plain": "gone"}]
    assert notebook_bytes(notebook) == before
