"""What the Compare page shows, made by plain functions."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from phi3lora.chat.options import SETTINGS, Options, Pair, Side
from phi3lora.chat.votes import Tally
from phi3lora.runs.store import Run
from phi3lora.thoughts import OPENING, join_thoughts, split_thoughts
from phi3lora.ui import show

BASE_ONLY = ""
TITLES = {"base": "Base", "tuned": "Tuned"}
SUGGESTIONS = 6
THOUGHTS = "Thoughts"  # the title under which they are folded away
Message = dict[str, Any]


def adapter_choices(runs: list[Run]) -> list[tuple[str, str]]:
    """The base alone, then finished runs, newest first."""
    return [("No adapter: the base alone", BASE_ONLY)] + [
        (f"{run.title} · {run.id[:8]}-{run.id[9:13]}", run.id) for run in runs
    ]


def first_choice(wanted: str | None, choices: list[tuple[str, str]]) -> str:
    """What the address names, else the newest finished run, else the base alone."""
    if wanted is not None:
        return wanted
    newest = [value for _, value in choices if value != BASE_ONLY]
    return newest[0] if newest else BASE_ONLY


def plain(messages: list[Message] | None) -> list[Message]:
    """Role and text alone, as they were said, whatever the chat component adds."""
    said: list[Message] = []
    thoughts: str | None = None
    for message in messages or []:
        text = html.unescape(text_of(message["content"]))
        if thoughts is not None and message["role"] == "assistant":
            said[-1]["content"] = join_thoughts(thoughts, text)
            thoughts = None
            continue
        folded = (message.get("metadata") or {}).get("title") == THOUGHTS
        thoughts = text if folded else None
        said.append({"role": message["role"], "content": f"{OPENING}\n{text}" if folded else text})
    return said


def escaped(messages: list[Message]) -> list[Message]:
    """As the chat component gets them, which draws every text as HTML; thoughts are folded."""
    return [
        {**part, "content": html.escape(part["content"], quote=False)}
        for message in messages
        for part in _folded(message)
    ]


def _folded(message: Message) -> list[Message]:
    """A message as it is, or an answer's thoughts under a title of their own, then the answer."""
    found = split_thoughts(message["content"])
    if message["role"] != "assistant" or not (found.thoughts or not found.closed):
        return [message]
    fold = {"title": THOUGHTS, "status": "done" if found.closed else "pending"}
    thoughts = {"role": "assistant", "content": found.thoughts or "…", "metadata": fold}
    answer = {**message, "content": found.said or "(nothing)"}
    return [thoughts, answer] if found.closed else [thoughts]


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


def column_title(name: str) -> str:
    """The head of a column."""
    kind = "tuned" if name == TITLES["tuned"] else ""
    return f'<h2 class="side-title {kind}">{show.text(name)}</h2>'


def text_of(content: Any) -> str:
    """A message's text, which arrives as a string or as a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return str(content)


def with_answer(column: list[Message], answer: str, waiting: bool) -> list[Message]:
    """The column with the answer so far; a cursor while nothing was said yet."""
    return [*column, {"role": "assistant", "content": answer or ("…" if waiting else "(nothing)")}]


def status_line(note: str) -> str:
    """What is being waited for."""
    return f'<div class="reading"><b></b>{show.text(note[:1].upper() + note[1:])}</div>'


def answer_facts(pair: Pair, sides: tuple[Side, Side], busy: bool) -> str:
    """How long the answers are, and whether they ended by themselves."""
    if busy or not pair.done:
        return ""
    cells = []
    for side in sides:
        tokens, ended = getattr(pair, f"tokens_{side}"), getattr(pair, f"stopped_{side}")
        words = f"{tokens} tokens{'' if ended else ', cut'}" if tokens else ""
        cells.append(f"<span>{words}</span>")
    return f'<div class="answer-facts">{"".join(cells)}</div>'


def prompt_chips(prompts: list[str]) -> str:
    """Suggested prompts, each a button."""
    chips = "".join(
        f'<button type="button" class="chip" data-prompt="{show.text(prompt)}">'
        f"{show.text(prompt)}</button>"
        for prompt in prompts[:SUGGESTIONS]
    )
    return f'<div class="chips" aria-label="Suggested prompts">{chips}</div>' if chips else ""


def tally_line(tally: Tally) -> str:
    """The votes so far, or nothing where there are none."""
    if not tally.votes:
        return ""
    rate = ""
    if tally.win_rate is not None and tally.interval is not None:
        low, high = (100 * bound for bound in tally.interval)
        rate = f"tuned wins {100 * tally.win_rate:.0f} % (95 % interval {low:.0f} to {high:.0f} %)"
        rate += ", which cannot tell them apart · " if tally.verdict == "cannot tell" else " · "
    parts = (
        f"{rate}{tally.tuned} tuned · {tally.base} base · {tally.ties} ties · "
        f"{tally.both_bad} both bad"
    )
    return f'<p class="tally"><b>{tally.votes} blind votes</b>{parts}</p>'
