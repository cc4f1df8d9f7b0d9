"""Runs on this machine: a detached process each, one computing at a time on one device.

launch(run, settings, token)      # returns at once; the process outlives this one
devices("cuda")                   # ["0", "1"]: one lock file and one line of runs
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.isolation import inherited, send_token
from phi3lora.runs.store import Run, changed
from phi3lora.settings import Settings

PACKAGE_PARENT = Path(__file__).parents[3]


def launch(run: Run, settings: Settings, token: str | None = None) -> Run:
    """Start the worker of a run, detached. The state is handed over by writing its pid."""
    try:
        return _launch(run, settings, token)
    except OSError as error:
        raise RunError(f"Run {run.id} could not be started: {error}.") from None


def _launch(run: Run, settings: Settings, token: str | None) -> Run:
    own = psutil.Process()
    run.stop_file.unlink(missing_ok=True)
    settings.home.mkdir(parents=True, exist_ok=True)
    run = changed(
        run,
        status="queued",
        message="",
        exit_status=None,
        device=device_kind(run.config),
        queued=time.time(),
        started=None,
        ended=None,
        pid=own.pid,
        process_started=own.create_time(),
    )
    try:
        process = _start(run, worker_environment(settings), token)
    except OSError as error:
        changed(run, status="failed", message=f"Its process could not be started: {error}.")
        raise
    started = psutil.Process(process.pid).create_time()
    # Waited for, so that no dead child lingers and looks alive.
    threading.Thread(target=process.wait, daemon=True, name=f"reaper of {run.id}").start()
    return changed(run, pid=process.pid, process_started=started)


def _start(run: Run, environment: dict[str, str], token: str | None) -> subprocess.Popen[bytes]:
    with (run.folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "phi3lora.runs.worker", str(run.folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    send_token(process, token)
    return process


def worker_environment(
    settings: Settings, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What the worker inherits; on a Space no secret of its owner's. Its token comes by a pipe."""
    environment = inherited(environ) if settings.on_space else dict(environ)
    environment.pop("HF_TOKEN", None)
    if settings.on_space:
        environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    environment["PHI3LORA_HOME"] = str(settings.home)
    path = [str(PACKAGE_PARENT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    environment["PYTHONFAULTHANDLER"] = "1"
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # a log is read, not watched
    return environment


def device_kind(config: RunConfig) -> str:
    """In whose line a run waits: `cuda` if it may use a GPU and there is one, else `cpu`."""
    return "cuda" if config.model.device != "cpu" and devices("cuda") else "cpu"


def devices(kind: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the devices of a kind, as CUDA_VISIBLE_DEVICES takes them; without torch."""
    if kind == "cpu":
        return ["cpu"]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name != "-1"]
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
