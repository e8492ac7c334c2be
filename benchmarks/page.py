"""The figures of docs/benchmarks.md, written from the results: `python -m benchmarks.page` after a measurement."""

import json
from pathlib import Path

import numpy as np

from benchmarks import gpu
from benchmarks.accuracy import goals_met
from benchmarks.measure import RESULTS
from xlstm_unet_lab.evaluation.report import bootstrap_interval

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
AT_ONCE = "programs_at_once"
START, END = "<!-- figures: python -m benchmarks.page -->", "<!-- end of figures -->"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def mlstm_rows(result: dict) -> list[list[str]]:
    """One row a shape: milliseconds, and the ratios to the best of the others."""
    rows = []
    for shape in result["shapes"]:
        ours, ratios = shape["seconds"]["ours chunkwise"]["best"], shape["ratios"]
        where = ", ".join(str(size) for size in shape["shape"])
        best = ratios["over best native chunkwise"]
        rows.append([f"({where})", f"{1e3 * ours:.0f} ms", f"{best:.2f}x", f"{ratios['over fastest S x S']:.0f}x"])
    return rows


def step_rows(result: dict) -> list[list[str]]:
    """One row a case of the training step."""
    return [
        [
            f"{row['spatial_dims']}-D {row['size']}, {row['precision']}, "
            f"{'channels last' if row['channels_last'] else 'default layout'}, {row['form']}",
            f"{row['seconds']:.2f} s",
            f"{row['gigabytes']:.2f} GB",
        ]
        for row in result["rows"]
    ]


def accuracy_rows(result: dict) -> list[list[str]]:
    """One row a training: what, how long, how good on held-out cases, and what was wanted."""
    rows = []
    for row in result["rows"]:
        scores = {name: value for name, value in row["scores"].items() if name != "mean" or len(row["scores"]) == 1}
        low, high = row["interval of the mean, 95%"]
        said = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        size = f"{row['parameters'] / 1e6:.2f} M"
        mean = f"{row['scores']['mean']:.3f} [{low:.3f}, {high:.3f}]"
        goals = ", ".join(f"{goal}: {'reached' if met else 'missed'}" for goal, met in goals_met(row).items())
        network = f"{row['members']} x {row['model']}" if row["members"] > 1 else row["model"]
        where = [row["task"], network, size, row["processor"], f"{row['minutes']:g}", str(row["steps"])]
        rows.append([*where, mean, said, goals])
    return rows


def comparison_rows(result: dict) -> list[list[str]]:
    """One row a data set and network: mean over seeds and cases, its interval over cases, and every seed's own mean."""
    together: dict[tuple, list[dict]] = {}
    for row in result["rows"]:
        together.setdefault((row["task"], row["processor"], row["minutes"], row["model"]), []).append(row)
    ranked = []
    for (task, processor, minutes, model), rows in together.items():
        means = [row["scores"]["mean"] for row in rows]
        by_case = np.mean([[row["by case"][name] for name in rows[0]["by case"]] for row in rows], axis=0)
        low, high = bootstrap_interval(by_case)
        size, steps = f"{rows[0]['parameters'] / 1e6:.2f} M", f"{np.mean([row['steps'] for row in rows]):.0f}"
        score = f"{np.mean(means):.3f} [{low:.3f}, {high:.3f}]"
        seeds = ", ".join(f"{mean:.3f}" for mean in means)
        line = [task, model, size, processor, f"{minutes:g}", steps, score, seeds]
        ranked.append((task, processor, -np.mean(means), line))
    return [line for *_, line in sorted(ranked)]


def mixer_lines() -> str:
    """What mixers add to a step, in a sentence."""
    result = read("mixer")
    ratios = [f"{row['case']} {row['ratio']:.2f}x (to reach: {row['to reach']:.2f}x)" for row in result["rows"]]
    where = f"{result['machine']['processor']}, {result['machine']['instructions']}"
    return f"With mixers, times the same U-Net without, in float32 ({where}): {', '.join(ratios)}."


def kernel_rows(result: dict, head_width: int = 64) -> list[list[str]]:
    """One row a chip and dtype: the most that any kernel takes, the fewest programs at once."""
    rows = {}
    for row in result["kernels"]:
        if row["head_width"] == head_width:
            rows.setdefault((row["chip"], row["dtype"]), []).append(row)
    most = ("registers", "spilled", "shared")
    return [
        [*kind, *(str(max(row[what] for row in of_kind)) for what in most), str(min(r[AT_ONCE] for r in of_kind))]
        for kind, of_kind in rows.items()
    ]


def roofline_rows(result: dict) -> list[list[str]]:
    """One row a shape and dtype: milliseconds forward, and forward and backward."""
    rows = []
    for row in result["rows"]:
        where = ", ".join(map(str, row["shape"]))
        rows.append([f"({where})", row["dtype"], f"{row['forward ms']:.3f} ms", f"{row['both ms']:.3f} ms"])
    return rows


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TEXT = """Measured on {processor}, {threads} threads, torch {torch}, {date}; best of several turns.

## The mLSTM alone

Forward and backward, float32, by shape (batch, heads, tokens, width); the last two columns say how many times as long
others take:

{mlstm}

## A training step

Of the published `enc` network, batch 1; memory is what the step adds:

{step}

{mixers}

## The Triton kernels

Not measured: no GPU was there. Compiled, what the forward and backward pass take at most of a chip, for heads of 64 and
more; programs at once are those of one multiprocessor:

{kernels}

What an H200 could do at its ceilings ({memory:.1f} TB/s, {operations:.0f} TFLOP/s in bfloat16), predicted from counted
operations and bytes:

{roofline}

## Lesson 00

From top to bottom in profile `cpu`, and its mean foreground Dice on held-out images:

{lessons}

## Trained from scratch

On these cores for so many minutes (`python -m benchmarks.accuracy`) and tested on held-out cases, with the 95%
bootstrap interval of the mean over cases; one training each, so the luck of the seed is not in it:

{accuracy}

{comparison}## Import

Importing `xlstm_unet_lab` and its network builder takes {imports:.2f} times as long as `import torch`.

## Large volumes

{large}"""


COMPARISON = """## Networks in equal time

Every seed trained anew; mean over cases and seeds, with the 95% interval over cases. Settings are the same for all, but
SwinUNETR has the learning rate published for it and computes in float32, and `xlstm_unet_enc` has five stages where
`xlstm_unet_bot` and `unet` have four: with four, both mixers would be in the same place.

{table}

"""


def comparison() -> str:
    """The section on several networks in equal time; nothing as long as that has not been measured."""
    if not (RESULTS / "accuracy_comparison.json").exists():
        return ""
    header = ["data", "network", "weights", "processor", "minutes", "steps", "mean score", "every seed"]
    return COMPARISON.format(table=markdown(header, comparison_rows(read("accuracy_comparison"))))


def large_volumes() -> str:
    """What a volume of hundreds of slices takes to predict, and to look at in napari."""
    predicted, shown = read("large_volume"), read("overlay")
    sizes = [" x ".join(map(str, result["size"])) for result in (predicted, shown)]
    minutes, gigabytes = predicted["seconds"] / 60, predicted["gigabytes"]
    opening, scrolling = shown["seconds to open"], 1000 * shown["seconds a slice"]
    return (
        f"Predicting {sizes[0]} voxels, {predicted['classes']} classes, took {minutes:.0f} minutes and "
        f"{gigabytes:.1f} GB at the most.\nA case of {sizes[1]} voxels with {shown['labels']} labels opens in "
        f"napari in {opening:.1f} s, and the next slice shows after {scrolling:.0f} ms."
    )


def figures() -> str:
    """The whole section: what was measured where, in tables."""
    mlstm, step, lesson, imports = (read(name) for name in ("mlstm", "training_step", "first_lesson", "import_time"))
    machine = mlstm["machine"]
    runs = [(r["recipe"], f"{r['seconds'] / 60:.1f} min", f"{r['mean foreground Dice']:.3f}") for r in lesson["runs"]]
    trained = ["data", "network", "weights", "processor", "minutes", "steps", "mean score", "scores", "goal"]
    forms = ["shape", "chunkwise here", "best chunkwise of mlstm_kernels", "fastest S x S form"]
    return TEXT.format(
        processor=machine["processor"],
        threads=machine["torch_threads"],
        torch=machine["versions"]["torch"],
        date=machine["date"],
        mlstm=markdown(forms, mlstm_rows(mlstm)),
        step=markdown(["case", "time", "memory"], step_rows(step)),
        mixers=mixer_lines(),
        kernels=markdown(
            ["chip", "dtype", "registers", "spilled bytes", "shared bytes", "programs at once"],
            kernel_rows(read("triton_kernels")),
        ),
        memory=gpu.MEMORY / 1e12,
        operations=gpu.OPERATIONS / 1e12,
        roofline=markdown(["shape", "dtype", "forward", "forward and backward"], roofline_rows(read("mlstm_roofline"))),
        lessons=markdown(["data set", "time", "Dice"], [list(run) for run in runs]),
        accuracy=markdown(trained, accuracy_rows(read("accuracy_goals"))),
        comparison=comparison(),
        large=large_volumes(),
        imports=imports["ratios"]["import torch, xlstm_unet_lab.models.presets"],
    )


def insert(text: str, section: str) -> str:
    """The page with the section between the marks; ValueError when the marks are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"docs/benchmarks.md must hold the lines {START} and {END}: the figures go between them")
    return f"{before}{START}\n\n{section}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(insert(PAGE.read_text(), figures()))
