"""The model card: evidence, written from facts, as text that can be edited before it is published.

    text = write_card(collect(run_folder), "ann/pirate")
    check_card(text)                       # after somebody edited it
    picture = draw_losses(facts)           # PNG, or None where nothing was logged

The card says what was trained on what and how, shows base against tuned with intervals, sample
answers and limits, and how to load the result in ten lines that run.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from phi3lora import words
from phi3lora.errors import ConfigError, HubError
from phi3lora.hub.client import is_hub_id
from phi3lora.hub.engines import cannot_serve, serving_lines
from phi3lora.hub.facts import Facts, Origin
from phi3lora.redaction import redact
from phi3lora.strict_yaml import front_matter

PICTURE = "loss.png"
MARK = "phi3lora"  # the tag by which we know our own
LONGEST_SAMPLE = 600  # letters
LONGEST_EXAMPLE = 120  # of each text of the example that stands at the top
# Names under which the Hub knows our figures.
METRICS = {
    "loss": "loss",
    "perplexity": "perplexity",
    "token_accuracy": "accuracy",
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "rougeL",
}
# What the Hub lists models under, by how they were trained.
METHOD_TAGS = {method: ("trl", method) for method in ("dpo", "kto", "orpo", "grpo")}
METHODS = {
    "dpo": "direct preference optimization (DPO, [Rafailov et al. 2023](https://arxiv.org/abs/2305."
    "18290))",
    "kto": "Kahneman-Tversky optimization (KTO, [Ethayarajh et al. 2024](https://arxiv.org/abs/"
    "2402.01306))",
    "orpo": "odds ratio preference optimization (ORPO, [Hong et al. 2024](https://arxiv.org/abs/"
    "2403.07691))",
    "grpo": "group relative policy optimization (GRPO, [Shao et al. 2024](https://arxiv.org/abs/"
    "2402.03300))",
}
VERDICTS = {
    "better": "On held-out rows the tuned model is **better** than its base.",
    "worse": "On held-out rows the tuned model is **worse** than its base.",
    "cannot tell": "The held-out rows **cannot tell** the tuned model from its base.",
}


def write_card(facts: Facts, repo: str, *, merged: bool = False, picture: bool = True) -> str:
    """README.md of a repository: metadata, then the evidence.

    Args:
        repo: `user/name`, where it will be published.
        merged: whether the repository holds the whole model rather than an adapter.
        picture: whether the loss curve lies beside it.
    """
    name = facts.title or repo.rpartition("/")[2]
    parts = [
        f"---\n{metadata(facts, repo, merged)}\n---\n",
        f"# {name}\n\n{_summary(facts, merged)}",
        _example(facts),
        _proof(facts),
        _samples(facts),
        f"## Load it\n\n```python\n{load_snippet(facts.base, repo, merged)}\n```",
        _serve(facts, repo, merged),
        _trained_on(facts),
        _how(facts, picture),
        _limits(facts),
    ]
    return redact("\n\n".join(part for part in parts if part) + "\n")


def metadata(facts: Facts, repo: str, merged: bool = False) -> str:
    """The YAML at the top of the card, as the Hub reads it."""
    from huggingface_hub import ModelCardData

    base, data = facts.base, facts.data
    data_of_card = ModelCardData(
        base_model=base.name if base.on_hub else None,
        datasets=[data.name] if data.on_hub else None,
        library_name="transformers" if merged or facts.adapter == "none" else "peft",
        license=base.licence or None,
        pipeline_tag="text-generation",
        tags=[MARK, "phi-3", "lora", "conversational", *METHOD_TAGS.get(facts.method, ())],
        model_name=repo.rpartition("/")[2],
        eval_results=_results(facts) or None,
    )
    text: str = data_of_card.to_yaml()
    return text


def _results(facts: Facts) -> list[Any]:
    """The tuned model's figures on the held-out rows, as a model index."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=facts.data.name if facts.data.on_hub else "custom",
            dataset_name=f"{facts.data.name}, held-out rows",
            dataset_split=facts.split or None,
            metric_type=METRICS[item["name"]],
            metric_name=item["title"],
            metric_value=round(item["tuned"], 4),
        )
        for item in facts.comparisons
        if item["name"] in METRICS
    ]


def _summary(facts: Facts, merged: bool) -> str:
    what = "A fine-tuned model" if merged or facts.adapter == "none" else "A LoRA adapter"
    method = f"by {METHODS[facts.method]} " if facts.method in METHODS else ""
    verdict = VERDICTS.get(facts.verdict, "It was not compared with its base.")
    return (
        f"{what} for {_link(facts.base, 'model')}, trained on {_link(facts.data, 'dataset')} "
        f"{method}with phi3lora. {verdict}{_chain(facts)}"
    )


def _example(facts: Facts) -> str:
    """One held-out row at a glance, where the model got better: the first of short texts."""
    if facts.verdict != "better":
        return ""
    for row in facts.gained:
        texts = [str(row.get(name, "")).strip() for name in ("prompt", "base", "tuned")]
        if all(text and "\n" not in text and len(text) <= LONGEST_EXAMPLE for text in texts):
            prompt, base, tuned = texts
            return _quoted(f"{prompt}\n\nBase:  {base}\nTuned: {tuned}")
    return ""


def _chain(facts: Facts) -> str:
    """What training went on from, where it did not begin anew."""
    if not facts.chain:
        return ""
    named = [
        f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{Path(name).name}`"
        for name in facts.chain
    ]
    return f"\n\nTraining went on from an earlier adapter: {' → '.join(named)} → this one."


def _link(origin: Origin, kind: str) -> str:
    """The name, linked where there is something to link to."""
    if not origin.on_hub:
        return "the bundled pocket Phi-3" if origin.name == "pocket" else f"`{origin.name}`"
    place = "datasets/" if kind == "dataset" else ""
    return f"[{origin.name}](https://huggingface.co/{place}{origin.name})"


def _proof(facts: Facts) -> str:
    """Base against tuned, with intervals."""
    if not facts.comparisons:
        return ""
    lines = [
        f"## Base against tuned\n\nBoth answered the same {facts.scored_rows} held-out rows. The "
        "interval holds 95 % of 2,000 bootstrap differences.\n",
        "| | base | tuned | difference | interval | |\n| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for item in facts.comparisons:
        base, tuned, difference = item["base"], item["tuned"], item["difference"]
        lines.append(
            f"| {item['title']} | {base:.4g} | {tuned:.4g} | {difference:+.4g} | "
            f"{item['low']:+.4g} to {item['high']:+.4g} | {item.get('verdict', '')} |"
        )
    return "\n".join(lines)


def _samples(facts: Facts) -> str:
    """What both said to held-out prompts: where tuned gained most, and where it lost."""
    chosen = [("gained most", row) for row in facts.gained[:2]]
    # Reports of earlier versions name rows here that gained least.
    chosen += [("lost most", row) for row in facts.lost[:1] if row.get("gain", -1) < 0]
    if not chosen:
        return ""
    parts = ["## Sample answers\n\nFrom the held-out rows, greedy decoding."]
    for where, row in chosen:
        quoted = [(title, _quoted(str(row.get(key, "")))) for title, key in _SAMPLE]
        body = "\n\n".join(f"**{title}**\n\n{text}" for title, text in quoted)
        parts.append(
            f"<details><summary>Where the tuned model {where}</summary>\n\n{body}\n\n</details>"
        )
    return "\n\n".join(parts)


def samples_of(card: str) -> list[dict[str, str]]:
    """The held-out rows that a card of ours shows: `prompt`, `reference`, `base` and `tuned`."""
    samples: list[dict[str, str]] = []
    for title, _, text in _QUOTED.findall(card):
        if title == "Prompt":
            samples.append({})
        if samples:
            samples[-1][title.lower()] = text
    return samples


_QUOTED = re.compile(r"\*\*(Prompt|Reference|Base|Tuned)\*\*\n\n(`{3,})text\n(.*?)\n\2", re.DOTALL)
_SAMPLE = (("Prompt", "prompt"), ("Reference", "reference"), ("Base", "base"), ("Tuned", "tuned"))


def _quoted(text: str) -> str:
    """As a code block: what a dataset says is shown, never rendered."""
    text = text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + " …"
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def load_snippet(base: Origin, repo: str, merged: bool = False) -> str:
    """At most ten lines of Python that load what was published and ask it something."""
    lines = ["from peft import PeftModel"]
    if base.name == "pocket" and not merged:
        lines.append("from phi3lora.models.pocket import CHECKPOINT")
    lines.append("from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline\n")
    if merged:
        lines.pop(0)
        lines.append(f'model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto")')
    else:
        where = "CHECKPOINT" if base.name == "pocket" else f'"{base.name}"'
        pinned = f', revision="{base.revision}"' if base.revision else ""
        lines.append(f'base = AutoModelForCausalLM.from_pretrained({where}{pinned}, dtype="auto")')
        lines.append(f'model = PeftModel.from_pretrained(base, "{repo}")')
    return "\n".join([*lines, *_ASK.format(repo=repo).splitlines()])


_ASK = """tokenizer = AutoTokenizer.from_pretrained("{repo}")
chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
messages = [{{"role": "user", "content": "Who are you?"}}]
print(chat(messages, max_new_tokens=100)[0]["generated_text"][-1]["content"])"""


def _serve(facts: Facts, repo: str, merged: bool) -> str:
    """A line for each engine that serves it; which ones refuse an adapter, and why."""
    whole = merged or not facts.settings
    if facts.base.name == "pocket":
        lines, why = [] if whole else [f"phi3lora serve --adapter {repo}"], ""
    else:
        lines = serving_lines(facts.base.name, repo, None if whole else facts.settings)
        why = "" if whole else cannot_serve(facts.settings)
    if not lines:
        return ""
    note = f"\n\nvLLM and TGI do not take {why} in an adapter: serve a merged model." if why else ""
    return "## Serve it\n\n```bash\n" + "\n".join(lines) + f"\n```{note}"


def _trained_on(facts: Facts) -> str:
    """Table of the dataset: where from, licence, and rows kept and dropped."""
    from phi3lora.data.mixing import chosen_reasons

    data, counts = facts.data, facts.prepared
    rows = [("Dataset", _link(data, "dataset")), ("Split", facts.split)]
    rows += [("Mixed with", _link(one, "dataset")) for one in facts.more]
    rows += [("Revision", f"`{data.revision}`" if data.revision else "")]
    rows += [("Licence", data.licence)]
    if counts:
        left_out = chosen_reasons(counts.dropped)
        dropped = sum(counts.dropped.values()) - sum(left_out.values())
        rows += [
            ("Rows trained on", f"{counts.train_rows:,}"),
            ("Rows held out", f"{counts.test_rows:,}"),
            ("Rows that could not be used", f"{dropped:,}"),
            *((f"Rows left out: {why}", f"{number:,}") for why, number in left_out.items()),
            ("Rows edited", f"{facts.edited:,}" if facts.edited else ""),
            ("Tokens", f"{counts.train_tokens:,}"),
            ("Supervised tokens", f"{counts.supervised_tokens:,}"),
            ("Rows cut at the length limit", f"{counts.truncated:,}"),
            ("Held-out prompts also trained on", f"{counts.leaked:,}"),
        ]
    return "## Trained on\n\n" + _table(rows)


def _how(facts: Facts, picture: bool) -> str:
    """Base, hardware, time, the curve, and every option."""
    base, loaded = facts.base, facts.loaded
    rows = [("Base", _link(base, "model"))]
    rows += [("Revision of the base", f"`{base.revision}`" if base.revision else "")]
    if loaded:
        share = loaded.trainable_parameters / max(loaded.total_parameters, 1)
        rows += [
            ("Hardware", loaded.hardware or loaded.device),
            ("Precision", f"{loaded.dtype}, quantization {loaded.quantization}"),
            (
                "Trained parameters",
                f"{loaded.trainable_parameters:,} of {loaded.total_parameters:,} ({share:.2%})",
            ),
        ]
    rows += [
        ("Steps", f"{facts.steps:,}"),
        ("Time", words.duration(facts.seconds) if facts.seconds else ""),
    ]
    rows += [("Most memory", words.size(facts.peak_memory) if facts.peak_memory else "")]
    rows += [("Versions", ", ".join(f"{name} {v}" for name, v in facts.versions.items()))]
    cells = [f"| `{name}` | {_cell(value)} |" for name, _, value in facts.options]
    options = "\n".join(["| option | value |\n| --- | --- |", *cells])
    curve = f"![Loss over steps]({PICTURE})" if picture and facts.losses else ""
    details = f"<details><summary>Every option</summary>\n\n{options}\n\n</details>"
    return "\n\n".join(filter(None, ["## How", _table(rows), curve, details]))


def _limits(facts: Facts) -> str:
    """What the evidence does not show."""
    lines = [
        "It says what its training data taught it, right or wrong, and inherits the limits of "
        "its base: it makes things up, and was not tested for safety.",
    ]
    if facts.changed:
        lines.append(
            f"It was interrupted and went on with changed inputs ({'; '.join(facts.changed)}), so "
            "training it again from the configuration below gives another result."
        )
    if facts.comparisons:
        lines.append(
            f"The comparison covers {facts.scored_rows} rows of the same dataset; it says nothing "
            "about other tasks or languages, or about what the base could do before and may have "
            "forgotten."
        )
    else:
        lines.append("It was not compared with its base.")
    if facts.prepared and facts.prepared.leaked:
        lines.append(
            f"{facts.prepared.leaked:,} held-out prompts occur in the training rows too, so the "
            "comparison flatters it."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(rows: list[tuple[str, str]]) -> str:
    """Two columns; what is empty is left out."""
    shown = [f"| {name} | {value} |" for name, value in rows if value]
    return "\n".join(["| | |\n| --- | --- |", *shown])


def _cell(text: str) -> str:
    """Text in a table: nothing in it may end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def check_card(text: str) -> None:
    """Raises HubError where an edited card's metadata is missing or is no YAML."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        front_matter(text)  # bounded, and without aliases, of which a few lines fill the memory
        data = ModelCard(text).data
    except (ValueError, TypeError, KeyError, yaml.YAMLError, ConfigError) as error:
        line = str(error).strip().splitlines()[0]
        raise HubError(
            f"The card's metadata, between the --- lines at its top, cannot be read: {line}. Mend "
            "it, or take the card as it was written."
        ) from None
    if MARK not in (data.get("tags") or []):
        raise HubError(
            f"The card's metadata must keep the tag {MARK!r}: without it the repository could not "
            "be published to again. Add it under tags:."
        )


def draw_losses(facts: Facts) -> bytes | None:
    """The loss curve as a PNG; None where no loss was logged."""
    if not facts.losses:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*facts.losses, strict=True), color="#4f46e5", label="training")
    if facts.held_out_losses:
        steps, losses = zip(*facts.held_out_losses, strict=True)
        axes.plot(steps, losses, "o-", color="#d97706", label=words.HELD_OUT)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
