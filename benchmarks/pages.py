"""Pages that are open and idle, without browsers: each asks what a browser's page asks.

    python -m benchmarks.pages http://127.0.0.1:7860 --pages 100 --seconds 20

As watched in Chromium, an open page fetches its HTML, holds a heartbeat stream, sends its load
event through Gradio's queue and reads the answer, and from then on asks `/pulse` every two
seconds. A line on standard output says when all of them are open, a second one when time is up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import time
from contextlib import suppress
from typing import Any

import httpx

EVERY = 2.0  # seconds between two pulses, as the pages have it
PATHS = ("runs",)  # Compare asks the same, and loads a model; the first page asks nothing


def main() -> None:
    """Open the pages, say so, and keep them idle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--paths", nargs="+", default=list(PATHS))
    arguments = parser.parse_args()
    asyncio.run(idle(arguments.address, arguments.paths, arguments.pages, arguments.seconds))


async def idle(address: str, paths: list[str], pages: int, seconds: float) -> None:
    """So many visitors, each with connections of their own."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
        clock = Clock(pages)
        loads = {path: await _load_events(client, path) for path in paths}
        chosen = [paths[number % len(paths)] for number in range(pages)]
        numbers = [asyncio.create_task(_page(client, path, loads[path], clock)) for path in chosen]
        await clock.all_open.wait()
        print(json.dumps({"open": pages}), flush=True)
        clock.end = time.monotonic() + seconds
        asked = sum(await asyncio.gather(*numbers))
        print(json.dumps({"pulses": asked}), flush=True)


class Clock:
    """When everybody is open, and when it is over."""

    def __init__(self, pages: int) -> None:
        self.waiting = pages
        self.end = float("inf")
        self.all_open = asyncio.Event()
        self.few = asyncio.Semaphore(8)  # visitors do not come all at once

    def opened(self) -> None:
        """One more page is open."""
        self.waiting -= 1
        if not self.waiting:
            self.all_open.set()


async def _page(
    client: httpx.AsyncClient, path: str, loads: list[dict[str, Any]], clock: Clock
) -> int:
    """One visitor. Returns how often it asked."""
    session = secrets.token_hex(6)
    async with clock.few:
        (await client.get(f"/{path}")).raise_for_status()
        heart = asyncio.create_task(_heartbeat(client, session))
        for load in loads:
            await _call(client, load, session)
    clock.opened()
    asked = 0
    await asyncio.sleep(random.random() * EVERY)
    while time.monotonic() < clock.end:
        with suppress(httpx.TransportError):  # a kept connection that was just closed: as browsers
            (await client.get("/pulse", params={"run": ""})).raise_for_status()
            asked += 1
        await asyncio.sleep(EVERY)
    heart.cancel()
    return asked


async def _heartbeat(client: httpx.AsyncClient, session: str) -> None:
    """The stream by which Gradio knows that the page is still open."""
    async with client.stream("GET", f"/gradio_api/heartbeat/{session}", timeout=None) as answer:
        async for _ in answer.aiter_bytes():
            pass


async def _load_events(client: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    """What Gradio calls when the page has loaded."""
    config = (await client.get("/config", params={"page": path})).json()
    return [
        dependency
        for dependency in config["dependencies"]
        if any(event == "load" for _, event in dependency["targets"])
    ]


async def _call(client: httpx.AsyncClient, dependency: dict[str, Any], session: str) -> None:
    """Send an event, and read until it is answered."""
    asked = {
        "data": [None] * len(dependency["inputs"]),
        "fn_index": dependency["id"],
        "session_hash": session,
        "event_data": None,
        "trigger_id": None,
    }
    (await client.post("/gradio_api/queue/join", json=asked)).raise_for_status()
    where = {"session_hash": session}
    async with client.stream("GET", "/gradio_api/queue/data", params=where) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:") and json.loads(line[5:])["msg"] == "process_completed":
                return


if __name__ == "__main__":
    main()
