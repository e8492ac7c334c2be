"""Where a class stands, from its progress files: `python -m xlstm_unet_lab.course.authoring.class_report FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_unet_lab.course.checks import all_exercises
from xlstm_unet_lab.course.progress_file import PACKAGE, REVEALED, Attempts, read_progress
from xlstm_unet_lab.ops.files import write_whole
from xlstm_unet_lab.ops.words import printable

if TYPE_CHECKING:
    import pandas

    from xlstm_unet_lab.figures.picture import Picture

STATES = ("right", "not right yet", "not attempted")
LONGEST = 300  # signs of what is said of one file
Class = Mapping[str, Mapping[str, Attempts]]  # student -> exercise number -> what was done


def read_class(folder: str | Path) -> tuple[dict[str, dict[str, Attempts]], list[str]]:
    """Every progress file *.json below a folder by its student, and sentences about what was left out.

    A student is named by the file, or by the folder of a file called progress.json; of two files of one student the
    first in the order of paths counts. Links are not followed. Raises ValueError when there is no progress file.
    """
    folder = Path(folder)
    students, unread = {}, []
    for path in sorted(folder.rglob("*.json")):
        place = path.relative_to(folder)
        named = place.parent if path.stem == "progress" and place.parent.name else place.with_suffix("")
        name, file = printable(named.as_posix()), printable(place.as_posix())
        try:
            if path.is_symlink() or name in students:
                raise ValueError("it is a link" if path.is_symlink() else f"there is another file of {name!r}")
            entries = read_progress(path)
        except (OSError, ValueError) as error:
            unread.append(f"{file} was left out: {printable(error)[:LONGEST]}")
            continue
        students[name] = {number: entries[number] for number in all_exercises() if number in entries}
        if strangers := len(entries) - len(students[name]):
            unread.append(f"{file} names exercises that do not exist, {strangers} of them: they were left out")
    if not students:
        raise ValueError(f"there is no progress file (*.json) in {folder}: {'; '.join(unread) or 'collect them there'}")
    return students, unread


def exercise_table(students: Class) -> pandas.DataFrame:
    """One row an exercise: how many students are right, not right yet or have not attempted it, and what it took.

    median_tries: of those who are right, until they were. hints, reveals: students who asked for one. revealed: those
    who are right, but were shown a solution first. package: those who only had the package's own answer checked.
    """
    from pandas import DataFrame

    rows = []
    for number, exercise in all_exercises().items():
        done = [entries.get(number, Attempts()) for entries in students.values()]
        right = [one.tries for one in done if one.right]
        tried = sum(one.tries > 0 and not one.right for one in done)
        counts = dict(zip(STATES, (len(right), tried, len(done) - len(right) - tried), strict=True))
        asked = {"hints": sum(one.hints > 0 for one in done), "reveals": sum(one.reveals > 0 for one in done)}
        asked |= _how(done)
        tries = sorted(right)[(len(right) - 1) // 2] if right else None  # the lower median: a whole number
        rows.append({"exercise": number, "title": exercise.title} | counts | {"median_tries": tries} | asked)
    return DataFrame(rows).astype({"median_tries": "Int64"})


def student_table(students: Class) -> pandas.DataFrame:
    """One row a student: exercises right, tried and not right yet, hints and solutions asked for, last one right;
    revealed and package as in `exercise_table`."""
    from pandas import DataFrame

    rows = []
    for name, entries in students.items():
        done = entries.values()
        right = {number: one.right for number, one in entries.items() if one.right}
        tried = sum(one.tries > 0 and not one.right for one in done)
        asked = {"hints": sum(one.hints for one in done), "reveals": sum(one.reveals > 0 for one in done)} | _how(done)
        latest = max(right, key=right.get, default="")
        rows.append({"student": name, STATES[0]: len(right), STATES[1]: tried} | asked | {"latest": latest})
    return DataFrame(rows)


def _how(done: Collection[Attempts]) -> dict[str, int]:
    """How many right answers came after a solution was shown, and how many were the package's, which do not count."""
    return {how: sum(one.how == how for one in done) for how in (REVEALED, PACKAGE)}


def class_picture(table: pandas.DataFrame) -> Picture:
    """A bar an exercise: students who are right, not right yet, have not attempted it; table as `exercise_table`."""
    from xlstm_unet_lab.figures.picture import BLUE, GREY, ORANGE, Picture, new_figure

    figure = new_figure(8, 1.2 + 0.3 * len(table))
    axes = figure.add_subplot()
    start = 0 * table[STATES[0]]
    for state, colour, hatch in zip(STATES, (BLUE, ORANGE, "white"), ("", "//", ""), strict=True):
        axes.barh(table["exercise"], table[state], left=start, label=state, color=colour, hatch=hatch, edgecolor=GREY)
        start = start + table[state]
    axes.invert_yaxis()
    axes.set(xlabel="students", ylabel="exercise", xlim=(0, start.max()))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=len(STATES), frameon=False, fontsize=9)
    lines = [
        f"{row['exercise']} {', '.join(f'{row[state]} {state}' for state in STATES)}" for _, row in table.iterrows()
    ]
    return Picture(figure, f"Students by exercise. {'; '.join(lines)}.")


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write one HTML page about the progress files in a folder, figure and all; by default FOLDER/class_report.html.

    Nothing leaves this machine. Returns the page's path; raises ValueError as `read_class` does.
    """
    from xlstm_unet_lab.figures.report_page import html_page

    students, unread = read_class(folder)
    exercises = exercise_table(students)
    picture = class_picture(exercises)
    tables = (("Exercises", exercises), ("Students", student_table(students)))
    parts = [f"<p>{escape(words)}</p>" for words in (f"{len(students)} students.", *unread)]
    parts.append(f"<figure>{picture.html()}<figcaption>{escape(picture.description)}</figcaption></figure>")
    for title, table in tables:
        parts.append(f"<h2>{title}</h2>{table.to_html(index=False, border=0, na_rep='')}")
    page = html_page("Where the class stands", parts)
    return write_whole(out or Path(folder) / "class_report.html", page.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and print the table; returns the exit status: 0, or 1 when there is nothing to report."""
    parser = argparse.ArgumentParser(prog="python -m xlstm_unet_lab.course.authoring.class_report", description=__doc__)
    parser.add_argument("folder", type=Path, help="the progress files of the class, NAME.json or NAME/progress.json")
    parser.add_argument("--out", type=Path, help="the page (default: class_report.html in the folder)")
    options = parser.parse_args(arguments)
    try:
        page = report(options.folder, options.out)
        sys.stdout.write(
            f"{exercise_table(read_class(options.folder)[0]).to_string(index=False)}\nwrote {printable(page)}\n"
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{printable(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
