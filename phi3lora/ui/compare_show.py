"""What the Compare page shows, made by plain functions."""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora.app.comparing import BUNDLED, PIRATE
from phi3lora.chat.options import SETTINGS, Options
from phi3lora.runs.store import Run
from phi3lora.ui import show
from phi3lora.ui.talk import BASE

BASE_ONLY = ""
SUGGESTIONS = 6
# Ids of the page that another page has for something else.
PLACES = {"strength": "adapter-strength", "against_strength": "other-strength"}
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


def against_choices(choices: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What may stand in the base's place: whatever is offered, and the base itself first."""
    return [("Its base", BASE_ONLY), *(one for one in choices if one[1] != BASE_ONLY)]


def third_choices(choices: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Who may be the third of a tournament: nobody, the base, or whatever is offered."""
    others = [one for one in choices if one[1] != BASE_ONLY]
    return [("Nobody", ""), ("The base", BASE), *others]


def first_choice(wanted: str | None, choices: list[tuple[str, str]]) -> str:
    """What the address names, else the newest finished run, else what comes along."""
    return wanted if wanted is not None else choices[0][1]


def subject_field(
    label: str, name: str, info: str, choices: list[tuple[str, str]], value: str | None
) -> gr.Dropdown:
    """A list of what can be compared, where something else may be typed."""
    return gr.Dropdown(
        choices,
        value=value,
        label=label,
        elem_id=name,
        filterable=True,
        allow_custom_value=True,
        info=info,
    )


def sampling_field(name: str, *, brief: bool = False) -> Any:
    """A slider, or a number field, for an option of the answer; a brief one has no help line."""
    setting, value = SETTINGS[name], getattr(Options, name)
    common: dict[str, Any] = {
        "label": setting.title,
        "info": None if brief else setting.help,
        "elem_id": PLACES.get(name, name.replace("_", "-")),
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
