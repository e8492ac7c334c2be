"""Commands about this machine, its data and its nnU-Net: doctor, models, prepare, nnunet, bench."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import xlstm_unet_lab as lab
from xlstm_unet_lab.cli.app import app, parse_sizes, print_json, print_table, say
from xlstm_unet_lab.cli.options import Json, Root


@app.command()
def doctor(as_json: Json = False, root: Root = None) -> None:
    """Look at this machine: versions, devices, kernels, screen, data, and what to do where something lacks.

    The exit code is 1 when something does.
    """
    from xlstm_unet_lab.cli.doctor import doctor as examine

    found = examine(root)
    if as_json:
        print_json([finding._asdict() for finding in found])
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            say(f"{'ok  ' if finding.ok else 'LACK'}  {finding.name:<{width}}  {finding.value}")
            if finding.advice:
                typer.secho(f"      {'':<{width}}  -> {finding.advice}", dim=finding.ok, bold=not finding.ok)
    raise typer.Exit(int(not all(finding.ok for finding in found)))


@app.command()
def models(
    patch_size: Annotated[str | None, typer.Option(help="Measure each for images of this size: 128,128.")] = None,
    in_channels: Annotated[int, typer.Option(help="Channels of an image.")] = 1,
    num_classes: Annotated[int, typer.Option(help="Classes, the background included.")] = 2,
    trained: Annotated[bool, typer.Option("--trained", help="List only the trained ones that ship.")] = False,
    as_json: Json = False,
) -> None:
    """List the networks that `train --model` knows, then those that ship trained, with their scores on held-out cases.

    With --patch-size also parameters and multiply-adds of the first.
    """
    if not trained:
        sizes = parse_sizes("--patch-size", patch_size)
        print_table(lab.list_models(in_channels=in_channels, num_classes=num_classes, patch_size=sizes), as_json)
    if trained or not as_json:
        table = lab.list_trained()
        narrow = table.drop(columns="channels").rename(columns={"spatial_dims": "dims"})
        print_table(table if as_json else narrow, as_json)


@app.command()
def prepare(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Data sets: see --list.")] = None,
    source: Annotated[Path | None, typer.Option(help="A folder or archive you have, in the original layout.")] = None,
    root: Root = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the data sets, and which are prepared.")] = False,
    as_json: Json = False,
) -> None:
    """Download or make data sets, convert them to nnU-Net's raw format, and print their folders.

    Beside them (as errors go, so that folders can be handed on) it prints
    what was found: labels, sizes, spacings, intensities.
    """
    from xlstm_unet_lab.data.registry import found_in

    if show_list:
        return print_table(lab.list_recipes(root), as_json)
    if not names:
        raise typer.BadParameter("name a data set, or use --list to see them all")
    if source is not None and len(names) > 1:
        raise typer.BadParameter("--source belongs to one data set: name only that one")
    folders = {name: str(lab.prepare(name, root=root, source=source)) for name in names}
    if as_json:
        return print_json(folders)
    for folder in folders.values():
        for table in found_in(Path(folder)):
            say(*table.to_string(index=False).split("\n"), "", err=True)
        say(folder)


@app.command()
def nnunet(
    what: Annotated[str, typer.Argument(metavar="trainers|plans", help="The folder of our trainers, or small plans.")],
    dataset: Annotated[str, typer.Argument(help="For plans: the number of a preprocessed data set.")] = "",
) -> None:
    """Train inside nnU-Net: print the folder for nnUNet_extTrainer, or write plans for a processor."""
    from xlstm_unet_lab.nnunet.plans import told

    say(told(what, dataset))


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Which; if none, all quick ones.")] = None,
) -> None:
    """Run the measurements of a checkout and keep their results in its benchmarks/results/."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks" / "__main__.py").is_file():
        raise FileNotFoundError(f"{checkout} has no benchmarks: they come with the repository: clone it")
    raise typer.Exit(subprocess.run([sys.executable, "-m", "benchmarks", *(names or [])], cwd=checkout).returncode)
