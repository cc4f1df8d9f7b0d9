"""The Train page: data, model, how much, and a launch panel that never leaves the screen.

    with gr.Blocks() as demo:
        build(app, demo)

Every change goes the same way: read the form, run the preflight (in the helper process), show what
it found. train.js folds steps, marks fields that are wrong and leads to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.strength import level_of, values_of
from phi3lora.checks import Check
from phi3lora.config import RunConfig
from phi3lora.errors import AccessError, ConfigError, DataError, Phi3LoraError
from phi3lora.recipes import load_recipe
from phi3lora.training.preflight import Preflight
from phi3lora.ui import form, launch_show, show
from phi3lora.ui.amount_step import AmountStep
from phi3lora.ui.data_step import DataStep, first_step
from phi3lora.ui.draft import READ, TAB, keep_script, read_draft
from phi3lora.ui.first_preview import first_preview, first_recipe
from phi3lora.ui.launch_panel import OPEN_RUN, SIGN_IN, LaunchPanel
from phi3lora.ui.model_step import CARDS, ModelStep, fits_line
from phi3lora.ui.sessions import session_of
from phi3lora.ui.train_opening import named_config
from phi3lora.ui.train_show import (
    INTRO,
    amount_line,
    data_line,
    data_summary,
    derived,
    form_notes,
    model_line,
    recipe_notes,
)
from phi3lora.ui.widgets import SPECS, Fields, shown

LIVE = (
    "peft_config.r",
    "peft_config.lora_alpha",
    "peft_config.use_rslora",
    "training_config.per_device_train_batch_size",
    "training_config.gradient_accumulation_steps",
)
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class TrainPage:
    """The page's components, and the handlers that fill them."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self._latest: dict[str, object] = {}  # preflight of each page that is being served
        self.start = first_recipe()
        config = load_recipe(self.start)[0].model_copy(update={"title": ""})
        self.fields = Fields(config)
        if app.settings.home_problem:
            gr.HTML(show.notice(app.settings.home_problem, "amber"), elem_id="home-problem")
        gr.HTML(INTRO, elem_id="intro", apply_default_css=False, js_on_load=None)
        with gr.Row(elem_classes="page split", equal_height=False):
            with gr.Column(scale=17, min_width=340, elem_classes="main"):
                self.notes = gr.HTML(visible=False, elem_id="form-notes")
                self.data = DataStep(app, self.fields, first_preview())
                self.model = ModelStep(app, self.fields, self.start)
                self.amount = AmountStep(app, self.fields, level_of(config))
            self.panel = LaunchPanel(app, self.fields)
        self.place = self.panel.place
        self.problems = gr.Textbox(visible="hidden", elem_id="problems")
        self.draft = gr.Textbox(visible="hidden", elem_id="draft")

    # ------------------------------------------------------------------ what a preflight shows

    @property
    def seen(self) -> list[Any]:
        """What a preflight fills: the preview, the step's line, the panel, and wrong fields."""
        return [self.data.summary, self.data.line, *self.panel.seen, self.problems]

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
        yield [gr.skip(), gr.skip(), *launch_show.waiting(), gr.skip()]
        first = self._first(request, shown_values)
        if first and self._latest.get(session) is this:
            yield [*first, *launch_show.checking(), gr.skip()]
        found = self._preflight(source, request, shown_values)
        if self._latest.get(session) is this:
            del self._latest[session]
            # What stands there already is left as it is, on the page that was turned to.
            same = [
                gr.skip() if old == new else new for old, new in zip(first, found, strict=False)
            ]
            yield [*same, *found[len(same) :]]

    def _first(self, request: gr.Request, values: tuple[Any, ...]) -> list[Any]:
        """The preview and its line, before anything is checked; empty where that takes a reason."""
        shown_values = self.place.form(values)
        if not self._path(shown_values):
            return []
        try:
            config, _ = self.fields.config(shown_values)
            caller = self.app.callers.caller(session_of(request))
            inspection = self.app.launching.inspection(config, caller)
        except Phi3LoraError:  # said by the preflight
            return []
        if inspection is None:
            return []
        done = Preflight([], inspection)
        return [data_summary(config, done), data_line(config, done)]

    def _preflight(self, source: str, request: gr.Request, values: tuple[Any, ...]) -> list[Any]:
        """What the form asks for, as it is shown; the place stands behind the form's values."""
        shown_values = self.place.form(values)
        if not self._path(shown_values):
            step = first_step(source)
            empty = show.empty("No data is chosen", step)
            return [empty, "", *launch_show.nothing_yet(step), "{}"]
        try:
            config, _ = self.fields.config(shown_values)
        except ConfigError as error:
            marked = launch_show.problems_json(error)
            return [gr.skip(), gr.skip(), *launch_show.broken_form(error), marked]
        done = self._checked(config, values, request)
        panel = launch_show.show_preflight(config, done)
        return [data_summary(config, done), data_line(config, done), *panel, "{}"]

    def _checked(
        self, config: RunConfig, values: tuple[Any, ...], request: gr.Request
    ) -> Preflight:
        """The preflight; what keeps it from being done is a red check."""
        try:
            caller = self.app.callers.caller(session_of(request))
            return self.app.launching.preflight(config, caller, self.place.job(values))
        except Phi3LoraError as error:
            name = "Access" if isinstance(error, AccessError) else "Data"
            return Preflight([Check(name, "red", str(error))])

    def _path(self, shown_values: tuple[Any, ...]) -> str:
        """The data that the form names; empty where nothing is chosen."""
        return str(dict(zip(self.fields.by_name, shown_values, strict=True))["data.path"] or "")

    # ------------------------------------------------------------------ what follows at once

    @property
    def live(self) -> list[Any]:
        """What `on_live` fills."""
        lines = [self.model.line, self.model.fits, self.amount.line, self.amount.strength]
        return [self.amount.derived, self.amount.yaml, self.amount.drawn, *lines]

    @shown
    def on_live(self, drawn: str, recipe: str | None, *shown_values: Any) -> list[Any]:
        """The figures that follow from the form at once, without a preflight; and its YAML.

        YAML that is as it was `drawn` last stays as it is: somebody may be editing it.
        """
        skipped = [gr.skip()] * (len(self.live) - 1)
        if not self._path(shown_values):
            return [gr.skip(), *skipped]
        try:
            config, _ = self.fields.config(shown_values)
        except ConfigError:
            return ["", *skipped]  # said at its field, and beside Launch
        text, level = config.to_yaml(), level_of(config)
        return [
            derived(config),
            gr.skip() if text == drawn else text,
            text,
            model_line(config, recipe),
            fits_line(config.model.path),
            amount_line(config),
            gr.skip() if level is None else level,
        ]

    @shown
    def on_strength(self, level: float, *shown_values: Any) -> list[Any]:
        """The numbers that a position of the slider stands for; they depend on the base alone."""
        values = dict(zip(self.fields.by_name, shown_values, strict=True))
        config, _ = form.from_widgets({name: values[name] for name in ("adapter", "model.path")})
        return self._set(values_of(config, int(level)))

    @shown
    def on_fix(self, event: gr.EventData) -> list[Any]:
        """Apply what a button of a check says; anything that is no option of the form is not."""
        sent = event._data  # whatever a program wrote there
        values = sent.get("values") if isinstance(sent, dict) else None
        if not isinstance(values, dict) or not set(values) <= set(self.fields.by_name):
            raise Phi3LoraError("This remedy is none of this page's; reload the page.")
        return self._set(values)

    def _set(self, values: dict[str, Any]) -> list[Any]:
        """Updates that set these options and leave the others."""
        return [
            form.to_widget(SPECS[name], values[name]) if name in values else gr.skip()
            for name in self.fields.by_name
        ]

    # ------------------------------------------------------------------ what fills the form

    def on_open(self, draft: str, request: gr.Request) -> list[Any]:
        """Fill the form with the run that the address names, or with what was left here before.

        A run that cannot be had is said over the form, which stays as it is.
        """
        nothing = [gr.skip()] * (len(self.fields.by_name) + len(self.data.tabs))
        try:
            named = named_config(self.app, request)
        except Phi3LoraError as error:
            return [form_notes([str(error)], "amber"), *nothing]
        if named is not None:
            config, note = named
            return [form_notes([note]), *self.fields.fill(config), *self._tabs_of(config)]
        kept = read_draft(draft)
        if not kept:
            return [gr.skip(), *nothing]
        values = [kept.get(name, gr.skip()) for name in self.fields.by_name]
        return [gr.skip(), *values, *self.data.show_data(kept)]

    def _tabs_of(self, config: RunConfig) -> list[Any]:
        return self.data.show_data(form.to_widgets(config))

    @shown
    def on_recipe(self, name: str) -> list[Any]:
        """Fill the form with a recipe; the data and the title stay."""
        config, notices = load_recipe(name)
        kept = [name for name in self.fields.by_name if name.startswith("data.")]
        cards = [gr.update(value=name if name in CARDS else None)]
        cards.append(gr.update(value=None if name in CARDS else name))
        filled = self.fields.fill(config, keep=[*kept, "title"])
        return [recipe_notes(config, notices), name, *cards, *filled]

    @shown
    def on_yaml(self, text: str) -> list[Any]:
        """Fill the form from YAML, data included."""
        config, notices = RunConfig.from_text(text, "This")
        tabs = self._tabs_of(config)
        return [form_notes([], more=notices), *self.fields.fill(config), *tabs]

    @shown
    def on_launch(self, request: gr.Request, *values: Any) -> str:
        """Launch; the id of the run, which the browser then opens."""
        shown_values = self.place.form(values)
        if not self._path(shown_values):
            raise DataError("Choose data first: an example, a file of yours, or a Hub dataset.")
        config, _ = self.fields.config(shown_values)
        caller = self.app.callers.caller(session_of(request))
        return self.app.launching.launch(config, caller, job=self.place.job(values)).id

    # ------------------------------------------------------------------ wiring

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        everything, by_name = self.fields.components, self.fields.by_name
        last: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
        self.recipe = gr.State(self.start)
        method, sections = by_name["method"], self.amount.methods
        method.change(self.amount.on_method, method, list(sections.values()), **QUIET)
        opened_rows = [self.data.summary, self.data.findings.found]
        edited = self.data.rows.wire(everything, opened_rows)
        checked = {
            "fn": self.on_preflight,
            "inputs": [self.data.source, *everything, *self.place.inputs],
            "outputs": self.seen,
            **last,  # at the end of a chain, too: Gradio leaves out what its like keeps waiting
        }
        drawn = {
            "fn": self.on_live,
            "inputs": [self.amount.drawn, self.recipe, *everything],
            "outputs": self.live,
            **QUIET,
        }
        kept = {
            "fn": None,
            "inputs": [*everything, self.data.source],
            "js": keep_script([*by_name, TAB]),
        }
        self._wire_data(last, drawn, checked)
        settled = [
            _settled(component)
            for name, component in by_name.items()
            if name not in ("title", "data.path")
        ]
        gr.on(settled, **checked)
        # At once and apart from the preflight, which may take seconds: YAML is edited meanwhile.
        changed = [by_name[name].change for name in LIVE]
        gr.on([*changed, *settled], **drawn, trigger_mode="always_last")
        chosen = [by_name["data.path"].change, self.data.source.change]
        gr.on([*settled, *chosen], **kept, show_progress="hidden")
        opening = [self.notes, *everything, *self.data.tabs]
        opened = demo.load(self.on_open, self.draft, opening, js=READ, **QUIET)
        opened.then(**self.data.rows.chosen).then(**drawn).then(**checked)
        for event in (
            *self._filling(last),
            self.amount.use_yaml.click(self.on_yaml, self.amount.yaml, opening, **QUIET),
            self.amount.load_yaml.click(
                None, self.amount.yaml, self.amount.yaml, js=LOAD_YAML
            ).success(self.on_yaml, self.amount.yaml, opening, **QUIET),
            self.data.findings.wire(everything),
            *edited,
        ):
            event.success(**kept).success(**drawn).success(**checked)
        self.amount.save_yaml.click(None, self.amount.yaml, None, js=SAVE_YAML)
        self.place.wire(everything, settled, checked)
        self._wire_launch(demo)

    def _wire_data(
        self, last: dict[str, Any], drawn: dict[str, Any], checked: dict[str, Any]
    ) -> None:
        """Other data: its splits, its columns, then what it is."""
        by_name, columns = self.fields.by_name, self.data.columns
        everything = self.fields.components
        self.data.wire()
        parts = [by_name["data.path"], by_name["data.name"], by_name["data.split"]]
        looked = {
            "fn": columns.on_look,
            "inputs": everything,
            "outputs": [*columns.seen, by_name["data.columns"]],
            **QUIET,
        }
        # The YAML before the preflight: whoever reads what was found may change it meanwhile.
        for event in (by_name["data.path"].change, by_name["data.name"].input):
            event(self.data.on_parts, parts, [*parts[1:], self.panel.checks], **last).then(
                **self.data.rows.chosen
            ).then(**looked).then(**drawn).then(**checked)
        by_name["data.split"].input(**self.data.rows.chosen)
        again = [by_name[f"data.{name}"] for name in ("format", "roles", "columns", "split")]
        gr.on([_settled(one) for one in again], **looked, trigger_mode="always_last")
        for one in (columns.question, columns.answer):
            one.input(
                columns.on_choose,
                [columns.question, columns.answer, columns.found],
                by_name["data.columns"],
                **last,
            ).then(**looked).then(**drawn).then(**checked)

    def _filling(self, last: dict[str, Any]) -> list[Any]:
        """The events that fill in parts of the form: recipes, the slider, a check's button."""
        everything, model = self.fields.components, self.model
        filled = [model.notes, self.recipe, model.cards, model.more, *everything]
        strength = self.amount.strength
        return [
            model.cards.input(self.on_recipe, model.cards, filled, **QUIET),
            model.more.input(self.on_recipe, model.more, filled, **QUIET),
            strength.input(self.on_strength, [strength, *everything], everything, **last),
            self.panel.checks.click(self.on_fix, None, everything, **QUIET),
        ]

    def _wire_launch(self, demo: gr.Blocks) -> None:
        """Who may launch, and the launch itself."""
        panel, everything = self.panel, self.fields.components
        demo.load(panel.on_visitor, None, panel.visitor, **QUIET)
        demo.load(self.model.on_fit, None, [self.model.cards, self.model.base], **QUIET)
        self.model.base.focus(self.model.on_bases, None, self.model.base, **QUIET)
        panel.sign_in.click(None, None, None, js=SIGN_IN)
        launched = panel.launch.click(
            self.on_launch,
            [*everything, *self.place.inputs],
            panel.launched,
            **QUIET,
        )
        launched.success(None, panel.launched, None, js=OPEN_RUN)
        self.problems.change(None, self.problems, None, js=MARK)
        self.amount.code.wire(lambda request, *values: self.fields.config(values)[0], everything)


MARK = "(problems) => window.phi3lora.train.mark(problems)"
SAVE_YAML = "(text) => window.phi3lora.train.save(text)"
LOAD_YAML = "(text) => window.phi3lora.train.load(text)"


def build(app: Application, demo: gr.Blocks) -> TrainPage:
    """Put the page into the Blocks that are open, wired."""
    page = TrainPage(app)
    page.wire(demo)
    return page


def _settled(component: Any) -> Any:
    """The event of a component once its user is done with it, not at each key."""
    return component.blur if isinstance(component, gr.Textbox | gr.Number) else component.input
