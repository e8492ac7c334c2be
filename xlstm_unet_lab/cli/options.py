"""Options that commands share, each with its help."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Root = Annotated[Path | None, typer.Option(help="Where prepared data lives.", show_default="LAB_DATA, else your cache")]
Which = Annotated[str | None, typer.Option(help="Weights of the best validation, or the last ones: best, last.")]
Mirror = Annotated[bool, typer.Option("--mirror", help="Average over mirror images, if allowed: better, slower.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default="a GPU where there is one")]
Split = Annotated[str, typer.Option(help="Of a run's data set: test, val, train or all.")]
Fold = Annotated[int, typer.Option(help="Which of the five splits into training and validation.")]
RunFold = Annotated[int | None, typer.Option(help="Of a run's data set, for val and train.", show_default="its own")]
Recipe = Annotated[str | None, typer.Option(help="The data set that says what the labels mean.")]
Paths = Annotated[list[Path], typer.Argument(metavar="[RUN] INPUT...", help="A run or nnU-Net's results; then images.")]


def pairs(help: str) -> typer.models.OptionInfo:
    """An option that may be given several times, each time as NAME=VALUE."""
    return typer.Option(metavar="NAME=VALUE", help=help)
