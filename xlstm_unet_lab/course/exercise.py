"""What an exercise is made of, and how an answer is run on its cases and compared with the reference."""

import copy
import functools
import inspect
import linecache
import numbers
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FEWEST_CASES, FEWEST_MISTAKES = 2, 4
NUMBER, ARRAY, TENSOR = COMPARABLE = ("a number", "a NumPy array", "a PyTorch tensor")


@dataclass(frozen=True)
class Case:
    """Arguments to try an answer on; every run gets a copy of its own."""

    description: str  # ends the sentence "The first that is not: ..."
    arguments: tuple


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer, as an edit of the reference, and the hint that whoever gives the same results must see.

    `old` is text that occurs exactly once in the source of the reference, as it stands there but for the indentation of
    the whole; `new` takes its place. Both may have line breaks. Two tuples of equal length are edits one after the
    other, each made in what the one before has left. What is edited runs where the reference does, so the names of its
    module are there. `Exercise.answer_of` makes the edit.
    """

    name: str
    old: str | tuple[str, ...]
    new: str | tuple[str, ...]
    hint: str

    @property
    def edits(self) -> tuple[tuple[str, str], ...]:
        """The pairs of what is replaced and what takes its place; ValueError where one of them has no partner."""
        old, new = ((text,) if isinstance(text, str) else text for text in (self.old, self.new))
        return tuple(zip(old, new, strict=True))


@dataclass(frozen=True)
class Exercise:
    """One exercise and everything its check needs; raises ValueError when a part is missing.

    The reference is a function, or a class, named like the student's. Compared are numbers, NumPy arrays, tensors,
    words, True or False, and tuples, lists and dictionaries of them.
    """

    number: str  # lesson, dot, position: "00.1"
    title: str
    goal: str  # one sentence
    minutes: int
    difficulty: int  # 1 (everybody at once) to 5 (an evening)
    reference: Callable
    cases: tuple[Case, ...]
    hints: tuple[str, ...]  # from a nudge to nearly the answer
    mistakes: tuple[Mistake, ...]
    not_tested: str  # sentences that say what a right answer leaves open
    tolerance: float = 1e-6  # largest difference allowed, relative to 1 + |expected|
    # use(answer, *arguments) where an answer is not simply called: a class to make an object of, a gradient to take. It
    # must return None where the answer gives None.
    use: Callable | None = None

    def __post_init__(self):
        rules = {
            "number must be lesson, dot, position, like '00.1'": re.fullmatch(r"\d\d\.[1-9]\d?", self.number),
            "difficulty must be 1 to 5": self.difficulty in range(1, 6),
            "minutes must be at least 1": self.minutes >= 1,
            f"give at least {FEWEST_CASES} cases": len(self.cases) >= FEWEST_CASES,
            f"plant at least {FEWEST_MISTAKES} mistakes": len(self.mistakes) >= FEWEST_MISTAKES,
            "give at least one hint": self.hints,
            "give every mistake its hint": all(mistake.hint for mistake in self.mistakes),
            "say what is not tested": self.not_tested.strip(),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"exercise {self.number!r}: {rule}")

    @property
    def argument_names(self) -> tuple[str, ...]:
        """The names of what a case hands over: the parameters of the reference, or those of `use` after the answer."""
        return tuple(inspect.signature(self.use or self.reference).parameters)[1 if self.use else 0 :]

    @property
    def solution(self) -> str:
        """The source of the reference."""
        return textwrap.dedent(inspect.getsource(self.reference)).rstrip()

    def answer_of(self, mistake: Mistake) -> Callable:
        """The wrong answer of a planted mistake, the same object every time.

        Raises ValueError, naming exercise and mistake, where what it replaces does not occur exactly once.
        """
        return _edited(self.reference, mistake, f"exercise {self.number}, mistake {mistake.name!r}")


@functools.cache
def _edited(reference: Callable, mistake: Mistake, name: str) -> Callable:
    """The function or class that the edited source of the reference defines; `name` is what errors call it."""
    source = textwrap.dedent(inspect.getsource(reference))
    for old, new in mistake.edits:
        if source.count(old) != 1:
            raise ValueError(f"{name}: {old!r} occurs {source.count(old)} times in the reference, expected once")
        source = source.replace(old, new)
    file = f"<{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
    names = dict(vars(inspect.getmodule(reference)))
    exec(compile(source, file, "exec"), names)
    return names[reference.__name__]


@dataclass(frozen=True)
class Outcome:
    """What happened when an answer was run on one case."""

    value: object = None
    error: Exception | None = None
    changed: tuple[str, ...] = ()  # names of the arguments the answer changed in place

    @property
    def is_empty(self) -> bool:
        """Whether the answer returned nothing, as an unsolved one does."""
        return self.error is None and all(leaf is None or leaf is Ellipsis for leaf in leaves(self.value))


def run(answer: Callable, exercise: Exercise) -> list[Outcome]:
    """Run an answer on a copy of every case; what it raises is part of the outcome, what it warns of is left out."""
    call = answer if exercise.use is None else functools.partial(exercise.use, answer)
    return [_run_case(call, case, exercise.argument_names) for case in exercise.cases]


def _run_case(answer: Callable, case: Case, names: tuple[str, ...]) -> Outcome:
    # One by one: copied together, an array given twice would stay one array, and a change to it would show twice.
    arguments = [copy.deepcopy(argument) for argument in case.arguments]
    value, error = None, None
    # A division by zero shows in the value; a warning about it would only repeat, in other words, what the check says.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            value = answer(*arguments)
        except Exception as raised:
            error = raised
    watched = zip(names, case.arguments, arguments, strict=True)
    changed = [name for name, old, new in watched if _was_changed(old, new)]
    return Outcome(value, error, tuple(changed))


def _was_changed(old: object, new: object) -> bool:
    """Whether numbers, arrays or tensors in an argument are others than before; of other things nothing is known."""
    before, after = ([leaf for leaf in leaves(value) if kind(leaf) in COMPARABLE] for value in (old, new))
    pairs = zip(before, after, strict=False)
    return len(before) != len(after) or not all(same_values(one, other, 0.0) for one, other in pairs)


def inside(value: object) -> dict:
    """What a dictionary, tuple or list holds, by key or index; empty for everything else."""
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, (tuple, list)) else {}


def leaves(value: object) -> Iterator[object]:
    """A value, or what it holds, down to what holds nothing further."""
    held = inside(value)
    if not held:
        yield value
    for one in held.values():
        yield from leaves(one)


def kind(value: object) -> str:
    """In words what sort of value this is."""
    if isinstance(value, Mapping):
        return f"a dictionary with the keys {sorted(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a sequence of length {len(value)}"
    if isinstance(value, (bool, np.bool_)):
        return "True or False"
    if isinstance(value, numbers.Real):
        return NUMBER
    if isinstance(value, np.ndarray):
        return ARRAY if value.dtype.kind in "biuf" else f"a NumPy array of dtype {value.dtype}"
    return TENSOR if hasattr(value, "detach") else f"a value of type {type(value).__name__}"


def as_numbers(value: object) -> np.ndarray:
    """A number, array or tensor as a float64 array of the same shape."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()  # NumPy knows no bfloat16
    return np.asarray(value, dtype=np.float64)


def close(expected: np.ndarray, got: np.ndarray, tolerance: float) -> np.ndarray:
    """Where two arrays agree: within tolerance * (1 + |expected|), both infinite alike, or both NaN."""
    return np.isclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def same_values(one: object, other: object, tolerance: float) -> bool:
    """Whether two results are of the same kind and shape and close in value, leaf by leaf; their dtypes may differ."""
    if kind(one) != kind(other):
        return False
    if held := inside(one):
        others = inside(other)
        return all(same_values(value, others[key], tolerance) for key, value in held.items())
    if kind(one) not in COMPARABLE:
        return one is other or (isinstance(one, (str, bool, np.bool_)) and one == other)
    one, other = as_numbers(one), as_numbers(other)
    return one.shape == other.shape and bool(close(one, other, tolerance).all())


def same_outcome(one: Outcome, other: Outcome, tolerance: float) -> bool:
    """Whether two answers did the same on a case: same error or same values, same arguments changed."""
    if type(one.error) is not type(other.error) or one.changed != other.changed:
        return False
    return one.error is not None or same_values(one.value, other.value, tolerance)
