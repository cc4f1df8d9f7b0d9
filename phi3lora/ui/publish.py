"""Publishing a run from its page: name it, read the card and change it, send it, show it around.

    card = PublishCard(app, run_id)      the components, hidden until they are asked for
    card.wire(open_button)

Sending runs in a thread of its own and goes on where the page is closed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.callers import SIGN_IN, Caller
from phi3lora.app.publishing import Publication, check_publishable
from phi3lora.app.working import Put, in_thread
from phi3lora.hub.space import Deployed, SpaceSettings
from phi3lora.hub.upload import Published
from phi3lora.runs.store import Run
from phi3lora.ui import show
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown

WHAT = "On the Hub: safetensors, tokenizer, configuration, script, and a card with the evidence."


class PublishCard:
    """The card on the Runs page."""

    def __init__(self, app: Application, run_id: gr.Textbox) -> None:
        self.app, self.run_id = app, run_id
        with gr.Column(elem_classes="card", visible=False, elem_id="publish-card") as self.card:
            gr.HTML(show.heading("Publish", WHAT))
            self.repo = gr.Textbox(
                label="Repository", placeholder="USER/NAME", elem_id="repo", max_lines=1
            )
            with gr.Row():
                self.private = gr.Checkbox(
                    label="Private", elem_id="private", min_width=160, info="Only you see it"
                )
                self.proposal = gr.Checkbox(
                    label="As a pull request",
                    elem_id="proposal",
                    min_width=160,
                    info="To a repository that exists",
                    visible=app.settings.may_propose,
                )
            with gr.Accordion("Model card", open=False, elem_classes="fold", elem_id="card-fold"):
                self.text = gr.Textbox(
                    show_label=False,
                    lines=14,
                    max_lines=30,
                    elem_id="card",
                    elem_classes="mono",
                    buttons=["copy"],
                )
            self.draft = gr.State("")
            with gr.Row(elem_classes="actions"):
                self.send = gr.Button("Publish", variant="primary", size="md", elem_id="send")
                self.close = gr.Button("Close", size="md", elem_id="close-publish")
            self.result = gr.HTML(elem_id="published", apply_default_css=False)
            self._deploying()

    def _deploying(self) -> None:
        with gr.Column(visible=False, elem_id="deploy-row") as self.deploy_row:
            self.space = gr.Textbox(
                label="Comparison Space",
                elem_id="space",
                max_lines=1,
                placeholder="USER/NAME",
                info="A small page of its own, where anyone asks base and tuned the same",
            )
            self.allowance = gr.HTML(elem_id="allowance", apply_default_css=False)
            with gr.Row(elem_classes="actions"):
                self.deploy = gr.Button("Deploy a comparison Space", size="md", elem_id="deploy")
            self.deployed = gr.HTML(elem_id="deployed", apply_default_css=False)

    # ------------------------------------------------------------------ what happens

    @shown
    def on_open(self, run_id: str, request: gr.Request) -> list[Any]:
        """Show the card with a name and a draft of the model card."""
        caller = self.app.callers.caller(session_of(request))
        run = self._finished(run_id, caller)
        if caller.token is None:
            note = show.notice(SIGN_IN, "amber")
            return [gr.update(visible=True), "", "", "", note, gr.update(visible=False), ""]
        repo = self.app.publishing.name(run, caller)
        draft = self.app.publishing.draft(run, repo, caller)
        return [gr.update(visible=True), repo, draft, draft, "", gr.update(visible=False), ""]

    @shown
    def on_repo(
        self, run_id: str, repo: str, text: str, draft: str, request: gr.Request
    ) -> list[Any]:
        """Another name: a card that nobody edited names it, too."""
        caller = self.app.callers.caller(session_of(request))
        run = self._finished(run_id, caller)
        if not repo.strip() or same(text, draft) is False or caller.token is None:
            return [gr.skip(), gr.skip()]
        draft = self.app.publishing.draft(run, repo.strip(), caller)
        return [draft, draft]

    @shown
    def on_send(
        self,
        run_id: str,
        repo: str,
        private: bool,
        proposal: bool,
        text: str,
        draft: str,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Publish, and say how far it is; then the link, the snippet, and what comes next."""
        caller = self.app.callers.caller(session_of(request))
        run = self._finished(run_id, caller)
        card = None if same(text, draft) else text
        what = Publication(repo, bool(private), bool(proposal), card=card)

        def work(put: Put) -> Published:
            put("Writing the card")
            return self.app.publishing.push(run, what, caller, progress=put, tell=put)

        for told in in_thread(work):
            if isinstance(told, Published):
                space = gr.update(visible=told.pull_request is None)
                may = show.notice(self.app.publishing.allowance(caller), "grey")
                yield [published(told), space, f"{told.repo}-compare", may, ""]
            else:
                yield [sending(told), *[gr.skip()] * 4]

    @shown
    def on_deploy(self, repo: str, space: str, private: bool, request: gr.Request) -> Iterator[str]:
        """Make the comparison Space, and say how far it is; then the link."""
        caller = self.app.callers.caller(session_of(request))
        wanted = SpaceSettings(private=bool(private))

        def work(put: Put) -> Deployed:
            put("Making the Space")
            return self.app.publishing.deploy(
                space, caller, wanted, compare=repo, progress=put, tell=put
            )

        for told in in_thread(work):
            yield deployed(told) if isinstance(told, Deployed) else sending(told)

    def _finished(self, run_id: str, caller: Caller) -> Run:
        """The caller's run, which has something to publish. Raises RunError."""
        run = self.app.launching.run(run_id, caller)
        check_publishable(run)
        return run

    def wire(self, button: gr.Button) -> None:
        """Connect the components, and the button that opens the card."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        opened = [
            self.card,
            self.repo,
            self.text,
            self.draft,
            self.result,
            self.deploy_row,
            self.deployed,
        ]
        button.click(self.on_open, self.run_id, opened, **quiet)
        for event in (self.close.click, self.run_id.change):
            event(lambda: gr.update(visible=False), None, self.card, **quiet)
        named = [self.run_id, self.repo, self.text, self.draft]
        self.repo.blur(self.on_repo, named, [self.text, self.draft], **quiet)
        self.send.click(
            self.on_send,
            [self.run_id, self.repo, self.private, self.proposal, self.text, self.draft],
            [self.result, self.deploy_row, self.space, self.allowance, self.deployed],
            **quiet,
        )
        self.deploy.click(
            self.on_deploy, [self.repo, self.space, self.private], self.deployed, **quiet
        )


def same(text: str, draft: str) -> bool:
    """Whether a card is as it was drafted; an empty one is to be written."""
    return not text.strip() or text.split() == draft.split()


# ---------------------------------------------------------------------- values into what is shown


def sending(note: str | float) -> str:
    """How much has arrived, or what is being done."""
    if isinstance(note, str):
        return show.progress(None, note, "")
    return show.progress(note, "Sending", f"{100 * note:.0f} %")


def published(done: Published) -> str:
    """The link, how to load it, and where to try it."""
    words = "Proposed to" if done.pull_request else "Published as"
    address = done.pull_request or done.url
    compare = (
        ""
        if done.pull_request
        else (
            f'<a class="quiet-button" href="compare?adapter={show.text(done.repo)}">Open in Compare'
            "</a>"
        )
    )
    return (
        f'<div class="notice green"><i>✓</i><div>{words} <a href="{show.text(address)}" '
        f'target="_blank" rel="noopener">{show.text(done.repo)}</a></div></div>'
        f'<pre class="snippet">{show.text(done.snippet)}</pre>{compare}'
    )


def deployed(done: Deployed) -> str:
    """The link to the Space, and what to know about it."""
    notes = "".join(show.notice(note, "grey") for note in done.notes)
    return (
        f'<div class="notice green"><i>✓</i><div>The Space is being built: <a '
        f'href="{show.text(done.url)}" target="_blank" rel="noopener">{show.text(done.space)}</a>'
        f"</div></div>{notes}"
    )
