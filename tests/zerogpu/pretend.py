"""Five lies that make the real `spaces` package run beside a CPU build of PyTorch.

All else is the package's own: asking the scheduler, forking, streaming back, quota, queue, refusal.
"""

from __future__ import annotations

from typing import Any


def is_in_bad_fork() -> bool:
    """Of this module, because it is pickled."""
    return False


def pretend() -> None:
    """Import `spaces` in ZeroGPU mode where there is no CUDA."""
    import bitsandbytes  # noqa: F401 - of a CPU build, as long as this one is not denied
    import torch

    anything: Any = torch
    anything.version.cuda = "12.8"
    anything._C._cuda_init = lambda: None
    anything.cuda._is_in_bad_fork = is_in_bad_fork
    import spaces.zero

    zero: Any = spaces.zero
    zero.torch.init = lambda uuid: None
    zero.torch.move = lambda callback=None: None
