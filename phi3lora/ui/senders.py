"""Whose request is worked on, and when: a crowd of one sender's holds up nobody else.

await Turns().answer("ann", app, scope, receive, send)
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

AT_ONCE = 4  # requests of one sender that are worked on
# Seconds of work that one sender may ask for at once, those that come back each second, and the
# most that a single request counts for: it may have waited for the Hub.
CREDIT, EARNED, MOST_COUNTED = 6.0, 0.3, 0.5
UNCOUNTED = ("/assets/", "/static/", "/gradio_api/file")  # these cost next to nothing
REMEMBERED = 10_000  # senders whose work is known


class Turns:
    """Few requests of one sender are worked on at a time; the rest of theirs wait, nobody else's.

    A turn ends with the answer's first byte, so that who reads slowly holds nobody up. Who asks for
    more work than `CREDIT` waits for what comes back of it.
    """

    def __init__(self) -> None:
        self._of: dict[str, tuple[asyncio.Semaphore, int]] = {}  # and how many want it
        self._worked: dict[str, tuple[float, float]] = {}  # seconds for a sender, and as of when

    async def answer(
        self, who: str, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Pass a request on when it is its sender's turn."""
        turns, wanted = self._of.get(who, (asyncio.Semaphore(AT_ONCE), 0))
        self._of[who] = turns, wanted + 1
        counted = not scope["path"].startswith(UNCOUNTED)
        began: float | None = None

        def leave() -> None:
            nonlocal began
            if began is not None:
                self._count(who, time.monotonic() - began if counted else 0.0)
                began = None
                turns.release()

        async def first(message: Message) -> None:
            leave()
            await send(message)

        try:
            await turns.acquire()
            began = time.monotonic()
            if counted and (wait := self._wait(who)):
                await asyncio.sleep(wait)
                began = time.monotonic()
            await app(scope, receive, first)
        finally:
            leave()
            _, wanted = self._of.pop(who)
            if wanted > 1:
                self._of[who] = turns, wanted - 1

    def _wait(self, who: str) -> float:
        """Seconds until a sender's next request is worked on."""
        return max(0.0, (self._owed(who) - CREDIT) / EARNED)

    def _owed(self, who: str) -> float:
        worked, when = self._worked.get(who, (0.0, 0.0))
        return max(0.0, worked - EARNED * (time.monotonic() - when))

    def _count(self, who: str, seconds: float) -> None:
        if len(self._worked) > REMEMBERED:
            self._worked.clear()
        self._worked[who] = self._owed(who) + min(seconds, MOST_COUNTED), time.monotonic()
