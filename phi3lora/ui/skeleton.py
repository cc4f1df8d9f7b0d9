"""What the Train page shows before Gradio has drawn it: its head, and the preview it opens with.

skeleton("fr")                  at the start of the page's body; train.js takes it away
waiting_page("fr")              whole, while the app is still being imported (`ui.doorman`)
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from phi3lora.ui.first_preview import first_preview
from phi3lora.ui.languages import words_of

FILE = Path(__file__).with_name("skeleton.html")
SAID = re.compile(r">([^<>{}]+)<")
STARTING = "The app is starting; the page is here in a few seconds."
WAITING = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><title>Train · phi3lora</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="20"></head><body>{skeleton}<script>
const look = async () => {{
  const found = await fetch(location.href, {{ method: "HEAD" }}).catch(() => null);
  if (found && found.status !== 503) location.reload();
  else setTimeout(look, 250);
}};
look();
</script></body></html>
"""


def skeleton(language: str, status: str = "") -> str:
    """The markup; what has no translation stays in English until the page itself says it."""
    opening, known = first_preview(), words_of(language)
    text = FILE.read_text(encoding="utf-8")
    style, script, body = text.partition('<div id="skeleton"')
    body = body.replace("<!-- status -->", f'<p class="starting">{status}</p>' if status else "")
    body = body.replace("<!-- preview -->", opening[0] if opening else "")

    def say(found: re.Match[str]) -> str:
        said = html.unescape(found[1])
        return f">{html.escape(known[said], quote=False)}<" if said in known else found[0]

    return style + script + SAID.sub(say, body)


def waiting_page(language: str) -> str:
    """A page that asks for itself until the app answers."""
    return WAITING.format(language=language, skeleton=skeleton(language, STARTING))
