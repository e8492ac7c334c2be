"""Trained networks from disk: a run directory, or one file that `Predictor.save` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from xlstm_unet_lab.data.cases import Facts
from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.data.registry import get_recipe, recipe_of
from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.inference.predictor import Predictor
from xlstm_unet_lab.inference.trained import known_of
from xlstm_unet_lab.models.presets import build
from xlstm_unet_lab.models.weights import load_tensors, load_weights

CHECKPOINTS = ("best", "last")


def is_run(path: str | Path) -> bool:
    """Whether a folder is a run directory."""
    return (Path(path) / "model.json").is_file()


def load_predictor(path: str | Path, which: str | None = None) -> Predictor:
    """The predictor in a run directory or in a file that `Predictor.save` wrote, on the CPU, in evaluation mode.

    which: of a run, the "best" or the "last" weights; None: the best, or the last where no validation chose.
    Raises FileNotFoundError for what is not there, and ValueError, with the fix, for another `which`, for a damaged
    file or one without the facts of a predictor, and for a network that `build` did not make.
    """
    path = Path(path).expanduser()
    weights = path if path.is_file() else _checkpoint(path, which)
    header = load_tensors(weights)[1]
    facts = header.get("facts", {})
    if "trained_on" not in facts and weights != path:
        facts = _facts_of_older_run(path, header)
    if "trained_on" not in facts:
        raise ValueError(f"{weights} holds weights alone: build their network and use load_weights(network, path)")
    if facts["build"] is None:
        raise ValueError(
            f"{path} does not say how its model was built, because xlstm_unet_lab.build did not make it: build it "
            f"yourself and call load_weights(model, {str(weights)!r})"
        )
    network = build(**facts["build"])
    load_weights(network, weights)
    return Predictor.from_json(network.eval(), facts["trained_on"]).remembered()


def load_run(run_directory: str | Path, which: str = "best") -> nn.Module:
    """The network of a run with its "best" or "last" weights; errors as `load_predictor`, which knows more than it."""
    return load_predictor(_checkpoint(Path(run_directory).expanduser(), which).parent, which).network


def facts_of_run(run_directory: str | Path, root: str | Path | None = None) -> Facts:
    """What data a run was trained on. Of a user's own data set the run itself says what it is; one trained before runs
    did needs `root`, where that is prepared. Raises KeyError for a recipe that is not there."""
    written, config = (_read_json(Path(run_directory) / name) for name in ("model.json", "config.json"))
    recipe: Recipe | None = recipe_of(written["own"]) if written.get("own") else None
    if recipe is None and written.get("recipe"):
        recipe = get_recipe(written["recipe"], root)
    sliced = recipe is not None and recipe.spatial_dims > len(config["patch_size"])
    return Facts(recipe, written.get("fold") or 0, (written.get("slice_axis") or 0) if sliced else None)


def _checkpoint(folder: Path, which: str | None) -> Path:
    """The weights of a run; FileNotFoundError, saying what there is, when they are not there."""
    if which not in (None, *CHECKPOINTS):
        raise ValueError(f"which is {which!r}; expected one of {CHECKPOINTS}")
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} is no run directory: it has no model.json, as fit(run_directory=...) writes")
    there = [name for name in CHECKPOINTS if (folder / f"{name}.safetensors").is_file()]
    which = which or (there or CHECKPOINTS)[0]
    if which not in there:
        raise FileNotFoundError(
            f"{folder} has no {which}.safetensors; it has {there or 'no checkpoint yet'}. Without a validation set "
            "there is no best one: which='last'"
        )
    return folder / f"{which}.safetensors"


def _facts_of_older_run(folder: Path, header: Mapping) -> dict:
    """What `Predictor.to_json` gives now, of a run whose checkpoints do not hold it yet."""
    targets = header.get("targets") and Targets.from_json(header["targets"])
    known = known_of(facts_of_run(folder), targets)
    patch_size, spacing = tuple(_read_json(folder / "config.json")["patch_size"]), header.get("training_spacing")
    described = Predictor(nn.Identity(), patch_size, spacing and tuple(spacing), **known).to_json()
    return described | {"build": _read_json(folder / "model.json")["build"]}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
