"""What can be made of a run: a merged model, GGUF and ONNX, a loralib checkpoint, plain code.

    export(run, "merged", Path("my-model"))
    export_code(config, "notebook", Path("train.ipynb"))     # before there is a run

Nothing is overwritten.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, Problem, RunError
from phi3lora.lora import gguf, smaller
from phi3lora.lora.onnx import Provider, check_onnx, write_onnx
from phi3lora.lora.starting import START
from phi3lora.runs.forms import Kind
from phi3lora.runs.store import Run

Precision = Literal[gguf.Precision, smaller.Small, "f32", "int8", "int4"]
Tell = Callable[[str], None]
Share = Callable[[float], None]
CODE = {"script": "train.py", "notebook": "train.ipynb"}
BASE_FILE = "base.gguf"  # what a Modelfile calls the base's file, which its reader has
ARCHIVE = {"script": "train.zip", "notebook": "notebook.zip"}  # for who takes one file


@dataclass(frozen=True)
class Form:
    """How numbers of an exported model are kept, and what will run it.

    Attributes:
        precision: of the matrices; by default f16 in GGUF, f32 in ONNX on a CPU.
        provider: of ONNX.
    """

    precision: Precision | None = None
    provider: Provider = "cpu"


PLAIN = Form()


def default_output(kind: Kind, name: str) -> Path:
    """Where an export goes if nothing is said: here, under the run's name."""
    if kind in CODE:
        return Path(CODE[kind])
    endings = {"merged": "-merged", "gguf": ".gguf", "gguf-adapter": "-adapter.gguf"}
    endings["onnx"] = "-onnx"
    return Path(name + endings.get(kind, ".pt"))


def export(
    run: Run,
    kind: Kind,
    output: Path,
    *,
    token: str | None = None,
    portable: bool = False,
    form: Form = PLAIN,
    tell: Tell = lambda message: None,
    share: Share | None = None,
) -> Path:
    """Write one of these; returns where.

    Args:
        form: of a GGUF or an ONNX model.
        tell: told what is being done.
        share: told how much of a GGUF file is written.

    Raises RunError for a run that has not what is asked for or an output that exists, ConfigError
    for a form that cannot be had here, and what merging, converting and writing the script raise.
    """
    if kind in CODE:
        config = run.config
        if config.model.adapter is not None and (run.folder / START).is_dir():
            config = config.with_values({"model.adapter": str(run.folder / START)})
        return export_code(config, kind, output, token=token, portable=portable)
    if kind != "merged":  # which may go into an empty folder
        _check_new(output)
    if kind in ("gguf", "onnx"):
        return _export_whole(run, kind, output, form, token, tell, share)
    adapter = _adapter(run, kind)
    if kind == "gguf-adapter":
        return _export_gguf_adapter(run, adapter, output, token)
    if kind == "merged":
        from phi3lora.lora.merging import merge

        tell("Merging the adapter into its base")
        return merge(run.config.model, adapter, output, token)
    from phi3lora.lora.loralib import export_loralib

    export_loralib(adapter, output)
    return output


def _export_whole(
    run: Run,
    kind: Kind,
    output: Path,
    form: Form,
    token: str | None,
    tell: Tell,
    share: Share | None,
) -> Path:
    """A model with the adapter in its weights, in somebody else's form."""
    from phi3lora.lora.merging import merge

    if kind == "onnx":
        check_onnx(form.precision, form.provider)
    else:
        _check_gguf(form)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=run.folder) as beside:
        folder = run.result.ready()
        if run.result.kind != "model":
            tell("Merging the adapter into its base")
            folder = merge(run.config.model, folder, Path(beside) / run.id, token)
        if kind == "onnx":
            tell("Building the ONNX model")
            return write_onnx(folder, output, form.precision, form.provider)
        tell("Writing the GGUF file")
        _write_gguf(folder, output, form, Path(beside), share)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        _write_modelfile(tokenizer, output.name, output.with_suffix(".Modelfile"))
    return output


def _check_gguf(form: Form) -> None:
    if form.precision in smaller.SMALL:
        smaller.tool(str(form.precision))
    elif form.precision is not None and form.precision not in gguf.PRECISIONS:
        known = ", ".join([*get_args(gguf.Precision), *smaller.SMALL])
        raise ConfigError(
            [Problem("--precision", f"{form.precision} is not for GGUF; take {known}.")]
        )


def _write_gguf(folder: Path, output: Path, form: Form, beside: Path, share: Share | None) -> None:
    if form.precision not in smaller.SMALL:
        gguf.write_model(folder, output, form.precision or "f16", share)  # type: ignore[arg-type]
        return
    large = gguf.write_model(folder, beside / "f16.gguf", "f16", share)
    smaller.quantize(large, output, form.precision)


def _write_modelfile(tokenizer: Any, model: str, target: Path, adapter: str | None = None) -> None:
    """What Ollama needs to know, beside the file."""
    from phi3lora.data.rendering import stop_tokens

    stops = [str(tokenizer.convert_ids_to_tokens(number)) for number in stop_tokens(tokenizer)]
    target.write_text(gguf.modelfile(tokenizer, stops, model, adapter), encoding="utf-8")


def _export_gguf_adapter(run: Run, adapter: Path, output: Path, token: str | None) -> Path:
    """The adapter alone, and a Modelfile whose first line waits for the base's own file."""
    from phi3lora.models.base import resolve_path
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_tokenizer

    gguf.write_adapter(adapter, output)
    base = run.config.model
    path = resolve_path(base.path, detect_hardware(base.device))
    tokenizer = load_tokenizer(path, base.revision, token)
    _write_modelfile(tokenizer, BASE_FILE, output.with_suffix(".Modelfile"), output.name)
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
