"""Publishing a run from its page: name it, read the card and change it, send it, show it around.

    card = PublishCard(core, run_id)      the components, hidden until they are asked for
    card.wire(open_button)

Sending runs in a thread of its own and goes on where the page is closed meanwhile.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import gradio as gr

from phi3lora.errors import AccessError, HubError, Phi3LoraError, RunError
from phi3lora.hub.access import cached_identity
from phi3lora.hub.space import Deployed
from phi3lora.hub.upload import Published
from phi3lora.runs.store import ACTIVE, Run
from phi3lora.ui import show
from phi3lora.ui.core import Caller, Core
from phi3lora.ui.widgets import shown

FRAME = 0.2  # seconds between two looks at the progress
LONGEST_NAME = 60
WHAT = "On the Hub: safetensors, tokenizer, configuration, script, and a card with the evidence."
SIGN_IN = "Sign in with a Hugging Face account first, at the top of the page."
Put = Callable[[Any], None]


class PublishCard:
    """The card on the Runs page."""

    def __init__(self, core: Core, run_id: gr.Textbox) -> None:
        self.core, self.run_id = core, run_id
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
            with gr.Row(elem_classes="actions"):
                self.deploy = gr.Button("Deploy a comparison Space", size="md", elem_id="deploy")
            self.deployed = gr.HTML(elem_id="deployed", apply_default_css=False)

    # ------------------------------------------------------------------ what happens

    @shown
    def on_open(self, run_id: str, request: gr.Request) -> list[Any]:
        """Show the card with a name and a draft of the model card."""
        caller = self.core.caller(request)
        run = finished(self.core, run_id, caller)
        if caller.token is None:
            note = show.notice(SIGN_IN, "amber")
            return [gr.update(visible=True), "", "", "", note, gr.update(visible=False), ""]
        repo = f"{cached_identity(caller.token).name}/{slug(run.title)}"
        draft = draft_of(run, repo, caller)
        return [gr.update(visible=True), repo, draft, draft, "", gr.update(visible=False), ""]

    @shown
    def on_repo(
        self, run_id: str, repo: str, text: str, draft: str, request: gr.Request
    ) -> list[Any]:
        """Another name: a card that nobody edited names it, too."""
        caller = self.core.caller(request)
        run = finished(self.core, run_id, caller)
        if not repo.strip() or same(text, draft) is False or caller.token is None:
            return [gr.skip(), gr.skip()]
        draft = draft_of(run, repo.strip(), caller)
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
        caller = self.core.caller(request)
        run = finished(self.core, run_id, caller)
        token = token_of(caller)
        if not repo.strip():
            raise HubError("Name the repository first: USER/NAME.")
        card = None if same(text, draft) else text

        def work(put: Put) -> Published:
            from phi3lora.hub.upload import push

            put("Writing the card")
            return push(
                run.folder,
                repo.strip(),
                token,
                private=bool(private),
                pull_request=bool(proposal),
                card=card,
                script=script_of(run, token),
                progress=put,
                tell=put,
            )

        for told in in_thread(work):
            if isinstance(told, Published):
                space = gr.update(visible=told.pull_request is None)
                yield [published(told), space, f"{told.repo}-compare", ""]
            else:
                yield [sending(told), gr.skip(), gr.skip(), gr.skip()]

    @shown
    def on_deploy(self, repo: str, space: str, private: bool, request: gr.Request) -> Iterator[str]:
        """Make the comparison Space, and say how far it is; then the link."""
        token = token_of(self.core.caller(request))
        if not space.strip():
            raise HubError("Name the Space first: USER/NAME.")

        def work(put: Put) -> Deployed:
            from phi3lora.hub.space import SpaceSettings, deploy_comparison

            put("Making the Space")
            wanted = SpaceSettings(private=bool(private))
            return deploy_comparison(
                repo.strip(), space.strip(), token, wanted, progress=put, tell=put
            )

        for told in in_thread(work):
            yield deployed(told) if isinstance(told, Deployed) else sending(told)

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
            [self.result, self.deploy_row, self.space, self.deployed],
            **quiet,
        )
        self.deploy.click(
            self.on_deploy, [self.repo, self.space, self.private], self.deployed, **quiet
        )


def finished(core: Core, run_id: str, caller: Caller) -> Run:
    """The caller's run, which has something to publish. Raises RunError."""
    run = core.run(run_id, caller)
    if run.status in ACTIVE:
        raise RunError("This run is not over; let it finish, or stop it, then publish.")
    run.result.ready()
    return run


def token_of(caller: Caller) -> str:
    """The caller's token. Raises AccessError where nobody is signed in."""
    if caller.token is None:
        raise AccessError(SIGN_IN)
    return caller.token


def draft_of(run: Run, repo: str, caller: Caller) -> str:
    """The card as it would be published."""
    from phi3lora.hub.upload import draft_card

    return draft_card(run.folder, repo, caller.token)


def script_of(run: Run, token: str) -> str | None:
    """What trains the same, to lay beside it; None where it cannot be written."""
    from phi3lora.training.script import script

    try:
        return script(run.config, portable=True, token=token)
    except Phi3LoraError:
        return None


def same(text: str, draft: str) -> bool:
    """Whether a card is as it was drafted; an empty one is to be written."""
    return not text.strip() or text.split() == draft.split()


def slug(title: str) -> str:
    """A repository's name: `Pirate, rank 32` → `pirate-rank-32`."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return name[:LONGEST_NAME].strip("-") or "adapter"


def in_thread(work: Callable[[Put], Any]) -> Iterator[Any]:
    """What `work` puts, the last of each moment, then what it returns.

    Raises what it raises. It goes on where nobody listens any more.
    """
    notes: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def run() -> None:
        try:
            notes.put(("done", work(lambda note: notes.put(("note", note)))))
        except Exception as error:  # noqa: BLE001 - raised again where it is listened to
            notes.put(("failed", error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        kind, value = notes.get()
        while kind == "note" and not notes.empty():
            kind, value = notes.get()
        if kind == "failed":
            raise value
        yield value
        if kind == "done":
            return
        time.sleep(FRAME)


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
