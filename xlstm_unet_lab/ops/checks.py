"""What every call asks of its plain arguments, by one rule: whole numbers, sizes, spacings, numbers, flags, words.

A whole number is one of Python's or NumPy's. True and False are no numbers, and 2.0 is no whole one: what came out of a
division should be rounded by whoever knows how. Every check returns the value as a plain int, float, bool or tuple, and
raises ValueError that says the name, the value, what was expected and, in `fix`, what to do.
"""

import difflib
import math
import operator
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import TypeGuard, TypeVar

import numpy as np

LARGEST = sys.float_info.max  # of a number: Python's whole ones may be larger
MOST = 2**63 - 1  # of a whole number, in all libraries that count in 64 bits
VOXELS = {"at_least": 1e-6, "at_most": 1e6}  # mm: from a nanometre to a kilometre, squares of which float32 can hold
WIDEST = 2**16  # channels of a layer: more are a mistake, and more memory than there is
UNITS = ("mm", "pixel")  # of a spacing
KINDS = {"i": "integers", "f": "floats"}  # by NumPy's letters
Item = TypeVar("Item")
BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A clause for an error about an unknown word: the nearest known one, if any is near, and all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(str(word), known, n=1, cutoff=0.4)
    return f"{f'did you mean {nearest[0]!r}? ' if nearest else ''}there are {', '.join(known)}"


def tracked(track: Callable, items: Sequence[Item]) -> Iterator[Item]:
    """The items in their order, while what `track` makes of them, to draw a progress bar, is gone through as well.

    Raises TypeError where that is nothing to go through, ValueError where it is anything but these items.
    """
    end = object()
    try:
        steps = iter(track(items))
    except TypeError as error:
        raise TypeError(f"track is {reprlib.repr(track)}, expected a function like tqdm or iter ({error})") from error
    for item in (*items, end):  # a bar is finished once it is asked for more
        if next(steps, end) is not item:
            raise ValueError(f"what track gives is not the {len(items)} items that it gets, each in its place")
        if item is not end:
            yield item  # type: ignore[misc]  # one of the items, as it is not the end


def one_of(name: str, value: object, known: Iterable[str]) -> str:
    """The word, which is one of those known."""
    if isinstance(value, str) and value in known:
        return value
    raise ValueError(f"{name} is {value!r}: {did_you_mean(value, known)}")


def of_kind(name: str, value: object, *kinds: type, fix: str = "") -> None:
    """TypeError unless the value is of one of these kinds."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} is {reprlib.repr(value)}, expected {wanted}{fix}")


def as_array(name: str, value: object) -> np.ndarray:
    """The value as an array of NumPy's; ValueError for what is none, such as rows of several lengths."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected an array ({error})") from error


def array_of(name: str, value: object, kinds: str, *dimensions: int) -> np.ndarray:
    """An array with one of these kinds of dtype (NumPy's letters) and numbers of dimensions, and then not empty."""
    array = as_array(name, value)
    if array.dtype.kind not in kinds:
        words = " or ".join(KINDS[kind] for kind in kinds if kind in KINDS)
        raise TypeError(f"{name} is {reprlib.repr(value)} of dtype {array.dtype}, expected an array of {words}")
    if dimensions and (array.ndim not in dimensions or not array.size):
        wanted = " or ".join(map(str, dimensions))
        raise ValueError(f"{name} has shape {array.shape}, expected {wanted} axes, none empty")
    return array


def finite(name: str, array: np.ndarray, fix: str = "replace them first, as np.nan_to_num does") -> np.ndarray:
    """The array; ValueError, which says how many there are and where the first lies, for NaN or infinity in it."""
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array)).any():
        first = tuple(int(at) for at in np.unravel_index(bad.argmax(), bad.shape))
        raise ValueError(f"{name} holds {bad.sum()} values that are NaN or infinite, the first at {first}; {fix}")
    return array


def flag(name: str, value: object) -> bool:
    """The value, which is True or False."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name} is {value!r}, expected True or False")


def is_whole(value: object, at_least: int = 1, at_most: float = MOST) -> TypeGuard[Integral]:
    """Whether this is a whole number within bounds."""
    return isinstance(value, Integral) and not isinstance(value, bool) and at_least <= int(value) <= at_most


def whole_number(name: str, value: object, at_least: int = 1, at_most: float = MOST, fix: str = "") -> int:
    """The value, which is a whole number within bounds."""
    if is_whole(value, at_least, at_most):
        return int(value)
    open_end = at_most == MOST and not is_whole(value, MOST, math.inf)
    bounds = f"of at least {at_least}" if open_end else f"from {at_least} to {at_most}"
    raise ValueError(f"{name} is {value!r}, expected a whole number {bounds}{fix}")


def require_divisible(width: int, parts: int, what: str) -> int:
    """Return width // parts; ValueError naming `what` when the division leaves a rest or either number is below 1."""
    whole_number(f"the divisor of {what}", parts)
    if width < 1 or width % parts:
        near = sorted({parts * max(width // parts, 1), parts * max(width // parts + 1, 1)})
        raise ValueError(f"{what} is {width}, not divisible by {parts}: use {' or '.join(map(str, near))}")
    return width // parts


def checked_spatial_dims(spatial_dims: object) -> int:
    """The number of spatial dimensions, which is 2 or 3."""
    if is_whole(spatial_dims) and spatial_dims in (2, 3):
        return int(spatial_dims)
    raise ValueError(f"spatial_dims is {spatial_dims!r}, expected 2 or 3")


def sizes(name: str, values: object, *dimensions: int) -> tuple[int, ...]:
    """A list or tuple of whole numbers of at least 1, as many as one of `dimensions` says; any number without."""
    is_sequence = isinstance(values, list | tuple) and (not dimensions or len(values) in dimensions)
    if is_sequence and all(map(is_whole, values)):  # type: ignore[call-overload]
        return tuple(map(int, values))  # type: ignore[call-overload]
    count = f"{' or '.join(map(str, dimensions))} " if dimensions else ""
    order = ", in the order (z, y, x)" if dimensions else ""
    raise ValueError(f"{name} is {values!r}, expected a tuple of {count}whole numbers of at least 1{order}")


def is_number(value: object, **bounds: float) -> TypeGuard[Real]:
    """Whether this is a finite number within bounds: `at_least`, `above`, `at_most`, `below`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    value = float(str(value)) if isinstance(value, np.floating) else value  # NumPy's own comparison may overflow
    limits = {"at_least": -LARGEST, "at_most": LARGEST} | bounds  # NaN keeps to none
    return all(BOUNDS[bound](value, limit) for bound, limit in limits.items())


def number(name: str, value: object, fix: str = "", **bounds: float) -> float:
    """The value, which is a finite number within bounds: `at_least`, `above`, `at_most`, `below`."""
    if is_number(value, **bounds):
        # Of a narrow float the shortest decimal, which it means: 7.7, and not 7.699999809265137.
        return float(str(value)) if isinstance(value, np.floating) else float(value)
    limits = " and ".join(f"{bound.replace('_', ' ')} {limit}" for bound, limit in bounds.items())
    raise ValueError(f"{name} is {value!r}, expected a finite number {limits}{fix}")


def members(name: str, value: object) -> tuple[int, ...]:
    """The values of a label, or of a region of several: whole numbers from 0 on."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    values = (values,) if is_whole(values, 0) else values
    if isinstance(values, list | tuple) and values and all(is_whole(one, 0) for one in values):
        return tuple(map(int, values))
    raise ValueError(f"{name} is {value!r}, expected a whole number of at least 0, or several of a region")


def checked_spacing(spacing: object, dimensions: int, where: str = "") -> tuple[float, ...]:
    """A sequence of sizes of a voxel, one for each of `dimensions`: numbers from 1e-6 to 1e6."""
    values = list(spacing) if isinstance(spacing, np.ndarray) and spacing.ndim else spacing
    if isinstance(values, list | tuple) and len(values) == dimensions and all(is_number(x, **VOXELS) for x in values):
        return tuple(number("spacing", value) for value in values)
    raise ValueError(f"spacing{where} is {spacing!r}, expected {dimensions} finite numbers above 0, from 1e-6 to 1e6")
