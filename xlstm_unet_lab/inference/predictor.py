"""A trained network at work: images in, labels and probabilities out, NumPy to NumPy, or files to files.

predictor = load_predictor("runs/first")      a run directory, or one file that `predictor.save` wrote
labels = predictor(image, spacing)            image (C, *spatial) as stored -> labels (*spatial)
"""

import itertools
import json
import math
import re
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from xlstm_unet_lab.data.cases import check_built
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.data.normalise import Normalised
from xlstm_unet_lab.data.pictures import in_eight_bits
from xlstm_unet_lab.data.resample import resampled_size, resized
from xlstm_unet_lab.data.targets import Targets, check_label_values
from xlstm_unet_lab.inference.mirror import Mirrored, checked_axes
from xlstm_unet_lab.inference.sliding_window import Box, Windows, changed, resized_boxes, sliding_boxes, whole_from
from xlstm_unet_lab.inference.trained import DONE, EIGHT_BITS, NORMALISATIONS, Z_SCORE
from xlstm_unet_lab.models.presets import arguments_of
from xlstm_unet_lab.models.weights import save_weights
from xlstm_unet_lab.ops.checks import UNITS, as_array, checked_spacing, of_kind, one_of, sizes, tracked
from xlstm_unet_lab.ops.devices import with_values
from xlstm_unet_lab.ops.files import as_path
from xlstm_unet_lab.ops.stored import check_fields
from xlstm_unet_lab.ops.words import tells_of_full_memory

LARGEST_PATCH = 2**27  # voxels: 512 a side, or 11,585 of a picture, whose logits fill a memory


@dataclass(frozen=True)
class Predictor:
    """A trained network, and what it was trained on; raises ValueError for facts that contradict each other.

    Options of its methods are the fields of `Windows`: overlap, mirror, batch_size, device, track.
    """

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
        of_kind("network", self.network, nn.Module)
        check_fields(type(self), self._facts())
        patch_size = sizes("patch_size", self.patch_size, 2, 3)
        if math.prod(patch_size) > LARGEST_PATCH:
            raise ValueError(f"patch_size is {patch_size}, expected at most {LARGEST_PATCH:,} voxels in all")
        axes = range(len(patch_size)) if self.mirror_axes is None else self.mirror_axes
        spacing = self.spacing and checked_spacing(self.spacing, len(patch_size))
        mirror_axes = checked_axes("mirror_axes", axes, len(patch_size))
        vars(self).update(patch_size=patch_size, spacing=spacing, mirror_axes=mirror_axes)
        one_of("normalisation", self.normalisation, NORMALISATIONS)
        one_of("unit", self.unit, UNITS)
        check_label_values("label_numbers", self.label_numbers.values())
        check_label_values("colours", self.colours)
        for label, colour in self.colours.items():  # they end in pages of HTML
            if not re.fullmatch("#[0-9A-Fa-f]{6}", colour):
                raise ValueError(f'colours has {label!r}: {colour!r}; expected a colour like "#0072B2"')
        if (axis := self.slice_axis) is not None and (axis not in (0, 1, 2) or len(patch_size) != 2):
            raise ValueError(f"slice_axis is {axis!r} with patch_size={patch_size}; slices are cut across 0, 1 or 2")
        needed = {"spatial_dims": len(patch_size), "in_channels": len(self.channel_names)}
        needed["num_classes"] = 0 if self.targets is None else len(self.targets.names)
        check_built(getattr(self.network, "config", None), {k: n for k, n in needed.items() if n}, "its data need")
        self._check_labels()

    def _check_labels(self) -> None:
        """ValueError unless every label that it gives has a number of its own, where labels have, and no other one a
        colour."""
        given = None if self.targets is None else {*self.targets.painted, *itertools.chain(*self.targets.values)} - {0}
        if given is not None and (strangers := self.colours.keys() - given):
            raise ValueError(f"colours has the labels {sorted(strangers)[:3]}, and targets the labels {sorted(given)}")
        numbers, labels = [*self.label_numbers.values()], given or {len(self.label_numbers)}
        if numbers and (max(labels) != len(numbers) or len({*numbers} - {0}) < len(numbers)):
            wanted = f"a number above 0 of its own for each of the labels 1 to {max(labels)}"
            raise ValueError(f"label_numbers is {dict(self.label_numbers)}, expected {wanted}")

    @classmethod
    def known(cls, network: nn.Module, patch_size: Sequence[int]) -> Self:
        """The predictor of a network that was trained or loaded here; of another one, nothing more is known."""
        of_kind("model", network, nn.Module)
        return cls(network, **{**getattr(network, "_trained_on", {}), "patch_size": patch_size})

    @classmethod
    def from_json(cls, network: nn.Module, facts: Mapping, where: str) -> Self:
        """The predictor that `to_json` described in the file `where`, around this network.

        Raises ValueError, naming the file, for facts that are none.
        """
        try:
            if not isinstance(facts, Mapping):
                raise ValueError(f"{reprlib.repr(facts)} is there, expected facts by name")
            read: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in facts.items()}
            read["targets"] = read.get("targets") and Targets.from_json(read["targets"])
            if isinstance(colours := read.get("colours", {}), Mapping):
                read["colours"] = {int(label) if label.isdecimal() else label: x for label, x in colours.items()}
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
        config: Any = getattr(self.network, "config", None)
        return (self.targets or self.targets_of(config.num_classes)).foreground

    def __call__(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        """The label at every position: (*spatial), uint8 (uint16 where label values pass 255).

        image (C, *spatial) as stored, any real dtype or bool; spacing: of all its spatial axes, None: the image has the
        network's. Three channels of more than 8 bits, for a network for colour, are taken for a picture in colour and
        scaled together. Where they are grey pictures of their own, as files and layers may be, hand over
        `predictor.as_prepared(*pictures)`, (1, y, x) each, which scales each by itself.
        Of classes the most probable one counts; of regions those with a probability above 1/2, painted in their order.
        The network computes in evaluation mode and is put back as it was.
        Memory beside image and labels: a few windows, and 4 bytes for each channel where the rows of one layer of
        windows overlap with those of the next. Another spacing adds the image in float32 on either grid, and the
        probabilities of one patch's rows on both.
        Raises ValueError for an image, spacing or option that does not fit, TypeError for values that are no numbers.
        Warns when `spacing` is given and the network's is not known: the image is then used as it is.
        """
        return self._predicted(self.labels_of, image, spacing, Windows(**options))

    def probabilities(self, image: np.ndarray, spacing: Sequence[float] | None = None, **options) -> np.ndarray:
        """Probabilities of all channels, (channels, *spatial) float32: of classes they sum to 1 at every position.

        Arguments and errors as in a call.
        """
        return self._predicted(Tensor.float, image, spacing, Windows(**options))

    def files(self, inputs, out: str | Path, **options) -> Iterator[Path]:
        """Predict image files and write label files to `out`, one a case: see `inference.files.predict_files`."""
        from xlstm_unet_lab.inference.files import predict_files

        return predict_files(self, inputs, out, **options)

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
        every part scaled by itself, a grey one in all channels of a network for colour. Channels of one part are scaled
        together where they are red, green and blue, or nobody said what the network's are; otherwise each by itself.
        A volume stays as it is, and so does what is prepared."""
        parts = tuple(part * np.uint8(255) if part.dtype == bool else part for part in parts)  # as files of one bit
        if self.normalisation != EIGHT_BITS:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        in_colour = [name[:1].lower() for name in self.channel_names] in ([], ["r", "g", "b"])
        picture = in_eight_bits(parts if in_colour else [channel[None] for part in parts for channel in part])
        return np.repeat(picture, 3, axis=0) if (len(picture), self.in_channels) == (1, 3) else picture

    def mirrored_along(self, mirror: bool | Sequence[int]) -> tuple[int, ...]:
        """The axes of the patch that `mirror` stands for; ValueError where it is True and the data allows none."""
        if not isinstance(mirror, bool):
            return checked_axes("mirror", mirror, len(self.patch_size))
        if not mirror:
            return ()
        if not self.mirror_axes:
            raise ValueError("no mirror image of the data is as likely as the image: leave out mirror or --mirror")
        return self.mirror_axes

    def to_json(self) -> dict:
        """All that is known beside the network's weights, as JSON can hold it, for `from_json`."""
        facts = self._facts() | {"targets": self.targets and asdict(self.targets)}
        return json.loads(json.dumps({"build": arguments_of(self.network), "trained_on": facts}))

    def save(self, path: str | Path) -> Path:
        """Write network and facts to one safetensors file: nothing else is needed to use it on another machine.

        Raises ValueError for a network that `build` did not make, OSError when the disk refuses.
        """
        facts = self.to_json()
        if facts["build"] is None:
            raise ValueError("the network does not say how it was built: keep its weights alone, with save_weights")
        return save_weights(self.network, as_path("path", path), facts)

    def remembered(self) -> Self:
        """Let `predict` know these facts when it is handed this network alone; returns the predictor."""
        vars(self.network)["_trained_on"] = self._facts()  # copies of it have it too
        return self

    def _facts(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "network"}

    def targets_of(self, channels: int) -> Targets:
        if self.targets is None:
            return Targets.classes({f"class {value}": value for value in range(channels)})
        if len(names := self.targets.names) != channels:
            raise ValueError(f"targets name {len(names)} channels {names}, the model gives {channels}")
        return self.targets

    def _predicted(
        self, made_of: Callable[[Tensor], Tensor], image: np.ndarray, spacing, windows: Windows
    ) -> np.ndarray:
        """What is made of the probabilities of every box of the image, put together."""
        with_values("model", self.network)
        image = as_array("image", image)
        if spacing is not None:
            spacing = checked_spacing(spacing, image.ndim - 1)
        boxes_of = self._boxes_of_slices if (self.slice_axis is not None and image.ndim == 4) else self._boxes
        try:
            return whole_from(changed(boxes_of(image, spacing, windows), made_of), image.shape[1:]).numpy()
        except RuntimeError as error:
            if tells_of_full_memory(error):
                raise type(error)(f"no memory for patch_size={self.patch_size}, use a smaller one ({error})") from error
            raise

    def _boxes_of_slices(self, image: np.ndarray, spacing: tuple[float, ...] | None, windows: Windows) -> Iterator[Box]:
        """`_boxes` of a volume, for a network that sees it slice by slice: `windows.track` wraps the slices."""
        axis, alone = self.slice_axis or 0, replace(windows, track=iter)
        left = None if spacing is None else (*spacing[:axis], *spacing[axis + 1 :])
        for number, one in enumerate(tracked(windows.track, [*np.moveaxis(image, axis + 1, 0)])):
            for place, values in self._boxes(one, left, alone):
                yield (*place[:axis], slice(number, number + 1), *place[axis:]), values.unsqueeze(axis + 1)

    def _boxes(self, image: np.ndarray, spacing: tuple[float, ...] | None, windows: Windows) -> Iterator[Box]:
        """Probabilities (channels, *box) of what the network is to see, (C, *spatial), box by box on its own grid."""
        image = self.as_prepared(image)
        if image.ndim != len(self.patch_size) + 1:
            words = f"image has shape {image.shape}, expected (C, *spatial) for patch_size={self.patch_size}"
            raise ValueError(f"{words}: image[None] adds the channel axis, image[0] drops a batch axis")
        axes, size = self.mirrored_along(windows.mirror), image.shape[1:]
        working_size = self._working_size(size, spacing)
        if windows.device is not None:
            self.network.to(windows.device)
        resampled = working_size != size
        if resampled:
            image = resized(torch.from_numpy(image.astype(np.float32)), working_size).numpy()
        is_done = self.normalisation == DONE and not resampled  # resampling may change mean and deviation
        network = Mirrored(self.network, axes, self.exclusive) if axes else self.network
        seen = torch.from_numpy(image) if is_done else Normalised(image)
        boxes = sliding_boxes(network, seen, self.patch_size, windows, row_by_row=resampled)
        probabilities = changed(boxes, lambda logits: self.targets_of(len(logits)).probabilities(logits))
        return resized_boxes(probabilities, working_size, size) if resampled else probabilities

    def _working_size(self, size: tuple[int, ...], spacing: tuple[float, ...] | None) -> tuple[int, ...]:
        """The grid size at which the image has the network's spacing."""
        if spacing is None:
            return size
        if self.spacing is None:
            unused = f"spacing={spacing} was not used: the spacing this network was trained at is not known here"
            warnings.warn(f"{unused}; give it to the Predictor, as load_predictor does", stacklevel=5)
            return size
        return resampled_size(size, spacing, self.spacing)
