"""The interface whole: three pages, one header, and how they are served.

demo = build(Application.open(settings))
launch(settings, host="127.0.0.1", port=7860)
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import gradio as gr
from gradio import http_server
from gradio.queueing import Queue
from starlette.requests import Request

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import BUNDLED
from phi3lora.app.shared import Shared, asked_of
from phi3lora.chat.options import Options
from phi3lora.errors import HubError, Phi3LoraError
from phi3lora.isolation import hide_process
from phi3lora.serve.openai import routes
from phi3lora.settings import Settings
from phi3lora.ui import account, compare_page, endpoints, runs_page, train_page
from phi3lora.ui.asking import LONGEST_IN_ADDRESS, from_address, unusual
from phi3lora.ui.frame import FAVICON, NAME
from phi3lora.ui.guard import guarded, rules_for
from phi3lora.ui.languages import LANGUAGES
from phi3lora.ui.quick_start import one_server
from phi3lora.ui.sessions import session_of
from phi3lora.ui.theme import STYLES, head, theme
from phi3lora.ui.watch import beside

MAX_UPLOAD = "2gb"
TEMPORARY = (600, 3600)  # seconds: how often old temporary files are swept, and when they are old
WAITING = 200  # calls that may wait in the queue
WORKED_ON = 128  # calls at a time; most wait for the model, a helper or the Hub
LOOK_INTO_QUEUE = 0.02  # seconds
# Where a keyboard may go at once, on each page: an element's id, and what the link says.
SKIPS = {
    "Train": (("launch-panel", "Skip to launch"), ("step-data", "Skip to the form")),
    "Runs": (("run-head", "Skip to the run"),),
    "Compare": (("message", "Skip to the question"),),
}
HALF_MOON = (
    '<svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true"><circle cx="10" cy="10" '
    'r="7" fill="none" stroke="currentColor" stroke-width="1.6"/><path d="M10 3a7 7 0 0 1 0 14z" '
    'fill="currentColor"/></svg>'
)
_LANGUAGES = "".join(
    f'<option value="{code}" lang="{code}">{name}</option>' for code, name in LANGUAGES.items()
)
LANGUAGE_CHOICE = (
    f'<select id="language" aria-label="Language" autocomplete="off">{_LANGUAGES}</select>'
)
CHOICES = ("input", "blur", "focus", "expand")  # events of who chooses; a click acts
PAGES = (("Train", "./"), ("Runs", "./runs"), ("Compare", "./compare"))


def build(app: Application) -> gr.Blocks:
    """The three pages."""
    with one_server():
        return _pages(app)


def _pages(app: Application) -> gr.Blocks:
    with gr.Blocks(
        title=NAME, analytics_enabled=False, fill_width=True, delete_cache=TEMPORARY
    ) as demo:
        header("Train", app)
        train_page.build(app, demo)
        endpoints.build(app)
    with demo.route("Runs", "/runs"):
        header("Runs", app)
        runs_page.build(app, demo)
    with demo.route("Compare", "/compare"):
        header("Compare", app)
        compare_page.build(app, demo)
        let_choices_follow(demo)
    return demo


def let_choices_follow(demo: gr.Blocks) -> None:
    """No choice is lost because the one before is still being worked on.

    Gradio drops an event whose like is pending, and the rest of its chain with it. That is right
    for a button that acts: a double click makes one run. What is chosen, and what follows from
    anything, is done each time instead, in turn.
    """
    for function in demo.fns.values():
        chosen = any(event in CHOICES for _, event in function.targets)
        if function.trigger_mode == "once" and (chosen or function.trigger_after is not None):
            function.trigger_mode = "multiple"


def header(active: str, app: Application) -> None:
    """Skip links, name, pages, colours and account; Gradio's own bar is hidden."""
    gr.Navbar(visible=False)
    links = "".join(
        f'<a href="{address}"{" aria-current=page" if name == active else ""}>{name}</a>'
        for name, address in PAGES
    )
    skips = "".join(
        f'<a class="skip" href="#{place}">{words}</a>' for place, words in SKIPS[active]
    )
    gr.HTML(
        f'<header class="top">{skips}<a class="name" href="./"><span class="mark"></span>phi3lora'
        f'</a><nav aria-label="Pages">{links}</nav>'
        f"{LANGUAGE_CHOICE}"
        f'<button type="button" id="scheme" aria-label="Dark colours">{HALF_MOON}</button>'
        f"</header>",
        elem_id="top",
        js_on_load=f"document.title = '{active} · {NAME}';",
        apply_default_css=False,
    )
    account.build(app)


def launch(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = True,
    ready: Callable[[], None] = lambda: None,
) -> gr.Blocks:
    """Serve the pages until interrupted; with `block=False` return at once, for tests.

    `ready` is called when the pages are built, before anything listens.
    """
    app = Application.open(settings)
    app.sweep()
    demo = build(app)
    ready()
    return serve(demo, app, host, port, block)


def pulse(app: Application, request: Request) -> str:
    """A fingerprint of what a page about a run shows its visitor; it changes when that does."""
    try:
        owner = app.callers.caller(session_of(request)).name
    except HubError:
        return "waiting for the Hub"
    return app.views.pulse(owner, request.query_params.get("run", ""))


def preview(app: Application, request: Request) -> Shared | None:
    """What a link to a comparison shows before it is opened; None where nothing is known of it."""
    query, only = request.query_params, app.comparing.settled
    if request.url.path == "/" and not only:  # the Train page
        return None
    question = query.get("q", "")[:LONGEST_IN_ADDRESS]
    try:
        settings = unusual(Options(**from_address(query)))
        caller = app.callers.caller(session_of(request))
        adapter, against = query.get("adapter", "") or BUNDLED, query.get("against", "")
        link = asked_of(only or adapter, "" if only else against, question, settings)
        return app.comparing.shared(link, caller)
    except Phi3LoraError:
        return None


def asking(app: Application, request: Request) -> Caller:
    """Who sent a request of another protocol."""
    return app.callers.caller(session_of(request))


def awake(app: Application) -> Callable[[], None]:
    """Once: let the helper import what a preflight needs, while the browser still draws the page.

    What goes wrong with it is said by the preflight.
    """
    asked = threading.Event()

    def ask() -> None:
        with suppress(Phi3LoraError):
            app.preflights.hardware()

    def opened() -> None:
        if not asked.is_set():
            asked.set()
            threading.Thread(target=ask, daemon=True).start()

    return opened


def _remember_signatures(kinds: Iterable[type]) -> None:
    """Keep the signatures of components, which `inspect` works out of their code else.

    Gradio asks for that of each component of all pages whenever one is opened, and for those that
    a frame of an answer may change: in a crowd it was half of what its event loop did.
    """
    for one in {one for kind in kinds for one in kind.__mro__[:-1]}:
        made: Any = vars(one).get("__init__")
        while made is not None:
            made.__signature__ = inspect.signature(made)
            made = getattr(made, "__wrapped__", None)


def serve(demo: gr.Blocks, app: Application, host: str, port: int | None, block: bool) -> gr.Blocks:
    """Serve pages that were built, with everything that keeps them safe and looking alike."""
    # What takes long has limits for each person of its own: none of them waits behind another's.
    with one_server():
        demo.queue(default_concurrency_limit=None, max_size=WAITING, api_open=False)
    # Read when torch is loaded: for how long threads that wait for one another spin before they
    # sleep. With the default of milliseconds each spins while the training has its core.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    _without_waste(demo._queue)
    _remember_signatures({type(block) for block in demo.blocks.values()})
    _without_reloading()
    rules = rules_for(app.settings, host)
    app.callers.beyond_loopback = rules.key is not None
    http_server.Server = guarded(rules)  # type: ignore[misc]
    if app.settings.on_space:
        hide_process()
    demo.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=not block,
        theme=theme(),
        css_paths=STYLES,
        head=head(),
        footer_links=["api"],
        run_history=False,
        favicon_path=str(FAVICON),
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        max_threads=WORKED_ON,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=endpoints.has_mcp(),
        app_kwargs=beside(
            partial(pulse, app),
            app.callers,
            routes(app, partial(asking, app)),
            awake(app),
            partial(preview, app),
            lambda: [event.request for event in demo._queue.event_ids_to_events.copy().values()],
        ),
    )
    endpoints.fit_mcp(demo, rules.key)
    if rules.key is not None:
        sys.stderr.write(announced(demo.local_url or "", rules.key))
    if block:
        demo.block_thread()
    return demo


def announced(address: str, key: str) -> str:
    """What listening beyond loopback opens, and to whom."""
    return (
        "\nWhoever reaches this machine and has this address uses the app as you do:\n"
        f"    {address.rstrip('/')}/?token={key}\n"
        "It reads files of this machine, trains and publishes; pass it on like a password. The "
        "stored Hub token is not used here: sign in on the page.\n\n"
    )


def _without_waste(queue: Queue) -> None:
    """Keep Gradio's queue from work that nobody asked for.

    It looks whether it is empty a thousand times a second, which is 3 % of a core; and after each
    event it sums up the last ten thousand by pandas, for a page of monitoring that is closed here.
    """
    queue.sleep_when_free = LOOK_INTO_QUEUE
    queue.progress_update_sleep_when_free = 10 * LOOK_INTO_QUEUE
    queue.ANALYTICS_MAX_EVENTS = 1
    queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize


def _without_reloading() -> None:
    """Keep Gradio from serving its hot reload on a Space.

    It listens on 0.0.0.0:7887 whatever the host, and replaces `app.py` and runs it for whoever
    asks (`spaces.reloading`). The watching thread waits for the server's end instead.
    """
    http_server.watchfn_spaces = lambda reloader: reloader.stop_event.wait()
