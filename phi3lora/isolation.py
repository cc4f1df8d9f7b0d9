"""What keeps one visitor's process away from the secrets of the app and of other visitors.

environment = inherited(os.environ)     what a worker may see of the app's environment
send_token(process, token)              by a pipe, which no process list shows
token = receive_token()                 in the worker
end_with_parent()                       this process lives no longer than its parent
hide_process()                          /proc/PID/environ and memory are closed to neighbours
"""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from phi3lora.redaction import redact

# Names a worker needs on a Space; whatever else stands in its environment is nobody's business.
ALLOWED = re.compile(
    r"(?:PATH|HOME|USER|LOGNAME|SHELL|TZ|TMPDIR|LANG|LANGUAGE|SYSTEM|NO_PROXY|"
    r"(?:LC|XDG|PYTHON|VIRTUAL|LD|CUDA|NVIDIA|NCCL|OMP|MKL|OPENBLAS|TORCH|PYTORCH|TRITON|HF|"
    r"HUGGINGFACE|TRANSFORMERS|TOKENIZERS|DATASETS|ACCELERATE|BNB|PHI3LORA|SPACE|SPACES|"
    r"SSL_CERT|REQUESTS)_\w+|PYTHON\w+|HTTPS?_PROXY)\Z",
    re.IGNORECASE,
)
SECRET = re.compile(
    r"(?:^|_)(?:TOKENS?|KEYS?|PASS|PWD|AUTH|DSN)(?:_|$)|SECRET|PASSW|APIKEY|CREDENTIAL|WEBHOOK",
    re.I,
)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # of <linux/prctl.h>


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of a Space's environment that a visitor's process may see: no secret of anybody."""
    return {
        name: value
        for name, value in environ.items()
        if ALLOWED.match(name) and not SECRET.search(name) and redact(value) == value
    }


def send_token(process: subprocess.Popen[bytes], token: str | None) -> None:
    """Hand a token to a process that was started with a pipe as its standard input."""
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # it ended already: its state says why
        pipe.write((token or "").encode())


def receive_token() -> str | None:
    """The token that whoever started this process sent; None where there is none."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    return sys.stdin.read().strip() or None


def hide_process() -> None:
    """Close this process's environment and memory to others of the same user (Linux).

    A process that may trace every other one (root) is not kept out.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent() -> None:
    """Let this process be ended when the one that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
