"""The app: how soon its first page is served, what it holds, and what idle pages cost.

    python -m benchmarks.startup [--rounds 5] [--pages 100] [--seconds 20] [--small]

`python app.py` and the smallest app that Gradio can make start in turn, each in a process and a
home of its own. The time runs from the start of the process until `GET /` is answered whole;
memory is resident memory of the process and its children at that moment, and again with all pages
open. Idle pages (`benchmarks.pages`) run in another process; counted is the processor time of the
app alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import (
    REPOSITORY,
    Bars,
    Goal,
    Report,
    Table,
    Taken,
    medians,
    parser,
    publish,
    ratio,
)

EMPTY_APP = """
import sys, gradio as gr
with gr.Blocks(analytics_enabled=False) as demo:
    gr.Markdown("Nothing")
demo.launch(server_port=int(sys.argv[-1]), quiet=True)
"""
APPS = {
    "phi3lora": ["app.py", "--port"],
    "an empty Gradio app": ["-c", EMPTY_APP],
}
RUNS = 20  # in the store of the app that is measured
PATIENCE = 120.0  # seconds after which a start has failed
MIB = 2**20


@dataclass(frozen=True)
class Started:
    """An app that serves. `seconds` to its first page; `work` and `memory` (bytes) till then."""

    process: psutil.Process
    address: str
    seconds: float
    work: float
    memory: int


def main(argv: list[str] | None = None) -> None:
    """Measure, print, keep."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--pages", type=int, default=100, help="idle pages")
    made.add_argument("--seconds", type=float, default=20.0, help="for how long they are idle")
    arguments = made.parse_args(argv)
    rounds, pages, seconds = arguments.rounds, arguments.pages, arguments.seconds
    if arguments.small:
        rounds, pages, seconds = 1, 4, 3.0
    publish(measure(rounds, pages, seconds, warm_up=not arguments.small), arguments.out)


def measure(rounds: int, pages: int, seconds: float, warm_up: bool = True) -> Report:
    """Starts in turn; in each round idle pages on our app, once it has started."""
    first: Taken = {name: [] for name in APPS}
    work: Taken = {name: [] for name in APPS}
    memory: Taken = {name: [] for name in APPS}
    idle: Taken = {"nobody": [], "pages": [], "open": []}
    for number in range(-warm_up, rounds):  # the first round warms the disk's cache
        for name, command in APPS.items():
            with tempfile.TemporaryDirectory() as home, started(command, Path(home)) as app:
                if number < 0:
                    continue
                first[name].append(app.seconds)
                work[name].append(app.work)
                memory[name].append(app.memory / MIB)
                if name == "phi3lora":
                    for kind, value in _idle(app, pages, seconds).items():
                        idle[kind].append(value)
    return _report(first, work, memory, idle, pages, seconds, rounds)


def _idle(app: Started, pages: int, seconds: float) -> dict[str, float]:
    """Shares of one core without pages and with them, and MiB with all of them open."""
    time.sleep(1.0)  # what the start left to do
    nobody = share(app.process, seconds / 2)
    with visitors(app.address, pages, seconds):
        used = share(app.process, seconds * 0.95)
        held = resident(app.process) / MIB
    return {"nobody": nobody, "pages": used, "open": held}


@contextmanager
def started(command: list[str], home: Path) -> Iterator[Started]:
    """Start an app with a store of finished runs, wait for its first page, end it afterwards."""
    with starting(command, home) as (child, address):
        began = time.perf_counter()
        _wait_for_page(child, address)
        seconds = time.perf_counter() - began
        process = psutil.Process(child.pid)
        yield Started(process, address, seconds, processor_time(process), resident(process))


@contextmanager
def starting(command: list[str], home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process of an app that has just been started, and the address where it will answer."""
    fill(home)
    port = free_port()
    environment = {
        **os.environ,
        "PHI3LORA_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    address = f"http://127.0.0.1:{port}"
    child = subprocess.Popen(
        [sys.executable, *command, str(port)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield child, address
    finally:
        _end(child)


def fill(home: Path) -> None:
    """Runs that are over, as somebody's store has them after a while."""
    from phi3lora.config import RunConfig
    from phi3lora.runs.store import RunStore
    from phi3lora.settings import Settings

    store = RunStore(Settings(home=home))
    for number in range(RUNS):
        store.create(RunConfig(), title=f"Run {number}")


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_page(child: subprocess.Popen[bytes], address: str) -> None:
    """Ask until the page is answered whole."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"The app ended with status {child.returncode} before it served.")
        try:
            with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                answer.read()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"No page within {PATIENCE:.0f} s.")


def resident(process: psutil.Process) -> int:
    """Bytes resident in a process and its children."""
    family = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in family)


@contextmanager
def visitors(address: str, pages: int, seconds: float) -> Iterator[None]:
    """So many idle pages, all open, in a process of their own; checks that they were there."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.pages",
        address,
        "--pages",
        str(pages),
        "--seconds",
        str(seconds),
    ]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        if child.stdout is None or not child.stdout.readline():
            raise RuntimeError("The idle pages could not be opened.")
        yield
        asked = json.loads(child.stdout.readline() or "{}").get("pulses", 0)
        if asked < pages:
            raise RuntimeError(f"{pages} pages asked {asked} times; they were not all there.")
    finally:
        _end(child)


def share(process: psutil.Process, seconds: float) -> float:
    """The share of one core that a process and its children use in the next seconds."""
    used, began = processor_time(process), time.perf_counter()
    time.sleep(seconds)
    return (processor_time(process) - used) / (time.perf_counter() - began)


def processor_time(process: psutil.Process) -> float:
    """Seconds of processor time that a process and its children have used."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def _end(child: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _report(
    first: Taken, work: Taken, memory: Taken, idle: Taken, pages: int, seconds: float, rounds: int
) -> Report:
    taken, size, kept, used = map(medians, (first, memory, idle, work))
    ours, theirs = list(APPS)
    cost = kept["pages"] - kept["nobody"]
    rows = [
        [name, f"{taken[name]:.2f} s", f"{used[name]:.2f} s", f"{size[name]:,.0f} MiB"]
        for name in APPS
    ]
    rows.append(
        [
            "ratio",
            f"{ratio(first, ours, theirs):.2f}",
            f"{ratio(work, ours, theirs):.2f}",
            f"{ratio(memory, ours, theirs):.2f}",
        ]
    )
    idle_rows = [
        ["nobody there", f"{kept['nobody']:.2%}", f"{size[ours]:,.0f} MiB"],
        [f"{pages} idle pages", f"{kept['pages']:.2%}", f"{kept['open']:,.0f} MiB"],
        ["what the pages cost", f"{cost:.2%}", f"{kept['open'] - size[ours]:,.0f} MiB"],
    ]
    return Report(
        name="startup",
        title="The app",
        about="`python app.py` beside the smallest app that Gradio can make, each in a fresh "
        f"process, in turn; medians of {rounds} rounds, the disk's cache warm. Idle pages are "
        f"Runs pages, for {seconds:g} s each, with {RUNS} runs in the store; each holds Gradio's "
        "heartbeat stream and asks `/pulse` every two seconds, as watched in Chromium.",
        command="python -m benchmarks.startup",
        tables=[
            Table("First page", ["", "until it is served", "processor time", "resident"], rows),
            Table(
                "Idle",
                ["", "share of one core", "resident"],
                idle_rows,
                "With nobody there, what is left is Gradio's server and its queue.",
            ),
        ],
        goals=[
            Goal("First page served", taken[ours], 5, "most", " s"),
            Goal(
                "Resident before a model is used, all pages open", kept["open"], 350, "most", " MiB"
            ),
            Goal("What a hundred idle pages cost of one core", cost * 1e4 / pages, 5, "most", " %"),
        ],
        pictures=[
            Bars(
                "Until the first page is served",
                "seconds",
                {name: [value] for name, value in taken.items()},
                limit=5,
            ),
            Bars(
                "Resident then", "MiB", {name: [value] for name, value in size.items()}, limit=350
            ),
        ],
        figures={
            "seconds": first,
            "processor": work,
            "memory_mib": memory,
            "idle": idle,
            "pages": pages,
        },
    )


if __name__ == "__main__":
    main()
