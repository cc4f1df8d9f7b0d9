"""What a ZeroGPU machine's scheduler answers to `spaces` 0.51, on loopback.

| call | answer |
| --- | --- |
| POST /startup-report | 200 |
| POST /schedule | 200 a grant; 429 what is left of a quota; a stream while all are lent |
| POST /allow, /release | 200 |
| GET /queue-size | a number |
"""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NOBODY = ""


@dataclass
class Grant:
    """One use of the device. Times are in seconds of `time.monotonic()`."""

    token: str
    visitor: str
    seconds: float
    begun: float
    pid: int | None = None
    ended: float | None = None
    failed: bool = False


@dataclass
class LoopbackScheduler:
    """Lends one device at a time, and counts what each visitor used.

    Attributes:
        quota: seconds that a visitor has left; who is not named has plenty.
        longest: seconds of one call at the most.
        devices: how many may be lent at once.
        grants: every call so far.
        queued: how often a call found every device lent, and waited.
        wait: seconds until a spent quota is full again, as told to the visitor.
    """

    quota: dict[str, float] = field(default_factory=dict)
    longest: float = 3600
    devices: int = 1
    wait: int = 3600
    grants: list[Grant] = field(default_factory=list)
    started: int = 0
    queued: int = 0
    refusals: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Condition()
        handler = type("Handler", (_Handler,), {"scheduler": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackScheduler:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def used(self, visitor: str) -> float:
        """Seconds that a visitor's finished calls took."""
        return sum((g.ended or g.begun) - g.begun for g in self.grants if g.visitor == visitor)

    def running(self) -> list[Grant]:
        """Calls that hold a device now."""
        return [grant for grant in self.grants if grant.ended is None]

    def kill(self) -> None:
        """End what computes now, as the platform does when its time is over."""
        for grant in self.running():
            if grant.pid:
                os.kill(grant.pid, signal.SIGKILL)

    # What the handler calls

    def schedule(self, visitor: str, seconds: float) -> Grant | dict[str, Any] | None:
        """A grant, or why there is none; None while every device is lent."""
        with self._lock:
            left = self.quota.get(visitor, 1e9) - self.used(visitor)
            if seconds > self.longest:
                self.refusals.append(visitor)
                return {"left": round(left), "wait": -1}
            if seconds > left:
                self.refusals.append(visitor)
                return {"left": max(0, round(left)), "wait": self.wait}
            if len(self.running()) >= self.devices:
                self.queued += 1
                return None
            grant = Grant(f"grant-{len(self.grants)}", visitor, seconds, time.monotonic())
            self.grants.append(grant)
            return grant

    def release(self, token: str, failed: bool) -> bool:
        """Take a device back."""
        with self._lock:
            for grant in self.grants:
                if grant.token == token and grant.ended is None:
                    grant.ended, grant.failed = time.monotonic(), failed
                    self._lock.notify_all()
                    return True
        return False

    def wait_for_one(self, seconds: float) -> None:
        """Until something is released, or the time is over."""
        with self._lock:
            self._lock.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    scheduler: LoopbackScheduler

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path == "/startup-report":
            self.scheduler.started += 1
            self._answer(200, {})
        elif address.path == "/schedule":
            self._schedule(query)
        elif address.path == "/allow":
            for grant in self.scheduler.grants:
                if grant.token == query["allowToken"]:
                    grant.pid = int(query["pid"])
            self._answer(200, {})
        elif address.path == "/release":
            known = self.scheduler.release(query["allowToken"], query["fail"].lower() == "true")
            self._answer(200 if known else 404, {})
        else:
            self._answer(404, {})

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/queue-size" else 404, 0.0)

    def _schedule(self, query: dict[str, str]) -> None:
        visitor = _visitor(query.get("token"))
        asked = visitor, float(query.get("durationSeconds", 60))
        answer = self.scheduler.schedule(*asked)
        if isinstance(answer, Grant):
            self._answer(200, _lent(answer))
        elif answer is not None:
            reason = "illegal-duration" if answer["wait"] < 0 else "quota-exceeded"
            self._answer(429, answer, {"X-Approve-Result": reason})
        else:
            self._stream(asked)

    def _stream(self, asked: tuple[str, float]) -> None:
        """Events while one waits: ping, then failed or succeeded."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Queuing-Reason", "node")
        self.end_headers()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self.scheduler.schedule(*asked)
            if isinstance(answer, Grant):
                self._event(f"event: succeeded\ndata: {json.dumps(_lent(answer))}\n\n")
                return
            if not self._event("event: ping\n\n"):
                return
            self.scheduler.wait_for_one(1.0)
        self._event("event: failed\n\n")

    def _event(self, text: str) -> bool:
        try:
            self.wfile.write(text.encode())
            self.wfile.flush()
        except OSError:  # nobody waits any more
            return False
        return True

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _lent(grant: Grant) -> dict[str, Any]:
    return {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": grant.token}


def _visitor(token: str | None) -> str:
    """Whom the signed header of a visitor names; nobody where there is none."""
    if token is None:
        return NOBODY
    payload = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(f"{payload}==")).get("user", NOBODY))
