"""Keep tokens out of whatever is written down or sent away.

redact(f"401 for {token}")   →   "401 for hf_…"
"""

from __future__ import annotations

import re

HIDDEN = "hf_…"
# User tokens are letters and digits; those of OAuth hold a JSON web token with dots and dashes. A
# key of a Space's front matter looks like one, and is none.
TOKEN = re.compile(
    r"\bhf_(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_(?!expiration_minutes\b)[A-Za-z0-9._\-]{16,})"
)


def redact(text: str, secret: str | None = None) -> str:
    """The text without this secret and without anything that looks like a Hub token."""
    if secret:
        text = text.replace(secret, HIDDEN)
    return TOKEN.sub(HIDDEN, text)
