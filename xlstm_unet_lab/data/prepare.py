"""Make a data set ready: download or take its files, unpack, convert, describe; go on where an earlier call stopped."""

import functools
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from xlstm_unet_lab.data.download import fetch, unpack
from xlstm_unet_lab.data.files import sync_tree
from xlstm_unet_lab.data.found import look_over
from xlstm_unet_lab.data.nnunet_raw import write_dataset_json, write_splits
from xlstm_unet_lab.data.normalise import NORMALISED
from xlstm_unet_lab.data.recipe import Recipe
from xlstm_unet_lab.data.registry import MAKE_ROOM, MARKER, Marker, find_recipe, own_facts, own_recipe, prepared_folder
from xlstm_unet_lab.ops.checks import flag
from xlstm_unet_lab.ops.files import as_path, write_whole
from xlstm_unet_lab.ops.progress import bar
from xlstm_unet_lab.ops.stored import read_fields, read_json

TASK = "task.json"  # what an unfinished folder is made of


def prepare(
    recipe: str | Recipe, root: str | Path | None = None, source: str | Path | None = None, progress: bool = True
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

    recipe, root = (recipe, root) if isinstance(recipe, Recipe) else find_recipe(recipe, root)
    source = None if source is None else as_path("source", source).absolute()
    flag("progress", progress)
    if recipe.splits is not None:  # nothing is to be made ready of such a folder
        if recipe.from_source is not None:
            _check_source(recipe, source)
            recipe, root = find_recipe(str(source))
        return recipe.folder(root)
    if recipe.from_source is not None:
        _check_source(recipe, source)
        assert source is not None  # files of one's own are somewhere
        recipe = own_recipe(recipe, source, root)
    folder = recipe.folder(root)
    partial = folder.parent / f".partial-{folder.name}"
    ready = _is_ready(recipe, source, root)
    if not ready:
        _check_source(recipe, source)
        folder.parent.mkdir(parents=True, exist_ok=True)
    elif not (partial.exists() and os.access(folder.parent, os.W_OK)):
        return folder  # before any lock: a course's shared folder may be read-only
    # Where the folder is ready, what a killed process left beside it goes, unless one is still at work there.
    wait = 0 if ready else -1
    with suppress(filelock.Timeout), filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=wait):
        if not _is_ready(recipe, source, root):  # another process may have made it meanwhile
            _make(recipe, source, folder, partial, progress)
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_source(recipe: Recipe, source: Path | None) -> None:
    if source is None and recipe.of_own_files:
        raise ValueError(f"{recipe.name} is made of your own files: {recipe.calls('your folder')}")
    if source is None and recipe.registration:
        how = f"register at {recipe.registration}, accept its terms, download the files"
        raise ValueError(f"{recipe.name} asks for registering: {how}, then {recipe.calls('the folder or archive')}")
    if source is not None and recipe.made_here:
        raise ValueError(f"{recipe.name} is made here from a seed and takes no source; got {source}")
    if source is not None and not source.exists():
        raise FileNotFoundError(f"source {source} does not exist; give a folder or a zip or tar archive")


def _is_ready(recipe: Recipe, source: Path | None, root: str | Path | None) -> bool:
    """Whether it is prepared already; FileExistsError if from another source than the one asked for."""
    folder = prepared_folder(recipe, root)
    if folder is None:
        return False
    recorded = (read_fields(folder / MARKER, Marker)["source"] or {}).get("path") or "the download"
    if source is not None and recorded != str(source):
        raise FileExistsError(f"{folder} was prepared from {recorded}, not from {source}: {MAKE_ROOM}")
    return True


def _make(recipe: Recipe, source: Path | None, folder: Path, partial: Path, progress: bool) -> None:
    """Make the folder in `partial` and move it to its place when it is whole and on the disk; the lock is held."""
    made = partial / folder.name
    try:
        archives, origin = _original_files(recipe, source, folder.parent / "downloads", progress)
        _continue_or_start(partial, {"name": recipe.name, "version": recipe.version, "source": origin})
        original = _unpacked(recipe, archives, origin, partial, progress) if archives else source
        _convert(recipe, original, made, origin, progress)
        sync_tree(made)
        os.rename(made, folder)
        sync_tree(folder.parent, recurse=False)
    except Exception as error:
        shutil.rmtree(made, ignore_errors=True)
        if any(path.name != TASK for path in partial.glob("*")):
            kept = f"What was done is kept in {partial}: put this right and prepare it again, or delete the folder"
            error.add_note(kept)
        else:  # nothing that the next call can go on from
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _original_files(recipe: Recipe, source: Path | None, downloads: Path, progress: bool) -> tuple[list[Path], dict]:
    """The archives to unpack, downloaded where there is no source, and where the data come from."""
    import pooch

    kind, archives = "made here" if recipe.made_here else "folder", {}
    if source is not None and source.is_file():
        kind, archives = "archive", {source: {"name": source.name, "sha256": pooch.file_hash(source)}}
    elif source is None and not recipe.made_here:
        kind = "download"
        for file in recipe.files:
            path, digest = fetch(file.address, file.sha256, downloads / file.name, progress, file.size)
            archives[path] = {"name": file.name, "address": file.address, "sha256": digest}
    return list(archives), {"kind": kind, "path": source and str(source), "files": list(archives.values())}


def _continue_or_start(partial: Path, task: dict) -> None:
    """Keep what an unfinished call left if its task was the same, else clear it away; the lock is held."""
    written = partial / TASK
    with suppress(OSError, ValueError):  # not there, or spoilt
        if read_json(written) == task:
            return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_whole(written, json.dumps(task).encode())


def _unpacked(recipe: Recipe, archives: list[Path], origin: dict, partial: Path, progress: bool) -> Path:
    """Unpack the archives into a folder in `partial`; one that is refused leaves nothing to go on from."""
    for number, archive in enumerate(archives):
        try:
            unpack(archive, partial / "unpacked", progress)
        except ValueError as error:
            shutil.rmtree(partial)
            # What came may be a page that says the server is busy, or half the file: kept, it would be met every time.
            if origin["kind"] == "download" and recipe.files[number].sha256 is None:
                archive.unlink()
                error.add_note("No checksum vouches for this download, so it was deleted: call again to get it anew")
            raise
    return partial / "unpacked"


def _convert(recipe: Recipe, original: Path | None, made: Path, origin: dict, progress: bool) -> None:
    """Write the cases into a new folder, then what describes them, and the marker last."""
    shutil.rmtree(made, ignore_errors=True)
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (made / part).mkdir(parents=True)
    track = functools.partial(bar, desc=f"converting {recipe.name}", unit="case", disable=not progress)
    facts = dict(recipe.convert(original, made, track))
    counts = write_dataset_json(made, recipe)
    if not (made / "splits_final.json").exists():  # a user's own
        write_splits(made, recipe.file_ending, recipe.group)
    marker = {"name": recipe.name, "version": recipe.version, "source": origin, "counts": counts, "facts": facts}
    marker |= {"read_as": NORMALISED, "own": own_facts(recipe), "found": look_over(recipe, made, progress)}
    (made / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
