"""What the Train page shows, made by plain functions: tests need no browser.

show_preflight(config, done)        preview, checks and estimate, as HTML
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.datasets import Suggestion
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError
from phi3lora.recipes import describe, load_recipe, recipes
from phi3lora.training.preflight import Preflight
from phi3lora.ui import form, show

BARS = 24  # of the histogram
POCKET_RECIPE, GPU_RECIPE = "pocket", "phi3-mini-lora"


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


def recipe_notes(config: RunConfig, notices: list[str]) -> Any:
    """Translated names, and whose data the recipe was written for."""
    if config.data.path.startswith("example:"):
        return form_notes(notices)
    yours = (
        f"This recipe was written for {config.data.path}. Your data is kept; pick that one under "
        "Hub if you want it."
    )
    return form_notes([*notices, yours])


def form_notes(lines: list[str], colour: str = "grey") -> Any:
    """What to know about where the form's values come from; nothing hides it."""
    body = "".join(show.notice(line, colour) for line in lines)
    return gr.update(value=body, visible=bool(lines))


def message_lines(error: ConfigError) -> str:
    """A form's problems, a line each."""
    return "\n".join(form.problem_lines(error))


def broken_form(error: ConfigError) -> str:
    """What is wrong with the form, said at the launch panel; the preview stays."""
    return "".join(show.notice(line, "red") for line in form.problem_lines(error))


def waiting_checks() -> str:
    """The launch panel while the helper reads."""
    return '<div class="reading"><b></b>Reading the data and checking the machine …</div>'


def show_preflight(config: RunConfig, done: Preflight) -> list[Any]:
    """Values for everything a preflight fills, in the order of `TrainPage.seen`."""
    return [
        data_summary(config, done),
        trains_on(config)
        + show.checks(
            (check.level, check.name, check.found, check.remedy) for check in done.checks
        ),
        estimate_facts(done.estimate),
    ]


def check_list(done: Preflight) -> str:
    """Every check with its colour and remedy."""
    return show.checks(
        (check.level, check.name, check.found, check.remedy) for check in done.checks
    )


def data_summary(config: RunConfig, done: Preflight) -> str:
    """What the data is and what of it will be trained, or why nothing can be."""
    inspection = done.inspection
    if inspection is None:
        reasons = [check.found for check in done.checks if check.level == "red"]
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
    pairs += answer_facts(inspection.answers)
    found = f"<b>Read as {show.text(inspection.format)}.</b> {show.text(inspection.reason)}"
    unread = f" Columns not read: {show.text(inspection.unread_in_words)}."
    lines = [f'<p class="detected">{found}{unread}{more}</p>']
    lines += [show.notice(inspection.mix, "grey")] if inspection.mix else []
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
    body = legend + conversations(inspection.preview, inspection.rejected_preview) + chart
    return data_heading(config) + show.facts(pairs) + "".join(lines) + body


def data_name(path: str) -> str:
    """What people call the data: a file's name, an example's, or an id on the Hub."""
    return Path(path).name if Path(path).is_absolute() else path.removeprefix("example:")


def data_heading(config: RunConfig) -> str:
    """The name of the data over its preview."""
    return f'<h3 class="data-name">{show.text(data_name(config.data.path))}</h3>'


def trains_on(config: RunConfig) -> str:
    """The name of the data beside the button that launches."""
    name = show.text(data_name(config.data.path))
    return f'<p class="trains-on">Trains on <b>{name}</b></p>'


def nothing_chosen(source: str) -> list[Any]:
    """What a preflight would fill while a tab has no data yet."""
    steps = {
        "Your file": "Drop a JSON, JSONL, CSV or Parquet file above.",
        "Hub": "Search the Hub above, or paste a dataset's id.",
    }
    step = steps.get(source, "Pick an example above.")
    return [show.empty("No data is chosen", step), show.notice(f"No data yet. {step}", "grey"), ""]


def answer_facts(answers: Any) -> list[tuple[str, str]]:
    """What there is to compare, where answers are judged."""
    if answers is None:
        return []
    kinds = (("Pairs", answers.pairs), ("Good answers", answers.good), ("Bad ones", answers.bad))
    found = [(name, f"{number:,}") for name, number in kinds if number]
    if answers.pairs:
        longer = 100 * answers.longer / answers.pairs
        found.append(("Longer one is better", f"{longer:.0f} % of pairs"))
    lengths = f"{answers.better_tokens:.0f} against {answers.worse_tokens:.0f} tokens"
    return [*found, ("Better against worse, mean", lengths)]


def conversations(preview: list[list[Any]], rejected: list[list[Any]] | None = None) -> str:
    """The first conversations as the model will read them; what it learns to write is tinted.

    Where answers are judged, the worse one stands beside the better.
    """
    cards = []
    for number, segments in enumerate(preview, 1):
        worse = rejected[number - 1] if rejected else []
        if worse:
            better = _conversation(f"Pair {number}: better", segments)
            card = f'<div class="pair">{better}{_conversation("Worse", worse)}</div>'
        else:
            card = _conversation(f"Conversation {number}", segments)
        cards.append(card)
    return "".join(cards)


def _conversation(title: str, segments: list[Any]) -> str:
    parts = (
        f"<mark>{show.text(part['text'])}</mark>" if part["supervised"] else show.text(part["text"])
        for part in segments
    )
    return (
        f'<figure class="conversation"><figcaption>{title}</figcaption>'
        f"<pre>{''.join(parts)}</pre></figure>"
    )


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
    rows = f"{training.per_device_train_batch_size} × {training.gradient_accumulation_steps}"
    rows += f" × {config.devices} devices" if config.devices > 1 else ""
    return (
        f'<p class="derived">Effective batch <b>{config.effective_batch}</b> '
        f"({rows}) · "
        f"LoRA scaling <b>{config.lora_scaling:.3g}</b> "
        f"({peft.lora_alpha} / {root}{peft.r})</p>"
    )
