"""What stops a training, told in words that say what to do.

with explained(config, lambda: trainer.state.global_step):
    trainer.train()
"""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from phi3lora.config import RunConfig
from phi3lora.errors import TrainingError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch and safetensors report a full disk as errors of their own, with the reason in the text.
_FULL_WORDS = (
    "no space left on device",
    "disk quota exceeded",
    "file too large",
    "os error 28",
    "os error 27",
    "os error 122",
    "pytorchstreamwriter failed writing",
    "iostream error",
    "inline_container.cc",
    "basic_ios::clear",
)
# A GPU has names of its own for it: cuBLAS and cuDNN that get no workspace, the driver's error 2,
# and the allocator's own checks.
_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "driver error: 2",
    "cudacachingallocator",
    "cudaerrormemoryallocation",
)
# What gloo and NCCL say of a process that is gone.
_GONE_WORDS = ("closed by peer", "reset by peer", "ncclremoteerror", "communicator was aborted")


@contextmanager
def explained(config: RunConfig, step: Callable[[], int]) -> Iterator[None]:
    """Turn what stops a training from outside into TrainingError; let anything else pass."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if reason := _reason(error, config):
            raise TrainingError(f"Training ended at step {step()}: {reason}") from error
        raise
    except pickle.UnpicklingError as error:
        # torch would advise to read it all the same, with whatever code it holds.
        raise TrainingError(
            f"Training ended at step {step()}: a file of the checkpoint is damaged, or holds more "
            "than tensors, and was not read. Delete that checkpoint's folder and resume: the one "
            "before it is taken, or the run starts anew."
        ) from error
    except Exception as error:
        # safetensors' own exception derives from Exception alone.
        if type(error).__name__ == "SafetensorError" and is_disk_full(error):
            raise TrainingError(f"Training ended at step {step()}: {_DISK}") from error
        raise


_DISK = (
    "the disk is full. Delete runs that you no longer need, or keep fewer checkpoints "
    "(training_config.save_total_limit), then resume: the last whole checkpoint is kept."
)


_GONE = (
    "another of the processes that train together ended before its time; the log, or its own "
    "machine, says why. Resume the run to go on from its last checkpoint."
)


def not_finite(loss: float, step: int, config: RunConfig) -> TrainingError:
    """The error for a loss that is infinite or not a number, at a step counted from 1."""
    rate = config.training_config.learning_rate
    advice = []
    advice.append(f"lower training_config.learning_rate (now {rate:g}, try {rate / 10:g})")
    if config.model.dtype != "float32" or config.training_config.fp16:
        advice.append("or set model.dtype to float32")
    return TrainingError(
        f"Training ended at step {step}: expected a finite loss, got {loss}. The weights have run "
        f"away, and more steps would not bring them back; {', '.join(advice)}, and start a new run."
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or what caused it, is a disk without room."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return any(words in text for words in _FULL_WORDS)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is memory running out, of the GPU or of the machine."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(words in str(error).lower() for words in _MEMORY_WORDS)


def _reason(error: BaseException, config: RunConfig) -> str:
    """What happened and what to do; empty for an error that is none of ours."""
    if is_disk_full(error):
        return _DISK
    if is_out_of_memory(error):
        return f"memory ran out. To need less: {'; '.join(_less_memory(config))}."
    return _GONE if config.devices > 1 and _is_gone(error) else ""


def _is_gone(error: BaseException) -> bool:
    """Whether the error is another process of the run that does not answer any more."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _GONE_WORDS)


def _less_memory(config: RunConfig) -> list[str]:
    """The settings that need less memory, those with the largest effect first."""
    training, advice = config.training_config, []
    if rows := config.smaller_batch:
        advice.append(
            f"go on with a batch of {rows} instead of {training.per_device_train_batch_size} "
            f"(`phi3lora runs resume RUN --batch-size {rows}`, or the menu of the run), which "
            "trains the same"
        )
    if not training.gradient_checkpointing:
        advice.append("set training_config.gradient_checkpointing to true")
    advice.append(f"lower training_config.max_length (now {training.max_length})")
    if config.model.quantization == "none" and config.adapter == "peft":
        advice.append("set model.quantization to nf4")
    return advice
