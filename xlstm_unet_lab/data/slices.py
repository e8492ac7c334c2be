"""The slices of a 3-D data set, as a 2-D data set."""

from dataclasses import replace

import numpy as np
import torch

from xlstm_unet_lab.data.cases import Cases
from xlstm_unet_lab.data.dataset import SegmentationDataset
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.ops.checks import flag, whole_number

AXES = "zyx"


class SliceDataset(Cases):
    """Every slice of every case across one axis, or only those in which something is labelled.

    dataset: cases in 3-D, as `load_dataset` gives them; `axis` 0, 1 or 2 is the one that goes: z, y or x. Items are as
    in 2-D data sets: image float32 (C, *spatial) normalised by itself, label int64 (*spatial), spacing of the two axes
    left, and a name such as "case_z012". `facts` are those of the volumes, with the axis; their `flip_axes` are those
    left. All cases are read once here.
    Raises ValueError for a data set that is not 3-D, another axis, and when no slice is left.
    """

    def __init__(self, dataset: SegmentationDataset, axis: int = 0, foreground_only: bool = False):
        self.dataset, self.axis = dataset, whole_number("axis", axis, 0, 2)
        flag("foreground_only", foreground_only)
        recipe, cut = dataset.facts.recipe, dataset.facts.slice_axis
        if recipe is None or recipe.spatial_dims != 3 or cut is not None:
            raise ValueError("the data set is 2-D; slices are cut from the volumes of a 3-D data set")
        self.facts = replace(dataset.facts, slice_axis=self.axis)
        self._places: list[tuple[int, int]] = []  # case, position along the axis
        for case in range(len(dataset)):
            label = dataset.view(case)["label"].movedim(self.axis, 0)
            positions = label.flatten(1).any(1).nonzero().flatten().tolist() if foreground_only else range(len(label))
            self._places += [(case, position) for position in positions]
        if not self._places:
            raise ValueError(f"no slice of the {len(dataset)} cases holds a label above 0")
        self.names = [f"{dataset.names[case]}_{AXES[self.axis]}{position:03d}" for case, position in self._places]

    def __getitem__(self, index: int) -> dict:
        case, position = self._places[index]
        item = self.dataset.view(case)
        # Normalised anew: prediction on a slice knows nothing of its neighbours, so training must not either.
        image = normalise(item["image"].select(self.axis + 1, position).numpy())
        spacing = tuple(size for axis, size in enumerate(item["spacing"]) if axis != self.axis)
        label = item["label"].select(self.axis, position).long()
        return {"image": torch.from_numpy(image), "label": label, "spacing": spacing, "name": self.names[index]}

    def raw(self, index: int) -> np.ndarray:
        """The slice as stored, (C, *spatial), not normalised: to look at."""
        case, position = self._places[index]
        return self.dataset.raw(case).take(position, self.axis + 1)
