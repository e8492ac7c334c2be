"""What a student has done so far, kept in one small file on this machine and shown by `progress()`."""

import html
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from reprlib import repr as short

from filelock import FileLock

from xlstm_unet_lab.course.checks import all_exercises
from xlstm_unet_lab.ops.checks import one_of
from xlstm_unet_lab.ops.files import write_whole

VARIABLE = "LAB_PROGRESS"
FORMAT = 1
PATIENCE = 10  # seconds to wait for another notebook that writes the same file
MOST_BYTES, MOST_STEPS = 2**20, 10**6  # of a file, and of the tries or hints at one exercise
FIRST_YEAR = 2020  # of this course: clocks that are wrong begin long before
OWN, REVEALED, PACKAGE = "own", "revealed", "package"  # how a right answer came


@dataclass(frozen=True)
class Attempts:
    """What a student did on one exercise."""

    tries: int = 0  # answers checked until the first right one
    hints: int = 0
    reveals: int = 0
    right: str = ""  # when an answer of the student's was first right, UTC in ISO 8601; empty: not yet
    how: str = ""  # how it came: OWN, REVEALED (after a solution was shown), or PACKAGE, which is none of theirs

    def __str__(self) -> str:
        if self.right:
            return "right, after a solution was shown" if self.how == REVEALED else "right"
        if self.how == PACKAGE:
            return f"only the package's own answer was checked, own tries: {self.tries}"
        return f"not right yet, tries: {self.tries}" if self.tries else "not attempted yet"


@dataclass(frozen=True)
class Progress:
    """The exercises of one lesson or of all; shows itself as a table in JupyterLab and as text elsewhere."""

    path: Path  # of the file, to hand in or to copy to another machine
    attempts: Mapping[str, Attempts]  # by exercise number
    trouble: str = ""  # what was wrong with the file

    @property
    def heading(self) -> str:
        """How many exercises are right."""
        right = sum(bool(one.right) for one in self.attempts.values())
        where = f"kept in {self.path.name}; progress().path says where that is"
        return f"{right} of {len(self.attempts)} exercises are right ({where})"

    def _rows(self) -> list[tuple[str, ...]]:
        exercises = all_exercises()
        return [
            (number, exercises[number].title, str(one), str(one.hints), "yes" if one.reveals else "no")
            for number, one in self.attempts.items()
        ]

    def __str__(self) -> str:
        lines = [
            f"{number} {title}: {state}; hints: {hints}; solution seen: {seen}"
            for number, title, state, hints, seen in self._rows()
        ]
        return "\n".join([self.heading, *lines, *([self.trouble] if self.trouble else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        names = ("Exercise", "Title", "State", "Hints", "Solution seen")
        head = "".join(f'<th scope="col">{name}</th>' for name in names)
        body = "".join(
            f'<tr><th scope="row">{number}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
            for number, *cells in self._rows()
        )
        caption = html.escape(" ".join([f"{self.heading}.", self.trouble]).strip())
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def progress(lesson: str = "") -> Progress:
    """Where the student stands, in the exercises of one lesson ("00") or of all.

    Raises ValueError for a lesson without exercises. A damaged file is set aside, and the copy before it is read.
    """
    numbers = [number for number in all_exercises() if number.startswith(lesson)]
    if not numbers:
        known = sorted({number[:2] for number in all_exercises()})
        raise ValueError(f"there are no exercises of lesson {lesson!r}: give one of {', '.join(known)}, or nothing")
    path, kept, trouble = progress_path(), {}, ""
    try:
        with _locked(path):
            kept, trouble = _load(path)
    except OSError as error:
        trouble = f"Your progress cannot be read: {error.strerror or error}."
    return Progress(path, {number: kept.get(number, Attempts()) for number in numbers}, trouble)


def note(
    number: str, *, tries: int = 0, hints: int = 0, reveals: int = 0, right: bool = False, own: bool = True
) -> str:
    """Add to what is kept of an exercise; returns an empty text or, in a sentence, what is wrong with the file.

    Tries are counted until the first right answer; one that is not the student's `own` is none. A file that cannot be
    written stops no lesson: the sentence says so.
    """
    path = progress_path()
    try:
        with _locked(path):
            kept, trouble = _load(path)
            before = kept.get(number, Attempts())
            after = replace(before, hints=before.hints + hints, reveals=before.reveals + reveals)
            if not before.right:
                after = replace(after, tries=before.tries + tries * own)
            if right and not before.right:
                now = datetime.now(UTC).isoformat(timespec="seconds") if own else ""
                after = replace(after, right=now, how=PACKAGE if not own else REVEALED if before.reveals else OWN)
            if after != before:
                if path.exists():
                    write_whole(_copy_of(path), path.read_bytes(), like=path)
                write_whole(path, _to_bytes(kept | {number: after}))
    except OSError as error:
        return f"Your progress was not kept: {error.strerror or error}. Set {VARIABLE} to a file that can be written."
    return trouble


def progress_path() -> Path:
    """The file: the environment variable LAB_PROGRESS, else .xlstm-unet-lab/progress.json in the home folder."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".xlstm-unet-lab" / "progress.json").expanduser().absolute()


def read_progress(path: str | Path) -> dict[str, Attempts]:
    """The content of a progress file; ValueError, naming the file, for anything else, OSError if it cannot be read."""
    facts = Path(path).stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > MOST_BYTES:  # reading a pipe or a device may never end
        raise OSError(f"{Path(path).name} is no regular file of at most {MOST_BYTES:,} bytes")
    try:
        content = json.loads(Path(path).read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {short(content['format'])}, expected {FORMAT}")
        kept = {str(number): Attempts(**entry) for number, entry in content["exercises"].items()}
        for attempts in kept.values():
            for field in fields(attempts):
                value = getattr(attempts, field.name)
                if type(value) is not field.type or (field.type is int and not 0 <= value <= MOST_STEPS):
                    raise ValueError(f"{field.name} is {short(value)}")
            one_of("how", attempts.how, ("", OWN, REVEALED, PACKAGE))
            if attempts.right and (datetime.fromisoformat(attempts.right).year < FIRST_YEAR or attempts.how == PACKAGE):
                raise ValueError(f"right is {attempts.right!r}, how is {attempts.how!r}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{Path(path).name} is no progress file of this course: {error}") from error
    return kept


def _to_bytes(kept: Mapping[str, Attempts]) -> bytes:
    exercises = {number: asdict(kept[number]) for number in sorted(kept)}
    return (json.dumps({"format": FORMAT, "exercises": exercises}, indent=1) + "\n").encode()


def _copy_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")


def _locked(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=PATIENCE)


def _load(path: Path) -> tuple[dict[str, Attempts], str]:
    """What is kept, and a sentence if the file was damaged: it is then set aside, and the copy before it counts."""
    try:
        return read_progress(path), ""
    except FileNotFoundError:
        return {}, ""
    except ValueError:
        path.replace(path.with_name(f"{path.name}.damaged"))
    try:
        return read_progress(_copy_of(path)), "Your progress file was damaged; all but the last step was restored."
    except (OSError, ValueError):
        return {}, f"Your progress file was damaged: it is now {path.name}.damaged, and a new one begins."
