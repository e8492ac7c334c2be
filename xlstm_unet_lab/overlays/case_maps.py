"""What is known of a case on one grid, and the maps and scores that follow from it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from xlstm_unet_lab.evaluation.metrics import dice, error_map
from xlstm_unet_lab.inference.uncertainty import entropy, predicted_probability


@dataclass(frozen=True, eq=False)
class CaseMaps:
    """The arrays of one case and what they mean, taken as they are: `description.overlay` checks everything."""

    image: np.ndarray  # (C, *spatial), 2-D or 3-D, float32 or uint8
    spacing: tuple[float, ...]  # (z, y, x) or (y, x)
    unit: str  # "mm" or "pixel"
    channel_names: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]  # name -> the label values it covers, without background; regions overlap
    colours: dict[int, str]  # label value -> "#RRGGBB"
    truth: np.ndarray | None  # (*spatial), integers
    prediction: np.ndarray | None
    probabilities: np.ndarray | None  # (channels, *spatial)
    instances: np.ndarray | None  # (*spatial), every predicted object its own number
    title: str
    credit: str  # licence of the data, "" if there is none to name
    anatomical: bool  # axes run towards (superior, anterior, right), as those of prepared volumes
    cut: int = 0  # the axis of a volume across which a 2-D image was cut
    file: Path | None = None  # that the image was read from: its corrected label is saved beside it
    # By this a viewer knows what it shows already: `dataclasses.replace` keeps it, every call of `overlay` makes one.
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along the spatial axes."""
        return self.image.shape[1:]

    @property
    def axes(self) -> str:
        """Names of the spatial axes: "zyx", or those of a slice."""
        return "zyx" if len(self.shape) == 3 else "zyx".replace("zyx"[self.cut], "")

    @property
    def is_colour(self) -> bool:
        """Whether the channels are red, green and blue."""
        return len(self.image) == 3 and tuple(name[:1].lower() for name in self.channel_names) == ("r", "g", "b")

    @property
    def value_names(self) -> dict[int, str]:
        """Label value -> the name shown for it: that of the smallest label or region that covers it."""
        smallest_last = sorted(self.labels.items(), key=lambda item: -len(item[1]))
        names = {value: name for name, values in smallest_last for value in values}
        return dict(sorted(names.items()))

    @cached_property
    def differences(self) -> np.ndarray | None:
        """Which label is there too much and which one is missing, by their places in `labels` from 1 on, 0 for none,
        (2, *spatial); of regions in each other the largest. None without truth and prediction."""
        if self.truth is None or self.prediction is None:
            return None
        differences = np.zeros((2, *self.shape), np.min_scalar_type(len(self.labels)))
        for place, values in sorted(enumerate(self.labels.values(), start=1), key=lambda item: len(item[1])):
            predicted, true = np.isin(self.prediction, values), np.isin(self.truth, values)
            differences[0][predicted & ~true] = differences[1][true & ~predicted] = place
        return differences

    @cached_property
    def errors(self) -> np.ndarray | None:
        """0 right, 1 missed, 2 extra, 3 confused, uint8 (*spatial); None without truth and prediction. Values of one
        label are alike, and a region that is missing inside another one that is right is missed."""
        return None if self.differences is None else error_map(*self.differences)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Dice of every label or region; empty without truth and prediction."""
        truth, prediction = self.truth, self.prediction
        if truth is None or prediction is None:
            return {}
        return {name: dice(np.isin(prediction, values), np.isin(truth, values)) for name, values in self.labels.items()}

    @cached_property
    def entropy(self) -> np.ndarray | None:
        """How unsure the prediction is, 0 certain to 1 a guess, float32 (*spatial); None without probabilities."""
        return self._of_probabilities(entropy)

    @cached_property
    def probability(self) -> np.ndarray | None:
        """Probability of what was predicted, float32 (*spatial), as `predicted_probability`; None without any."""
        return self._of_probabilities(predicted_probability)

    def _of_probabilities(self, measure: Callable[..., np.ndarray]) -> np.ndarray | None:
        if self.probabilities is None:
            return None
        exclusive = len(self.probabilities) == len(self.labels) + 1  # background too; regions overlap and have none
        return measure(self.probabilities, exclusive=exclusive)

    @cached_property
    def outlines(self) -> np.ndarray | None:
        """Where a predicted object, or label, meets another within a slice, bool (*spatial); None without any."""
        objects = self.prediction if self.instances is None else self.instances
        if objects is None:
            return None
        border = np.zeros(objects.shape, bool)
        for axis in (-1, -2):
            values, marked = np.moveaxis(objects, axis, 0), np.moveaxis(border, axis, 0)
            meets = values[1:] != values[:-1]
            marked[1:] |= meets
            marked[:-1] |= meets
        return border & (objects > 0)
