"""The widgets of the napari plugin: controls, a thread and a line of text around `plugin.tasks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, Label, LineEdit, ProgressBar, PushButton, Select
from magicgui.widgets import Table as TableWidget
from napari.layers import Image, Labels, Layer
from napari.settings import get_plugin_settings
from napari.utils.notifications import notification_manager, show_error
from qtpy.compat import isalive
from superqt.utils import create_worker, ensure_main_thread

from xlstm_unet_lab.inference.shipped import WEIGHTS
from xlstm_unet_lab.ops.devices import available_devices
from xlstm_unet_lab.overlays.layers import LayerData
from xlstm_unet_lab.overlays.viewer import restyle
from xlstm_unet_lab.plugin.exploring import explore_layers
from xlstm_unet_lab.plugin.tasks import Comparison, compare, segment

RUNS = Path("runs")  # where `xlstm-unet-lab train` puts run directories
FEW_ROWS = 90  # pixels of a list that leave room in the dock
# What a result brings up to date in a layer that shows an earlier one.
RENEWED = {"scale", "translate", "units", "colormap", "contrast_limits", "features"}
# What the library raises on purpose, and a full graphics memory; anything else is a bug and keeps its traceback.
EXPECTED = (ValueError, KeyError, TypeError, OSError, ImportError, torch.OutOfMemoryError)


class Cancelled(Exception):
    """Raised between two windows when the user no longer wants the result."""


class Task(Container):
    """Controls, a button that starts one task in a thread, a progress bar, a button to cancel, and a line of text.

    The button calls `begin`, in which a subclass gathers what the controls say and calls `start`. A task that fails
    leaves its words in the line of text and in a notification.
    """

    def __init__(self, viewer, action: str, controls: Sequence) -> None:
        self._viewer, self._worker = viewer, None
        self.start_button = PushButton(text=action)
        self.cancel_button = PushButton(text="Cancel", enabled=False)
        self.bar = ProgressBar(value=0, max=1, label="progress")
        self.text = Label(value="")
        self.text.native.setWordWrap(True)
        super().__init__(widgets=[*controls, self.start_button, self.cancel_button, self.bar, self.text])
        self.start_button.changed.connect(lambda: self.begin())  # a click hands on a flag
        self.cancel_button.changed.connect(self.cancel)
        self.native.destroyed.connect(lambda: self._worker and self._worker.quit())  # as the viewer is closed
        self._recall()

    def _recall(self) -> None:
        """Give the controls what they had in the last session, and have napari keep what they get from now on."""
        kept = get_plugin_settings("xlstm-unet-lab").remembered
        for widget in self:
            if widget.name in kept.model_fields_set:
                with suppress(ValueError):  # a device that is gone
                    widget.value = getattr(kept, widget.name)
            if hasattr(kept, widget.name):
                kind = type(getattr(kept, widget.name))  # a path becomes text
                widget.changed.connect(lambda value, name=widget.name, kind=kind: setattr(kept, name, kind(value)))

    def start(self, task: Callable, *inputs, then: Callable, **options) -> None:
        """Run task(*inputs, **options) in a thread and hand its result to `then` in this one; one at a time."""
        if self._worker is not None:
            return
        self.start_button.enabled, self.cancel_button.enabled = False, True
        self.bar.max = 0  # busy, no telling how long
        self.text.value = "working ..."
        self._worker = create_worker(task, *inputs, _ignore_errors=True, _start_thread=False, **options)
        self._worker.returned.connect(partial(self._hand_over, then))
        self._worker.errored.connect(partial(self._hand_over, self._failed))
        self._worker.finished.connect(partial(self._hand_over, self._finished))
        self._worker.start()

    def _hand_over(self, to: Callable, *results) -> None:
        if isalive(self.native):  # else the viewer was closed meanwhile
            to(*results)

    def cancel(self) -> None:
        """Ask the running task to stop; it does so before the next window, or its result is thrown away."""
        if self._worker is not None:
            self._worker.quit()
            self.text.value = "stopping ..."

    def track(self, batches: Sequence) -> Iterator:
        """Hand out batches of windows, show how many are done, and stop when the user says so. Runs in the thread."""
        for done, batch in enumerate(batches):
            if self._worker.abort_requested:
                raise Cancelled
            self._show_progress(done, len(batches))
            yield batch

    @ensure_main_thread
    def _show_progress(self, done: int, total: int) -> None:
        if isalive(self.native):
            self.bar.max, self.bar.value = total, done

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Cancelled):
            return
        self.text.value = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if isinstance(error, EXPECTED):
            show_error(self.text.value)
        else:
            notification_manager.receive_error(type(error), error, error.__traceback__)

    def _finished(self) -> None:
        if self._worker.abort_requested:
            self.text.value = "cancelled"
        self._worker = None
        self.start_button.enabled, self.cancel_button.enabled = True, False
        self.bar.max = self.bar.value = 1

    def try_to(self, action: Callable, *inputs) -> None:
        """Call an action in this thread; what goes wrong is said as of a task."""
        try:
            action(*inputs)
        except EXPECTED as error:
            self._failed(error)

    def go_to(self, layer: Layer, position: Sequence[int]) -> None:
        """Show the slice through a position of a layer."""
        place, count = layer.data_to_world(position), self._viewer.dims.ndim
        self._viewer.dims.set_point(range(count - len(place), count), place)  # the layer's axes are the last ones

    def layers_of(self, kind: type[Layer]) -> list[Layer]:
        """The viewer's layers of one kind, in their order."""
        return [layer for layer in self._viewer.layers if isinstance(layer, kind)]

    def add(self, tuples: Sequence[LayerData]) -> list[Layer]:
        """Show layer tuples; a layer of the same name and size is brought up to date instead, as it is looked at."""
        shown = []
        for data, keywords, kind in tuples:
            name = keywords["name"]
            if name in self._viewer.layers and self._viewer.layers[name].data.shape == data.shape:
                layer = self._viewer.layers[name]
                layer.data = data
                layer.metadata.update(keywords["metadata"])
                for what in RENEWED & keywords.keys():
                    setattr(layer, what, keywords[what])
            else:
                layer = self._viewer.add_layer(Layer.create(data, keywords, kind))
            shown.append(layer)
        return shown


class WithRun(Task):
    """A task that needs a training run and a device, and image layers.

    The model is chosen by its run directory, or a file that a predictor was saved to, and not by weights alone: only
    these say how the network was built, with which patches and spacing it was trained, and what its labels are called.
    """

    def __init__(self, viewer, action: str, controls: Sequence) -> None:
        self._viewer = viewer
        self.trained_here = ComboBox(label="trained", choices=lambda _: networks(), nullable=True)
        self.images = Select(label="image layers", choices=lambda _: self.readable_images())
        self.images.native.setMaximumHeight(FEW_ROWS)
        run, device = FileEdit(name="run_directory", mode="d"), ComboBox(name="device", choices=available_devices())
        super().__init__(viewer, action, [self.trained_here, run, self.images, device, *controls])
        self.trained_here.changed.connect(lambda path: path and setattr(self.run_directory, "value", path))

    def readable_images(self) -> list[Image]:
        """The image layers a network can read: entropy and what is explored are made of a network's answer."""
        return [layer for layer in self.layers_of(Image) if layer.metadata.get("part", "image").startswith("image")]

    def chosen_images(self) -> list[Image]:
        """The chosen layers in the viewer's order, which is that of the channels; the only one where none is chosen."""
        images = self.readable_images()
        return images if len(images) == 1 else [layer for layer in images if layer in self.images.value]


class Segment(WithRun):
    """Predict image layers with a trained run; the result is a label layer with the names of its data set.

    The next result of the run takes its place, with what was painted there; under another name the layer is kept.
    """

    def __init__(self, napari_viewer) -> None:
        mirror = CheckBox(name="mirror", text="average over mirrored images (better, slower)")
        unsure = CheckBox(name="uncertainty", text="also show entropy and probability")
        super().__init__(napari_viewer, "Segment", [mirror, unsure])

    def begin(self) -> None:
        """Start the prediction."""
        options = {name: self[name].value for name in ("mirror", "uncertainty", "device")} | {"track": self.track}
        self.start(segment, self.run_directory.value, self.chosen_images(), then=self._show, **options)

    def _show(self, tuples: list[LayerData]) -> None:
        layers = self.add(tuples)
        restyle(self._viewer)
        names, parts = ", ".join(layer.name for layer in layers), {one.metadata["part"]: one for one in layers}
        nothing = "" if parts["prediction"].data.any() else "Nothing was found: not one voxel has a label. "
        self.text.value = f"{nothing}{names}: rename what you want to keep, the next result takes its place"


class Compare(Task):
    """Hold up to three label layers against the truth: error maps, a table of scores, and a way to the worst slice."""

    def __init__(self, napari_viewer) -> None:
        self._viewer, self._worst = napari_viewer, None
        self.truth = ComboBox(label="truth", choices=lambda _: self.layers_of(Labels))
        self.predictions = [
            ComboBox(label=f"prediction {number}", choices=lambda _: self.layers_of(Labels), nullable=True)
            for number in (1, 2, 3)
        ]
        super().__init__(napari_viewer, "Compare", [self.truth, *self.predictions])
        self.table = TableWidget(label="scores")
        self.jump_button = PushButton(text="Jump to the worst slice", enabled=False)
        self.extend([self.table, self.jump_button])
        self.jump_button.changed.connect(self.jump)

    def begin(self) -> None:
        """Start the comparison."""
        truth, chosen = self.truth.value, [box.value for box in self.predictions if box.value is not None]
        if truth is None:
            return self._failed(ValueError("no truth is chosen: open or draw a label layer first"))
        self.start(compare, truth, chosen, then=partial(self._show, truth))

    def _show(self, truth: Labels, comparison: Comparison) -> None:
        self.add(comparison.layers)
        self.table.value = comparison.table.drop(columns="value").to_dict("list")
        self.table.native.resizeColumnsToContents()
        self._worst = (truth, comparison.worst)
        self.jump_button.enabled = truth.ndim > 2
        self.text.value = f"{len(comparison.layers)} error maps"

    def jump(self) -> None:
        """Show the slice with most errors of the prediction with the lowest Dice."""
        truth, worst = self._worst
        self.go_to(truth, (worst, *(size // 2 for size in truth.data.shape[1:])))


class Explore(WithRun):
    """Click a pixel: what reaches it through the network's mixers, per head and direction, as image layers."""

    def __init__(self, napari_viewer) -> None:
        self.position = LineEdit(label="pixel", tooltip="whole numbers in the order of the axes, such as 12, 64, 64")
        clicking = CheckBox(name="clicking", text="explore where I click", value=True)
        super().__init__(napari_viewer, "Explore", [clicking, self.position])
        napari_viewer.mouse_drag_callbacks.append(self._pressed)

    def begin(self, typed: bool = True) -> None:
        """Start at the pixel that is written there; where it was typed, the view follows."""
        try:
            position = tuple(int(part) for part in self.position.value.split(","))
        except ValueError:
            words = f"pixel is {self.position.value!r}: click one, or write whole numbers such as 64, 64"
            return self._failed(ValueError(words))
        images, options = self.chosen_images(), {"device": self.device.value}
        then = partial(self._show, images[0] if typed and images else None, position)
        self.start(explore_layers, self.run_directory.value, images, position, then=then, **options)

    def _show(self, follow: Image | None, position: tuple[int, ...], result: tuple[list[LayerData], str]) -> None:
        self.add(result[0])
        self.text.value = result[1]
        if follow is not None:
            self.go_to(follow, position)
            self._viewer.scene.camera.center = [self._viewer.dims.point[axis] for axis in self._viewer.dims.displayed]

    def _pressed(self, viewer, event) -> Iterator[None]:
        dragged = False
        yield
        while event.type == "mouse_move":
            dragged = True
            yield
        if not dragged and self._listens():
            place = self.chosen_images()[0].world_to_data(event.position)
            self.position.value = ", ".join(str(round(p)) for p in place)
            self.begin(typed=False)

    def _listens(self) -> bool:
        """Whether a click is meant for this widget: it is open and idle, an image is chosen, and nobody draws."""
        viewer, active = self._viewer, self._viewer.layers.selection.active
        docked = self.native.parent() is not None  # napari keeps a widget whose dock was closed
        draws = active is not None and active.mode != "pan_zoom"
        free = docked and self._worker is None and not draws and viewer.dims.ndisplay == 2
        return free and self.clicking.value and bool(self.chosen_images())


def networks() -> list[tuple[str, Path]]:
    """The runs in ./runs and the networks that ship: what to call each, and where it lies."""
    return [
        (path.name.removesuffix(".safetensors"), path) for path in (*runs(), *sorted(WEIGHTS.glob("*.safetensors")))
    ]


def runs(folder: Path = RUNS) -> list[Path]:
    """The run directories in a folder, in the order of their names."""
    return sorted(path.parent for path in folder.glob("*/model.json"))
