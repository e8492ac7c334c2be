"""The frame of the command line: errors in one line, options that commands share, results as a table or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from xlstm_unet_lab.ops.words import printable, tells_of_full_memory

if TYPE_CHECKING:
    import pandas

# As a newcomer goes.
ORDER = ("doctor", "prepare", "models", "train", "predict", "evaluate", "report", "view", "nnunet", "bench")

# What the library raises on purpose, for what cannot be as it was asked for and for what goes wrong on the way;
# anything else is a bug and keeps its traceback.
WRONG_USAGE = (ValueError, KeyError, TypeError)
# UsageError, of click or of the copy of it in newer versions of typer; its message is as that of its kinds.
MISUSED = cast(type[typer.BadParameter], typer.BadParameter.__base__)
EXPECTED = (*WRONG_USAGE, OSError, FloatingPointError, ImportError)


class Commands(TyperGroup):
    """Commands whose errors from the library end in a line of words, and one a note, instead of a traceback."""

    def list_commands(self, context):
        return sorted(super().list_commands(context), key=ORDER.index)

    def invoke(self, context):
        try:
            return super().invoke(context)
        except MISUSED as error:
            error.message = printable(error.message)
            raise
        except (*EXPECTED, MemoryError, RuntimeError) as error:
            full = tells_of_full_memory(error)
            if context.params.get("debug") or not (full or isinstance(error, EXPECTED)):
                raise
            words = error.args[0] if isinstance(error, KeyError) and error.args else error
            notes = [*getattr(error, "__notes__", ()), *([self._needs_less(context)] if full else ())]
            typer.secho("\n".join(map(printable, [f"error: {words}", *notes])), fg="red", err=True)
            raise typer.Exit(2 if isinstance(error, WRONG_USAGE) else 1) from error

    def _needs_less(self, context):
        """What to do when memory is full, by the options that the command has."""
        options = {name for parameter in self.commands[context.invoked_subcommand].params for name in parameter.opts}
        smaller = " or ".join(name for name in ("--batch-size", "--patch-size") if name in options)
        return f"Memory is full: use a smaller {smaller or 'network, free some, or take a machine with more'}"


LOOKS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(
    cls=Commands,
    **LOOKS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A first run: xlstm-unet-lab doctor, then xlstm-unet-lab train phantom_microscopy --steps 200, "
    "then xlstm-unet-lab report runs/phantom_microscopy-xlstm_unet_enc-fold0",
)


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False) -> None:
    """Train xLSTM-UNet and other segmentation networks, predict with them, and measure how well they do."""
    # --debug is read from the context, in Commands


def room_for(file: Path | None) -> None:
    """Make the folder that a result will go to, before hours are spent on the result."""
    if file is not None and file.is_dir():
        raise typer.BadParameter(f"{file} is a folder: name the file to write")
    if file is not None:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)


def parse_sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    """`64,64` as (64, 64)."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"{option} is {text!r}, expected whole numbers with commas between, such as 64,64")
    return tuple(int(part) for part in parts)


def parse_pairs(option: str, texts: list[str] | None) -> dict:
    """`NAME=VALUE` as a dict, each value read as JSON where it is JSON and taken as a word elsewhere."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{option} is {text!r}, expected NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            found[name] = value
    return found


def say(*lines: object, err: bool = False) -> None:
    """Print lines to standard output, or error; of names that others chose, nothing that a terminal takes for an order,
    and no line breaks."""
    typer.echo("\n".join(map(printable, lines)), err=err)


def print_facts(facts: dict, as_json: bool) -> None:
    """A name and a value a line, or JSON."""
    if as_json:
        return print_json(facts)
    for name, value in facts.items():
        say(f"{name:<16} {value:.4g}" if isinstance(value, float) else f"{name:<16} {value}")


def print_table(table: pandas.DataFrame, as_json: bool) -> None:
    """JSON, or a row a line: pandas leaves no line breaks in cells."""
    print_json(table.to_dict("records")) if as_json else say(*table.to_string(index=False).split("\n"))


def print_json(value: object) -> None:
    """Valid JSON: a number that is not finite, which JSON does not know, becomes null, as in tables."""
    finite = json.loads(json.dumps(value), parse_constant=lambda word: None)
    typer.echo(json.dumps(finite, indent=2))


def chosen_device(device: str | None) -> str:
    """The device asked for, which is here; None: a GPU where there is one."""
    from xlstm_unet_lab.ops.devices import available_devices, checked_device

    return available_devices()[0] if device is None else str(checked_device(device, "--device"))
