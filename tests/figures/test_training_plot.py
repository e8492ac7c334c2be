"""The live training plot, driven without a browser: by program, and by messages to a kernel that runs it."""

import ast
import threading
import time
from types import SimpleNamespace

import pytest
import zmq
from jupyter_client.manager import start_new_kernel
from jupyter_client.session import Session
from tornado.queues import Queue

from xlstm_unet_lab.figures import training_plot

PATIENCE = 600  # seconds for a kernel to answer, on a slow, busy machine


def make_records(count, seconds=1.0):
    for step in range(1, count + 1):
        metrics = {"mean": 0.5} if step == count else None
        yield SimpleNamespace(step=step, loss=1 / step, metrics=metrics, seconds=seconds * step, images_per_second=8.0)


def test_records_pass_through_unchanged_and_in_order():
    records = list(make_records(4))
    assert list(training_plot.TrainingPlot(4).watch(records)) == records


def test_bar_text_and_curve_follow_the_records(monkeypatch):
    monkeypatch.setattr(training_plot, "REDRAW_SECONDS", 0.0)
    plot = training_plot.TrainingPlot(10)
    assert plot.text.value == "waiting for the first step"
    stream = plot.watch(make_records(10))
    for _ in range(training_plot.MANY_STEPS - 1):
        next(stream)
    assert (
        plot.bar.value == 4 and "step 4 of 10, loss 0.250" in plot.text.value and "about 6 s to go" in plot.text.value
    )
    assert plot.curve.value == "", "a curve of four points says nothing"
    next(stream)
    first = plot.curve.value
    assert "in 5 steps" in first and "alt=" in first
    list(stream)
    assert plot.bar.value == 10 and plot.bar.bar_style == "success" and plot.curve.value != first
    assert "validation Dice 0.500" in plot.text.value and "done" in plot.text.value


def test_a_run_without_records_draws_nothing():
    plot = training_plot.TrainingPlot(3)
    assert list(plot.watch([])) == [] and plot.curve.value == "" and plot.bar.bar_style == ""


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="steps is 0"):
        training_plot.TrainingPlot(0)


@pytest.mark.parametrize("stop", ["caller", "error"])
def test_a_run_that_ends_early_shows_it(stop):
    plot = training_plot.TrainingPlot(5)

    def broken():
        yield from make_records(2)
        if stop == "error":
            raise FloatingPointError("step 3")

    stream = plot.watch(broken())
    next(stream), next(stream)
    assert plot.bar.bar_style == "info"
    if stop == "error":
        with pytest.raises(FloatingPointError):
            next(stream)
    else:
        stream.close()
    assert plot.bar.bar_style == "danger" and "in 2 steps" in plot.curve.value


def endless(seconds=0.0):
    for record in make_records(10_000):
        time.sleep(seconds)
        yield record


def test_stop_ends_the_training_and_keeps_its_records():
    source = endless()
    plot = training_plot.TrainingPlot(10_000)
    assert plot.stop.disabled and plot.pause.disabled
    seen = []
    for record in plot.watch(source):
        seen.append(record)
        assert not plot.stop.disabled
        if record.step == 7:
            plot.stop.click()
    assert [record.step for record in seen] == list(range(1, 8)) and plot.records == seen
    assert "stopped after step 7 of 10000" in plot.text.value and plot.bar.bar_style == "warning"
    assert "in 7 steps" in plot.curve.value and plot.stop.disabled
    assert next(source, None) is None, "the generator behind it was closed"


def test_pause_holds_until_resume():
    plot = training_plot.TrainingPlot(10_000)
    stream = plot.watch(endless())
    next(stream)
    plot.pause.click()
    assert plot.pause.description == "resume"
    held = threading.Thread(target=lambda: next(stream))
    held.start()
    wait_for(lambda: "held after step 1" in plot.text.value)
    time.sleep(3 * training_plot.LISTEN_SECONDS)
    assert plot.bar.value == 1 and held.is_alive() and plot.bar.bar_style == "warning"
    plot.pause.click()
    held.join(timeout=PATIENCE)
    assert plot.bar.value == 2 and plot.pause.description == "pause" and not held.is_alive()


def test_stop_works_while_held():
    plot = training_plot.TrainingPlot(10_000)
    stream = plot.watch(endless())
    next(stream)
    plot.pause.click()
    press = threading.Timer(2 * training_plot.LISTEN_SECONDS, plot.stop.click)
    press.start()
    assert list(stream) == [] and plot.pause.description == "pause" and "stopped after step 1" in plot.text.value


def test_a_stopped_plot_can_be_used_again():
    plot = training_plot.TrainingPlot(4)
    for _ in plot.watch(make_records(4)):
        plot.stop.click()
    assert plot.bar.value == 1
    assert len(list(plot.watch(make_records(4)))) == 4 and plot.bar.bar_style == "success"


def wait_for(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def click(comm_id):
    return {"comm_id": comm_id, "data": {"method": "custom", "content": {"event": "click"}}}


def test_clicks_queued_by_ipykernel_6_are_taken_and_other_messages_left(monkeypatch):
    session, handled = Session(key=b"secret"), []
    kernel = SimpleNamespace(
        msg_queue=Queue(),
        session=Session(key=b"secret"),
        shell_stream=SimpleNamespace(flush=lambda: None),
        comm_manager=SimpleNamespace(comm_msg=lambda stream, identity, message: handled.append(message["content"])),
    )
    messages = [
        session.msg("execute_request", {"code": "1"}),
        session.msg("comm_msg", click("a")),
        session.msg("execute_request", {"code": "2"}),
    ]
    frames = [[zmq.Frame(part) for part in session.serialize(message, ident=b"me")] for message in messages]
    kernel.shell_stream.flush = lambda: [kernel.msg_queue.put_nowait((n, None, (f,))) for n, f in enumerate(frames)]
    monkeypatch.setattr(training_plot, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    training_plot.take_clicks()
    assert handled == [click("a")]
    assert [kernel.msg_queue.get_nowait()[0] for _ in range(kernel.msg_queue.qsize())] == [0, 2]


def test_without_a_kernel_there_is_nothing_to_take():
    training_plot.take_clicks()


class Kernel:
    """A Jupyter kernel, and messages to it as JupyterLab sends them while a cell runs."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(kernel_name="python3", startup_timeout=PATIENCE)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def subshell(self):
        request = self.client.session.msg("create_subshell_request", {})
        self.client.control_channel.send(request)
        return self.client.get_control_msg(timeout=PATIENCE)["content"]["subshell_id"]

    def send(self, kind, content, subshell=None):
        message = self.client.session.msg(kind, content)
        message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def value(self, expression, subshell=None):
        """The value of an expression, asked for on the subshell while the main shell is busy."""
        content = {"code": "", "silent": True, "user_expressions": {"it": expression}}
        asked = self.send("execute_request", content, subshell)
        answer = self.reply(asked)["user_expressions"]["it"]
        return ast.literal_eval(answer["data"]["text/plain"])

    def reply(self, asked):
        while True:
            message = self.client.get_shell_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") == asked:
                assert message["content"]["status"] == "ok", message["content"]
                return message["content"]


SETUP = """
import time
from types import SimpleNamespace
from xlstm_unet_lab.figures.training_plot import TrainingPlot

def records():
    for step in range(1, 100_001):
        time.sleep(0.01)
        yield SimpleNamespace(step=step, loss=1 / step, metrics=None, seconds=step, images_per_second=8.0)

plot = TrainingPlot(100_000)
"""


def test_buttons_work_in_a_kernel_while_the_cell_runs():
    """JupyterLab 4.4 and later sends widgets' messages to a subshell of ipykernel 7."""
    kernel = Kernel()
    try:
        kernel.reply(kernel.send("execute_request", {"code": SETUP, "silent": False}))
        buttons = {name: kernel.value(f"plot.{name}.comm.comm_id") for name in ("pause", "stop")}
        subshell = kernel.subshell()
        cell = kernel.send("execute_request", {"code": "got = list(plot.watch(records()))", "silent": False})
        wait_for(lambda: kernel.value("plot.bar.value", subshell) >= 1)
        kernel.send("comm_msg", click(buttons["pause"]), subshell)
        wait_for(lambda: "held" in kernel.value("plot.text.value", subshell))
        assert kernel.value("plot.pause.description", subshell) == "resume"
        step = kernel.value("plot.bar.value", subshell)
        time.sleep(0.3)
        assert kernel.value("plot.bar.value", subshell) == step < 100_000
        kernel.send("comm_msg", click(buttons["pause"]), subshell)
        wait_for(lambda: kernel.value("plot.bar.value", subshell) > step)
        kernel.send("comm_msg", click(buttons["stop"]), subshell)
        kernel.reply(cell)
        assert step < kernel.value("len(got)") < 100_000
        assert "stopped after step" in kernel.value("plot.text.value")
    finally:
        kernel.close()
