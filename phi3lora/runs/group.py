"""The processes of a run that several devices train: its worker is the first, and has the others.

    with group_of(run, config, token, on_hang) as group:
        try:
            train(...)
        except Exception as error:
            raise group.explained(error) from error

A worker that a launcher such as `torchrun` started among others finds them there already, and then
the launcher looks after them. All of them end together: when the worker ends, the others' pipes
close and they end at once; when one of them ends, the worker says which and why.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import Phi3LoraError, RunError, TrainingError
from phi3lora.training.launcher import launched

# A step that waits for a process that is gone fails at once over gloo. Over NCCL it waits for ever.
HANG_SECONDS = 30.0
LAST_SECONDS = 10.0  # for a process to say why it ended, after a step with it has failed


@dataclass
class Group:
    """The other processes of a run; none for a run on one device."""

    number: int = 1
    on_hang: Callable[[str], None] | None = None
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _lost: str | None = None
    _any_lost: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self, config: RunConfig, token: str | None) -> None:
        """Start the others, and be the first among them."""
        from phi3lora.training import processes

        own = _environment(self.number)
        module = (sys.executable, "-m", "phi3lora.runs.member")
        for rank in range(1, self.number):
            process = subprocess.Popen(
                [*module, config.distributed, config.model.device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                text=True,
            )
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(f"{token or ''}\n")
                process.stdin.flush()
            self._processes.append(process)
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
        os.environ.update(own, RANK="0", LOCAL_RANK="0")
        processes.prepare(config.distributed, self.number)

    def explained(self, error: Exception) -> Exception:
        """The error, or why another process ended where that is behind it."""
        if isinstance(error, Phi3LoraError) and not isinstance(error, TrainingError):
            return error
        if not self._processes or not self._any_lost.wait(LAST_SECONDS):
            return error
        return TrainingError(self._lost)

    def part(self) -> None:
        """Be alone from here on."""
        if launched():
            from phi3lora.training import processes

            processes.leave()

    def end(self) -> None:
        """End the others, if they have not ended by themselves."""
        self._over.set()
        for process in self._processes:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        for process in self._processes:
            try:
                process.wait(LAST_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self, rank: int, process: subprocess.Popen[str]) -> None:
        """Wait for a process to end, and remember why the first one did so before its time."""
        assert process.stdout is not None
        said = process.stdout.read()
        status = process.wait()
        if status == 0 or self._over.is_set() or self._any_lost.is_set():
            return
        self._lost = f"Process {rank + 1} of {self.number}: {_reason(said, status)}"
        self._any_lost.set()
        if not self._over.wait(HANG_SECONDS) and self.on_hang:
            self.on_hang(self._lost)


def _reason(said: str, status: int) -> str:
    with suppress(ValueError, KeyError, IndexError):
        return str(json.loads(said.splitlines()[-1])["message"])
    if status < 0:
        return (
            f"it was ended by signal {-status}"
            + (", perhaps because the machine's memory ran out" if status == -9 else "")
            + ". Resume the run to go on from its last checkpoint."
        )
    return f"it ended with status {status}; the log says more."


def _environment(number: int) -> dict[str, str]:
    """What a launcher would say to processes of one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
    }


@contextmanager
def group_of(
    config: RunConfig, token: str | None, on_hang: Callable[[str], None]
) -> Iterator[Group]:
    """The processes that train this config beside this one, for the block."""
    if launched():
        yield Group()
        return
    group = Group(config.devices, on_hang)
    try:
        if config.devices > 1:
            group.start(config, token)
        yield group
    finally:
        group.end()


def share_job(config: RunConfig, **job: Any) -> None:
    """Tell the others, where there are any, what is trained, and where. See `member.take_part`."""
    if not launched():
        return
    from phi3lora.training import processes

    processes.join(cpu=config.model.device == "cpu")
    processes.share({**job, "config": config.model_dump(mode="json")})


def dismiss(cpu: bool) -> None:
    """Tell the processes that a launcher started that there is nothing to train."""
    if not launched():
        return
    from phi3lora.training import processes

    processes.join(cpu)
    processes.share(None)
    processes.leave()


def needed(config: RunConfig, names: list[str]) -> int:
    """How many of this machine's devices a run takes. Raises RunError where there are too few."""
    from phi3lora.training.launcher import number_here

    number = number_here() if launched() else config.devices
    if names == ["cpu"]:
        return 1  # as many processes as are wanted share it
    if number > len(names):
        raise RunError(
            f"This run trains on {number} devices, and this machine has {len(names)}. Set devices "
            f"to {len(names)}."
        )
    return number
