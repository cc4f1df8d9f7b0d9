"""What costs no GPU is done before one is lent: the base fetched, the rows prepared.

    get_ready(run, settings, token)              in the app, which waits; False: asked to stop
    python -m phi3lora.runs.preparing FOLDER PIPE     the process; what is wrong goes into the pipe

Strangers' rows are read in a process of its own, which may be ended at any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO, cast

from phi3lora.config import RunConfig
from phi3lora.errors import Phi3LoraError, RunError
from phi3lora.events import DOWNLOADING, PREPARING, Emit, EventLog, Stage, by_share
from phi3lora.isolation import hide_process, receive_token, send_token
from phi3lora.runs.backends.local import worker_environment
from phi3lora.runs.redaction import RedactedStream
from phi3lora.runs.store import Run, open_run
from phi3lora.runs.worker import Reporter
from phi3lora.settings import Settings

POLL_SECONDS = 0.1


def get_ready(run: Run, settings: Settings, token: str | None) -> bool:
    """Wait until a run's base and rows lie on the disk; False where it was asked to stop meanwhile.

    Raises Phi3LoraError with what is wrong with them.
    """
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8", errors="replace") as said:
        process = _start(run, settings, writer)
        send_token(process, token)
        while process.poll() is None:
            if run.stop_file.exists():
                process.kill()
                process.wait()
                return False
            time.sleep(POLL_SECONDS)
        if process.returncode == 0:
            return True
        raise RunError(said.read() or "Preparing the run ended without a word; see its log.")


def _start(run: Run, settings: Settings, writer: int) -> subprocess.Popen[bytes]:
    with (run.folder / "log.txt").open("ab") as log:
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "phi3lora.runs.preparing", str(run.folder), str(writer)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=worker_environment(settings),
                pass_fds=[writer],
                start_new_session=True,
            )
        finally:
            os.close(writer)


def main() -> int:
    """Get the run ready whose folder is the first argument. Returns the exit status."""
    settings = Settings.from_environment()
    if settings.on_space:
        hide_process()
    token = receive_token()
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout, token))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr, token))
    run = open_run(Path(sys.argv[1]))
    with EventLog(run.folder / "events.jsonl") as log:
        try:
            _prepare(run.config, Reporter(log, token), token, settings.cache_folder / run.owner)
        except Phi3LoraError as error:
            os.write(int(sys.argv[2]), str(error).encode())
            return 2
    return 0


def _prepare(config: RunConfig, emit: Emit, token: str | None, cache_folder: Path) -> None:
    """Fetch the base and prepare the rows, so that a training finds both. Takes no device."""
    # Nothing that trains is imported: that would take longer than many a preparation.
    from phi3lora.data.preparation import prepare
    from phi3lora.models.base import check_base, fetch, resolve_path
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_tokenizer

    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    emit(Stage(name="fetching the model"))
    base = check_base(path, config.model.revision, token)
    fetch(base, token, tell=by_share(emit, DOWNLOADING))
    tokenizer = load_tokenizer(path, config.model.revision, token)
    progress = by_share(emit, PREPARING)
    prepare(config, tokenizer, token=token, cache_folder=cache_folder, progress=progress)


if __name__ == "__main__":
    sys.exit(main())
