"""Train the small networks that ship with the package: `python -m benchmarks.trained [NAME ...]`, by default all.

Each trains for a fixed number of steps from a fixed seed, is rounded to half precision as its file holds it, and is
tested on held-out cases through the predictor that users get. Where it reaches its goal it is written to
xlstm_unet_lab/weights/NAME.safetensors with its settings, machine and scores; otherwise nothing is, and the exit code
is 1. LAB_REAL_DATA names a folder with originals of real data, LAB_DATA where prepared data lives.
"""

import argparse
import copy
import dataclasses
import importlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import xlstm_unet_lab as lab
from benchmarks.accuracy import AVERAGE, FLIPS, datasets, rare_ones_more
from benchmarks.measure import machine, table
from data_recipes.shared.phantom_physics import spacing_of
from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.data.cases import Cases, Listed
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.data.registry import get_recipe
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.evaluation.report import bootstrap_interval
from xlstm_unet_lab.inference import shipped
from xlstm_unet_lab.inference.instances import instances_from_classes

SEED = 0
LARGEST = 1_500_000  # bytes of a file
HEADER = 10_000  # bytes of it, about, that are no weights
SHOWN_EVERY = 50  # steps
FIRST_SCENE = 10_000  # beyond the seed of a phantom's data set
PAGE = Path(__file__).parents[1] / "docs" / "trained_networks.md"
MEAN_DICE, INSTANCE_F1 = "mean Dice", "instance F1"  # Dice: over the labels of a case, and over cases


def once(case: dict) -> int:
    return 1


@dataclasses.dataclass(frozen=True)
class Training:
    """How one network is trained, and what it has to reach on held-out cases."""

    patch_size: tuple[int, ...]
    features: tuple[int, ...]
    steps: int
    batch_size: int
    goal: float
    measure: str = MEAN_DICE
    model: str = "xlstm_unet_bot"
    learning_rate: float = 3e-3
    augment: bool | Augmentation = True
    own_options: Mapping = dataclasses.field(default_factory=dict)  # of the network
    times_drawn: Callable[[dict], int] = once  # how often a case stands in the list that patches come from
    more_scenes: int = 0  # of a phantom, to train on beside the data set's: made from other seeds


# Thick slices: as nnU-Net plans it, voxels become cubes before the kernels do.
THICK_SLICES = {
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    "kernel_sizes": ((1, 3, 3), *((3, 3, 3),) * 4),
}
TRAININGS = {  # a name is that of its data set
    "phantom_microscopy": Training((128, 128), (12, 24, 48, 72), 300, 4, 0.90),
    "phantom_brain": Training(
        (16, 64, 64), (8, 16, 32, 48), 500, 1, 0.90, augment=replace(FLIPS, flip_axes=(2,)), more_scenes=48
    ),
    "phantom_endoscopy": Training((192, 256), (12, 24, 48, 72, 96), 3000, 4, 0.90, augment=FLIPS, more_scenes=300),
    "phantom_abdomen": Training(
        (24, 96, 128),
        (8, 16, 32, 48, 48),
        1200,
        1,
        0.90,
        augment=replace(FLIPS, flip_axes=()),
        own_options=THICK_SLICES,
        more_scenes=80,
    ),
    "hippocampus": Training((32, 48, 32), (12, 24, 48, 72), 1600, 2, 0.885, augment=replace(FLIPS, flip_axes=(2,))),
    "nuclei": Training(
        (128, 128),
        (12, 24, 48, 72),
        1500,
        8,
        0.82,
        INSTANCE_F1,
        augment=Augmentation(invert_probability=0.3),
        times_drawn=rare_ones_more,
    ),
}


def scenes(name: str, count: int) -> list[dict]:
    """More cases as a phantom's data set has them, from seeds that it does not use."""
    made = []
    for number in range(count):
        module = importlib.import_module(f"data_recipes.{name}")
        image, label = module.scene(module.SEED + FIRST_SCENE + number)
        flat = module.RECIPE.spatial_dims == 2
        image = np.moveaxis(image, -1, 0) if flat else image.reshape(-1, *label.shape)
        spacing = (1.0, 1.0) if flat else spacing_of(module.SIZE, module.FIELD_OF_VIEW)
        label = torch.from_numpy(label.astype(np.int64))
        made.append({"image": torch.from_numpy(normalise(image)), "label": label, "spacing": spacing, "name": ""})
    return made


def drawn(name: str, training: Training, cases: Cases) -> Cases:
    """What patches are cut from: the cases of the data set, some of them several times, and more scenes."""
    known = [cases[number] for number in range(len(cases))] + scenes(name, training.more_scenes)
    return Listed([case for case in known for _ in range(training.times_drawn(case))], cases.facts)


def network(training: Training, cases: Cases) -> torch.nn.Module:
    """The network, from the seed; ValueError where its file would be too large."""
    torch.manual_seed(SEED)
    recipe, options = cases.facts.recipe, {"patch_size": training.patch_size, "features": training.features}
    options |= {"spatial_dims": recipe.spatial_dims, "in_channels": len(recipe.channel_names)}
    built = lab.build(training.model, num_classes=recipe.num_classes, **options, **training.own_options)
    size = 2 * sum(parameter.numel() for parameter in built.parameters()) + HEADER
    if size > LARGEST:
        raise ValueError(f"the file would have {size:,} bytes, expected {LARGEST:,} at most: use fewer features")
    return built


def trained(training: Training, cases: Cases, say: Callable[[str], None] = print) -> lab.Predictor:
    """The predictor after all steps, its weights rounded as they will be in the file."""
    built = network(training, cases)
    fields = ("patch_size", "steps", "batch_size", "learning_rate", "augment")
    given = {field: getattr(training, field) for field in fields}
    # One precision on every machine: the same settings are to give the same network.
    config = lab.TrainConfig(**given, precision="32-true", channels_last=True, ema_decay=AVERAGE, seed=SEED)
    for record in lab.fit(built, cases, None, config):
        if record.step % SHOWN_EVERY == 0:
            say(f"step {record.step} of {config.steps}: loss {record.loss:.3f}, {record.seconds:.0f} s")
    return replace(lab.Predictor.known(built, training.patch_size), network=built.half().float().cpu().eval())


def scores_by_case(predictor: lab.Predictor, test: Cases) -> dict[str, list[float]]:
    """Name of a score -> its value for every held-out case."""
    found: dict[str, list[float]] = {}
    for number in range(len(test)):
        case = test[number]
        truth, label = case["label"].numpy(), predictor(test.raw(number), case["spacing"])
        labels = predictor.label_names.items()
        both = {name: (np.isin(label, values), np.isin(truth, values)) for name, values in labels}
        row = {f"Dice {name}": metrics.dice(*masks) for name, masks in both.items()}
        row[MEAN_DICE] = float(np.mean(list(row.values())))
        if predictor.finds_objects:
            row["foreground Dice"] = metrics.dice(label > 0, truth > 0)
            row[INSTANCE_F1] = metrics.instance_f1(instances_from_classes(label), test.instances(number)).f1
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def card(name: str, training: Training, predictor: lab.Predictor, test: Cases, cases: int, seconds: float) -> dict:
    """What the file says of the network beside what predicting needs."""
    by_case, recipe = scores_by_case(predictor, test), test.facts.recipe
    means = {score: round(float(np.mean(values)), 4) for score, values in by_case.items()}
    settings = {one.name: getattr(training, one.name) for one in dataclasses.fields(training)}
    settings |= {"times_drawn": training.times_drawn.__name__, "augment": repr(training.augment)}
    return {
        "made by": f"python -m benchmarks.trained {name}",
        "modality": recipe.modality,
        "measure": training.measure,
        "score": means[training.measure],
        "interval, 95%": [round(end, 4) for end in bootstrap_interval(by_case[training.measure])],
        "scores": means,
        "training cases": cases,
        "held-out cases": len(test),
        "parameters": sum(parameter.numel() for parameter in predictor.network.parameters()),
        "settings": {what: x for what, x in settings.items() if what not in ("goal", "measure")},
        "seed": SEED,
        "training seconds": round(seconds),
        "machine": machine(),
        "licence": recipe.licence,
        "limits": "a small network for teaching and for trying things out; not a medical device",
    }


def write(name: str, say: Callable[[str], None] = print) -> tuple[dict, Path | None]:
    """Train, test and write one network: what its card says, and its file, None where the goal is missed."""
    training, (cases, test), started = TRAININGS[name], datasets(name), time.perf_counter()
    seen = drawn(name, training, cases)
    predictor = trained(training, seen, say)
    known = card(name, training, predictor, test, len(cases) + training.more_scenes, time.perf_counter() - started)
    if known["score"] < training.goal:
        return known, None
    shipped.WEIGHTS.mkdir(exist_ok=True)
    half = copy.deepcopy(predictor.network).half()
    return known, replace(predictor, network=half, card=known).save(shipped.WEIGHTS / f"{name}.safetensors")


def main(names: list[str] | None = None) -> int:
    missed = 0
    for name in names or TRAININGS:
        known, path = write(name)
        missed += path is None
        shown = ", ".join(f"{score} {value:.3f}" for score, value in known["scores"].items())
        goal = f"{TRAININGS[name].measure} {TRAININGS[name].goal:g}"
        row = [name, known["parameters"], known["training seconds"], shown, goal, path.name if path else "MISSED"]
        table("networks that ship", ["data", "weights", "seconds", "held-out scores", "goal", "file"], [row])
    return int(missed > 0)


def page_rows() -> str:
    """The table of `PAGE`: a line a network, from its card."""
    rows = []
    for name in lab.list_trained()["name"]:
        card = lab.trained(name).card
        data = f"{get_recipe(name).title}: {card['training cases']} cases"
        scores = ", ".join(f"{score} {value:.3f}" for score, value in card["scores"].items())
        rows.append(f"| `{name}` | {data} | {scores} | {card['held-out cases']} | {card['licence']} |\n")
    return "".join(rows)


def write_page() -> None:
    """Put the table of the networks that are there into the guide."""
    PAGE.write_text(re.sub(r"(?<=\|\n)(\| `.*\n)+", lambda _: page_rows(), PAGE.read_text(), count=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all when none is given: {', '.join(TRAININGS)}")
    parser.add_argument("--page", action="store_true", help="only write the table of docs/trained_networks.md anew")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in TRAININGS]:
        parser.error(f"no network is named {unknown[0]!r}; there are {', '.join(TRAININGS)}")
    sys.exit(write_page() if given.page else main(given.names))
