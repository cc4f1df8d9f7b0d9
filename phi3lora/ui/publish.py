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
from phi3lora.app.card_head import CardHead, wanted, with_head
from phi3lora.app.publishing import Publication, check_publishable
from phi3lora.app.working import Put, in_thread
from phi3lora.errors import ConfigError, Phi3LoraError
from phi3lora.hub.space import Deployed, SpaceSettings
from phi3lora.hub.upload import Published
from phi3lora.runs.store import Run
from phi3lora.strict_yaml import front_matter
from phi3lora.ui import show
from phi3lora.ui.markdown import rendered
from phi3lora.ui.publish_fields import (
    AlongFields,
    HeadFields,
    along_values,
    chosen,
    head_from,
    head_values,
)
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown

DIALOG = "() => window.phi3lora.dialog('publish-card', 'Publish')"
IN_VIEW = """
watch('value', () => props.value && setTimeout(() => element.scrollIntoView({block: 'nearest'})));
"""
WHAT = "On the Hub: safetensors, tokenizer, configuration, script, and a card with the evidence."


class PublishCard:
    """The dialog over the Runs page: name, who sees it, the card."""

    def __init__(self, app: Application, run_id: gr.Textbox) -> None:
        self.app, self.run_id = app, run_id
        self.done = gr.State("")  # what was published, whatever is typed since
        with gr.Column(elem_classes="card", visible=False, elem_id="publish-card") as self.card:
            gr.HTML(show.heading("Publish", WHAT))
            self._naming()
            self._model_card()
            with gr.Row(elem_classes="actions"):
                self.send = gr.Button("Publish", variant="primary", size="md", elem_id="send")
                self.close = gr.Button("Close", size="md", elem_id="close-publish")
            self.result = gr.HTML(elem_id="published", js_on_load=IN_VIEW, apply_default_css=False)
            self._deploying()

    def _naming(self) -> None:
        self.repo = gr.Textbox(
            label="Repository", placeholder="USER/NAME", elem_id="repo", max_lines=1
        )
        self.refusal = gr.HTML(elem_id="may-not", apply_default_css=False)
        with gr.Row():
            self.private = gr.Checkbox(
                label="Private", elem_id="private", min_width=160, info="Only you see it"
            )
            self.proposal = gr.Checkbox(
                label="As a pull request",
                elem_id="proposal",
                min_width=160,
                info="To a repository that exists",
                visible=self.app.settings.may_propose,
            )

    def _model_card(self) -> None:
        """The card as it will be read; its text on request."""
        with gr.Row(elem_classes="card-switch"):
            gr.HTML("<h3>Model card</h3>")
            self.edit = gr.Checkbox(label="Edit", elem_id="edit-card", container=False)
        self.head = HeadFields()
        self.preview = gr.HTML(elem_id="card-preview", apply_default_css=False)
        with gr.Column(visible=False) as self.editor:
            self.text = gr.Textbox(
                label="The card's text, in Markdown",
                lines=14,
                max_lines=30,
                elem_id="card",
                elem_classes="mono",
                buttons=["copy"],
            )
        self.draft = gr.State("")
        gr.HTML('<h3 class="along">Also for llama.cpp and Ollama</h3>')
        with gr.Row():
            self.along = AlongFields()

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

    @property
    def opened(self) -> list[Any]:
        """What opening the dialog fills, in order."""
        return [
            self.card,
            self.repo,
            self.text,
            self.draft,
            self.result,
            self.deploy_row,
            self.deployed,
            self.preview,
            self.refusal,
            self.send,
            self.done,
            *self.head.all,
            *self.along.all,
        ]

    @shown
    def on_open(self, run_id: str, request: gr.Request) -> list[Any]:
        """Show the dialog with a name and a draft of the model card."""
        caller = self.app.callers.caller(session_of(request))
        run = self._finished(run_id, caller)
        closed = [gr.update(visible=False), ""]
        if caller.token is None:
            note = show.notice(SIGN_IN, "amber")
            off = gr.update(interactive=False)
            empty = [*head_values(""), *along_values([])]
            return [gr.update(visible=True), "", "", "", "", *closed, "", note, off, "", *empty]
        repo = self.app.publishing.name(run, caller)
        draft = self.app.publishing.draft(run, repo, caller)
        may = self._may(repo, False, caller)
        fields = [*head_values(draft), *along_values(self.app.publishing.alongside(run))]
        shown = [gr.update(visible=True), repo, draft, draft, "", *closed, preview(draft)]
        return [*shown, *may, "", *fields]

    def _may(self, repo: str, proposal: bool, caller: Caller) -> list[Any]:
        """Why this account cannot publish there, and the button as that leaves it."""
        try:
            self.app.publishing.check_name(repo, proposal, caller)
        except Phi3LoraError as error:
            return [show.notice(str(error), "amber"), gr.update(interactive=False)]
        return ["", gr.update(interactive=True)]

    @shown
    def on_repo(
        self,
        run_id: str,
        repo: str,
        proposal: bool,
        text: str,
        draft: str,
        request: gr.Request,
        *fields: Any,
    ) -> list[Any]:
        """Another name: whether it may be, and a card that nobody edited names it, too."""
        head = head_from(fields) if fields else CardHead()
        caller = self.app.callers.caller(session_of(request))
        run = self._finished(run_id, caller)
        if caller.token is None:
            return [gr.skip()] * 5
        may = self._may(repo, bool(proposal), caller)
        if not repo.strip() or not same(text, with_head(draft, head)):
            return [gr.skip(), gr.skip(), gr.skip(), *may]
        draft = self.app.publishing.draft(run, repo.strip(), caller)
        text = with_head(draft, head)
        return [text, draft, preview(text), *may]

    @shown
    def on_head(
        self, title: str, licence: str, languages: str, text: str, request: gr.Request
    ) -> list[Any]:
        """The card with another title, licence or languages; what they cannot be is said."""
        self.app.callers.caller(session_of(request))
        try:
            text = with_head(text, CardHead(title, licence, languages))
        except Phi3LoraError as error:
            return [gr.skip(), gr.skip(), show.notice(str(error), "amber")]
        return [text, preview(text), ""]

    @shown
    def on_text(self, text: str, request: gr.Request) -> list[Any]:
        """The fields follow a card that was edited."""
        self.app.callers.caller(session_of(request))
        return head_values(text)

    @shown
    def on_edit(self, edit: bool, text: str) -> list[Any]:
        """Between the card as it is read and its text."""
        return [gr.update(visible=bool(edit)), gr.update(visible=not edit, value=preview(text))]

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
        *fields: Any,
    ) -> Iterator[list[Any]]:
        """Publish, and say how far it is; then the link, the snippet, and what comes next."""
        caller = self.app.callers.caller(session_of(request))
        run = self._finished(run_id, caller)
        card = None if same(text, draft) else text
        head, also = CardHead(), chosen(fields[3:]) if fields else ()
        if fields:
            head = wanted(draft, text, head_from(fields[:3]))
        what = Publication(repo, bool(private), bool(proposal), card=card, also=also, head=head)

        def work(put: Put) -> Published:
            put("Writing the card")
            return self.app.publishing.push(run, what, caller, progress=put, tell=put)

        try:
            for told in in_thread(work):
                if isinstance(told, Published):
                    yield self._sent(told, caller)
                else:
                    yield [sending(told), *[gr.skip()] * 5]
        except Phi3LoraError as error:  # where the bar was: nothing goes on that has ended
            yield [show.notice(str(error), "red"), *[gr.skip()] * 5]

    def _sent(self, told: Published, caller: Caller) -> list[Any]:
        space = gr.update(visible=told.pull_request is None)
        may = show.notice(self.app.publishing.allowance(caller), "grey")
        return [published(told), space, f"{told.repo}-compare", may, "", told.repo]

    @shown
    def on_deploy(self, repo: str, space: str, private: bool, request: gr.Request) -> Iterator[str]:
        """Make the comparison Space of what was published, and say how far it is; then the link."""
        caller = self.app.callers.caller(session_of(request))
        wanted = SpaceSettings(private=bool(private))

        def work(put: Put) -> Deployed:
            put("Making the Space")
            return self.app.publishing.deploy(
                space, caller, wanted, compare=repo, progress=put, tell=put
            )

        try:
            for told in in_thread(work):
                yield deployed(told) if isinstance(told, Deployed) else sending(told)
        except Phi3LoraError as error:
            yield show.notice(str(error), "red")

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
        button.click(self.on_open, self.run_id, self.opened, **quiet).success(
            None, None, None, js=DIALOG
        )
        for event in (self.close.click, self.run_id.change):
            event(lambda: gr.update(visible=False), None, self.card, **quiet)
        named = [self.run_id, self.repo, self.proposal, self.text, self.draft, *self.head.all]
        changed = [self.text, self.draft, self.preview, self.refusal, self.send]
        for event in (self.repo.blur, self.repo.submit, self.proposal.input):
            event(self.on_repo, named, changed, **quiet)
        for field in (self.head.title.blur, self.head.licence.input, self.head.languages.blur):
            field(
                self.on_head,
                [*self.head.all, self.text],
                [self.text, self.preview, self.refusal],
                **quiet,
            )
        self.text.blur(self.on_text, self.text, self.head.all, **quiet)
        self.edit.input(self.on_edit, [self.edit, self.text], [self.editor, self.preview], **quiet)
        self.send.click(
            self.on_send,
            [
                *(self.run_id, self.repo, self.private, self.proposal, self.text, self.draft),
                *self.head.all,
                *self.along.all,
            ],
            [self.result, self.deploy_row, self.space, self.allowance, self.deployed, self.done],
            **quiet,
        )
        self.deploy.click(
            self.on_deploy, [self.done, self.space, self.private], self.deployed, **quiet
        )


def same(text: str, draft: str) -> bool:
    """Whether a card is as it was drafted; an empty one is to be written."""
    return not text.strip() or text.split() == draft.split()


# ---------------------------------------------------------------------- values into what is shown


def preview(card: str) -> str:
    """A card as the Hub draws it: what its head says to machines, then the text."""
    try:
        head = front_matter(card)
    except ConfigError as error:
        return show.notice(f"The head of the card cannot be read: {error}", "red")
    names = {"model_name": "Title", "license": "Licence", "language": "Language"}
    facts = [(title, shortly(head[name])) for name, title in names.items() if head.get(name)]
    _, _, body = card.partition("\n---\n") if head else ("", "", card)
    return f'{show.facts(facts)}<article class="prose-card">{rendered(body, links=True)}</article>'


def shortly(value: Any) -> str:
    """One value, or several of them."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


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
