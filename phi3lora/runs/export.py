"""What can be made of a run: a merged model, GGUF files, a loralib checkpoint, plain code.

    export(run, "merged", Path("my-model"))
    export_code(config, "notebook", Path("train.ipynb"))     # before there is a run

Nothing is overwritten.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.lora.gguf import Precision
from phi3lora.lora.starting import START
from phi3lora.runs.store import Run

Kind = Literal["loralib", "merged", "gguf", "gguf-adapter", "script", "notebook"]
CODE = {"script": "train.py", "notebook": "train.ipynb"}
ARCHIVE = {"script": "train.zip", "notebook": "notebook.zip"}  # for who takes one file


def default_output(kind: Kind, name: str) -> Path:
    """Where an export goes if nothing is said: here, under the run's name."""
    if kind in CODE:
        return Path(CODE[kind])
    endings = {"merged": "-merged", "gguf": ".gguf", "gguf-adapter": "-adapter.gguf"}
    return Path(name + endings.get(kind, ".pt"))


def export(
    run: Run,
    kind: Kind,
    output: Path,
    *,
    token: str | None = None,
    portable: bool = False,
    precision: Precision = "f16",
) -> Path:
    """Write one of these; returns where. `precision` is that of a GGUF model's matrices.

    Raises RunError for a run that has not what is asked for or an output that exists, and what
    merging, converting and writing the script raise.
    """
    if kind in CODE:
        config = run.config
        if config.model.adapter is not None and (run.folder / START).is_dir():
            config = config.with_values({"model.adapter": str(run.folder / START)})
        return export_code(config, kind, output, token=token, portable=portable)
    if kind == "gguf":
        return _export_gguf(run, output, precision, token)
    adapter = _adapter(run, kind)
    if kind == "gguf-adapter":
        from phi3lora.lora.gguf import write_adapter

        return write_adapter(adapter, output)
    if kind == "merged":
        from phi3lora.lora.merging import merge

        return merge(run.config.model, adapter, output, token)
    from phi3lora.lora.loralib import export_loralib

    _check_new(output)
    export_loralib(adapter, output)
    return output


def _export_gguf(run: Run, output: Path, precision: Precision, token: str | None) -> Path:
    """The whole model as one file, and what Ollama needs to know beside it."""
    from transformers import AutoTokenizer

    from phi3lora.data.rendering import stop_tokens
    from phi3lora.lora.gguf import modelfile, write_model
    from phi3lora.lora.merging import merge

    _check_new(output)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=run.folder) as beside:
        folder = run.result.ready()
        if run.result.kind != "model":
            folder = merge(run.config.model, folder, Path(beside) / run.id, token)
        write_model(folder, output, precision)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = [str(tokenizer.convert_ids_to_tokens(number)) for number in stop_tokens(tokenizer)]
    text = modelfile(tokenizer, stops, output.name)
    output.with_suffix(".Modelfile").write_text(text, encoding="utf-8")
    return output


def export_code(
    config: RunConfig,
    kind: Kind,
    output: Path,
    *,
    token: str | None = None,
    portable: bool = False,
) -> Path:
    """Write the script or the notebook of a config, and its rows beside it; returns where.

    An output that ends in .zip is an archive of them all.
    """
    from phi3lora.training.script import write_code
    from phi3lora.training.script_rows import TEST, TRAIN

    beside = [] if output.suffix == ".zip" else [TRAIN, TEST]
    for path in (output, *(output.parent / name for name in beside)):
        _check_new(path)
    write_code(
        config,
        "notebook" if kind == "notebook" else "script",
        output,
        token=token,
        portable=portable,
    )
    return output


def _adapter(run: Run, kind: Kind) -> Path:
    """The run's adapter, if it has one to be merged or converted."""
    if run.result.kind == "model":
        raise RunError(
            f"Run {run.id} trained every weight: {run.result.folder} is a whole model already, "
            "with no adapter to " + ("merge." if kind == "merged" else "convert.")
        )
    return run.result.ready()


def _check_new(output: Path) -> None:
    if output.exists():
        raise RunError(f"{output} exists already; name another place with --output.")
