"""The anatomy that all lessons share, and what a master lacks of it. docs/writing_a_lesson.md explains the parts."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from xlstm_unet_lab.course.authoring.assignments import CHECK_CELL, OPEN_QUESTION, links
from xlstm_unet_lab.course.authoring.times import TIME_LINE, budget, exercise_minutes
from xlstm_unet_lab.course.profiles import PROFILES

HEADER = ("**You will be able to**", "**You need**", "**Time.**", "**Words.**")  # in the first cell
SECTIONS = ("## Key points", "## What could go wrong", "## An open question", "## Further reading")
TAGS = {"figure": 3, "widget": 1, "surprise": 1, "independent": 1, "nbval-check-output": 1, "instructor": 1}
FEWEST_EXERCISES = 4
BUDGETED = ("ci", "cpu", "gpu")
GLOSSARY = "../docs/glossary.md#"

# A dollar with a blank beside it, before a figure or in another paragraph closes nothing: prices are no formulas.
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?=\S)((?:(?!\n\s*\n)[^$])+?)(?<=\S)\$(?!\d)", re.DOTALL)
# Words inside a formula, sets of numbers and the names of environments are not symbols.
UPRIGHT = re.compile(r"\\(?:mathrm|mathbb|text|textbf|operatorname|begin|end|tag|label)\*?\s*\{[^{}]*\}|\\\\")
GREEK = (
    "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|"
    "(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell"
)
MARKED = r"\\(?:tilde|hat|bar)"
SYMBOL = re.compile(rf"(?:{MARKED}[\s{{]*)?(?:\\(?:{GREEK})(?![A-Za-z])|[A-Za-z])")
OTHER_COMMAND = re.compile(rf"\\(?!(?:tilde|hat|bar|{GREEK})(?![A-Za-z]))[A-Za-z]+")
SYMBOL_LIST = re.compile(r"\*\*Symbols\.\*\*(.*?)(?:\n\s*\n|\Z)", re.DOTALL)


def template_faults(master: NotebookNode, root: Path) -> list[str]:
    """Say everything a master lacks: parts, tags, budgets, minutes, defined symbols, links that lead somewhere.

    root: the folder that holds solutions/ and notebooks/. Whether an address on the web answers is not looked at.
    """
    checks = (_part_faults, _budget_faults, _exercise_faults, _symbol_faults)
    faults = [fault for look in checks for fault in look(master)]
    return faults + [fault for cell in _texts(master) for fault in _link_faults(cell.source, root)]


def _texts(master: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in master.cells if cell.cell_type == "markdown"]


def _part_faults(master: NotebookNode) -> Iterator[str]:
    first, everything = master.cells[0].source, "\n".join(cell.source for cell in _texts(master))
    for part in HEADER:
        if part not in first:
            yield f"the first cell has no {part}"
    for section in SECTIONS:
        if not re.search(rf"^{section}$", everything, re.MULTILINE):
            yield f"there is no section {section!r}"
    if GLOSSARY not in first:
        yield f"the words of the first cell have no link to the glossary, [word]({GLOSSARY}word)"
    if not any(cell.source.startswith(OPEN_QUESTION) for cell in _texts(master)):
        yield f"{OPEN_QUESTION!r} must begin a cell of its own, which nbgrader's answer cell follows"
    counts = Counter(tag for cell in master.cells for tag in cell.metadata.get("tags", ()))
    for tag, fewest in TAGS.items():
        if counts[tag] < fewest:
            yield f"{counts[tag]} cells have the tag {tag!r}, expected at least {fewest}"
    line = TIME_LINE.search(first)
    if line is None:
        yield "the line **Time.** of the first cell is not what `make course-times` writes: run it"
    elif int(line[4]) != exercise_minutes(master):
        yield f"the line **Time.** says {line[4]} minutes of exercises, they add up to {exercise_minutes(master)}"


def _budget_faults(master: NotebookNode) -> Iterator[str]:
    for name in BUDGETED:
        try:
            declared = budget(master, name)
        except ValueError as error:
            yield str(error)
            continue
        for what, value in declared._asdict().items():
            if not 0 < value <= getattr(PROFILES[name], what):
                yield f"{what}={value} for profile {name} must be above 0, at most {getattr(PROFILES[name], what)}"


def _exercise_faults(master: NotebookNode) -> Iterator[str]:
    places = [place for place, cell in enumerate(master.cells) if "exercise" in cell.metadata]
    if len(places) < FEWEST_EXERCISES:
        yield f"{len(places)} exercises, expected at least {FEWEST_EXERCISES}"
    difficulties = [master.cells[place].metadata["difficulty"] for place in places]
    if difficulties != sorted(difficulties):
        yield f"exercises of difficulty {difficulties} do not rise: put the hard ones last"
    for place in places:
        before, cell, after = ([*master.cells, NotebookNode(source="")][at] for at in (place - 1, place, place + 1))
        number, minutes, difficulty = (cell.metadata[what] for what in ("exercise", "minutes", "difficulty"))
        for words in (f"### Exercise {number}: ", f"*About {minutes} minutes, difficulty {difficulty} of 5.*"):
            if words not in before.source:
                yield f"the cell before exercise {number} does not say {words!r}"
        match = CHECK_CELL.fullmatch(after.source.strip())
        if match is None or match[1] != number:
            yield f'the cell after exercise {number} is not check("{number}", name) and nothing else'


def symbols(text: str) -> set[str]:
    r"""The letters that stand for something in the formulas of a text, with their mark: C, \alpha, \hat x.

    Upright words (\mathrm, \text, \operatorname) and text in backquotes do not count.
    """
    found = set()
    for match in FORMULA.finditer(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
        formula = OTHER_COMMAND.sub(" ", UPRIGHT.sub(" ", match[1] or match[2]))
        found |= {re.sub(r"[{\s]+", " ", symbol) for symbol in SYMBOL.findall(formula)}
    return found


def _symbol_faults(master: NotebookNode) -> Iterator[str]:
    text = "\n\n".join(cell.source for cell in _texts(master))
    lines = [line.partition(":") for line in "\n".join(SYMBOL_LIST.findall(text)).split("\n")]
    defined = symbols("\n".join(head for head, _, _ in lines))
    used = symbols("\n".join([SYMBOL_LIST.sub("\n\n", text), *(meaning for _, _, meaning in lines)]))
    if used - defined:
        yield f"symbols that no list **Symbols.** explains: {', '.join(sorted(used - defined))}"
    if defined - used:
        yield f"symbols that a list **Symbols.** explains and no formula uses: {', '.join(sorted(defined - used))}"


def _link_faults(text: str, root: Path) -> Iterator[str]:
    for target in links(text):
        name, _, anchor = target.partition("#")
        # The text stands in both notebooks, so a link must lead somewhere from both folders.
        for folder in ("notebooks", "solutions"):
            path = root / folder / name
            if not name or not path.exists():
                yield f"the link {target} leads nowhere from {folder}/"
            elif anchor and path.suffix == ".md" and anchor not in _anchors(path.read_text(encoding="utf-8")):
                yield f"the link {target} leads to a heading that {path.name} does not have"
                break


def _anchors(text: str) -> set[str]:
    """The headings of a page as links name them: small letters, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
