"""A base in memory with the adapters that visitors use: prompts in, tokens out.

    serving = Serving.open(ModelConfig(path="pocket"), progress)
    column = serving.start(messages, adapter, options)
    while not column.done:
        serving.step([column])
    serving.keep(column)

Used by one thread only, the engine's (see engine.py). What was read stays cached when an answer
is done, so that the next turn of a conversation reads its new words alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from phi3lora.chat.adapters import Adapter
from phi3lora.chat.decoding import READ, Row, advance
from phi3lora.chat.options import Options
from phi3lora.chat.patches import patched
from phi3lora.chat.replay import Replay
from phi3lora.chat.sampling import TextStream, choose, generator
from phi3lora.config import ModelConfig
from phi3lora.data.conversation import TOOLS, Message
from phi3lora.data.rendering import NO_SYSTEM, render_prompt, stop_tokens, writes_system
from phi3lora.data.tools import definitions
from phi3lora.errors import DataError, ModelError
from phi3lora.events import DOWNLOADING, in_twentieths
from phi3lora.models.base import check_base, fetch, resolve_path
from phi3lora.models.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[str], None]
THREADS = torch.get_num_threads()  # of a large model on a CPU: as many as there are
MOST_ADAPTERS = 8  # kept in memory beside those in use
IDLE_ROWS = 32  # caches kept for a next turn
NO_PLACE = (
    "The base's chat template has no place for a system prompt. One is put before the first "
    "question, or left out or refused where the training did so (data.system_messages)."
)
SMALL = 50_000_000  # weights of a model that one thread of a CPU computes as fast as many
SHARE = 0.25  # of the memory that is free after loading: for all caches together


@dataclass(eq=False)
class Column:
    """One answer in the making."""

    row: Row
    options: Options
    draw: torch.Generator | None
    stream: TextStream
    limit: int  # tokens of the row at which it ends, whatever it says
    prompt: int = 0  # tokens that are answered
    new: int = 0
    done: bool = False
    stopped: bool = False


@dataclass
class Serving:
    """The loaded base and all that belongs to it.

    Attributes:
        base: what was asked for.
        load_seconds: how long loading took.
        cache_bytes: all rows' caches together are kept below this.
        graph: on a GPU, tokens after the first few come from a CUDA graph (see replay.py).
    """

    base: ModelConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    load_seconds: float = 0.0
    cache_bytes: int = 2**31
    notices: list[str] = field(default_factory=list)
    graph: bool = False
    _adapters: dict[tuple[Path, int], Adapter] = field(default_factory=dict)  # newest use last
    _idle: list[Row] = field(default_factory=list)  # newest last

    def __post_init__(self) -> None:
        self.model.requires_grad_(False)
        self.router = patched(self.model)
        on_gpu = self.model.device.type == "cuda"
        self.replay = Replay(self.model, self.router) if self.graph and on_gpu else None
        self._stops = set(stop_tokens(self.tokenizer, self.model.generation_config))

    @classmethod
    def open(
        cls,
        base: ModelConfig,
        progress: Progress,
        token: str | None = None,
        graph: bool = False,
    ) -> Serving:
        """Load a base. Raises ModelError or HubError."""
        from phi3lora.models.hardware import detect_hardware

        began = time.monotonic()
        hardware = detect_hardware(base.device)
        path = resolve_path(base.path, hardware)
        progress("reading the tokenizer")
        tokenizer = load_tokenizer(path, base.revision, token)
        tell = in_twentieths(lambda share: progress(f"{DOWNLOADING}: {share:.0%}"))
        fetch(check_base(path, base.revision, token), token, tell=tell)
        progress("loading the model")
        notices: list[str] = []
        model = load_model(base, for_training=False, token=token, notices=notices)
        _use_threads(model)
        if not writes_system(tokenizer):
            notices.append(NO_PLACE)
        free = detect_hardware(base.device).memory_free
        return cls(
            base=base,
            model=model,
            tokenizer=tokenizer,
            load_seconds=time.monotonic() - began,
            cache_bytes=int(free * SHARE),
            notices=notices,
            graph=graph,
        )

    @property
    def context(self) -> int:
        """Tokens that a conversation may have, answer included."""
        return int(self.model.config.max_position_embeddings)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token of one row holds."""
        config = self.model.config
        head = config.hidden_size // config.num_attention_heads
        return int(
            2
            * config.num_hidden_layers
            * config.num_key_value_heads
            * head
            * self.model.dtype.itemsize
        )

    def adapter(self, folder: Path) -> Adapter:
        """An adapter by its folder; read again when the folder was written again.

        Raises AdapterError.
        """
        weights = folder / "adapter_model.safetensors"
        key = (folder.resolve(), weights.stat().st_mtime_ns if weights.exists() else 0)
        adapter = self._adapters.pop(key, None) or self.router.read(folder)
        self._adapters[key] = adapter
        while len(self._adapters) > MOST_ADAPTERS:
            oldest = self._adapters.pop(next(iter(self._adapters)))
            self._idle = [row for row in self._idle if not oldest.owns(row.adapter)]
        return adapter

    def start(self, messages: list[Message], adapter: Adapter | None, options: Options) -> Column:
        """An answer to a conversation; its row takes over what is cached of an earlier turn.

        Raises ModelError when the conversation is longer than the model can read, and DataError
        when its template does not write it.
        """
        prompt = prompt_of(self.tokenizer, messages, options)
        if len(prompt) >= self.context:
            raise ModelError(
                f"The conversation has {len(prompt):,} tokens; the model reads at most "
                f"{self.context:,}, answer included. Clear it, or ask in fewer words."
            )
        return Column(
            row=self._row(prompt, adapter),
            options=options,
            draw=generator(options),
            stream=TextStream(self.tokenizer),
            limit=min(len(prompt) + options.max_new_tokens, self.context),
            prompt=len(prompt),
        )

    def step(self, columns: list[Column], budget: int = READ) -> None:
        """One pass over the weights: the next token of every column whose prompt is read.

        About `budget` tokens of prompts are read in it.
        """
        by_row = {id(column.row): column for column in columns}
        rows = [column.row for column in columns]
        replay = self.replay
        ready, logits = (
            advance(self.model, self.router, rows, budget)
            if replay is None
            else replay.advance(rows, budget)
        )
        speaking = [by_row[id(row)] for row in ready]
        tokens = choose(
            logits,
            [column.options for column in speaking],
            [column.draw for column in speaking],
            [column.row.tokens for column in speaking],
        )
        for column, token in zip(speaking, tokens, strict=True):
            self._say(column, token)

    def keep(self, column: Column) -> None:
        """Keep what an answer cached for the next turn; the oldest makes room."""
        if column.row.store is not None:
            self._idle.append(column.row)
        if self.replay is not None:  # it would hold a cache that is dropped here
            self.replay.forget()
        self._idle = self._idle[-IDLE_ROWS:]
        self.make_room(0)

    def make_room(self, promised: int) -> bool:
        """Whether caches of so many tokens fit; idle ones are dropped for them, oldest first."""
        need = promised * self.bytes_per_token
        if need > self.cache_bytes:
            return False
        while need + sum(row.bytes for row in self._idle) > self.cache_bytes:
            self._idle.pop(0)
        return True

    def _row(self, prompt: list[int], adapter: Adapter | None) -> Row:
        """A row for a prompt; continues the idle one that shares most of its beginning."""
        fitting = [row for row in self._idle if row.adapter is adapter]
        best = max(fitting, key=lambda row: _common(row, prompt), default=None)
        if best is None or 2 * _common(best, prompt) < best.cached:
            return Row(prompt, adapter)  # a row that would lose more than half stays as it is
        self._idle.remove(best)
        # The last token is always read, for it says what comes next.
        best.cached = min(_common(best, prompt), len(prompt) - 1)
        best.tokens = prompt
        return best

    def _say(self, column: Column, token: int) -> None:
        column.new += 1
        column.row.tokens.append(token)
        column.stopped = token in self._stops
        column.done = column.stopped or len(column.row.tokens) >= column.limit
        if not column.stopped:
            column.stream.add(token)
        if column.done:
            column.stream.finish()


def _use_threads(model: PreTrainedModel) -> None:
    """On a CPU a small model computes on one thread: on more each operation waits for them all.

    Where something else has a core, that wait is several times the work.
    """
    if model.device.type == "cpu":
        torch.set_num_threads(1 if model.num_parameters() < SMALL else THREADS)


def prompt_of(tokenizer: Any, messages: list[Message], options: Options) -> list[int]:
    """The ids of a question, as a training on it would have them.

    Raises DataError for a system prompt that the training refused, and for tools and roles that
    the chat template does not write.
    """
    if options.system or options.tools:
        first: Message = {"role": "system", "content": options.system}
        if tools := definitions(options.tools):
            first["tools"] = tools
        messages = [first, *messages]
    try:
        return render_prompt(tokenizer, messages, options.system_messages)
    except DataError as error:
        if str(error) not in (TOOLS, NO_SYSTEM):
            raise
        raise DataError(f"This cannot be asked here: {error}. Leave that out.") from None


def _common(row: Row, prompt: list[int]) -> int:
    """How many cached tokens of a row begin the prompt."""
    most = min(row.cached, len(prompt))
    for index in range(most):
        if row.tokens[index] != prompt[index]:
            return index
    return most
