"""What the Train page shows of data and form, made by plain functions: tests need no browser.

data_summary(config, done)          the name, figures, notices, conversations and lengths
model_line(config), amount_line(config)      a step in one line
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.datasets import Suggestion
from phi3lora.app.strength import NAMES, level_of
from phi3lora.config import RunConfig
from phi3lora.recipes import load_recipe
from phi3lora.training.preflight import Preflight
from phi3lora.ui import show
from phi3lora.ui.steps import step_line

BARS = 24  # of the histogram
INTRO = (
    '<div class="intro"><h1>Teach Phi-3 to answer like your examples</h1><p>Choose examples, see '
    "exactly what will be trained, press Launch. At the end the tuned model is measured against "
    'its base. <a href="compare?adapter=example:pirate">See a tuned one answer</a></p></div>'
)
ELSEWHERE = {"Model", "Adapter", "Hardware", "Memory", "Sign-in", "Backup", "Disk", "Settings"}


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


def recipe_notes(config: RunConfig, notices: list[str]) -> Any:
    """Translated names, and whose data the recipe was written for."""
    if config.data.path.startswith("example:"):
        return form_notes(notices)
    yours = (
        f"This recipe was written for {config.data.path}. Your data is kept; pick that one under "
        "Hub if you want it."
    )
    return form_notes([yours], more=notices)


def form_notes(lines: list[str], colour: str = "grey", more: list[str] | None = None) -> Any:
    """What to know about where the form's values come from; `more` is there for who asks."""
    body = "".join(show.notice(line, colour) for line in lines)
    if more:
        body += show.more(f"{words.counted(len(more), 'older name')} translated", "\n".join(more))
    return gr.update(value=body, visible=bool(body))


def data_line(config: RunConfig, done: Preflight) -> str:
    """The data in one line: its name first."""
    name, found = data_name(config.data.path), done.inspection
    if found is None:
        return step_line(f"{name} · cannot be used yet")
    share = 100 * found.supervised_tokens / max(1, found.total_tokens)
    return step_line(f"{name} · {number_kept(done)} conversations · {share:.0f} % learnt")


def number_kept(done: Preflight) -> str:
    """How many conversations there are, or the least number where reading ended before the end."""
    found = done.inspection
    return f"{found.kept:,}" if found.complete else f"≥ {found.kept:,}"


def model_line(config: RunConfig, recipe: str | None = None) -> str:
    """The base in one line, and whether the form is still the recipe that was picked."""
    model = config.model
    parts = [model.path, "" if model.quantization == "none" else f"in {model.quantization}"]
    if model.adapter:
        parts.append(f"going on from {model.adapter}")
    if recipe:
        parts.append(f"recipe {recipe}" + ("" if is_recipe(config, recipe) else ", changed"))
    return step_line(" · ".join(part for part in parts if part))


def is_recipe(config: RunConfig, recipe: str) -> bool:
    """Whether everything but the data and the title is as the recipe says."""
    mine = {"title": config.title, "data": config.data}
    return load_recipe(recipe)[0].model_copy(update=mine) == config


def amount_line(config: RunConfig) -> str:
    """How much is trained in one line: the level's name, and its numbers."""
    training, level = config.training_config, level_of(config)
    name = "your own numbers" if level is None else NAMES[level - 1]
    much = f"{training.num_train_epochs:g} epochs"
    if training.max_steps > 0:
        much = words.counted(training.max_steps, "update")
    rank = "every weight" if config.adapter == "none" else f"rank {config.peft_config.r}"
    return step_line(f"{name} · {much}, {rank}, learning rate {training.learning_rate:g}")


def data_summary(config: RunConfig, done: Preflight) -> str:
    """What the data is and what of it will be trained, or why nothing can be."""
    inspection = done.inspection
    if inspection is None:
        return nothing_to_show(done)
    dropped = sum(inspection.dropped.values())
    kept = (
        f"{inspection.kept:,} of {inspection.rows:,}" if inspection.complete else number_kept(done)
    )
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
        lines.append(
            show.notice(f"{cut}; a limit of {inspection.longest:,} would keep them whole.")
        )
    if dropped:
        reasons = [f"{number:,} × {reason}" for reason, number in inspection.dropped.items()]
        lines.append(show.notice("\n".join([f"{dropped:,} rows cannot be used:", *reasons])))
    legend = (
        '<p class="legend"><mark>tinted</mark> tokens are supervised: the model learns to '
        "write them. The rest it only reads.</p>"
    )
    chart = length_chart(inspection.lengths, config.training_config.max_length)
    shown = conversations(inspection, config.training_config.max_length)
    body = legend + shown + chart
    return data_heading(config) + show.facts(pairs) + "".join(lines) + body


def nothing_to_show(done: Preflight) -> str:
    """Why there is no preview. What is wrong with the base is no fault of the data."""
    red = [check for check in done.checks if check.level == "red"]
    reasons = [check.found for check in red if check.name not in ELSEWHERE]
    if reasons or not red:
        return "".join(show.notice(reason, "red") for reason in reasons) or show.empty(
            "Nothing to show", "Pick other data."
        )
    return show.empty(
        "The data is shown once the base can be read",
        "Its words are cut into the tokens of the base; what is wrong with that is said beside "
        "the Launch button.",
    )


def data_name(path: str) -> str:
    """What people call the data: a file's name, an example's, or an id on the Hub."""
    return Path(path).name if Path(path).is_absolute() else path.removeprefix("example:")


def data_heading(config: RunConfig) -> str:
    """The name of the data over its preview."""
    return f'<h3 class="data-name">{show.text(data_name(config.data.path))}</h3>'


def conversations(inspection: Any, limit: int) -> str:
    """The first conversations as the model will read them, one at a time.

    What it learns to write is tinted; where a conversation is cut, that is said.
    """
    cards = []
    for place, segments in enumerate(inspection.preview):
        parts = (
            supervised(show.text(part["text"])) if part["supervised"] else show.text(part["text"])
            for part in segments
        )
        lengths = inspection.preview_lengths[place : place + 1]
        whole = lengths[0] if lengths else 0
        cut = f"cut here: {limit:,} of {whole:,} tokens are read" if whole > limit else ""
        end = f'<span class="cut">{show.text(cut)}</span>' if cut else ""
        hidden = " hidden" if place else ""
        worse = _instead_of(inspection.rejected_preview[place : place + 1])
        of = ":".join(map(str, inspection.places[place])) if inspection.places else ""
        cards.append(
            f'<pre tabindex="0" data-row="{of}"{hidden}>{"".join(parts)}{end}{worse}</pre>'
        )
    if not cards:
        return show.notice("None of the first rows is trained on.", "grey")
    return (
        f'<figure class="conversation" data-as="chat"><figcaption>'
        f'<span class="place" data-words="Conversation {{place}} of {len(cards)}">'
        f'Conversation 1 of {len(cards)}</span><span class="pager">{_AS}'
        f'<button type="button" class="as" data-open="shown">Edit</button>'
        f'<button type="button" data-turn="-1" aria-label="Previous conversation">‹</button>'
        f'<button type="button" data-turn="1" aria-label="Next conversation">›'
        f"</button></span></figcaption>{''.join(cards)}{_tokens(inspection.preview_tokens)}</figure>"
    )


_AS = "".join(
    f'<button type="button" class="as" data-as="{name}" aria-pressed="{pressed}">{words}</button>'
    for name, pressed, words in (("chat", "true", "as chat"), ("tokens", "false", "as tokens"))
)
# Before and after supervised text, for who does not see the tint.
_LEARNT, _READ = "(learnt from here on:) ", " (end of what is learnt) "


def supervised(body: str) -> str:
    """Escaped text that the model learns to write: tinted, and said to a screen reader."""
    spoken = '<span class="spoken">{}</span>'
    return f"<mark>{spoken.format(_LEARNT)}{body}{spoken.format(_READ)}</mark>"


def _tokens(preview: list[list[Any]]) -> str:
    """The same conversations token by token; the browser draws one when it is looked at."""
    rows = [[[part["text"], int(part["supervised"])] for part in row] for row in preview]
    return (
        f'<pre class="tokens" tabindex="0" hidden data-tokens="{show.text(json.dumps(rows))}">'
        "</pre>"
    )


def _instead_of(rejected: list[list[Any]]) -> str:
    """The worse answer of a pair, below the better one; nothing where there is none."""
    said = [part["text"] for segments in rejected for part in segments if part["supervised"]]
    body = f"\n<mark>{show.text(''.join(said))}</mark>"
    return f'\n\n<span class="ours">instead of:</span>{body}' if said else ""


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
    ticks = [round(len(counts) * width * part / 4) for part in range(5)]
    axis = [*(f"{tick:,}" for tick in ticks[:-1]), f"{ticks[-1]:,} tokens"]
    cut = sum(length > limit for length in lengths)
    over = f"{cut:,} are longer than the limit of {limit:,} tokens." if cut else ""
    return show.bars("Length of conversations", bars, axis, over)


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
