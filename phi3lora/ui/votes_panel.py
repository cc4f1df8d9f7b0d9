"""What has become of the blind votes: how they stand, and what can be made of them.

    panel = VotesPanel(app)
    panel.wire([adapter, against, third])     after the fields that name what is compared

Whoever may compare sees the counts. What was said is for the owner of the compared run, who takes
it away as JSON lines or a dataset, or trains on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.voting import Standing
from phi3lora.app.working import in_thread
from phi3lora.chat.votes import Tally
from phi3lora.errors import Phi3LoraError
from phi3lora.ui import show
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown

SAVE = "() => window.phi3lora.save('#votes-file')"
TRAIN = "(name) => { window.location.href = './?votes=' + encodeURIComponent(name); }"
FILE = "votes.jsonl"


class VotesPanel:
    """The fold, and what its buttons do."""

    def __init__(self, app: Application) -> None:
        self.app = app
        with gr.Accordion("Votes", open=False, elem_classes="fold", elem_id="votes-panel") as fold:
            self.standing = gr.HTML(elem_id="votes-standing", apply_default_css=False)
            with gr.Column(visible=False, elem_id="votes-actions") as self.actions:
                with gr.Row(elem_classes="actions"):
                    self.train = gr.Button(
                        "Train on these votes", variant="primary", size="md", elem_id="votes-train"
                    )
                    self.save = gr.Button("Export as JSONL", size="md", elem_id="votes-export")
                self.why_not = gr.HTML(elem_id="votes-why-not", apply_default_css=False)
                self._dataset()
            self.told = gr.HTML(elem_id="votes-told", apply_default_css=False)
            self.file = gr.DownloadButton("Save", size="md", visible=False, elem_id="votes-file")
        self.fold, self.again = fold, dict[str, Any]()

    def _dataset(self) -> None:
        with gr.Row(elem_classes="actions votes-dataset"):
            self.repo = gr.Textbox(
                label="Dataset",
                placeholder="USER/NAME",
                max_lines=1,
                elem_id="votes-repo",
                info="The same rows on the Hub, with a card that says how they came about",
            )
            self.private = gr.Checkbox(
                True, label="Private: only you see it", elem_id="votes-private"
            )
            self.push = gr.Button("Push as a dataset", size="md", elem_id="votes-push")

    @shown
    def on_show(self, adapter: str, against: str, request: gr.Request) -> list[Any]:
        """How the votes stand, and what this caller can do with them."""
        caller = self.app.callers.caller(session_of(request))
        name, other = (adapter, against) if adapter else (against, "")
        hide = gr.update(visible=False)
        if not name:
            text = show.notice("Choose an adapter; there is nothing to vote on yet.", "grey")
            return [text, hide, gr.skip(), "", "", hide]
        try:
            standing = self.app.voting.standing(name, caller, other)
        except Phi3LoraError as error:
            return [show.notice(str(error), "grey"), hide, gr.skip(), "", "", hide]
        text = standing_html(standing)
        if not standing.tally.votes and not standing.pairs:
            return [text, hide, gr.skip(), "", "", hide]
        if refusal := self.app.voting.refusal(name, caller):
            return [text + show.notice(refusal, "grey"), hide, gr.skip(), "", "", hide]
        why_not = self._why_not(name, standing, caller)
        button = gr.update(value=train_label(standing), interactive=not why_not)
        told = why_not == standing.summary()  # it stands under the counts already
        note = show.notice(why_not, "grey") if why_not and not told else ""
        return [text, gr.update(visible=True), button, note, "", hide]

    def _why_not(self, name: str, standing: Standing, caller: Caller) -> str:
        """Why these votes cannot be trained on; empty where they can."""
        if standing.method is None:
            return standing.summary()
        if not any(run.id == name for run in self.app.comparing.runs(caller)):
            return (
                "A training goes on from a run of yours, and this is none. Export the votes and "
                "name the file as data of a DPO run."
            )
        return ""

    @shown
    def on_export(self, adapter: str, against: str, request: gr.Request) -> tuple[str, Any]:
        """Write the rows, and offer the file."""
        caller = self.app.callers.caller(session_of(request))
        file = self.app.publishing.folder() / FILE
        try:
            number = self.app.voting.export(adapter or against, file, caller)
        except Phi3LoraError as error:
            return show.notice(str(error), "red"), gr.update(visible=False)
        note = show.notice(f"{FILE} with {words.counted(number, 'vote')} is ready.", "green")
        return note, gr.update(value=str(file), label=f"Save {FILE}", visible=True)

    @shown
    def on_push(
        self, adapter: str, against: str, repo: str, private: Any, request: gr.Request
    ) -> Iterator[str]:
        """Publish the rows as a dataset, and say where they are."""
        caller = self.app.callers.caller(session_of(request))
        name, secret = adapter or against, private is not False
        yield show.progress(None, "Sending the votes", "")
        try:
            for url in in_thread(
                lambda put: self.app.voting.push(name, repo.strip(), caller, private=secret)
            ):
                yield pushed(str(url), repo.strip())
        except Phi3LoraError as error:
            yield show.notice(str(error), "red")

    def wire(self, subjects: list[Any]) -> None:
        """Connect the fold to the fields that name what is compared."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        two = subjects[:2]
        outputs = [self.standing, self.actions, self.train, self.why_not, self.told, self.file]
        self.again = {
            "fn": self.on_show,
            "inputs": two,
            "outputs": outputs,
            **quiet,
        }
        self.fold.expand(**self.again)
        saved = self.save.click(self.on_export, two, [self.told, self.file], **quiet)
        saved.success(None, None, None, js=SAVE)
        self.push.click(self.on_push, [*two, self.repo, self.private], self.told, **quiet)
        self.train.click(None, two[0], None, js=TRAIN)


def train_label(standing: Standing) -> str:
    """`Train on these votes (DPO, 24 pairs)`."""
    if standing.method is None:
        return "Train on these votes"
    pairs = f"{standing.pairs} pairs"
    count = pairs if standing.method == "dpo" else f"{pairs}, {standing.bad} with two bad answers"
    return f"Train on these votes ({standing.method.upper()}, {count})"


def standing_html(standing: Standing) -> str:
    """Counts, the win rate with its interval as a bar, and what that says."""
    tally = standing.tally
    if not tally.votes:
        return show.notice("No votes yet. Tick Blind, ask, and say which answer is better.", "grey")
    facts = [
        ("Votes", f"{tally.votes}"),
        ("Tuned better", f"{tally.tuned}"),
        ("Base better", f"{tally.base}"),
        ("Ties", f"{tally.ties}"),
        ("Both bad", f"{tally.both_bad}"),
    ]
    kept = f'<p class="help">{show.text(standing.summary())}</p>'
    untold = f"{standing.untold} votes were counted without what was said." * bool(standing.untold)
    lost = f'<p class="help">{untold}</p>' if untold else ""
    return f"{show.facts(facts)}{rate_html(tally)}{kept}{lost}"


VERDICTS = {
    "better": "Tuned is preferred: the whole interval is above a half.",
    "worse": "Base is preferred: the whole interval is below a half.",
    "cannot tell": "Cannot tell yet: a half lies within the interval. More votes narrow it.",
}


def rate_html(tally: Tally) -> str:
    """The win rate between the ends of its interval, with a mark at a half."""
    if tally.win_rate is None:
        return '<p class="help">No vote had a winner: there is no win rate yet.</p>'
    low, high = tally.interval
    words_ = (
        f"Tuned wins {100 * tally.win_rate:.0f} % (95 % interval {100 * low:.0f} to "
        f"{100 * high:.0f} %)."
    )
    return (
        f'<p class="win-rate"><b>{words_}</b> {VERDICTS[tally.verdict]}</p>'
        f'<div class="rate-bar" aria-hidden="true"><span style="left:{100 * low:.1f}%;'
        f'width:{100 * (high - low):.1f}%"></span><i style="left:{100 * tally.win_rate:.1f}%"></i>'
        "</div>"
    )


def pushed(url: str, repo: str) -> str:
    """The link to the dataset."""
    return (
        f'<div class="notice green"><i>✓</i><div>Pushed as <a href="{show.text(url)}" '
        f'target="_blank" rel="noopener">{show.text(repo)}</a></div></div>'
    )
