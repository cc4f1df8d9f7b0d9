"""A CUDA device that is none: shapes and types are computed, and everything is counted.

    pretend(CARDS["T4"])
    with device() as gpu:
        ...
    gpu.peak, gpu.kernels, gpu.copies, gpu.syncs

It sees devices, types, memory, kernels, copies and synchronizations. It does not see numbers, the
limits of kernels, fragmentation, SDPA's choice of a kernel, or random streams.
"""

from __future__ import annotations

import contextlib
import types
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fake_cuda import efficient

GIB = 2**30
# Operations that launch nothing: views, and memory that is only reserved.
SILENT = {
    "device",
    "view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "split",
    "unbind",
    "squeeze",
    "unsqueeze",
    "alias",
    "detach",
    "as_strided",
    "_unsafe_view",
    "split_with_sizes",
    "lift_fresh",
    "_reshape_alias",
    "unfold",
    "narrow",
    "diagonal",
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "set_",
    "chunk",
    "dropout",  # seen as one operation outside of a training alone, where it drops nothing
}
INTO = {"out", "grad_input"}  # arguments that name where a result is written
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}


@dataclass(frozen=True)
class Card:
    """A GPU by its name, generation and memory in GiB."""

    name: str
    capability: tuple[int, int]
    memory: float


CARDS = {
    "A100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 79.0),
    "L4": Card("NVIDIA L4", (8, 9), 22.0),
    "T4": Card("Tesla T4", (7, 5), 14.6),
}


class Gpu:
    """What happened on the device since `reset`."""

    def __init__(self, all_true: bool = True) -> None:
        self.now = self.peak = 0  # bytes
        self.all_true = all_true  # what `all` answers: of a mask, that no row is padded
        self.reset()
        self.bounds: list[int] = [0, 1]  # of the documents in the row that is computed
        self.values: dict[int, list[int]] = {}  # storages of which the host knows what they hold
        self.fused = False  # whether `sdpa` is one kernel without scores, as a GPU's are
        self._known: dict[int, int] = {}
        self.truths: set[int] = set()  # storages of what answers True
        self.constants: dict[int, Any] = {}  # storages of which every number is this one

    def reset(self) -> None:
        """Count from here; what is held stays held."""
        self.peak, self.kernels, self.traffic = self.now, 0, 0
        self.copies: Counter[str] = Counter()  # `to device`, `to host`
        self.syncs: Counter[str] = Counter()  # by what waited
        self.names: Counter[str] = Counter()

    def launched(self, name: str, moved: Iterable[torch.Tensor]) -> None:
        """Count a kernel, and what it reads and writes unless it is a product."""
        self.kernels += 1
        self.names[name] += 1
        if name not in PRODUCTS:
            self.traffic += sum(map(_bytes, moved))

    def saw(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory once, and until it is gone; rounded as CUDA's allocator does."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = (storage.nbytes() + 511) // 512 * 512
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)
        self.truths.discard(key)
        self.values.pop(key, None)
        self.constants.pop(key, None)

    def known(self, x: Any) -> Any:
        """The number that all of a tensor is, or None; a number is itself."""
        if not isinstance(x, torch.Tensor):
            return x if isinstance(x, int | float | bool) else None
        return self.constants.get(x.untyped_storage()._cdata)


def pretend(card: Card, gpu: Gpu) -> None:
    """Let `torch.cuda` answer as if the card were there."""
    total = int(card.memory * GIB)
    # A fake parameter may be put in the place of another, whoever holds it.
    torch.utils.weakref = types.SimpleNamespace(getweakrefs=lambda _: [])  # type: ignore[attr-defined]
    properties = types.SimpleNamespace(
        major=card.capability[0], minor=card.capability[1], multi_processor_count=100
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda *_: card.capability,
        "get_device_name": lambda *_: card.name,
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (total, total),
        # As torch answers: emulation counts, unless it is asked for the real thing.
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or card.capability >= (8, 0)
        ),
        "memory_reserved": lambda *_: gpu.now,
        "memory_allocated": lambda *_: gpu.now,
        "max_memory_allocated": lambda *_: gpu.peak,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "_lazy_init": lambda: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.amp.grad_scaler.amp_definitely_not_available = lambda: False
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # type: ignore[attr-defined]


class _Fake(FakeTensorMode):
    avoid_device_init = property(lambda self: True)  # type: ignore[assignment]


class _Counting(TorchDispatchMode):
    """Counts every operation, and answers those that would have to read a value."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item"):
            return self._value(args[0])
        if name == "is_nonzero":
            return bool(self._value(args[0]))
        if name == "nonzero":
            return self._nonzero(args[0])
        if name == "to":  # of known values in inference mode: it would try to lay them there
            args[0].constant = None
        if name == "index" and _is_mask(args[1][0]):
            return self._masked(*args)
        self._count_copy(name, args, kwargs)
        if name == "_efficient_attention_backward":
            out = efficient.backward(self.gpu.saw, *args, **kwargs)
        else:
            out = func(*args, **kwargs)
        self._count(name, args, kwargs, out)
        self._follow(name, args, out)
        return out

    def _follow(self, name: str, args: Any, out: Any) -> None:
        """What is one known number throughout: how a loop over tokens learns that it is over."""
        known = [self.gpu.known(x) for x in args]
        told: Any = None
        written = name.endswith("_") and not name.startswith("__")
        if written and args and isinstance(args[0], torch.Tensor):
            self.gpu.constants.pop(args[0].untyped_storage()._cdata, None)
        elif name == "full" and len(args) > 1:
            told = args[1]
        elif name in ("bitwise_or", "__or__") and any(x is not None and x for x in known):
            told = True
        elif name in ("bitwise_and", "__and__") and any(x is not None and not x for x in known):
            told = False
        elif name in ("bitwise_not", "__invert__") and known[0] is not None:
            told = not known[0]
        elif name == "max" and len(args) == 1:
            told = known[0]
        elif name == "eq" and None not in known:
            told = bool(known[0] == known[1])
        if told is not None and _on_gpu(out):
            self.gpu.constants[out.untyped_storage()._cdata] = told

    def _value(self, x: torch.Tensor) -> Any:
        self.gpu.syncs["item"] += x.device.type == "cuda"
        if (told := self.gpu.known(x)) is not None:
            return told
        if x.dtype == torch.bool:
            return x.untyped_storage()._cdata in self.gpu.truths
        return 1.0 if x.dtype.is_floating_point else 1

    def _nonzero(self, x: torch.Tensor) -> torch.Tensor:
        """All of it: the most there may be."""
        self.gpu.syncs["nonzero"] += 1
        return torch.empty((x.numel(), x.dim()), dtype=torch.int64, device=x.device)

    def _masked(self, x: torch.Tensor, indices: Any) -> torch.Tensor:
        """What `x[mask]` gives where the mask is true everywhere: the most there may be."""
        mask = indices[0]
        self.gpu.syncs["nonzero"] += mask.device.type == "cuda"
        found = x.new_empty((mask.numel(), *x.shape[mask.dim() :]))
        self._count("index", (x, mask), {}, found)
        return found

    def _count_copy(self, name: str, args: Any, kwargs: Any) -> None:
        if name not in ("_to_copy", "copy_"):
            return
        source = args[0] if name == "_to_copy" else args[1]
        target = kwargs.get("device") if name == "_to_copy" else args[0].device
        if target is None:
            return
        ends = source.device.type, torch.device(target).type
        if ends == ("cpu", "cuda"):
            self.gpu.copies["to device"] += 1
        elif ends == ("cuda", "cpu"):
            self.gpu.copies["to host"] += 1

    def _count(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        read = {key: value for key, value in kwargs.items() if key not in INTO}
        ins, outs = ([x for x in tree_leaves(t) if _on_gpu(x)] for t in ((args, read), out))
        for tensor in outs:
            self.gpu.saw(tensor)
            if name == "all" and self.gpu.all_true:
                self.gpu.truths.add(tensor.untyped_storage()._cdata)
        writes = name.endswith("_") or len(read) < len(kwargs)
        if (ins or outs) and name not in SILENT and (writes or not _only_views(ins, outs)):
            self.gpu.launched(name, (*ins, *outs))


class _Lists(TorchFunctionMode):
    """What is not seen below: values that are read or copied there, and attention's one kernel."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist and isinstance(args[0], FakeTensor):
            return _listed(self.gpu, args[0])
        if func is torch.nn.functional.scaled_dot_product_attention and self.gpu.fused:
            return torch.empty_like(args[0])  # without a gradient: answers are given
        if (
            func is torch.tensor
            and torch.device((kwargs or {}).get("device") or "cpu").type == "cuda"
        ):
            self.gpu.copies["to device"] += 1
            made = func(*args, **{**(kwargs or {}), "device": "cpu"})
            return torch.empty(made.shape, dtype=made.dtype, device="cuda")
        return func(*args, **(kwargs or {}))


class _OneNorm:
    """PyTorch's norm for GPUs, which is one kernel there; a fake one is taken apart into eight."""

    packet = torch.ops.aten._fused_rms_norm

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def __call__(self, x: torch.Tensor, _: list[int], weight: torch.Tensor, epsilon: float) -> Any:
        out = torch.empty_like(x)
        scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        self.gpu.launched("_fused_rms_norm", (x, weight, out, scale))
        return out, scale

    def __getattr__(self, name: str) -> Any:
        return getattr(self.packet, name)  # its overloads, which PyTorch asks for


def _is_mask(index: Any) -> bool:
    return index is not None and index.dtype == torch.bool


def _listed(gpu: Gpu, x: torch.Tensor) -> Any:
    gpu.syncs["tolist"] += x.device.type == "cuda"
    if x.dtype == torch.int32 and x.dim() == 1:
        return list(gpu.values.get(x.untyped_storage()._cdata, gpu.bounds))
    return _ones(tuple(x.shape), 1.0 if x.dtype.is_floating_point else 1)


def _ones(shape: tuple[int, ...], one: float) -> Any:
    return [_ones(shape[1:], one) for _ in range(shape[0])] if shape else one


def _only_views(ins: list[torch.Tensor], outs: list[torch.Tensor]) -> bool:
    """Whether all that comes out lies where something went in."""
    given = {x.untyped_storage()._cdata for x in ins}
    return all(x.untyped_storage()._cdata in given for x in outs)


def _on_gpu(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.device.type == "cuda"


def _bytes(x: torch.Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


@contextlib.contextmanager
def device(gpu: Gpu) -> Iterator[FakeTensorMode]:
    """Tensors on `cuda` are fake inside."""
    mode = _Fake(allow_non_fake_inputs=True)
    FakeTensor.tolist = lambda self: _listed(gpu, self)  # type: ignore[method-assign]
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.ops.aten._fused_rms_norm = _OneNorm(gpu)
    try:
        with mode, _Counting(gpu), _Lists(gpu):
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
