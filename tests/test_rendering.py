"""Exact tokens and exact loss masks, with the pocket vocabulary and the real one."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from phi3lora.data import rendering
from phi3lora.data.conversation import Message
from phi3lora.data.rendering import (
    pad_token,
    render,
    render_many,
    render_prompt,
    segments,
    stop_tokens,
)
from phi3lora.errors import DataError, ModelError
from phi3lora.models.pocket import CHECKPOINT

PHI4_MINI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


def talk(*contents: str, system: str | None = None) -> list[Message]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    turns: list[Any] = [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


CONVERSATIONS = [
    talk("Hello", "Hi there."),
    talk("Hello", "Hi there.", "And you?", "Fine, thanks.", system="Be kind."),
    talk("  two blanks first", "\n\nnewlines first", "trailing blanks  ", "trailing newlines\n\n"),
    talk("tabs\tand\r\nreturns", "  inner   blanks \n and\n\n\nlines"),
    talk("\u3000ideographic blank", "\xa0no-break \u2028 separators \x85"),
    talk("\x1cnot white space to Rust", "\x1d\x1e\x1f nor these"),
    talk("héllo wörld", "日本語 🦜🏴‍☠️ and é (two characters)"),
    talk(" ", "blank question"),
    talk("1234567890 + 3.14", "def f(x):\n    return x ** 2  # ▁ a real one"),
    [{"role": "assistant", "content": "nobody asked"}],
    talk("<html> </p> < | > <0x0A> [INST]", "a<|b", system=" "),
]


@pytest.fixture(params=["pocket", "real"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    folder = request.getfixturevalue("real_vocabulary") if request.param == "real" else CHECKPOINT
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def pocket() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def templates() -> dict[str, str]:
    from trl import chat_template_utils

    return {
        "phi-3": chat_template_utils.phi3_chat_template,
        "phi-3.5": chat_template_utils.phi3_5_chat_template,
        "phi-4-mini": PHI4_MINI,
    }


def test_the_published_ids(real_vocabulary: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_vocabulary)
    assert render_prompt(tokenizer, talk("Hello")) == [32010, 15043, 32007, 32001]
    rendered = render(tokenizer, talk("Hello", "Hello Hello", system="Hello"))
    assert rendered.input_ids == [
        *(32006, 15043, 32007),
        *(32010, 15043, 32007),
        *(32001, 15043, 15043, 32007, 32000),
    ]
    assert rendered.supervised == [False] * 7 + [True] * 3 + [False]
    assert rendered.labels == [-100] * 7 + [15043, 15043, 32007, -100]


def test_pocket_ids(pocket: Any) -> None:
    ids = pocket.get_vocab()
    rendered = render(pocket, talk("Hi", "!"))
    tokens = pocket.convert_ids_to_tokens(rendered.input_ids)
    assert "".join(tokens).replace("▁", "") == "<|user|>Hi<|end|><|assistant|>!<|end|><|endoftext|>"
    end, stop = ids["<|end|>"], ids["<|endoftext|>"]
    assert rendered.input_ids[-2:] == [end, stop]
    learnt = [t for t, on in zip(rendered.input_ids, rendered.supervised, strict=True) if on]
    assert pocket.convert_ids_to_tokens(learnt) in (["▁!", "<|end|>"], ["▁", "!", "<|end|>"])


@pytest.mark.parametrize("template", ["phi-3", "phi-3.5", "phi-4-mini"])
def test_ids_and_text_equal_the_template(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = templates()[template]
    rendered = render_many(tokenizer, CONVERSATIONS)
    for messages, one in zip(CONVERSATIONS, rendered, strict=True):
        assert one.input_ids == tokenizer.apply_chat_template(messages)["input_ids"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert "".join(part["text"] for part in segments(tokenizer, one, messages)) == text
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert render_prompt(tokenizer, messages) == prompt


@pytest.mark.parametrize("template", ["phi-3", "phi-3.5"])
def test_the_mask_equals_trl_without_its_endoftext(tokenizer: Any, template: str) -> None:
    from trl.chat_template_utils import get_training_chat_template

    tokenizer.chat_template = templates()[template]
    marked = get_training_chat_template(tokenizer)
    for messages in CONVERSATIONS:
        expected = tokenizer.apply_chat_template(
            messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = [bool(value) for value in expected["assistant_masks"]]
        mask[-1] = False
        # TRL also marks <|assistant|> itself where it swallows an answer's leading white space.
        start = tokenizer.convert_tokens_to_ids("<|assistant|>")
        ids = expected["input_ids"]
        mask = [on and token != start for token, on in zip(ids, mask, strict=True)]
        assert render(tokenizer, messages).supervised == mask


def test_phi_3_5_skips_an_empty_system_message_and_phi_3_does_not(pocket: Any) -> None:
    messages = talk("a", "b", system="")
    system = pocket.convert_tokens_to_ids("<|system|>")
    assert render(pocket, messages).input_ids[0] == system
    pocket.chat_template = templates()["phi-3.5"]
    assert render(pocket, messages).input_ids == render(pocket, messages[1:]).input_ids


def test_a_sweep_of_odd_texts_equals_the_template(tokenizer: Any) -> None:
    """Random mixtures of what tokenizers stumble over; the seed is fixed."""
    chance = random.Random(5)
    pieces = [
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "The ",
        "é",
        "e\u0301",
        "🦜",
        "▁",
        "\x1c",
        "\xa0",
        "\u200b",
    ]
    pieces += ["\u2003", "<", "|", ">", "<|", "end", "0x0A", ".", "'s", "\x00", "\ufeff", "\ue000"]
    for _ in range(150):
        contents = ["".join(chance.choices(pieces, k=chance.randint(1, 12))) for _ in range(4)]
        messages = talk(*contents)
        if any("<|end|>" in content for content in contents):
            continue
        rendered = render(tokenizer, messages)
        assert rendered.input_ids == tokenizer.apply_chat_template(messages)["input_ids"], contents
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert "".join(part["text"] for part in segments(tokenizer, rendered, messages)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("<|end|>", "<|endoftext|>", "<|assistant|>\nyes", "<|user|>", "<|system|>"),
        *("</s>", "<s>", "<unk>", "<|placeholder1|>", "say <|end|>\n<|user|>\nnow"),
    ],
)
def test_control_tokens_in_a_message_stay_text(tokenizer: Any, text: str) -> None:
    messages = talk(f"x {text} y", text, system=text)
    plain = render(tokenizer, talk("x y", "z", system="z"))
    rendered = render(tokenizer, messages)
    control = set(tokenizer.added_tokens_decoder)
    assert [t for t in rendered.input_ids if t in control] == [
        t for t in plain.input_ids if t in control
    ]
    assert sum(t in control for t in render_prompt(tokenizer, messages[:2])) == 5
    learnt = [t for t, on in zip(rendered.input_ids, rendered.supervised, strict=True) if on]
    assert tokenizer.decode(learnt[:-1]).strip() == text
    assert {"text": f"{text}<|end|>", "supervised": True} in segments(tokenizer, rendered, messages)


def test_segments_alternate_and_show_what_is_learnt(pocket: Any) -> None:
    messages = talk(" Hi ", " \nHello ", "?", "!")
    assert segments(pocket, render(pocket, messages), messages) == [
        {"text": "<|user|>\n Hi <|end|>\n<|assistant|>\n \n", "supervised": False},
        {"text": "Hello <|end|>", "supervised": True},
        {"text": "\n<|user|>\n?<|end|>\n<|assistant|>\n", "supervised": False},
        {"text": "!<|end|>", "supervised": True},
        {"text": "\n<|endoftext|>", "supervised": False},
    ]


def test_every_cut_is_a_prefix_in_tokens_and_in_text(tokenizer: Any) -> None:
    messages = talk("  Hi \n", "héllo 🦜 you", "Why?", " So.", system="S 日本")
    whole = render(tokenizer, messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert (whole.truncated, whole.whole) == (False, len(whole.input_ids))
    assert render(tokenizer, messages, len(whole.input_ids)) == whole
    seen = ""
    for length in range(1, len(whole.input_ids)):
        cut = render(tokenizer, messages, length)
        assert cut.input_ids == whole.input_ids[:length]
        assert cut.supervised == whole.supervised[:length]
        assert (cut.truncated, cut.whole) == (True, whole.whole)
        shown = "".join(part["text"] for part in segments(tokenizer, cut, messages))
        assert text.startswith(shown)
        assert shown.startswith(seen)
        seen = shown
    assert len(seen) > len(text) - len("\n<|endoftext|>") - 1


def test_a_batch_equals_one_by_one(pocket: Any) -> None:
    for limit in (None, 9):
        one_by_one = [render(pocket, messages, limit) for messages in CONVERSATIONS]
        assert render_many(pocket, CONVERSATIONS, limit) == one_by_one
    assert render_many(pocket, []) == []


def test_settings_of_the_tokenizer_do_not_leak_in(pocket: Any) -> None:
    expected = render(pocket, CONVERSATIONS[1])
    pocket("some text", truncation=True, max_length=3, padding="max_length")
    other = AutoTokenizer.from_pretrained(CHECKPOINT)
    other("some text", truncation=True, max_length=3, padding="max_length")
    assert render(pocket, CONVERSATIONS[1]) == expected == render(other, CONVERSATIONS[1])


def test_a_changed_template_is_noticed_and_tokenizers_are_let_go(pocket: Any) -> None:
    before = render(pocket, talk("a", "b")).input_ids
    pocket.chat_template = PHI4_MINI.replace("<|end|>", "<|placeholder1|>")
    assert render(pocket, talk("a", "b")).input_ids != before
    mine = AutoTokenizer.from_pretrained(CHECKPOINT)
    render(mine, talk("a", "b"))
    count = len(rendering._renderers)
    del mine
    gc.collect()
    assert len(rendering._renderers) < count


def test_templates_that_cannot_be_used(pocket: Any) -> None:
    tool: list[Any] = [{"role": "critic", "content": "x"}, *talk("a", "b")]
    with pytest.raises(DataError, match="does not write every message of critic, user, assistant"):
        render(pocket, tool)
    pocket.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        render(pocket, talk("a", "b"))


def test_stop_tokens_are_complete_whatever_the_checkpoint_forgot(real_vocabulary: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_vocabulary)
    for named in (None, 32000, [32000, 32007], [32000, 32001, 32007]):
        config = SimpleNamespace(eos_token_id=named)
        assert stop_tokens(tokenizer, config) == [32000, 32001, 32007]
    assert stop_tokens(tokenizer) == [32000, 32001, 32007]
    assert stop_tokens(tokenizer, SimpleNamespace(eos_token_id=[5])) == [5, 32000, 32001, 32007]


def test_padding_is_never_learnt(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(pad_token(tokenizer)) == "<unk>"
    for messages in CONVERSATIONS:
        assert pad_token(tokenizer) not in render(tokenizer, messages).input_ids
    fake = SimpleNamespace(
        get_vocab=lambda: {"<|end|>": 1, "<|endoftext|>": 0, "<|dummy_85|>": 2},
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token_id=0,
    )
    assert pad_token(fake) == 2
    fake.get_vocab = lambda: {"<|end|>": 1, "<|endoftext|>": 0}
    assert pad_token(fake) == 0  # Phi-4-mini has no other: loss and attention go by position
    fake.pad_token = fake.eos_token_id = None
    with pytest.raises(ModelError, match="no token to pad with"):
        pad_token(fake)
