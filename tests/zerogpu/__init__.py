"""ZeroGPU on loopback: the real `spaces` package, asked by a scheduler of our own.

with LoopbackScheduler() as scheduler:
    scheduler.quota["ann"] = 120              # seconds; visitors are told apart by their header
    with space(scheduler, home) as url: …     # the app as a ZeroGPU Space starts it

Not real: the device. A decorated function is forked and computes on this machine's processor.
"""

from tests.zerogpu.scheduler import LoopbackScheduler
from tests.zerogpu.space import space, visitor_header

__all__ = ["LoopbackScheduler", "space", "visitor_header"]
