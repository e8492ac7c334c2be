"""What a live napari viewer makes of overlays, as one line of JSON; tests run it in a fresh process, on a screen."""

import json
from dataclasses import replace

import numpy as np
from napari.layers import Image

from xlstm_unet_lab.overlays.description import overlay
from xlstm_unet_lab.overlays.viewer import grid


def volume():
    """A liver of which a third is taken for aorta from slice 3 on; not one axis as long as another."""
    truth = np.zeros((6, 16, 20), np.uint8)
    truth[:, 4:12, 4:16] = 1
    prediction = truth.copy()
    prediction[3:, 4:12, 4:8] = 5
    return overlay(
        np.random.default_rng(0).random((2, *truth.shape), np.float32),
        truth=truth,
        prediction=prediction,
        spacing=(5.0, 2.0, 1.0),
        channel_names=("t1", "t2"),
        label_names={"liver": 1, "aorta": 5},
        colours={1: "#D55E00", 5: "#56B4E9"},
        probabilities=np.full((3, *truth.shape), 1 / 3, np.float32),
        title="patient 7",
        anatomical=True,
    )


def picture():
    nuclei = np.zeros((24, 32), np.uint8)
    nuclei[4:12, 4:20] = 1
    image = np.random.default_rng(0).integers(0, 255, (3, 24, 32), np.uint8)
    facts = {"channel_names": ("R", "G", "B"), "unit": "pixel", "title": "nuclei 1"}
    return overlay(image, truth=nuclei, instances=nuclei, **facts)


def colours_of(layer):
    return {str(value): colour.tolist() for value, colour in layer.colormap.color_dict.items()}


def facts_of(layer):
    kind = "image" if isinstance(layer, Image) else "labels"
    facts = {"kind": kind, "scale": layer.scale.tolist(), "units": [str(unit) for unit in layer.units]}
    facts |= {"visible": layer.visible, "rgb": bool(getattr(layer, "rgb", False))}
    return facts if kind == "image" else facts | {"colours": colours_of(layer), "contour": layer.contour}


def hover(layer, position):
    return layer.get_status(position, view_direction=[1, 0, 0], dims_displayed=[1, 2], world=True)["value"]


def message_of(action, *arguments):
    try:
        action(*arguments)
    except ValueError as error:
        return str(error)


def main():
    shown, facts = volume(), {}
    viewer = shown.napari()
    camera, scale_bar = viewer.scene.camera, viewer.canvas.overlays.scale_bar
    prediction = viewer.layers["prediction"]
    facts["volume"] = {layer.name: facts_of(layer) for layer in viewer.layers}
    facts["view"] = {
        "slice": viewer.dims.current_step[0],
        "orientation": [str(way) for way in camera.orientation],
        "scale bar": scale_bar.visible,
        "active": viewer.layers.selection.active.name,
        "title": viewer.title,
    }
    facts["hover"] = [hover(prediction, place) for place in ((20, 10, 5), (20, 10, 12), (20, 0, 0))]
    viewer.layers["errors"].visible = True  # what is hidden is not read
    facts["hover error"] = hover(viewer.layers["errors"], (20, 10, 5))
    viewer.dims.set_current_step(0, 5)
    prediction.data[4, 4:12, 4:8] = 1
    facts["overlay untouched"] = int(shown.prediction[4, 4, 4])
    edited = shown.rescore()  # of the viewer used last
    facts["rescored"] = {
        "errors": np.count_nonzero(viewer.layers["errors"].data, axis=(1, 2)).tolist(),
        "scores": edited.scores,
        "hover": hover(prediction, (20, 10, 12)),
        "slice": viewer.dims.current_step[0],
        "same layer": viewer.layers["prediction"] is prediction,
    }
    prediction.data[0, 0, 0] = 9
    facts["unknown value"] = message_of(edited.rescore, viewer)
    facts["other case"] = message_of(replace(shown, title="another").rescore, viewer)
    without = replace(shown, truth=None)
    facts["without truth"] = [layer.name for layer in without.napari(viewer).layers]
    picture().napari(viewer)
    facts["picture"] = {layer.name: facts_of(layer) for layer in viewer.layers}
    facts["picture orientation"] = [str(way) for way in camera.orientation]
    models = [replace(shown, title="model a"), replace(shown, title="model b", probabilities=None)]
    grid(models, viewer)
    cells = viewer.canvas.grid
    names = [layer.name for layer in viewer.layers]
    facts["grid"] = {
        "names": names,
        "shape": cells.actual_shape(viewer.layers),
        "places": [cells.position(names.index(f"model {which}: prediction"), viewer.layers) for which in "ab"],
    }
    facts["grid alike"] = message_of(grid, [shown, shown], viewer)
    facts["grid mixed"] = message_of(grid, [shown, picture()], viewer)
    models[1].rescore(viewer)
    facts["grid after rescoring"] = [layer.name for layer in viewer.layers]
    viewer.close()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
