"""What a web request says about its sender: the browser's cookie, or a Hugging Face sign-in.

A program has no sign-in on a page; it brings its token in a header. A page elsewhere cannot: the
guard refuses what another origin sends.
"""

from __future__ import annotations

import time
from typing import Any

from phi3lora.app.callers import Session

TOKEN_HEADERS = ("authorization", "x-hf-authorization")
HUB_TOKEN = "hf_"  # how every token of the Hub begins
BROWSER = "phi3lora"  # the cookie that tells browsers apart on one's own machine


def session_of(request: Any) -> Session:
    """The session of a Starlette request, or of Gradio's around one."""
    connection = getattr(request, "request", request)
    browser = str(getattr(connection, "cookies", {}).get(BROWSER, ""))
    return Session(browser, session_token(connection))


def session_token(connection: Any) -> str | None:
    """The token of whoever signed in with this browser; or a program's, which nobody checked."""
    return page_token(connection) or header_token(connection)


def page_token(connection: Any) -> str | None:
    """The token of whoever signed in with this browser, unless it has expired."""
    if "session" not in getattr(connection, "scope", {}):
        return None
    signed_in = connection.session.get("oauth_info") or {}
    if signed_in.get("expires_at", 0) < time.time():
        return None
    return signed_in.get("access_token")


def page_account(connection: Any) -> str:
    """The account that the Hub named at this browser's sign-in; empty where nobody is signed in.

    The session is signed, so that nobody makes it up.
    """
    if page_token(connection) is None:
        return ""
    known = connection.session["oauth_info"].get("userinfo") or {}
    return str(known.get("sub") or "")


def header_token(connection: Any) -> str | None:
    """The Hub token that a program sends; Gradio's client spells the header in its own way."""
    for name in TOKEN_HEADERS:
        scheme, _, token = getattr(connection, "headers", {}).get(name, "").partition(" ")
        if scheme.lower() == "bearer" and token.startswith(HUB_TOKEN):
            return str(token)
    return None
