"""Jobs: kept, listed, cancelled, and followed. Nothing runs unless a test says how."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
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

    def log(self, line: str) -> None:
        self.lines.append({"timestamp": now(), "data": line})

    def end(self, stage: str = "COMPLETED", message: str | None = None) -> None:
        if self.stage not in ENDED:
            self.stage, self.message = stage, message

    def describe(self) -> dict[str, Any]:
        shown = {k: v for k, v in self.spec.items() if k not in ("secrets", "timeoutSeconds")}
        return {
            **shown,
            "id": self.id,
            "createdAt": self.created_at,
            "secrets": dict.fromkeys(self.spec.get("secrets") or {}, ""),
            "timeout": self.spec.get("timeoutSeconds"),
            "status": {"stage": self.stage, "message": self.message},
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
    job = Job(secrets.token_hex(12), store.users[ns], spec)
    jobs = get_jobs(request)
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
