"""The app in a process of its own, as a ZeroGPU Space starts it."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.serving import free_port, program
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
    port = free_port()
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
    address = f"http://127.0.0.1:{port}"
    home.mkdir(parents=True, exist_ok=True)
    with program(command, address, home / "app.log", cwd=REPOSITORY, env=environ):
        yield address


def visitor_header(name: str) -> dict[str, str]:
    """What the Hub's proxy adds to each request of a visitor; unsigned here."""
    parts = [{"alg": "none"}, {"user": name}]
    coded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return {"x-ip-token": ".".join([*coded, "x"])}
