"""Jobs: kept, listed, cancelled, and followed. Nothing runs unless a test says how.

`hub.jobs.runner = machine.Machine(hub, folder)` executes each command in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from . import access
from .routing import Hub, Who
from .spaces import FLAVOURS
from .store import HubError, User, now

router = APIRouter()

NO_CREDIT = (
    "Pre-paid credit balance is insufficient - add more credits to your account to use Jobs."
)
ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")


@dataclass
class Job:
    """One Job: what was asked for, how far it is, what it said."""

    id: str
    owner: User
    spec: dict[str, Any]
    stage: str = "RUNNING"
    message: str | None = None
    lines: list[dict[str, str]] = field(default_factory=list)
    created_at: str = field(default_factory=now)
    started: float | None = None  # seconds since 1970
    finished: float | None = None

    def log(self, line: str) -> None:
        self.lines.append({"timestamp": now(), "data": line})

    def start(self) -> None:
        """The machine is there."""
        if self.stage == "SCHEDULING":
            self.stage, self.started = "RUNNING", time.time()
            self.log(f"===== Job started at {now()} =====")

    def end(self, stage: str = "COMPLETED", message: str | None = None) -> None:
        if self.stage not in ENDED:
            self.stage, self.message, self.finished = stage, message, time.time()

    def durations(self) -> dict[str, int | None]:
        running = (self.finished or time.time()) - self.started if self.started else None
        return {"schedulingSecs": 0, "runningSecs": round(running) if running else None}

    def describe(self) -> dict[str, Any]:
        shown = {k: v for k, v in self.spec.items() if k not in ("secrets", "timeoutSeconds")}
        return {
            **shown,
            "id": self.id,
            "createdAt": self.created_at,
            "secrets": dict.fromkeys(self.spec.get("secrets") or {}, ""),
            "timeout": self.spec.get("timeoutSeconds"),
            "status": {"stage": self.stage, "message": self.message},
            "durations": self.durations(),
            "owner": {"id": self.owner.id, "name": self.owner.name, "type": "user"},
            "initiator": {"id": self.owner.id, "name": self.owner.name, "type": "user"},
        }


@dataclass
class Jobs:
    """All Jobs, newest last. ``runner`` is called with each new one in a thread of its own."""

    all: dict[str, Job] = field(default_factory=dict)
    runner: Callable[[Job], None] | None = None


def get_jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


def find_job(request: Request, caller: access.Caller, ns: str, job_id: str) -> Job:
    access.check_jobs(caller, ns)
    job = get_jobs(request).all.get(job_id)
    if job is None or job.owner.name != ns:
        raise HubError(404, "Job not found")
    return job


@router.get("/api/jobs/hardware")
async def hardware() -> list[dict[str, Any]]:
    return list(FLAVOURS)


@router.post("/api/jobs/{ns}")
async def create(request: Request, store: Hub, caller: Who, ns: str) -> dict[str, Any]:
    access.check_jobs(caller, ns)
    spec = await request.json()
    if spec.get("flavor") not in [flavour["name"] for flavour in FLAVOURS]:
        raise HubError(400, f'"flavor" {spec.get("flavor")!r} is not known')
    if not spec.get("command") or not (spec.get("dockerImage") or spec.get("spaceId")):
        raise HubError(400, '"command" and "dockerImage" or "spaceId" are required')
    if not (store.users[ns].pays or store.users[ns].pro):
        raise HubError(402, NO_CREDIT)
    jobs = get_jobs(request)
    stage = "SCHEDULING" if jobs.runner else "RUNNING"
    job = Job(secrets.token_hex(12), store.users[ns], spec, stage)
    jobs.all[job.id] = job
    if jobs.runner:
        threading.Thread(target=jobs.runner, args=(job,), daemon=True).start()
    return job.describe()


@router.get("/api/jobs/{ns}")
async def list_jobs(request: Request, caller: Who, ns: str) -> list[dict[str, Any]]:
    access.check_jobs(caller, ns)
    query = request.query_params
    labels = [label.partition("=")[::2] for label in query.getlist("label")]
    stages = query.getlist("stage")
    return [
        job.describe()
        for job in reversed(list(get_jobs(request).all.values()))
        if job.owner.name == ns
        and (not stages or job.stage in stages)
        and all((job.spec.get("labels") or {}).get(key) == value for key, value in labels)
    ]


@router.get("/api/jobs/{ns}/{job_id}")
async def inspect(request: Request, caller: Who, ns: str, job_id: str) -> dict[str, Any]:
    return find_job(request, caller, ns, job_id).describe()


@router.post("/api/jobs/{ns}/{job_id}/cancel")
async def cancel(request: Request, caller: Who, ns: str, job_id: str) -> dict[str, Any]:
    job = find_job(request, caller, ns, job_id)
    job.end("CANCELED")
    return job.describe()


@router.get("/api/jobs/{ns}/{job_id}/logs")
async def logs(request: Request, caller: Who, ns: str, job_id: str) -> StreamingResponse:
    job = find_job(request, caller, ns, job_id)
    tail = request.query_params.get("tail")
    start = max(0, len(job.lines) - int(tail)) if tail else 0
    return StreamingResponse(follow(job, start), media_type="text/event-stream")


async def follow(job: Job, start: int) -> AsyncIterator[str]:
    """Lines as they come, until the Job has ended."""
    while True:
        ended = job.stage in ENDED
        for line in job.lines[start:]:
            yield f"data: {json.dumps(line)}\n\n"
            start += 1
        if ended:
            return
        await asyncio.sleep(0.05)
