"""What a web request says about its sender: the browser's cookie, or a Hugging Face sign-in."""

from __future__ import annotations

import time
from typing import Any

from phi3lora.app.callers import Session

BROWSER = "phi3lora"  # the cookie that tells browsers apart on one's own machine


def session_of(request: Any) -> Session:
    """The session of a Starlette request, or of Gradio's around one."""
    connection = getattr(request, "request", request)
    browser = str(getattr(connection, "cookies", {}).get(BROWSER, ""))
    return Session(browser, session_token(connection))


def session_token(connection: Any) -> str | None:
    """The token of whoever signed in with this browser, unless it has expired."""
    if "session" not in getattr(connection, "scope", {}):
        return None
    signed_in = connection.session.get("oauth_info") or {}
    if signed_in.get("expires_at", 0) < time.time():
        return None
    return signed_in.get("access_token")
