"""A bar on a terminal, plain lines elsewhere."""

import os
import pty
import sys
import termios

import pytest

from xlstm_unet_lab.ops import progress

NEVER = 10**9  # seconds: longer than any test


@pytest.fixture
def printed(monkeypatch):
    """A function that does a piece of work and gives what came out of a terminal, or of a pipe."""

    def run(ends, work):
        read, write = ends()
        if os.isatty(write):
            termios.tcsetwinsize(write, (24, 80))
        with open(write, "w") as error:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stderr", error)
                work()
            print("end", file=error, flush=True)  # so that there is something to read
            text = ""
            while not text.rstrip().endswith("end"):  # a terminal gives a line at a time
                text += os.read(read, 2**16).decode()
        os.close(read)
        return text.rstrip()[:-3]

    return run


def work(leave=True, items=5):
    for _ in progress.bar(range(items), desc="working", unit="case", leave=leave):
        pass


@pytest.mark.parametrize("ends", [pty.openpty, os.pipe])
def test_what_is_done_at_once_shows_nothing(printed, ends, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", NEVER)
    assert not printed(ends, work)


def test_a_terminal_shows_a_bar_that_is_drawn_over_itself(printed, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    text = printed(pty.openpty, work)
    assert "\r" in text and "working: 100%" in text and "5/5" in text


@pytest.mark.parametrize(
    ("interval", "leave", "counts"), [(NEVER, True, [0, 5]), (NEVER, False, [0]), (0, True, [*range(6), 5])]
)
def test_a_pipe_gets_plain_lines_an_interval_apart_and_the_last_one(printed, monkeypatch, interval, leave, counts):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress, "INTERVAL", interval)
    text = printed(os.pipe, lambda: work(leave))
    assert "\r" not in text and "\x1b" not in text
    assert [line.split(",")[0] for line in text.splitlines()] == [f"working: {count} of 5 cases" for count in counts]


@pytest.mark.parametrize("ends", [pty.openpty, os.pipe])
def test_names_in_a_caption_give_a_terminal_no_orders(printed, ends, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    text = printed(ends, lambda: list(progress.bar(range(2), desc="unpacking \x1b[31ma\nb.zip", unit="file")))
    assert "\x1b[31m" not in text and "unpacking \\x1b[31ma\\nb.zip:" in text


def test_bars_within_bars_are_lines_too(printed, monkeypatch):
    def nested():
        for _ in progress.bar(range(2), desc="outside", unit="case"):
            work(leave=False)

    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress, "INTERVAL", NEVER)
    text = printed(os.pipe, nested)
    assert "\r" not in text and "\x1b" not in text
    assert [line.split(":")[0] for line in text.splitlines()] == ["outside", "working", "working", "outside"]


def test_a_bar_that_is_updated_by_hand(printed, monkeypatch):
    def by_hand():
        with progress.bar(total=100, desc="training", unit="step") as done:
            done.set_postfix(loss="0.5", refresh=False)
            done.update(40)

    monkeypatch.setattr(progress, "PATIENCE", 0)
    lines = printed(os.pipe, by_hand).splitlines()
    assert "training: 40 of 100 steps" in lines[-1] and "loss=0.5" in lines[-1]
