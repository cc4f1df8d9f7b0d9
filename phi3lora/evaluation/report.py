"""The proof of a run: base and tuned on the same held-out rows, and a plain verdict.

    report = evaluate(config, run_folder)
    report.verdict                 "better", "worse" or "cannot tell"

The base is loaded once, scored (or its kept scores are read), then given the adapter and scored
again, so that both answer the same rows in the same precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from phi3lora import words
from phi3lora.config import RunConfig
from phi3lora.data.mixing import chosen_reasons
from phi3lora.data.plan import parts_of
from phi3lora.data.preparation import prepare
from phi3lora.errors import DataError, RunError
from phi3lora.evaluation.metrics import (
    ENOUGH_ROWS,
    Comparison,
    RowScore,
    Verdict,
    compare,
    gains,
    rewarded,
    verdict,
)
from phi3lora.evaluation.scoring import HeldOutRow, held_out_rows, judged_rows, score_rows
from phi3lora.events import Emit, Notice, Stage
from phi3lora.files import write_whole
from phi3lora.inputs import accepted_changes
from phi3lora.lora.adapters import load_adapter
from phi3lora.lora.result import find_result
from phi3lora.methods import JUDGED, REWARDED
from phi3lora.models.base import resolve_path
from phi3lora.models.hardware import detect_hardware, free_memory
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.training.failures import is_out_of_memory
from phi3lora.training.rewards import Answer, Reward, earned, rewards_of

SAMPLES = 3
SCORING = 1  # raise it when the same answers would score otherwise


@dataclass(frozen=True)
class Sample:
    """One held-out row: what was asked, what the data says, and what each model said."""

    prompt: str
    reference: str
    base: str
    tuned: str
    gain: float  # nats a token by which tuned beats base


@dataclass(frozen=True)
class Report:
    """What `report.json` holds."""

    verdict: Verdict
    rows: int
    held_out: int
    leaked: int  # held-out prompts that are also trained on
    comparisons: list[Comparison]
    gained: list[Sample]  # what tuned answers better, the most first
    lost: list[Sample]  # what it answers worse; empty where it lost nothing
    changed: list[str] = field(default_factory=list)  # inputs that differed between two starts
    left_out: dict[str, int] = field(default_factory=dict)  # reason that the config gives → rows
    edited: int = 0  # rows of which the config replaces something

    def to_json(self) -> dict[str, Any]:
        """Plain values, with each figure's own verdict beside it."""
        values = asdict(self)
        for item, comparison in zip(values["comparisons"], self.comparisons, strict=True):
            item["verdict"] = comparison.verdict
        return values

    def write(self, folder: Path) -> None:
        """Write `report.json`, whole or not at all."""
        _write_json(folder / "report.json", self.to_json())

    def summary(self) -> str:
        """The verdict in one sentence."""
        changed = f" Its inputs changed on the way: {'; '.join(self.changed)}."
        return self._verdict_in_words() + (changed if self.changed else "")

    def _verdict_in_words(self) -> str:
        item, found = self._decisive()
        if self.rows < ENOUGH_ROWS:  # an interval would look like proof
            return (
                f"Too few held-out rows to tell the tuned model from its base: {found} on "
                f"{self.rows}, and at least {ENOUGH_ROWS} are needed (data.test_size, "
                "evaluation.rows)."
            )
        means = {
            "better": "The tuned model is better than its base",
            "worse": "The tuned model is worse than its base",
            "cannot tell": "These rows cannot tell the tuned model from its base",
        }[self.verdict]
        return (
            f"{means}: on {self.rows} held-out rows {found} (difference {item.difference:+.3f}, "
            f"95 % interval {item.low:+.3f} to {item.high:+.3f})."
        )

    def _decisive(self) -> tuple[Comparison, str]:
        """The figure that the sentence is about, and what it says."""
        by_name = {item.name: item for item in self.comparisons}
        if (rate := by_name.get("win_rate")) is not None:
            say = f"the better answer is the likelier one in {rate.tuned:.0%} of the pairs instead "
            return rate, f"{say}of {rate.base:.0%}"
        if (reward := by_name.get("earned")) is not None:
            say = f"its answers earn a reward of {reward.tuned:.3f} instead of {reward.base:.3f}"
            return reward, say
        if (margin := by_name.get("reward_margin")) is not None:
            return margin, f"good answers gained {margin.tuned:.3f} more reward than bad ones"
        loss = by_name["loss"]
        name = words.LOSS_BY_TOKEN.lower()
        return loss, f"its {name} is {loss.tuned:.3f} instead of {loss.base:.3f}"


def evaluate(
    config: RunConfig,
    folder: Path,
    rows: int | None = None,
    *,
    emit: Emit = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    cache_folder: Path | None = None,
    token: str | None = None,
) -> Report:
    """Score base and tuned on up to `rows` held-out rows and write the report.

    Raises DataError if the run held no rows out, RunError if it has no adapter or was stopped.
    """
    result = find_result(folder, config)
    tuned_folder = result.ready()
    emit(Stage(name="preparing the held-out rows"))
    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    tokenizer = load_tokenizer(path, config.model.revision, token)
    prepared = prepare(config, tokenizer, token=token, cache_folder=cache_folder)
    if not prepared.test:
        raise DataError("No rows were held out of this run; set data.test_size, such as 0.1.")
    few = prepared.test.select(range(min(rows or config.evaluation.rows, len(prepared.test))))
    limit = config.training_config.max_length
    if config.method in JUDGED:
        held_out = judged_rows(tokenizer, list(few), limit)
    else:
        held_out = held_out_rows(tokenizer, few["messages"], limit)

    emit(Stage(name="loading the base"))
    load = partial(load_model, for_training=False, token=token)
    model: Any = load(config.model)
    score = _Scorer(config, tokenizer, held_out, emit, should_stop)
    base = _base_scores(score, model, cache_folder)
    if result.kind == "model":
        del model  # two whole models need not fit at once
        free_memory()
        model = load(config.model.model_copy(update={"path": str(tuned_folder), "revision": None}))
    else:
        model = load_adapter(model, tuned_folder)
    tuned = score(model, "the tuned model answers")
    if config.method in JUDGED:
        tuned = rewarded(base, tuned, config.beta)
    if config.method in REWARDED:
        rewards = rewards_of(config.grpo_config)
        base, tuned = (_earning(rewards, held_out, scores) for scores in (base, tuned))

    report = _report(held_out, base, tuned, len(prepared.test), prepared.leaked)
    edited = sum(len(part.edits) for part in parts_of(config.data))
    report = replace(
        report,
        changed=accepted_changes(folder),
        left_out=chosen_reasons(prepared.dropped),
        edited=edited,
    )
    report.write(folder)
    return report


def _earning(
    rewards: Sequence[Reward], rows: Sequence[HeldOutRow], scores: Sequence[RowScore]
) -> list[RowScore]:
    """The scores with what each answer earns."""
    return [
        replace(
            score, earned=earned(rewards, Answer(row.messages[:-1], score.answer, row.reference))
        )
        for row, score in zip(rows, scores, strict=True)
    ]


@dataclass(frozen=True)
class _Scorer:
    """Scores one model after another on the same rows, with progress."""

    config: RunConfig
    tokenizer: Any
    rows: Sequence[HeldOutRow]
    emit: Emit
    should_stop: Callable[[], bool]

    def __call__(self, model: Any, stage: str) -> list[RowScore]:
        batch = self.config.evaluation.batch_size
        while (scores := self._scored(model, stage, batch)) is None:
            batch //= 2
            self.emit(
                Notice(
                    message=f"Memory ran out while {stage.partition(' answers')[0]} answered; "
                    f"rows are answered {batch} at a time instead.",
                    level="warning",
                )
            )
        if len(scores) < len(self.rows):
            raise RunError("The evaluation was stopped; evaluate the run again to get its report.")
        return scores

    def _scored(self, model: Any, stage: str, batch: int) -> list[RowScore] | None:
        """The rows' scores; None where the memory does not hold so many at once."""
        try:
            return score_rows(
                model,
                self.tokenizer,
                self.rows,
                max_new_tokens=self.config.evaluation.max_new_tokens,
                batch_size=batch,
                progress=lambda fraction: self.emit(Stage(name=stage, fraction=fraction)),
                should_stop=self.should_stop,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise RunError(
                    f"Memory ran out while {stage.partition(' answers')[0]} answered one row at a "
                    "time; end what else uses this device, or lower evaluation.max_new_tokens, "
                    "and evaluate the run again."
                ) from error
        free_memory()  # out here, where the error's traceback holds nothing any more
        return None

    def fingerprint(self, model: Any) -> str:
        """Equal where base, precision, rows and limits are: then the base's scores are too."""
        parts = [
            SCORING,
            self.config.model.model_dump(exclude={"adapter"}),
            _files(Path(model.files_folder)),
            [str(model.device.type), str(model.dtype), model.config._attn_implementation],
            self.config.evaluation.max_new_tokens,
            [row.input_ids for row in self.rows],
            [row.prompt_ids for row in self.rows],
        ]
        if any(row.rejected_ids for row in self.rows):
            parts.append([[row.rejected_ids, row.supervised] for row in self.rows])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _base_scores(score: _Scorer, model: Any, cache_folder: Path | None) -> list[RowScore]:
    """The base's scores, kept once computed."""
    if cache_folder is None:
        return score(model, "the base answers")
    kept = cache_folder / "base-scores" / f"{score.fingerprint(model)}.json"
    if (found := _read_scores(kept)) is not None:
        return found
    scores = score(model, "the base answers")
    kept.parent.mkdir(parents=True, exist_ok=True)
    values = [asdict(item) for item in scores]
    _write_json(kept, {"sha256": _hash(values), "scores": values})
    return scores


def _read_scores(file: Path) -> list[RowScore] | None:
    """Scores that were kept; None where there are none, or where they are damaged."""
    try:
        kept = json.loads(file.read_text("utf-8"))
        values = kept["scores"]
        return [RowScore(**item) for item in values] if kept["sha256"] == _hash(values) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _files(folder: Path) -> list[Any]:
    """What tells one state of a base from another: the Hub's commit, or its files as they are."""
    if folder.parent.name == "snapshots":
        return [folder.name]
    stats = [(file.name, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _report(
    rows: Sequence[HeldOutRow],
    base: Sequence[RowScore],
    tuned: Sequence[RowScore],
    held_out: int,
    leaked: int,
) -> Report:
    comparisons = compare(base, tuned)
    samples = [
        Sample(_prompt(row), row.reference, before.answer, after.answer, gain)
        for row, before, after, gain in zip(rows, base, tuned, gains(base, tuned), strict=True)
    ]
    ranked = sorted(samples, key=lambda sample: -sample.gain)
    return Report(
        verdict=verdict(comparisons, len(rows)),
        rows=len(rows),
        held_out=held_out,
        leaked=leaked,
        comparisons=comparisons,
        gained=[sample for sample in ranked if sample.gain > 0][:SAMPLES],
        lost=[sample for sample in ranked[::-1] if sample.gain < 0][:SAMPLES],
    )


def _prompt(row: HeldOutRow) -> str:
    """The dialogue before the answer, as people read it."""
    asked = row.messages[:-1]
    if len(asked) == 1:
        return asked[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in asked)


def _write_json(path: Path, values: Any) -> None:
    write_whole(path, json.dumps(values, ensure_ascii=False, indent=1))
