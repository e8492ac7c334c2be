"""What the channels of a network's output stand for: classes that exclude each other, or regions that overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xlstm_unet_lab.ops.stored import check_fields

LARGEST_LABEL = 2**16 - 1  # labels have 16 bits at most, as PNG files have


def check_label_values(what: str, values: Iterable[int]) -> None:
    """ValueError for a label value below 0 or beyond 16 bits."""
    if wrong := [value for value in values if not 0 <= value <= LARGEST_LABEL]:
        raise ValueError(f"{what} holds {wrong[:3]}; labels are whole numbers from 0 to {LARGEST_LABEL}")


@dataclass(frozen=True)
class Targets:
    """One entry a channel. Raises ValueError when the entries differ in number or a region has nothing to paint.

    Exclusive classes pass through a softmax and the most probable one is the label. Regions are unions of labels, each
    with a probability of its own (sigmoid); they are painted in the order of the channels, later over earlier ones.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]  # the label values a channel covers
    painted: tuple[int, ...] = ()  # regions only: the label value written where a channel's probability is above 1/2

    def __post_init__(self) -> None:
        check_fields(Targets, vars(self))
        check_label_values("targets", [*self.painted, *(value for values in self.values for value in values)])
        lengths = {what: len(entries) for what, entries in vars(self).items() if entries or what != "painted"}
        if len(set(lengths.values())) != 1 or not self.names:
            raise ValueError(f"targets need as many entries of each kind, and at least one: got {lengths}")
        if any(not values or (0 in values and not self.exclusive) for values in self.values):
            raise ValueError(f"values are {self.values}; no channel is without a label, a region covers labels above 0")
        if len({"mean", *self.names}) <= len(self.names):
            raise ValueError(f"names are {self.names}, expected another each, and none 'mean', which is a score")
        if self.exclusive and len({values for values in self.values if len(values) == 1}) < len(self.values):
            raise ValueError(f"values are {self.values}, expected one of its own for each class, or what is painted")

    @classmethod
    def classes(cls, labels: Mapping[str, int]) -> Targets:
        """Exclusive classes from name -> value, background included."""
        return cls(tuple(labels), tuple((value,) for value in labels.values()))

    @classmethod
    def from_json(cls, facts: Mapping) -> Targets:
        """The targets that `dataclasses.asdict` made these facts of; ValueError for facts that are none."""
        check_fields(cls, facts)
        if missing := {"names", "values", "painted"} - facts.keys():
            raise ValueError(f"targets say nothing of {', '.join(sorted(missing))}")
        return cls(tuple(facts["names"]), tuple(map(tuple, facts["values"])), tuple(facts["painted"]))

    @property
    def exclusive(self) -> bool:
        """Whether every position belongs to exactly one channel."""
        return not self.painted

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """What is scored: name -> label values, without the background."""
        return {name: values for name, values in zip(self.names, self.values, strict=True) if values != (0,)}

    def one_hot(self, label: Tensor) -> Tensor:
        """(B, *spatial) integer -> (B, channels, *spatial) float32, 1 where the label is one of the channel's."""
        return torch.stack([torch.isin(label, label.new_tensor(values)) for values in self.values], 1).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """(channels, *spatial) logits -> probabilities of the same shape, in at least float32."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.softmax(0) if self.exclusive else logits.sigmoid()

    def labels(self, probabilities: Tensor) -> Tensor:
        """(channels, *spatial) probabilities -> (*spatial) label values, int64."""
        if self.exclusive:
            return torch.tensor([values[0] for values in self.values])[probabilities.argmax(0)]
        label = torch.zeros(probabilities.shape[1:], dtype=torch.int64)
        for value, probability in zip(self.painted, probabilities, strict=True):
            label[probability > 0.5] = value
        return label
