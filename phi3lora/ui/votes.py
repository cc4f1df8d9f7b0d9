"""Votes on the Compare page: the ballot under two hidden answers, and what the votes are good for.

    panel = VotePanel(app)                    # in the column, where the vote shall stand
    panel.wire(conversation, titles, adapter)

Voting shows who was who. Below stand the tally, how many votes can be trained on, and three ways to
use them: download, push as a dataset, train.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.voting import Standing
from phi3lora.chat.options import Options
from phi3lora.chat.votes import Choice
from phi3lora.errors import DataError, Phi3LoraError
from phi3lora.ui import show
from phi3lora.ui.asking import sampled
from phi3lora.ui.compare_show import TITLES, column_title, plain, tally_line
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown

VOTES: dict[str, Choice] = {
    "A is better": "left",
    "B is better": "right",
    "Tie": "tie",
    "Both bad": "both bad",
}
CONSENT = (
    "Keep my question and both answers with my vote, so that the owner of this model may train on "
    "them and publish them"
)


class VotePanel:
    """The components and their handlers."""

    def __init__(self, app: Application) -> None:
        self.app = app
        with gr.Row(elem_classes="votes", visible=False, elem_id="votes") as self.row:
            gr.HTML("<p>Which answer is better?</p>")
            self.buttons = [
                gr.Button(label, size="md", elem_id=f"vote-{vote.split()[0]}")
                for label, vote in VOTES.items()
            ]
            self.consent = gr.Checkbox(
                label=CONSENT, visible=app.settings.on_space, elem_id="vote-consent"
            )
        self.tally = gr.HTML(elem_id="tally")
        with gr.Accordion(
            "Use these votes", open=False, visible=False, elem_classes="fold", elem_id="use-votes"
        ) as self.uses:
            self.standing = gr.HTML(elem_id="vote-standing")
            with gr.Row():
                self.download = gr.DownloadButton("Download JSONL", size="md", elem_id="take-votes")
                self.repo = gr.Textbox(
                    label="Dataset on the Hub", placeholder="USER/NAME", elem_id="votes-repo"
                )
                self.private = gr.Checkbox(label="Private", value=True, elem_id="votes-private")
                self.push = gr.Button("Push", size="md", elem_id="push-votes")
            self.pushed = gr.HTML(elem_id="votes-pushed")

    def about(self, adapter: str, caller: Any) -> list[Any]:
        """The tally of an adapter, and what its votes suffice for."""
        tally = tally_line(self.app.comparing.tally(adapter))
        try:
            standing = self.app.voting.standing(adapter, caller)
        except Phi3LoraError:  # said where it is loaded
            return [tally, gr.update(visible=False), ""]
        votes = standing.tally.votes - standing.untold
        return [tally, gr.update(visible=votes > 0), standing_html(adapter, standing)]

    @property
    def told(self) -> list[Any]:
        """What `about` fills."""
        return [self.tally, self.uses, self.standing]

    @shown
    def on_vote(self, request: gr.Request, *values: Any) -> list[Any]:
        """Count a vote and show which was which."""
        label, left, right, sides, chosen, consent, system, *sampling = values
        caller = self.app.callers.caller(session_of(request))
        left, right = plain(left), plain(right)
        if not sides.pair or not any(turn["role"] == "user" for turn in left):
            raise DataError("Ask both something first.")
        options = Options((system or "").strip(), **sampled(self.names, sampling))
        self.app.voting.cast(
            chosen or "", sides, VOTES[label], left, right, options, caller, consent=consent
        )
        names = [column_title(TITLES[side]) for side in sides.order]
        return [*names, gr.update(visible=False), *self.about(chosen or "", caller)]

    @shown
    def on_download(self, adapter: str | None, request: gr.Request) -> str:
        """The votes as a file."""
        caller = self.app.callers.caller(session_of(request))
        file = Path(tempfile.mkdtemp(prefix="phi3lora-votes-")) / "votes.jsonl"
        self.app.voting.export(adapter or "", file, caller)
        return str(file)

    @shown
    def on_push(self, adapter: str | None, repo: str, private: bool, request: gr.Request) -> str:
        """Publish them, and say where."""
        caller = self.app.callers.caller(session_of(request))
        url = self.app.voting.push(adapter or "", repo.strip(), caller, private=private)
        return show.notice(f"Published: {url}", "green")

    def wire(
        self,
        conversation: list[Any],
        titles: list[Any],
        adapter: Any,
        system: Any,
        sampling: dict[str, Any],
    ) -> None:
        """Connect the components; `conversation` is left, right and the sides."""
        self.names = list(sampling)
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        asked = [adapter, self.consent, system, *sampling.values()]
        for button in self.buttons:
            button.click(
                self.on_vote,
                [button, *conversation, *asked],
                [*titles, self.row, *self.told],
                **quiet,
            )
        self.download.click(self.on_download, adapter, self.download, **quiet)
        self.push.click(self.on_push, [adapter, self.repo, self.private], self.pushed, **quiet)


def standing_html(adapter: str, standing: Standing) -> str:
    """How many votes can be trained on, and the way to the form where they are enough."""
    untold = f" Of {standing.untold} votes nothing was kept." if standing.untold else ""
    text = f"<p>{show.text(standing.summary() + untold)}</p>"
    if standing.method is None:
        return text
    return (
        f'{text}<p><a class="button" href="./?votes={quote(adapter, safe="")}">Train on these '
        "votes</a></p>"
    )
