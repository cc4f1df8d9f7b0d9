"""GGUF: what llama.cpp, Ollama and LM Studio read. A whole Phi-3, or an adapter alone.

write_model(merged_folder, Path("pirate-q8_0.gguf"), "q8_0")
write_adapter(adapter_folder, info, Path("pirate-adapter.gguf"))
modelfile(tokenizer, "pirate-q8_0.gguf")         what Ollama builds a model from

Names and metadata are those of llama.cpp's architecture `phi3`, which keeps the fused projections.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from phi3lora.errors import AdapterError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

Precision = Literal["f16", "bf16", "q8_0"]
Report = Callable[[float], None]
MOST_LAYERS = 256  # of a Phi-3 whose adapter is named in llama.cpp's way
FIRST = ".lora_A.weight"
PRECISIONS = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
# What llama.cpp calls a byte-level tokenizer, by a piece of the expression that cuts its words.
BYTE_LEVEL = {"\\p{Lu}\\p{Lt}": "gpt-4o", "\\p{N}{1,3}": "dbrx"}


def write_model(
    folder: Path, target: Path, precision: Precision = "f16", report: Report | None = None
) -> Path:
    """Write a checkpoint of type phi3 as one GGUF file; it appears whole or not at all.

    Args:
        folder: safetensors, config, tokenizer: a merged model, or a base.
        precision: of the matrices; norms and rope factors stay float32.
        report: told the share that is written.

    Raises ModelError for another architecture or a tokenizer that llama.cpp has not.
    """
    import gguf

    config = _config(folder)
    kind = gguf.GGMLQuantizationType[PRECISIONS[precision]]
    with _written_whole(target) as beside:
        writer = gguf.GGUFWriter(beside, "phi3")
        _describe(writer, config, folder.name)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{PRECISIONS[precision]}"])
        _add_vocabulary(writer, folder, config["vocab_size"])
        tensors = [*_tensors(folder), *_rope_factors(config)]
        _write_tensors(writer, tensors, config["num_hidden_layers"], kind, report)
    return target


def write_adapter(adapter: Path, target: Path) -> Path:
    """Write a PEFT adapter as a GGUF adapter for a base's GGUF file, which llama.cpp applies.

    Raises AdapterError for what the format has no place for, saying what to do instead.
    """
    import gguf

    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    check_adapter(settings)
    alpha = float(settings["lora_alpha"])
    with _written_whole(target) as beside:
        writer = gguf.GGUFWriter(beside, "phi3")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_name(_title(adapter.parent.name))
        for name, matrix in _adapter_matrices(adapter, settings, alpha):
            writer.add_tensor(name, matrix)
        _finish(writer)
    return target


def modelfile(
    tokenizer: PreTrainedTokenizerBase, stops: list[str], model: str, adapter: str | None = None
) -> str:
    """An Ollama Modelfile: what to load, the template in Go's notation, where to stop."""
    turns = {role: turn_marks(tokenizer, role) for role in ("system", "user", "assistant")}
    branches = "".join(
        f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}'
        f"{before}{{{{ .Content }}}}{after}"
        for role, (before, after) in turns.items()
    )
    template = f"{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}"
    lines = [
        f"FROM ./{model}",
        *([f"ADAPTER ./{adapter}"] if adapter else []),
        f'TEMPLATE """{template}{turns["assistant"][0]}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines) + "\n"


def turn_marks(tokenizer: PreTrainedTokenizerBase, role: str) -> tuple[str, str]:
    """What a model's template writes before and after the words of a role: found by asking it."""
    turns = [{"role": "user", "content": "\ue000"}]
    if role == "system":
        turns.insert(0, {"role": "system", "content": "\ue001"})
    elif role == "assistant":
        turns.append({"role": "assistant", "content": "\ue001"})
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    asked, said = text.find("\ue000"), text.find("\ue001")
    if role == "user":
        both = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        after = both[asked + 1 :].removesuffix(_prompt(tokenizer))
        return both[:asked], after
    if said < 0:
        return "", ""
    user_before, user_after = turn_marks(tokenizer, "user")
    if role == "system":
        return text[:said], text[said + 1 : asked].removesuffix(user_before)
    return text[asked + 1 : said].removeprefix(user_after), text[said + 1 :].removesuffix(
        str(tokenizer.eos_token or "")
    )


def _prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template adds so that the model answers."""
    turns = [{"role": "user", "content": "\ue000"}]
    with_prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    plain = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    text, without = str(with_prompt), str(plain).removesuffix(str(tokenizer.eos_token or ""))
    return text.removeprefix(without)


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "phi3":
        raise ModelError(
            f"{folder}: GGUF is written for models of type phi3, this one is "
            f"{config.get('model_type')!r}; convert it with llama.cpp's own script."
        )
    return config


def _describe(writer: Any, config: dict[str, Any], name: str) -> None:
    """The model's figures under llama.cpp's names."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    longest = config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings") or longest
    heads = config["num_attention_heads"]
    rotary = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    writer.add_name(_title(name))
    writer.add_context_length(longest)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(rotary * (config["hidden_size"] // heads)))
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10_000.0))
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_sliding_window(config.get("sliding_window") or 0)
    writer.add_vocab_size(config["vocab_size"])
    if "long_factor" in rope:
        scale = longest / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(factor)


def _title(name: str) -> str:
    """A model's name. llama.cpp lets control tokens swallow the white space to their right, as
    Phi-3's do, only in models whose name contains `phi-3`."""
    return name if "phi-3" in name.lower() else f"phi-3 {name}"


# The vocabulary


def _add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Tokens, scores or merges, kinds, special ids and the chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = values["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"{folder}: llama.cpp has no tokenizer of kind {model.get('type')!r}.")
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in values["added_tokens"]}}
    tokens = [f"[PAD{number}]" for number in range(size)]
    for token, number in ids.items():
        tokens[number] = token
    kinds = _kinds(tokens, ids, values["added_tokens"])
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(True)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_words(values["pre_tokenizer"]))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    _add_specials(writer, tokenizer)


def _kinds(tokens: list[str], ids: dict[str, int], added: list[dict[str, Any]]) -> list[int]:
    """Of each token: normal, control, made by the user, a byte, or unused."""
    from gguf import TokenType

    kinds = [TokenType.NORMAL if token in ids else TokenType.UNUSED for token in tokens]
    for number, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[number] = TokenType.BYTE
    for own in added:
        kinds[own["id"]] = TokenType.CONTROL if own["special"] else TokenType.USER_DEFINED
        if own["content"] == "<unk>":
            kinds[own["id"]] = TokenType.UNKNOWN
    return [int(kind) for kind in kinds]


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Sentencepiece's scores: what is merged first scores highest."""
    rank: dict[str, int] = {}
    for place, pair in enumerate(merges):
        rank.setdefault("".join(pair), place)
    return [-float(rank.get(token, len(merges))) if token in rank else 0.0 for token in tokens]


def _words(pre_tokenizer: Any) -> str:
    """llama.cpp's name of the way a byte-level tokenizer cuts text into words."""
    text = json.dumps(pre_tokenizer).replace("\\\\", "\\")
    found = next((name for piece, name in BYTE_LEVEL.items() if piece in text), None)
    if found is None:
        raise ModelError("The tokenizer cuts words in a way that llama.cpp has no name for here.")
    return found


def _add_specials(writer: Any, tokenizer: Any) -> None:
    names = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, number in names.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    if end is not None and end != tokenizer.unk_token_id:
        writer.add_eot_token_id(end)
    writer.add_add_bos_token(bool(getattr(tokenizer, "add_bos_token", False)))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


# Tensors


@dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint: its name here, its shape, and how to read it as float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def _tensors(folder: Path) -> Iterator[Tensor]:
    """All of a checkpoint; only one of them is in memory at a time."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        for name, shape in shapes.items():
            yield Tensor(name, shape, partial(_read, file, name))


def _read(file: Path, name: str) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name).float().numpy()


def _rope_factors(config: dict[str, Any]) -> Iterator[Tensor]:
    """LongRoPE's, which llama.cpp keeps as tensors."""
    import numpy as np

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for key in ("long_factor", "short_factor"):
        if key in rope:
            values = np.array(rope[key], dtype=np.float32)
            name = f"rope_factors_{key.removesuffix('_factor')}"
            yield Tensor(name, values.shape, partial(np.copy, values))


def _write_tensors(
    writer: Any, tensors: list[Tensor], layers: int, kind: Any, report: Report | None
) -> None:
    """First what there is, then the values, in the same order."""
    import gguf
    import numpy as np

    byte = np.dtype(np.uint8)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, layers)
    kinds = [_kind_of(tensor, kind) for tensor in tensors]
    for tensor, own in zip(tensors, kinds, strict=True):
        rows = gguf.quant_shape_to_byte_shape(tensor.shape, own)
        name = f"{_name(tensor.name, names)}.weight"
        writer.add_tensor_info(name, rows, byte, math.prod(rows), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (tensor, own) in enumerate(zip(tensors, kinds, strict=True), 1):
        writer.write_tensor_data(gguf.quants.quantize(tensor.read(), own).view(byte))
        if report is not None:
            report(done / len(tensors))
    writer.close()


def _kind_of(tensor: Tensor, kind: Any) -> Any:
    """Matrices as asked; vectors in float32, and rows that do not fill Q8_0's blocks in f16."""
    import gguf

    if len(tensor.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return gguf.GGMLQuantizationType.F16 if tensor.shape[-1] % block else kind


def _name(name: str, names: Any) -> str:
    """A module's name as llama.cpp has it."""
    plain = name.removesuffix(".weight")
    new = plain if plain.startswith("rope_factors") else names.get_name(plain)
    if new is None:
        raise ModelError(f"{name} is no tensor of a Phi-3, so it has no place in a GGUF file.")
    return str(new)


# An adapter alone


def check_adapter(settings: dict[str, Any]) -> None:
    """AdapterError for what a GGUF adapter cannot say; merging it says everything."""
    refused = {
        "DoRA": settings.get("use_dora"),
        "modules_to_save": settings.get("modules_to_save"),
        "trained biases": settings.get("bias", "none") != "none",
        "an adapter of another kind than LoRA": settings.get("peft_type") != "LORA",
    }
    found = [name for name, used in refused.items() if used]
    if found:
        raise AdapterError(
            f"A GGUF adapter has no place for {' and '.join(found)}. Write the merged model "
            "instead (--to gguf)."
        )


def _adapter_matrices(
    adapter: Path, settings: dict[str, Any], alpha: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs of matrices under llama.cpp's names, B scaled so that one alpha serves all.

    llama.cpp adds `alpha / r · B·A`, r being the rows of A (r, in); PEFT's factor may differ by
    layer (`rank_pattern`, `alpha_pattern`) and is `alpha / √r` for rsLoRA.
    """
    import gguf
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, MOST_LAYERS)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as tensors:
        firsts = [name for name in tensors.keys() if name.endswith(FIRST)]  # noqa: SIM118
        others = set(tensors.keys()) - {*firsts, *(second(name) for name in firsts)}
        if others:
            raise AdapterError(
                f"{adapter}: a GGUF adapter has no place for {min(others)}. Write the merged model "
                "instead (--to gguf)."
            )
        for name in firsts:
            module = name.removeprefix("base_model.model.").removesuffix(FIRST)
            a, b = tensors.get_tensor(name).float(), tensors.get_tensor(second(name)).float()
            factor = _factor(settings, module, a.shape[0]) * a.shape[0] / alpha
            new = _name(module, names)
            yield f"{new}.weight.lora_a", a.numpy()
            yield f"{new}.weight.lora_b", (b * factor).numpy()


def second(first: str) -> str:
    """The name of B beside that of A."""
    return first.removesuffix(FIRST) + ".lora_B.weight"


def _factor(settings: dict[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies a module's update by."""
    patterns = settings.get("alpha_pattern") or {}
    own = next(
        (v for key, v in patterns.items() if module == key or module.endswith(f".{key}")),
        settings["lora_alpha"],
    )
    return float(own) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A place beside the target, which becomes it once the block has gone well."""
    if target.exists():
        raise AdapterError(f"{target} exists already; name another file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    try:
        yield beside
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)
