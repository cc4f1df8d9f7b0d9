"""What a run will need, before it is launched: memory, steps, tokens, and time if a speed is known.

    need = estimate(config, detect_hardware(), inspection)
    need.memory_bytes, need.steps, need.parts["activations"]

Simple sums over what training keeps; nothing is loaded. The figure is for the peak of one device,
of as many as train together,
and meant to be right within a factor of two; `tests/test_estimate.py` compares it with real runs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.data.plan import held_out_number, holds_out
from phi3lora.lora.initial import starts_apart
from phi3lora.lora.starting import size_of
from phi3lora.methods import PAIRED, REWARDED, has_reference
from phi3lora.models.base import BaseInfo, check_base, resolve_path
from phi3lora.models.hardware import Hardware, choose_dtype
from phi3lora.models.phi3 import EMBEDDING, HEAD, PHI3, QKV

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A 4-bit weight, and a scale for each block of 64: float32, or 8 bits with a second scale for 256
# of those (double quantization). Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3.
FOUR_BITS = {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}
# Bytes of optimizer state for each trained parameter: two moments in float32, one, or in 8 bits.
TWO_MOMENTS, ONE_MOMENT = 8.0, 4.0
STATE = {"sgd": 0.0, "adafactor": 0.1, "rmsprop": ONE_MOMENT, "adagrad": ONE_MOMENT}
# torch's own optimizers: their state has the precision of the weights.
FOLLOWS_WEIGHTS = {
    *("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
}
# What Python, torch and the libraries hold before anything is loaded; measured.
PROCESS = {"cpu": 650 * 2**20, "cuda": 600 * 2**20}
PACKED_FILL = 0.97  # of a packed row that is tokens; measured on 999 instruction rows
PLAIN_TILE = 4096 * 32768  # logits that TRL's own loss holds at once
PLAIN_COPIES = 6  # float32 copies of them while it sums
IN_FLIGHT = 0.25  # of one layer's activations: gradients on their way, with checkpointing
SAMPLED = 12  # bytes of a logit while a token is drawn: float32, sorted, and its place
EPOCHS_DRAWN = 3  # orders of the rows that are tried for the largest pass


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes:
        memory_bytes: at the peak, on the device that trains.
        parts: what it is made of, in bytes, by name.
        steps: updates; None while the rows are unknown.
        tokens: read in all epochs, None likewise.
        seconds: None while no speed is known.
        trainable, total: parameters.
        dtype: of the base's weights.
        proof_bytes: at the peak of the final evaluation, which begins when the training's memory
            is free; 0 where there is none. `memory_bytes` is the larger of the two.
        start_bytes: of the adapter that training goes on from; the run's folder keeps a copy.
        exact: False where the rows were extrapolated, so that steps, tokens and time are "about".
        dollars_an_hour: of the machine; None where nothing is paid for it, or it is not known.
        dollars: for `seconds` on it, likewise.
    """

    memory_bytes: int
    parts: dict[str, int]
    steps: int | None
    tokens: int | None
    seconds: float | None
    trainable: int
    total: int
    dtype: str
    exact: bool = True
    proof_bytes: int = 0
    start_bytes: int = 0
    dollars_an_hour: float | None = None
    dollars: float | None = None


def estimate(
    config: RunConfig,
    hardware: Hardware,
    inspection: Any = None,
    tokens_per_second: float | None = None,
    token: str | None = None,
) -> Estimate:
    """Add up what training will hold, and count its steps.

    Args:
        inspection: of the data, for lengths and counts; without it rows are taken to be full.
        tokens_per_second: as measured on this machine, for the time.
        token: of the caller, for a gated base's `config.json`.

    Raises ModelError or HubError when the base cannot be found out about.
    """
    path = resolve_path(config.model.path, hardware)
    base = check_base(path, config.model.revision, token)
    return estimate_for(config, base, hardware, inspection, tokens_per_second)


def estimate_for(
    config: RunConfig,
    base: BaseInfo,
    hardware: Hardware,
    inspection: Any = None,
    tokens_per_second: float | None = None,
    start: Path | None = None,
) -> Estimate:
    """As `estimate`, for a base that was found out about already.

    Args:
        start: the adapter that training goes on from, as `starting.find_start` gives it.
    """
    quantized = config.model.quantization != "none"
    dtype, _ = choose_dtype(config.model.dtype, hardware, None if quantized else base.parameters)
    trainable = trainable_parameters(config, base)
    parts = {
        name: int(size)
        for name, size in _parts(
            config, base, hardware, dtype, trainable, _tokens_in_pass(config, inspection)
        ).items()
    }
    parts = _shared(parts, config, base)
    answering = _answering(parts, config, base, hardware, dtype, inspection)
    steps, tokens, exact = _work(config, inspection)
    proof = int(_proof_bytes(config, base, hardware, dtype, trainable))
    started = size_of(start) if start else 0
    # On a CPU the file is read beside the adapter that it fills, before anything is trained.
    loading = sum(parts[name] for name in ("base", "adapter", "process")) + started
    return Estimate(
        memory_bytes=max(
            sum(parts.values()), answering, proof, loading if hardware.device == "cpu" else 0
        ),
        start_bytes=started,
        proof_bytes=proof,
        parts=parts,
        steps=steps,
        tokens=tokens,
        seconds=tokens / tokens_per_second if tokens and tokens_per_second else None,
        trainable=trainable,
        total=base.parameters + (trainable if config.adapter != "none" else 0),
        dtype=dtype,
        exact=exact,
    )


def trainable_parameters(config: RunConfig, base: BaseInfo) -> int:
    """Weights that are trained: r · (in + out) for each adapted layer, and what is whole."""
    if config.adapter == "none":
        return base.parameters
    peft = config.peft_config
    shapes = {**base.shapes, EMBEDDING: (base.vocabulary, base.hidden)}
    found = 0
    for path in _adapted(config, base):
        name = path.rpartition(".")[2]
        rows, columns = shapes[name]
        rank = next((n for end, n in peft.rank_pattern.items() if _is_end(end, path)), peft.r)
        on, outputs = _slices(config, base, name)
        found += rank * (on * rows + outputs) + (columns if peft.use_dora else 0)
    whole = {HEAD, EMBEDDING} & set(peft.modules_to_save or [])
    return found + len(whole) * base.vocabulary * base.hidden


def _adapted(config: RunConfig, base: BaseInfo) -> Iterator[str]:
    """Paths of the modules that get an adapter; names that the base has not match none."""
    peft, wanted = config.peft_config, config.peft_config.target_modules
    targets = wanted if isinstance(wanted, list) else PHI3.presets.get(wanted, [wanted])
    chosen = peft.layers_to_transform
    layers = range(base.layers) if chosen is None else {n for n in chosen if 0 <= n < base.layers}
    paths = [PHI3.path(number, name) for number in layers for name in base.shapes]
    if chosen is None:
        paths.append(f"model.{EMBEDDING}")
    yield from (path for path in paths if any(_is_end(target, path) for target in targets))


def _is_end(name: str, path: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _slices(config: RunConfig, base: BaseInfo, name: str) -> tuple[int, int]:
    """How many adapters a projection holds, one for each slice that is on, and their outputs."""
    slices, whole = config.peft_config.slices, {**base.shapes, EMBEDDING: (0, base.hidden)}
    sizes = PHI3.slice_rows(base).get(name)
    if slices is None or sizes is None:
        return 1, whole[name][1]
    on = [size for part, size in sizes.items() if getattr(slices, part)]
    return len(on), sum(on)


def _parts(
    config: RunConfig,
    base: BaseInfo,
    hardware: Hardware,
    dtype: str,
    trainable: int,
    tokens: int,
) -> dict[str, float]:
    """What is held at the peak, in bytes."""
    element = BYTES["bfloat16" if config.training_config.bf16 else dtype]
    # What a reference reads is gone before the first gradient is in flight, which takes as much.
    # A copy of the adapter that training goes on from stays.
    copied = has_reference(config) and starts_apart(config)
    trained = _trained_bytes(config, hardware, dtype)
    between, layer = _activation_bytes(config, base, hardware, element)
    # The logits are gone when the first layer's gradients are in flight: the larger of both counts.
    loss = max(_loss_bytes(config, base, hardware, element, tokens) - tokens * layer, 0)
    casts = trainable * element if config.adapter == "none" and trained > element else 0
    return {
        "base": (
            # Autocast keeps what it cast of trained weights until the pass is over.
            trainable * trained + casts
            if config.adapter == "none"
            else _base_bytes(config, base, dtype)
        ),
        "adapter": 0 if config.adapter == "none" else trainable * trained,
        "gradients": trainable * trained,
        "optimizer": trainable * _state_bytes(config.training_config.optim, trained),
        "activations": tokens * (between + layer),
        **({"reference": trainable * trained} if copied else {}),
        "loss": loss,
        "process": PROCESS[hardware.device],
    }


def _answering(
    parts: dict[str, int],
    config: RunConfig,
    base: BaseInfo,
    hardware: Hardware,
    dtype: str,
    inspection: Any,
) -> int:
    """Bytes while GRPO's model answers, between two updates; 0 where it answers nothing.

    Keys and values of all answers to an update, their logits, and the prompts in a layer.
    """
    if config.method not in REWARDED:
        return 0
    training, element = config.training_config, BYTES[dtype]
    answers = training.per_device_train_batch_size * training.gradient_accumulation_steps
    prompt = _longest_prompt(config, inspection)
    position = 2 * base.layers * base.key_value_heads * base.head_size * element
    layer = (5 * base.hidden + base.shapes[QKV][1] + 3 * base.intermediate) * element
    held = sum(parts[name] for name in ("base", "adapter", "optimizer", "process"))
    longest = prompt + config.grpo_config.max_completion_length
    drawn = answers * (longest * position + prompt * layer + base.vocabulary * SAMPLED)
    return int(held + drawn)


def _longest_prompt(config: RunConfig, inspection: Any) -> int:
    """Tokens of a row at most: its answer counts too, for want of a length of prompts alone."""
    limit = config.training_config.max_length
    return limit if inspection is None else min(inspection.longest, limit)


def _shared(parts: dict[str, int], config: RunConfig, base: BaseInfo) -> dict[str, int]:
    """What one of several devices holds: all of it, or its share and what is gathered at a time.

    DDP, ZeRO-2: a second copy of the gradients, in the buckets in which they are summed. FSDP2 and
    ZeRO-3: two layers whole, the one that is computed and the next, with embedding and head.
    https://docs.pytorch.org/docs/stable/notes/ddp.html, https://arxiv.org/abs/1910.02054
    """
    number, way = config.devices, config.distributed
    if number == 1:
        return parts
    spread = {"ddp": (), "zero2": ("gradients", "optimizer")}.get(
        way, ("base", "adapter", "gradients", "optimizer")
    )
    found = {name: size // number if name in spread else size for name, size in parts.items()}
    if way in ("ddp", "zero2"):
        return {**found, "buckets": parts["gradients"]}
    ends = 2 * base.vocabulary * base.hidden / base.parameters
    two_layers = (1 - ends) * 2 / base.layers
    return {**found, "gathered": int(parts["base"] * (ends + two_layers))}


def _trained_bytes(config: RunConfig, hardware: Hardware, dtype: str) -> int:
    """Bytes of one trained weight.

    TRL trains the adapter of a quantized base in bfloat16, PEFT any other in float32. The scaling
    of float16's gradients needs float32 weights, adapter or not (`FastTrainer`).
    """
    training = config.training_config
    quantized = config.model.quantization != "none"
    computed = config.model.compute_dtype if quantized else dtype
    half = "float16" in (computed, dtype) and not training.bf16
    if hardware.device == "cuda" and (training.fp16 or half):
        return 4
    if config.adapter == "none":
        return BYTES[dtype]
    return 2 if quantized else 4


def _proof_bytes(
    config: RunConfig, base: BaseInfo, hardware: Hardware, dtype: str, trainable: int
) -> float:
    """What the final evaluation holds: base, adapter, and the cache of a batch of answers.

    One position of the cache is a key and a value for each head of keys in each layer.
    """
    if not config.evaluation.enabled or not holds_out(config.data):
        return 0.0
    evaluation, element = config.evaluation, BYTES[dtype]
    longest = config.training_config.max_length + evaluation.max_new_tokens
    position = 2 * base.layers * base.key_value_heads * base.head_size * element
    layer = (5 * base.hidden + base.shapes[QKV][1] + 3 * base.intermediate) * element
    adapter = 0 if config.adapter == "none" else 4 * trainable
    weights = _base_bytes(config, base, dtype) + adapter
    answers = evaluation.batch_size * longest * (position + layer)
    return weights + answers + PROCESS[hardware.device]


def _base_bytes(config: RunConfig, base: BaseInfo, dtype: str) -> float:
    if config.model.quantization == "none":
        return base.parameters * BYTES[dtype]
    linear = base.layers * sum(rows * columns for rows, columns in base.shapes.values())
    each = 1.0
    if config.model.quantization in {"nf4", "fp4"}:
        each = FOUR_BITS[config.model.double_quantization]
    # Embedding, head and norms are put into float32 for training.
    return linear * each + (base.parameters - linear) * 4


def _state_bytes(optimizer: str, trained: int) -> float:
    """Bytes of state for a trained weight of so many bytes.

    torch keeps its moments in the weights' precision; bitsandbytes in float32 whatever the
    weights are in, or in 8 bits. Those of paged optimizers may lie in the host's memory; they are
    counted, since every step needs them.
    """
    if "8bit" in optimizer:
        return 1.0 if "lion" in optimizer else 3.0 if "ademamix" in optimizer else 2.0
    scale = trained / 4 if optimizer in FOLLOWS_WEIGHTS else 1.0
    if optimizer in STATE:
        return STATE[optimizer] * scale
    if "lion" in optimizer or "rmsprop" in optimizer:
        return ONE_MOMENT * scale
    return TWO_MOMENTS * scale * (1.5 if "ademamix" in optimizer else 1.0)


def _activation_bytes(
    config: RunConfig, base: BaseInfo, hardware: Hardware, element: int
) -> tuple[float, float]:
    """Bytes that one token keeps until its gradient comes back: in all layers, and in one more.

    A layer keeps the inputs of its two norms and four projections, queries, keys, values and what
    attention gave (read by the next projection), and gate and up; with dropout, what it dropped:
    a mask as wide as the numbers on a CPU; on a GPU one of bytes, and attention's output twice.
    Checkpointing keeps a layer's input alone, and one layer whole at a time. One layer more is
    for gradients in flight. What flows between the layers of a quantized base is in float32.
    """
    hidden, inner = base.hidden, base.intermediate
    kept = 5 * hidden + base.shapes[QKV][1] + 3 * inner
    if _drops(config):
        masks = 3 * hidden + inner
        kept += masks if hardware.device == "cpu" else masks // element + hidden
    if not config.training_config.fast:
        kept *= 2  # casts, products and sums that plain layers keep apart
    between = 4 if config.model.quantization != "none" else element
    layer = element * kept + 2 * hidden * (between - element)
    if config.training_config.gradient_checkpointing:
        return base.layers * hidden * between, (1 + IN_FLIGHT) * layer
    return base.layers * layer, layer


def _drops(config: RunConfig) -> bool:
    """Whether an adapter's dropout is computed: preferences are learnt without, unless asked."""
    off = getattr(config.method_config, "disable_dropout", False)
    return config.adapter == "peft" and config.peft_config.lora_dropout > 0 and not off


def _loss_bytes(
    config: RunConfig, base: BaseInfo, hardware: Hardware, element: int, tokens: int
) -> float:
    """Logits: a chunk of them at a time, or TRL's tile with the copies it makes."""
    from phi3lora.training.fast.loss import CHUNK

    states = 3 * tokens * base.hidden * element
    if config.adapter == "none":  # the head's gradient in float32, and what is added to it
        states += base.vocabulary * base.hidden * (4 + 4 + element)
    if config.model.quantization != "none":  # the float32 head, copied for each step
        states += base.vocabulary * base.hidden * element
    if not config.training_config.fast:
        return states + min(tokens * base.vocabulary, PLAIN_TILE) * (element + 4 * PLAIN_COPIES)
    multiplied, summed = (min(n, tokens * base.vocabulary) for n in CHUNK[hardware.device])
    return states + multiplied * element + 8 * summed


def _tokens_in_pass(config: RunConfig, inspection: Any) -> int:
    """Tokens of one pass at its largest, as batches are drawn: rows in a few random orders.

    Rows of a batch lie end to end, or are padded to the longest by TRL's own path.
    """
    training = config.training_config
    size, limit = training.per_device_train_batch_size, training.max_length
    if config.method in PAIRED:  # both answers of a pair are read in one pass
        limit *= 2
    if config.method in REWARDED:  # its own answers, each as long as it may be
        longest = _longest_prompt(config, inspection) + config.grpo_config.max_completion_length
        return size * longest
    if inspection is None or training.packing:
        return size * limit
    lengths = [min(n, limit) for n in inspection.lengths or [inspection.tokens["max"]] * size]
    chance, largest = random.Random(0), 0
    for _ in range(EPOCHS_DRAWN):
        chance.shuffle(lengths)
        for start in range(0, len(lengths), size):
            batch = lengths[start : start + size]
            largest = max(largest, sum(batch) if training.fast else max(batch) * len(batch))
    return largest


def _work(config: RunConfig, inspection: Any) -> tuple[int | None, int | None, bool]:
    """Updates and tokens of the whole run, and whether all rows were counted for them."""
    training = config.training_config
    if inspection is None or not inspection.kept:
        return (training.max_steps if training.max_steps > 0 else None), None, True
    kept, exact = _rows_expected(inspection)
    held = held_out_number(kept, config.data.test_size) if inspection.held_out == "rows" else 0
    rows: float = max(kept - held, 0)
    tokens = inspection.total_tokens * rows / inspection.kept * inspection.drawn_tokens
    rows = max(round(rows * inspection.drawn), 1)
    if config.method == "kto" and inspection.answers is not None:  # each answer is a row of its own
        rows *= 1 + inspection.answers.pairs / inspection.kept
    if config.method in REWARDED:
        rows, tokens = _answers_of(config, int(rows), inspection)
    if training.packing:
        rows = tokens / (PACKED_FILL * training.max_length)
    at_once = training.per_device_train_batch_size * config.devices
    passes = max(math.ceil(rows / at_once), 1)
    per_epoch = math.ceil(passes / training.gradient_accumulation_steps)  # on all devices at once
    steps = math.ceil(training.num_train_epochs * per_epoch)
    if training.max_steps > 0:
        steps = training.max_steps
    return steps, round(tokens * steps / per_epoch), exact


def _answers_of(config: RunConfig, rows: int, inspection: Any) -> tuple[int, float]:
    """Answers that GRPO gives in an epoch of whole updates, and their tokens with the prompts."""
    answers = max(rows // config.rows_of_update, 1) * config.effective_batch
    mean = inspection.total_tokens / inspection.kept
    return answers, answers * (mean + config.grpo_config.max_completion_length)


def _rows_expected(inspection: Any) -> tuple[int, bool]:
    """Usable rows of the whole source, and whether they were counted rather than extrapolated."""
    if inspection.complete or inspection.expected is None:
        return inspection.kept, inspection.complete
    return round(inspection.kept * inspection.expected.rows / inspection.read), False
