"""A run as one plain file on transformers, peft and trl alone, and as a notebook.

    script(config)                     # Python source that trains the same adapter
    notebook(config, portable=True)    # the same as .ipynb, without a path of this machine

It is written in the manner of the model card's sample_finetune.py: two dictionaries on top, then
logging, model, adapter, data, training, saving. Only what the config uses is in it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3lora import __version__
from phi3lora.config import POCKET, RunConfig
from phi3lora.data.sources import open_source
from phi3lora.training import script_data, script_parts
from phi3lora.training.script_data import code, local_file

OUTPUT = "./checkpoint_dir"
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
# Module → what may be imported from it; an empty list imports the module itself.
IMPORTS: dict[str, list[str]] = {
    "ast": [],
    "csv": [],
    "glob": [],
    "json": [],
    "logging": [],
    "os": [],
    "re": [],
    "sys": [],
    "datasets": [],
    "numpy": [],
    "torch": [],
    "transformers": [],
    "bitsandbytes.functional": ["dequantize_4bit"],
    "datasets.": ["Dataset"],
    "huggingface_hub": ["snapshot_download"],
    "peft": ["LoraConfig", "get_peft_model", "prepare_model_for_kbit_training"],
    "peft.optimizers": ["create_loraplus_optimizer"],
    "safetensors": ["safe_open"],
    "tokenizers": ["Tokenizer"],
    "transformers.": [
        "AutoTokenizer",
        "BitsAndBytesConfig",
        "EarlyStoppingCallback",
        "Phi3ForCausalLM",
    ],
    "transformers.utils": ["is_flash_attn_2_available"],
    "trl": ["SFTConfig", "SFTTrainer"],
}
STANDARD = {"ast", "csv", "glob", "json", "logging", "os", "re", "sys"}
LOGGING = """\
logger = logging.getLogger(__name__)
logging.basicConfig(
    format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
    datefmt="%Y-%m-%d %H:%M:%S",
    handlers=[logging.StreamHandler(sys.stdout)],
)
log_level = train_conf.get_process_log_level()
logger.setLevel(log_level)
datasets.utils.logging.set_verbosity(log_level)
transformers.utils.logging.set_verbosity(log_level)
logger.info("Training: %s", training_config)
"""


@dataclass(frozen=True)
class Section:
    """A part of the script, under its heading."""

    title: str
    source: str


def script(
    config: RunConfig,
    *,
    portable: bool = False,
    token: str | None = None,
    cache_folder: Path | None = None,
) -> str:
    """Python source that trains what the config trains, with the same losses.

    Args:
        portable: name files alone, without the folders of this machine: for publishing.
        token: of the caller, for a private base or dataset; it is not written anywhere.
        cache_folder: where Hub files are kept.

    Raises DataError or ModelError for rows and templates that a plain script cannot read, and
    whatever is wrong with the data or the base.
    """
    sections = _sections(config, token, cache_folder)
    head = _head(config, sections, portable)
    body = "\n\n".join(f"{_heading(part.title)}\n{part.source.strip()}" for part in sections)
    return _tidy(f'"""{head.title}\n"""\n\n{head.source}\n\n{body}\n')


def notebook(
    config: RunConfig,
    *,
    portable: bool = False,
    token: str | None = None,
    cache_folder: Path | None = None,
) -> str:
    """The same as `script`, as a notebook: JSON of nbformat 4.5."""
    sections = _sections(config, token, cache_folder)
    head = _head(config, sections, portable)
    cells = [_cell("markdown", head.title), _cell("code", head.source)]
    for part in sections:
        cells += [_cell("markdown", f"## {part.title}"), _cell("code", part.source)]
    values = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(values, ensure_ascii=False, indent=1) + "\n"


def _cell(kind: str, source: str) -> dict[str, Any]:
    source = _tidy(source).strip("\n")
    identity = hashlib.sha256((kind + source).encode()).hexdigest()[:12]
    cell: dict[str, Any] = {"cell_type": kind, "id": identity, "metadata": {}, "source": source}
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell


def _heading(title: str) -> str:
    line = "#" * (len(title) + 4)
    return f"{line}\n# {title} #\n{line}"


def _tidy(source: str) -> str:
    """Two empty lines at most, one where nothing is defined, and none at the end."""
    source = re.sub(r"\n{4,}", "\n\n\n", source)
    return source.rstrip("\n") + "\n"


def _sections(config: RunConfig, token: str | None, cache_folder: Path | None) -> list[Section]:
    """What follows the head, from the config, its data's first rows and its base's form."""
    from phi3lora.data.reading import recipe_for
    from phi3lora.lora.adapters import lora_arguments
    from phi3lora.models.base import check_base, resolve_path
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_tokenizer

    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    skeleton = _skeleton(check_base(path, config.model.revision, token, cache_folder))
    tokenizer = load_tokenizer(path, config.model.revision, token, cache_folder)
    source = open_source(config.data, token=token, cache_folder=cache_folder)
    detected = recipe_for(config, source).detected
    lora = None if config.adapter == "none" else lora_arguments(skeleton, config)
    adapter = [Section("Adapter", script_parts.adapter(config, skeleton))] if lora else []
    data = [
        script_data.reading(config.data),
        script_data.messages(config.data, detected, source.head),
        script_data.tokens(script_data.marks_of(tokenizer)),
        script_data.split(config),
    ]
    return [
        Section("Hyper-parameters", script_parts.hyper_parameters(config, lora)),
        Section("Logging", LOGGING),
        Section("Model", script_parts.model(config, str(tokenizer.pad_token))),
        *adapter,
        Section("Data", "\n\n".join(data)),
        Section("Training", script_parts.training(config)),
        Section("Saving", script_parts.saving(config)),
    ]


def _skeleton(base: Any) -> Any:
    """The base's modules by name and shape, on no device: no weight is read."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=base.vocabulary,
        hidden_size=base.hidden,
        intermediate_size=base.intermediate,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.key_value_heads,
        pad_token_id=0,
    )
    with torch.device("meta"):
        return Phi3ForCausalLM(config)


# The head


def _head(config: RunConfig, sections: list[Section], portable: bool) -> Section:
    """What the script is, as text; then its imports and constants."""
    what = "every weight of Phi-3" if config.adapter == "none" else "a LoRA on Phi-3"
    title = f": {config.title}" if config.title else ""
    text = [
        f"Train {what}{title}.".replace('"', "'").replace("\\", "/"),
        f"Written by phi3lora {__version__} from a run's configuration, and in need of none of it:",
        f"    pip install {_versions(config)}",
        "It trains what the run trains: the same rows, tokens and seeds, and so the same losses.",
    ]
    if config.adapter == "loralib":
        text.append("The run used loralib's layers; PEFT's compute the same from other beginnings.")
    body = "\n".join(part.source for part in sections)
    return Section("\n\n".join(text), f"{_imports(body)}\n\n{_constants(config, portable)}")


def _versions(config: RunConfig) -> str:
    quantized = config.model.quantization != "none"
    needed = [*LIBRARIES, "bitsandbytes"] if quantized else LIBRARIES
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in needed}
    return " ".join(f"{name}=={version}" for name, version in versions.items())


def _imports(body: str) -> str:
    """Only what the rest uses, standard library first."""
    standard: list[str] = []
    others: list[str] = []
    for module, names in IMPORTS.items():
        module = module.rstrip(".")
        short = "np" if module == "numpy" else module
        if not names and re.search(rf"(?<![\w.]){short}\.", body):
            line = f"import {module}" + (" as np" if short == "np" else "")
            (standard if module in STANDARD else others).append(line)
        used = [name for name in names if re.search(rf"\b{name}\b", body)]
        if used:
            others.append(f"from {module} import {', '.join(used)}")
    others.sort(key=lambda line: (line.startswith("from"), line))
    return "\n".join([*standard, "", *others])


def _constants(config: RunConfig, portable: bool) -> str:
    """MODEL, DATA and OUTPUT, on top, where they are changed."""
    from phi3lora.models.base import portable_name, resolve_path
    from phi3lora.models.hardware import detect_hardware

    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    note = "a Hub id, or a folder"
    if portable_name(path) == POCKET:
        note = "the folder phi3lora/models/pocket/checkpoint of phi3lora"
    if portable and Path(path).expanduser().exists():
        path = Path(path).expanduser().resolve().name
    file, data = local_file(config.data.path), config.data.path
    if file is not None:
        data = file.name if portable else str(file)
    about = "a file of rows" if file else "a dataset of the Hub"
    return "\n".join(
        [
            f"MODEL = {code(path)}  # {note}",
            f"DATA = {code(data)}  # {about}",
            f"OUTPUT = {code(OUTPUT)}",
        ]
    )
