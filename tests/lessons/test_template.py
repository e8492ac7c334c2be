"""Every master has all parts of a lesson, explains its symbols and links to what is there; what lacks is named."""

import ast
import itertools

import pytest
from example_lesson import LESSON, TIME, write_lesson
from lesson_template import symbols, template_faults
from places import REPOSITORY

from xlstm_unet_lab.course import check
from xlstm_unet_lab.course.authoring.lesson import read_master, student_notebook
from xlstm_unet_lab.course.authoring.times import TIME_LINE, budget

MASTERS = sorted((REPOSITORY / "solutions").glob("[0-9][0-9]_*.py"))
MOST_CI_SECONDS = 11 * 60  # of all lessons: `make test` runs both notebooks of each
every_master = pytest.mark.parametrize("master", MASTERS, ids=lambda master: master.stem)


@every_master
def test_a_lesson_has_all_its_parts(master):
    assert template_faults(read_master(master), REPOSITORY) == []


def test_all_lessons_together_are_quick_to_test():
    assert sum(budget(read_master(master), "ci").seconds for master in MASTERS) <= MOST_CI_SECONDS


@every_master
@pytest.mark.parametrize("solved", [False, True], ids=["stub", "solution"])
def test_the_answers_of_the_notebooks_are_checked_as_they_stand(master, solved, monkeypatch, tmp_path):
    """The stub that students get is "not attempted yet", the master's solution right, with nothing but the imports."""
    monkeypatch.setenv("LAB_PROGRESS", str(tmp_path / "progress.json"))
    notebook = read_master(master)
    notebook = notebook if solved else student_notebook(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = [ast.parse(cell.source).body for cell in code if not cell.source.lstrip().startswith(("%", "!"))]
    imports = [line for body in lines for line in body if isinstance(line, (ast.Import, ast.ImportFrom))]
    namespace = {}
    exec(compile(ast.Module(imports, []), master.name, "exec"), namespace)
    for cell, after in itertools.pairwise(code):
        if "exercise" in cell.metadata:
            exec(compile(cell.source, master.name, "exec"), namespace)
            result = eval(after.source.strip(), namespace | {"check": check})
            assert result.passed if solved else "not attempted yet" in str(result), str(result)


# ------------------------------------------------------------------------------------------- what lacks is named


def faults_of(tmp_path, text):
    return template_faults(read_master(write_lesson(tmp_path, text)), tmp_path)


def test_the_example_lacks_nothing(tmp_path):
    assert faults_of(tmp_path, LESSON) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("**You will be able to**", "Soon you", r"the first cell has no **You will be able to**"),
        ("## What could go wrong", "### What could go wrong", "there is no section '## What could go wrong'"),
        ("](../docs/glossary.md#mask)", "]", "no link to the glossary"),
        ("# ## An open question", "# text\n# ## An open question", "must begin a cell of its own"),
        ('"widget", ', "", "0 cells have the tag 'widget', expected at least 1"),
        ('tags=["figure"]', "", "2 cells have the tag 'figure', expected at least 3"),
        (' tags=["instructor"]', "", "0 cells have the tag 'instructor'"),
        (TIME, "**Time.** not measured yet", "run it"),
        ("30 minutes of exercises", "25 minutes of exercises", "says 25 minutes of exercises, they add up to 30"),
        ('"cpu": 60, "gpu": 60} gig', '"cpu": 60} gig', "declares no budget for profile gpu"),
        ('seconds={"ci": 30', 'seconds={"ci": 91', "seconds=91 for profile ci must be above 0, at most 90"),
        ('gigabytes={"ci": 2', 'gigabytes={"ci": 3.5', "gigabytes=3.5 for profile ci must be above 0, at most 3"),
        ("### Exercise 00.2: ", "### Exercise: ", "does not say '### Exercise 00.2: '"),
        ("*About 8 minutes", "*About 80 minutes", "does not say '*About 8 minutes, difficulty 3 of 5.*'"),
        ('check("00.3", blend)', "1", 'the cell after exercise 00.3 is not check("00.3", name)'),
        ("$P$, ", "", "symbols that no list **Symbols.** explains: P"),
        (r"\hat{T}_i|", r"T_i|", r"explains: T"),
        ("|P ", "|", "explains and no formula uses: P"),
        ("#mask", "#musk", "leads to a heading that glossary.md does not have"),
        ("Takes ten", "See [it](gone.md) or ![it](https://example.org/a.png), ten", "gone.md leads nowhere"),
        ("Takes ten", '<img src="a.png">', "the link a.png leads nowhere from notebooks/"),
    ],
)
def test_what_lacks_is_named(tmp_path, old, new, message):
    assert old in LESSON
    found = "\n".join(faults_of(tmp_path, LESSON.replace(old, new)))
    assert message in found, found


def test_exercises_are_counted_and_rise(tmp_path):
    start, end = LESSON.index("# %% [markdown]\n# ### Exercise 00.1"), LESSON.index('# %% tags=["figure", "widget"')
    (found,) = [fault for fault in faults_of(tmp_path, LESSON[:start] + LESSON[end:]) if "exercises, expected" in fault]
    assert found == "0 exercises, expected at least 4"
    middle = LESSON.index("# %% [markdown]\n# ### Exercise 00.3")
    turned = LESSON[:start] + LESSON[middle:end] + LESSON[start:middle] + LESSON[end:]
    assert any("difficulty [3, 3, 2, 2] do not rise" in fault for fault in faults_of(tmp_path, turned))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"$C_t = f_t C_{t-1} + i_t\, v_t k_t^\top$", {"C", "t", "f", "i", "v", "k"}),
        (r"$$\tilde{n} \leq \max(\hat x, \bar{\alpha}, 1) QK$$", {r"\tilde n", r"\hat x", r"\bar \alpha", "Q", "K"}),
        (
            r"$\exp(x) \in \mathbb{R}^{\text{width}}, \operatorname{argmax}, \begin{aligned} a \\ b \end{aligned}$",
            set("xab"),
        ),
        (r"$\varepsilon + \sigma(\mathcal{L})$, `$HOME`, costs $5", {r"\varepsilon", r"\sigma", "L"}),
        ("no formula", set()),
    ],
)
def test_symbols_are_found(text, found):
    assert symbols(text) == found


@every_master
def test_the_readme_lists_the_lesson_with_its_minutes(master):
    number, slug = master.stem.split("_", 1)
    computing, _, _, exercises = TIME_LINE.search(master.read_text()).groups()
    rows = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if line.startswith(f"| {number} ")]
    assert len(rows) == 1 and f"[{slug}](notebooks/{master.stem}.ipynb)" in rows[0], rows
    assert rows[0].endswith(f"| {computing} + {exercises} |"), "write the measured minutes into the README's table"
