"""Trained networks from disk: a run directory, or one file that `Predictor.save` wrote."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from xlstm_unet_lab.data.cases import Facts
from xlstm_unet_lab.data.registry import get_recipe, recipe_of
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.models.weights import load_tensors, rebuild
from xlstm_unet_lab.ops.checks import one_of
from xlstm_unet_lab.ops.files import as_path
from xlstm_unet_lab.ops.stored import read_fields

CHECKPOINTS = ("best", "last")


class Written(TypedDict):
    """What is read of a run's model.json beside the arguments of its network."""

    own: Mapping[str, Any] | None  # the recipe of a user's own files
    recipe: str | None
    fold: int | None


def is_run(path: str | Path) -> bool:
    """Whether a folder is a run directory."""
    return (Path(path) / "model.json").is_file()


def load_predictor(path: str | Path, which: str | None = None) -> Predictor:
    """The predictor in a run directory or in a file that `Predictor.save` wrote, on the CPU, in evaluation mode.

    which: of a run, the "best" or the "last" weights; None: the best, or the last where no validation chose, with a
    warning where one did and the best are gone.
    Raises FileNotFoundError for what is not there, and ValueError, with the fix, for another `which`, for a damaged
    file or one without the facts of a predictor, and for a network that `build` did not make. Nothing that a file says
    is trusted, and nothing is downloaded for it: see `models.weights.rebuild`.
    """
    path = as_path("path", path)
    weights = path if path.is_file() else _checkpoint(path, which)
    tensors, header = load_tensors(weights)
    facts = header.get("facts", {})
    match facts:
        case {"progress": {"best": float()}} if which is None and path != weights == path / "last.safetensors":
            warnings.warn(f"{path} had best weights, and they are gone: these are its last ones", stacklevel=2)
    if "trained_on" not in facts:
        raise ValueError(f"{weights} holds weights alone: train it again, or build its network and use load_weights")
    if facts.get("build") is None:
        raise ValueError(f"{path} does not say how its model was built: build it and load_weights(model, {weights})")
    network = rebuild(facts["build"], tensors, str(weights))
    return Predictor.from_json(network.eval(), facts["trained_on"], str(weights)).remembered()


def load_run(run_directory: str | Path, which: str = "best") -> nn.Module:
    """The network of a run with its "best" or "last" weights; errors as `load_predictor`, which knows more than it."""
    return load_predictor(_checkpoint(as_path("run_directory", run_directory), which).parent, which).network


def facts_of_run(run_directory: str | Path) -> Facts:
    """What data a run was trained on: recipe and fold. Of a user's own data set the run itself says what it is.

    Raises KeyError for a recipe that is not there, ValueError, naming the file, for facts that are none.
    """
    path = Path(run_directory) / "model.json"
    written = read_fields(path, Written)
    own, name = written["own"], written["recipe"]
    recipe = recipe_of(own, str(path)) if own else get_recipe(name) if name else None
    return Facts(recipe, written["fold"] or 0)


def _checkpoint(folder: Path, which: str | None) -> Path:
    """The weights of a run; FileNotFoundError, saying what there is, when they are not there."""
    one_of("which", CHECKPOINTS[0] if which is None else which, CHECKPOINTS)
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} is no run directory: it has no model.json, as fit(run_directory=...) writes")
    there = [name for name in CHECKPOINTS if (folder / f"{name}.safetensors").is_file()]
    which = which or (there or CHECKPOINTS)[0]
    if which not in there:
        other = f"{there}: use which={there[0]!r}, in a shell --which {there[0]}" if there else "no checkpoint yet"
        raise FileNotFoundError(f"{folder} has no {which}.safetensors; it has {other}")
    return folder / f"{which}.safetensors"
