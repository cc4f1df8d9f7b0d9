"""A process that trains a run beside others, of which the first one writes all there is to write.

    python -m phi3lora.runs.member WAY DEVICE        by the run's worker, see `group`
    take_part(cpu, settings, token)                  by a launcher such as torchrun

It is told what to train when it meets the others. Where its worker started it, a pipe says the
token and, by its end, that the worker is gone: then nothing is left to do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO, cast

from phi3lora.config import RunConfig
from phi3lora.importing import heavy_imports
from phi3lora.isolation import hide_process
from phi3lora.runs.redaction import RedactedStream
from phi3lora.runs.worker import begin_log, explain
from phi3lora.settings import Settings

ENDS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Take part in the worker's run. Returns the exit status; stdout says why it is not 0."""
    for number in (*ENDS, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker is asked, and decides for all
    settings = Settings.from_environment()
    if settings.on_space:
        hide_process()
    token = sys.stdin.readline().strip() or None
    threading.Thread(target=_end_with_worker, daemon=True, name="the worker's life").start()
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes into the log
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout, token))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr, token))
    begin_log("warning")
    try:
        from phi3lora.training import processes

        processes.prepare(cast(Any, sys.argv[1]), int(os.environ["WORLD_SIZE"]))
        take_part(sys.argv[2] == "cpu", settings, token)
    except Exception as error:  # noqa: BLE001 - the worker writes down why the run ended
        traceback.print_exc()
        message, status = explain(error, token)
        print(json.dumps({"message": message, "status": status}), file=said, flush=True)
        return status
    return 0


def take_part(cpu: bool, settings: Settings, token: str | None) -> None:
    """Train what the first process trains, until it is over. Raises whatever the training does."""
    from phi3lora.training import processes

    processes.join(cpu)
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)  # all stop when the first one says so
    job = processes.share(None)
    if job is not None:
        _train(RunConfig.from_values(job["config"])[0], job, settings, token)
    processes.leave()


def _train(config: RunConfig, job: dict[str, Any], settings: Settings, token: str | None) -> None:
    with heavy_imports():
        from phi3lora.training.trainer import train

    train(
        config,
        Path(job["folder"]),
        _silent,
        should_stop=_never,
        deadline=None,
        token=token,
        cache_folder=settings.cache_folder / job["owner"],
        accept_changes=job["accept_changes"],
    )


def _end_with_worker() -> None:
    """End at once when the worker does: it may hang in a step that the others never join."""
    sys.stdin.read()
    os._exit(1)


def _silent(event: Any) -> None:
    """The first process reports."""


def _never() -> bool:
    """The first process is asked to stop."""
    return False


if __name__ == "__main__":
    sys.exit(main())
