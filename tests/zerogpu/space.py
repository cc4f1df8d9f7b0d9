"""The app in a process of its own, as a ZeroGPU Space starts it."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.zerogpu.scheduler import LoopbackScheduler

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def space(
    scheduler: LoopbackScheduler,
    home: Path,
    environment: Mapping[str, str] | None = None,
    main: str = "import app; app.main()",
) -> Iterator[str]:
    """The running app's address; it ends with the block. `main` is what its app.py does."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    environ = {
        **os.environ,
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": scheduler.url,
        "PHI3LORA_HOME": str(home),
        **(environment or {}),
    }
    environ["GRADIO_SERVER_PORT"] = str(port)
    start = f"from tests.zerogpu.pretend import pretend; pretend(); {main}"
    command = [sys.executable, "-c", start, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environ, cwd=REPOSITORY, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _await(address, process)
        yield address
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its forks, which lend nothing any more
        process.wait()


def _await(address: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the Space ended while it started"
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the Space did not come up")


def visitor_header(name: str) -> dict[str, str]:
    """What the Hub's proxy adds to each request of a visitor; unsigned here."""
    parts = [{"alg": "none"}, {"user": name}]
    coded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return {"x-ip-token": ".".join([*coded, "x"])}
