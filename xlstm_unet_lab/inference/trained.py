"""What a trained network is beside its weights: what an image is brought to, what its answer means, whose it is."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from xlstm_unet_lab.data.cases import Cases, Facts, median_spacing
from xlstm_unet_lab.data.colours import label_colours
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.data.pictures import in_eight_bits
from xlstm_unet_lab.data.targets import Targets, check_label_values
from xlstm_unet_lab.inference.mirror import checked_axes
from xlstm_unet_lab.models.presets import arguments_of
from xlstm_unet_lab.models.weights import save_weights
from xlstm_unet_lab.ops.checks import checked_spacing, of_kind, one_of, sizes
from xlstm_unet_lab.ops.stored import check_fields

# What happens to an image before the network sees it. Prepared pictures have 8 bits, so deeper ones are brought to 8
# first, and a grey one fills the channels of a network for colour. What comes from a data set needs nothing any more.
Z_SCORE, EIGHT_BITS, DONE = NORMALISATIONS = ("z-score", "8 bits, then z-score", "done")
LARGEST_PATCH = 2**30  # voxels, far beyond any memory
# What is known of networks that were trained or loaded here, for those who hand on the network alone.
_KNOWN: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()


@dataclass(frozen=True)
class TrainedNetwork(ABC):
    """A network, and what it was trained on; raises ValueError for facts that contradict each other."""

    network: nn.Module
    patch_size: tuple[int, ...]  # in the order (z, y, x), as all that is given by axis
    spacing: tuple[float, ...] | None = None  # images are brought to it, in `unit`; None: they are used as they are
    targets: Targets | None = None  # what its channels stand for; None: as many classes, numbered from 0
    channel_names: tuple[str, ...] = ()  # of the images it reads; empty where nobody said
    colours: Mapping[int, str] = field(default_factory=dict)  # label value -> "#RRGGBB"
    label_numbers: Mapping[str, int] = field(default_factory=dict)  # of labels 1, 2, ... in a user's own files
    slice_axis: int | None = None  # of a network for slices: the axis of a volume they are cut across
    mirror_axes: tuple[int, ...] | None = None  # of the patch, along which a mirror image is as likely; None: all
    normalisation: str = Z_SCORE
    unit: str = "mm"  # of the spacing; "pixel" for pictures
    credit: str = ""  # whose data it learnt from, and its licence
    card: Mapping[str, Any] = field(default_factory=dict)  # whatever else is to be known: training, scores, limits

    def __post_init__(self) -> None:
        check_fields(type(self), self._facts())
        patch_size = sizes("patch_size", self.patch_size, 2, 3)
        if math.prod(patch_size) > LARGEST_PATCH:
            raise ValueError(f"patch_size is {patch_size}, expected at most {LARGEST_PATCH:,} voxels in all")
        axes = range(len(patch_size)) if self.mirror_axes is None else self.mirror_axes
        settled = {
            "patch_size": patch_size,
            "spacing": self.spacing and checked_spacing(self.spacing, len(self.patch_size)),
            "mirror_axes": checked_axes("mirror_axes", axes, len(self.patch_size)),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        one_of("normalisation", self.normalisation, NORMALISATIONS)
        one_of("unit", self.unit, ("mm", "pixel"))
        check_label_values("label_numbers", self.label_numbers.values())
        check_label_values("colours", self.colours)
        for label, colour in self.colours.items():  # they end in pages of HTML
            if not re.fullmatch("#[0-9A-Fa-f]{6}", colour):
                raise ValueError(
                    f'colours has {label!r}: {colour!r}; expected a label value and a colour like "#0072B2"'
                )
        if self.slice_axis is not None and (self.slice_axis not in (0, 1, 2) or len(patch_size) != 2):
            raise ValueError(
                f"slice_axis is {self.slice_axis!r} with patch_size={self.patch_size}; slices are cut across axis 0, 1 "
                "or 2, for a network with a 2-D patch"
            )

    @classmethod
    def trained_on(
        cls,
        network: nn.Module,
        cases: Cases,
        patch_size: Sequence[int],
        spacing: Sequence[float] | None = None,
        targets: Targets | None = None,
    ) -> Self:
        """The predictor of a network that these cases train: spacing and targets are theirs where none are given."""
        spacing = median_spacing(cases) if spacing is None else spacing
        return cls(network, patch_size, spacing, **known_of(cases.facts, targets))

    @classmethod
    def known(cls, network: nn.Module, patch_size: Sequence[int]) -> Self:
        """The predictor of a network that was trained or loaded here; of another one, nothing more is known."""
        of_kind("model", network, nn.Module)
        return cls(network, **_KNOWN.get(network, {}) | {"patch_size": patch_size})

    @classmethod
    def from_json(cls, network: nn.Module, facts: Mapping, where: str) -> Self:
        """The predictor that `to_json` described in the file `where`, around this network.

        Raises ValueError, naming the file, for facts that are none.
        """
        try:
            read: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in facts.items()}
            read["targets"] = read.get("targets") and Targets.from_json(read["targets"])
            if isinstance(colours := read.get("colours", {}), Mapping):
                numbered = {int(value) if value.isdecimal() else value: colour for value, colour in colours.items()}
                read["colours"] = numbered
            check_fields(cls, read)
            return cls(network, **read)
        except ValueError as error:
            raise ValueError(f"{where}, of what its network was trained on: {error}") from error

    @property
    def spatial_dims(self) -> int:
        """Dimensions of the images it takes: 3 for a network that sees volumes slice by slice."""
        return len(self.patch_size) + (self.slice_axis is not None)

    @property
    def in_channels(self) -> int | None:
        """Channels of the images it takes; None where the network does not say."""
        return getattr(getattr(self.network, "config", None), "in_channels", None)

    @property
    def exclusive(self) -> bool:
        """Whether its channels are classes, of which each position has one, and no regions."""
        return self.targets is None or self.targets.exclusive

    @property
    def finds_objects(self) -> bool:
        """Whether it learnt interior and boundary, from which objects can be told apart."""
        return self.targets == Targets.classes(LABELS)

    @property
    def label_names(self) -> dict[str, tuple[int, ...]]:
        """Name -> label values of all that it may find, background left out."""
        if self.targets is not None:
            return self.targets.foreground
        config: Any = self.network.config
        return self.targets_of(config.num_classes).foreground

    @abstractmethod
    def __call__(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        """The labels of an image: see `Predictor`."""

    @abstractmethod
    def probabilities(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        """The probabilities of all channels: see `Predictor`."""

    def labels_of(self, probabilities: Tensor) -> Tensor:
        """(channels, *spatial) probabilities -> the labels of a call, (*spatial), uint8 or uint16."""
        targets = self.targets_of(len(probabilities))
        largest = max(targets.painted or (values[0] for values in targets.values))
        return targets.labels(probabilities).to(torch.uint8 if largest < 256 else torch.uint16)

    def numbered(self, label: np.ndarray) -> np.ndarray:
        """Labels 1, 2, ... in the numbers that they have in the user's own files, where it learnt from some."""
        if not self.label_numbers:
            return label
        numbers = [0, *self.label_numbers.values()]
        return np.array(numbers, np.min_scalar_type(max(numbers)))[label]

    def as_prepared(self, *parts: np.ndarray) -> np.ndarray:
        """The files (or layers) of one image, (C, *spatial) each, as a prepared data set holds it: a picture in 8 bits,
        a grey one in all channels of a network for colour. A volume stays as it is, and so does what is prepared."""
        if self.normalisation != EIGHT_BITS:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        picture = in_eight_bits(parts)
        return np.repeat(picture, 3, axis=0) if (len(picture), self.in_channels) == (1, 3) else picture

    def mirrored_along(self, mirror: bool | Sequence[int]) -> tuple[int, ...]:
        """The axes of the patch that `mirror` stands for; ValueError where it is True and the data allows none."""
        if not isinstance(mirror, bool):
            return checked_axes("mirror", mirror, len(self.patch_size))
        if not mirror:
            return ()
        if not self.mirror_axes:
            raise ValueError(
                "no mirror image of the data this network was trained on is as likely as the image: leave out mirror, "
                "in a shell --mirror"
            )
        return self.mirror_axes

    def to_json(self) -> dict:
        """All that is known beside the network's weights, as JSON can hold it, for `from_json`."""
        facts = self._facts() | {"targets": self.targets and self.targets.to_json()}
        return json.loads(json.dumps({"build": arguments_of(self.network), "trained_on": facts}))

    def save(self, path: str | Path) -> Path:
        """Write network and facts to one safetensors file: nothing else is needed to use it on another machine.

        Raises ValueError for a network that `build` did not make, OSError when the disk refuses.
        """
        facts = self.to_json()
        if facts["build"] is None:
            raise ValueError(
                "the network does not say how it was built, because xlstm_unet_lab.build did not make it: keep its "
                "weights with models.weights.save_weights and build it yourself"
            )
        return save_weights(self.network, path, facts)

    def remembered(self) -> Self:
        """Let `predict` know these facts when it is handed this network alone; returns the predictor."""
        _KNOWN[self.network] = self._facts()
        return self

    def _facts(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "network"}

    def targets_of(self, channels: int) -> Targets:
        if self.targets is None:
            return Targets.classes({f"class {value}": value for value in range(channels)})
        if len(self.targets.names) != channels:
            raise ValueError(
                f"targets name {len(self.targets.names)} channels {self.targets.names}, the model gives {channels}"
            )
        return self.targets


def known_of(facts: Facts, targets: Targets | None = None) -> dict[str, Any]:
    """What a Predictor must know of the data that its network learns from, by the names of its fields."""
    recipe = facts.recipe
    if recipe is None:
        return {"targets": targets}
    return {
        "targets": targets or recipe.targets,
        "channel_names": tuple(recipe.channel_names),
        "colours": label_colours(recipe.labels, recipe.colours),
        "label_numbers": dict(recipe.label_numbers),
        "slice_axis": facts.slice_axis,
        "mirror_axes": facts.flip_axes,
        "normalisation": EIGHT_BITS if recipe.file_ending == ".png" else Z_SCORE,
        "unit": recipe.spacing_unit,
        "credit": recipe.credit,
    }
