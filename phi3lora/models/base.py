"""The base: which checkpoint it is, whether it is a Phi-3 that can be trained, where its files lie.

    base = check_base(resolve_path(config.model.path, hardware), token=token)
    base.parameters, base.heads, base.max_length
    folder = fetch(base, token=token)

`check_base` reads `config.json` and the list of files, never a weight, so it can run before any
time is spent. The caller's own token is checked first, then the commit is pinned, so that what
was checked is what is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.config import PHI3_MINI, POCKET
from phi3lora.errors import ModelError
from phi3lora.hub.client import (
    INSTEAD,
    HubRequest,
    Unreachable,
    cache_for,
    check_access,
    explained,
    is_hub_id,
)
from phi3lora.models.hardware import Hardware, detect_hardware
from phi3lora.models.phi3 import LONGROPE_START, PHI3
from phi3lora.models.pocket import CHECKPOINT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Loading reads these and nothing else: no pickles, no code from the Hub.
WEIGHTS = ["*.safetensors"]
FILES = ["*.json", *WEIGHTS, "*.jinja", "tokenizer.model", "*.txt"]
NEXT = (
    f"Choose a phi3 checkpoint, such as {PHI3_MINI}, microsoft/Phi-3.5-mini-instruct or `{POCKET}`."
)
OTHER_ARCHITECTURES = {
    "phi3small": (
        "Phi-3-small is built differently (block-sparse attention, code from the Hub); take "
        "microsoft/Phi-3-medium-4k-instruct"
    ),
    "phi3_v": (
        "it is a vision model, with an image encoder that chat data cannot train; its text half is "
        "microsoft/Phi-3.5-mini-instruct"
    ),
    "phi4mm": (
        "it is a multimodal model (vision and speech); its text half is "
        "microsoft/Phi-4-mini-instruct"
    ),
    "phi4_multimodal": (
        "it is a multimodal model (vision and speech); its text half is "
        "microsoft/Phi-4-mini-instruct"
    ),
    "phimoe": (
        "it is a mixture of experts: nearly all of its weights are experts, which are no linear "
        "layers, so that the adapters made here do not reach them and 4 bits do not shrink them; "
        "take microsoft/Phi-3.5-mini-instruct"
    ),
    "phi4flash": "Phi-4-mini-flash is built differently (state-space layers)",
    "phi": "it is a Phi-1 or Phi-2 model, an earlier architecture",
}
SPLIT_COPIES = {"llama", "mistral"}
# More than any of the family has, by far: what is beyond them is an attack or a mistake, and is
# refused before anything of that size is built.
BOUNDS = {
    "vocab_size": 1_000_000,
    "hidden_size": 32_768,
    "intermediate_size": 262_144,
    "num_hidden_layers": 256,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
    "max_position_embeddings": 10_000_000,
}
LONGROPES = {"longrope", "su", "yarn"}  # as it was called over time
LARGEST_CONFIG = 2**20  # bytes of a config.json


@dataclass(frozen=True)
class BaseInfo:
    """What `config.json` says about a base.

    Attributes:
        name: the portable name: a Hub id, `pocket`, or the folder as it was given.
        folder: where it lies on this machine; None for a Hub id not fetched yet.
        commit: the pinned commit of a Hub id.
        parameters: of the whole model.
        max_length: tokens a conversation may have, `max_position_embeddings`.
        switch: tokens past which LongRoPE takes its long factors; None without LongRoPE.
        cache: where its files are kept; for what is private or gated, a folder of its caller's.
    """

    name: str
    folder: Path | None
    commit: str | None
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    tied: bool
    max_length: int
    cache: Path | None = None
    switch: int | None = None

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """`(in, out)` of the linear layers that every decoder layer has."""
        return PHI3.linear(self)

    @property
    def stored(self) -> int:
        """Bytes of its weights as they are published: 16 bits each."""
        return 2 * self.parameters

    @property
    def parameters(self) -> int:
        """Weights of the whole model: layers, embedding, head and norms."""
        layer = sum(rows * columns for rows, columns in self.shapes.values()) + 2 * self.hidden
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden


def resolve_path(path: str, hardware: Hardware) -> str:
    """What `model.path` stands for: a folder or a Hub id.

    `auto` is Phi-3-mini where there is a GPU and the pocket Phi-3 elsewhere.
    """
    if path == "auto":
        path = PHI3_MINI if hardware.device == "cuda" else POCKET
    return str(CHECKPOINT) if path == POCKET else path


def portable_name(path: str) -> str:
    """The base's name on any machine: `pocket` for the bundled folder, else as it is."""
    return POCKET if path in {POCKET, str(CHECKPOINT)} else path


def check_base(
    path: str,
    revision: str | None = None,
    token: str | None = None,
    cache_folder: Path | None = None,
    *,
    weights: bool = True,
) -> BaseInfo:
    """Read the base's `config.json` and say what it is.

    Args:
        path: a folder, `pocket`, a Hub id, or `auto`.
        revision: branch, tag or commit of a Hub id.
        token: of the caller, for private and gated bases.
        cache_folder: where Hub files are kept; a folder for each user where users are strangers.
        weights: False where a folder with the config and the tokenizer alone will do.

    Raises ModelError with the reason when it is no phi3 checkpoint that can be trained, and
    HubError when the Hub does not give it.
    """
    if path in {"auto", POCKET}:
        path = resolve_path(path, detect_hardware())
    folder = Path(path).expanduser()
    if folder.exists():
        files = [file.name for file in folder.iterdir()] if folder.is_dir() else [path]
        if weights or "config.json" not in files:
            _check_files(path, files)
        return _read_config(path, folder / "config.json", folder, None)
    if not is_hub_id(path):
        raise ModelError(
            f"{path}: expected a folder on this machine, a Hub id such as {PHI3_MINI}, or "
            f"`{POCKET}`; there is no such folder. {NEXT}"
        )
    config, cache = _hub_config(path, revision, token, cache_folder)
    return replace(_read_config(path, config, None, config.parent.name), cache=cache)


def fetch(
    base: BaseInfo,
    token: str | None = None,
    cache_folder: Path | None = None,
    *,
    weights: bool = True,
    tell: Callable[[float], None] | None = None,
) -> Path:
    """The folder of the base's files, downloaded at the pinned commit if need be.

    Args:
        weights: without them only the small files come: the tokenizer, its template, the configs.
        tell: hears which share of the bytes has come, 0 to 1; nothing where all are here already.

    Raises HubError when the download fails.
    """
    if base.folder is not None:
        return base.folder
    from huggingface_hub import snapshot_download

    from phi3lora.models.fetching import telling

    with explained(_request(base.name, base.commit, token)):
        folder = snapshot_download(
            base.name,
            revision=base.commit,
            token=token or False,
            cache_dir=base.cache or cache_folder,
            allow_patterns=FILES,
            ignore_patterns=None if weights else WEIGHTS,
            tqdm_class=telling(tell, base.stored) if tell else None,
        )
    return Path(folder)


def _hub_config(
    path: str, revision: str | None, token: str | None, cache_folder: Path | None
) -> tuple[Path, Path | None]:
    """`config.json` of a Hub id and the cache it lies in; an earlier one when offline.

    A cache serves whoever asks it, and cannot tell what was private once the Hub is away. So what
    is private or gated is kept in a part of it for this token.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    own = cache_for(token, Path(cache_folder or HF_HUB_CACHE), open_to_all=False)
    try:
        readable = check_access("model", path, token, revision)
        _check_files(path, list(readable.files))
        cache = cache_folder if readable.open_to_all else own
        with explained(_request(path, revision, token)):
            # By its own name, so that the cache knows where it pointed when the Hub is away.
            config = hf_hub_download(
                path, "config.json", revision=revision, token=token or False, cache_dir=cache
            )
        return Path(config), cache
    except Unreachable:  # an earlier download will do
        for cache in (cache_folder, own):
            kept = try_to_load_from_cache(path, "config.json", revision=revision, cache_dir=cache)
            if isinstance(kept, str):
                return Path(kept), cache
        raise


def _request(path: str, revision: str | None, token: str | None) -> HubRequest:
    return HubRequest(path, "model", revision, token, instead=INSTEAD["model"])


def _check_files(path: str, files: list[str]) -> None:
    """Refuse what no phi3 checkpoint looks like, by its file names alone."""
    endings = {Path(file).suffix for file in files}
    if ".safetensors" in endings and "adapter_config.json" not in files:
        if "config.json" in files:
            return
        raise ModelError(f"{path} has weights but no config.json to say what they are. {NEXT}")
    if "adapter_config.json" in files:
        raise ModelError(
            f"{path} is an adapter, not a base: name the model it was trained on, and the adapter "
            "where an adapter is asked for."
        )
    if ".gguf" in endings:
        raise ModelError(
            f"{path} holds GGUF files, made for llama.cpp; they cannot be trained. Choose the "
            f"original in safetensors. {NEXT}"
        )
    if ".onnx" in endings or "-onnx" in path.lower():
        raise ModelError(
            f"{path} holds ONNX files, made for inference; they cannot be trained. Choose the "
            f"original in safetensors. {NEXT}"
        )
    if any(Path(file).name.startswith("openvino_") for file in files):
        raise ModelError(
            f"{path} holds OpenVINO files, made for inference; they cannot be trained. Choose the "
            f"original in safetensors. {NEXT}"
        )
    if endings & {".bin", ".pt", ".pth"}:
        raise ModelError(
            f"{path} holds pickled weights only, which can run code when they are read. Choose a "
            f"copy in safetensors. {NEXT}"
        )
    raise ModelError(f"{path} holds no weights: expected config.json and *.safetensors. {NEXT}")


def _read_config(path: str, file: Path, folder: Path | None, commit: str | None) -> BaseInfo:
    """BaseInfo from a `config.json`; ModelError when it describes something else."""
    config = read_config(path, file)
    _check_architecture(path, config)
    _check_bounds(path, config)
    try:
        return _info(path, config, folder, commit)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{path}: its config.json is incomplete: {error}. {NEXT}") from None


def read_config(path: str, file: Path) -> dict[str, Any]:
    """The settings in a `config.json`, LongRoPE under its name of today.

    Phi-3-mini-128k called it `su` before July 2024, and so do its copies. Raises ModelError.
    """
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ModelError(f"{path}: its config.json is larger than a mebibyte. {NEXT}")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its config.json cannot be read: {error}. {NEXT}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: its config.json holds no settings. {NEXT}")
    for name in ("rope_scaling", "rope_parameters"):
        rope = config.get(name)
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in LONGROPES:
            config[name] = rope | {"rope_type": "longrope", "type": "longrope"}
    return config


def _check_bounds(path: str, config: dict[str, Any]) -> None:
    """Refuse sizes that no model of the family has, before anything of them is built."""
    for name, most in BOUNDS.items():
        value = config.get(name)
        if value is not None and not (type(value) is int and 0 < value <= most):
            raise ModelError(
                f"{path}: its config.json says {name} {str(value)[:50]}: expected a whole number "
                f"from 1 to {most:,}. {NEXT}"
            )


def _check_architecture(path: str, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if kind in SPLIT_COPIES:
        raise ModelError(
            f"{path} is of type {kind!r}: a copy with split q_proj, k_proj, v_proj, or no Phi-3 at "
            f"all. An adapter trained on it would not fit Microsoft's checkpoint. {NEXT}"
        )
    if kind != PHI3.model_type:
        reason = OTHER_ARCHITECTURES.get(str(kind), "its layers are others")
        raise ModelError(
            f"{path}: expected model_type {PHI3.model_type!r}, got {kind!r}: {reason}. {NEXT}"
        )
    if isinstance(config.get("quantization"), dict):
        raise ModelError(
            f"{path} is a copy for MLX, quantized for Apple's chips; it cannot be trained here. "
            f"Choose the original in safetensors. {NEXT}"
        )
    if quantization := config.get("quantization_config"):
        known = isinstance(quantization, dict)
        method = quantization.get("quant_method", "unknown") if known else "unknown"
        raise ModelError(
            f"{path} is already quantized ({method}). Choose the original: model.quantization "
            f"quantizes it while it is loaded. {NEXT}"
        )


def _info(path: str, config: dict[str, Any], folder: Path | None, commit: str | None) -> BaseInfo:
    heads = int(config["num_attention_heads"])
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    longrope = rope.get("rope_type", rope.get("type")) in LONGROPES
    switch = rope.get("original_max_position_embeddings")
    switch = switch or config.get("original_max_position_embeddings", LONGROPE_START)
    positions = int(config.get("max_position_embeddings", LONGROPE_START))
    return BaseInfo(
        name=portable_name(path),
        folder=folder,
        commit=commit,
        vocabulary=int(config["vocab_size"]),
        hidden=int(config["hidden_size"]),
        intermediate=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        tied=bool(config.get("tie_word_embeddings", False)),
        max_length=positions,
        switch=int(switch) if longrope else None,
    )


def shapes_of(base: BaseInfo) -> PreTrainedModel:
    """The base's modules on torch's meta device: every name and shape, and no weights."""
    import torch
    import transformers

    settings = getattr(transformers, PHI3.config_class)(
        vocab_size=base.vocabulary,
        hidden_size=base.hidden,
        intermediate_size=base.intermediate,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.key_value_heads,
        tie_word_embeddings=base.tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        model: Any = getattr(transformers, PHI3.model_class)(settings)
    model.files_folder = ""
    return model
