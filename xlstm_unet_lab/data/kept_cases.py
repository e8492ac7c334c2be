"""Cases made ready once and then read piece by piece: in memory while they fit, beyond that in files on disk."""

import json
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from xlstm_unet_lab.data.cases import Cases
from xlstm_unet_lab.data.patches import Foreground
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.ops.stored import parse_json

FILE = "case.safetensors"
SPARE_DISK = 4 * 2**30  # bytes that are left free, for checkpoints and for other people


class Place(NamedTuple):
    """Where a case may be kept, and what it is made of: what was kept of something else is made anew."""

    folder: Path
    made_of: list  # anything JSON holds


class KeptCases(Cases, ABC):
    """A data set that makes its cases ready once: in memory until they fill `memory` bytes, then in mapped files.

    `_found(position)` says where a case may be kept, None for in memory only, and what makes it: a dict of name,
    spacing, image and label. Another process that is handed this starts with nothing in memory. Where the disk refuses
    a case, this warns once, and from then on makes such cases whenever they are asked for.
    """

    def __init__(self, memory: int):
        self.memory = self._left = memory
        self._cases: dict[int, dict] = {}
        self._writes = True

    def __getstate__(self) -> dict:
        return vars(self) | {"_left": self.memory, "_cases": {}, "_writes": True}

    def __getitem__(self, index: int) -> dict:
        case = {what: value for what, value in self.view(index).items() if what not in ("foreground", "place")}
        # Copies: who changes an item must not change what the next epoch sees.
        return case | {"image": case["image"].clone(), "label": case["label"].long()}

    def view(self, index: int) -> dict:
        """`self[index]` without a copy, to read pieces from and never to change, as `cases.Cases` says.

        label is uint8 (int32 where values pass 255); "foreground" (`patches.Foreground`) says where it is not 0, and
        "place" where it is kept.
        """
        position = self._position(index)
        if position in self._cases:
            return self._cases[position]
        place, make = self._found(position)
        case = _opened(place) if place else None
        if case is None:
            case = make()
            case |= {"foreground": case.get("foreground") or Foreground.of(case["label"]), "place": place}
            size = sum(tensor.nbytes for tensor in _tensors(case).values())
            if size <= self._left:
                self._left -= size
            elif written := place and self._writes and self._written(case, place, size):
                case = written
            else:
                return case
        self._cases[position] = case
        return case

    def _position(self, index: int) -> int:
        try:
            return range(len(self))[index]
        except IndexError:
            raise IndexError(f"case {index} was asked for; the data set has {len(self)} cases, from 0 on") from None

    @abstractmethod
    def _found(self, position: int) -> tuple[Place | None, Callable[[], dict]]:
        """Where the case may be kept, None for in memory only, and what makes it."""

    def _written(self, case: dict, place: Place, size: int) -> dict | None:
        """The case as it lies on disk now, whole; None where the disk refuses it."""
        facts = {"name": case["name"], "spacing": case["spacing"], "made_of": place.made_of}
        facts |= {"classes": case["foreground"].classes, "ends": case["foreground"].ends}
        tensors = {name: tensor.contiguous() for name, tensor in _tensors(case).items()}
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(place.folder).free < size + SPARE_DISK:
                raise OSError(f"less than {SPARE_DISK:,} bytes would be left free")
            write_whole(place.folder / FILE, save(tensors, {"facts": json.dumps(facts)}))
        except OSError as error:
            self._writes = False
            slow = f"cases beyond {self.memory:,} bytes are made anew for every patch, which is slow"
            warnings.warn(f"{place.folder} cannot be written ({error}): {slow}; take larger cache_bytes", stacklevel=4)
            return None
        return _opened(place)


def _tensors(case: dict) -> dict[str, torch.Tensor]:
    return {"image": case["image"], "label": case["label"], "places": case["foreground"].places}


def _opened(place: Place) -> dict | None:
    """The case kept there, its tensors mapped so that only what is touched is read; None for none made of the same."""
    try:
        with safe_open(place.folder / FILE, framework="pt") as file:
            facts = parse_json(file.metadata()["facts"], str(place.folder))
            # Private to this process: a change stays with whoever makes it and never reaches the file.
            image, label, places = map(file.get_tensor, ("image", "label", "places"))
        if facts["made_of"] != place.made_of:
            return None
        foreground = Foreground(tuple(facts["classes"]), tuple(facts["ends"]), places)
        own = {"name": facts["name"], "spacing": tuple(facts["spacing"])}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):  # not there, or spoilt: it is made anew
        return None
    return own | {"image": image, "label": label, "foreground": foreground, "place": place}
