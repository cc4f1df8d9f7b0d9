"""Put an adapter into a base, save it as an ordinary PEFT folder, and load one with care.

    model = load_model(config.model, for_training=True)
    model = attach_adapter(model, config, notices)     # PEFT, slices, loralib, or the whole model
    save_adapter(model, folder, config)
    model = load_adapter(load_model(config.model, for_training=False), folder)

A saved adapter is `adapter_config.json` and `adapter_model.safetensors`, names its base by a
portable name, and leaves the base as it is, whatever its initial weights were: any PEFT reads it.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.config import PeftConfig, RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.folder import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    lora_settings,
    read_adapter_config,
    tensor_shapes,
)
from phi3lora.lora.initial import (
    ROUNDS,
    remember_start,
    replaces_base,
    save_as_plain,
    start_from_quantization_error,
)
from phi3lora.lora.loralib import attach_loralib, save_trained
from phi3lora.lora.slices import keep_slices_apart, sliced_arguments
from phi3lora.lora.starting import fill_start
from phi3lora.lora.targets import resolve_targets

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

# Initial weights that come out of the base's own, which is changed to make up for them.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def attach_adapter(
    model: PreTrainedModel, config: RunConfig, notices: list[str] | None = None
) -> PeftModel | PreTrainedModel:
    """The model with what `config.adapter` and `config.peft_config` say, ready to be trained.

    Initial weights depend on `training_config.seed` alone. With `adapter: none` every weight of
    the base is trained; with `loralib` its layers are replaced in place.

    Raises AdapterError for targets, layers or combinations that do not fit the model.
    """
    import torch

    notices = [] if notices is None else notices
    if config.adapter == "none":
        return model.requires_grad_(True)
    if config.peft_config.bias != "none" and not _biases(model):
        notices.append(
            f"peft_config.bias is {config.peft_config.bias!r}, but no layer of this model has a "
            "bias: nothing more is trained."
        )
    torch.manual_seed(config.training_config.seed)
    attached: PeftModel | PreTrainedModel
    if config.adapter == "loralib":
        attached = attach_loralib(model, config.peft_config, notices)
    else:
        attached = _attach_peft(model, config)
    if config.model.adapter is not None:
        fill_start(attached, config, notices)
    return attached


def _biases(model: nn.Module) -> bool:
    return any(name.endswith("bias") for name, _ in model.named_parameters())


def _attach_peft(model: PreTrainedModel, config: RunConfig) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    _check_int8_dora(model, config)
    arguments = lora_arguments(model, config)
    try:
        with warnings.catch_warnings():
            # Its advice is about a conversion that we do ourselves.
            warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA")
            attached = get_peft_model(model, LoraConfig(**arguments))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"peft_config does not fit the model: {error}") from None
    # PEFT would otherwise ask the Hub at every checkpoint whether the vocabulary grew.
    attached.save_pretrained = partial(  # type: ignore[method-assign]
        attached.save_pretrained, save_embedding_layers=False
    )
    _prepare_start(attached, config.peft_config)
    return attached


def _check_int8_dora(model: Any, config: RunConfig) -> None:
    if not config.peft_config.use_dora or config.model.quantization != "int8":
        return
    if model.device.type == "cpu":
        raise AdapterError(
            "peft_config.use_dora: DoRA reads the base's weights at every step, which bitsandbytes "
            "cannot do in 8 bits on a CPU. Set model.quantization to nf4 or none."
        )


def lora_arguments(model: nn.Module, config: RunConfig) -> dict[str, Any]:
    """Arguments of `peft.LoraConfig`, resolved against the model that is loaded.

    Raises AdapterError for targets or slices that the model does not have.
    """
    peft = config.peft_config
    arguments = peft.arguments()
    targets = resolve_targets(model, peft)
    arguments |= {"target_modules": targets, "revision": config.model.revision}
    if not _biases(model):
        arguments["bias"] = "none"  # some servers refuse an adapter that mentions biases
    if peft.init_lora_weights == "loftq":
        arguments["init_lora_weights"] = True  # PEFT's own needs CUDA, and rounds the base anew
    if peft.init_lora_weights == "pissa" and next(model.parameters()).is_cuda:
        # All directions of every layer take tens of minutes on a GPU; PEFT can compute the first.
        arguments["init_lora_weights"] = f"pissa_niter_{ROUNDS}"
    if peft.slices is not None:
        arguments |= sliced_arguments(model, peft, targets)
    return arguments


def _prepare_start(model: PeftModel, peft: PeftConfig) -> None:
    """What a fresh adapter needs beyond PEFT: slices apart, and a start that can be undone."""
    if peft.slices is not None:
        keep_slices_apart(model, peft)
    if peft.init_lora_weights == "loftq":
        start_from_quantization_error(model, Path(str(model.get_base_model().files_folder)))
    elif replaces_base(peft.init_lora_weights):
        remember_start(model)


def save_adapter(model: Any, folder: Path, config: RunConfig) -> None:
    """Write the adapter as a PEFT folder; with `adapter: none` the whole model.

    A loralib run leaves both: the PEFT folder, and its own checkpoint beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.adapter == "loralib":
        save_trained(model, folder, config.peft_config)
    elif hasattr(model, "lora_start"):
        save_as_plain(model, folder)
    else:
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # ours is written when it is published
    if config.adapter != "none":
        _sort_targets(folder / CONFIG)


def _sort_targets(file: Path) -> None:
    """PEFT keeps targets in a set, whose order changes from run to run."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def load_adapter(
    model: PreTrainedModel, folder: Path, notices: list[str] | None = None
) -> PeftModel:
    """The base with an adapter that was checked against it first; frozen, for chat.

    Args:
        model: the base, as `load_model` gives it; it is not changed but for the added layers.
        folder: of the adapter.
        notices: receives a line when the adapter names another base whose shapes are the same.

    Raises AdapterError listing everything that does not fit: files, type, base, shapes.
    """
    from peft import LoraConfig, PeftModel

    settings = check_adapter(model, folder)
    named = settings.get("base_model_name_or_path")
    if notices is not None and named and named != model.name_or_path:
        notices.append(
            f"The adapter says that it was trained on {named}, the base is {model.name_or_path}. "
            "Its shapes fit; answers are only good if the weights are the same."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            known = LoraConfig(**lora_settings(folder, settings))
            return PeftModel.from_pretrained(model, folder, is_trainable=False, config=known)
    except (ValueError, TypeError, RuntimeError, UserWarning) as error:
        raise AdapterError(f"The adapter {folder.name} cannot be loaded: {error}") from None


def check_adapter(model: nn.Module, folder: Path) -> dict[str, Any]:
    """The adapter's `adapter_config.json`, after checking its files and shapes against a base.

    Raises AdapterError.
    """
    settings = read_adapter_config(folder)
    if settings.get("peft_type") != "LORA":
        raise AdapterError(
            f"The adapter {folder.name}: expected peft_type LORA, got "
            f"{settings.get('peft_type')!r}. Choose a LoRA adapter."
        )
    initial = str(settings.get("init_lora_weights")).lower()
    if initial.startswith(CHANGES_BASE):
        raise AdapterError(
            f"The adapter {folder.name} was saved with init_lora_weights {initial!r}, so it fits "
            "a changed copy of its base only. Save it again converted to plain LoRA: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…) in PEFT."
        )
    if problems := _misfits(model, tensor_shapes(folder)):
        shown = "\n".join(f"  {problem}" for problem in problems[:8])
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise AdapterError(
            f"The adapter {folder.name} does not fit this base. It was trained on "
            f"{settings.get('base_model_name_or_path') or 'a base it does not name'}; load that "
            f"one instead.\n{shown}{more}"
        )
    return settings


def _misfits(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Every tensor that has no place in the base, or another width there."""
    modules = dict(model.named_modules())
    problems = [
        _misfit(modules, name.removeprefix(PREFIX), shape) for name, shape in shapes.items()
    ]
    if not shapes:
        problems.append(f"{WEIGHTS} holds no tensors")
    return [problem for problem in problems if problem]


def _misfit(modules: dict[str, nn.Module], name: str, shape: tuple[int, ...]) -> str | None:
    """What is wrong with one tensor; None when it fits. Names are as in the file, less PREFIX."""
    path, lora, part = name.partition(".lora_")
    if not lora:
        path, _, part = name.rpartition(".")
    module = modules.get(path)
    if module is None:
        return f"{path}: the base has no such module"
    expected, actual = _widths(module, part, shape)
    if expected == actual:
        return None
    return f"{name}: expected {expected} in the base, got {actual}"


def _widths(
    module: nn.Module, part: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...] | int, tuple[int, ...] | int]:
    """The base's width at the place of a LoRA tensor, and the tensor's own.

    A is (rank, in), B is (out, rank); an embedding's A is (rank, vocabulary), B (width, rank).
    """
    from torch import nn

    if isinstance(module, nn.Embedding):
        inputs, outputs = module.num_embeddings, module.embedding_dim
    elif isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
    else:
        return tuple(getattr(module, part).shape) if hasattr(module, part) else (), shape
    kind = part.removesuffix(".weight")
    if kind in {"A", "embedding_A"}:
        return inputs, shape[-1]
    if kind in {"B", "embedding_B", "magnitude_vector"}:
        return outputs, shape[0]
    return (tuple(module.weight.shape) if part == "weight" else (outputs,)), shape
