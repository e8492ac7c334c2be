"""Times are measured, not guessed: the watch, what it says of slow cells, and the line it writes into a lesson."""

import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from example_lesson import LESSON, TIME, write_lesson

from xlstm_unet_lab.course.authoring import build, times
from xlstm_unet_lab.course.authoring.lesson import read_master, solution_notebook
from xlstm_unet_lab.course.authoring.times import (
    TIME_LINE,
    Budget,
    Watch,
    budget,
    exercise_minutes,
    measure,
    slow_cell_faults,
    time_line,
    write_times,
)
from xlstm_unet_lab.course.profiles import PROFILES

WORK = """
import time
block = b"x" * 300_000_000
while time.process_time() < 1.5:
    pass
"""


def test_the_watch_sees_time_and_memory_of_children_only():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with Watch() as idle:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.6)"], check=True)
        with Watch() as busy:
            subprocess.run([sys.executable, "-c", WORK], check=True)
    finally:
        other.kill()
        other.wait()
    assert idle.seconds >= 0.6 and idle.gigabytes < 0.1
    assert 0.3 < busy.gigabytes < 0.5 and busy.processor_seconds > 0.5


@pytest.mark.parametrize(
    ("seconds", "processor", "gigabytes", "words"),
    [
        (50, 50, 1.0, ""),
        (200, 30, 1.0, ""),  # waited for others on a busy machine
        (80, 150, 1.0, "took 80 s, 150 s of processor time"),
        (50, 50, 2.5, "held 2.50 GB of memory; allowed are 2 GB"),
    ],
)
def test_a_budget_is_exceeded_by_work_not_by_waiting(seconds, processor, gigabytes, words):
    watch = Watch()
    watch.seconds, watch.gigabytes, watch._busy = seconds, gigabytes, {1: processor}
    found = "".join(watch.too_slow(Budget(60, 2)) + watch.too_large(Budget(60, 2)))
    assert words in found and bool(found) == bool(words)


@pytest.mark.parametrize(
    ("seconds", "source", "printed", "words"),
    [
        (9, "work()", "", []),
        (12, "print(estimate(ci=12, cpu=12))\nTrainingPlot(3)", "this takes about 12 seconds in profile cpu", []),
        (130, "tqdm(range(3))", "this takes about 2 minutes in profile cpu", []),
        (130, "tqdm(range(3))", "this takes about 20 seconds", ["takes 130 s and says it takes about 20 seconds"]),
        (12, "work()", "", ["takes 12 s and does not say so", "takes 12 s and shows no progress"]),
    ],
)
def test_slow_cells_must_say_so_and_show_progress(seconds, source, printed, words):
    cell = nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output("stream", text=printed)])
    end = f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}.000000Z"
    cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00.000000Z", "shell.execute_reply": end}
    found = list(slow_cell_faults(nbformat.v4.new_notebook(cells=[cell])))
    assert len(found) == len(words) and all(one in fault for one, fault in zip(words, found, strict=True)), found


def test_the_minutes_are_written_into_the_header(tmp_path):
    master = write_lesson(tmp_path, LESSON.replace(TIME, "**Time.** not measured yet"))
    write_times(master, SimpleNamespace(seconds=61, gigabytes=0.71))
    assert "# **Time.** 2 minutes of computing" in master.read_text(encoding="utf-8")
    assert "0.7 GB of memory), 30 minutes of exercises.\n" in master.read_text(encoding="utf-8")
    assert TIME_LINE.search(read_master(master).cells[0].source)
    write_times(master, SimpleNamespace(seconds=1, gigabytes=0.71))
    assert "# **Time.** 1 minute of computing" in master.read_text(encoding="utf-8")


def test_a_header_without_its_line_is_named(tmp_path):
    master = write_lesson(tmp_path, LESSON.replace(TIME, ""))
    with pytest.raises(ValueError, match=r"00_example\.py has 0 lines that begin with \*\*Time"):
        write_times(master, SimpleNamespace(seconds=1, gigabytes=1.0))


def test_a_change_of_the_header_needs_no_second_run(tmp_path):
    master = write_lesson(tmp_path)
    executed = solution_notebook(read_master(master))
    for count, cell in enumerate((cell for cell in executed.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    write_times(master, SimpleNamespace(seconds=1000, gigabytes=1.0))
    assert build.with_outputs(solution_notebook(read_master(master)), executed) is not None


def test_lessons_are_measured_reported_and_written(tmp_path, monkeypatch, capsys):
    master = write_lesson(tmp_path)

    def run(notebook, folder, profile, timeout, record_timing):
        assert (folder, profile, timeout, record_timing) == (master.parent, "cpu", 4 * 60, True)
        return notebook

    monkeypatch.setattr(times, "execute", run)
    watch, faults = measure(master, "cpu")
    assert faults == [] and watch.gigabytes == 0
    assert build.main(["--root", str(tmp_path), "--times"]) == 0
    assert capsys.readouterr().out == "00_example: 0 s, 0.00 GB in profile cpu\n"
    assert "1 minute of computing in profile `cpu`" in master.read_text(encoding="utf-8")
    monkeypatch.setattr(times, "slow_cell_faults", lambda executed: ["cell 3 takes 99 s"])
    assert build.main(["--root", str(tmp_path), "--times"]) == 1
    assert "  cell 3 takes 99 s\n" in capsys.readouterr().out


def test_a_lesson_that_fails_is_named(tmp_path, monkeypatch, capsys):
    whole = write_lesson(tmp_path)
    (whole.parent / "01_next.py").write_text(whole.read_text(encoding="utf-8"), encoding="utf-8")
    write_lesson(tmp_path, LESSON.replace('seconds={"ci": 30, "cpu": 60, "gpu": 60} ', ""))
    easy = SimpleNamespace(seconds=5, gigabytes=1.0), []
    monkeypatch.setattr(
        build, "measure", lambda master, profile: easy if "next" in master.name else measure(master, profile)
    )
    monkeypatch.setattr(build, "write_times", lambda master, watch: None)  # 01 has other exercises
    assert build.main(["--root", str(tmp_path), "--times"]) == 1
    shown = capsys.readouterr().out
    assert "00_example.py: the first cell declares no budget for profile cpu" in shown
    assert "01_next: 5 s" in shown, "the others are measured all the same"


@pytest.mark.parametrize("minutes", [1, 12])
def test_the_line_of_time_is_read_as_it_is_written(minutes):
    match = TIME_LINE.fullmatch(time_line(minutes, 2, 1.234, 30))
    assert match.groups() == (str(minutes), "2", "1.2", "30")


def test_budgets_and_minutes_are_read(tmp_path):
    notebook = read_master(write_lesson(tmp_path))
    assert budget(notebook, "cpu") == (60, 2)
    assert exercise_minutes(notebook) == 30
    assert (PROFILES["ci"].seconds, PROFILES["ci"].gigabytes) == (90, 3)
