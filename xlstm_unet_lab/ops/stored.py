"""What comes back from files as JSON: within limits, whole, and of the kind that is expected."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from inspect import formatannotation
from pathlib import Path
from reprlib import repr as short
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from xlstm_unet_lab.ops.checks import is_number, is_whole

LARGEST = 2**26  # bytes; the largest file that is written here, the splits of 100,000 cases, has some 20 million
KINDS: dict[type, str] = {dict: "names with values, {...}", list: "a list, [...]"}


def read_json(path: str | Path, expected: type = dict) -> Any:
    """What a JSON file holds, at its top a dict or a list as `expected` says.

    Raises FileNotFoundError for a missing file and for what is no regular one, ValueError, naming the file, for more
    than LARGEST bytes and as `parse_json`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes, far more than is written here: it is another file")
    return parse_json(content, str(path), expected)


def parse_json(text: str | bytes, where: str, expected: type = dict) -> Any:
    """The same of a text that came from `where`.

    Raises ValueError for what is cut or no JSON, not UTF-8, nested too deeply, holds a name twice or a number that is
    not finite, and for another kind at its top.
    """
    try:
        found = json.loads(text, object_pairs_hook=_each_once, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON, or not whole ({error}): get it again, or make it anew") from error
    if not isinstance(found, expected):
        raise ValueError(f"{where} holds {short(found)}, expected {KINDS[expected]}: get it again, or make it anew")
    return found


def _each_once(pairs: list[tuple[str, object]]) -> dict:
    if len(found := dict(pairs)) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name!r} stands there twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def read_fields(path: Path, described: type) -> dict[str, Any]:
    """The fields of the class `described` in a JSON file, None where it has none; ValueError as `check_fields`."""
    facts = read_json(path)
    known = {name: facts.get(name) for name in get_type_hints(described)}
    check_fields(described, known, str(path))
    return known


def check_fields(described: type | Callable, facts: object, where: str = "") -> None:
    """ValueError, naming it, for a fact that is no field of a class or argument of a function, or not of its kind."""
    hints, where = get_type_hints(described), where and f"{where}: "
    if not isinstance(facts, Mapping):
        raise ValueError(f"{where}{short(facts)} is there, expected {', '.join(hints)} by name")
    for name, value in facts.items():
        if name not in hints:
            raise ValueError(f"{where}{name!r} is not known here: the file may come from a newer version")
        if not fits(value, hints[name]):
            kind = formatannotation(hints[name]).replace("collections.abc.", "")
            raise ValueError(f"{where}{name} is {short(value)}, expected {kind}")


def fits(value: object, hint: Any) -> bool:
    """Whether a value is what an annotation names; lists serve as tuples, whole numbers as numbers, True as neither."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind in (tuple, Sequence):
        return isinstance(value, tuple | list) and all(fits(one, parts[0]) for one in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if kind in (int, float):
        return is_number(value) if kind is float else is_whole(value, at_least=-(2**63))
    return kind is Any or isinstance(value, kind)
