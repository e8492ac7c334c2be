"""Find and list data sets: one `Recipe` a module in `data_recipes`, and those prepared from users' own files."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import pandas

from xlstm_unet_lab.data.normalise import NORMALISED
from xlstm_unet_lab.data.recipe import DESCRIBED, Recipe, data_root
from xlstm_unet_lab.ops.checks import did_you_mean, of_kind, one_of
from xlstm_unet_lab.ops.files import as_path
from xlstm_unet_lab.ops.stored import check_fields, read_fields

MARKER = "recipe.json"  # written last; a folder without it is not finished, or not ours
MAKE_ROOM = "move or delete it, or pass another root="  # what to do with a folder that is in the way
OWN_NUMBERS = range(501, 700)  # nnU-Net's numbers for data sets made of a user's own files


class Marker(TypedDict):
    """What is read of a marker."""

    name: str | None
    version: int | None
    source: Mapping[str, Any] | None
    found: Mapping[str, tuple[Mapping[str, Any], ...]] | None  # what lies in the folder, in tables
    read_as: int | None  # `normalise.NORMALISED` when it was prepared
    own: Mapping[str, Any] | None  # the recipe of a user's own files, where it was read off them


def recipe_names() -> list[str]:
    """The modules of `data_recipes`, in alphabetical order; its package `shared` is none."""
    modules = pkgutil.iter_modules(importlib.import_module("data_recipes").__path__)
    return sorted(module.name for module in modules if not module.ispkg and not module.name.startswith("_"))


def get_recipe(name: str, root: str | Path | None = None) -> Recipe:
    """The recipe of this name: a module of `data_recipes`, or what `prepare` read off a user's own files.

    Raises KeyError with the nearest name and the whole list when there is none.
    """
    names = recipe_names()
    of_kind("recipe", name, str)
    if name not in names:
        own, unreadable = _recorded(root)
        if name not in own:
            words = f"no recipe is named {name!r}: {did_you_mean(name, [*names, *own])}"
            where = f"your own files are looked for in {data_root(root)}: name another by root=, --root or LAB_DATA"
            path = f"a folder with {DESCRIBED} goes by its path"
            raise KeyError("; ".join([words, where, path, *unreadable.values()]))
        return own[name]
    recipe = importlib.import_module(f"data_recipes.{name}").RECIPE
    if recipe.name != name:
        raise ValueError(f"data_recipes/{name}.py describes a recipe named {recipe.name!r}; the two names must agree")
    return recipe


def find_recipe(name: str | Path, root: str | Path | None = None) -> tuple[Recipe, str | Path | None]:
    """The recipe of this name and where its data lie; or of a folder in nnU-Net's raw format, by its path or, under
    `root`, its name. Errors as `get_recipe`, and as its own recipe for a folder that does not fit."""
    of_kind("recipe", name, str, Path)
    path, known = as_path("recipe", name), str(name)
    for folder in (path.absolute(), data_root(root) / path) if known not in recipe_names() else ():
        if (folder / DESCRIBED).is_file():
            recipe = recipe_in(folder) or get_recipe("nnunet_raw").from_source(folder, {})  # type: ignore[misc]  # a function
            return recipe, folder.parent
    return get_recipe(known, root), root


def recipe_in(folder: Path, root: str | Path | None = None) -> Recipe | None:
    """The recipe that prepared a folder; None where none did. `root`: of a user's own files, where it was prepared."""
    marker = folder / MARKER
    return get_recipe(read_fields(marker, Marker)["name"], root or folder.parent) if marker.is_file() else None


def found_in(folder: Path) -> list[pandas.DataFrame]:
    """The tables of `found.look_over` that `prepare` kept of a folder; none of one that others made or old versions."""
    kept = read_fields(folder / MARKER, Marker)["found"] if (folder / MARKER).is_file() else None
    return [pandas.DataFrame(rows) for rows in (kept or {}).values()]


def own_recipes(root: str | Path | None = None) -> dict[str, Recipe]:
    """The data sets prepared from users' own files under `root`: name -> recipe, with the facts `prepare` recorded."""
    return _recorded(root)[0]


def _recorded(root: str | Path | None) -> tuple[dict[str, Recipe], dict[Path, str]]:
    """The same, and why other markers there cannot be read."""
    own, unreadable = {}, {}
    for path in sorted(data_root(root).glob(f"Dataset*/{MARKER}")):
        try:
            if facts := read_fields(path, Marker)["own"]:
                recipe = recipe_of(facts, str(path))
                own[recipe.name] = recipe
        except (OSError, ValueError) as error:
            unreadable[path] = str(error)
    return own, unreadable


def recipe_of(own: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a user's own files from what `own_facts` gave, as JSON brings it back from the file `where`.

    Raises ValueError, naming the file, for facts that are none.
    """
    facts: dict[str, Any] = {what: tuple(value) if isinstance(value, list) else value for what, value in own.items()}
    check_fields(Recipe, facts, where)
    try:
        template = get_recipe(one_of("read_by", facts.get("read_by"), recipe_names()))
        return replace(template, **{**facts, "from_source": None})
    except ValueError as error:
        raise ValueError(f"{where} describes no data set ({error}): prepare it again") from error


def own_recipe(template: Recipe, source: Path, root: str | Path | None) -> Recipe:
    """The recipe of a user's own files, under the number it had before or the first free one.

    Raises ValueError for a template that does not read a user's files, and for a folder called as a recipe here.
    """
    if template.from_source is None:
        raise ValueError(f"{template.name!r} is one data set and does not read folders of your own")
    own = own_recipes(root)
    recipe = template.from_source(source, own)
    if recipe.name in recipe_names():
        raise ValueError(f"{source} would be prepared as {recipe.name!r}, which is a recipe here: rename the folder")
    free = (number for number in OWN_NUMBERS if not any(data_root(root).glob(f"Dataset{number}*")))
    number = own[recipe.name].dataset_id if recipe.name in own else next(free)
    return replace(recipe, read_by=template.name, dataset_id=number)


def own_facts(recipe: Recipe) -> dict | None:
    """What tells a recipe of a user's own files from its template, as JSON can hold it; None for other recipes."""
    if recipe.read_by is None:
        return None
    template, code = get_recipe(recipe.read_by), ("convert", "from_source", "splits")
    differs = {name: value for name, value in vars(recipe).items() if value != getattr(template, name)}
    return {name: value for name, value in differs.items() if name not in code}


def list_recipes(root: str | Path | None = None) -> pandas.DataFrame:
    """A table of every recipe: name, title, what it holds, how it is scored, licence, how it comes, prepared or not.

    A folder whose own description cannot be read is listed too, with the reason as its title.
    """
    own, unreadable = _recorded(root)
    rows = []
    for recipe in [*map(get_recipe, recipe_names()), *own.values()]:
        row: dict[str, Any] = {"name": recipe.name, "title": recipe.title, "modality": recipe.modality}
        row |= {"dimensions": recipe.spatial_dims, "scored by": ", ".join(recipe.metrics), "size": _size(recipe)}
        row |= {"licence": recipe.licence, "homepage": recipe.homepage, "how it comes": _how_it_comes(recipe)}
        rows.append(row | {"prepared": (recipe.folder(root) / MARKER).is_file()})
    blank = dict.fromkeys(rows[0], "") | {"prepared": False}
    others = [blank | {"name": path.parent.name, "title": why} for path, why in unreadable.items()]
    return pandas.DataFrame([*rows, *others])


def _size(recipe: Recipe) -> str:
    if recipe.files:
        return f"{sum(file.size for file in recipe.files) / 1e6:,.0f} MB"
    return "not stated" if recipe.registration else ""  # phantoms and own files are not downloaded


def _how_it_comes(recipe: Recipe) -> str:
    if recipe.of_own_files:
        return "its path, as it stands" if recipe.splits else "source=, your own files"
    if recipe.registration:
        return f"source=, after registering at {recipe.registration}"
    return "made here" if recipe.made_here else "download or source="


def prepared_folder(recipe: Recipe, root: str | Path | None = None) -> Path | None:
    """The finished folder of a recipe, or None when there is no such folder yet.

    Raises FileExistsError when the folder was not made by this recipe in this version: it is never deleted silently.
    Raises ValueError for a recipe that stands for any of a user's own folders.
    """
    if recipe.from_source is not None:
        own = ", ".join(own_recipes(root)) or "none yet"
        raise ValueError(f"{recipe.name!r} takes the name of a folder: ask for it by that name. Prepared so far: {own}")
    folder = recipe.folder(root)
    if recipe.splits is not None or not folder.exists():
        return folder if folder.exists() else None
    if not (folder / MARKER).is_file():
        raise FileExistsError(f"{folder} exists and was not made by prepare, it holds no {MARKER}: {MAKE_ROOM}")
    facts = read_fields(folder / MARKER, Marker)
    found, expected = f"{facts['name']!r} version {facts['version']}", f"{recipe.name!r} version {recipe.version}"
    if found != expected:
        why = ", because the files are others or have changed since" if recipe.read_by else ""
        raise FileExistsError(f"{folder} was made by recipe {found}, this is {expected}{why}: {MAKE_ROOM}")
    if recipe.of_own_files and facts["read_as"] != NORMALISED:
        raise FileExistsError(f"{folder}: old versions read some files in another way: delete it and prepare it again")
    return folder
