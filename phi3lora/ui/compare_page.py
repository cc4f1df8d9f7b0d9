"""The Compare page: base and tuned side by side, one input, both streaming.

Two columns, left and right. In the open the base is left; in blind mode a coin decides for each
conversation, and the names come back with the vote. The conversation lives in the page, so every
visitor has their own; the one engine answers everybody.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora.chat.options import Options, Pair
from phi3lora.config import POCKET, ModelConfig
from phi3lora.errors import AccessError, AdapterError, DataError, Phi3LoraError
from phi3lora.runs.store import Run
from phi3lora.ui import show
from phi3lora.ui.core import Caller, Core
from phi3lora.ui.runs_page import EVERY, PULSE
from phi3lora.ui.widgets import shown

BASE_ONLY = ""
TITLES = {"base": "Base", "tuned": "Tuned"}
HIDDEN = ("Answer A", "Answer B")
VOTES = (("A is better", "left"), ("B is better", "right"), ("Tie", "tie"), ("Both bad", "bad"))
SUGGESTIONS = 6
REMEMBER = "(adapter) => { window.phi3lora.remember('adapter', adapter); return adapter; }"
ASK = """
element.addEventListener('click', (event) => {
  const chip = event.target.closest('button[data-prompt]');
  if (chip) trigger('click', {prompt: chip.dataset.prompt});
});
"""
Message = dict[str, Any]


@dataclass(frozen=True)
class Contest:
    """What is compared: the base as it is loaded, and the adapter beside it."""

    base: ModelConfig
    adapter: Path | None
    name: str


class Stops:
    """Who pressed Stop, by session; an answer looks here between tokens."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}

    def begin(self, session: str) -> threading.Event:
        """A fresh flag for this session's answer."""
        self._events[session] = threading.Event()
        return self._events[session]

    def stop(self, session: str) -> None:
        """Raise the session's flag."""
        if event := self._events.get(session):
            event.set()

    def end(self, session: str, event: threading.Event) -> None:
        """Forget the flag, unless a newer answer has replaced it."""
        if self._events.get(session) is event:
            del self._events[session]


class ComparePage:
    """The page's components and handlers."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.stops = Stops()
        self.flipped = gr.State(False)
        self.pulse = gr.Textbox(visible="hidden")
        self.nothing = gr.Textbox(visible="hidden")
        self.timer = gr.Timer(EVERY)
        with gr.Column(elem_classes="page compare"):
            self._top()
            with gr.Row(elem_classes="columns", equal_height=True):
                self.left = self._column("left")
                self.right = self._column("right")
            self._voting()
            self._input()
            self._settings()

    def _top(self) -> None:
        with gr.Row(elem_classes="compare-top"):
            gr.HTML('<div class="section-head"><div><h1>Base and tuned, side by side</h1>'
                    "<p>The same question, the same weights; the adapter makes the difference."
                    "</p></div></div>")  # fmt: skip
            self.adapter = gr.Dropdown(
                [("No adapter: the base alone", BASE_ONLY)], value=BASE_ONLY, label="Adapter",
                elem_id="adapter", min_width=280, filterable=True,
                allow_custom_value=not self.core.settings.on_space,
                info=None if self.core.settings.on_space else "A finished run, or a folder's path.",
            )  # fmt: skip
        self.status = gr.HTML(elem_id="chat-status")

    def _column(self, side: str) -> gr.Chatbot:
        who = "base" if side == "left" else "tuned"
        return gr.Chatbot(
            label=TITLES[who], show_label=True, elem_id=f"chat-{side}", elem_classes="chat",
            height=420,
            buttons=["copy"], render_markdown=False, sanitize_html=True, allow_tags=False,
            layout="bubble", feedback_options=None, latex_delimiters=[], min_width=280,
            allow_file_downloads=False, group_consecutive_messages=False,
            placeholder=f"The {who} model answers here.",
        )  # fmt: skip

    def _input(self) -> None:
        self.suggestions = gr.HTML(elem_id="suggestions", js_on_load=ASK, apply_default_css=False)
        with gr.Row(elem_classes="ask"):
            self.message = gr.Textbox(
                placeholder="Ask both …", show_label=False, submit_btn="Ask", stop_btn=False,
                lines=1, max_lines=6, elem_id="message", scale=8, min_width=240, autofocus=True,
            )  # fmt: skip
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", size="md", elem_id="stop-answer", visible=False)
            self.retry = gr.Button("Retry", size="md", elem_id="retry")
            self.clear = gr.Button("Clear", size="md", elem_id="clear")
            self.blind = gr.Checkbox(label="Blind: hide which is which", elem_id="blind",
                                     container=False, min_width=200)  # fmt: skip

    def _voting(self) -> None:
        with gr.Row(elem_classes="votes", visible=False, elem_id="votes") as self.vote_row:
            gr.HTML("<p>Which answer is better?</p>")
            self.vote_buttons = [
                gr.Button(label, size="md", elem_id=f"vote-{vote}") for label, vote in VOTES
            ]
        self.tally = gr.HTML(elem_id="tally")

    def _settings(self) -> None:
        defaults = Options()
        with gr.Accordion("Settings", open=False, elem_classes="fold", elem_id="settings"):
            self.system = gr.Textbox(label="System prompt", lines=2, elem_id="system",
                                     placeholder="Empty for none")  # fmt: skip
            with gr.Row():
                self.temperature = gr.Slider(0, 2, value=defaults.temperature, step=0.05,
                                             label="Temperature", elem_id="temperature",
                                             info="0 always takes the likeliest token")  # fmt: skip
                self.top_p = gr.Slider(0.05, 1, value=defaults.top_p, step=0.05, label="Top-p",
                                       info="Share of the probability to sample from")  # fmt: skip
            with gr.Row():
                self.most = gr.Slider(16, 2048, value=defaults.max_new_tokens, step=16,
                                      label="Longest answer", info="Tokens")  # fmt: skip
                self.seed = gr.Number(value=defaults.seed, precision=0, label="Seed",
                                      info="The same seed gives the same answer")  # fmt: skip

    # ------------------------------------------------------------------ what happens

    def on_open(self, request: gr.Request) -> Iterator[list[Any]]:
        """Take the adapter from the address, load the base once, and say how far it is."""
        caller = self.core.caller(request)
        choices = adapter_choices(self.core.store.list(caller.name))
        wanted = request.query_params.get("adapter", "")
        known = [value for _, value in choices]
        chosen = wanted if wanted in known else (known[1] if len(known) > 1 else BASE_ONLY)
        yield [gr.update(choices=choices, value=chosen), *self._about(chosen, caller), gr.skip()]
        for status in self._loading(chosen, caller):
            yield [gr.skip()] * 3 + [status]

    def on_adapter(self, chosen: str | None, request: gr.Request) -> Iterator[list[Any]]:
        """Another adapter: a fresh conversation, its prompts, and loading with progress."""
        caller = self.core.caller(request)
        yield [[], [], *self._about(chosen or "", caller), gr.skip()]
        for status in self._loading(chosen or "", caller):
            yield [gr.skip()] * 4 + [status]

    def _about(self, chosen: str, caller: Caller) -> list[Any]:
        """Suggested prompts and the tally of an adapter."""
        return [prompt_chips(self.core.suggestions(chosen, caller)), self._tally(chosen, caller)]

    def _loading(self, chosen: str, caller: Caller) -> Iterator[str]:
        """What is being loaded, as it goes; a mistake is said in its place."""
        try:
            contest = self.contest(chosen, caller)
            for note in self.core.load(contest.base, contest.adapter, caller):
                yield status_line(note)
            yield ""
        except Phi3LoraError as error:
            yield show.notice(str(error))

    def on_pulse(self, chosen: str | None, request: gr.Request) -> list[Any]:
        """Runs that have finished since are in the list; memory may be short or free again."""
        caller = self.core.caller(request)
        choices = adapter_choices(self.core.store.list(caller.name))
        return [gr.update(choices=choices), self.core.room_message()]

    def contest(self, chosen: str, caller: Caller) -> Contest:
        """Base and adapter of what was chosen; the caller's own runs only.

        Raises RunError, AdapterError or AccessError.
        """
        if not chosen:
            return Contest(ModelConfig(), None, "base")
        run = next((run for run in self.core.store.list(caller.name) if run.id == chosen), None)
        if run is not None:
            if run.adapter_folder is None:
                raise AdapterError(f"{run.title} has no adapter yet; let the run finish first.")
            return Contest(run.config.model, run.adapter_folder, run.title)
        if self.core.settings.on_space:
            raise AccessError("Choose one of your finished runs; folders cannot be named here.")
        folder = Path(chosen).expanduser()
        return Contest(ModelConfig(path=base_of(folder)), folder, folder.name)

    @shown
    def on_ask(
        self,
        message: str,
        left: list[Message],
        right: list[Message],
        chosen: str | None,
        blind: bool,
        flipped: bool,
        system: str,
        temperature: float,
        top_p: float,
        most: float,
        seed: float,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Both answers as they grow, in both columns."""
        if not message.strip():
            raise DataError("Type a question first.")
        if not left and not right:
            flipped = blind and random.random() < 0.5
        left, right = plain(left), plain(right)
        options = Options(system.strip(), temperature, top_p, int(most), int(seed or 0))
        caller = self.core.caller(request)
        contest = self.contest(chosen or "", caller)
        question = {"role": "user", "content": message}
        columns = ([*left, question], [*right, question])
        yield self._frame(columns, Pair(), flipped, contest, "asking", blind)
        base, tuned = (columns[1], columns[0]) if flipped else columns
        session = str(request.session_hash)
        flag = self.stops.begin(session)
        pair = Pair()
        try:
            for pair in self.core.reply(contest, base, tuned, options, flag.is_set, caller):
                yield self._frame(columns, pair, flipped, contest, "answering", blind)
        finally:
            self.stops.end(session, flag)
        yield self._frame(columns, pair, flipped, contest, "done", blind)

    def _frame(
        self,
        columns: tuple[list[Message], list[Message]],
        pair: Pair,
        flipped: bool,
        contest: Contest,
        phase: str,
        blind: bool,
    ) -> list[Any]:
        """Values for what an answer changes, in the order of `answering`."""
        busy = phase != "done"
        sides = ["tuned", "base"] if flipped else ["base", "tuned"]
        answers = [
            with_answer(column, getattr(pair, side), waiting=not getattr(pair, f"done_{side}"))
            if side == "base" or contest.adapter
            else column
            for column, side in zip(columns, sides, strict=True)
        ]
        labels = HIDDEN if blind and contest.adapter else tuple(TITLES[side] for side in sides)
        fresh = phase == "asking"
        return [
            gr.update(value="") if fresh else gr.skip(),
            *(
                gr.update(value=answer, label=label)
                for answer, label in zip(answers, labels, strict=True)
            ),
            flipped,
            status_line(pair.note) if busy and pair.note else answer_facts(pair, sides, busy),
            gr.update(visible=busy),
            gr.update(visible=not busy and blind and contest.adapter is not None),
        ]

    def on_stop(self, request: gr.Request) -> None:
        """Both answers end where they are."""
        self.stops.stop(str(request.session_hash))

    def on_retry(self, left: list[Message], right: list[Message]) -> list[Any]:
        """Take the last question back into the input, and both answers away."""
        left, right = plain(left), plain(right)
        if not left:
            return [gr.skip(), gr.skip(), gr.skip()]
        last = max(place for place, turn in enumerate(left) if turn["role"] == "user")
        return [left[last]["content"], left[:last], right[:last]]

    def on_clear(self) -> list[Any]:
        """A fresh conversation with the names shown."""
        return [
            gr.update(value=[], label=TITLES["base"]),
            gr.update(value=[], label=TITLES["tuned"]),
            False, "", gr.update(visible=False),
        ]  # fmt: skip

    def on_vote(
        self, label: str, left: list[Message], right: list[Message], chosen: str | None,
        flipped: bool, request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        """Count a vote and show which was which."""
        vote = dict(VOTES)[label]
        caller = self.core.caller(request)
        winner = {"left": "tuned" if flipped else "base", "right": "base" if flipped else "tuned"}
        left, right = plain(left), plain(right)
        if len(left) < 2 or len(right) < 2:
            raise DataError("Ask both something first.")
        base, tuned = (right, left) if flipped else (left, right)
        self.core.vote(chosen or "", winner.get(vote, vote), base, tuned, caller)
        sides = ["tuned", "base"] if flipped else ["base", "tuned"]
        return [
            *(gr.update(label=TITLES[side]) for side in sides),
            gr.update(visible=False),
            self._tally(chosen or "", caller),
        ]

    def _tally(self, chosen: str, caller: Caller) -> str:
        return tally_line(self.core.tally(chosen, caller))

    @property
    def answering(self) -> list[Any]:
        """What an answer changes."""
        return [self.message, self.left, self.right, self.flipped, self.status, self.stop,
                self.vote_row]  # fmt: skip

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None,
        }  # fmt: skip
        about = [self.suggestions, self.tally, self.status]
        demo.load(self.on_open, None, [self.adapter, *about], **quiet)
        changed = self.adapter.input(self.on_adapter, self.adapter, [self.left, self.right, *about],
                                     **quiet)  # fmt: skip
        changed.then(None, self.adapter, self.adapter, js=REMEMBER)
        self.timer.tick(None, [self.pulse, self.nothing], self.pulse, js=PULSE,
                        show_progress="hidden")  # fmt: skip
        self.pulse.change(self.on_pulse, self.adapter, [self.adapter, self.status], **quiet)
        inputs = [self.message, self.left, self.right, self.adapter, self.blind, self.flipped,
                  self.system, self.temperature, self.top_p, self.most, self.seed]  # fmt: skip
        self.message.submit(self.on_ask, inputs, self.answering, **quiet)
        self.stop.click(self.on_stop, None, None, queue=False, **quiet)
        self.retry.click(self.on_retry, [self.left, self.right],
                         [self.message, self.left, self.right], **quiet).then(
            self.on_ask, inputs, self.answering, **quiet)  # fmt: skip
        self.suggestions.click(on_suggestion, None, self.message, **quiet).then(
            self.on_ask, inputs, self.answering, **quiet
        )
        fresh = [self.left, self.right, self.flipped, self.status, self.vote_row]
        self.clear.click(self.on_clear, None, fresh, **quiet)
        self.blind.input(self.on_clear, None, fresh, **quiet)
        for button in self.vote_buttons:
            button.click(shown(self.on_vote),
                         [button, self.left, self.right, self.adapter, self.flipped],
                         [self.left, self.right, self.vote_row, self.tally], **quiet)  # fmt: skip


def build(core: Core, demo: gr.Blocks) -> ComparePage:
    """Put the page into the Blocks that are open, wired."""
    page = ComparePage(core)
    page.wire(demo)
    return page


def on_suggestion(event: gr.EventData) -> str:
    """A suggested prompt was clicked."""
    return str(event._data.get("prompt", ""))


# ---------------------------------------------------------------------- values into what is shown


def adapter_choices(runs: list[Run]) -> list[tuple[str, str]]:
    """The base alone, then finished runs, newest first."""
    finished = [run for run in runs if run.adapter_folder is not None]
    return [("No adapter: the base alone", BASE_ONLY)] + [
        (f"{run.title} · {run.id[:8]}-{run.id[9:13]}", run.id) for run in finished
    ]


def base_of(folder: Path) -> str:
    """The base an adapter folder names. AdapterError where it names none."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"] or POCKET)
    except (OSError, ValueError, KeyError):
        raise AdapterError(
            f"{folder}: expected a PEFT folder with adapter_config.json and "
            "adapter_model.safetensors; name the folder that holds them."
        ) from None


def plain(messages: list[Message] | None) -> list[Message]:
    """Role and text alone, whatever the chat component adds."""
    return [
        {"role": message["role"], "content": text_of(message["content"])}
        for message in messages or []
    ]


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


def answer_facts(pair: Pair, sides: list[str], busy: bool) -> str:
    """How long the answers are, and whether they ended by themselves."""
    if busy or not pair.done:
        return ""
    cells = []
    for side in sides:
        if tokens := getattr(pair, f"tokens_{side}"):
            ended = "" if getattr(pair, f"stopped_{side}") else ", cut"
            cells.append(f"<span>{tokens} tokens{ended}</span>")
    return f'<div class="answer-facts">{"".join(cells)}</div>'


def prompt_chips(prompts: list[str]) -> str:
    """Suggested prompts, each a button."""
    chips = "".join(
        f'<button type="button" class="chip" data-prompt="{show.text(prompt)}">'
        f"{show.text(prompt)}</button>"
        for prompt in prompts[:SUGGESTIONS]
    )
    return f'<div class="chips" aria-label="Suggested prompts">{chips}</div>' if chips else ""


def tally_line(tally: dict[str, int]) -> str:
    """The votes so far, or nothing where there are none."""
    total = sum(tally.values())
    if not total:
        return ""
    words = {"tuned": "tuned better", "base": "base better", "tie": "ties", "bad": "both bad"}
    parts = " · ".join(f"{tally.get(name, 0)} {label}" for name, label in words.items())
    return f'<p class="tally"><b>{total} blind votes</b> {show.text(parts)}</p>'
