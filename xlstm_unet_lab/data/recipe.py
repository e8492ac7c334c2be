"""What a data set is, where it comes from, and how it is prepared: one `Recipe` a module in `data_recipes`."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from xlstm_unet_lab.data.download import DEFAULT_LIMITS, UnpackLimits, fetch, sha256_of, unpack
from xlstm_unet_lab.data.nnunet_raw import FOLDS, sync_tree, write_dataset_json, write_splits
from xlstm_unet_lab.ops.checks import did_you_mean

if TYPE_CHECKING:
    import pandas

__all__ = ["FOLDS", "Recipe", "RemoteFile", "get_recipe", "list_recipes", "prepare", "prepared_folder", "recipe_names"]

MARKER = "recipe.json"  # written last; a folder without it is not finished, or not ours
Track = Callable[[Iterable], Iterable]  # wraps what a recipe loops over, to draw a progress bar


@dataclass(frozen=True)
class RemoteFile:
    """A file to download. `sha256=None` says that no checksum is published: what arrives is recorded and warned about.

    Raises ValueError for an address that is not https (plain http is accepted from this machine only).
    """

    address: str
    sha256: str | None
    size: int  # bytes, for the table of data sets; the checksum decides what is accepted
    name: str  # the file name to store it under

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
            raise ValueError(f"address {self.address!r} must start with https://")
        if Path(self.name).name != self.name or not self.name:
            raise ValueError(f"name {self.name!r} must be a plain file name")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The facts of one data set, and `convert`, which turns its original files into nnU-Net's raw format.

    `convert(source, out, track)` reads the folder `source` (None for what is made here), writes every case with
    `nnunet_raw.write_case`, loops through `track(...)` so that progress shows, and returns facts to record.
    """

    name: str  # as its module is called
    dataset_id: int  # nnU-Net's number
    title: str
    modality: str
    spatial_dims: int
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]  # "background" is 0, the others count on from 1
    colours: Mapping[str, str]  # "#RRGGBB" for each label but the background
    metrics: tuple[str, ...]
    tolerances: Mapping[str, float]  # for the surface Dice of each label, in `spacing_unit`
    spacing_unit: str  # "mm" or "pixel"
    file_ending: str  # ".png" or ".nii.gz"
    licence: str
    citation: str
    homepage: str
    convert: Callable[[Path | None, Path, Track], Mapping] = field(repr=False)
    files: tuple[RemoteFile, ...] = ()  # what is public to download
    registration: str | None = None  # where to register, for data that must not be downloaded without
    unpack_limits: UnpackLimits = DEFAULT_LIMITS  # what its archives may grow to
    version: int = 1  # count up when what convert writes changes

    def __post_init__(self) -> None:
        foreground = set(self.labels) - {"background"}
        if list(self.labels.values()) != list(range(len(self.labels))) or next(iter(self.labels), "") != "background":
            raise ValueError(f"labels {dict(self.labels)} must start with background 0 and count on by one")
        for what in ("colours", "tolerances"):
            if set(getattr(self, what)) != foreground:
                raise ValueError(
                    f"{what} name {sorted(getattr(self, what))}; expected one for each of {sorted(foreground)}"
                )
        choices = {
            "spatial_dims": (2, 3),
            "spacing_unit": ("mm", "pixel"),
            "file_ending": (".png", ".nii.gz"),
            "dataset_id": range(1, 1000),
        }
        for what, allowed in choices.items():
            if getattr(self, what) not in allowed:
                raise ValueError(f"{what} is {getattr(self, what)!r}; expected one of {allowed}")

    @property
    def made_here(self) -> bool:
        """Whether the data set is generated from a seed and needs no files."""
        return not self.files and self.registration is None

    def folder(self, root: str | Path | None = None) -> Path:
        """Where the prepared data set lies: DatasetNNN_name under `root`."""
        return data_root(root) / f"Dataset{self.dataset_id:03d}_{self.name}"


def data_root(root: str | Path | None = None) -> Path:
    """Where prepared data lives: `root`, else the environment variable LAB_DATA, else a folder in the user's cache."""
    import pooch

    return Path(root or os.environ.get("LAB_DATA") or pooch.os_cache("xlstm-unet-lab")).expanduser().absolute()


def recipe_names() -> list[str]:
    """The modules of `data_recipes`, in alphabetical order."""
    package = importlib.import_module("data_recipes")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def get_recipe(name: str) -> Recipe:
    """The recipe of this name; KeyError with the nearest name and the whole list when there is none."""
    names = recipe_names()
    if name not in names:
        raise KeyError(f"no recipe is named {name!r}: {did_you_mean(name, names)}")
    recipe = importlib.import_module(f"data_recipes.{name}").RECIPE
    if recipe.name != name:
        raise ValueError(f"data_recipes/{name}.py describes a recipe named {recipe.name!r}; the two names must agree")
    return recipe


def list_recipes(root: str | Path | None = None) -> pandas.DataFrame:
    """A table of every recipe: name, title, modality, dimensions, size, licence, how it comes, prepared or not."""
    import pandas

    recipes = [get_recipe(name) for name in recipe_names()]
    return pandas.DataFrame(
        {
            "name": recipe.name,
            "title": recipe.title,
            "modality": recipe.modality,
            "dimensions": recipe.spatial_dims,
            "size": f"{sum(file.size for file in recipe.files) / 1e6:,.0f} MB" if recipe.files else "",
            "licence": recipe.licence,
            "how it comes": _how_it_comes(recipe),
            "prepared": (recipe.folder(root) / MARKER).is_file(),
        }
        for recipe in recipes
    )


def _how_it_comes(recipe: Recipe) -> str:
    if recipe.registration:
        return "source=, after registering"
    return "made here" if recipe.made_here else "download or source="


def prepared_folder(recipe: Recipe, root: str | Path | None = None) -> Path | None:
    """The finished folder of a recipe, or None when there is no such folder yet.

    Raises FileExistsError when the folder was not made by this recipe in this version: it is never deleted silently.
    """
    folder = recipe.folder(root)
    if not folder.exists():
        return None
    what_to_do = "move or delete it, or pass another root="
    if not (folder / MARKER).is_file():
        raise FileExistsError(f"{folder} exists and was not made by prepare, it holds no {MARKER}: {what_to_do}")
    facts = json.loads((folder / MARKER).read_text())
    found, expected = (facts.get("name"), facts.get("version")), (recipe.name, recipe.version)
    if found != expected:
        raise FileExistsError(
            f"{folder} was made by recipe {found[0]!r} version {found[1]}, this is {expected[0]!r} version "
            f"{expected[1]}: {what_to_do}"
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
    without it the files are downloaded, or made here. The folder appears only when it is complete, and two processes
    may call this at once: one works, the other waits.
    Raises KeyError for an unknown recipe, FileExistsError when the place is taken by something else, FileNotFoundError
    when `source` is missing, OSError when a download fails, ValueError when files are not what the recipe expects or
    the data can only be had by registering.
    """
    import filelock

    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    source = None if source is None else Path(source).expanduser().absolute()
    _check_source(recipe, source)
    folder = recipe.folder(root)
    if prepared_folder(recipe, root) is not None:  # before any lock: a course's shared folder may be read-only
        _check_same_source(folder, source)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
        if prepared_folder(recipe, root) is not None:
            _check_same_source(folder, source)
            return folder
        partial = folder.parent / f".partial-{folder.name}"
        # Only a process that was killed leaves this folder: whoever works on it holds the lock.
        shutil.rmtree(partial, ignore_errors=True)
        try:
            made = partial / folder.name
            made.mkdir(parents=True)
            original, origin = _original_files(recipe, source, folder.parent / "downloads", partial, progress)
            track = functools.partial(_progress_bar, f"converting {recipe.name}") if progress else iter
            _build(recipe, original, made, origin, track)
            sync_tree(made)
            os.rename(made, folder)
            sync_tree(folder.parent, recurse=False)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_source(recipe: Recipe, source: Path | None) -> None:
    if source is None and recipe.registration:
        raise ValueError(
            f"{recipe.name} may not be downloaded without registering: register at {recipe.registration}, accept its "
            f"terms, download the files, then call prepare({recipe.name!r}, source=the folder or archive)"
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


def _original_files(
    recipe: Recipe, source: Path | None, downloads: Path, partial: Path, progress: bool
) -> tuple[Path | None, dict]:
    """The folder to convert from, and where it came from."""
    if recipe.made_here:
        return None, {"kind": "made here", "path": None, "files": []}
    if source is not None and source.is_dir():
        return source, {"kind": "folder", "path": str(source), "files": []}
    if source is not None:
        archives = {source: {"name": source.name, "sha256": sha256_of(source)}}
    else:
        fetched = [(file, *fetch(file.address, file.sha256, downloads / file.name, progress)) for file in recipe.files]
        archives = {
            path: {"name": file.name, "address": file.address, "sha256": digest} for file, path, digest in fetched
        }
    for archive in archives:
        unpack(archive, partial / "unpacked", recipe.unpack_limits)
    kind, path = ("download", None) if source is None else ("archive", str(source))
    return partial / "unpacked", {"kind": kind, "path": path, "files": list(archives.values())}


def _build(recipe: Recipe, original: Path | None, made: Path, origin: dict, track: Track) -> None:
    """Write the cases, then what describes them, and the marker last."""
    facts = recipe.convert(original, made, track)
    counts = write_dataset_json(made, recipe)
    write_splits(made, recipe.file_ending)
    marker = {"name": recipe.name, "version": recipe.version, "source": origin, "counts": counts, "facts": dict(facts)}
    (made / MARKER).write_text(json.dumps(marker, indent=2) + "\n")


def _progress_bar(description: str, items: Iterable) -> Iterable:
    from tqdm.auto import tqdm

    return tqdm(items, desc=description)
