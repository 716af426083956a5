"""A lab in a kernel that ends badly, is interrupted, or runs its cell again: real processes, no page."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from browser import servers
from jupyter_client import KernelManager
from jupyter_client.blocking import BlockingKernelClient

SECONDS = 60.0  # for an answer of the kernel
GONE_SECONDS = 20.0  # the promise is 2; ten times that on a busy machine
LAB = "import rqlab\nlab = rqlab.lab(workers=2, seed=7)\nlab"
PIDS = "import json; print(json.dumps(list(lab.pids.values())))"
RUNNING = "_ = lab.wait_until(lambda view: all(each['state'] in ('idle', 'running') for each in view['workers']))"


class Kernel:
    """A kernel and somebody who runs cells in it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient, home: Path) -> None:
        self.manager, self.client, self.home = manager, client, home

    def run(self, code: str) -> str:
        """What it prints. AssertionError for an exception."""
        printed: list[str] = []

        def hear(message: dict) -> None:  # type: ignore[type-arg]
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, timeout=SECONDS, output_hook=hear)["content"]
        assert reply["status"] == "ok", "\n".join(reply.get("traceback", []))
        return "".join(printed)

    def workers(self) -> list[psutil.Process]:
        """The lab's processes, each up and running."""
        self.run(RUNNING)
        return [psutil.Process(pid) for pid in json.loads(self.run(PIDS))]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path), env=servers.environment(tmp_path))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield Kernel(manager, client, tmp_path)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        left = servers.started_below(tmp_path)
        _, alive = psutil.wait_procs(left, timeout=GONE_SECONDS)
        for each in alive:
            each.kill()
    assert alive == []


def test_no_worker_outlives_a_killed_kernel_not_even_a_frozen_one(kernel: Kernel) -> None:
    kernel.run(LAB)
    workers = kernel.workers()
    assert len(workers) == 3, "a producer and two workers"
    kernel.run("lab.freeze('w1')")  # what is frozen cannot notice that its parent is gone
    assert servers.wait_until(lambda: psutil.STATUS_STOPPED in [each.status() for each in workers])

    kernel.manager.signal_kernel(signal.SIGKILL)

    _, alive = psutil.wait_procs(workers, timeout=GONE_SECONDS)
    assert alive == []


def test_restarting_the_kernel_ends_the_workers(kernel: Kernel) -> None:
    kernel.run(LAB)
    workers = kernel.workers()

    kernel.manager.restart_kernel()

    _, alive = psutil.wait_procs(workers, timeout=GONE_SECONDS)
    assert alive == []


def test_interrupting_the_kernel_leaves_the_workers_at_work(kernel: Kernel) -> None:
    kernel.run(LAB)
    workers = kernel.workers()
    asked = kernel.client.execute("import time; print('asleep', flush=True); time.sleep(60)")
    while kernel.client.get_iopub_msg(timeout=SECONDS)["content"].get("text") != "asleep\n":
        pass

    kernel.manager.interrupt_kernel()

    reply = kernel.client.get_shell_msg(timeout=SECONDS)
    assert reply["parent_header"]["msg_id"] == asked
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    kernel.run("lab.set_workload(seconds=0, failure_rate=0); lab.push(10); _ = lab.settle()")
    assert kernel.workers() == workers
    assert all(each.is_running() for each in workers)


COUNTS = """
import json, threading
from ipywidgets import Widget
from ipywidgets.widgets import widget
threads = [each.name for each in threading.enumerate() if each.name.startswith('rqlab')]
print(json.dumps([threads, len(widget._instances)]))
"""


def test_running_the_cell_ten_times_leaves_one_ticker_and_no_orphan(kernel: Kernel) -> None:
    kernel.run(LAB)
    workers = kernel.workers()
    threads, widgets = json.loads(kernel.run(COUNTS))

    for _ in range(10):
        kernel.run(LAB)

    _, alive = psutil.wait_procs(workers, timeout=GONE_SECONDS)
    assert alive == []
    ours = kernel.workers()
    running = [each for each in servers.started_below(kernel.home) if "rqlab" in " ".join(each.cmdline())]
    assert {each.pid for each in running} == {each.pid for each in ours}
    assert json.loads(kernel.run(COUNTS)) == [threads, widgets]
    assert threads.count("rqlab-ticker") == 1


def test_a_progress_line_is_drawn_in_a_kernel(kernel: Kernel) -> None:
    said = kernel.run("import rqlab; _ = rqlab.explore(2, store='memory', jobs=2, bugs=None, processes=0)")

    assert "exploring durable: 100%" in said
