"""One napari screenshot for each modality, written to docs/: `python -m benchmarks.screenshots [NAME ...]`.

Predictions are those of networks trained here, for one to five minutes each on 2 cores, on cases not seen before. Real
data must have been prepared, or lie in the folder that LAB_REAL_DATA names. Runs are kept in runs/screenshots: what is
trained there already is only drawn again.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import xlstm_unet_lab as lab
from benchmarks.accuracy import datasets
from xlstm_unet_lab.data.images import read_case, read_label
from xlstm_unet_lab.data.instance_labels import LABELS
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.overlays.description import Overlay, overlay, overlay_case

ROOT = Path(__file__).parents[1]
LARGEST = 200_000  # bytes of a PNG


class Training(NamedTuple):
    """How the network of a picture is trained, `fit`'s settings."""

    steps: int
    batch_size: int
    patch_size: tuple[int, ...]


TRAININGS = {  # name of the picture, which is that of the recipe
    "phantom_microscopy": Training(120, 8, (96, 96)),
    "phantom_endoscopy": Training(300, 8, (128, 128)),
    "phantom_abdomen": Training(600, 2, (16, 64, 64)),
    "phantom_brain": Training(200, 2, (16, 64, 64)),
    "nuclei": Training(160, 8, (96, 96)),
    "hippocampus": Training(120, 2, (32, 48, 32)),
}
IN_3D = ("phantom_abdomen", "hippocampus")  # drawn as a volume as well
MS_LESIONS = "ms_lesions/cross_sectional/MNI/patient19"
SEQUENCES = ("FLAIR", "T1", "T1POST", "T2")


def predicted(name: str) -> Overlay:
    """The first test case, as a network sees it that was trained as TRAININGS says."""
    training, (train, test) = TRAININGS[name], datasets(name)
    config = lab.TrainConfig(**training._asdict(), learning_rate=3e-3, channels_last=True)
    model = lab.build(
        "xlstm_unet_bot",
        spatial_dims=test.recipe.spatial_dims,
        in_channels=len(test.recipe.channel_names),
        num_classes=test.recipe.num_classes,
        patch_size=config.patch_size,
        features=(16, 32, 64),
    )
    folder = ROOT / "runs" / "screenshots" / name
    for _ in lab.fit(model, train, None, config, run_directory=folder):
        pass
    model = lab.load_run(folder, "last")
    prediction = lab.predict(model, test.raw(0), patch_size=config.patch_size, spacing=test[0]["spacing"])
    counted = test.recipe.labels == LABELS
    return overlay_case(test, 0, prediction, instances=instances_from_classes(prediction) if counted else None)


def ms_lesions() -> Overlay:
    """Lesions as raters drew them; there is one case, so no network has learnt them."""
    if not (folder := Path(os.environ.get("LAB_REAL_DATA", "")) / MS_LESIONS).is_dir():
        raise FileNotFoundError(f"{folder} is missing: set LAB_REAL_DATA to the folder that holds ms_lesions")
    files = [next(folder.glob(f"{sequence}_*.nii.gz")) for sequence in SEQUENCES]
    case, (truth, _) = read_case(files), read_label(next(folder.glob("GOLD_STANDARD_*.nii.gz")))
    return overlay(
        case.image,
        truth=truth,
        spacing=case.spacing,
        channel_names=SEQUENCES,
        label_names={"lesion": 1},
        colours={1: "#E69F00"},
        title="Lesions of multiple sclerosis, patient 19, as raters drew them",
        credit="Data: Lesjak et al., A novel public MR image dataset of multiple sclerosis patients with lesion "
        "segmentations based on multi-rater consensus, Neuroinformatics (2017). Licence: CC BY.",
        anatomical=True,
    )


def main(names: list[str]) -> None:
    for name in names:
        shown = ms_lesions() if name == "ms_lesions" else predicted(name)
        for ndisplay in (2, 3) if name in IN_3D else (2,):
            path = ROOT / "docs" / f"overlay_{name}{'_3d' if ndisplay == 3 else ''}.png"
            size = shown.screenshot(path, ndisplay, size=(800, 600)).stat().st_size
            print(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB\n{shown.describe()}\n", flush=True)
            if size > LARGEST:
                raise ValueError(f"{path} has {size} bytes, at most {LARGEST} may lie in the repository")


if __name__ == "__main__":
    known = [*TRAININGS, "ms_lesions"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all when none is given: {', '.join(known)}")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no screenshot is named {unknown[0]!r}; there are {', '.join(known)}")
    main(names or known)
