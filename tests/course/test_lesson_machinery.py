"""From master to notebooks: what is taken out, what is kept, the same bytes every time, and faults that are named."""

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from xlstm_unet_lab.course.authoring import build
from xlstm_unet_lab.course.authoring.lesson import (
    OutputWidget,
    execute,
    notebook_bytes,
    read_master,
    solution_notebook,
    student_notebook,
    write_notebook,
)

DICE = """# %% exercise="00.1"
def dice(prediction, truth):
    pass  ### SOLUTION
"""
SOLVED = """def dice(prediction, truth):
    ### BEGIN SOLUTION
    total = prediction.sum() + truth.sum()
    if total == 0:
        return 1.0
    return 2 * (prediction & truth).sum() / total
    ### END SOLUTION"""
MASTER = f"""# %% [markdown]
# # A lesson
# pass  ### SOLUTION
# in a text is only text.

# %% [markdown] tags=["instructor"]
# Takes ten minutes.

# %%
import os
import matplotlib.pyplot as plt
import numpy as np
from xlstm_unet_lab.course import check
os.environ["LAB_PROFILE"]

{DICE}
# %%
check("00.1", dice)

# %% [markdown] tags=["solution"]
# The sizes are added, not joined.

# %% tags=["nbval-check-output"]
print("text")

# %%
# NBVAL_CHECK_OUTPUT
print("more text")

# %%
import ipywidgets
figure = plt.subplots(figsize=(1, 1))
plt.show()
ipywidgets.interactive(lambda a: print("a is", a), a=(1, 3))
"""


@pytest.fixture
def write_master(tmp_path):
    def write(text, name="00_example.py"):
        path = tmp_path / "solutions" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A repository with one lesson, built once."""
    root = tmp_path_factory.mktemp("repository")
    (root / "solutions").mkdir()
    (root / "solutions" / "00_example.py").write_text(MASTER, encoding="utf-8")
    assert build.main(["--root", str(root)]) == 0
    return root


def text_of(cell):
    return "".join(output.get("text", "") or output.data["text/plain"] for output in cell.outputs)


# ------------------------------------------------------------------------------------------- what students get


def test_the_solution_comes_from_the_reference_and_gives_way_to_a_stub(write_master):
    master = read_master(write_master(DICE))
    (solved,), (stub,) = solution_notebook(master).cells, student_notebook(master).cells
    assert solved.source == SOLVED
    assert stub.source == "def dice(prediction, truth):\n    ...  # your code here"
    assert stub.metadata == solved.metadata == {"exercise": "00.1", "minutes": 5, "difficulty": 2}
    namespace = {}
    exec(stub.source, namespace)
    assert namespace["dice"](None, None) is None


def test_several_gaps_keep_what_is_between_them(write_master):
    between = "    if total == 0:\n        pass  ### SOLUTION\n    return 2"
    master = read_master(write_master(f"{DICE}{between} * (prediction & truth).sum() / total\n"))
    (solved,), (stub,) = solution_notebook(master).cells, student_notebook(master).cells
    assert stub.source.split("\n")[1:] == [
        "    ...  # your code here",
        "    if total == 0:",
        "        ...  # your code here",
        "    return 2 * (prediction & truth).sum() / total",
    ]
    marked = [line for line in solved.source.split("\n") if "SOLUTION" not in line]
    assert marked == [line for line in SOLVED.split("\n") if "SOLUTION" not in line]
    assert solved.source.count("        ### BEGIN SOLUTION\n        return 1.0\n        ### END SOLUTION") == 1


def test_students_do_not_see_what_is_for_instructors(write_master):
    master = read_master(write_master(MASTER))
    student = "\n".join(cell.source for cell in student_notebook(master).cells)
    assert "Takes ten minutes" not in student
    assert "added, not joined" not in student
    assert "total" not in student
    assert "is only text" in student
    assert solution_notebook(master) == master


def test_students_are_not_compared_with_outputs_they_lack(write_master):
    student = notebook_bytes(student_notebook(read_master(write_master(MASTER)))).decode()
    assert "NBVAL_CHECK_OUTPUT" not in student
    assert "nbval-check-output" not in student
    assert 'print(\\"more text\\")' in student


def test_the_same_master_gives_the_same_bytes(write_master):
    path = write_master(MASTER)
    for make in (student_notebook, solution_notebook):
        first, second = (notebook_bytes(make(read_master(path))) for _ in range(2))
        assert first == second
        assert first.endswith(b"}\n")
        notebook = json.loads(first)
        nbformat.validate(notebook)
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
        assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")


def test_the_header_of_a_master_does_not_matter(write_master):
    plain = notebook_bytes(read_master(write_master(MASTER)))
    header = "# ---\n# jupyter:\n#   jupytext:\n#     formats: py:percent\n# ---\n\n"
    assert notebook_bytes(read_master(write_master(header + MASTER))) == plain


# ------------------------------------------------------------------------------------------ faults are named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print(1)\n", "has no cells"),
        ("# ---\n# jupyter:\n#   kernelspec: python3\n# ---\n\n# %%\n1\n", "cannot be read as a notebook"),
        (DICE.replace("  ### SOLUTION", ""), r"cell 1, exercise 00\.1 .*without gap"),
        (DICE.replace("### ", ""), "without gap"),
        (
            DICE.replace("truth", "target"),
            r"the reference in .*lesson_00\.py, which begins 'def dice\(prediction, truth",
        ),
        (DICE + "    return total\n", "expected the lines of the reference"),
        (DICE + "\n" + DICE, r"'00\.1' stands in this master 2 times"),
        (DICE.replace("00.1", "00.99"), r"'00\.99' is unknown: course/checks/lesson_00\.py has 00\.1, 00\.2"),
        (DICE.replace("00.1", "01.1"), r"'01\.1' is unknown"),
        (DICE.replace('"00.1"', '"00.1" minutes=5'), "minutes=5 here: leave it out, it comes from"),
        (DICE.replace('"00.1"', '"00.1" difficulty=3'), "difficulty=3 here: leave it out"),
        (DICE.replace(' exercise="00.1"', ""), r"outside an exercise: add exercise=\"00\.1\""),
        ('# %% [markdown] exercise="00.1"\n# text\n', "must be a code cell"),
        ('# %% tags="instructor"\n1\n', r"cannot be read as a notebook: 'instructor' is not of type 'array'"),
    ],
)
def test_a_fault_of_a_master_names_file_and_cell(write_master, text, message):
    with pytest.raises(ValueError, match=rf"^00_example\.py.*{message}"):
        read_master(write_master(text))


def test_a_master_needs_a_number(write_master):
    with pytest.raises(ValueError, match=r"example\.py is no name of a master"):
        read_master(write_master(MASTER, "example.py"))


def test_a_half_written_notebook_never_stays(tmp_path, monkeypatch, write_master):
    path = write_notebook(student_notebook(read_master(write_master(MASTER))), tmp_path / "a.ipynb")
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_notebook(read_master(write_master(DICE)), path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.glob(".*")] == []


# ------------------------------------------------------------------------------------------------- execution


def test_a_solution_keeps_its_outputs(built):
    notebook = nbformat.read(built / "solutions" / "00_example.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5, 6]
    assert text_of(code[0]) == "'ci'"
    assert text_of(code[2]).startswith("Exercise 00.1, the Dice score: right")
    assert 'role="status"' in code[2].outputs[0].data["text/html"]
    assert "image/png" in code[5].outputs[0].data  # although this test's own Matplotlib draws without a window
    assert code[5].outputs[1].text == "a is 2\n"  # what the widget showed
    assert "widgets" not in notebook.metadata
    assert all(set(cell.metadata) <= {"exercise", "minutes", "difficulty", "tags"} for cell in code)


def test_check_finds_what_differs(built, capsys):
    check = ["--root", str(built), "--check"]
    assert build.main(check) == 0
    master, student = built / "solutions" / "00_example.py", built / "notebooks" / "00_example.ipynb"
    before, original = student.read_bytes(), master.read_text(encoding="utf-8")
    student.write_bytes(before + b"\n")
    (built / "notebooks" / "01_gone.ipynb").write_bytes(before)
    capsys.readouterr()
    assert build.main(check) == 1
    assert capsys.readouterr().out.splitlines() == [
        "notebooks/00_example.ipynb is not what 00_example.py gives",
        "notebooks/01_gone.ipynb has no master",
        "run `make course`",
    ]
    (built / "notebooks" / "01_gone.ipynb").unlink()
    student.write_bytes(before)
    master.write_text(original.replace("more text", "other text"), encoding="utf-8")
    assert build.main([*check, "00"]) == 1
    assert "solutions/00_example.ipynb is not what 00_example.py gives, or was not executed" in capsys.readouterr().out
    master.write_text(original, encoding="utf-8")
    assert build.main(check) == 0


def test_a_solution_without_outputs_is_found(write_master):
    master = write_master(MASTER)
    student, solution = build.notebook_paths(master)
    notebook = read_master(master)
    write_notebook(student_notebook(notebook), student)
    write_notebook(solution_notebook(notebook), solution)
    (found,) = build.differences(master.parent.parent, [master])
    assert found == "solutions/00_example.ipynb is not what 00_example.py gives, or was not executed"


@pytest.mark.parametrize("stored", [None, b"", b"[]", b"{}", b"\xff"])
def test_what_is_no_notebook_is_not_current(tmp_path, stored, write_master):
    path = tmp_path / "a.ipynb"
    if stored is not None:
        path.write_bytes(stored)
    assert build.with_outputs(read_master(write_master(MASTER)), build.stored_notebook(path)) is None


def test_other_words_need_no_second_run(built, monkeypatch):
    master, solution = built / "solutions" / "00_example.py", built / "solutions" / "00_example.ipynb"
    before, original = solution.read_bytes(), master.read_text(encoding="utf-8")
    monkeypatch.setattr(build, "execute", None)
    master.write_text(original.replace("# A lesson", "# A better lesson"), encoding="utf-8")
    assert build.main(["--root", str(built)]) == 0
    after = solution.read_bytes()
    assert b"A better lesson" in after and len(after) == len(before) + len("better ")
    assert build.main(["--root", str(built), "--check"]) == 0
    master.write_text(original, encoding="utf-8")
    assert build.main(["--root", str(built)]) == 0
    assert solution.read_bytes() == before


def test_a_second_build_runs_nothing_unless_told(built, monkeypatch):
    before = (built / "solutions" / "00_example.ipynb").read_bytes()
    runs = []
    monkeypatch.setattr(build, "execute", lambda notebook, *rest: runs.append(rest) or notebook)
    assert build.main(["--root", str(built)]) == 0
    assert runs == []
    assert (built / "solutions" / "00_example.ipynb").read_bytes() == before
    assert build.main(["--root", str(built), "--execute", "00"]) == 0
    assert [rest[:2] for rest in runs] == [(built / "solutions", "ci")]
    (built / "solutions" / "00_example.ipynb").write_bytes(before)


def test_a_failing_cell_is_named_and_nothing_is_written(write_master, capsys):
    master = write_master("# %%\n1\n\n# %%\nraise KeyError('spacing')\n")
    root = master.parent.parent
    assert build.main(["--root", str(root)]) == 1
    assert "00_example.py: cell 2 (\"raise KeyError('spacing')\") failed" in capsys.readouterr().err
    assert list(root.rglob("*.ipynb")) == []


def test_a_cell_that_takes_too_long_is_named(write_master):
    notebook = read_master(write_master("# %%\nimport time\ntime.sleep(60)\n"))
    with pytest.raises(RuntimeError, match=r"^cell 1 .*failed"):
        execute(notebook, Path.cwd(), "ci", timeout=1)


def test_a_reply_that_comes_while_a_widget_sends_is_seen_at_once():
    async def exchange(session):
        with zmq.Context() as context, zmq.asyncio.Context() as own:
            kernel, channel = context.socket(zmq.ROUTER), AsyncZMQSocketChannel(own.socket(zmq.DEALER), session)
            channel.socket.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
            widget = OutputWidget("1", {"outputs": []}, SimpleNamespace(session=session, shell_channel=channel), None)
            widget.parent_header = {}
            try:
                widget.send({"method": "update"})
                sender, _ = session.recv(kernel, mode=0)
                waiting = asyncio.ensure_future(channel.get_msg())
                await asyncio.sleep(0.5)  # until it waits
                session.send(kernel, "execute_reply", ident=sender)
                time.sleep(0.5)  # until the reply is there, while the loop is kept from seeing it
                widget.send({"method": "update"})
                return await asyncio.wait_for(waiting, 20)
            finally:
                kernel.close(linger=0)
                channel.close()

    assert asyncio.run(exchange(Session()))["msg_type"] == "execute_reply"


def test_the_users_own_progress_is_left_alone(write_master, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_PROGRESS", str(tmp_path / "mine.json"))
    source = "# %%\nimport os\nos.environ['LAB_PROGRESS']\n"
    (cell,) = execute(read_master(write_master(source)), tmp_path, "ci", timeout=60, record_timing=True).cells
    assert text_of(cell).endswith("/progress.json'") and str(tmp_path) not in text_of(cell)
    assert cell.metadata["execution"]


def test_build_refuses_what_is_not_there(tmp_path, write_master, capsys):
    assert build.main(["--root", str(tmp_path)]) == 1
    assert "no masters" in capsys.readouterr().err
    write_master(MASTER)
    assert build.main(["--root", str(tmp_path), "07"]) == 1
    assert "there is no lesson '07'; the lessons are 00" in capsys.readouterr().err
