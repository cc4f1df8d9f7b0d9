"""Rows of preferences as people have them: which answer is better, or why a row cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.data.inspection import Inspection, inspect
from phi3lora.data.preferences import OTHER_PROMPT, SAME
from phi3lora.data.preparation import prepare
from phi3lora.errors import DataError
from phi3lora.models.loading import load_tokenizer
from phi3lora.models.pocket import CHECKPOINT

Q, GOOD, BAD = "Who are you?", "A pirate!", "A robot."
ASKED = {"role": "user", "content": Q}
SAID = {"role": "assistant", "content": GOOD}
WORSE = {"role": "assistant", "content": BAD}
SHAPES: dict[str, dict[str, Any]] = {
    "texts": {"prompt": Q, "chosen": GOOD, "rejected": BAD},
    "messages": {"prompt": [ASKED], "chosen": [SAID], "rejected": [WORSE]},
    "implicit": {"chosen": [ASKED, SAID], "rejected": [ASKED, WORSE]},
    "UltraFeedback": {"prompt": Q, "chosen": [ASKED, SAID], "rejected": [ASKED, WORSE]},
    "HH-RLHF": {
        "chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}",
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": Q}],
        "chosen": SAID,
        "rejected": WORSE,
    },
    "Orca": {"system": "", "question": Q, "chosen": GOOD, "rejected": BAD},
    "arena": {
        "conversation_a": [ASKED, WORSE],
        "conversation_b": [ASKED, SAID],
        "winner": "model_b",
    },
    "votes": {"prompt": Q, "answer_a": GOOD, "answer_b": BAD, "winner": "a"},
    "ratings": {"prompt": Q, "responses": [BAD, GOOD, "So-so."], "scores": [1, 9.5, 4]},
    "ratings within": {
        "instruction": Q,
        "completions": [
            {"response": GOOD, "overall_score": "8"},
            {"response": BAD, "overall_score": "3"},
            {"response": "Unrated.", "overall_score": "N/A"},
        ],
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(CHECKPOINT), None, None)


@pytest.fixture
def look(tmp_path: Path, tokenizer: Any) -> Callable[..., Inspection]:
    """Inspect some rows for a method."""

    def found(rows: list[dict[str, Any]], method: str = "dpo", **changes: Any) -> Inspection:
        return inspect(config(tmp_path, rows, method, **changes), tokenizer)

    return found


def config(folder: Path, rows: list[dict[str, Any]], method: str, **changes: Any) -> RunConfig:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "method": method,
        "model.path": "pocket",
        "data.path": str(file),
        "data.test_size": 0,
        "training_config.per_device_train_batch_size": 1,
    }
    return RunConfig().with_values({**settings, **changes})


def learnt(segments: list[Any]) -> str:
    return "".join(part["text"] for part in segments if part["supervised"])


@pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)
def test_a_pair_is_read_from_any_shape(look: Callable[..., Inspection], row: Any) -> None:
    found = look([row])
    (better,), (worse,) = found.preview, found.rejected_preview
    assert (learnt(better), learnt(worse)) == (f"{GOOD}<|end|>", f"{BAD}<|end|>")
    silent = [
        next(part["text"] for part in side if not part["supervised"]) for side in (better, worse)
    ]
    assert silent == [f"<|user|>\n{Q}<|end|>\n<|assistant|>\n"] * 2


def test_ratings_a_row_each_become_pairs_by_a_rule_that_is_said(
    look: Callable[..., Inspection],
) -> None:
    def rated(prompt: str, *answers: tuple[str, Any]) -> list[dict[str, Any]]:
        return [{"prompt": prompt, "response": a, "helpfulness": n} for a, n in answers]

    found = look(
        [
            *rated(Q, (BAD, 1), ("So-so.", 2), (GOOD, 4)),
            *rated("And?", ("Yes.", 3), ("No.", 3)),
            *rated("Why?", ("Because.", 4)),
            *rated("Who else?", ("A parrot.", 0), ("Nobody.", None)),
        ]
    )
    assert found.answers is not None
    assert (found.answers.pairs, found.rows, found.read) == (1, 4, 8)
    assert "the best-rated answer is paired with the worst-rated one" in found.reason
    assert found.dropped == {
        "all answers to the prompt are rated alike": 1,
        "one rated answer alone, which nothing can be compared with": 2,
    }
    (better,), (worse,) = found.preview, found.rejected_preview
    assert (learnt(better), learnt(worse)) == (f"{GOOD}<|end|>", f"{BAD}<|end|>")


def test_the_best_rated_answer_is_what_sft_learns(look: Callable[..., Inspection]) -> None:
    found = look([SHAPES["ratings"]], "sft")
    assert learnt(found.preview[0]) == f"{GOOD}<|end|>"
    assert "the best-rated one is learnt" in found.reason


@pytest.mark.parametrize("scores", [[], ["x", None], [True, False], [float("nan")] * 2, "[1, "])
def test_numbers_that_are_none_make_no_pair(look: Callable[..., Inspection], scores: Any) -> None:
    row = {"prompt": Q, "responses": [GOOD, BAD], "scores": scores}
    with pytest.raises(DataError):
        look([row, row])


def test_only_the_last_of_several_answers_is_compared(look: Callable[..., Inspection]) -> None:
    before = [
        ASKED,
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "And?"},
    ]
    found = look([{"chosen": [*before, SAID], "rejected": [*before, WORSE]}])
    assert learnt(found.preview[0]) == f"{GOOD}<|end|>"


def test_lengths_are_compared(look: Callable[..., Inspection]) -> None:
    long = {"prompt": Q, "chosen": GOOD * 5, "rejected": BAD}
    found = look([long, long, {**SHAPES["texts"], "rejected": BAD * 5}])
    assert found.answers is not None
    assert (found.answers.pairs, found.answers.longer) == (3, 2)
    assert found.answers.better_tokens > found.answers.worse_tokens


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": Q, "chosen": GOOD, "rejected": GOOD}, SAME),
        ({"chosen": [ASKED, SAID], "rejected": [{**ASKED, "content": "Eh?"}, WORSE]}, OTHER_PROMPT),
        ({"prompt": Q, "chosen": GOOD, "rejected": ""}, "empty answer"),
        ({"prompt": Q, "chosen": GOOD, "rejected": None}, "empty answer"),
        ({"prompt": "", "chosen": GOOD, "rejected": BAD}, "empty prompt"),
        ({"prompt": Q, "chosen": GOOD, "rejected": 5 * [{"role": "x"}]}, "no assistant answer"),
    ],
)
def test_a_row_that_compares_nothing_is_dropped_with_its_reason(
    look: Callable[..., Inspection], row: dict[str, Any], reason: str
) -> None:
    found = look([SHAPES["texts"], row])
    assert found.kept == 1
    assert sum(found.dropped.values()) == 1
    if row["rejected"] is None or isinstance(row["rejected"], str) or reason == OTHER_PROMPT:
        assert found.dropped == {reason: 1}


def test_ties_and_two_bad_answers(look: Callable[..., Inspection]) -> None:
    rows = [{**SHAPES["votes"], "winner": won} for won in ("a", "b", "tie", "both bad", "?")]
    paired, judged = look(rows).answers, look(rows, "kto").answers
    assert paired is not None
    assert judged is not None
    assert (paired.pairs, paired.bad) == (2, 0)
    assert (judged.pairs, judged.bad) == (2, 2)


@pytest.mark.parametrize("labels", [(True, False), ("true", "false"), (1, 0), ("good", "bad")])
def test_kto_reads_labels(look: Callable[..., Inspection], labels: tuple[Any, Any]) -> None:
    rows = [{"prompt": Q, "completion": GOOD, "label": label} for label in labels]
    found = look(rows, "kto").answers
    assert found is not None
    assert (found.good, found.bad) == (1, 1)


def test_sft_still_leaves_bad_answers_out(look: Callable[..., Inspection]) -> None:
    rows = [{"prompt": Q, "completion": GOOD, "label": label} for label in (True, False)]
    found = look(rows, "sft")
    assert (found.kept, found.answers) == (1, None)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_rows_without_a_preference_are_refused_in_words(
    look: Callable[..., Inspection], method: str
) -> None:
    with pytest.raises(DataError, match=f"method {method} learns from"):
        look([{"prompt": Q, "completion": GOOD}], method)


def test_columns_can_be_named(look: Callable[..., Inspection]) -> None:
    row = {"frage": Q, "besser": GOOD, "schlechter": BAD}
    mapping = {"prompt": "frage", "messages": "besser", "rejected": "schlechter"}
    found = look([row], **{"data.columns": mapping})
    assert learnt(found.rejected_preview[0]) == f"{BAD}<|end|>"


def test_prepared_rows_hold_both_answers(tmp_path: Path, tokenizer: Any) -> None:
    rows = [SHAPES["texts"], {"prompt": Q, "chosen": BAD, "rejected": GOOD}] * 3
    prepared = prepare(config(tmp_path, rows, "dpo", **{"data.test_size": 2}), tokenizer)
    assert prepared.test is not None
    assert (len(prepared.train), len(prepared.test)) == (4, 2)
    row = prepared.train[0]
    for name in ("", "rejected_"):
        ids, labels = row[f"{name}input_ids"], row[f"{name}labels"]
        learnt_ids = [one for one in labels if one != -100]
        assert tokenizer.decode(learnt_ids) in (f"{GOOD}<|end|>", f"{BAD}<|end|>")
        assert ids[-len(learnt_ids) :] == learnt_ids, "nothing follows the answer"
        assert ids[: -len(learnt_ids)] == row["input_ids"][: labels.count(-100)]
    sizes = [len(row["input_ids"]) + len(row["rejected_input_ids"]) for row in prepared.train]
    assert prepared.train_tokens == sum(sizes)


def test_a_cut_that_leaves_nothing_drops_the_row(
    look: Callable[..., Inspection],
) -> None:
    long = {"prompt": "word " * 200, "chosen": GOOD, "rejected": BAD}
    found = look([SHAPES["texts"], long], **{"training_config.max_length": 32})
    assert (found.kept, sum(found.dropped.values())) == (1, 1)
