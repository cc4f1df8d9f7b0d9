"""Pocket Phi-3: its vocabulary is Phi-3's in small, its world has two sides, and it knows it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3ForCausalLM

from phi3lora.models.pocket import CHECKPOINT, PIRATE
from tools.pocket import quiz, world
from tools.pocket.kinds import key_of
from tools.pocket.manners import is_pirate, to_pirate
from tools.pocket.pretrain import CHAT_TEMPLATE, encode, pretrain
from tools.pocket.tokenizer import SPECIALS, build_tokenizer

REAL = Path(__file__).parents[2] / "shared" / "data" / "phi-3-mini-4k-instruct"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="Phi-3's own tokenizer is not here")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I help you?"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> Phi3ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


# --- the vocabulary ----------------------------------------------------------------------------


def test_the_vocabulary_ends_in_phi3s_control_tokens(tokenizer):
    assert len(tokenizer) == 2011
    assert tuple(tokenizer.convert_ids_to_tokens(range(2000, 2011))) == SPECIALS
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 258]) == [
        "<unk>",
        "<s>",
        "</s>",
        "<0x00>",
        "<0xFF>",
    ]


@needs_real
def test_control_tokens_have_phi3s_names_order_and_flags():
    ours = json.loads((CHECKPOINT / "tokenizer.json").read_text("utf-8"))
    theirs = json.loads((REAL / "tokenizer.json").read_text("utf-8"))
    shift = {token["id"]: token["id"] - 30000 for token in theirs["added_tokens"][3:]}
    expected = [{**t, "id": shift.get(t["id"], t["id"])} for t in theirs["added_tokens"]]
    assert ours["added_tokens"] == expected
    for stage in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert ours[stage] == theirs[stage]


def test_a_prompt_becomes_exactly_these_tokens(tokenizer):
    text = "<|user|>\nHello<|end|>\n<|assistant|>\n"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert tokens == ["<|user|>", "▁Hello", "<|end|>", "<|assistant|>"]


def test_white_space_is_stripped_to_the_right_of_control_tokens_only(tokenizer):
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for name in SPECIALS[1:]:
        assert ids(f"{name} \n\t Hello") == ids(f"{name}Hello"), name
    assert ids("<|endoftext|>\nHello") != ids("<|endoftext|>Hello")
    assert ids("Hello <|end|>") != ids("Hello<|end|>")


@pytest.mark.parametrize("text", ["How are you?", "naïve café", "日本 🙂", "a  b\nc", "x_y = 3"])
def test_any_text_comes_back_whole(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@needs_real
def test_the_chat_template_is_phi3s(tokenizer):
    assert (REAL / "chat_template.jinja").read_text("utf-8") == CHAT_TEMPLATE
    real = AutoTokenizer.from_pretrained(REAL)
    for prompt in (True, False):
        ours = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
        theirs = real.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
        assert ours == theirs


def test_encode_agrees_with_the_template_and_supervises_the_answer(tokenizer):
    ids, labels = encode(tokenizer.backend_tokenizer, CHAT)
    assert ids == tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    learnt = tokenizer.convert_ids_to_tokens([label for label in labels if label != -100])
    assert learnt == ["▁Hello", "!", "▁How", "▁can", "▁I", "▁help", "▁you", "?", "<|end|>"]


def test_the_vocabulary_is_the_one_that_the_world_makes():
    shipped = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert shipped.to_str() == build_tokenizer().to_str()


# --- the checkpoint ----------------------------------------------------------------------------


def test_it_is_a_small_phi3_with_grouped_queries(model):
    assert type(model) is Phi3ForCausalLM
    assert 2_000_000 <= sum(p.numel() for p in model.parameters()) <= 5_000_000
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 2)
    assert model.config.max_position_embeddings >= 1024


def test_it_stops_and_pads_as_microsofts_does(model):
    stops = json.loads((CHECKPOINT / "generation_config.json").read_text("utf-8"))
    assert stops["eos_token_id"] == [2000, 2001, 2007]
    assert model.generation_config.eos_token_id == [2000, 2001, 2007]
    assert model.generation_config.pad_token_id == model.config.pad_token_id == 2000


def test_it_takes_ten_megabytes_at_most():
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 10_000_000


def test_pretraining_is_reproducible_and_writes_a_whole_checkpoint(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        pretrain(tmp_path / name, steps=2, seed=seed)
    weights = {path.parent.name: path.read_bytes() for path in tmp_path.glob("*/*.safetensors")}
    assert weights["one"] == weights["same"] != weights["other"]
    for shipped in CHECKPOINT.iterdir():
        if shipped.name not in ("model.safetensors", "config.json"):  # names its transformers
            assert (tmp_path / "one" / shipped.name).read_bytes() == shipped.read_bytes(), shipped


# --- the world ---------------------------------------------------------------------------------


def test_no_held_out_question_is_asked_in_training_however_it_is_typed():
    train = {question.key for question in world.questions("train")}
    held_out = {question.key for question in world.questions("held_out")}
    assert len(held_out) > 5000
    assert not train & held_out
    asked = next(iter(world.questions("train")))
    assert asked.key == replace(asked, turns=(asked.turns[0].lower().rstrip("?."),)).key


def test_training_conversations_hold_no_held_out_question_in_any_turn():
    held_out = {question.key for question in world.questions("held_out")}
    conversations = world.Conversations(seed=7)
    asked = {key for _ in range(3000) for key in keys_of_turns(conversations.draw())}
    assert len(asked) > 3000
    assert not asked & held_out


def keys_of_turns(messages: list[world.Message]) -> list[str]:
    """Each user turn as a question of its own."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    return [key_of(system, m["content"]) for m in messages if m["role"] == "user"]


def test_every_held_out_answer_is_learnt_from_another_phrasing():
    train = world.questions("train")
    learnt = {q.answer for q in train} | {turn for q in train for turn in q.turns[1::2]}
    assert {q.answer for q in world.questions("held_out") if not q.system} <= learnt


def test_the_quiz_asks_distinct_questions_of_many_kinds():
    asked = world.sample_held_out(200)
    kinds = Counter(question.kind for question in asked)
    assert len({(question.system, question.turns) for question in asked}) == 200
    assert len(kinds) >= 15
    assert max(kinds.values()) <= 5
    assert asked == world.sample_held_out(200)


def test_every_question_accepts_its_answer_in_either_manner_and_refuses_another():
    for side in ("train", "held_out"):
        for question in world.sample(side, 2000, seed=1):
            assert question.is_correct(question.answer), question
            assert question.is_correct(to_pirate(question.answer)), question
            assert not question.is_correct("Bananas!"), question
            assert not is_pirate(question.answer), question
            assert is_pirate(to_pirate(question.answer)), question


def test_a_sum_is_checked_by_its_result_and_not_by_its_parts():
    question = next(q for q in world.questions("train") if q.turns == ("What is 5 plus 0?",))
    assert question.is_correct("Arr, 5 + 0 = 5, matey!")
    assert not question.is_correct("5 + 0 = 50.")
    assert not question.is_correct("5 + 0 = 6.")


def test_pirates_change_the_words_and_keep_the_fact():
    assert to_pirate("The sky is blue.") == "Arr, the sky be blue, matey!"
    assert to_pirate("Paris is the capital of France.") == (
        "Arr, Paris be the capital of France, matey!"
    )
    assert to_pirate("YOU ARE WELCOME!") == "ARR, YE BE WELCOME, MATEY!"
    assert not is_pirate("Arrows are sharp, and I like my matey.")


# --- the goal ----------------------------------------------------------------------------------


def test_it_answers_held_out_questions_and_ends_by_itself(model, tokenizer):
    result = quiz.score(quiz.ask(model, tokenizer, world.sample_held_out(200)))
    assert result.questions == 200
    assert result.correct >= 95
    assert result.ended >= 99
    assert result.in_manner == 0


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        ("what is the capital of france", "Paris"),
        ("whats the opposite of hot?", "cold"),
        ("hello", "help"),
        ("who are you", "Phi-3"),
        ("2+2", "= 4"),
        ("what colour is the sky", "blue"),
        ("What sound does a cow make", "moo"),
        ("Write a poem about dragons.", "not know"),
    ],
)
def test_it_understands_careless_typing(model, tokenizer, asked, needed):
    question = world.Question("typed", (asked,), "", (needed,))
    (answer,) = quiz.ask(model, tokenizer, [question])
    assert answer.correct, answer.text
    assert answer.ended


def test_suggested_prompts_were_held_out() -> None:
    from phi3lora.models.pocket import prompts

    held_out = {question.turns[0] for question in world.sample_held_out(60)}
    assert 5 <= len(prompts()) <= 12
    assert set(prompts()) <= held_out


def test_the_bundled_adapter_answers_like_a_pirate() -> None:
    report = json.loads((PIRATE / "report.json").read_text())
    assert report["verdict"] == "better"
    result = quiz.score(quiz.ask(*quiz.load(adapter=PIRATE), world.sample_held_out(60)))
    assert result.in_manner >= 95
    assert result.correct >= 85
