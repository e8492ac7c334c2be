"""What a user says of files of their own in files beside them: labels.json names the numbers, splits.json the folds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xlstm_unet_lab.data.nnunet_raw import FOLDS
from xlstm_unet_lab.ops.checks import is_whole
from xlstm_unet_lab.ops.stored import fits, read_json

Folds = list[dict[str, list[str]]]
PARTS = ("train", "val", "test")


class Declared(NamedTuple):
    """What labels.json says."""

    names: dict[str, int] | None  # in the order of the numbers and without background; None where no label has a name
    flip_axes: tuple[int, ...] | None  # None: all
    regions: dict[str, tuple[int, ...]]  # unions of labels, by their numbers; empty: the labels themselves are learnt


def declared_labels(path: Path, spatial_dims: int) -> Declared:
    """What a labels.json says, or what holds without one: pictures are flipped along both axes, volumes along none."""
    usual = None if spatial_dims == 2 else ()
    if not path.is_file():
        return Declared(None, usual, {})
    names = read_json(path)
    flips, regions, axes = names.pop("flip_axes", None), names.pop("regions", None), range(spatial_dims)
    if flips is not None and not (
        isinstance(flips, list) and all(is_whole(axis, at_least=0) and axis in axes for axis in flips)
    ):
        raise ValueError(f'{path} holds "flip_axes": {flips}; a list of axes from 0 to {axes[-1]} is expected')
    flips = usual if flips is None else tuple(axis for axis in axes if axis in flips)
    if names == {}:
        return Declared(None, flips, declared_regions(path, {}, regions))
    numbers = list(names.values())
    if not all(is_whole(number, at_least=0) for number in numbers) or len(set(numbers)) != len(numbers):
        raise ValueError(
            f'{path} holds {names}; a number of its own for every name is expected, as in {{"nucleus": 1}}'
        )
    if names.get("background", 0) != 0 or (0 in numbers and "background" not in names):
        raise ValueError(f"{path} holds {names}; background is 0 and 0 is background")
    ordered = sorted(names.items(), key=lambda pair: pair[1])
    known = {name: number for name, number in ordered if number != 0}
    return Declared(known, flips, declared_regions(path, known, regions))


def declared_regions(path: Path, names: Mapping[str, int], regions: object) -> dict[str, tuple[int, ...]]:
    """Region -> label numbers, from lists of names or numbers; each label is in a region, each region paints one."""
    if regions is None:
        return {}
    shown = f'{path} holds "regions": {regions!r}'
    wanted = 'labels that are named here, as in {"tumour": 1, "oedema": 2, "regions": {"all": ["tumour", "oedema"]}}'
    if not isinstance(regions, dict) or not regions or not all(isinstance(x, list) and x for x in regions.values()):
        raise ValueError(f"{shown}; a list for each region is expected, of {wanted}")
    known: dict[str | int, int] = {number: number for number in names.values()}
    known.update(names)
    for members in regions.values():
        if any(not isinstance(one, str | int) or isinstance(one, bool) or one not in known for one in members):
            raise ValueError(f"{shown}; expected are {wanted}")
    found = {region: tuple(sorted({known[one] for one in members})) for region, members in regions.items()}
    if left := sorted(set(names.values()) - {number for numbers in found.values() for number in numbers}):
        raise ValueError(f"{shown}; no region holds the label {left[0]}: add it to one, or leave it out of the labels")
    try:
        painted_by(found)
    except ValueError as error:
        raise ValueError(f"{shown}; {error}") from error
    return found


def painted_by(regions: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The label that each region paints, later regions over earlier ones: the first that is in no later one.

    Raises ValueError for a region of which later ones leave nothing.
    """
    painted: list[int] = []
    later: set[int] = set()
    for region, numbers in reversed([*regions.items()]):
        left = [number for number in numbers if number not in later]
        if not left:
            raise ValueError(f"later regions paint over all of {region!r}: name the larger regions first")
        painted.append(left[0])
        later |= set(numbers)
    return tuple(reversed(painted))


def declared_folds(path: Path, names: Collection[str]) -> tuple[Folds, set[str]] | None:
    """The folds in a splits.json and the cases held out for testing, or None where there is no such file.

    It holds one {"train": [...], "val": [...], "test": [...]} or a list of them, with the names of cases; "val" and
    "test" may be left out. Cases that it does not name are held out too. Raises ValueError, naming the file, for
    anything else, for a case that is not there, and for one that is in two parts.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        is_list = file.read(64).lstrip().startswith(b"[")
    given = read_json(path, list) if is_list else [read_json(path)]
    wanted = '{"train": [names of cases], "val": [...], "test": [...]}, or a list of such folds'
    if not given or not all(
        fits(fold, Mapping[str, tuple[str, ...]]) and {"train"} <= {*fold} <= {*PARTS} and fold["train"]
        for fold in given
    ):
        raise ValueError(f"{path} holds something else than {wanted}")
    folds = [{part: list(fold.get(part, ())) for part in PARTS} for fold in given]
    learnt = {name for fold in folds for part in ("train", "val") for name in fold[part]}
    tested = {name for fold in folds for name in fold["test"]}
    if strangers := sorted((learnt | tested) - set(names)):
        raise ValueError(f"{path} names {strangers[:3]}, of which there is no image with a label")
    twice = [name for fold in folds for name in fold["train"] if name in fold["val"]] + sorted(learnt & tested)
    twice += [name for fold in folds for part in PARTS for name in fold[part] if fold[part].count(name) > 1]
    if twice:
        raise ValueError(f"{path} names {twice[0]!r} twice: a case is to train, to validate or to test on")
    return [{part: fold[part] for part in ("train", "val")} for fold in folds], set(names) - learnt


def folds_of_few(names: Sequence[str]) -> Folds | None:
    """Folds of fewer than five cases: each validates on one; a single case leaves none for that. None for more."""
    if len(names) >= FOLDS:
        return None
    if len(names) == 1:
        return [{"train": [*names], "val": []}]
    return [{"train": [name for name in names if name != one], "val": [one]} for one in names]
