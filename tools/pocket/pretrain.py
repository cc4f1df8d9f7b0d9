"""Make pocket Phi-3 anew: `python -m tools.pocket.pretrain`.

Builds the vocabulary and trains the model on conversations of the world's train side, then writes
the checkpoint folder: about ten minutes on two quiet cores. The same seed, steps and number of
threads (`OMP_NUM_THREADS`; the shipped weights were made with 1) give the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.models.pocket import CHECKPOINT
from tools.pocket.tokenizer import SPECIALS_AT, build_tokenizer
from tools.pocket.world import Conversations, Message

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

END_OF_TEXT, ASSISTANT, SYSTEM, END, USER = (SPECIALS_AT + i for i in (0, 1, 6, 7, 10))
_CONTROL = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_CONTEXT = 2048
_TOKENS_A_BATCH = 3072
_IGNORED = -100

# Phi-3's own first template, to the letter.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": _CONTEXT,
    "original_max_position_embeddings": _CONTEXT,
    "sliding_window": _CONTEXT - 1,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": END_OF_TEXT,
}
GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": [END_OF_TEXT, ASSISTANT, END],
    "pad_token_id": END_OF_TEXT,
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "add_bos_token": False,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<unk>",
    "model_max_length": _CONTEXT,
    "padding_side": "left",
    "tokenizer_class": "PreTrainedTokenizerFast",
}

Row = tuple[list[int], list[int]]  # token ids and labels


def pretrain(folder: Path, steps: int, seed: int) -> None:
    """Train for `steps` batches and write the whole checkpoint to `folder`."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = Phi3ForCausalLM(Phi3Config(**CONFIG)).train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(_decay_groups(model), lr=1.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    started = time.monotonic()
    for step, (ids, labels) in enumerate(_batches(tokenizer, seed, steps), start=1):
        loss = _loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 50 == 0 or step == steps:
            left = (time.monotonic() - started) / step * (steps - step)
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {left:.0f} s left", flush=True)
    save_checkpoint(model, tokenizer, folder)


def _rate(step: int, steps: int) -> float:
    """Learning rate: 100 steps of warm-up, flat, then down to zero over the last half."""
    remaining = (steps - step) / (steps * 0.5)
    return 1.5e-3 * min(1.0, (step + 1) / 100, remaining)


def _decay_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for the norms' vectors."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]


def _loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the supervised tokens; the head is computed for those alone."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]  # (batch, seq - 1)
        logits = model.lm_head(hidden[wanted != _IGNORED])  # (supervised, vocabulary)
    return torch.nn.functional.cross_entropy(logits.float(), wanted[wanted != _IGNORED])


def _batches(
    tokenizer: Tokenizer, seed: int, steps: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` right-padded batches of (batch, seq) ids and labels, rows of like length together.

    Attention is causal, so padding on the right needs no mask.
    """
    rng = random.Random(seed)
    conversations = Conversations(seed)
    ready: list[list[Row]] = []
    for _ in range(steps):
        if not ready:
            rows = [encode(tokenizer, conversations.draw()) for _ in range(4096)]
            ready = _by_length(sorted(rows, key=lambda row: len(row[0])))
            rng.shuffle(ready)
        yield _padded(ready.pop())


def _by_length(rows: list[Row]) -> list[list[Row]]:
    """Cut sorted rows into batches of at most `_TOKENS_A_BATCH` tokens, padding included."""
    batches: list[list[Row]] = [[]]
    for row in rows:
        if len(row[0]) * (len(batches[-1]) + 1) > _TOKENS_A_BATCH:
            batches.append([])
        batches[-1].append(row)
    return batches


def _padded(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as two tensors of (batch, longest row); what is padded carries no loss."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    all_ids = [ids + [0] * (width - len(ids)) for ids, _ in rows]
    all_labels = [labels + [_IGNORED] * (width - len(labels)) for _, labels in rows]
    return torch.tensor(all_ids), torch.tensor(all_labels)


def encode(tokenizer: Tokenizer, messages: list[Message]) -> Row:
    """Token ids and labels of a conversation: the assistant's words and <|end|> are supervised."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        text = tokenizer.encode(message["content"]).ids
        ids += [_CONTROL[message["role"]], *text, END]
        answers = message["role"] == "assistant"
        labels += [_IGNORED, *(text if answers else [_IGNORED] * len(text))]
        labels.append(END if answers else _IGNORED)
    return [*ids, END_OF_TEXT], [*labels, _IGNORED]


def save_checkpoint(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights (bfloat16), vocabulary, template and configurations to `folder`."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "generation_config.json", GENERATION_CONFIG)
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the options and pretrain."""
    parser = argparse.ArgumentParser(description="Make pocket Phi-3 anew.")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="folder to write")
    parser.add_argument("--steps", type=int, default=2200, help="batches to train on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pretrain(options.output, options.steps, options.seed)


if __name__ == "__main__":
    main()
