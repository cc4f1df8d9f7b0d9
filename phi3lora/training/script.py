"""A run as plain code on transformers, peft and trl alone: a script or a notebook, and its rows.

    script(config)                                    # Python source that trains the same adapter
    notebook(config, portable=True)                   # the same as .ipynb
    write_code(config, "script", Path("train.py"))    # and train.jsonl, test.jsonl beside it

It is written in the manner of the model card's sample_finetune.py: two dictionaries on top, then
logging, model, adapter, data, training, saving. Its text stands in `templates/train.py`, which is
Python that can be read and checked as it is; only what the config uses is kept of it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Literal

from phi3lora import __version__
from phi3lora.config import POCKET, RunConfig
from phi3lora.data.rendering import stop_tokens
from phi3lora.training.fallbacks import TRACKERS, needs_bitsandbytes
from phi3lora.training.script_marks import marks_of
from phi3lora.training.script_rows import write_rows
from phi3lora.training.script_values import code, facts, values
from phi3lora.training.template import fill

Kind = Literal["script", "notebook"]
TEMPLATE = Path(__file__).parent / "templates" / "train.py"
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
FILES: dict[Kind, str] = {"script": "train.py", "notebook": "train.ipynb"}
_HEADING = re.compile(r"^#+\n# (.+) #\n#+$", re.MULTILINE)


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
        token: of the caller, for a private base; it is not written anywhere.
        cache_folder: where Hub files are kept.

    Raises ModelError for a chat template that plain code cannot write, and whatever is wrong with
    the base. The data is not looked at: `write_rows` reads it.
    """
    from phi3lora.lora.adapters import lora_arguments
    from phi3lora.lora.trial import check_head
    from phi3lora.models.base import check_base, resolve_path, shapes_of
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_tokenizer

    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    check_head(config)
    skeleton = shapes_of(check_base(path, config.model.revision, token, cache_folder))
    tokenizer = load_tokenizer(path, config.model.revision, token, cache_folder)
    config = _within_reach(config, tokenizer)
    marks = marks_of(tokenizer)
    lora = {} if config.adapter == "none" else lora_arguments(skeleton, config)
    filled = values(config, lora, skeleton, marks, str(tokenizer.pad_token))
    filled["STOPS"] = code(tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer)))
    if portable:
        file, _, name = (config.grpo_config.function or "").rpartition(":")
        filled["FILE, NAME"] = f"{code(Path(file).name)}, {code(name)}"
    filled |= {"__doc__": f'"""{_title(config)}\n"""', "MODEL": _base(path, portable)}
    wanted, text = facts(config, marks), TEMPLATE.read_text(encoding="utf-8")
    return _tidy(fill(text, filled, wanted))


def _within_reach(config: RunConfig, tokenizer: Any) -> RunConfig:
    """Rows are cut at what the base reads, as in a run; packs of rows may be longer."""
    training = config.training_config
    if training.packing or training.max_length <= tokenizer.model_max_length:
        return config
    return config.with_values({"training_config.max_length": tokenizer.model_max_length})


def notebook(
    config: RunConfig,
    *,
    portable: bool = False,
    token: str | None = None,
    cache_folder: Path | None = None,
) -> str:
    """The same as `script`, as a notebook: JSON of nbformat 4.5."""
    text = script(config, portable=portable, token=token, cache_folder=cache_folder)
    _, title, rest = text.split('"""', 2)
    head, *sections = _HEADING.split(rest)
    cells = [_cell("markdown", title), _cell("code", head)]
    for heading, source in zip(sections[::2], sections[1::2], strict=True):
        cells += [_cell("markdown", f"## {heading}"), _cell("code", source)]
    contents = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(contents, ensure_ascii=False, indent=1) + "\n"


def write_code(
    config: RunConfig,
    kind: Kind,
    output: Path,
    *,
    portable: bool = False,
    token: str | None = None,
    cache_folder: Path | None = None,
) -> list[Path]:
    """Write the code to `output` and its rows beside it; an `output` that ends in .zip holds all.

    Returns the files, the code first. Raises what `script` and the reading of the rows raise;
    then nothing is left.
    """
    from phi3lora.models.base import resolve_path
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_tokenizer

    write = notebook if kind == "notebook" else script
    text = write(config, portable=portable, token=token, cache_folder=cache_folder)
    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    tokenizer = load_tokenizer(path, config.model.revision, token, cache_folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as draft:
        name = FILES[kind] if output.suffix == ".zip" else output.name
        made = Path(draft) / name
        made.write_text(text, encoding="utf-8")
        rows = write_rows(config, Path(draft), tokenizer, token=token, cache_folder=cache_folder)
        if output.suffix == ".zip":
            return [_archive([made, *rows], output)]
        return [file.rename(output.parent / file.name) for file in (made, *rows)]


def _archive(files: list[Path], output: Path) -> Path:
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return output


def _cell(kind: str, source: str) -> dict[str, Any]:
    source = _tidy(source).strip("\n")
    identity = hashlib.sha256((kind + source).encode()).hexdigest()[:12]
    cell: dict[str, Any] = {"cell_type": kind, "id": identity, "metadata": {}, "source": source}
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell


def _tidy(source: str) -> str:
    """Two empty lines at most, and none at the end."""
    return re.sub(r"\n{4,}", "\n\n\n", source).rstrip("\n") + "\n"


def _title(config: RunConfig) -> str:
    """What the script is, and what it needs."""
    what = "every weight of Phi-3" if config.adapter == "none" else "a LoRA on Phi-3"
    what += "" if config.method == "sft" else f" by {config.method.upper()}"
    title = f": {config.title}" if config.title else ""
    # A title comes from a person, and must not end the docstring that it stands in.
    first = " ".join(f"Train {what}{title}.".replace('"', "'").replace("\\", "/").split())
    return "\n\n".join(
        [
            first,
            f"Written by phi3lora {__version__} from a run's configuration, and in need of none of "
            f"it:\n    pip install {_versions(config)}",
            "It trains what the run trains: the same rows, tokens and seeds, and so the same "
            "losses.\nThe rows lie beside it, as `export` writes them.",
        ]
    )


def _versions(config: RunConfig) -> str:
    """What must be installed: packages, with the versions that are installed here."""
    needed = list(LIBRARIES)
    if config.model.quantization != "none" or needs_bitsandbytes(config.training_config.optim):
        needed.append("bitsandbytes")
    if config.adapter == "loralib":
        needed.append("loralib")
    if config.method == "grpo" and config.grpo_config.pattern:
        needed.append("google-re2")
    if tracker := TRACKERS.get(config.training_config.report_to):
        needed.append(tracker)
    return " ".join(map(_pinned, needed))


def _pinned(name: str) -> str:
    try:
        return f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
    except importlib.metadata.PackageNotFoundError:
        return name


def _base(path: str, portable: bool) -> str:
    """The base as source; the template's comment says what it may be."""
    from phi3lora.models.base import portable_name

    pocket = portable_name(path) == POCKET
    if portable and Path(path).expanduser().exists():
        path = Path(path).expanduser().resolve().name
    note = "the folder phi3lora/models/pocket/checkpoint of phi3lora"
    return f"{code(path)}  # {note if pocket else 'a Hub id, or a folder'}"
