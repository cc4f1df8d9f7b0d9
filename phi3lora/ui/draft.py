"""The form as its browser keeps it: what was typed is there again after a run, or a restart.

The browser writes it (`phi3lora.keep` in pages.js) whenever a field is settled, and sends it when
the Train page opens; nothing of it is kept by the server.
"""

from __future__ import annotations

import json
from typing import Any

from phi3lora.ui.widgets import SPECS

LONGEST = 200_000  # characters of a draft; more is nobody's form
TAB = "tab"  # beside the fields: which tab of the data was open
READ = "() => window.phi3lora.kept()"


def read_draft(text: str | None) -> dict[str, Any]:
    """Field → what its widget showed; empty where there is no draft that can be read."""
    try:
        values = json.loads(text or "{}") if len(text or "") <= LONGEST else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        name: value
        for name, value in values.items()
        if (name in SPECS or name == TAB) and isinstance(value, str | int | float | bool | None)
    }


def keep_script(names: list[str]) -> str:
    """JavaScript that keeps the values of these fields, given in their order."""
    return f"(...values) => window.phi3lora.keep({json.dumps(names)}, values)"
