"""What the Compare page shows, made by plain functions."""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora.app.comparing import BUNDLED, PIRATE
from phi3lora.chat.options import SETTINGS, Options
from phi3lora.runs.store import Run
from phi3lora.ui import show

BASE_ONLY = ""
SUGGESTIONS = 6
SHARE = """
<details class="menu share"><summary>Share</summary><div>
<button type="button" data-share="link">Copy link</button>
<button type="button" data-share="image">Save as image</button>
<button type="button" data-share="markdown">Download as Markdown</button>
<button type="button" data-share="jsonl">Download as JSONL</button>
</div></details>
<details class="menu earlier"><summary>Earlier</summary><div></div></details>
<span class="shared" role="status"></span>
"""


def adapter_choices(runs: list[Run]) -> list[tuple[str, str]]:
    """Finished runs, newest first; then the adapter that comes along, and the base alone."""
    found = [(f"{run.title} · {run.id[:8]}-{run.id[9:13]}", run.id) for run in runs]
    bundled = (f"{PIRATE.name}, which comes along", BUNDLED)
    return [*found, bundled, ("No adapter: the base alone", BASE_ONLY)]


def first_choice(wanted: str | None, choices: list[tuple[str, str]]) -> str:
    """What the address names, else the newest finished run, else what comes along."""
    return wanted if wanted is not None else choices[0][1]


def sampling_field(name: str) -> Any:
    """A slider, or a number field, for an option of the answer."""
    setting, value = SETTINGS[name], getattr(Options, name)
    common: dict[str, Any] = {
        "label": setting.title,
        "info": setting.help,
        "elem_id": name.replace("_", "-"),
    }
    if setting.slider is None:
        return gr.Number(value=value, precision=0, **common)
    low, high, step = setting.slider
    return gr.Slider(low, high, value=value, step=step, **common)


def status_line(note: str) -> str:
    """What is being waited for."""
    return f'<div class="reading"><b></b>{show.text(note[:1].upper() + note[1:])}</div>'


def settled_head(repo: str, space: str | None) -> str:
    """An adapter that is the only one: its name, its card, a Space of one's own, what made it."""
    addresses = {"Model card": f"https://huggingface.co/{repo}"}
    if space:
        addresses["Duplicate"] = f"https://huggingface.co/spaces/{space}?duplicate=true"
    links = (
        f'<a href="{show.text(address)}" target="_blank" rel="noopener">{words}</a>'
        for words, address in addresses.items()
    )
    return (
        f'<h1>{show.text(repo)}</h1><p class="about">{" · ".join(links)} · '
        "Trained with phi3lora</p>"
    )


def about_line(parts: list[str]) -> str:
    """What is compared, under its name."""
    return f'<p class="about">{show.text(" · ".join(parts))}</p>' if parts else ""


def undo_line(what: str) -> str:
    """What has just gone, and the way back."""
    return (
        f'<div class="notice grey" role="status"><i>i</i><div>{show.text(what)} '
        '<button type="button" class="chip" data-do="undo">Undo</button></div></div>'
    )


def prompt_chips(prompts: list[str]) -> str:
    """Suggested prompts, each a button."""
    chips = "".join(
        f'<button type="button" class="chip" data-prompt="{show.text(prompt)}">'
        f"{show.text(prompt)}</button>"
        for prompt in prompts[:SUGGESTIONS]
    )
    return f'<div class="chips" aria-label="Suggested prompts">{chips}</div>' if chips else ""
