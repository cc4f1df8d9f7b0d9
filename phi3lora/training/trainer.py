"""The training: data → model → adapter → trainer → train → save.

    outcome = train(config, folder, emit=log.emit)      # "finished", "stopped" or "paused"

It knows nothing of runs or pages. It goes on by itself from the last whole checkpoint in
`folder/checkpoints`, and leaves the adapter in `folder/adapter`, which plain `peft` loads; with
`adapter: none` all weights in `folder/model`.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase

from phi3lora.config import RunConfig, TrainingConfig
from phi3lora.data.preparation import prepare
from phi3lora.errors import DataError, Phi3LoraError
from phi3lora.events import (
    DOWNLOADING,
    PREPARING,
    Emit,
    Ended,
    Loaded,
    Notice,
    Prepared,
    Resumed,
    Stage,
    by_share,
)
from phi3lora.files import sync
from phi3lora.inputs import check_inputs, fingerprint
from phi3lora.lora.adapters import attach_adapter, save_adapter
from phi3lora.lora.initial import starts_apart
from phi3lora.lora.starting import name_of_start
from phi3lora.lora.targets import count_parameters
from phi3lora.lora.trial import check_head
from phi3lora.methods import REFERRED, REWARDED
from phi3lora.models.base import check_base, fetch, resolve_path
from phi3lora.models.hardware import detect_hardware, free_memory, use_one_gpu
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.training import processes
from phi3lora.training.answering import Answering
from phi3lora.training.callbacks import Outcome, Progress, never
from phi3lora.training.checkpoints import (
    drop_unfinished,
    keep_within,
    newest_whole,
    training_was_over,
)
from phi3lora.training.failures import explained, is_disk_full, not_finite
from phi3lora.training.fallbacks import within_reach
from phi3lora.training.fast.trainer import Resumable
from phi3lora.training.kinds import kind_of
from phi3lora.training.memory import peak_memory
from phi3lora.training.rewards import rewards_of
from phi3lora.versions import library_versions

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    folder: Path,
    emit: Emit,
    should_stop: Callable[[], bool] = never,
    deadline: float | None = None,
    token: str | None = None,
    cache_folder: Path | None = None,
    accept_changes: bool = False,
) -> Outcome:
    """Train what the config says, in a run folder, and tell `emit` all along.

    Args:
        should_stop: asked after every step; True saves a checkpoint and ends with `stopped`.
        deadline: in seconds of `time.monotonic()`; a step that might end later is not begun,
            and the outcome is `paused`.
        token: of the Hub, for a gated base or a private dataset. It is stored nowhere.
        cache_folder: where prepared data is kept for other runs.
        accept_changes: go on even if data, base, options or versions are not those of the start.

    Raises:
        ChangedInputsError: they are not, and nobody said to go on.
        TrainingError: memory or disk ran out, or the loss is not a number.
        Phi3LoraError: the data, the base or the adapter cannot be used; see the message.
    """
    started = time.monotonic()
    if processes.launched():
        processes.join(cpu=config.model.device == "cpu")
    if not processes.is_main():  # one of them reports, and decides when all stop
        emit, should_stop, deadline = _silent, never, None
    progress = Progress(emit, should_stop, deadline)
    if notice := use_one_gpu():
        emit(Notice(message=notice, level="warning"))
    try:
        with explained(config, lambda: progress.step):
            outcome = _train(
                config, Path(folder), progress, emit, token, cache_folder, accept_changes
            )
        processes.forget_sharing()
        free_memory()
    except Exception as error:
        _end(emit, "failed", progress.step, started, error)
        raise
    _end(emit, outcome, progress.step, started)
    return outcome


def _train(
    config: RunConfig,
    folder: Path,
    progress: Progress,
    emit: Emit,
    token: str | None,
    cache_folder: Path | None,
    accept_changes: bool,
) -> Outcome:
    """Prepare the rows, load the base, attach the adapter, fit, save."""
    _describe(config)
    check_head(config)
    hardware = detect_hardware(config.model.device)
    path = resolve_path(config.model.path, hardware)
    with processes.first_on_machine():
        tokenizer = load_tokenizer(path, config.model.revision, token)
        emit(Stage(name=PREPARING))
        data = prepare(
            config,
            tokenizer,
            token=token,
            cache_folder=cache_folder,
            progress=by_share(emit, PREPARING),
        )
        emit(_counted(data))
        base = check_base(path, config.model.revision, token)
        fetch(base, token, tell=by_share(emit, DOWNLOADING))
        emit(Stage(name="loading the model"))

    notices = list(data.notices)
    model: Any = load_model(
        config.model,
        for_training=True,
        token=token,
        notices=notices,
        spread=processes.spreads_weights(),
    )
    inputs = fingerprint(config, data.fingerprint, Path(model.files_folder))
    if processes.is_main():
        progress.again = check_inputs(folder, inputs, accept_changes, notices.append)
    model = attach_adapter(model, config, notices)
    for notice in notices:
        emit(Notice(message=notice, level="warning"))
    if config.model.adapter:
        start = name_of_start(config)
        emit(Notice(message=f"Training goes on from {start}: nothing missing, nothing in vain."))

    emit(Stage(name="training"))
    rows = data.conversations if config.method in REWARDED else data.train
    outcome = fit(config, folder, model, tokenizer, rows, data.test, progress)
    if outcome == "finished":
        emit(Stage(name=f"saving the {config.result}"))
        processes.gather_weights(model)
        if processes.is_main():
            _save(model, tokenizer, folder / config.result, config)
        processes.wait()
    return outcome


def fit(
    config: RunConfig,
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Dataset,
    test_rows: Dataset | None,
    progress: Progress,
) -> Outcome:
    """Train a model that is ready on rows that are ready, from the last whole checkpoint on."""
    device = next(model.parameters()).device.type
    bfloat16 = device == "cpu" or torch.cuda.get_device_capability() >= (8, 0)
    training, notices = within_reach(config.training_config, device, bfloat16)
    for notice in notices:
        progress.emit(Notice(message=notice, level="warning"))
    training = with_precision(training, model)
    _report_into(folder, training.report_to)
    kind = kind_of(config.method)
    args = kind.arguments(
        str(folder / "checkpoints"),
        use_cpu=device == "cpu",
        **_arguments(config, training, test_rows),
        **(config.method_config.arguments() if config.method_config else {}),
        **processes.arguments(),
    )
    trainer = kind.trainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        callbacks=_callbacks(training, tokenizer, test_rows, progress.emit),
        progress=progress,
        fast=training.fast,
        loraplus_lr_ratio=training.loraplus_lr_ratio,
        bad_loss=partial(not_finite, config=config),
        **_own_to_the_method(config),
    )
    packed: Any = trainer.train_dataset
    _check_rows(len(packed), len(train_rows), config)
    progress.emit(_loaded(trainer, config))
    checkpoint = processes.share(
        _last_checkpoint(folder / "checkpoints", progress) if processes.is_main() else None
    )
    if checkpoint and training_was_over(checkpoint) and trainer.take_result(checkpoint):
        progress.step = trainer.state.global_step
        progress.emit(Resumed(step=progress.step))
        _check_weights(model, config, progress.step)
        return progress.outcome
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except BaseException:
        if processes.is_main():
            drop_unfinished(folder / "checkpoints")
        raise
    _check_weights(model, config, progress.step)
    return progress.outcome


def with_precision(training: TrainingConfig, model: Any) -> TrainingConfig:
    """The training with `bf16` and `fp16` decided by the weights, where nothing else was said.

    `bf16: false` says no more than that: float16 weights still need their gradients scaled.
    """
    if training.fp16:
        return training.model_copy(update={"bf16": bool(training.bf16)})
    # A quantized base is multiplied in a precision of its own; what is left of it is float32.
    quantization = getattr(model.config, "quantization_config", None)
    dtype = getattr(quantization, "bnb_4bit_compute_dtype", None) or model.dtype
    on_gpu = next(model.parameters()).device.type == "cuda"
    bf16 = dtype == torch.bfloat16 if training.bf16 is None else training.bf16
    # On a CPU there is no float16 autocast worth its name.
    fp16 = dtype == torch.float16 and on_gpu and not bf16
    return training.model_copy(update={"bf16": bf16, "fp16": fp16})


def _arguments(
    config: RunConfig, training: TrainingConfig, test_rows: Dataset | None
) -> dict[str, Any]:
    """Arguments of TRL's trainer: the config's, less an evaluation that has no rows."""
    arguments = training.arguments()
    if config.method != "sft":
        del arguments["packing"]
    if config.method in REWARDED:
        del arguments["max_length"]  # prompts and answers have limits of their own
    if test_rows is None or len(test_rows) == 0:
        arguments.update(eval_strategy="no", eval_on_start=False)
    # One printed line a log instead of a bar: the log is a file.
    return {**arguments, "disable_tqdm": True, "trackio_static_space_id": False}


def _own_to_the_method(config: RunConfig) -> dict[str, Any]:
    """What the trainer of a method takes beside what all of them take."""
    own: dict[str, Any] = {"start": starts_apart(config)} if config.method in REFERRED else {}
    if config.method in REWARDED:
        limit = config.training_config.max_length
        own |= {"rewards": rewards_of(config.grpo_config), "prompt_limit": limit}
    return own


def _callbacks(
    training: TrainingConfig, tokenizer: Any, test_rows: Dataset | None, emit: Emit
) -> list[Any]:
    """What is asked for beside our progress: an early end, and answers at each evaluation."""
    found: list[Any] = []
    if training.early_stopping_patience is not None:
        found.append(EarlyStoppingCallback(training.early_stopping_patience))
    if training.sample_answers and test_rows is not None:
        number, limit = training.sample_answers, training.max_length
        found.append(Answering(tokenizer, test_rows, number, limit, emit))
    return found


def _check_rows(batches_of: int, rows: int, config: RunConfig) -> None:
    """Raise DataError if not even one batch can be filled, on each of the devices."""
    devices, training = processes.number(), config.training_config
    batch = config.rows_of_pass
    if batches_of >= batch:
        return
    size = max(training.per_device_train_batch_size * batches_of // batch, 1)
    found = f"{rows} rows" + (f", packed into {batches_of}" if training.packing else "")
    on = f" on each of {devices} devices" if devices > 1 else ""
    raise DataError(
        f"data: expected at least one batch of {batch // devices} rows{on} to train on, found "
        f"{found}. Set training_config.per_device_train_batch_size to "
        f"{size}, bring more rows, or hold fewer out (data.test_size)."
    )


def _check_weights(model: Any, config: RunConfig, step: int) -> None:
    """The last update is followed by no loss that would show it: look at the weights."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        here = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if not bool(torch.isfinite(here).all()):
            raise not_finite(float("nan"), step, config=config)


def _last_checkpoint(folder: Path, progress: Progress) -> Path | None:
    """Where to go on from; damaged ones are passed over with a notice."""

    def notify(message: str) -> None:
        progress.emit(Notice(message=message, level="warning"))

    checkpoint = newest_whole(folder, notify)
    if checkpoint is not None:
        keep_within(checkpoint, notify)
    return checkpoint


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, config: RunConfig) -> None:
    """Write the adapter beside its final place and move it there whole."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_adapter(model, unfinished, config)
    tokenizer.save_pretrained(unfinished)
    for file in unfinished.iterdir():
        sync(file)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    sync(folder.parent)


def _report_into(folder: Path, tool: str) -> None:
    """Trackers write into the run folder, wherever the process was started.

    These are their own environment variables; they have no argument for it in TrainingArguments.
    """
    places = {
        "tensorboard": ("TENSORBOARD_LOGGING_DIR", folder / "tensorboard"),
        "trackio": ("TRACKIO_DIR", folder / "trackio"),
        "wandb": ("WANDB_DIR", folder),
    }
    if tool in places:
        name, place = places[tool]
        os.environ[name] = str(place)


def _describe(config: RunConfig) -> None:
    """The log begins with what is trained, and by which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    logger.info("Python %s on %s; %s", platform.python_version(), platform.platform(), versions)
    logger.info("The run's configuration:\n%s", config.to_yaml())


def _counted(data: Any) -> Prepared:
    return Prepared(
        train_rows=len(data.train),
        test_rows=len(data.test) if data.test is not None else 0,
        dropped=dict(data.dropped),
        train_tokens=data.train_tokens,
        supervised_tokens=data.supervised_tokens,
        truncated=data.truncated,
        leaked=data.leaked,
    )


def _loaded(trainer: Resumable, config: RunConfig) -> Loaded:
    model: Any = trainer.model
    trainable, total = count_parameters(model)
    return Loaded(
        device=next(model.parameters()).device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=trainer.attention,
        quantization=config.model.quantization,
        trainable_parameters=trainable,
        total_parameters=total,
        hardware=_named(detect_hardware(config.model.device).name, processes.number()),
        base_commit=_commit(Path(getattr(model, "files_folder", ""))),
    )


def _named(device: str, number: int) -> str:
    return device if number == 1 else f"{number} × {device}"


def _silent(event: Any) -> None:
    """What the other processes say."""


def _commit(folder: Path) -> str:
    """The commit that a base's files belong to: the Hub's cache names their folder by it."""
    return folder.name if folder.parent.name == "snapshots" else ""


def _end(
    emit: Emit, outcome: Any, step: int, started: float, error: Exception | None = None
) -> None:
    """Say how it ended; where the disk is full, the error says it instead."""
    message = ""
    if error is not None:
        message = str(error) if isinstance(error, Phi3LoraError) else f"{error!r}"
    try:
        emit(
            Ended(
                outcome=outcome,
                step=step,
                message=message,
                seconds=time.monotonic() - started,
                peak_memory=peak_memory(),
            )
        )
    except OSError as failure:
        if not is_disk_full(failure):
            raise
