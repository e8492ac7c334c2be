"""Find, list and prepare data sets: one `Recipe` a module in `data_recipes`, each prepared into a folder."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_unet_lab.data.download import fetch, sha256_of, unpack
from xlstm_unet_lab.data.files import sync_tree
from xlstm_unet_lab.data.nnunet_raw import FOLDS, write_dataset_json, write_splits
from xlstm_unet_lab.data.recipe import Recipe, RemoteFile, Track, data_root
from xlstm_unet_lab.ops.checks import did_you_mean
from xlstm_unet_lab.ops.files import write_whole

if TYPE_CHECKING:
    import pandas

__all__ = [
    "FOLDS",
    "Recipe",
    "RemoteFile",
    "Track",
    "data_root",
    "get_recipe",
    "list_recipes",
    "own_facts",
    "own_recipes",
    "prepare",
    "prepared_folder",
    "recipe_names",
    "recipe_of",
]

MARKER = "recipe.json"  # written last; a folder without it is not finished, or not ours
TASK = "task.json"  # what an unfinished folder is made of
OWN_NUMBERS = range(501, 700)  # nnU-Net's numbers for data sets made of a user's own files


def recipe_names() -> list[str]:
    """The modules of `data_recipes`, in alphabetical order."""
    package = importlib.import_module("data_recipes")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def get_recipe(name: str, root: str | Path | None = None) -> Recipe:
    """The recipe of this name: a module of `data_recipes`, or what `prepare` read off a user's own files.

    Raises KeyError with the nearest name and the whole list when there is none.
    """
    names = recipe_names()
    if name not in names:
        own = own_recipes(root)
        if name not in own:
            raise KeyError(
                f"no recipe is named {name!r}: {did_you_mean(name, [*names, *own])}; data sets of your own files are "
                f"looked for in {data_root(root)}: name another place by root=, --root or LAB_DATA"
            )
        return own[name]
    recipe = importlib.import_module(f"data_recipes.{name}").RECIPE
    if recipe.name != name:
        raise ValueError(f"data_recipes/{name}.py describes a recipe named {recipe.name!r}; the two names must agree")
    return recipe


def own_recipes(root: str | Path | None = None) -> dict[str, Recipe]:
    """The data sets prepared from users' own files under `root`: name -> recipe, with the facts `prepare` recorded."""
    recorded = (json.loads(path.read_text()).get("own") for path in sorted(data_root(root).glob(f"Dataset*/{MARKER}")))
    return {own["name"]: recipe_of(own) for own in filter(None, recorded)}


def recipe_of(own: Mapping) -> Recipe:
    """The recipe of a user's own files from what `own_facts` gave, as JSON brings it back."""
    facts = {what: tuple(value) if isinstance(value, list) else value for what, value in own.items()}
    return replace(get_recipe(own["read_by"]), from_source=None, **facts)


def _own_recipe(template: Recipe, source: Path, root: str | Path | None) -> Recipe:
    """The recipe of a user's own files, under the number it had before or the first free one."""
    own = own_recipes(root)
    recipe = template.from_source(source, own)
    if recipe.name in recipe_names():
        raise ValueError(f"{source} would be prepared as {recipe.name!r}, which is a recipe here: rename the folder")
    taken = {folder.name[: len("Dataset000")] for folder in data_root(root).glob("Dataset*")}
    free = (number for number in OWN_NUMBERS if f"Dataset{number}" not in taken)
    number = own[recipe.name].dataset_id if recipe.name in own else next(free)
    return replace(recipe, read_by=template.name, dataset_id=number)


def own_facts(recipe: Recipe) -> dict | None:
    """What tells a recipe of a user's own files from its template, as JSON can hold it; None for other recipes."""
    if recipe.read_by is None:
        return None
    template, code = get_recipe(recipe.read_by), ("convert", "from_source")
    names = [field.name for field in fields(Recipe) if field.name not in code]
    return {name: getattr(recipe, name) for name in names if getattr(recipe, name) != getattr(template, name)}


def list_recipes(root: str | Path | None = None) -> pandas.DataFrame:
    """A table of every recipe: name, title, what it holds, how it is scored, licence, how it comes, prepared or not."""
    import pandas

    recipes = [*(get_recipe(name) for name in recipe_names()), *own_recipes(root).values()]
    return pandas.DataFrame(
        {
            "name": recipe.name,
            "title": recipe.title,
            "modality": recipe.modality,
            "dimensions": recipe.spatial_dims,
            "scored by": ", ".join(recipe.metrics),
            "size": _size(recipe),
            "licence": recipe.licence,
            "homepage": recipe.homepage,
            "how it comes": _how_it_comes(recipe),
            "prepared": (recipe.folder(root) / MARKER).is_file(),
        }
        for recipe in recipes
    )


def _size(recipe: Recipe) -> str:
    if recipe.files:
        return f"{sum(file.size for file in recipe.files) / 1e6:,.0f} MB"
    return "not stated" if recipe.registration else ""  # phantoms and own files are not downloaded


def _how_it_comes(recipe: Recipe) -> str:
    if recipe.of_own_files:
        return "source=, your own files"
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
        raise ValueError(
            f"{recipe.name!r} prepares folders of your own, each under the folder's name; ask for it by that name. "
            f"Prepared so far: {own}"
        )
    folder = recipe.folder(root)
    if not folder.exists():
        return None
    what_to_do = "move or delete it, or pass another root="
    if not (folder / MARKER).is_file():
        raise FileExistsError(f"{folder} exists and was not made by prepare, it holds no {MARKER}: {what_to_do}")
    facts = json.loads((folder / MARKER).read_text())
    found, expected = (facts.get("name"), facts.get("version")), (recipe.name, recipe.version)
    if found != expected:
        why = ", because the files are others or have changed since" if recipe.read_by else ""
        raise FileExistsError(
            f"{folder} was made by recipe {found[0]!r} version {found[1]}, this is {expected[0]!r} version "
            f"{expected[1]}{why}: {what_to_do}"
        )
    return folder


def prepare(
    recipe: str | Recipe,
    root: str | Path | None = None,
    source: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Get a data set ready in nnU-Net's raw format and return its folder; at once when it is ready already.

    root: where prepared data lives (see `data_root`). source: a folder or a zip or tar archive in the original layout;
    without it the files are downloaded, or made here. `prepare("folder", source=...)` takes images and labels of your
    own (see data_recipes/folder.py); the data set is called as their folder.
    The folder appears only when it is complete, and two processes may call this at once: one works, the other waits.
    Interrupted, killed or stopped by an error (a full disk, a broken file), it goes on when it is called again: what
    was downloaded, unpacked and converted by then is kept in a hidden folder beside, which a note on the error names.
    Of an archive that is refused nothing is kept but the download, and not that where no checksum vouches for it.
    Raises KeyError for an unknown recipe, FileExistsError when the place is taken by something else, FileNotFoundError
    when `source` is missing, OSError when a download fails, ValueError when files are not what the recipe expects or
    the data can only be had by registering.
    """
    import filelock

    recipe = get_recipe(recipe, root) if isinstance(recipe, str) else recipe
    source = None if source is None else Path(source).expanduser().absolute()
    if recipe.from_source is not None:
        _check_source(recipe, source)
        recipe = _own_recipe(recipe, source, root)
    folder = recipe.folder(root)
    if prepared_folder(recipe, root) is not None:  # before any lock: a course's shared folder may be read-only
        _check_same_source(folder, source)
        return folder
    _check_source(recipe, source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
        if prepared_folder(recipe, root) is not None:
            _check_same_source(folder, source)
            return folder
        partial = folder.parent / f".partial-{folder.name}"
        made = partial / folder.name
        try:
            archives, origin = _original_files(recipe, source, folder.parent / "downloads", progress)
            # Only a call that did not finish leaves this folder: whoever works on it holds the lock.
            _continue_or_start(partial, {"name": recipe.name, "version": recipe.version, "source": origin})
            original = _unpacked(recipe, archives, origin, partial) if archives else source
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            track = functools.partial(_progress_bar, f"converting {recipe.name}") if progress else iter
            _build(recipe, original, made, origin, track)
            sync_tree(made)
            os.rename(made, folder)
            sync_tree(folder.parent, recurse=False)
        except Exception as error:
            _keep_or_clear(partial, made, error)
            raise
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _continue_or_start(partial: Path, task: dict) -> None:
    """Keep the folder an unfinished call left if it had the same task; else make it anew."""
    written = partial / TASK
    if written.exists() and json.loads(written.read_text()) == task:
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_whole(written, json.dumps(task).encode())


def _keep_or_clear(partial: Path, made: Path, error: Exception) -> None:
    """After an error: keep what the next call can go on from, and say so; else nothing."""
    shutil.rmtree(made, ignore_errors=True)
    if any(path.name != TASK for path in partial.glob("*")):
        error.add_note(
            f"What was unpacked and converted by then is kept in {partial}: put this right and prepare it again, which "
            "goes on from there, or delete that folder"
        )
    else:
        shutil.rmtree(partial, ignore_errors=True)


def _unpacked(recipe: Recipe, archives: list[Path], origin: dict, partial: Path) -> Path:
    """Unpack the archives into a folder in `partial`; one that is refused leaves nothing to go on from."""
    for number, archive in enumerate(archives):
        try:
            unpack(archive, partial / "unpacked", recipe.unpack_limits)
        except ValueError as error:
            shutil.rmtree(partial)
            # What came may be a page that says the server is busy, or half the file: kept, it would be met every time.
            if origin["kind"] == "download" and recipe.files[number].sha256 is None:
                archive.unlink()
                error.add_note("No checksum vouches for this download, so it was deleted: call again to get it anew")
            raise
    return partial / "unpacked"


def _check_source(recipe: Recipe, source: Path | None) -> None:
    if source is None and recipe.of_own_files:
        raise ValueError(
            f"{recipe.name} is made of your own files: call prepare({recipe.name!r}, source=your folder) in Python or "
            f"xlstm-unet-lab prepare {recipe.name} --source FOLDER in a shell"
        )
    if source is None and recipe.registration:
        raise ValueError(
            f"{recipe.name} may not be downloaded without registering: register at {recipe.registration}, accept its "
            f"terms, download the files, then call prepare({recipe.name!r}, source=the folder or archive) in Python or "
            f"xlstm-unet-lab prepare {recipe.name} --source PATH in a shell"
        )
    if source is not None and recipe.made_here:
        raise ValueError(f"{recipe.name} is made here from a seed and takes no source; got {source}")
    if source is not None and not source.exists():
        raise FileNotFoundError(f"source {source} does not exist; give a folder or a zip or tar archive")


def _check_same_source(folder: Path, source: Path | None) -> None:
    recorded = json.loads((folder / MARKER).read_text())["source"]["path"]
    if source is not None and recorded != str(source):
        raise FileExistsError(
            f"{folder} was prepared from {recorded or 'the download'}, not from {source}: move or delete it, or pass "
            "another root="
        )


def _original_files(recipe: Recipe, source: Path | None, downloads: Path, progress: bool) -> tuple[list[Path], dict]:
    """The archives to unpack, downloaded where there is no source, and where the data come from."""
    if recipe.made_here:
        return [], {"kind": "made here", "path": None, "files": []}
    if source is not None and source.is_dir():
        return [], {"kind": "folder", "path": str(source), "files": []}
    if source is not None:
        archives = {source: {"name": source.name, "sha256": sha256_of(source)}}
    else:
        fetched = [(file, *fetch(file.address, file.sha256, downloads / file.name, progress)) for file in recipe.files]
        archives = {
            path: {"name": file.name, "address": file.address, "sha256": digest} for file, path, digest in fetched
        }
    kind, path = ("download", None) if source is None else ("archive", str(source))
    return list(archives), {"kind": kind, "path": path, "files": list(archives.values())}


def _build(recipe: Recipe, original: Path | None, made: Path, origin: dict, track: Track) -> None:
    """Write the cases, then what describes them, and the marker last."""
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (made / part).mkdir()
    facts = recipe.convert(original, made, track)
    counts = write_dataset_json(made, recipe)
    write_splits(made, recipe.file_ending, recipe.group)
    marker = {"name": recipe.name, "version": recipe.version, "source": origin, "counts": counts, "facts": dict(facts)}
    marker |= {"own": own_facts(recipe)} if recipe.of_own_files else {}
    (made / MARKER).write_text(json.dumps(marker, indent=2) + "\n")


def _progress_bar(description: str, items: Iterable) -> Iterable:
    from tqdm.auto import tqdm

    return tqdm(items, desc=description)
