"""How good a network gets on held-out cases when it trains from scratch for so many minutes on this machine.

`python -m benchmarks.accuracy goals` reaches for the scores set for this project, `comparison` trains several networks
with several seeds in equal time. What is in benchmarks/results already is not run again; `--again` runs it again.
Real data must have been prepared (`xlstm-unet-lab prepare NAME`); LAB_REAL_DATA names a folder with originals.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset

import xlstm_unet_lab as lab
from benchmarks.measure import RESULTS, keep, table
from xlstm_unet_lab.data.augment import Augmentation
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.evaluation.report import bootstrap_interval
from xlstm_unet_lab.inference.instances import instances_from_classes
from xlstm_unet_lab.inference.predict import predict_probabilities
from xlstm_unet_lab.models.baselines import BASELINES

ORIGINALS = {  # below LAB_REAL_DATA
    "hippocampus": "hippocampus/Task04_Hippocampus",
    "nuclei": "nuclei",
    "polyps": "polyps/Kvasir-SEG",
}
PROBE = 40  # steps that are timed to learn how many fit into the minutes
AVERAGE = 0.99  # of the running mean of the weights, which is what is tested
MULTIPLES = {"swin_unetr": 32}  # it halves every axis five times, so its patches are rounded up
# The rate is that of Hatamizadeh et al., arXiv 2201.01266. On a CPU `fit` refuses to train this network on hippocampus
# in bfloat16, as some of its maps are two voxels deep; in float32 its steps take as long.
OWN_SETTINGS = {"swin_unetr": {"learning_rate": 8e-4, "precision": "32-true", "channels_last": False}}
SHARE = 0.97  # of the minutes that is planned for; the rest is for turns that take longer


def dice_of_labels(probabilities: np.ndarray, dataset, case: int) -> dict[str, float]:
    """Dice of every label of the recipe, where each position takes its most probable class."""
    prediction, truth = probabilities.argmax(0), dataset[case]["label"].numpy()
    labels = dataset.recipe.targets.foreground
    return {n: metrics.dice(np.isin(prediction, v), np.isin(truth, v)) for n, v in labels.items()}


def instance_scores(probabilities: np.ndarray, dataset, case: int) -> dict[str, float]:
    """F1 of the objects found, and Dice of where background is less probable than interior and boundary together."""
    truth = dataset.instances(case)
    found = instances_from_classes(probabilities.argmax(0))  # from labels, as `predict` and napari do
    return {
        "instance F1": metrics.instance_f1(found, truth).f1,
        "foreground Dice": metrics.dice(probabilities[0] < 0.5, truth > 0),
    }


def rare_ones_more(case: dict) -> int:
    """4 for an image of dark objects on light ground, whose median is above its mean: 15 of the 75 training images of
    nuclei are such, stained tissue and bright field, and they are the hard ones. Chosen on folds of the 75."""
    return 4 if case["image"].mean(0).median() > 0 else 1


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, the settings that every network trains with on it, and how a prediction is scored."""

    recipe: str
    patch_size: tuple[int, ...]
    batch_size: int
    learning_rate: float
    features: tuple[int, ...]  # of the networks built here; the baselines of other libraries have their own widths
    score: Callable[[np.ndarray, object, int], dict[str, float]]  # of probabilities (num_classes, *spatial)
    mirror: tuple[int, ...]  # axes over which predictions are mirrored and averaged
    augment: bool | Augmentation = True
    times_drawn: Callable[[dict], int] = lambda case: 1  # how often a case stands in the list that patches come from
    own_options: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)  # of single networks, by name


FLIPS = Augmentation(
    rotate=False, turn_probability=0, probability=0.2, blur_probability=0, low_resolution_probability=0
)
# With four stages the only mixer of "enc" is where "bot" has it, and the two are one network; a fifth tells them apart.
FIVE_STAGES = {"features": (12, 24, 48, 64, 96)}
SAME_GRID = {"strides": ((1, 1, 1), *((2, 2, 2),) * 3, (1, 1, 1))}  # the fifth stage, where 2 x 3 x 2 would be left
LARGER = {"features": (20, 40, 80)}  # no fewer parameters than the network with a mixer
TASKS = {
    task.recipe: task
    for task in (
        Task(
            "hippocampus",
            (32, 48, 32),
            2,
            3e-3,
            (16, 32, 64, 96),
            dice_of_labels,
            (2,),
            replace(FLIPS, flip_axes=(2,)),
            own_options={"xlstm_unet_enc": FIVE_STAGES | SAME_GRID},
        ),
        Task(
            "nuclei",
            (128, 128),
            8,
            3e-3,
            (16, 32, 64, 96),
            instance_scores,
            (0, 1),
            Augmentation(invert_probability=0.3),
            rare_ones_more,
            own_options={"xlstm_unet_enc": FIVE_STAGES},
        ),
        Task("polyps", (192, 192), 8, 3e-3, (16, 32, 64, 96, 128), dice_of_labels, (1,)),
        Task(
            "phantom_long_range",
            (384, 32),
            8,
            3e-3,
            (16, 32, 64),
            dice_of_labels,
            (),
            FLIPS,
            own_options={"unet": LARGER},
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its test.

    Several `members` share the minutes: as many networks, each from its own seed and with its part of the time. Their
    probabilities are averaged.
    """

    task: str
    model: str
    minutes: float
    seed: int = 0
    members: int = 1
    goals: tuple[tuple[str, float], ...] = ()  # what to reach, by name of the score; "mean" is over the scores
    stays_below: float | None = None  # the mean of a network that is expected to fail


GOALS = [
    Run("hippocampus", "xlstm_unet_bot", 5, goals=(("mean", 0.89),)),
    Run("nuclei", "xlstm_unet_bot", 5, goals=(("instance F1", 0.82), ("foreground Dice", 0.91))),
    Run("phantom_long_range", "xlstm_unet_enc", 5, goals=(("mean", 0.9),)),
    Run("phantom_long_range", "unet", 5, stays_below=0.6),
    Run("hippocampus", "xlstm_unet_bot", 20, members=2, goals=(("mean", 0.895),)),
    *(Run("polyps", model, 10) for model in ("xlstm_unet_bot", "unet", "nnunet")),
]
COMPARED = ("xlstm_unet_enc", "xlstm_unet_bot", "unet", "nnunet", "segresnet", "swin_unetr")
COMPARISON = [
    Run(task, model, 2, seed) for seed in range(3) for task in ("hippocampus", "nuclei") for model in COMPARED
]
SETS = {"goals": GOALS, "comparison": COMPARISON}


def datasets(recipe: str) -> tuple:
    """All cases to train on, and those held out; prepared first where they are not."""
    below = os.environ.get("LAB_REAL_DATA")
    source = Path(below) / ORIGINALS[recipe] if below and recipe in ORIGINALS else None
    lab.prepare(recipe, source=source, progress=False)
    return lab.load_dataset(recipe, "all"), lab.load_dataset(recipe, "test")


def patch_size(task: Task, name: str) -> tuple[int, ...]:
    multiple = MULTIPLES.get(name, 1)
    return tuple(-(-length // multiple) * multiple for length in task.patch_size)


def network(task: Task, name: str, train) -> torch.nn.Module:
    recipe = train.recipe
    shared = {} if name in BASELINES else {"features": task.features}
    return lab.build(
        name,
        spatial_dims=recipe.spatial_dims,
        in_channels=len(recipe.channel_names),
        num_classes=recipe.num_classes,
        patch_size=patch_size(task, name),
        **(shared | task.own_options.get(name, {})),
    )


def settings(task: Task, name: str, seed: int, steps: int) -> lab.TrainConfig:
    """The same for every network, but for OWN_SETTINGS: the fastest precision of the machine, channels last."""
    config = lab.TrainConfig(
        patch_size=patch_size(task, name),
        steps=steps,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        augment=task.augment,
        precision="auto",
        channels_last=True,
        ema_decay=AVERAGE,
        seed=seed,
    )
    return replace(config, **OWN_SETTINGS.get(name, {}))


def drawn(task: Task, train) -> Subset:
    """The cases to train on, some of them several times; all are read here once, which is no part of the minutes."""
    return Subset(train, [number for number in range(len(train)) for _ in range(task.times_drawn(train[number]))])


def steps_within(seconds: float, task: Task, name: str, train: Subset) -> int:
    """How many steps fit into the time, from a short training of a network that is thrown away."""
    records = list(lab.fit(network(task, name, train.dataset), train, None, settings(task, name, 0, PROBE)))
    later = records[PROBE // 2 :]
    return max(1, int(SHARE * seconds * (len(later) - 1) / (later[-1].seconds - later[0].seconds)))


def trained(run: Run, task: Task, train: Subset, seed: int, steps: int) -> tuple[torch.nn.Module, object]:
    """One member after its part of the minutes, and the last record of its training."""
    torch.manual_seed(seed)
    model = network(task, run.model, train.dataset)
    for record in lab.fit(model, train, None, settings(task, run.model, seed, steps)):
        if record.seconds > 60 * run.minutes / run.members:
            break
    return model, record


def measure(run: Run) -> dict:
    """Train and test once. The time that counts is what `fit` reports: training alone."""
    task, (cases, test) = TASKS[run.task], datasets(run.task)
    train = drawn(task, cases)
    steps = steps_within(60 * run.minutes / run.members, task, run.model, train)
    seeds = range(run.seed, run.seed + run.members)
    models, last = zip(*(trained(run, task, train, seed, steps) for seed in seeds), strict=True)
    known = {"patch_size": patch_size(task, run.model), "mirror": task.mirror}
    started = time.perf_counter()
    scores: dict[str, list[float]] = {}
    for case in range(len(test)):
        probabilities = np.mean([predict_probabilities(model, test.raw(case), **known) for model in models], axis=0)
        for name, value in task.score(probabilities, test, case).items():
            scores.setdefault(name, []).append(value)
    per_case = np.mean(list(scores.values()), axis=0)
    low, high = bootstrap_interval(per_case)
    means = {name: float(np.mean(values)) for name, values in scores.items()} | {"mean": float(per_case.mean())}
    return {
        **dataclasses.asdict(run),
        "own settings": OWN_SETTINGS.get(run.model, {}) | {"patch_size": known["patch_size"]},
        "training cases": len(cases),
        "test cases": len(test),
        "parameters": sum(parameter.numel() for model in models for parameter in model.parameters()),
        "steps planned": steps * run.members,
        "steps": sum(record.step for record in last),
        "training seconds": sum(record.seconds for record in last),
        "seconds a test case": (time.perf_counter() - started) / len(test),
        "last loss": float(np.mean([record.loss for record in last])),
        "scores": means,
        "interval of the mean, 95%": [low, high],
        "by case": dict(zip(test.names, per_case.tolist(), strict=True)),
    }


def goals_met(row: dict) -> dict[str, bool]:
    """Every goal of a run in words, and whether its result reached it."""
    met = {f"{name} at least {goal:g}": row["scores"][name] >= goal for name, goal in row["goals"]}
    if row["stays_below"] is not None:
        met[f"mean below {row['stays_below']:g}"] = row["scores"]["mean"] < row["stays_below"]
    return met


def main(which: str | None = None, only: str | None = None, again: bool = False) -> None:
    for name in [which] if which else list(SETS):
        path = RESULTS / f"accuracy_{name}{'_gpu' if torch.cuda.is_available() else ''}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() and not again else []
        here = torch.backends.cpu.get_cpu_capability()  # equal minutes are other steps on another kind of processor
        done = {(row["task"], row["model"], row["minutes"], row["seed"], row["processor"]) for row in rows}
        for run in SETS[name]:
            if (run.task, run.model, run.minutes, run.seed, here) in done or only not in (None, run.task):
                continue
            row = measure(run) | {"processor": here}
            rows.append(row)
            keep(f"accuracy_{name}", {"rows": rows})
            shown = [run.task, run.model, run.minutes, run.seed, row["steps"], *row["interval of the mean, 95%"]]
            scores = ", ".join(f"{name} {value:.3f}" for name, value in row["scores"].items())
            met = goals_met(row)
            verdict = ("as wanted" if all(met.values()) else "MISSED") if met else "no goal"
            header = ["data", "model", "minutes", "seed", "steps", "low", "high", "scores", "goal"]
            table("accuracy on held-out cases", header, [[*shown, scores, verdict]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="?", choices=list(SETS), help="which runs; all when not given")
    parser.add_argument("--only", metavar="DATA", help="only the runs on this data set")
    parser.add_argument("--again", action="store_true", help="forget the results that are there")
    main(**vars(parser.parse_args()))
