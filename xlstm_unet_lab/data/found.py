"""What a prepared data set holds, in two tables: so that a wrong file is seen before anything is trained on it."""

import glob
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import numpy as np

from xlstm_unet_lab.data.images import read_case, read_label
from xlstm_unet_lab.data.nnunet_raw import PARTS, case_names
from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.ops.progress import bar


def look_over(recipe: Recipe, folder: Path, progress: bool = False) -> dict[str, list[dict]]:
    """Read all cases of a prepared folder; returns the rows of two tables, as JSON can hold them.

    "labels": label, number (in the user's own files, where it is another one there), cases and voxels that have it.
    "images": the smallest, median and largest size, spacing and intensity; of intensities, those of every case count.
    """
    voxels, cases, measured = Counter[int](), Counter[int](), defaultdict[str, list[float]](list)
    for part in PARTS.values():
        names = case_names(folder, part, recipe.file_ending)
        for name in bar(names, desc=f"looking over images{part}", unit="case", disable=not progress):
            files = (folder / f"images{part}").glob(f"{glob.escape(name)}_[0-9][0-9][0-9][0-9]{recipe.file_ending}")
            case = read_case(sorted(files))
            image = case.image  # put together from its files each time it is asked for
            label, _ = read_label(folder / f"labels{part}" / f"{name}{recipe.file_ending}")
            if len(image) != len(recipe.channel_names):
                raise ValueError(f"{name} has {len(image)} channels; the recipe names {recipe.channel_names}")
            numbers, counts = np.unique(label, return_counts=True)
            voxels.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
            cases.update(numbers.tolist())
            for axis, size, step in zip("zyx"[-label.ndim :], label.shape, case.spacing, strict=True):
                measured[f"size {axis}"].append(size)
                measured[f"spacing {axis}, {case.unit}"].append(step)
            for channel, values in zip(recipe.channel_names, image, strict=True):
                measured[f"intensity, {channel}"] += [float(of(values)) for of in (np.min, np.median, np.max)]
    labels = [
        {"label": name, "number": recipe.label_numbers.get(name, value), "cases": cases[value], "voxels": voxels[value]}
        for name, value in recipe.labels.items()
    ]
    images = [
        {"of the images": what, "smallest": min(values), "median": median(values), "largest": max(values)}
        for what, values in sorted(measured.items(), key=lambda item: item[0].split()[0] == "intensity,")
    ]
    return {"labels": labels, "images": images}
