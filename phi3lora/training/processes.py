"""Several processes that train one model together: who is who, and what all of them agree on.

    join(cpu=False)              at the start of a process that a launcher started with others
    if is_main(): ...            one process writes files and events
    config = share(config)       what the main one has, in all of them
    with first_on_machine(): ... one of a machine fetches and prepares, the others find it done

In a process that trains alone each of these does nothing. Who a process is stands in its
environment: see `launcher`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from phi3lora.recipes import launch_files
from phi3lora.training.launcher import Sharing, launched, sharing

# The main process may fetch a base and prepare millions of rows while the others wait.
PATIENCE = timedelta(hours=6)


def spreads_weights() -> bool:
    """Whether no process holds all weights, so that they are gathered where they are needed."""
    return launched() and sharing() in ("fsdp2", "zero3")


def prepare(way: Sharing, number: int) -> None:
    """Write accelerate's configuration for a way of sharing into this process's environment.

    As `accelerate launch --config_file` does for the processes that it starts.
    """
    if way == "ddp":
        return
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    ours = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
    wanted = ["--config_file", str(launch_files()[way]), "--num_processes", str(number)]
    arguments, defaults, _ = _validate_launch_command(
        launch_command_parser().parse_args([*wanted, "--main_process_port", "0", "-"])
    )
    if way == "fsdp2":
        os.environ.update(prepare_multi_gpu_env(arguments))
    else:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        os.environ.update(prepare_deepspeed_cmd_env(arguments)[1])
    os.environ.update(ours)


def join(cpu: bool) -> None:
    """Meet the other processes: over NCCL between GPUs, over gloo between processes of a CPU."""
    from accelerate import PartialState

    cpu = cpu or not torch.cuda.is_available()
    if cpu:  # the trainer's own arguments look there, too
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if not dist.is_initialized():
        PartialState(cpu=cpu, timeout=PATIENCE)


def leave() -> None:
    """Part from the others: what the main process does from here on, it does alone."""
    if dist.is_initialized():
        dist.destroy_process_group()
        os.environ["WORLD_SIZE"] = "1"


def forget_sharing() -> None:
    """The training is over: the next model of this process, the proof's, is loaded whole.

    With ZeRO-3 transformers remembers its configuration, and would load no model on a device.
    """
    if launched() and sharing() == "zero3":
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def number() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return not _together() or dist.get_rank() == 0


def share(value: Any) -> Any:
    """The main process's value, in all of them."""
    if not _together():
        return value
    from accelerate.utils import broadcast_object_list

    values = [value if is_main() else None]
    broadcast_object_list(values)
    return values[0]


def agree(value: int) -> int:
    """As `share`, for a small whole number: a few microseconds, asked at every step."""
    if not _together():
        return value
    from accelerate import PartialState

    told = torch.tensor([value], device=PartialState().device)
    dist.broadcast(told, 0)
    return int(told)


def mean(value: float) -> float:
    """The mean of a number over all processes."""
    if not _together():
        return value
    from accelerate import PartialState

    told = torch.tensor([value], dtype=torch.float64, device=PartialState().device)
    dist.all_reduce(told)
    return float(told) / number()


def wait() -> None:
    """Go on when all have come here."""
    if _together():
        from accelerate import PartialState

        PartialState().wait_for_everyone()


@contextmanager
def first_on_machine() -> Iterator[None]:
    """One process of each machine goes through the block before its others do."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not first:
        wait()
    yield
    if first:
        wait()


def arguments() -> dict[str, Any]:
    """Arguments of SFTConfig that hold for several processes alone."""
    if not _together():
        return {}
    # All that is trained takes part in every pass, and no buffer changes.
    return {"ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False}


def gather_weights(model: Any) -> None:
    """Put trained weights that are spread over the processes together again, in the main one.

    For the end of a training: the model is of no use for another step. All processes call it.
    """
    if not spreads_weights():
        return
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                whole = _whole(parameter)
                if is_main():
                    kept = torch.nn.Parameter(whole.detach().cpu(), requires_grad=True)
                    module._parameters[name] = kept


def _whole(parameter: Any) -> torch.Tensor:
    if hasattr(parameter, "full_tensor"):  # FSDP2's
        return torch.as_tensor(parameter.full_tensor())
    if hasattr(parameter, "ds_id"):  # ZeRO-3's
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return torch.as_tensor(parameter.detach().clone())
    return torch.as_tensor(parameter)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
