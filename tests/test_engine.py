"""The chat engine: what each column says, token for token, and that many can use it at once."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from phi3lora.chat.answering import Room
from phi3lora.chat.decoding import READ, Row, _allot, advance
from phi3lora.chat.engine import MOST_ACTIVE, NEWCOMERS, READ_BESIDE, BusyError, ChatEngine
from phi3lora.chat.options import SETTINGS, Options
from phi3lora.chat.packing import Packed
from phi3lora.chat.requests import Request
from phi3lora.chat.sampling import LIKELY, TextStream, choose, generator
from phi3lora.chat.serving import SMALL, THREADS, Column, Serving, _use_threads
from phi3lora.chat.whole import Chat
from phi3lora.config import ModelConfig
from phi3lora.data.rendering import render_prompt, stop_tokens
from phi3lora.errors import AdapterError, ConfigError, ModelError
from phi3lora.models.hardware import Hardware
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.settings import Settings
from tests.serving import PATIENCE

POCKET = ModelConfig(path="pocket", dtype="float32")
ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SHORT = [{"role": "user", "content": "Hello"}]
LONG = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "And what is the colour of the sky on a clear day?"},
]
GREEDY = Options(max_new_tokens=24)
TINY = Hardware("cpu", "a tiny machine", 10**6, 10**6, True, 1)

KINDS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "one target": {"target_modules": ["down_proj"]},
    "rsLoRA and patterns": {
        "use_rslora": True,
        "rank_pattern": {"layers.1.mlp.down_proj": 2},
        "alpha_pattern": {"o_proj": 3},
    },
    "some layers": {"layers_to_transform": [0, 2]},
    "DoRA": {"use_dora": True},
    "bias of B": {"lora_bias": True},
    "embedding": {"target_modules": [*ALL, "embed_tokens"]},
    "DoRA embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["qkv_proj", "lm_head"]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole norm": {"modules_to_save": ["input_layernorm"]},
}


def write_adapter(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """An adapter whose weights are random, so that it changes what is said."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"}
    tuned = get_peft_model(
        load_model(POCKET, for_training=False), LoraConfig(**{**options, **changes})
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter += torch.randn_like(parameter) * max(0.12, 0.5 * parameter.std())
            elif parameter.requires_grad:
                parameter *= 0.7 + 0.6 * torch.rand_like(parameter)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        kind: write_adapter(folder / kind.replace(" ", "-"), index, **changes)
        for index, (kind, changes) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("pocket")


@pytest.fixture(scope="module")
def serving() -> Serving:
    return Serving.open(POCKET, lambda _: None)


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = ChatEngine(Settings(home=tmp_path))
    yield engine
    engine.release()


def plain(model: Any, tokenizer: Any, messages: list[Any], new: int = 24) -> list[int]:
    """What transformers' own `generate` says, greedy: new tokens."""
    prompt = torch.tensor([render_prompt(tokenizer, messages)])
    said = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=stop_tokens(tokenizer, model.generation_config),
    )
    return said[0, prompt.shape[1] :].tolist()


def tuned_model(folder: Path, base: ModelConfig = POCKET) -> PeftModel:
    return PeftModel.from_pretrained(load_model(base, for_training=False), folder).eval()


def run(serving: Serving, columns: list[Column]) -> list[list[int]]:
    """Answer columns together to their end; new tokens of each."""
    while open_ := [column for column in columns if not column.done]:
        serving.step(open_)
    return [column.row.tokens[-column.new :] for column in columns]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_base_alone_and_peft_alone(
    kind: str, adapters: dict[str, Path], serving: Serving, tokenizer: Any
) -> None:
    adapter = serving.adapter(adapters[kind])
    columns = [
        serving.start(messages, used, GREEDY)
        for messages in (SHORT, LONG)
        for used in (None, adapter)
    ]
    said = run(serving, columns)
    base = load_model(POCKET, for_training=False)
    tuned = tuned_model(adapters[kind])
    assert said[0] == plain(base, tokenizer, SHORT)
    assert said[1] == plain(tuned, tokenizer, SHORT)
    assert said[2] == plain(base, tokenizer, LONG)
    assert said[3] == plain(tuned, tokenizer, LONG)
    assert said[0] != said[1] or said[2] != said[3], "the adapter changes nothing"


@pytest.mark.parametrize("kind", ["all-linear", "DoRA", "whole head"])
def test_a_base_in_four_bits(kind: str, adapters: dict[str, Path], tokenizer: Any) -> None:
    base = ModelConfig(path="pocket", dtype="float32", quantization="nf4")
    serving = Serving.open(base, lambda _: None)
    adapter = serving.adapter(adapters[kind])
    said = run(serving, [serving.start(LONG, used, GREEDY) for used in (None, adapter)])
    assert said[0] == plain(load_model(base, for_training=False), tokenizer, LONG)
    assert said[1] == plain(tuned_model(adapters[kind], base), tokenizer, LONG)


def test_bfloat16_differs_by_rounding_alone(adapters: dict[str, Path], tokenizer: Any) -> None:
    base = ModelConfig(path="pocket", dtype="bfloat16")
    serving = Serving.open(base, lambda _: None)
    adapter = serving.adapter(adapters["all-linear"])
    tokens = render_prompt(tokenizer, LONG)
    rows = [Row(list(tokens)), Row(list(tokens), adapter)]
    ready, logits = advance(serving.model, serving.router, rows)
    for row, line in zip(ready, logits, strict=True):
        model = tuned_model(adapters["all-linear"], base)
        with torch.inference_mode(), model.disable_adapter() if not row.adapter else nullcontext():
            expected = model(torch.tensor([tokens])).logits[0, -1].float()
        assert (line - expected).abs().max() < 0.02 * expected.abs().max()


def test_several_adapters_share_a_pass(
    adapters: dict[str, Path], serving: Serving, tokenizer: Any
) -> None:
    kinds = ["DoRA", "all-linear", "whole head", "all-linear", "embedding"]
    columns = [serving.start(LONG, serving.adapter(adapters[kind]), GREEDY) for kind in kinds]
    columns.insert(2, serving.start(LONG, None, GREEDY))
    said = run(serving, columns)
    expected = [plain(tuned_model(adapters[kind]), tokenizer, LONG) for kind in kinds]
    expected.insert(2, plain(load_model(POCKET, for_training=False), tokenizer, LONG))
    assert said == expected
    assert len({tuple(tokens) for tokens in said}) >= 4


def test_logits_are_those_of_the_model_that_never_saw_an_adapter(
    adapters: dict[str, Path], serving: Serving, tokenizer: Any
) -> None:
    tokens = render_prompt(tokenizer, LONG)
    adapter = serving.adapter(adapters["all-linear"])
    rows = [Row(list(tokens)), Row(list(tokens), adapter)]
    ready, logits = advance(serving.model, serving.router, rows)
    fresh = load_model(POCKET, for_training=False)
    with torch.inference_mode():
        expected = fresh(torch.tensor([tokens])).logits[0, -1]
        tuned = tuned_model(adapters["all-linear"])(torch.tensor([tokens])).logits[0, -1]
    by_adapter = {row.adapter: line for row, line in zip(ready, logits, strict=True)}
    assert torch.allclose(by_adapter[None], expected, atol=1e-4)
    assert torch.allclose(by_adapter[adapter], tuned, atol=1e-4)
    assert not torch.allclose(expected, tuned, atol=1e-1)
    for name, module in fresh.named_modules():
        if hasattr(module, "weight"):
            kept = serving.model.get_submodule(name)
            weight = kept.dense().weight if isinstance(kept, Packed) else kept.weight
            assert torch.equal(weight, module.weight), name


def test_there_is_one_copy_of_the_base(adapters: dict[str, Path], serving: Serving) -> None:
    for folder in adapters.values():
        serving.adapter(folder)
    plain_patches = serving.adapter(adapters["all-linear"]).patches
    assert {type(patch).__name__ for patch in plain_patches.values()} == {"LowRank"}
    through = serving.adapter(adapters["embedding"]).patches["model.embed_tokens"]
    shared = through.layer.base_layer.weight
    assert shared.data_ptr() == serving.model.model.embed_tokens.weight.data_ptr()


def test_long_prompts_are_read_in_pieces_beside_short_answers(
    serving: Serving, tokenizer: Any
) -> None:
    words = [{"role": "user", "content": "What is the capital of Peru? " * 110}]
    assert len(render_prompt(tokenizer, words)) > 600  # more than one pass reads
    columns = [serving.start(words, None, GREEDY), serving.start(SHORT, None, GREEDY)]
    serving.step(columns)
    assert [column.new for column in columns] == [0, 1]
    base = load_model(POCKET, for_training=False)
    assert run(serving, columns) == [plain(base, tokenizer, m) for m in (words, SHORT)]


@pytest.mark.parametrize("window", [3, 5])
def test_the_sliding_window_is_the_models(window: int, tokenizer: Any) -> None:
    def narrow() -> Any:
        model = load_model(POCKET, for_training=False)
        model.config.sliding_window = window
        return model

    serving = Serving(POCKET, narrow(), tokenizer)
    columns = [serving.start(messages, None, GREEDY) for messages in (LONG, SHORT)]
    assert run(serving, columns) == [plain(narrow(), tokenizer, m) for m in (LONG, SHORT)]
    assert run(serving, [serving.start(LONG, None, GREEDY)]) != [
        plain(load_model(POCKET, for_training=False), tokenizer, LONG)
    ], "the window changes nothing"


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_pieces_give_the_same_logits_within_a_window(budget: int, tokenizer: Any) -> None:
    model = load_model(POCKET, for_training=False)
    model.config.sliding_window = 9
    tokens = render_prompt(tokenizer, LONG)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0, -1]
    serving = Serving(POCKET, model, tokenizer)
    row = Row(list(tokens))
    ready: list[Row] = []
    while not ready:
        ready, logits = advance(model, serving.router, [row], budget)
    assert torch.allclose(logits[0], expected, atol=1e-4)


def test_a_turn_reads_only_what_is_new(
    adapters: dict[str, Path], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Serving.open(POCKET, lambda _: None)
    adapter = serving.adapter(adapters["one target"])
    messages: list[Any] = []
    read: list[int] = []
    for turn in range(10):
        messages.append({"role": "user", "content": f"What is the capital of Peru? ({turn})"})
        columns = [serving.start(messages, used, GREEDY) for used in (None, adapter)]
        read.append(max(column.row.pending for column in columns))
        said = run(serving, columns)
        if turn == 9:
            base = load_model(POCKET, for_training=False)
            assert said[0] == plain(base, tokenizer, messages)
            assert said[1] == plain(tuned_model(adapters["one target"]), tokenizer, messages)
        for column in columns:
            serving.keep(column)
        messages.append({"role": "assistant", "content": columns[0].stream.text})
    # The tuned column answers something else, so its whole last turn is new to its row.
    base_new = read[1:]
    assert max(base_new) <= read[0] + GREEDY.max_new_tokens
    assert len(render_prompt(tokenizer, messages)) > 5 * max(base_new)


def test_a_cached_row_is_not_given_away_for_a_few_common_tokens(serving: Serving) -> None:
    first = serving.start(LONG, None, GREEDY)
    run(serving, [first])
    serving.keep(first)
    other = serving.start([{"role": "user", "content": "Is ice cold?"}], None, GREEDY)
    assert other.row is not first.row
    again = serving.start(LONG, None, GREEDY)
    assert again.row is first.row
    assert again.row.pending == 1


def test_idle_caches_stay_within_their_memory(tokenizer: Any) -> None:
    serving = Serving(POCKET, load_model(POCKET, for_training=False), tokenizer)
    one = serving.bytes_per_token * 256
    serving.cache_bytes = 3 * one
    for number in range(6):
        column = serving.start([{"role": "user", "content": f"{number} {number}"}], None, GREEDY)
        run(serving, [column])
        serving.keep(column)
    assert sum(row.bytes for row in serving._idle) == 3 * one
    assert not serving.make_room(4 * 256)
    assert serving.make_room(2 * 256)
    assert len(serving._idle) == 1


def test_a_conversation_that_is_too_long_is_refused(serving: Serving) -> None:
    with pytest.raises(ModelError, match=r"reads at most 2,048, answer included\. Clear it"):
        serving.start([{"role": "user", "content": "What is it? " * 2000}], None, GREEDY)


def test_an_answer_ends_where_the_context_does(serving: Serving, tokenizer: Any) -> None:
    serving.model.config.max_position_embeddings = len(render_prompt(tokenizer, SHORT)) + 3
    try:
        column = serving.start(SHORT, None, GREEDY)
        run(serving, [column])
    finally:
        serving.model.config.max_position_embeddings = 2048
    assert (column.new, column.done, column.stopped) == (3, True, False)


# Sampling and streaming


def answer(engine: ChatEngine, *arguments: Any, **named: Any) -> Any:
    """The last Pair of a reply."""
    return list(engine.reply(*arguments, **named))[-1]


def test_a_seed_gives_its_answer_again_whatever_the_other_column_says(
    engine: ChatEngine, adapters: dict[str, Path]
) -> None:
    wild = {"temperature": 3.0, "max_new_tokens": 12}
    ask = {"base": POCKET, "adapter": adapters["all-linear"]}
    one = answer(engine, SHORT, options=Options(seed=1, **wild), **ask)
    again = answer(engine, SHORT, options=Options(seed=1, **wild), **ask)
    other = answer(engine, SHORT, options=Options(seed=2, **wild), **ask)
    alone = answer(engine, SHORT, options=Options(seed=1, **wild), base=POCKET)
    elsewhere = answer(engine, SHORT, LONG, options=Options(seed=1, **wild), **ask)
    assert (one.base, one.tuned) == (again.base, again.tuned)
    assert one.base != other.base
    assert one.tuned != other.tuned
    assert alone.base == elsewhere.base == one.base
    assert elsewhere.tuned != one.tuned


def test_top_p_draws_from_the_smallest_set_that_holds_it() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])

    def drawn(top_p: float, logits: torch.Tensor) -> set[int]:
        options = Options(temperature=1.0, top_p=top_p, seed=3)
        draw = generator(options)
        return {choose(logits[None], [options], [draw], [[]])[0] for _ in range(300)}

    assert drawn(0.4, shares.log()) == {0}
    assert drawn(0.5, shares.log()) == {0}
    assert drawn(0.79, shares.log()) == {0, 1}
    assert drawn(0.9, shares.log()) == {0, 1, 2}
    assert drawn(1.0, shares.log()) == {0, 1, 2, 3}
    flat = torch.zeros(2000)  # the nucleus is wider than what is looked at first
    assert len(drawn(0.5, flat)) > LIKELY / 2
    assert max(drawn(1.0, flat)) > 1000


SAMPLED: dict[str, dict[str, Any]] = {
    "top-k": {"temperature": 1.5, "top_k": 50},
    "top-k and top-p": {"temperature": 2.0, "top_k": 20, "top_p": 0.8},
    "min-p": {"temperature": 2.0, "min_p": 0.1},
    "all": {
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.3,
    },
}


@pytest.mark.parametrize("kind", SAMPLED)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_sampled_answer_is_that_of_generate(
    kind: str, seed: int, serving: Serving, tokenizer: Any
) -> None:
    options = Options(seed=seed, max_new_tokens=16, **SAMPLED[kind])
    said = run(serving, [serving.start(LONG, None, options)])[0]
    prompt = torch.tensor([render_prompt(tokenizer, LONG)])
    model = load_model(POCKET, for_training=False)
    torch.manual_seed(seed)
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=16,
        do_sample=True,
        eos_token_id=stop_tokens(tokenizer, model.generation_config),
        **{"top_k": 0, "top_p": 1.0, **SAMPLED[kind]},
    )
    assert said == expected[0, prompt.shape[1] :].tolist()


def test_the_repetition_penalty_also_shapes_greedy_answers(
    serving: Serving, tokenizer: Any
) -> None:
    options = Options(max_new_tokens=24, repetition_penalty=9.0)
    said = run(serving, [serving.start(LONG, None, options)])[0]
    prompt = torch.tensor([render_prompt(tokenizer, LONG)])
    model = load_model(POCKET, for_training=False)
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        do_sample=False,
        repetition_penalty=9.0,
        eos_token_id=stop_tokens(tokenizer, model.generation_config),
    )
    assert said == expected[0, prompt.shape[1] :].tolist()
    assert said != plain(model, tokenizer, LONG), "the penalty changes nothing"


def test_options_out_of_bounds_are_named() -> None:
    wrong = Options("", float("nan"), 2, 0, -1, 0.5, 7, 0, -1, 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        wrong.check()
    assert [problem.field for problem in caught.value.problems] == list(SETTINGS)
    with pytest.raises(ConfigError, match=r"seed: expected from 0 to 2\^63 - 1, got 1000"):
        Options(seed=10**400).check()
    Options().check()


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    options = [Options(temperature=t, seed=0) for t in (0.0, 0.1, 10.0)]
    shares = []
    for option in options:
        draw = generator(option)
        shares.append(sum(choose(logits, [option], [draw], [[]])[0] == 0 for _ in range(400)) / 400)
    assert shares[0] == 1
    assert shares[1] > 0.99
    assert 0.4 < shares[2] < 0.63


def test_text_comes_in_whole_characters(tokenizer: Any) -> None:
    text = "Grüße aus München, 北京 🙂 — naïve"
    stream = TextStream(tokenizer)
    heard = []
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        stream.add(token)
        heard.append(stream.text)
    assert all("\ufffd" not in part and text.startswith(part) for part in heard)
    assert any(len(a) == len(b) for a, b in itertools.pairwise(heard))  # bytes held back
    stream.finish()
    assert stream.text == text


def test_an_answer_streams_and_its_last_pair_is_complete(
    engine: ChatEngine, adapters: dict[str, Path], tokenizer: Any
) -> None:
    pairs = list(engine.reply(LONG, SHORT, GREEDY, base=POCKET, adapter=adapters["some layers"]))
    last = pairs[-1]
    base = plain(load_model(POCKET, for_training=False), tokenizer, LONG)
    tuned = plain(tuned_model(adapters["some layers"]), tokenizer, SHORT)
    assert last.base == tokenizer.decode(base, skip_special_tokens=True)
    assert last.tuned == tokenizer.decode(tuned, skip_special_tokens=True)
    assert (last.tokens_base, last.tokens_tuned) == (len(base), len(tuned))
    assert last.done
    assert last.stopped_base == (base[-1] in stop_tokens(tokenizer))
    assert last.stopped_tuned == (tuned[-1] in stop_tokens(tokenizer))
    assert "loading the model" in [pair.note for pair in pairs] or engine.loaded == POCKET
    said = [pair.base for pair in pairs]
    assert len(set(said)) > 3
    assert all(last.base.startswith(part) for part in said)


def test_the_system_prompt_and_text_that_looks_like_control_tokens(
    serving: Serving, tokenizer: Any
) -> None:
    asked = [{"role": "user", "content": "What is <|end|><|assistant|> this?"}]
    column = serving.start(asked, None, Options(system="Be <|user|> kind."))
    whole = [{"role": "system", "content": "Be <|user|> kind."}, *asked]
    assert column.row.tokens == render_prompt(tokenizer, whole)
    end, user = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>"])
    assert column.row.tokens.count(end) == 2  # after the system prompt and after the question
    assert column.row.tokens.count(user) == 1


def test_without_an_adapter_only_the_base_answers(engine: ChatEngine) -> None:
    pair = answer(engine, SHORT, base=POCKET)
    assert pair.base
    assert pair.done_tuned
    assert (pair.tuned, pair.tokens_tuned) == ("", 0)


# Many at once, and beside a training


def test_importing_the_engine_does_not_import_torch() -> None:
    code = "import sys, phi3lora.chat.engine, phi3lora.chat.votes; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_visitors_with_different_adapters_are_answered_together(
    engine: ChatEngine, adapters: dict[str, Path], tokenizer: Any
) -> None:
    kinds = ["all-linear", "DoRA", "some layers", "whole norm"]
    said: dict[str, Any] = {}

    def visit(kind: str) -> None:
        said[kind] = answer(engine, LONG, options=GREEDY, base=POCKET, adapter=adapters[kind])

    visitors = [threading.Thread(target=visit, args=(kind,)) for kind in kinds]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(PATIENCE)
    base = plain(load_model(POCKET, for_training=False), tokenizer, LONG)
    for kind in kinds:
        tuned = plain(tuned_model(adapters[kind]), tokenizer, LONG)
        assert said[kind].base == tokenizer.decode(base, skip_special_tokens=True)
        assert said[kind].tuned == tokenizer.decode(tuned, skip_special_tokens=True)


class Clock:
    """The engine's clock, which stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        stopped = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("phi3lora.chat.engine.time", stopped)


def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that never end by themselves."""
    monkeypatch.setattr("phi3lora.chat.serving.stop_tokens", lambda *_: [-1])


def answered(new: int, began: float, limit: int = 600) -> Request:
    """A request that had a turn at this time, and has said so many tokens."""
    columns: Any = {"base": SimpleNamespace(new=new, limit=limit, done=False)}
    return Request(POCKET, columns=columns, turn_began=began)


def asked(question: str, when: float, longest: int = 256) -> Request:
    """A request that had no turn yet."""
    conversations: Any = {"base": [{"role": "user", "content": question}]}
    options = Options(max_new_tokens=longest)
    return Request(POCKET, conversations=conversations, options=options, asked=when)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> ChatEngine:
    """An engine whose thread does nothing, at second 100."""
    monkeypatch.setattr(ChatEngine, "_alive", lambda self: True)
    monkeypatch.setattr("phi3lora.chat.engine.time.monotonic", lambda: 100.0)
    return ChatEngine(Settings(home=Path(), turn_seconds=2.0))


def test_a_new_request_waits_behind_no_answer_that_had_a_turn_lately(still: ChatEngine) -> None:
    long_ago, lately = answered(9, 79.0), answered(9, 81.0)
    first, second = asked("Ahoy?", 100.0), asked("Ahoy?", 100.0)
    still._waiting.extend([long_ago, lately])
    still._submit(first)
    still._submit(second)
    assert list(still._waiting) == [long_ago, first, second, lately]


def test_a_short_question_goes_before_longer_ones_that_came_lately(still: ChatEngine) -> None:
    long_ago, lately = (asked("x" * 2000, when, 2048) for when in (79.0, 81.0))
    other = Request(ModelConfig(path="other"), options=Options(max_new_tokens=4096), asked=99.0)
    alike, short = asked("Ahoy there!", 99.0), asked("Ahoy?", 100.0)
    still._waiting.extend([long_ago, other, alike, lately])
    still._submit(short)
    assert list(still._waiting) == [long_ago, other, alike, short, lately]


def test_who_has_said_most_makes_room_and_goes_on_after_those_who_said_less(
    still: ChatEngine,
) -> None:
    little, much, fresh = answered(20, 97.0), answered(300, 97.5), answered(900, 99.0)
    short, more = answered(90, 96.0), answered(400, 96.0)
    still._active = [little, much, *[fresh] * (MOST_ACTIVE - 2)]
    still._waiting.extend([short, more])
    still._serving = cast(Any, SimpleNamespace(base=POCKET, load_seconds=0.0))
    assert not still._may_start(short)
    assert much not in still._active
    assert list(still._waiting) == [short, much, more]


def test_a_short_answer_makes_no_room_for_long_ones(still: ChatEngine) -> None:
    """These have said nothing while their prompts are read, and it was short of its end."""
    short, reading = answered(17, 97.0, limit=300), answered(0, 97.0, limit=4000)
    still._active = [short, reading, *[answered(0, 99.0, limit=4000)] * (MOST_ACTIVE - 1)]
    still._waiting.append(answered(0, 96.0, limit=4000))
    still._serving = cast(Any, SimpleNamespace(base=POCKET, load_seconds=0.0))
    assert not still._may_start(still._waiting[0])
    assert short in still._active
    assert reading not in still._active


def test_short_ones_that_had_no_turn_join_a_full_model(still: ChatEngine) -> None:
    still._active = [answered(9, 99.0)] * MOST_ACTIVE
    still._serving = cast(
        Any, SimpleNamespace(base=POCKET, load_seconds=0.0, make_room=lambda promised: True)
    )
    assert still._may_start(asked("Ahoy?", 100.0))
    assert not still._may_start(asked("x" * 600, 100.0)), "it would keep the place"
    assert not still._may_start(answered(9, 96.0))
    still._active += [answered(1, 99.0, limit=200)] * NEWCOMERS
    assert not still._may_start(asked("Ahoy?", 100.0))


def test_a_short_question_joins_past_a_head_that_waits_for_a_place(still: ChatEngine) -> None:
    """Its place is one that the head cannot have, so the head loses nothing."""
    long_ago, long = (asked("x" * 2000, when, 2048) for when in (60.0, 99.0))
    short = asked("Ahoy?", 99.0)
    still._active = [answered(9, 99.0, limit=4000)] * MOST_ACTIVE
    still._waiting.extend([long_ago, long, short])
    still._serving = cast(
        Any, SimpleNamespace(base=POCKET, load_seconds=0.0, make_room=lambda promised: True)
    )
    assert still._next() is short
    still._active += [answered(1, 99.0, limit=200)] * NEWCOMERS
    assert still._next() is None
    still._waiting.appendleft(Request(ModelConfig(path="other"), asked=60.0))
    still._active = still._active[: MOST_ACTIVE - 1]
    assert still._next() is None, "the base that the head waits for would never be loaded"


def test_a_short_answer_waits_for_few_tokens_of_long_prompts(still: ChatEngine) -> None:
    short, long = answered(9, 99.0, limit=300), answered(0, 99.0, limit=4000)
    still._active = [long, long]
    assert still._budget() == READ
    still._active = [short, long]
    assert still._budget() == READ_BESIDE
    still._active = [short]
    assert still._budget() == READ


def test_short_prompts_are_read_first(tokenizer: Any) -> None:
    """With no more tokens a pass than the budget, and one of each row at least."""
    model = load_model(POCKET, for_training=False)
    speaking = Row([1, 2], cached=1)
    short, long, longer = (Row([1] * length) for length in (12, 900, 1800))
    reading = _allot(model, [longer, long, short, speaking], 64)
    counts = {
        len(row.tokens): count for row, count in zip(reading.rows, reading.counts, strict=True)
    }
    assert counts == {2: 1, 12: 12, 900: 25, 1800: 26}
    few = _allot(model, [longer, long, short], 2)
    assert sorted(few.counts) == [1, 1, 1]


def test_a_long_answer_makes_room_when_its_turn_is_over(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    endless(monkeypatch)
    monkeypatch.setattr("phi3lora.chat.engine.MOST_ACTIVE", 1)
    monkeypatch.setattr("phi3lora.chat.engine.NEWCOMERS", 0)
    clock = Clock(monkeypatch)
    long = engine.reply(SHORT, options=Options(max_new_tokens=400), base=POCKET)
    while next(long).tokens_base < 5:
        pass
    short = engine.reply(LONG, options=Options(max_new_tokens=4), base=POCKET)
    heard: list[int] = []
    done = threading.Event()

    def listen() -> None:
        heard.extend(pair.tokens_base for pair in short)
        done.set()

    listener = threading.Thread(target=listen)
    listener.start()
    clock.now += engine._turn_seconds - 0.5
    before = next(long).tokens_base
    while (pair := next(long)).tokens_base < before + 50:
        assert not done.is_set(), "the first one's turn was cut short"
    clock.now += 1.0
    assert done.wait(PATIENCE)
    listener.join()
    assert heard[-1] == 4
    for pair in long:
        last = pair
    assert last.tokens_base == 400
    tokens = plain_endless(tokenizer, 400)
    assert last.base == tokenizer.decode(tokens, skip_special_tokens=True)


def plain_endless(tokenizer: Any, new: int) -> list[int]:
    """What the base alone says when nothing stops it."""
    model = load_model(POCKET, for_training=False)
    prompt = torch.tensor([render_prompt(tokenizer, SHORT)])
    said = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=-1,
    )
    return said[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("device", "weights", "threads"),
    [("cpu", SMALL - 1, [1]), ("cpu", SMALL, [THREADS]), ("cuda", 9, [])],
)
def test_a_small_model_computes_on_one_thread(
    device: str, weights: int, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training beside it, or a neighbour, would hold up a second one at every operation."""
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    model: Any = SimpleNamespace(
        device=SimpleNamespace(type=device), num_parameters=lambda: weights
    )
    _use_threads(model)
    assert asked == threads


def test_a_full_queue_says_so(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(monkeypatch)
    monkeypatch.setattr("phi3lora.chat.engine.MOST_ACTIVE", 1)
    monkeypatch.setattr("phi3lora.chat.engine.MOST_WAITING", 2)
    first = engine.reply(SHORT, options=Options(max_new_tokens=1500), base=POCKET)
    while not next(first).base:
        pass
    others = [engine.reply(SHORT, options=GREEDY, base=POCKET) for _ in range(2)]
    with pytest.raises(BusyError, match="2 questions are waiting"):
        engine.reply(SHORT, options=GREEDY, base=POCKET)
    first.close()
    for other in others:
        assert list(other)[-1].tokens_base == GREEDY.max_new_tokens


def test_should_stop_ends_both_where_they_are(
    engine: ChatEngine, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(monkeypatch)
    stop = threading.Event()
    pairs = engine.reply(
        SHORT,
        options=Options(max_new_tokens=1000),
        should_stop=stop.is_set,
        base=POCKET,
        adapter=adapters["all-linear"],
    )
    for pair in pairs:
        if pair.tokens_base >= 10:
            stop.set()
    assert pair.done
    assert not pair.stopped_base
    assert not pair.stopped_tuned
    assert 10 <= pair.tokens_base < 1000
    assert pair.tokens_base == pair.tokens_tuned


def test_a_fault_is_told_and_the_engine_goes_on(
    engine: ChatEngine, adapters: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="is no adapter"):
        answer(engine, SHORT, base=POCKET, adapter=tmp_path)
    with pytest.raises(ModelError, match="there is no such folder"):
        answer(engine, SHORT, base="nowhere at all")
    with pytest.raises(ConfigError, match=r"top_p.*\n.*max_new_tokens"):
        engine.reply(SHORT, options=Options(top_p=0, max_new_tokens=0), base=POCKET)

    def broken() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        answer(engine, SHORT, should_stop=broken, base=POCKET)
    assert answer(engine, SHORT, base=POCKET).stopped_base


class Panic(BaseException):
    """As a Rust library's panic arrives: no Exception, caught by few."""


FAULTS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    Panic("called `Option::unwrap()` on a `None` value"),
]


def soon(engine: ChatEngine, **named: Any) -> Any:
    """What an answer raises, heard within a second or two of being asked."""
    heard: list[BaseException] = []

    def ask() -> None:
        try:
            answer(engine, SHORT, base=POCKET, **named)
        except BaseException as error:  # noqa: BLE001 handed to the test
            heard.append(error)

    reader = threading.Thread(target=ask, daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert not reader.is_alive(), "the reader waits for ever"
    return heard[0]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize(
    "place", ["training", "should_stop", "open", "step", "finish", "make_room", "empty_cache"]
)
def test_any_fault_reaches_its_reader_and_the_next_is_answered(
    place: str, fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise fault

    training: list[Any] = [lambda: None]
    engine = ChatEngine(Settings(home=tmp_path), training=lambda: training[0]())
    engine.load(POCKET)
    named = {"should_stop": broken} if place == "should_stop" else {}
    with monkeypatch.context() as patch:
        if place == "training":
            patch.setattr("phi3lora.chat.engine.POLL_SECONDS", 0.0)
            training[0] = broken
        elif place == "open":
            engine.release()
            patch.setattr(Serving, "open", broken)
        elif place in ("step", "make_room"):
            patch.setattr(Serving, place, broken)
        elif place == "finish":
            patch.setattr(TextStream, "finish", broken)
        elif place == "empty_cache":
            patch.setattr(Serving, "step", broken)
            patch.setattr("torch.cuda.is_available", lambda: True)
            patch.setattr("torch.cuda.empty_cache", broken)
        error = soon(engine, **named)
    training[0] = lambda: None
    if isinstance(fault, Exception):
        assert error is fault
    else:
        assert isinstance(error, ModelError)
        assert type(fault).__name__ in str(error)
    assert answer(engine, SHORT, base=POCKET).stopped_base
    engine.release()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_hears_when_the_models_thread_is_gone(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_turn", lambda: (_ for _ in ()).throw(SystemExit()))
        patch.setattr(engine, "_fail_all", lambda problem: (_ for _ in ()).throw(SystemExit()))
        assert "ended in the middle" in str(soon(engine))
    assert answer(engine, SHORT, base=POCKET).stopped_base


def test_a_base_that_did_not_fit_is_not_held_by_its_error(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    half: list[Any] = []

    def full(*_: Any, **__: Any) -> Any:
        loaded = torch.nn.Linear(4, 4)
        half.append(weakref.ref(loaded))
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr("phi3lora.chat.serving.load_model", full)
        error = soon(engine)
    assert "memory ran out" in str(error)
    assert half[0]() is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained whole: the pocket one, moved a little."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    model = load_model(POCKET, for_training=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    model.save_pretrained(folder)
    load_tokenizer("pocket").save_pretrained(folder)
    return folder


def logits_of(serving: Serving, used: Any) -> torch.Tensor:
    """What comes after a question, with an adapter or without."""
    row = serving.start(LONG, used, GREEDY).row
    return advance(serving.model, serving.router, [Row(list(row.tokens), used)])[1]


@pytest.mark.parametrize("kind", ["all-linear", "bias of B", "DoRA", "embedding", "whole head"])
def test_a_strength_of_one_is_the_adapter_and_none_the_base_to_the_bit(
    kind: str, adapters: dict[str, Path], serving: Serving
) -> None:
    adapter = serving.adapter(adapters[kind])
    assert adapter.at(1) is adapter
    assert adapter.at(0.0) is None
    base, full = logits_of(serving, None), logits_of(serving, adapter)
    half = logits_of(serving, adapter.at(0.5))
    assert not torch.equal(half, base)
    assert not torch.equal(half, full)
    assert torch.equal(full, logits_of(serving, adapter))  # the other strength changed nothing
    assert adapter.at(0.5) is adapter.at(0.5)


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_a_strength_is_that_of_another_alpha(
    strength: float, adapters: dict[str, Path], serving: Serving, tmp_path: Path
) -> None:
    scaled = shutil.copytree(adapters["all-linear"], tmp_path / "scaled")
    settings = json.loads((scaled / "adapter_config.json").read_text())
    settings["lora_alpha"] *= strength
    (scaled / "adapter_config.json").write_text(json.dumps(settings))
    found = logits_of(serving, serving.adapter(adapters["all-linear"]).at(strength))
    torch.testing.assert_close(found, logits_of(serving, serving.adapter(scaled)))


def test_many_strengths_are_not_all_kept(adapters: dict[str, Path], serving: Serving) -> None:
    adapter = serving.adapter(adapters["some layers"])
    kept = [adapter.at(0.01 * step) for step in range(1, 60)]
    assert adapter.owns(kept[-1])
    assert not adapter.owns(kept[0])
    assert not adapter.owns(None)


def test_two_adapters_stand_beside_each_other_in_the_same_passes(
    engine: ChatEngine,
    adapters: dict[str, Path],
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: set[int] = set()
    step = Serving.step
    monkeypatch.setattr(
        Serving,
        "step",
        lambda self, open_, *budget: (widths.add(len(open_)), step(self, open_, *budget))[1],
    )
    one, two = adapters["all-linear"], adapters["DoRA"]
    found = answer(engine, LONG, options=GREEDY, base=POCKET, adapter=one, against=two)
    said = [plain(tuned_model(folder), tokenizer, LONG) for folder in (two, one)]
    assert [found.base, found.tuned] == [
        tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said
    ]
    assert max(widths) == 2
    weak = Options(max_new_tokens=24, against_strength=0.0)
    again = answer(engine, LONG, options=weak, base=POCKET, adapter=one, against=two)
    base = plain(load_model(POCKET, for_training=False), tokenizer, LONG)
    assert again.base == tokenizer.decode(base, skip_special_tokens=True)
    assert again.tuned == found.tuned


def test_adapters_of_two_bases_are_answered_by_two_engines(
    adapters: dict[str, Path], tmp_path: Path, tokenizer: Any, whole: Path
) -> None:
    chat = Chat(Settings(home=tmp_path))
    other, folder = ModelConfig(path=str(whole), dtype="float32"), adapters["one target"]
    named: dict[str, Any] = {"against": folder, "against_base": other}
    chat.load(POCKET, adapters["all-linear"], **named)
    options = {"options": GREEDY, "base": POCKET, "adapter": adapters["all-linear"]}
    last = answer(chat, LONG, **options, **named)
    models = tuned_model(folder, other), tuned_model(adapters["all-linear"])
    said = [plain(model, tokenizer, LONG) for model in models]
    assert [last.base, last.tuned] == [
        tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said
    ]
    with pytest.raises(ConfigError, match="strength"):
        answer(chat, LONG, options=Options(strength=0.5), base=POCKET, adapter=whole)
    chat.release()


@pytest.mark.parametrize("room", ["for both", "for one"])
def test_a_model_trained_whole_is_compared_as_an_adapter_is(
    room: str, whole: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(Settings(home=tmp_path))
    if room == "for one":
        asked = ChatEngine.fits
        monkeypatch.setattr(
            ChatEngine,
            "fits",
            lambda self, base=None, token=None: (
                asked(self, base, token)
                if self.loaded == base or not (chat.loaded or chat._tuned.loaded)
                else Room(False, 1, 0)
            ),
        )
    chat.load(POCKET, whole)
    last = answer(chat, LONG, SHORT, GREEDY)
    base = load_model(POCKET, for_training=False)
    tuned = load_model(ModelConfig(path=str(whole), dtype="float32"), for_training=False)
    expected = [plain(base, tokenizer, LONG), plain(tuned, tokenizer, SHORT)]
    assert [last.base, last.tuned] == [
        tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected
    ]
    assert last.done
    assert (chat.loaded is None) == (room == "for one")
    alone = answer(chat, LONG, options=GREEDY, sides=("base",))
    assert (alone.base, alone.tuned, alone.done) == (last.base, "", True)
    only = answer(chat, LONG, SHORT, GREEDY, sides=("tuned",))
    assert (only.base, only.tuned, only.done) == ("", last.tuned, True)
    stopped = answer(chat, LONG, options=GREEDY, should_stop=lambda: True)
    assert stopped.done
    with pytest.raises(ConfigError, match="top_p"):
        chat.reply(LONG, options=Options(top_p=3))
    chat.release()
    assert chat.loaded is chat._tuned.loaded is None


def test_out_of_memory_is_told_and_the_engine_goes_on(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Serving, "step", full)
        with pytest.raises(ModelError, match="memory ran out"):
            answer(engine, SHORT, base=POCKET)
    assert engine.loaded is None
    assert answer(engine, SHORT, base=POCKET).stopped_base


def test_a_release_in_the_middle_changes_nothing_that_is_said(
    engine: ChatEngine,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Any,
) -> None:
    endless(monkeypatch)
    ask = {"options": Options(max_new_tokens=300), "base": POCKET}
    expected = answer(engine, SHORT, adapter=adapters["one target"], **ask)
    pairs = engine.reply(SHORT, adapter=adapters["one target"], **ask)
    while next(pairs).tokens_base < 20:
        pass
    first = engine._serving
    engine.release()
    last = list(pairs)[-1]
    assert (last.base, last.tuned) == (expected.base, expected.tuned)
    assert engine._serving is not first


def test_release_frees_and_the_next_question_loads_again(engine: ChatEngine) -> None:
    engine.load(POCKET)
    weights = weakref.ref(engine._serving.model.lm_head)
    assert engine.loaded == POCKET
    engine.release()
    assert engine.loaded is None
    assert weights() is None
    assert answer(engine, SHORT).stopped_base


def test_chat_makes_room_for_a_training_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3lora.chat.engine.POLL_SECONDS", 0.01)
    needed: list[int | None] = [None]
    engine = ChatEngine(Settings(home=tmp_path), training=lambda: needed[0])
    engine.load(POCKET)
    needed[0] = 1000  # bytes: there is room for both
    assert engine.fits(POCKET).fits
    assert answer(engine, SHORT).stopped_base
    needed[0] = 2**60
    with engine._changed:
        assert engine._changed.wait_for(lambda: engine.loaded is None, timeout=PATIENCE)
    room = engine.fits(POCKET)
    assert not room.fits
    assert room.need > 3_800_000 * 4
    with pytest.raises(BusyError, match="Compare comes back by itself when the run ends"):
        answer(engine, SHORT)
    needed[0] = None
    assert answer(engine, SHORT).stopped_base
    engine.release()


def test_a_base_larger_than_memory_is_refused_before_it_is_loaded(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3lora.models.hardware._cpu", lambda: TINY)
    with pytest.raises(BusyError, match=r"choose a smaller base"):
        answer(engine, SHORT, base=POCKET)
    assert engine.loaded is None


def test_another_base_takes_its_turn(
    engine: ChatEngine, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(monkeypatch)
    half = ModelConfig(path="pocket", dtype="bfloat16")
    first = engine.reply(SHORT, options=Options(max_new_tokens=60), base=POCKET)
    next(first)
    second = engine.reply(SHORT, options=Options(max_new_tokens=6), base=half)
    assert list(second)[-1].tokens_base == 6
    assert list(first)[-1].tokens_base == 60


def test_an_adapter_written_again_is_read_again(engine: ChatEngine, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", seed=1)
    before = answer(engine, SHORT, options=GREEDY, base=POCKET, adapter=folder)
    write_adapter(folder, seed=2)
    after = answer(engine, SHORT, options=GREEDY, base=POCKET, adapter=folder)
    assert before.base == after.base
    assert before.tuned != after.tuned


def test_load_tells_what_it_does(engine: ChatEngine, adapters: dict[str, Path]) -> None:
    heard: list[str] = []
    engine.load("pocket", adapters["DoRA"], progress=heard.append)
    assert heard == ["reading the tokenizer", "loading the model", "loading the adapter"]
    assert answer(engine, SHORT, options=GREEDY).tokens_tuned > 0
