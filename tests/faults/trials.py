"""One disturbance each, and what became of the run."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from phi3lora.app.views import RunView
from phi3lora.data.sources import EXAMPLES
from phi3lora.errors import Phi3LoraError, RunError
from phi3lora.runs import life
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import RESUMABLE, Run
from phi3lora.settings import Settings
from tests.faults.recipes import config
from tests.faults.workers import (
    Forked,
    Hook,
    counting,
    forked_workers,
    operations,
    stepping_clock,
)

Verdict = Literal["same", "refused", "lost", "stuck"]
PATIENCE = 300.0  # seconds for a worker, on a machine that does other things, too
RESUMES = 4


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `refused` is an error in words that left everything as it was."""

    kind: str
    recipe: str
    verdict: Verdict
    what: str


@dataclass(frozen=True)
class Undisturbed:
    """What a run of a recipe leaves when nothing happens to it."""

    weights: dict[str, bytes]
    curves: tuple[Any, ...]
    seconds: float
    operations: int
    size: int  # bytes in its home


@contextmanager
def home(place: Path | None = None) -> Iterator[Queue]:
    """A queue of its own; what still runs at the end is killed."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        queue = Queue(Settings(home=place or Path(folder) / "home", runs_per_user=100))
        try:
            yield queue
        finally:
            for run in queue.store.all():
                if (pid := life.holder(run.folder)) is not None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def launch(queue: Queue, recipe: str, hook: Hook | None = None, **changes: Any) -> Run:
    """Start a run of a recipe."""
    with forked_workers(hook):
        return queue.submit(queue.store.create(config(recipe, **changes)))


def await_worker(run: Run) -> Run:
    """The run once its worker is gone. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while life.is_held(run.folder):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run.id} still lives: {run.log_tail(5)}")
        time.sleep(0.01)
    return run.refresh()


def finish(queue: Queue, run: Run, accept_changes: bool = False) -> Run:
    """Resume a run until it is finished, or cannot be."""
    run = await_worker(run)
    for _ in range(RESUMES):
        if run.status not in RESUMABLE:
            break
        with forked_workers():
            run = queue.resume(run, accept_changes=accept_changes)
        run = await_worker(run)
    return run


@cache
def undisturbed(recipe: str) -> Undisturbed:
    """The run to compare with, computed once."""
    with home() as queue:
        began = time.monotonic()
        run = await_worker(launch(queue, recipe, counting(None)))
        if run.status != "finished":
            raise RuntimeError(f"{recipe}: {run.message}\n{run.log_tail(30)}")
        files = [path for path in queue.settings.home.rglob("*") if path.is_file()]
        return Undisturbed(
            weights_of(run),
            curves_of(run),
            time.monotonic() - began,
            operations(run.folder),
            sum(path.stat().st_size for path in files),
        )


def weights_of(run: Run) -> dict[str, bytes]:
    """Every tensor file of the result, byte for byte."""
    return {path.name: path.read_bytes() for path in run.result.folder.glob("*.safetensors")}


def curves_of(run: Run) -> tuple[Any, ...]:
    """Losses, learning rates and rewards, held-out ones too, as a page shows them."""
    view = RunView()
    for event in run.events()[0]:
        view.add(event)
    return view.losses, view.rates, view.held_out, view.rewards, view.held_out_rewards


def judge(run: Run, recipe: str, with_curves: bool = True) -> tuple[Verdict, str]:
    """Whether a run ended like an undisturbed one."""
    expected = undisturbed(recipe)
    if run.status != "finished":
        return "stuck", f"{run.status}: {run.message}"
    if not run.result.whole or weights_of(run) != expected.weights:
        return "lost", "another adapter"
    if with_curves and curves_of(run) != expected.curves:
        return "lost", f"other curves: {curves_of(run)} instead of {expected.curves}"
    return "same", ""


def tried(kind: str, recipe: str, what: str, attempt: Callable[[], tuple[Verdict, str]]) -> Outcome:
    """Run a trial; what hangs is stuck, and our own errors are refusals."""
    try:
        verdict, why = attempt()
    except TimeoutError as error:
        verdict, why = "stuck", str(error)
    except Phi3LoraError as error:
        verdict, why = "refused", str(error)
    return Outcome(kind, recipe, verdict, f"{what}: {why}" if why else what)


# Kills


def aimed_kill(recipe: str, chance: random.Random) -> Outcome:
    """Die before one operation on the disk, and mostly once more while resuming."""
    most = undisturbed(recipe).operations
    first, second = chance.randint(1, most), chance.randint(1, most)

    def attempt() -> tuple[Verdict, str]:
        with home() as queue:
            run = await_worker(launch(queue, recipe, counting(first)))
            if run.status in RESUMABLE and chance.random() < 0.5:
                with forked_workers(counting(second)):
                    run = await_worker(queue.resume(run))
            return judge(finish(queue, run), recipe)

    return tried("kill before an operation", recipe, f"{first} of {most}, then {second}", attempt)


def random_kill(recipe: str, chance: random.Random) -> Outcome:
    """Die at any moment."""
    delay = chance.uniform(0, undisturbed(recipe).seconds)

    def attempt() -> tuple[Verdict, str]:
        with home() as queue:
            run = launch(queue, recipe)
            time.sleep(delay)
            kill(run)
            return judge(finish(queue, run), recipe)

    return tried("kill at a random moment", recipe, f"after {delay:.2f} s", attempt)


def kill(run: Run) -> None:
    """SIGKILL, if it still lives."""
    if (pid := life.holder(run.folder)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def app_kill(recipe: str, chance: random.Random) -> Outcome:
    """The app dies while it launches; what it began is finished, or never was."""
    number = chance.randint(1, 25)

    def attempt() -> tuple[Verdict, str]:
        with home() as queue:
            queue.settings.runs_folder.mkdir(parents=True)
            pid = os.fork()
            if pid == 0:
                counting(number)(queue.settings.runs_folder / "app")
                with suppress(BaseException):
                    launch(queue, recipe)
                os._exit(0)
            Forked(pid).wait()
            runs = queue.store.all()
            if not runs:
                return "same", "it had not begun"
            return judge(finish(queue, runs[0]), recipe)

    return tried("kill of the app in a launch", recipe, f"before operation {number}", attempt)


# The disk


def full_disk(recipe: str, chance: random.Random) -> Outcome | None:
    """A file system that is too small, and larger afterwards; None where none can be mounted."""
    size = int(undisturbed(recipe).size * chance.uniform(0.02, 0.95)) + 2**16

    def attempt() -> tuple[Verdict, str]:
        with tempfile.TemporaryDirectory(prefix="faults-disk-") as place:
            mount(f"size={size}", place)
            try:
                with home(Path(place)) as queue:
                    try:
                        run = await_worker(launch(queue, recipe))
                    except RunError:  # there was no room for the launch
                        mount("remount,size=1g", place)
                        run = launch(queue, recipe)
                    mount("remount,size=1g", place)
                    return judge(finish(queue, run), recipe)
            finally:
                subprocess.run(["umount", "--lazy", place], check=False)

    if not may_mount():
        return None
    return tried("full disk", recipe, f"{size:,} bytes", attempt)


@cache
def may_mount() -> bool:
    """Whether this user may mount a file system of a chosen size."""
    with tempfile.TemporaryDirectory(prefix="faults-disk-") as place:
        try:
            mount("size=64k", place)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", place], check=True)
        return True


def mount(options: str, place: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    subprocess.run(command, check=True, capture_output=True)


# Damage

HARMS: dict[str, Callable[[Path], None]] = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "a bit flipped": lambda path: flip(path),
    "removed": lambda path: path.unlink(),
}
CURVES = {"events.jsonl"}  # damage there costs points of the curve, and nothing else


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@cache
def interrupted(recipe: str) -> Path:
    """The home of a run that was killed after its second checkpoint; kept until the end."""
    place = Path(tempfile.mkdtemp(prefix="faults-interrupted-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    queue = Queue(Settings(home=place, runs_per_user=100))
    run = launch(queue, recipe)
    while not (run.folder / "checkpoints" / "checkpoint-4" / "manifest.json").exists():
        time.sleep(0.002)
    kill(run)
    await_worker(run)
    return place


def damage(recipe: str, chance: random.Random) -> Outcome:
    """Harm one file of an interrupted run, then resume it: the same end, or words."""
    source = interrupted(recipe)
    files = [path for path in source.rglob("*") if path.is_file() and path.stat().st_size]
    target = chance.choice([path for path in files if not path.name.endswith(".lock")])
    harm = chance.choice(sorted(HARMS))

    def attempt() -> tuple[Verdict, str]:
        with tempfile.TemporaryDirectory(prefix="faults-damage-") as folder:
            place = Path(folder) / "home"
            shutil.copytree(source, place)
            HARMS[harm](place / target.relative_to(source))
            with home(place) as queue:
                [run] = queue.store.list("local")
                run = finish(queue, run)
                if run.status in RESUMABLE and run.state.changes:
                    return "refused", run.message
                return judge(run, recipe, with_curves=target.name not in CURVES)

    return tried("damage", recipe, f"{target.relative_to(source)} {harm}", attempt)


# Everything else


def clock(recipe: str, chance: random.Random) -> Outcome:
    """The clock jumps by a day, to and fro, while the run computes and while it is resumed."""
    hours = chance.choice([1.0, 24.0, 24.0 * 365])

    def attempt() -> tuple[Verdict, str]:
        with home() as queue:
            run = launch(queue, recipe, stepping_clock(hours * 3600))
            while life.is_held(run.folder):
                if (
                    life.is_held(run.folder)
                    and queue.store.get(run.id, "local").status == ("interrupted")
                    and life.is_held(run.folder)
                ):
                    return "lost", "a living run is shown as interrupted"
                time.sleep(0.02)
            return judge(finish(queue, run), recipe)

    return tried("stepped clock", recipe, f"{hours:g} hours", attempt)


def changed_rows(recipe: str, chance: random.Random) -> Outcome:
    """Rows are edited between two starts: refused in words, and trained once that is accepted."""

    def attempt() -> tuple[Verdict, str]:
        with home() as queue, tempfile.TemporaryDirectory(prefix="faults-rows-") as folder:
            rows = Path(folder) / "rows.jsonl"
            source = EXAMPLES[config(recipe).data.path.removeprefix("example:")]
            example = source.read_text(encoding="utf-8").splitlines()[:40]
            rows.write_text("\n".join(example) + "\n", encoding="utf-8")
            run = launch(queue, recipe, **{"data.path": str(rows)})
            while not list((run.folder / "checkpoints").glob("*/manifest.json")):
                time.sleep(0.002)
            kill(run)
            rows.write_text("\n".join(example[::-1]) + "\n", encoding="utf-8")
            run = finish(queue, run)
            if run.status == "finished":
                return "lost", "trained on other rows without a word"
            refusal = run.message
            run = finish(queue, run, accept_changes=True)
            return ("refused", refusal) if run.status == "finished" else ("stuck", run.message)

    return tried("changed rows", recipe, "rows in another order", attempt)


def queue_of_thirty(recipe: str, chance: random.Random) -> Outcome:
    """Thirty runs wait for one device; some are killed where they stand."""

    def attempt() -> tuple[Verdict, str]:
        with home() as queue:
            runs = [launch(queue, recipe) for _ in range(30)]
            for run in chance.sample(runs, 5):
                time.sleep(chance.uniform(0, 0.5))
                kill(run)
            for run in runs:
                verdict = judge(finish(queue, run), recipe)
                if verdict[0] != "same":
                    return verdict
            return "same", ""

    return tried("30 queued runs, 5 killed", recipe, "", attempt)


def failing_hub(recipe: str, chance: random.Random) -> Outcome:
    """A backup to a Hub that fails, is cut, or answers nothing: the run hardly notices."""
    from tests.hub.fixtures import _HUB as hub

    fault = chance.choice(["fails", "is cut", "is slow", "refuses the token", "is not there"])

    def attempt() -> tuple[Verdict, str]:
        hub.reset()
        hub.add_user("ann", token="hf_ann")
        if fault == "fails":
            hub.fail("/", times=20)
        elif fault == "is cut":
            hub.cut("/", after_bytes=chance.randint(0, 2000))
        elif fault == "is slow":
            hub.slow("/", seconds=0.2)
        token = "hf_wrong" if fault == "refuses the token" else "hf_ann"
        with home() as queue, forked_workers(_online(fault == "is not there")):
            run = queue.submit(queue.store.create(config(recipe, **{"hub.backup": True})), token)
            return judge(finish(queue, run), recipe)

    return tried("Hub that fails", recipe, f"the Hub {fault}", attempt)


def _online(nowhere: bool) -> Hook:
    """Let the worker ask the Hub on loopback, or a port without one, and give up soon."""

    def hook(folder: Path) -> None:
        from huggingface_hub import constants

        from phi3lora.hub import backup, sending

        constants.HF_HUB_OFFLINE = False
        backup.RETRY_SECONDS = sending.RETRY_SECONDS = ()  # type: ignore[assignment]
        if nowhere:
            constants.ENDPOINT = "http://127.0.0.1:9"

    return hook


KINDS: dict[str, Callable[[str, random.Random], Outcome | None]] = {
    "aimed": aimed_kill,
    "random": random_kill,
    "app": app_kill,
    "disk": full_disk,
    "damage": damage,
    "clock": clock,
    "rows": changed_rows,
}
ONCE: dict[str, Callable[[str, random.Random], Outcome | None]] = {
    "queue": queue_of_thirty,
    "hub": failing_hub,
}
NAMES = (*KINDS, *ONCE)
