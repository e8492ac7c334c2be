"""The widget that goes through the cases of a run or of a folder: look, correct, save."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from magicgui.widgets import ComboBox, PushButton, Select
from napari.layers import Labels

from xlstm_unet_lab.overlays.viewer import layers_of, open_viewer
from xlstm_unet_lab.plugin.files import case_overlay, cases_to_show, save_label
from xlstm_unet_lab.plugin.tasks import file_of
from xlstm_unet_lab.plugin.widgets import FEW_ROWS, WithRun


class Cases(WithRun):
    """Go through the cases of a run, worst first, or of a folder of images: look, correct, save.

    PageDown and PageUp show the next case and the one before. What was painted on a case is there when it is shown
    again, until the cases are listed anew.
    """

    def __init__(self, napari_viewer) -> None:
        self._found: dict[Path, list] = {}  # mean Dice and prediction for an image, or None
        self._painted: dict[Path, dict] = {}  # truth and prediction of the cases that were left
        self._shown = None  # or an overlay
        super().__init__(napari_viewer, "List the cases", [ComboBox(name="split", choices=["test", "val", "train"])])
        self.remove(self.images)
        self.cases, self.save_button = (
            Select(label="worst first", choices=self._choices),
            PushButton(text="Save the label"),
        )
        self.cases.native.setMaximumHeight(2 * FEW_ROWS)
        self.extend([self.cases, self.save_button])
        self.cases.changed.connect(partial(self.try_to, self.look_at))
        self.save_button.changed.connect(lambda: self.try_to(self.save))
        for key, step in {"PageDown": 1, "PageUp": -1}.items():
            napari_viewer.bind_key(key, lambda _, step=step: self.go(step), overwrite=True)

    def begin(self) -> None:
        """Predict and score the cases of the run, or list those of the folder."""
        options = {"device": self.device.value, "track": self.track, "then": self._fill}
        self.start(cases_to_show, self.run_directory.value, self.split.value, **options)

    def _fill(self, found: list[tuple]) -> None:
        self._found, self._painted, self._shown = {file: facts for file, *facts in found}, {}, None
        self.cases.reset_choices()
        self.cases.value = []
        self.go(0)

    def _choices(self, _widget) -> list[tuple[str, Path]]:
        found = self._found.items()
        return [(file.name if dice is None else f"Dice {dice:.3f}  {file.name}", file) for file, (dice, _) in found]

    def go(self, step: int) -> None:
        """Show the case so many places further down in the list, the first one where none is chosen."""
        files, chosen = list(self._found), self.cases.value
        if files:
            place = files.index(chosen[-1]) + step if chosen else 0
            self.cases.value = [files[place % len(files)]]

    def look_at(self, files: list[Path]) -> None:
        """Show the last of these cases."""
        self._keep()
        for file in files[-1:]:
            shown = case_overlay(file, self._found[file][1])
            self._shown = replace(shown, **self._painted.get(file, {}))
            open_viewer(self._shown, self._viewer)
            self.text.value = self._shown.describe()

    def _keep(self) -> None:
        """Note what was painted on the case that is shown; ValueError for what is no label."""
        if self._shown is not None and {"truth", "prediction"} & layers_of(self._viewer, self._shown).keys():
            self._shown = self._shown.rescore(self._viewer)
            self._painted[self._shown.file] = {"truth": self._shown.truth, "prediction": self._shown.prediction}

    def save(self) -> None:
        """Save the active label layer as the label of its image; errors and scores follow."""
        layer = self._viewer.layers.selection.active
        if not isinstance(layer, Labels):
            raise ValueError("no label layer is active: click the one to save in the list of layers")
        files = {file_of(one) for one in self._viewer.layers} - {None}
        if len(files) == 1:  # which a layer drawn by hand belongs to
            layer.metadata.setdefault("file", *files)
        self.text.value = f"saved as {save_label(layer)}"
        if self._shown is not None and self._shown.file == layer.metadata["file"]:
            self._keep()
            self._painted.pop(self._shown.file, None)
            saved = case_overlay(self._shown.file, self._shown.prediction)
            self._shown = replace(saved, identity=self._shown.identity)
            open_viewer(self._shown, self._viewer)
            self.text.value += f"\n{self._shown.describe()}"
