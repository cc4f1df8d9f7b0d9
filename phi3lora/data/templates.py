"""Chat templates, rendered in a process that is ended when a template takes too long.

    text = write(template, messages, prompt=True, names={"eos_token": "<|endoftext|>"})

See `template_process.py` for what that process may use. It is started when it is first needed and
serves all threads, one request at a time; few are made, for a template is asked once for each
pattern of roles.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from phi3lora.errors import DataError, ModelError

LONGEST = 100_000  # characters of a template; the longest published ones have some 10,000
START, WAIT = 60.0, 20.0  # seconds of the clock; the processor's time is limited by the process

_lock = threading.Lock()
_running: _Process | None = None


class Refused(DataError):
    """A template that raises: it does not take these roles in this order, for example."""


def write(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    prompt: bool,
    names: Mapping[str, str],
) -> str:
    """What a template writes of a conversation, as `apply_chat_template(tokenize=False)` does.

    Args:
        prompt: ask for the mark after which the model answers.
        names: of special tokens, such as `eos_token`.

    Raises:
        Refused: the template raised.
        ModelError: it is too long, or did not come to an end.
    """
    if len(template) > LONGEST:
        raise ModelError(
            f"The chat template has {len(template):,} characters: expected {LONGEST:,} at most. "
            "Take the checkpoint's own tokenizer."
        )
    values = {
        **names,
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": prompt,
    }
    found = _ask(json.dumps({"template": template, "values": values}))
    if "text" in found:
        return str(found["text"])
    raise Refused(f"The chat template refuses this conversation: {found['error']}")


def _ask(line: str) -> dict[str, Any]:
    global _running
    with _lock:
        if _running is None or not _running.usable():
            _running = _Process()
        return _running.ask(line)


class _Process:
    """One process, its pipes, and whose it is."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("template_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},  # no secret of the app's
        )
        self._line(START)

    def usable(self) -> bool:
        """Whether it lives, and was not inherited by a fork."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, line: str) -> dict[str, Any]:
        """The answer; ModelError when there is none, and then the process is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._end()
        return dict(json.loads(self._line(WAIT)))

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        if not line.endswith(b"\n"):  # nothing came, or the process was ended half-way
            self._end()
        return line

    def _end(self) -> NoReturn:
        self._process.kill()
        self._process.wait()
        raise ModelError(
            "The chat template did not come to an end within two seconds. Take the checkpoint's "
            "own tokenizer."
        )
