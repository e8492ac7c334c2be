"""Commands about networks: train, predict, evaluate, report."""

from __future__ import annotations

import csv
import os
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import xlstm_unet_lab as lab
from xlstm_unet_lab.cli.app import app, chosen_device, parse_pairs, parse_sizes, print_facts, print_table, room_for, say
from xlstm_unet_lab.cli.options import Device, Fold, Json, Mirror, Paths, Recipe, Root, RunFold, Split, Which, pairs
from xlstm_unet_lab.ops.progress import bar

if TYPE_CHECKING:
    import pandas

    from xlstm_unet_lab.evaluation.cases import Predictions

DEFAULT_PATCH = {2: (128, 128), 3: (64, 64, 64)}
# A progress bar over the windows or slices of one case, for as long as it is at work, where that takes a while.
bar_of_a_case = partial(bar, desc="this case", unit="part", leave=False)


@app.command()
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="DATA", help="A data set: see `prepare --list`, or a folder.")],
    model: Annotated[str, typer.Option(help="A network: see `models`.")] = "xlstm_unet_enc",
    model_option: Annotated[list[str] | None, pairs("Of the network: deep_supervision=true, ...")] = None,
    patch_size: Annotated[
        str | None, typer.Option(help="Voxels of a patch in (z,) y, x.", show_default="128,128 or 64,64,64")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Patches a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="The highest one, after the warm-up.")] = 1e-3,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed, or auto: the fastest here.")] = "auto",
    accelerator: Annotated[str, typer.Option(help="cpu, cuda, mps, or the best there is.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, patches and augmentation.")] = 0,
    setting: Annotated[list[str] | None, pairs("Any other field of TrainConfig: validate_every=200, ...")] = None,
    slices: Annotated[bool, typer.Option("--slices", help="Train a 2-D network on slices across z.")] = False,
    fold: Fold = 0,
    run_directory: Annotated[
        Path | None, typer.Option(help="Where weights and logs go.", show_default="runs/DATA[-slices]-MODEL-foldN")
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Train a network on a prepared data set; stopped at any moment, the same command goes on where it was.

    With --slices, scores while training are means over slices, those of
    `evaluate` and `report` are of whole volumes, predicted slice by slice.
    """
    import torch

    from xlstm_unet_lab.data.slices import SliceDataset
    from xlstm_unet_lab.ops.checks import one_of

    data = [lab.load_dataset(recipe, split, root=root, fold=fold) for split in ("train", "val")]
    data = [SliceDataset(cases) if slices and len(cases) else cases for cases in data]
    facts = data[0].facts.recipe
    size = parse_sizes("--patch-size", patch_size) or DEFAULT_PATCH[2 if slices else facts.spatial_dims]
    shape = {"spatial_dims": 2 if slices else facts.spatial_dims, "patch_size": size}
    shape |= {"in_channels": len(facts.channel_names), "num_classes": facts.num_classes}
    torch.manual_seed(seed)
    network = lab.build(model, **shape, **parse_pairs("--model-option", model_option))
    known = {field.name for field in fields(lab.TrainConfig)}  # some of them are options here, under the same name
    settings = {name: value for name, value in context.params.items() if name in known} | {"patch_size": size}
    others = sorted(known - settings.keys())
    settings |= {one_of("--setting", name, others): value for name, value in parse_pairs("--setting", setting).items()}
    config = lab.TrainConfig(**settings)
    folder = run_directory or Path("runs") / f"{facts.name}{'-slices' if slices else ''}-{model}-fold{fold}"
    track = partial(bar, desc="validating", unit="part", leave=False, disable=not _speaks())
    cases, val = data[0], data[1] if len(data[1]) else None
    records = lab.fit(network, cases, val, config, run_directory=folder, track=track)  # errors come before the bar
    with bar(total=steps, desc="training", unit="step", disable=not _speaks()) as done:
        for record in records:
            done.set_postfix(loss=f"{record.loss:.3f}", refresh=False)
            done.update(record.step - done.n)
    if _speaks():
        print_facts(_end_of(folder), as_json)


def _speaks() -> bool:
    """Whether this process is the one to print, of several that train together."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _end_of(run: Path) -> dict:
    """How a run ended: read from its log, for a run that was finished before yields no record."""
    with (run / "log.csv").open(newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    shown = {name: float(value) for name, value in last.items() if name in ("loss", "seconds") or name[:5] == "dice "}
    return {"run_directory": str(run), "step": int(last["step"]), **shown}


@app.command()
def predict(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="The folder for the labels.")] = Path("predictions"),
    trained: Annotated[str | None, typer.Option(metavar="NAME", help="In place of RUN, what `models` lists.")] = None,
    which: Which = None,
    overlap: Annotated[float, typer.Option(help="Share of its size by which windows overlap.")] = 0.5,
    mirror: Mirror = False,
    coloured: Annotated[bool, typer.Option("--coloured", help="For pictures: also labels in colour.")] = False,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Also maps of how sure it is.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Windows at once.", show_default="4 in 2-D, 1 in 3-D")] = None,
    device: Device = None,
) -> None:
    """Predict image files with a run, or a network that ships: NIfTI, PNG, JPEG, BMP or TIFF in, label files out.

    Labels of a run on your own files have the numbers of those. Folders
    beside the labels hold more: instances, with a number for each object,
    where the run learnt to tell them apart; coloured where --coloured, and
    probability, entropy and (where the data allows) disagreement of mirror
    images where --uncertainty asks for them.
    """
    run, inputs = (None, paths) if trained else (paths[0], paths[1:])
    if not inputs or (trained and which):
        raise typer.BadParameter("expected a run and images; or images and --trained NAME, without --which")
    options = {"overlap": overlap, "mirror": mirror, "batch_size": batch_size, "device": chosen_device(device)}
    options |= {"coloured": coloured, "uncertainty": uncertainty}
    bars = {"track": bar_of_a_case, "track_cases": partial(bar, desc="predicting", unit="case")}
    predictor = lab.trained(trained) if trained else lab.load_predictor(run, which)
    for path in predictor.files(inputs, out, **options, **bars):
        say(path)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="A folder of label files, or a run.")],
    truth: Annotated[Path | None, typer.Argument(metavar="TRUTH", help="Folder of true labels; not for a run.")] = None,
    recipe: Recipe = None,
    split: Split = "test",
    fold: RunFold = None,
    which: Which = "best",
    mirror: Mirror = False,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Also write the scores of every case to this CSV file.")] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Score predictions: the mean over cases of each label, with its 95% interval; every case with --json or --out."""
    from xlstm_unet_lab.evaluation.report import summarise
    from xlstm_unet_lab.ops.files import write_whole

    chosen = {"split": split, "fold": fold, "which": which, "root": root, "mirror": mirror, "device": device}
    room_for(out)
    table = _scored(_predictions(predictions, truth, recipe, None, chosen))
    if out is not None:
        write_whole(out, table.to_csv(index=False).encode(errors="backslashreplace"))
    print_table(table if as_json else summarise(table).round(4), as_json)


@app.command()
def report(
    predictions: Annotated[list[Path], typer.Argument(metavar="PREDICTIONS", help="Folders or runs; the first leads.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    truth: Annotated[Path | None, typer.Option(help="The folder of the true labels; not for runs.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images, for pictures of cases.")] = None,
    recipe: Recipe = None,
    split: Split = "test",
    fold: RunFold = None,
    which: Which = "best",
    mirror: Mirror = False,
    device: Device = None,
    root: Root = None,
) -> None:
    """Write one HTML page: scores with intervals, models compared case by case, best, median and worst case."""
    from xlstm_unet_lab.evaluation.report import notable_cases
    from xlstm_unet_lab.figures.cases import case_picture
    from xlstm_unet_lab.figures.report_page import write_report
    from xlstm_unet_lab.overlays.description import overlay_outcome

    chosen = {"split": split, "fold": fold, "which": which, "root": root, "mirror": mirror, "device": device}
    room_for(out)
    models = {str(path): _predictions(path, truth, recipe, images, chosen) for path in predictions}
    tables = {name: _scored(model) for name, model in models.items()}
    (name, first), overlays = next(iter(models.items())), {}
    notable = notable_cases(tables[name]) if first.image else {}
    for what, case in bar(notable.items(), desc="drawing", unit="case", leave=False):
        overlays[f"The {what} case of {name}"] = case_picture(overlay_outcome(first, case))
    say(write_report(out, tables, overlays=overlays, notes=[first.credit] if first.credit else []))


def predictions_of_run(run: Path, chosen: dict) -> Predictions:
    """Of a run: `chosen` has the options that commands share, by name."""
    from xlstm_unet_lab.evaluation.cases import from_run

    return from_run(run, **chosen | {"device": chosen_device(chosen["device"]), "track": bar_of_a_case})


def _predictions(path: Path, truth: Path | None, recipe: str | None, images: Path | None, chosen: dict) -> Predictions:
    """Of a run, with what was chosen for it, or of a folder beside the truth."""
    from xlstm_unet_lab.evaluation.cases import from_folders
    from xlstm_unet_lab.inference.load import is_run

    if is_run(path):
        if truth is not None:
            raise typer.BadParameter(f"{path} is a run, which is scored on its own data set: leave out {truth}")
        return predictions_of_run(path, chosen)
    if truth is None:
        raise typer.BadParameter(f"{path} is no run directory: name the folder of the true labels too")
    return from_folders(path, truth, recipe=recipe, images=images, root=chosen["root"])


def _scored(predictions: Predictions) -> pandas.DataFrame:
    return replace(predictions, names=bar(predictions.names, desc="scoring", unit="case")).table()
