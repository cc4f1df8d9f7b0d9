"""What is checked before a run is launched, so that it fails before any time is spent.

    found = preflight(config, settings, token)
    found.inspection, found.estimate
    [check.level for check in found.checks]     "green", "amber", "red"

Each check says what was found, and if that is not good, what to do about it. Red means that the
run cannot work; amber that it will, but not as you may think.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from phi3lora import words
from phi3lora.checks import Check, Fix
from phi3lora.config import RunConfig
from phi3lora.data.plan import check_held_out
from phi3lora.errors import AdapterError, ConfigError, Phi3LoraError
from phi3lora.hub.preflight import check_hub
from phi3lora.methods import REWARDED
from phi3lora.models.hardware import Hardware
from phi3lora.settings import Settings

GIB = 2**30
SHOWN_ROWS = 12  # that a page can turn to
PREVIEW_ROWS = 5_000  # rows that are read and counted by a preflight
CROWDED = 0.9  # share of the free memory from which a run may fail
TRAINING = "training_config"
FEWEST_PAIRS, MOST_LONGER = 20, 0.8  # pairs from which their lengths say something; a share
LONGEST_LIMIT = 131_072  # tokens that a length limit may be raised to
# Beyond these a value is hardly ever meant; taken from what recipes and papers use, times ten.
LOWEST_RATE, MOST_EPOCHS, MOST_SCALING = 1e-7, 30, 16
UNKNOWN_SAVES = 10  # checkpoints of a run whose steps are not known yet
OPTIMIZER_BYTES = 12  # of a trained parameter in a checkpoint: weight and two moments, float32


@dataclass(frozen=True)
class Preflight:
    """All there is to see before launch; what could not be found out is None."""

    checks: list[Check] = field(default_factory=list)
    inspection: Any = None  # data.inspection.Inspection
    estimate: Any = None  # training.estimate.Estimate
    base: Any = None  # models.base.BaseInfo


@dataclass(frozen=True)
class Elsewhere:
    """The machine on which a run will compute, where that is not this one.

    Attributes:
        disk: bytes that are free on it; 0 where nobody says.
        cards: how many GPUs it has.
    """

    hardware: Hardware
    disk: int = 0
    cards: int = 1


def local_start(name: str) -> Path:
    """An adapter that is named by its place on this machine. Raises AdapterError."""
    from phi3lora.lora.starting import find_start

    return find_start(Path(name).expanduser())


def preflight(
    config: RunConfig,
    settings: Settings,
    token: str | None = None,
    inspection: Any = None,
    tokens_per_second: float | None = None,
    find: Callable[[str], Path] = local_start,
    elsewhere: Elsewhere | None = None,
) -> Preflight:
    """Inspect the data and run every check. Never raises for what a user can mend.

    Args:
        inspection: an earlier one of the same data, which is then not read again.
        tokens_per_second: of an earlier run like this one, for the time.
        find: where the adapter that `model.adapter` names lies.
        elsewhere: the machine that it is for, if it is not this one.
    """
    checks: list[Check] = []
    hardware = elsewhere.hardware if elsewhere else None
    if hardware is None:
        hardware = _attempt(checks, "Hardware", lambda: _hardware(config))
        checks += _hidden_gpu(config)
    checks += _device_checks(config, settings, elsewhere)
    base = _attempt(checks, "Model", lambda: _base(config, hardware, settings, token))
    start = _attempt(checks, "Adapter", lambda: _start(config, find))
    if base and (start or config.model.adapter is None):
        _attempt(checks, "Adapter", lambda: checks.append(_adapter_check(config, base, start)))
    inspection = inspection or (
        _attempt(checks, "Data", lambda: _inspect(config, base, token)) if base else None
    )
    _attempt(checks, "Data", lambda: check_held_out(config))
    estimate = None
    if hardware and base:
        estimate = _attempt(
            checks,
            "Memory",
            lambda: _estimate(config, base, hardware, inspection, tokens_per_second, start),
        )
    checks += [*_data_checks(config, inspection), *_model_checks(config, base, hardware)]
    checks += _function_checks(config, elsewhere)
    checks += _settings_checks(config, estimate)
    checks += _memory_checks(config, base, hardware, inspection, estimate)
    seconds = estimate.seconds if estimate else None
    checks += check_hub(config, token, seconds)
    if elsewhere is None:
        checks.append(_disk_check(config, base, settings.home, estimate))
    elif elsewhere.disk:
        checks.append(_disk_elsewhere(config, base, elsewhere, estimate))
    order = ["Data", "Model", "Adapter", "Settings", "Hardware", "Memory"]
    order += ["Sign-in", "Backup", "Disk"]
    return Preflight(
        sorted(checks, key=lambda check: order.index(check.name)), inspection, estimate, base
    )


def inspection(config: RunConfig, settings: Settings, token: str | None = None) -> Any:
    """The data of a preflight alone. Raises what reading the base's settings or the data does."""
    base = _base(config, _hardware(config), settings, token)
    return _inspect(config, base, token)


def blocking(found: Preflight) -> list[str]:
    """What stands in the way of a launch, a line each; empty when nothing does."""
    return [
        f"{check.name}: {check.found} {check.remedy}".strip()
        for check in found.checks
        if check.level == "red"
    ]


def _attempt(checks: list[Check], name: str, find: Any) -> Any:
    """The result, or None and a red check that says what our error says."""
    try:
        return find()
    except Phi3LoraError as error:
        checks.append(Check(name, "red", str(error)))
        return None


def _hardware(config: RunConfig) -> Any:
    from phi3lora.models.hardware import detect_hardware

    return detect_hardware(config.model.device)


def _hidden_gpu(config: RunConfig) -> list[Check]:
    """A GPU that is there and cannot be used: who trains beside it without a word, pays for it."""
    from phi3lora.models.hardware import hidden_gpu

    reason = None if config.model.device == "cpu" else hidden_gpu()
    remedy = "To train on the CPU all the same, set model.device to cpu."
    return [Check("Hardware", "red", reason, remedy)] if reason else []


def _device_checks(
    config: RunConfig, settings: Settings, elsewhere: Elsewhere | None
) -> list[Check]:
    """Whether as many devices are there as the run wants, and can share its work."""
    if config.devices == 1:
        return []
    return [Check("Hardware", *found) for found in _device_problems(config, settings, elsewhere)]


def _device_problems(
    config: RunConfig, settings: Settings, elsewhere: Elsewhere | None
) -> Iterator[tuple[Literal["amber", "red"], str, str, tuple[Fix, ...]]]:
    from phi3lora.models.hardware import visible_gpus
    from phi3lora.training.launcher import launched, number_here

    wanted, way = config.devices, config.distributed
    one, ddp = Fix("Use one device", {"devices": 1}), Fix("Use ddp", {"distributed": "ddp"})
    if config.model.device == "cpu":
        if way != "ddp":
            yield "red", f"{way} spreads a model over GPUs; a CPU has none.", "Use ddp.", (ddp,)
        say = f"{wanted} processes share this CPU: that tries it out, and is no faster."
        yield "amber", say, "", (one,)
        return
    there = elsewhere.cards if elsewhere else len(visible_gpus())
    here = number_here() if launched() else wanted
    if settings.zero_gpu and elsewhere is None:
        say = f"{wanted} devices are wanted, and ZeroGPU lends one."
        yield "red", say, "Set devices to 1.", (one,)
    elif there == 0:
        rest = "Set devices to 1; to try it out with processes of the CPU, set model.device to cpu."
        yield "red", f"{wanted} devices are wanted, and the machine has no GPU.", rest, (one,)
    elif here > there:
        fix = Fix(f"Use {there}", {"devices": there})
        say = f"{here} devices are wanted, and the machine has {there}."
        yield "red", say, f"Set devices to {there}.", (fix,)
    if way.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        say = f"{way} needs the package deepspeed, which is not installed."
        instead = Fix("Use fsdp2", {"distributed": "fsdp2"})
        yield "red", say, "Install it, or use ddp, or fsdp2, which does the same.", (ddp, instead)


def _base(config: RunConfig, hardware: Any, settings: Settings, token: str | None) -> Any:
    from phi3lora.models.base import check_base, resolve_path
    from phi3lora.models.hardware import detect_hardware

    path = resolve_path(config.model.path, hardware or detect_hardware("cpu"))
    return check_base(path, config.model.revision, token)


def _inspect(config: RunConfig, base: Any, token: str | None) -> Any:
    from phi3lora.data.inspection import inspect
    from phi3lora.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(base.folder or base.name), config.model.revision, token)
    return inspect(config, tokenizer, token=token, preview=SHOWN_ROWS, limit=PREVIEW_ROWS)


def _estimate(
    config: RunConfig,
    base: Any,
    hardware: Any,
    inspection: Any,
    measured: float | None,
    start: Path | None,
) -> Any:
    from phi3lora.training.estimate import estimate_for
    from phi3lora.training.speed import tokens_per_second

    speed = measured or tokens_per_second(config, base, hardware)
    return estimate_for(config, base, hardware, inspection, speed, start)


def _data_checks(config: RunConfig, inspection: Any) -> list[Check]:
    """Rows that are left out or cut, and whether enough are left to train on."""
    if inspection is None:
        return []
    found = f"{inspection.kept:,} rows, {inspection.supervised_tokens:,} supervised tokens."
    few = _too_few_rows(config, inspection)
    odd = _odd_answers(config, inspection.answers, found) if inspection.answers else None
    cut = few or _cut_rows(config, inspection, found)
    check = cut or odd or _left_out(config, inspection, found)
    return [replace(check, found=f"{check.found} Columns not read: {inspection.unread_in_words}.")]


def _function_checks(config: RunConfig, elsewhere: Elsewhere | None) -> list[Check]:
    """Whether a function of one's own is where it will be called; it is not run here."""
    named = config.grpo_config.function
    if config.method not in REWARDED or named is None:
        return []
    without = (Fix("Reward without it", {"grpo_config.function": None}),)
    if elsewhere is not None:
        say = "A function of your own runs on this machine alone, and not on a rented one."
        return [Check("Settings", "red", say, "Train here, or reward without it.", without)]
    file = Path(named.rpartition(":")[0]).expanduser()
    if not file.is_file():
        say = f"There is no file {file}, whose function is to reward answers."
        return [Check("Settings", "red", say, "Name it as FILE.py:NAME, from the root.", without)]
    return [Check("Settings", "green", f"Python code of {file} runs in this training.")]


def _odd_answers(config: RunConfig, answers: Any, found: str) -> Check | None:
    """Amber where the answers teach something else: to be long, or mostly one kind of them."""
    if config.method == "kto":
        good, bad = answers.pairs + answers.good, answers.pairs + answers.bad
        return _unbalanced(config, good, bad, found)
    longer = answers.longer / max(answers.pairs, 1)
    if answers.pairs < FEWEST_PAIRS or longer <= MOST_LONGER:
        return None
    say = f"{found} In {longer:.0%} of the pairs the longer answer is the better one."
    lower = Fix("Weigh the longer part less", {"dpo_config.ld_alpha": 0.5})
    return Check(
        "Data",
        "amber",
        say,
        "The model may learn to be long; look at the pairs, or weigh the longer part less.",
        (lower,) if config.method == "dpo" and config.dpo_config.ld_alpha is None else (),
    )


def _unbalanced(config: RunConfig, good: int, bad: int, found: str) -> Check | None:
    """Amber where one kind of answer weighs more than the other by far; as TRL recommends.

    Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, equation 8.
    """
    kto = config.kto_config
    weighed = kto.desirable_weight * good, kto.undesirable_weight * bad
    if not min(weighed):
        missing = "good" if not weighed[0] else "bad"
        say = f"{found} None of the answers that count is {missing}."
        return Check("Data", "amber", say, "Both kinds teach more than one does.")
    ratio = weighed[0] / weighed[1]
    if 0.5 <= ratio <= 2:
        return None
    weight = round(kto.desirable_weight * good / bad, 2)
    say = f"{found} {good:,} good answers and {bad:,} bad ones weigh {ratio:.2g} to 1."
    fixes = {"kto_config.undesirable_weight": weight}
    return Check("Data", "amber", say, "", (Fix(f"Weigh bad answers by {weight:g}", fixes),))


def _too_few_rows(config: RunConfig, inspection: Any) -> Check | None:
    """Red where not even one pass can be filled; amber where one update cannot."""
    from phi3lora.data.plan import held_out_number

    batch, training = config.rows_of_update, config.training_config
    kept = inspection.kept
    held = held_out_number(kept, config.data.test_size) if inspection.held_out == "rows" else 0
    rows = round(max(kept - held, 0) * inspection.drawn)
    if training.packing:  # full but for the last
        rows = math.ceil(inspection.total_tokens * rows / kept / training.max_length)
    if rows >= batch or not inspection.complete:
        return None
    left = f"{kept:,} rows, {held:,} of them held out" if held else f"{kept:,} rows"
    left += f"; packed, they make {rows:,}" if training.packing else ""
    at_once = config.rows_of_pass
    if rows >= at_once:
        say = f"{left}. That is less than one batch of {batch}."
        lower = Fix("Accumulate less", {f"{TRAINING}.gradient_accumulation_steps": 1})
        return Check(
            "Data", "amber", say, "Lower batch size or accumulation, or add rows.", (lower,)
        )
    size = max(training.per_device_train_batch_size * rows // at_once, 1)
    lower = Fix(f"Use a batch size of {size}", {f"{TRAINING}.per_device_train_batch_size": size})
    return Check(
        "Data",
        "red",
        f"{left}. Not even one pass of {at_once} rows can be filled.",
        f"Lower the batch size to {size}, add rows, or hold fewer out.",
        (lower,) if rows else (),
    )


def _cut_rows(config: RunConfig, inspection: Any, found: str) -> Check | None:
    """Amber where more than a tenth is cut, with the limit that would cut nothing."""
    if inspection.truncated <= inspection.kept / 10:
        return None
    share, longest = inspection.truncated / inspection.kept, inspection.longest
    say = f"{found} {share:.0%} of them are cut; the longest has {longest:,} tokens."
    limit = min(longest, LONGEST_LIMIT)
    fix = Fix(f"Raise to {limit:,}", {f"{TRAINING}.max_length": limit})
    remedy = f"Raise the length limit to {limit:,}, if memory allows."
    return Check("Data", "amber", say, remedy, (fix,))


def _left_out(config: RunConfig, inspection: Any, found: str) -> Check:
    dropped = sum(inspection.dropped.values())
    if dropped > inspection.rows / 10:
        say = f"{found} {dropped:,} cannot be used."
        return Check("Data", "amber", say, "Look at the reasons under the preview.")
    if inspection.notices:
        return Check("Data", "amber", f"{found} {inspection.notices[0]}")
    return Check("Data", "green", found)


def _start(config: RunConfig, find: Callable[[str], Path]) -> Path | None:
    return None if config.model.adapter is None else find(config.model.adapter)


def _adapter_check(config: RunConfig, base: Any, start: Path | None) -> Check:
    """What is trained, tried on a model of shapes; raises AdapterError where it does not fit."""
    from phi3lora.lora.trial import attach_on_trial

    notices: list[str] = []
    try:
        trained, total = attach_on_trial(config, base, start, notices)
    except AdapterError as error:
        fixes = tuple(_start_fixes(config, base, start)) if start else ()
        remedy = _settings_in_words(config, fixes[0].values) if fixes else ""
        return Check("Adapter", "red", str(error), remedy, fixes)
    found = f"{words.count(trained)} of {words.count(total)} parameters are trained."
    if start:
        found += f" Training goes on from {config.model.adapter}."
    return Check("Adapter", "amber" if notices else "green", " ".join([found, *notices]))


def _start_fixes(config: RunConfig, base: Any, start: Path) -> Iterator[Fix]:
    """The options that the adapter was trained with, if the training can then go on from it."""
    from phi3lora.lora.options import options_of
    from phi3lora.lora.trial import attach_on_trial

    try:
        values = options_of(start, base)
    except Phi3LoraError:
        return
    same_library = {name: value for name, value in values.items() if name != "adapter"}
    for wanted in (same_library, values):
        try:
            attach_on_trial(config.with_values(wanted), base, start)
        except Phi3LoraError:
            continue
        yield Fix("Use its options", wanted)
        return


def _settings_in_words(config: RunConfig, values: dict[str, Any]) -> str:
    """Which options a fix would change, as `--set` takes them."""
    changed = config.with_values(values)
    differing = [name for name in values if _option(config, name) != _option(changed, name)]
    told = [f"{name}={json.dumps(_option(changed, name))}" for name in differing]
    return f"It fits with {', '.join(told)}."


def _option(config: RunConfig, name: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in name.split("."):
        value = value[part]
    return value


def _settings_checks(config: RunConfig, estimate: Any) -> list[Check]:
    """Values that are allowed and hardly ever meant, a sentence each."""
    odd = list(_odd_values(config, estimate.steps if estimate else None))
    if not odd:
        return []
    fixes = tuple(fix for _, fix in odd)
    return [Check("Settings", "amber", " ".join(say for say, _ in odd), "", fixes)]


def _odd_values(config: RunConfig, steps: int | None) -> Iterator[tuple[str, Fix]]:
    training, whole = config.training_config, config.adapter == "none"
    usual, most = (2e-5, 1e-3) if whole else (2e-4, 1e-2)
    if training.learning_rate > most:
        say = f"A learning rate of {training.learning_rate:g} usually ruins the model."
        yield say, Fix(f"Use {usual:g}", {f"{TRAINING}.learning_rate": usual})
    elif training.learning_rate < LOWEST_RATE:
        say = f"At a learning rate of {training.learning_rate:g} hardly anything is learnt."
        yield say, Fix(f"Use {usual:g}", {f"{TRAINING}.learning_rate": usual})
    if training.max_steps < 0 and training.num_train_epochs > MOST_EPOCHS:
        say = f"{training.num_train_epochs:g} epochs usually learn the rows by heart."
        yield say, Fix("Use 3", {f"{TRAINING}.num_train_epochs": 3})
    if not whole and config.lora_scaling > MOST_SCALING:
        alpha = 2 * config.peft_config.r
        say = (
            f"Alpha {config.peft_config.lora_alpha} scales the update by {config.lora_scaling:.3g}."
        )
        yield say, Fix(f"Use {alpha}", {"peft_config.lora_alpha": alpha})
    if training.warmup_steps >= 1 and steps is not None and training.warmup_steps >= steps:
        say = f"The warm-up of {training.warmup_steps:g} updates is as long as the run ({steps:,})."
        yield say, Fix("Use a tenth", {f"{TRAINING}.warmup_steps": 0.1})


def _model_checks(config: RunConfig, base: Any, hardware: Any) -> list[Check]:
    """The base, the device it meets, and who may read it."""
    from phi3lora.models.hardware import choose_dtype

    checks = []
    if base:
        checks.append(Check("Model", "green", f"{base.name}, {_parameters(base.parameters)}."))
        if config.training_config.max_length > base.max_length:
            checks[0] = Check(
                "Model",
                "amber",
                f"{base.name} reads {base.max_length:,} tokens; longer conversations are cut "
                "there.",
                "Lower the length limit to that.",
                (
                    Fix(
                        f"Lower to {base.max_length:,}",
                        {f"{TRAINING}.max_length": base.max_length},
                    ),
                ),
            )
    if hardware:
        dtype, notice = choose_dtype(config.model.dtype, hardware)
        slow = hardware.device == "cpu" and base is not None and base.parameters > 5e8
        if slow:
            notice = "A model of this size takes days on a CPU."
        remedy = "Choose pocket as the base, or a machine with a GPU." if slow else ""
        found = f"{hardware.name}, {dtype}."
        checks.append(Check("Hardware", "amber" if notice else "green", notice or found, remedy))
    return checks


def _parameters(number: int) -> str:
    return (
        f"{number / 1e9:.1f} billion parameters"
        if number >= 1e9
        else (f"{number / 1e6:.1f} million parameters")
    )


def _memory_checks(
    config: RunConfig, base: Any, hardware: Any, inspection: Any, estimate: Any
) -> list[Check]:
    """Whether the run fits into what is free, or would if other programs left."""
    if not hardware or not estimate:
        return []
    need, free = estimate.memory_bytes, hardware.memory_free
    found = f"About {words.size(need)} needed, {words.size(free)} free."
    if need <= CROWDED * free:
        return [Check("Memory", "green", found)]
    fixes = tuple(_memory_fixes(config, base, hardware, inspection))
    say = "".join(f" {fix.label}: it fits." for fix in fixes)
    if need > hardware.memory_total:
        found += f" The device has {words.size(hardware.memory_total)}."
        rest = "Choose NF4, a smaller batch or length limit, or gradient checkpointing."
        return [Check("Memory", "red", found, say.strip() or rest, fixes)]
    rest = f"Close other programs, or lower batch size or length limit.{say}"
    return [Check("Memory", "amber", f"{found} It may fail.", rest, fixes)]


def _memory_fixes(config: RunConfig, base: Any, hardware: Any, inspection: Any) -> Iterator[Fix]:
    """Changes after which the run fits: each alone, or together where none is enough."""
    from phi3lora.training.estimate import estimate_for

    def fits(values: dict[str, Any]) -> bool:
        changed = config.with_values(values)
        need = estimate_for(changed, base, hardware, inspection).memory_bytes
        return need <= CROWDED * hardware.memory_free

    wanted = [fix for fix in _savings(config, hardware) if _is_allowed(config, fix.values)]
    enough = [fix for fix in wanted if fits(fix.values)]
    yield from enough
    together: dict[str, Any] = {}
    for number, fix in enumerate([] if enough else wanted, start=1):
        together |= fix.values
        if _is_allowed(config, together) and fits(together):
            yield Fix(
                " and ".join(one.label.lower() for one in wanted[:number]).capitalize(), together
            )
            return


def _savings(config: RunConfig, hardware: Any) -> Iterator[Fix]:
    """What lowers the peak and keeps what is learnt, or nearly."""
    training = config.training_config
    if not training.gradient_checkpointing:
        yield Fix("Compute activations twice", {f"{TRAINING}.gradient_checkpointing": True})
    if training.per_device_train_batch_size > 1:
        values = {
            f"{TRAINING}.per_device_train_batch_size": 1,
            f"{TRAINING}.gradient_accumulation_steps": config.effective_batch // config.devices,
        }
        yield Fix("Use batches of 1", values)
    if config.evaluation.enabled and config.evaluation.batch_size > 1:
        yield Fix("Answer one row at a time", {"evaluation.batch_size": 1})
    if config.devices > 1 and config.distributed == "ddp" and hardware.device == "cuda":
        yield Fix("Spread the weights over the devices", {"distributed": "fsdp2"})
    if config.model.quantization == "none" and hardware.device == "cuda":
        yield Fix("Use 4 bits", {"model.quantization": "nf4"})
    if config.evaluation.enabled and config.devices > 1:  # one device then holds the base whole
        yield Fix("Leave out the final evaluation", {"evaluation.enabled": False})


def _is_allowed(config: RunConfig, values: dict[str, Any]) -> bool:
    try:
        config.with_values(values)
    except ConfigError:
        return False
    return True


def _checkpoints_kept(config: RunConfig, estimate: Any) -> int:
    """How many checkpoints a run will have on the disk at once; without a limit, all it saves."""
    training = config.training_config
    if training.save_strategy == "no":
        saves = 1
    elif training.save_strategy == "epoch":
        saves = math.ceil(training.num_train_epochs)
    else:
        steps = (estimate.steps if estimate else None) or max(training.max_steps, 0)
        every = training.save_steps if training.save_steps >= 1 else steps * training.save_steps
        saves = math.ceil(steps / max(every, 1)) if steps else UNKNOWN_SAVES
    return min(saves, training.save_total_limit or saves)


def _disk_check(config: RunConfig, base: Any, home: Path, estimate: Any) -> Check:
    """Whether checkpoints, the result, the start's copy and the download fit on their disks."""
    kept = _checkpoints_kept(config, estimate)
    own = (kept + 1) * OPTIMIZER_BYTES * (estimate.trainable if estimate else 0)
    copied = estimate.start_bytes if estimate else 0
    fetched, cache = _download(base)
    if fetched and _device(cache) != _device(home):
        other = _room(cache, fetched, f"{words.size(fetched)} to download")
        if other.level != "green":
            return other
        fetched = 0
    need = f"{words.size(own)} needed for checkpoints"
    need += f", {words.size(copied)} for the adapter it starts from" if copied else ""
    need += f", {words.size(fetched)} to download" if fetched else ""
    return _room(home, own + copied + fetched, need)


def _disk_elsewhere(config: RunConfig, base: Any, place: Elsewhere, estimate: Any) -> Check:
    """Whether checkpoints and the base's download fit on the disk of a machine that is bare."""
    kept = _checkpoints_kept(config, estimate)
    own = (kept + 1) * OPTIMIZER_BYTES * (estimate.trainable if estimate else 0)
    fetched = base.stored if base else 0
    says = f"{words.size(own)} needed for checkpoints, {words.size(fetched)} to download"
    found = f"{words.size(place.disk)} free, {says}."
    if own + fetched > place.disk:
        return Check("Disk", "red", found, "Keep fewer checkpoints, or take a larger machine.")
    return Check("Disk", "green", found)


def _room(folder: Path, need: float, says: str) -> Check:
    """Whether so many bytes are free where a folder is, or will be."""
    free = shutil.disk_usage(_existing(folder)).free
    found = f"{words.size(free)} free, {says}."
    if need > free:
        return Check("Disk", "red", found, "Make room, or keep fewer checkpoints.")
    if free - need < GIB:
        return Check("Disk", "amber", found, "Make some room; the run's data needs it too.")
    return Check("Disk", "green", found)


def _download(base: Any) -> tuple[float, Path]:
    """Bytes of the base that are still on the Hub, and the cache that they will lie in."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path((base and base.cache) or HF_HUB_CACHE)
    if not base or base.folder is not None:
        return 0.0, cache
    here = [
        try_to_load_from_cache(base.name, name, revision=base.commit, cache_dir=cache)
        for name in ("model.safetensors", "model.safetensors.index.json")
    ]
    fetched = any(isinstance(found, str) for found in here)
    return (0.0 if fetched else base.stored), cache


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _device(folder: Path) -> int:
    return _existing(folder).stat().st_dev
