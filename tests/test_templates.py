"""Every template of the family: exact ids, the model's own marks, system messages, hostile ones."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from phi3lora.chat.options import Options
from phi3lora.chat.serving import prompt_of
from phi3lora.config import RunConfig
from phi3lora.data import templates
from phi3lora.data.conversation import Message
from phi3lora.data.inspection import inspect
from phi3lora.data.preparation import prepare
from phi3lora.data.rendering import (
    NO_SYSTEM,
    decode_answer,
    fit_system,
    merged_system,
    pad_token,
    render,
    render_many,
    render_prompt,
    segments,
    writes_system,
)
from phi3lora.data.templates import Refused, write
from phi3lora.errors import DataError, ModelError
from phi3lora.evaluation.scoring import held_out_rows
from tests.family import FAMILY, GEMMA, KINDS, LLAMA2, tokenizer_of
from tests.test_rendering import CONVERSATIONS, talk

SPEECHES = [c for c in CONVERSATIONS if c[0]["role"] != "assistant"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def as_written(kind: str, messages: list[Message]) -> list[Message]:
    """What the template itself can take."""
    has_system = messages[0]["role"] == "system"
    return merged_system(messages) if has_system and not KINDS[kind].system else messages


def test_ids_and_text_are_the_templates(kind: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    for messages, one in zip(SPEECHES, render_many(tokenizer, SPEECHES), strict=True):
        plain = as_written(kind, messages)
        assert one.input_ids == tokenizer.apply_chat_template(plain)["input_ids"]
        text = tokenizer.apply_chat_template(plain, tokenize=False)
        assert "".join(part["text"] for part in segments(tokenizer, one, messages)) == text
        prompt = tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
        assert render_prompt(tokenizer, messages) == prompt


def test_answers_and_their_ends_are_learnt(kind: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    messages = talk("What?", "Yes, indeed.", "Why?", "So it is.", system="Be brief.")
    rendered = render(tokenizer, messages)
    learnt = [p["text"] for p in segments(tokenizer, rendered, messages) if p["supervised"]]
    assert len(learnt) == 2
    for text, answer in zip(learnt, ("Yes, indeed.", "So it is."), strict=True):
        before, _, end = text.partition(answer)
        assert not before.strip()
        assert end.strip() in tokenizer.get_vocab()


def test_every_cut_is_a_prefix(kind: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    messages = talk("  Hi \n", "héllo 🦜 you", "Why?", " So.", system="S 日本")
    whole, seen = render(tokenizer, messages), ""
    text = tokenizer.apply_chat_template(as_written(kind, messages), tokenize=False)
    for length in range(1, len(whole.input_ids)):
        cut = render(tokenizer, messages, length)
        assert cut.input_ids == whole.input_ids[:length]
        assert cut.supervised == whole.supervised[:length]
        shown = "".join(part["text"] for part in segments(tokenizer, cut, messages))
        assert text.startswith(shown)
        assert shown.startswith(seen)
        seen = shown


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_what_looks_like_a_control_token_stays_text(kind: str, role: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    control = set(tokenizer.added_tokens_decoder) - {
        tokenizer.convert_tokens_to_ids(mark) for mark in KINDS[kind].marks
    }
    said = {"system": "s", "user": "u", "assistant": "a"}
    plain = render(tokenizer, [{"role": r, "content": c} for r, c in said.items()])  # type: ignore[typeddict-item]
    for token in tokenizer.added_tokens_decoder.values():
        said[role] = f"x {token.content} y"
        hostile = render(tokenizer, [{"role": r, "content": c} for r, c in said.items()])  # type: ignore[typeddict-item]
        found = [t for t in hostile.input_ids if t in control]
        assert found == [t for t in plain.input_ids if t in control], token.content


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].marks])
def test_the_models_own_marks_are_tokens_in_answers_alone(name: str) -> None:
    tokenizer = tokenizer_of(KINDS[name])
    opening, closing = KINDS[name].marks[:2]
    answer = f"{opening} two and two {closing} Four."
    rendered = render(tokenizer, talk(f"What of {opening}?", answer))
    marks = tokenizer.convert_tokens_to_ids([opening, closing])
    assert [t for t in rendered.input_ids if t in marks] == marks
    learnt = [t for t, on in zip(rendered.input_ids, rendered.supervised, strict=True) if on]
    assert set(marks) <= set(learnt)
    assert (
        rendered.input_ids
        == [
            *render_prompt(tokenizer, talk(f"What of {opening}?")),
            *learnt,
            *render(tokenizer, talk("q", "a")).input_ids[
                len(render_prompt(tokenizer, talk("q"))) + 2 :
            ],
        ][: len(rendered.input_ids)]
    )
    shown = decode_answer(tokenizer, learnt)
    assert opening in shown
    assert closing in shown
    assert "<|end|>" not in shown
    assert "<|im_end|>" not in shown


def test_a_template_without_a_system_message_takes_it_before_the_question(kind: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    assert writes_system(tokenizer) is KINDS[kind].system
    messages = talk("Who?", "I.", system="Be kind.")
    if KINDS[kind].system:
        assert fit_system(tokenizer, messages, "refuse") == messages
        return
    joined = talk("Be kind.\n\nWho?", "I.")
    assert fit_system(tokenizer, messages, "merge") == joined
    assert fit_system(tokenizer, messages, "drop") == messages[1:]
    with pytest.raises(DataError, match="template does not write"):
        fit_system(tokenizer, messages, "refuse")
    assert render(tokenizer, messages) == render(tokenizer, joined)
    assert render_prompt(tokenizer, messages[:2]) == render_prompt(tokenizer, joined[:1])


def test_a_system_message_that_precedes_no_question_becomes_one() -> None:
    messages: list[Message] = [
        {"role": "system", "content": "s"},
        {"role": "assistant", "content": "a"},
    ]
    assert merged_system(messages) == talk("s", "a")
    messages[0]["content"] = ""
    assert merged_system(messages) == messages[1:]


def test_a_template_that_refuses_says_its_own_words() -> None:
    tokenizer = tokenizer_of(KINDS["Gemma"])
    twice = [*talk("a"), *talk("b", "c")]
    with pytest.raises(DataError, match="Conversation roles must alternate"):
        render(tokenizer, twice)
    with pytest.raises(DataError, match="Conversation roles must alternate"):
        fit_system(tokenizer, twice)


def test_phi_4_mini_pads_with_its_only_token() -> None:
    tokenizer = tokenizer_of(FAMILY["Phi-4-mini"])
    assert tokenizer.unk_token == tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.convert_ids_to_tokens(pad_token(tokenizer)) == "<|endoftext|>"


def test_the_process_writes_what_transformers_writes(kind: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    for prompt in (False, True):
        messages: list[Any] = talk("q", "a", "q2")
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        names = tokenizer.special_tokens_map
        assert write(tokenizer.chat_template, messages, prompt=prompt, names=names) == text


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}{{ ns.x }}",
        "{{ 'x' * 3000000000 }}",
        "{{ 'x' * 2000000 }}",
        "x" * 200_000,
    ],
    ids=["endless", "doubling", "gigabytes", "long", "long itself"],
)
def test_a_hostile_template_is_ended_and_the_next_is_served(template: str) -> None:
    with pytest.raises((ModelError, Refused)):
        write(template, [], prompt=False, names={})
    assert write("{{ messages|length }}", talk("a"), prompt=False, names={}) == "1"


@pytest.mark.parametrize("template", [LLAMA2, GEMMA, "{% for %}", "{{ a.b }}"])
def test_a_broken_template_is_an_error_in_words(template: str) -> None:
    with pytest.raises(DataError, match="chat template refuses"):
        write(template, [], prompt=False, names={})


def test_the_process_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(templates, "_running", None)
    assert write("{{ 1 }}", [], prompt=False, names={}) == "1"
    running: Any = templates._running
    environment = open(f"/proc/{running._process.pid}/environ").read()  # noqa: SIM115
    assert "hf_secret" not in environment


def test_a_process_that_was_killed_is_started_again() -> None:
    write("{{ 1 }}", [], prompt=False, names={})
    running: Any = templates._running
    os.kill(running._process.pid, 9)
    while running._process.poll() is None:
        time.sleep(0.01)
    assert write("{{ 2 }}", [], prompt=False, names={}) == "2"


@pytest.mark.parametrize("policy", ["merge", "drop", "refuse"])
def test_rows_with_system_messages_go_as_the_option_says(tmp_path: Path, policy: str) -> None:
    """Phi-3-medium's template writes none; one such row stopped a whole data set."""
    rows = [
        {"messages": talk("Who?", "I.", system="Be kind.")},
        {"messages": talk("Where?", "Here.")},
        {"messages": talk("When?", "Now.")},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = {"path": str(file), "test_size": 0, "system_messages": policy}
    config, _ = RunConfig.from_values(
        {
            "data": data,
            "training_config": {"per_device_train_batch_size": 1, "eval_strategy": "no"},
        }
    )
    tokenizer = tokenizer_of(FAMILY["Phi-3-medium"])
    prepared = prepare(config, tokenizer, cache_folder=tmp_path / "cache")
    expected = {"merge": talk("Be kind.\n\nWho?", "I."), "drop": talk("Who?", "I.")}.get(policy)
    if expected is None:
        assert prepared.dropped == {NO_SYSTEM: 1}
        assert len(prepared.train) == 2
        assert prepared.notices == []
        return
    assert prepared.train[0]["input_ids"] == render(tokenizer, expected).input_ids
    assert prepared.dropped == {}
    assert "no place for system messages: those of 1 rows" in prepared.notices[0]
    assert inspect(config, tokenizer).total_tokens == prepared.train_tokens


@pytest.mark.parametrize("policy", ["merge", "drop"])
def test_inspect_train_evaluate_and_chat_agree(kind: str, policy: Any, tmp_path: Path) -> None:
    """The same ids wherever a conversation is read, for every template."""
    tokenizer = tokenizer_of(KINDS[kind])
    rows = [
        {"messages": talk("Who? ", " I.\n", "Why?", "So.", system="Be kind.")},
        {"messages": talk("  Where?", "<|end|> is where. 日本")},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values: dict[str, Any] = {
        "data": {"path": str(file), "test_size": 0, "system_messages": policy},
        "training_config": {"per_device_train_batch_size": 1, "eval_strategy": "no"},
    }
    config, _ = RunConfig.from_values(values)
    seen = inspect(config, tokenizer)
    prepared = prepare(config, tokenizer, cache_folder=tmp_path / "cache")
    trained = prepared.train["input_ids"]
    assert [len(ids) for ids in trained] == list(seen.lengths)
    asked = [message["messages"] for message in prepared.conversations]
    held = held_out_rows(tokenizer, asked, 1000)
    assert [row.input_ids for row in held] == list(trained)
    for row, one, pieces in zip(rows, held, seen.preview, strict=True):
        text = "".join(piece["text"] for piece in pieces)
        assert text == tokenizer.apply_chat_template(one.messages, tokenize=False)
        messages: list[Any] = row["messages"]
        has_system = messages[0]["role"] == "system"
        options = Options(messages[0]["content"] if has_system else "", system_messages=policy)
        prompt = prompt_of(tokenizer, messages[has_system:-1], options)
        assert prompt == one.prompt_ids
        assert one.input_ids[: len(prompt)] == prompt


def test_chat_refuses_a_system_prompt_that_the_training_refused() -> None:
    tokenizer = tokenizer_of(KINDS["Phi-3-medium"])
    with pytest.raises(DataError, match="cannot be asked here: a system message"):
        prompt_of(tokenizer, talk("Who?"), Options("Be kind.", system_messages="refuse"))
    asked = prompt_of(tokenizer, talk("Who?"), Options(system_messages="refuse"))
    assert asked == render_prompt(tokenizer, talk("Who?"))


def test_a_row_that_the_template_refuses_is_left_out_with_its_reason(tmp_path: Path) -> None:
    """Gemma's takes no conversation that begins with an answer."""
    nobody_asked: list[Message] = [{"role": "assistant", "content": "Hello?"}]
    rows = [{"messages": nobody_asked}, {"messages": talk("d", "e")}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config, _ = RunConfig.from_values(
        {
            "data": {"path": str(file), "test_size": 0},
            "training_config": {"per_device_train_batch_size": 1, "eval_strategy": "no"},
        }
    )
    prepared = prepare(config, tokenizer_of(KINDS["Gemma"]), cache_folder=tmp_path / "cache")
    assert len(prepared.train) == 1
    (reason,) = prepared.dropped
    assert "must alternate" in reason
