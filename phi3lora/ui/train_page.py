"""The Train page: pick data and see what will be trained, pick a recipe, check, launch.

    with gr.Blocks() as demo:
        build(app, demo)

Every change goes the same way: read the form, look (in the helper process), show. What the page
shows is made by plain functions from a `Preflight`, so that tests need no browser.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.datasets import NO_PARTS, Suggestion
from phi3lora.config import POCKET, RunConfig
from phi3lora.data.sources import EXAMPLES
from phi3lora.errors import AccessError, ConfigError, DataError, Phi3LoraError
from phi3lora.hub.access import SUGGESTED_MODELS
from phi3lora.recipes import describe, load_recipe, recipes
from phi3lora.training.preflight import Check, Preflight
from phi3lora.ui import form, show
from phi3lora.ui.code import PlainCode
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import Fields, shown

EXAMPLE, FILE, HUB = "Example", "Your file", "Hub"
BARS = 24  # of the histogram
REST = 0.3  # seconds without a key after which the Hub is asked
POCKET_RECIPE, GPU_RECIPE = "pocket", "phi3-mini-lora"
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
        self._looks: dict[str, object] = {}  # the latest look of each page that is being served
        self._typed: dict[str, object] = {}  # likewise what is typed into the search
        self.start = first_recipe()
        self.fields = Fields(load_recipe(self.start)[0].model_copy(update={"title": ""}))
        if app.settings.home_problem:
            gr.HTML(show.notice(app.settings.home_problem, "amber"), elem_id="home-problem")
        with gr.Row(elem_classes="page split", equal_height=False):
            with gr.Column(scale=17, min_width=340, elem_classes="main"):
                with gr.Column(elem_classes="card"):
                    self._data()
                with gr.Column(elem_classes="card"):
                    self._recipe()
            with (
                gr.Column(scale=9, min_width=300, elem_classes="aside"),
                gr.Column(elem_classes="card"),
            ):
                self._launch()

    # ------------------------------------------------------------------ what is on the page

    def _data(self) -> None:
        gr.HTML(
            show.heading("Data", "Chat data to learn from, and exactly what will be trained.", 1)
        )
        self.source = gr.Radio(
            [EXAMPLE, FILE, HUB],
            value=EXAMPLE,
            show_label=False,
            elem_classes="segmented",
            elem_id="source",
        )
        with gr.Column(elem_id="panel-example") as self.example_panel:
            names = list(EXAMPLES)
            self.example = gr.Dropdown(
                names, value=names[0] if names else None, label="Bundled dataset", elem_id="example"
            )
        with gr.Column(visible=False, elem_id="panel-file") as self.file_panel:
            self.file = gr.File(
                label="JSON, JSONL, CSV or Parquet",
                height=140,
                file_types=[".json", ".jsonl", ".csv", ".parquet"],
                elem_id="file",
            )
        with gr.Column(visible=False, elem_id="panel-hub") as self.hub_panel:
            self._hub()
        self.fields.add("data.path", visible="hidden")
        with gr.Accordion("How rows are read and held out", open=False, elem_classes="fold"):
            with gr.Row():
                self.fields.add("data.test_size", min_width=200)
                self.fields.add("data.format", min_width=200)
            with gr.Row():
                self.fields.add("data.columns", min_width=200)
                self.fields.add("data.roles", min_width=200)
            self.fields.add("data.system_prompt")
            with gr.Row():
                for name in ("test_split", "max_rows", "seed", "revision"):
                    self.fields.add(f"data.{name}", min_width=140)
        self._preview()

    def _hub(self) -> None:
        self.search = gr.Textbox(
            label="Dataset on the Hub",
            placeholder="Search, or paste an id such as HuggingFaceH4/ultrachat_200k",
            elem_id="search",
        )
        self.results = gr.Radio(
            [], visible=False, show_label=False, elem_classes="results", elem_id="results"
        )
        with gr.Row():
            self.fields.add("data.name", choices=[], min_width=160)
            self.fields.add("data.split", choices=["train"], min_width=160)

    def _preview(self) -> None:
        self.summary = gr.HTML(
            show.empty(
                "What will be trained shows up here",
                "Pick an example, drop a file, or "
                "search the Hub: three conversations as the model will read them, with "
                "the tokens it learns from tinted.",
            ),
            elem_id="data-summary",
        )

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
        for section, name in form.SECTIONS.items():
            if section == "data":
                continue
            with gr.Accordion(name, open=False, elem_classes="fold inner"):
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
        self.launch = gr.Button("Launch", variant="primary", size="lg", elem_id="launch")
        self.launched = gr.Textbox(visible="hidden", elem_id="launched")

    # ------------------------------------------------------------------ what happens

    @property
    def seen(self) -> list[Any]:
        """What a look fills."""
        return [self.summary, self.checks, self.estimate]

    def on_look(self, request: gr.Request, *shown_values: Any) -> Iterator[list[Any]]:
        """Read the form, say that we are reading, then show what was found.

        Looks take their time: one that was overtaken by a later one of this page shows nothing.
        """
        look = object()
        session = str(request.session_hash)
        self._looks[session] = look
        yield [gr.skip(), waiting_checks(), gr.skip()]
        found = self._look(request, shown_values)
        if self._looks.get(session) is look:
            del self._looks[session]
            yield found

    def _look(self, request: gr.Request, shown_values: tuple[Any, ...]) -> list[Any]:
        """What the form asks for, as it is shown."""
        try:
            config, _ = self.fields.config(shown_values)
        except ConfigError as error:
            return [gr.skip(), broken_form(error), ""]
        try:
            caller = self.app.callers.caller(session_of(request))
            look = self.app.launching.preflight(config, caller)
        except Phi3LoraError as error:
            name = "Access" if isinstance(error, AccessError) else "Data"
            look = Preflight([Check(name, "red", str(error))])
        return show_look(config, look)

    def on_live(self, drawn: str, *shown_values: Any) -> tuple[str, Any, Any]:
        """The figures that follow from the form at once, without a look; and its YAML.

        YAML that is as it was `drawn` last stays as it is: somebody may be editing it.
        """
        try:
            config, _ = self.fields.config(shown_values)
        except ConfigError as error:
            return show.notice(message_lines(error), "red"), gr.skip(), gr.skip()
        text = config.to_yaml()
        return derived(config), gr.skip() if text == drawn else text, text

    def on_source(self, source: str, example: str) -> list[Any]:
        """Show the chosen source's panel; an example is taken at once."""
        panels = [gr.update(visible=source == name) for name in (EXAMPLE, FILE, HUB)]
        return [*panels, f"example:{example}" if source == EXAMPLE else gr.skip()]

    @shown
    def on_file(self, file: str | None, request: gr.Request) -> Any:
        """Keep the dropped file and make it the data."""
        if not file:
            return gr.skip()
        caller = self.app.callers.caller(session_of(request))
        return str(self.app.datasets.keep_upload(Path(file), caller))

    def on_type(self, query: str, request: gr.Request) -> Any:
        """What matches the words so far, once the typing rests; errors wait for Enter."""
        session, typed = str(request.session_hash), object()
        self._typed[session] = typed
        time.sleep(REST if query else 0)
        if self._typed.get(session) is not typed:
            return gr.skip()
        try:
            found = self._search(named_dataset(query), request)
        except Phi3LoraError:
            return gr.skip()
        if self._typed.get(session) is not typed:  # overtaken while the Hub was asked
            return gr.skip()
        del self._typed[session]
        return gr.update(choices=found, value=None, visible=bool(found))

    @shown
    def on_search(self, query: str, request: gr.Request) -> tuple[Any, Any]:
        """A list of datasets that match; an id that exists is taken at once."""
        query = named_dataset(query)
        if not query:
            raise DataError("Type a few words, or a dataset's id, then press Enter.")
        self._typed.pop(str(request.session_hash), None)
        found = self._search(query, request)
        if query in [dataset for _, dataset in found] or (not found and "/" in query):
            return gr.update(visible=False, choices=[]), query
        if not found:
            raise DataError(f"The Hub has no dataset like {query!r}; try fewer or other words.")
        return gr.update(choices=found, value=None, visible=True), gr.skip()

    def _search(self, query: str, request: gr.Request) -> list[tuple[str, str]]:
        """Suggested datasets as (what to show, id)."""
        caller = self.app.callers.caller(session_of(request))
        found = self.app.datasets.search(query, caller)
        return [(dataset_line(one), one.found.id) for one in found]

    def on_bases(self, request: gr.Request) -> Any:
        """More bases to choose from; without the Hub those that were there."""
        try:
            caller = self.app.callers.caller(session_of(request))
            return gr.update(choices=self.app.datasets.bases(caller))
        except Phi3LoraError:
            return gr.skip()

    def on_parts(self, path: str, name: str | None, request: gr.Request) -> Iterator[list[Any]]:
        """The configurations and splits that a Hub dataset has; first, that it is being read.

        Why it cannot be read is said by the look that follows.
        """
        yield [gr.skip(), gr.skip(), waiting_checks()]  # what was found is about other data
        yield [*self._parts(path, name, request), gr.skip()]

    def _parts(self, path: str, name: str | None, request: gr.Request) -> list[Any]:
        try:
            caller = self.app.callers.caller(session_of(request))
            parts = self.app.datasets.parts(path, name, caller)
        except Phi3LoraError:
            parts = NO_PARTS
        return [
            gr.update(choices=parts.names, value=parts.name),
            gr.update(choices=parts.splits, value=parts.split),
        ]

    @shown
    def on_recipe(self, name: str) -> list[Any]:
        """Fill the form with a recipe; the data stays."""
        config, notices = load_recipe(name)
        return [recipe_notes(config, notices), *self._fill_keeping_data(config)]

    @shown
    def on_yaml(self, text: str) -> list[Any]:
        """Fill the form from YAML, data included."""
        config, notices = RunConfig.from_text(text, "This")
        return [recipe_notes(None, notices), *self.fields.fill(config)]

    def _fill_keeping_data(self, config: RunConfig) -> list[Any]:
        kept = [name for name in self.fields.by_name if name.startswith("data.")]
        return self.fields.fill(config, keep=[*kept, "title"])

    @shown
    def on_launch(self, request: gr.Request, *shown_values: Any) -> str:
        """Launch; the id of the run, which the browser then opens."""
        config, _ = self.fields.config(shown_values)
        caller = self.app.callers.caller(session_of(request))
        return self.app.launching.launch(config, caller).id

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        everything, by_name = self.fields.components, self.fields.by_name
        path = by_name["data.path"]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.source.change(
            self.on_source,
            [self.source, self.example],
            [self.example_panel, self.file_panel, self.hub_panel, path],
            **quiet,
        )
        self.example.input(lambda name: f"example:{name}", self.example, path, **quiet)
        self.file.upload(self.on_file, self.file, path, **quiet)
        self.search.submit(
            self.on_search,
            self.search,
            [self.results, path],
            show_progress="minimal",
            api_visibility="private",
        )
        typing: dict[str, Any] = {**quiet, "trigger_mode": "multiple", "concurrency_limit": None}
        gr.on(
            [self.search.input, self.search.focus],
            self.on_type,
            self.search,
            self.results,
            **typing,
        )
        base = by_name["model.path"]
        base.focus(self.on_bases, None, base, **quiet)
        self.results.input(lambda dataset: dataset, self.results, path, **quiet)
        live = [self.derived, self.yaml, self.drawn]
        looked = {"fn": self.on_look, "inputs": everything, "outputs": self.seen, **quiet}
        drawn = {"fn": self.on_live, "inputs": [self.drawn, *everything], "outputs": live, **quiet}
        last = "always_last"
        # The YAML first: whoever reads what a look found may change it without being overtaken.
        path.change(
            self.on_parts,
            [path, by_name["data.name"]],
            [by_name["data.name"], by_name["data.split"], self.checks],
            **quiet,
            trigger_mode=last,
        ).then(**drawn).then(**looked)
        settled = [
            _settled(component)
            for name, component in by_name.items()
            if name not in ("title", "data.path")
        ]
        gr.on([demo.load, *settled], **looked, trigger_mode=last)
        # At once and apart from the look, which may take seconds: YAML is edited meanwhile.
        changed = [by_name[name].change for name in LIVE]
        gr.on([demo.load, *changed, *settled], **drawn, trigger_mode=last)
        filled = [self.recipe_notes, *everything]
        for event in (
            self.recipe.input(self.on_recipe, self.recipe, filled, **quiet),
            self.use_yaml.click(self.on_yaml, self.yaml, filled, **quiet),
        ):
            event.success(**drawn).success(**looked)
        launched = self.launch.click(
            self.on_launch,
            everything,
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


# ---------------------------------------------------------------------- values into what is shown


def dataset_line(suggestion: Suggestion) -> str:
    """A dataset to pick, in a line."""
    found = suggestion.found
    facts = [
        found.id,
        "used lately" if suggestion.used_lately else "",
        found.rows and f"{found.rows} rows",
        found.downloads and f"{words.short_count(found.downloads)} downloads",
        found.likes and f"{words.short_count(found.likes)} likes",
        found.size and words.size(found.size),
        found.licence,
        "gated" if found.gated else "",
        "private" if found.private else "",
    ]
    return " · ".join(fact for fact in facts if fact)


def named_dataset(query: str) -> str:
    """The words of a search, or the id in a dataset's address."""
    return query.strip().removeprefix("https://huggingface.co/datasets/").strip("/")


def card_text(name: str) -> str:
    """A recipe's card: its title, and what its file says about it, on two lines."""
    title = load_recipe(name)[0].title or name
    return f"{title.removesuffix('.ipynb')}\n{describe(name)}"


def first_recipe() -> str:
    """Phi-3-mini where there is a GPU, pocket elsewhere; without asking torch."""
    on_gpu = shutil.which("nvidia-smi") is not None and GPU_RECIPE in recipes()
    return GPU_RECIPE if on_gpu else POCKET_RECIPE


def recipe_notes(config: RunConfig | None, notices: list[str]) -> Any:
    """Translated names, and whose data the recipe was written for."""
    lines = [show.notice(line, "grey") for line in notices]
    if config and not config.data.path.startswith("example:"):
        lines.append(
            show.notice(
                f"This recipe was written for {config.data.path}. Your data is "
                "kept; pick that one under Hub if you want it.",
                "grey",
            )
        )
    return gr.update(value="".join(lines), visible=bool(lines))


def message_lines(error: ConfigError) -> str:
    """A form's problems, a line each."""
    return "\n".join(form.problem_lines(error))


def broken_form(error: ConfigError) -> str:
    """What is wrong with the form, said at the launch panel; the preview stays."""
    return "".join(show.notice(line, "red") for line in form.problem_lines(error))


def waiting_checks() -> str:
    """The launch panel while the helper reads."""
    return '<div class="reading"><b></b>Reading the data and checking the machine …</div>'


def show_look(config: RunConfig, look: Preflight) -> list[Any]:
    """Values for everything a look fills, in the order of `TrainPage.seen`."""
    return [
        data_summary(config, look),
        show.checks((check.level, check.name, check.found, check.remedy) for check in look.checks),
        estimate_facts(look.estimate),
    ]


def data_summary(config: RunConfig, look: Preflight) -> str:
    """What the data is and what of it will be trained, or why nothing can be."""
    inspection = look.inspection
    if inspection is None:
        reasons = [check.found for check in look.checks if check.level == "red"]
        return "".join(show.notice(reason, "red") for reason in reasons) or show.empty(
            "Nothing to show", "Pick other data."
        )
    dropped = sum(inspection.dropped.values())
    kept = f"{inspection.kept:,} of {inspection.rows:,}"
    of = f" of {inspection.expected}" if inspection.expected else ""
    more = "" if inspection.complete else f" Counted in the first {inspection.read:,}{of} rows."
    share = 100 * inspection.supervised_tokens / max(1, inspection.total_tokens)
    pairs = [
        ("Conversations", kept),
        ("Tokens", words.short_count(inspection.total_tokens)),
        ("Supervised", f"{share:.0f} %"),
        ("Median length", f"{inspection.median:,.0f} tokens"),
        ("Longest", f"{inspection.longest:,.0f} tokens"),
    ]
    found = f"<b>Read as {show.text(inspection.format)}.</b> {show.text(inspection.reason)}"
    unread = f" Not read: {show.text(', '.join(inspection.unread))}." if inspection.unread else ""
    lines = [f'<p class="detected">{found}{unread}{more}</p>']
    lines += [show.notice(notice) for notice in inspection.notices]
    changed = [f"{number:,} × {what}" for what, number in inspection.changes.items()]
    lines += [show.notice("\n".join(["Of the rows that are used:", *changed]))] if changed else []
    if inspection.truncated:
        limit = config.training_config.max_length
        cut = f"{inspection.truncated:,} conversations are cut at {limit:,} tokens"
        lines.append(show.notice(f"{cut}; raise the length limit to keep them whole."))
    if dropped:
        reasons = [f"{number:,} × {reason}" for reason, number in inspection.dropped.items()]
        lines.append(show.notice("\n".join([f"{dropped:,} rows cannot be used:", *reasons])))
    legend = (
        '<p class="legend"><mark>tinted</mark> tokens are supervised: the model learns to '
        "write them. The rest it only reads.</p>"
    )
    chart = length_chart(inspection.lengths, config.training_config.max_length)
    body = legend + conversations(inspection.preview) + chart
    return show.facts(pairs) + "".join(lines) + body


def conversations(preview: list[list[Any]]) -> str:
    """The first conversations as the model will read them; what it learns to write is tinted."""
    cards = []
    for number, segments in enumerate(preview, 1):
        parts = (
            f"<mark>{show.text(part['text'])}</mark>"
            if part["supervised"]
            else show.text(part["text"])
            for part in segments
        )
        cards.append(
            f'<figure class="conversation"><figcaption>Conversation {number}</figcaption>'
            f"<pre>{''.join(parts)}</pre></figure>"
        )
    return "".join(cards)


def length_chart(lengths: Any, limit: int) -> str:
    """Token lengths in bars of equal width; those beyond the limit stand out."""
    if not len(lengths):
        return ""
    width = max(1, -(-(max(lengths) + 1) // BARS))
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    bars = [
        (
            f"{place * width} to {place * width + width - 1} tokens: {number:,} rows",
            number,
            place * width >= limit,
        )
        for place, number in enumerate(counts)
    ]
    return show.bars("Length of conversations", bars, ("0", f"{len(counts) * width:,} tokens"))


def estimate_facts(estimate: Any) -> str:
    """Memory, time, steps and the share that is trained."""
    if estimate is None:
        return ""
    share = 100 * estimate.trainable / max(1, estimate.total)
    pairs = [
        ("Memory", words.size(estimate.memory_bytes)),
        ("Trained", f"{words.short_count(estimate.trainable)} ({share:.2g} %)"),
    ]
    if estimate.steps:
        about = "" if estimate.exact else "about "
        pairs.append(("Updates", about + words.count(estimate.steps)))
    if estimate.seconds is None:
        pairs.append(("Time", "known after a first run"))
    else:
        pairs.append(("Time", f"~ {words.duration(estimate.seconds)}"))
    return f'<div class="estimate">{show.facts(pairs)}</div>'


def derived(config: RunConfig) -> str:
    """Effective batch and LoRA scaling."""
    training, peft = config.training_config, config.peft_config
    root = "√" if peft.use_rslora else ""
    return (
        f'<p class="derived">Effective batch <b>{config.effective_batch}</b> '
        f"({training.per_device_train_batch_size} × {training.gradient_accumulation_steps}) · "
        f"LoRA scaling <b>{config.lora_scaling:.3g}</b> "
        f"({peft.lora_alpha} / {root}{peft.r})</p>"
    )
