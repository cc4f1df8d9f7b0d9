"""What a launcher (`torchrun`, `accelerate launch`) says to each process that it starts.

    if launched(): ...        this process is one of several
    config = as_launched(config)
    sharing()                 "ddp", "fsdp2", "zero2" or "zero3"

It is all in the environment: RANK, WORLD_SIZE, LOCAL_RANK, and what accelerate writes down of its
configuration. Nothing heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Literal

from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, Problem

Sharing = Literal["ddp", "fsdp2", "zero2", "zero3"]


def launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process beside others."""
    return "LOCAL_RANK" in environ and int(environ.get("WORLD_SIZE", "1")) > 1


def is_first(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process makes the run, and writes all there is to write."""
    return environ.get("RANK", "0") == "0"


def number_here(environ: Mapping[str, str] = os.environ) -> int:
    """How many of the processes are on this machine."""
    return int(environ.get("LOCAL_WORLD_SIZE", environ.get("WORLD_SIZE", "1")))


def sharing(environ: Mapping[str, str] = os.environ) -> Sharing:
    """How the launcher was told to share the work, as accelerate writes it down."""
    if _is_on(environ, "ACCELERATE_USE_DEEPSPEED"):
        stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return "zero3" if stage == "3" else "zero2"
    return "fsdp2" if _is_on(environ, "ACCELERATE_USE_FSDP") else "ddp"


def as_launched(config: RunConfig, environ: Mapping[str, str] = os.environ) -> RunConfig:
    """The config with as many devices as the launcher started processes.

    Raises ConfigError where they contradict each other, or for a way of sharing that is not ours.
    """
    if problems := list(_refusals(config, environ)):
        raise ConfigError(problems)
    number = int(environ["WORLD_SIZE"])
    return config.with_values({"devices": number, "distributed": sharing(environ)})


def _refusals(config: RunConfig, environ: Mapping[str, str]) -> Iterator[Problem]:
    number = int(environ["WORLD_SIZE"])
    if config.devices not in (1, number):
        yield Problem(
            "devices",
            f"the launcher started {number} processes, and the configuration wants "
            f"{config.devices} devices. Start that many, or leave devices out.",
        )
    if _is_on(environ, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        yield Problem(
            "distributed",
            "tensor, context and sequence parallelism cut a layer or a row into parts, which this "
            "training cannot put together. Leave parallelism_config out of accelerate's "
            "configuration, and use ddp, fsdp2, zero2 or zero3.",
        )
    if _is_on(environ, "ACCELERATE_USE_MEGATRON_LM"):
        yield Problem(
            "distributed", "Megatron-LM is not supported; use ddp, fsdp2, zero2 or zero3."
        )
    if _is_on(environ, "ACCELERATE_USE_FSDP") and environ.get("FSDP_VERSION", "1") != "2":
        yield Problem("distributed", "set fsdp_version to 2 in accelerate's configuration.")


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true")
