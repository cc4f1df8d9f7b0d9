"""The Train page: pick data and see what will be trained, pick a recipe, check, launch.

    with gr.Blocks() as demo:
        build(app, demo)

Every change goes the same way: read the form, run the preflight (in the helper process), show what
it found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.checks import Check
from phi3lora.config import POCKET, RunConfig
from phi3lora.errors import AccessError, ConfigError, DataError, Phi3LoraError
from phi3lora.hub.access import SUGGESTED_MODELS
from phi3lora.methods import BY_METHOD
from phi3lora.recipes import load_recipe, recipes
from phi3lora.training.preflight import Preflight
from phi3lora.ui import form, show
from phi3lora.ui.code import PlainCode
from phi3lora.ui.data_step import DataStep
from phi3lora.ui.draft import READ, keep_script, read_draft
from phi3lora.ui.place import PlaceStep
from phi3lora.ui.sessions import session_of
from phi3lora.ui.train_show import (
    broken_form,
    card_text,
    derived,
    first_recipe,
    form_notes,
    message_lines,
    nothing_chosen,
    recipe_notes,
    show_preflight,
    waiting_checks,
)
from phi3lora.ui.widgets import Fields, shown

ADAPTER = (
    "peft_config.r",
    "peft_config.lora_alpha",
    "peft_config.lora_dropout",
    "peft_config.target_modules",
)
LIVE = (
    *ADAPTER[:2],
    "peft_config.use_rslora",
    "training_config.per_device_train_batch_size",
    "training_config.gradient_accumulation_steps",
)


class TrainPage:
    """The page's components, and the handlers that fill them."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self._latest: dict[str, object] = {}  # preflight of each page that is being served
        self.start = first_recipe()
        self.fields = Fields(load_recipe(self.start)[0].model_copy(update={"title": ""}))
        if app.settings.home_problem:
            gr.HTML(show.notice(app.settings.home_problem, "amber"), elem_id="home-problem")
        with gr.Row(elem_classes="page split", equal_height=False):
            with gr.Column(scale=17, min_width=340, elem_classes="main"):
                with gr.Column(elem_classes="card"):
                    self.data = DataStep(app, self.fields)
                with gr.Column(elem_classes="card"):
                    self._recipe()
            with (
                gr.Column(scale=9, min_width=300, elem_classes="aside"),
                gr.Column(elem_classes="card"),
            ):
                self._launch()

    # ------------------------------------------------------------------ what is on the page

    def _recipe(self) -> None:
        gr.HTML(show.heading("Recipe", "Where to start from; change what you like.", 2))
        cards = [(card_text(name), name) for name in recipes()]
        self.recipe = gr.Radio(
            cards, value=self.start, show_label=False, elem_classes="cards", elem_id="recipe"
        )
        self.recipe_notes = gr.HTML(visible=False, elem_id="recipe-notes")
        with gr.Row():
            self.fields.add(
                "model.path", choices=["auto", POCKET, *SUGGESTED_MODELS], min_width=240, scale=2
            )
            self.fields.add("model.quantization", min_width=160)
            self.fields.add("method", min_width=160)
        with gr.Row():
            for name in ADAPTER:
                self.fields.add(name, min_width=150)
        with gr.Row():
            for name in ("learning_rate", "num_train_epochs", "max_length"):
                self.fields.add(f"training_config.{name}", min_width=150)
        with gr.Row():
            for name in (
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "lr_scheduler_type",
                "warmup_steps",
            ):
                self.fields.add(f"training_config.{name}", min_width=150)
        if self.app.launching.devices > 1:
            with gr.Row():
                for name in ("devices", "distributed"):
                    self.fields.add(name, min_width=150)
        self.fields.add("training_config.packing")
        self.derived = gr.HTML(elem_id="derived")
        with gr.Accordion("Advanced", open=False, elem_classes="fold", elem_id="advanced"):
            self._advanced()
        with gr.Accordion("As YAML", open=False, elem_classes="fold", elem_id="as-yaml"):
            self.yaml = gr.Textbox(
                lines=14,
                max_lines=28,
                show_label=False,
                buttons=["copy"],
                elem_classes="mono",
                elem_id="yaml",
            )
            self.drawn = gr.State("")
            self.use_yaml = gr.Button("Use this configuration", size="md")
        with gr.Accordion("As plain code", open=False, elem_classes="fold", elem_id="as-code"):
            self.code = PlainCode(self.app)

    def _advanced(self) -> None:
        self.methods: dict[str, gr.Accordion] = {}
        for section, name in form.SECTIONS.items():
            if section == "data":
                continue
            own = section in BY_METHOD.values()  # shown while its method is chosen
            with gr.Accordion(
                name, open=own, visible=not own, elem_classes="fold inner"
            ) as accordion:
                if own:
                    self.methods[section] = accordion
                names = [
                    spec.field
                    for spec in form.widgets()
                    if spec.section == section
                    and spec.field not in self.fields.by_name
                    and spec.field != "title"
                ]
                for start in range(0, len(names), 3):
                    with gr.Row():
                        for field in names[start : start + 3]:
                            self.fields.add(field, min_width=170)

    def _launch(self) -> None:
        gr.HTML(show.heading("Launch", "Checked before any time is spent.", 3))
        self.checks = gr.HTML(show.notice("Nothing checked yet.", "grey"), elem_id="checks")
        self.estimate = gr.HTML(elem_id="estimate")
        self.fields.add("title", placeholder="Pirate, second try")
        self.place = PlaceStep(self.app, self.fields)
        self.launch = gr.Button("Launch", variant="primary", size="lg", elem_id="launch")
        self.launched = gr.Textbox(visible="hidden", elem_id="launched")
        self.draft = gr.Textbox(visible="hidden", elem_id="draft")

    # ------------------------------------------------------------------ what happens

    @property
    def seen(self) -> list[Any]:
        """What a preflight fills."""
        return [self.data.summary, self.checks, self.estimate]

    @shown
    def on_preflight(
        self, source: str, request: gr.Request, *shown_values: Any
    ) -> Iterator[list[Any]]:
        """Read the form, say that we are reading, then show what was found.

        It takes its time: one that was overtaken by a later one of this page shows nothing.
        """
        this = object()
        session = str(request.session_hash)
        self._latest[session] = this
        yield [gr.skip(), waiting_checks(), gr.skip()]
        found = self._preflight(source, request, shown_values)
        if self._latest.get(session) is this:
            del self._latest[session]
            yield found

    def _preflight(self, source: str, request: gr.Request, values: tuple[Any, ...]) -> list[Any]:
        """What the form asks for, as it is shown; the place stands behind the form's values."""
        shown_values = self.place.form(values)
        if not self._path(shown_values):
            return nothing_chosen(source)
        try:
            config, _ = self.fields.config(shown_values)
        except ConfigError as error:
            return [gr.skip(), broken_form(error), ""]
        try:
            caller = self.app.callers.caller(session_of(request))
            job = self.place.job(values)
            done = self.app.launching.preflight(config, caller, job)
        except Phi3LoraError as error:
            name = "Access" if isinstance(error, AccessError) else "Data"
            done = Preflight([Check(name, "red", str(error))])
        return show_preflight(config, done)

    def _path(self, shown_values: tuple[Any, ...]) -> str:
        """The data that the form names; empty where nothing is chosen."""
        return str(dict(zip(self.fields.by_name, shown_values, strict=True))["data.path"] or "")

    @shown
    def on_live(self, drawn: str, *shown_values: Any) -> tuple[Any, Any, Any]:
        """The figures that follow from the form at once, without a preflight; and its YAML.

        YAML that is as it was `drawn` last stays as it is: somebody may be editing it.
        """
        if not self._path(shown_values):
            return gr.skip(), gr.skip(), gr.skip()
        try:
            config, _ = self.fields.config(shown_values)
        except ConfigError as error:
            return show.notice(message_lines(error), "red"), gr.skip(), gr.skip()
        text = config.to_yaml()
        return derived(config), gr.skip() if text == drawn else text, text

    def on_open(self, draft: str, request: gr.Request) -> list[Any]:
        """Fill the form with the run that the address names, or with what was left here before.

        A run that cannot be had is said over the form, which stays as it is.
        """
        nothing = [gr.skip()] * (len(self.fields.by_name) + len(self.data.tabs))
        if run_id := request.query_params.get("from", ""):
            try:
                caller = self.app.callers.caller(session_of(request))
                run = self.app.launching.run(run_id, caller)
                on = request.query_params.get("further")
                config = self.app.launching.further(run) if on else run.config
            except Phi3LoraError as error:
                return [form_notes([str(error)], "amber"), *nothing]
            note = f"These are the settings of {run.title}. Change what you like, then launch."
            if on:
                note += " The new run begins with what that one has learnt."
            filled = self.fields.fill(config)
            return [form_notes([note]), *filled, *self.data.show_path(config.data.path)]
        if adapter := request.query_params.get("votes", ""):
            try:
                caller = self.app.callers.caller(session_of(request))
                config = self.app.voting.config(adapter, caller)
            except Phi3LoraError as error:
                return [form_notes([str(error)], "amber"), *nothing]
            note = (
                f"This run learns from blind votes by {config.method.upper()}, and begins with "
                "what the compared one has learnt. Look at the pairs, then launch."
            )
            filled = self.fields.fill(config)
            return [form_notes([note]), *filled, *self.data.show_path(config.data.path)]
        kept = read_draft(draft)
        if not kept:
            return [gr.skip(), *nothing]
        values = [kept.get(name, gr.skip()) for name in self.fields.by_name]
        return [gr.skip(), *values, *self.data.show_path(str(kept.get("data.path") or ""))]

    def on_method(self, method: str) -> list[Any]:
        """The options of the chosen method alone."""
        return [gr.update(visible=BY_METHOD.get(method) == section) for section in self.methods]

    def on_bases(self, request: gr.Request) -> Any:
        """More bases to choose from; without the Hub those that were there."""
        try:
            caller = self.app.callers.caller(session_of(request))
            return gr.update(choices=self.app.models.suggested(caller))
        except Phi3LoraError:
            return gr.skip()

    @shown
    def on_recipe(self, name: str) -> list[Any]:
        """Fill the form with a recipe; the data stays."""
        config, notices = load_recipe(name)
        return [recipe_notes(config, notices), *self._fill_keeping_data(config)]

    @shown
    def on_yaml(self, text: str) -> list[Any]:
        """Fill the form from YAML, data included."""
        config, notices = RunConfig.from_text(text, "This")
        tabs = self.data.show_path(config.data.path)
        return [form_notes(notices), *self.fields.fill(config), *tabs]

    def _fill_keeping_data(self, config: RunConfig) -> list[Any]:
        kept = [name for name in self.fields.by_name if name.startswith("data.")]
        return self.fields.fill(config, keep=[*kept, "title"])

    @shown
    def on_launch(self, request: gr.Request, *values: Any) -> str:
        """Launch; the id of the run, which the browser then opens."""
        shown_values = self.place.form(values)
        if not self._path(shown_values):
            raise DataError("Choose data first: an example, a file of yours, or a Hub dataset.")
        config, _ = self.fields.config(shown_values)
        caller = self.app.callers.caller(session_of(request))
        return self.app.launching.launch(config, caller, job=self.place.job(values)).id

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        everything, by_name = self.fields.components, self.fields.by_name
        path = by_name["data.path"]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.data.wire()
        base = by_name["model.path"]
        base.focus(self.on_bases, None, base, **quiet)
        method = by_name["method"]
        method.change(self.on_method, method, list(self.methods.values()), **quiet)
        live = [self.derived, self.yaml, self.drawn]
        checked = {
            "fn": self.on_preflight,
            "inputs": [self.data.source, *everything, *self.place.inputs],
            "outputs": self.seen,
            **quiet,
        }
        drawn = {"fn": self.on_live, "inputs": [self.drawn, *everything], "outputs": live, **quiet}
        last = "always_last"
        # The YAML first: whoever reads what was found may change it without being overtaken.
        path.change(
            self.data.on_parts,
            [path, by_name["data.name"]],
            [by_name["data.name"], by_name["data.split"], self.checks],
            **quiet,
            trigger_mode=last,
        ).then(**drawn).then(**checked)
        settled = [
            _settled(component)
            for name, component in by_name.items()
            if name not in ("title", "data.path")
        ]
        gr.on(settled, **checked, trigger_mode=last)
        # At once and apart from the preflight, which may take seconds: YAML is edited meanwhile.
        changed = [by_name[name].change for name in LIVE]
        gr.on([*changed, *settled], **drawn, trigger_mode=last)
        filled = [self.recipe_notes, *everything]
        kept = keep_script(list(by_name))
        opened = demo.load(self.on_open, self.draft, [*filled, *self.data.tabs], js=READ, **quiet)
        opened.then(**drawn).then(**checked)
        gr.on([*settled, path.change], None, everything, None, js=kept, show_progress="hidden")
        for event in (
            self.recipe.input(self.on_recipe, self.recipe, filled, **quiet),
            self.use_yaml.click(self.on_yaml, self.yaml, [*filled, *self.data.tabs], **quiet),
            self.data.findings.wire(everything),
        ):
            event.success(None, everything, None, js=kept).success(**drawn).success(**checked)
        self.place.wire(everything, settled, checked)
        launched = self.launch.click(
            self.on_launch,
            [*everything, *self.place.inputs],
            self.launched,
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=4,
        )
        launched.success(None, self.launched, None, js=OPEN_RUN)
        self.code.wire(lambda request, *values: self.fields.config(values)[0], everything)


OPEN_RUN = "(run) => { if (run) window.location.href = 'runs?run=' + encodeURIComponent(run); }"


def build(app: Application, demo: gr.Blocks) -> TrainPage:
    """Put the page into the Blocks that are open, wired."""
    page = TrainPage(app)
    page.wire(demo)
    return page


def _settled(component: Any) -> Any:
    """The event of a component once its user is done with it, not at each key."""
    return component.blur if isinstance(component, gr.Textbox | gr.Number) else component.input
