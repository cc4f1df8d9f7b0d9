"""Adapters beside one base: read from PEFT folders, applied to the rows that ask for them.

    router = Router(model)
    adapter = router.read(folder)
    router.route([(None, 3), (adapter, 1)])     # the batch: three tokens of the base, one tuned
    model(...)

The base is never touched. PEFT reads an adapter into a twin of the model that shares its weights,
and what it added there is taken over as patches. A patch belongs to one module and changes what
that module said about the adapter's own tokens, in place; the others keep the base's answer. The
layout of the batch is fixed before a pass, so a layer has nothing to find out for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from phi3lora.chat.packing import Packed, twin
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import load_adapter
from phi3lora.models.phi3 import PHI3

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Takes what a module was given and what the base made of it, for some tokens: changes the latter.
Patch = Callable[[torch.Tensor, torch.Tensor], None]
MOST_STRENGTHS = 16  # of one adapter that are kept
KEY = "default"  # PEFT's name for the one adapter of a folder


@dataclass(eq=False)
class Adapter:
    """A patch for each module that an adapter changes, by the module's name."""

    folder: Path
    patches: dict[str, Patch]
    notices: list[str] = field(default_factory=list)
    _scaled: dict[float, Adapter] = field(default_factory=dict)  # newest use last

    def at(self, strength: float) -> Adapter | None:
        """The adapter with its change scaled; itself at 1, and None, which is the base, at 0.

        The tensors are shared, so that a strength costs nothing to keep.
        """
        if strength in (0, 1):
            return self if strength else None
        scaled = self._scaled.pop(strength, None)
        if scaled is None:
            patches = {name: _scaled(patch, strength) for name, patch in self.patches.items()}
            scaled = Adapter(self.folder, patches)
        self._scaled[strength] = scaled
        while len(self._scaled) > MOST_STRENGTHS:
            self._scaled.pop(next(iter(self._scaled)))
        return scaled

    def owns(self, other: Adapter | None) -> bool:
        """Whether that is this adapter, at some strength."""
        return other is self or any(other is scaled for scaled in self._scaled.values())


class LowRank:
    """`y += B A x`, scaled; with DoRA's gain `y = g (y + B A x)`.

    Args:
        down: A, (rank, in).
        up: B, (out, rank), the scaling multiplied in.
        bias: (out), or None.
        gain: (out), DoRA's magnitude over the norm of the tuned weight, or None.
        round_first: cast the product before it is added, as PEFT does over 4- and 8-bit layers.
    """

    def __init__(
        self,
        down: torch.Tensor,
        up: torch.Tensor,
        bias: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        round_first: bool = False,
    ) -> None:
        # Transposed once, in the order of memory that is quickest for a few tokens.
        self.down = down.T  # (in, rank)
        self.up = (up if gain is None else up * gain[:, None]).T.contiguous()  # (rank, out)
        self.bias = bias if gain is None or bias is None else bias * gain
        self.gain, self.round_first = gain, round_first
        self.strength = 1.0

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """`x` is (tokens, in), `y` (tokens, out) and changed in place."""
        low = torch.mm(x.to(self.down.dtype), self.down)  # (tokens, rank)
        if y.dtype == low.dtype and self.bias is None and self.gain is None:
            y.addmm_(low, self.up, alpha=self.strength)
            return
        delta = torch.mm(low, self.up)  # (tokens, out)
        if self.bias is not None:
            delta += self.bias
        if self.strength != 1:
            delta *= self.strength
        if self.gain is not None:
            delta += y * (self.gain - 1)
        y += delta.to(y.dtype) if self.round_first else delta


class Through:
    """The rows go through PEFT's own layer, which holds the base's weights: right for any kind."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        y.copy_(self.layer(x[None])[0])


class Partly:
    """Any patch, of which a part is taken: `y += strength (patched y - y)`."""

    def __init__(self, patch: Patch, strength: float) -> None:
        self.patch, self.strength = patch, strength

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        base = y.clone()
        self.patch(x, y)
        y.copy_(torch.lerp(base.float(), y.float(), self.strength))


def _scaled(patch: Patch, strength: float) -> Patch:
    """A low rank update is scaled as it is added; of anything else the difference is."""
    if not isinstance(patch, LowRank) or patch.gain is not None:
        return Partly(patch, strength)
    scaled = copy(patch)
    scaled.strength = strength
    return scaled


class Router:
    """Knows which tokens of a pass belong to which adapter, and applies each to its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._active: list[tuple[dict[str, Patch], int, int]] = []
        self._hooked: set[str] = set()

    def read(self, folder: Path) -> Adapter:
        """The adapter of a PEFT folder, ready for `route`.

        Raises AdapterError when it is broken, of another kind, or made for another base.
        """
        notices: list[str] = []
        return self.add(load_adapter(twin(self._model), folder, notices), folder, notices)

    def add(self, tuned: nn.Module, folder: Path, notices: list[str]) -> Adapter:
        """What PEFT put into a twin of the model, as patches beside the model itself."""
        modules = dict(self._model.named_modules())
        patches = {name: _patch(name, added, modules[name]) for name, added in _added(tuned)}
        for name in patches.keys() - self._hooked:
            modules[name].register_forward_hook(self._hook(name))
            self._hooked.add(name)
        return Adapter(folder, patches, notices)

    def route(self, spans: Iterable[tuple[Adapter | None, int]]) -> None:
        """Lay out the next pass: how many tokens belong to which adapter, in order.

        Neighbours with the same adapter are patched together.
        """
        self._active = []
        start, last = 0, None
        for adapter, count in spans:
            if adapter is not None and adapter is last:
                patches, first, _ = self._active[-1]
                self._active[-1] = (patches, first, start + count - first)
            elif adapter is not None:
                self._active.append((adapter.patches, start, count))
            start, last = start + count, adapter

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def patch(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            for patches, start, count in self._active:
                if name in patches:
                    given, made = inputs[0][0], output[0]
                    patches[name](given.narrow(0, start, count), made.narrow(0, start, count))

        return patch


def _added(tuned: nn.Module) -> list[tuple[str, Any]]:
    """What PEFT put into the model: the outermost of its layers, by the base's module names."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = tuned.get_base_model()  # type: ignore[operator]
    added: list[tuple[str, Any]] = []
    for name, module in base.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in added[-1:])
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            added.append((name, module))
    return added


def _patch(name: str, added: Any, original: nn.Module) -> Patch:
    """The quick way for LoRA and DoRA on linear layers, PEFT's own layer for the rest."""
    from peft.tuners.lora import LoraLayer

    if any(type(part).__name__ == PHI3.attention_class for part in added.modules()):
        raise AdapterError(
            f"{name} was trained as a whole, and attention cannot be swapped while base and tuned "
            "share a pass. Merge the adapter into its base and load that as a base."
        )
    patch = None
    if isinstance(added, LoraLayer) and KEY in added.lora_A:
        patch = _low_rank(added, original)
    if patch is None and isinstance(original, Packed) and isinstance(added, LoraLayer):
        added.base_layer = original.dense()
    return patch or Through(added)


def _low_rank(layer: Any, original: nn.Module) -> LowRank | None:
    """LoRA or DoRA on a linear layer; None for its other variants."""
    kind = type(layer.lora_variant.get(KEY)).__name__
    if kind not in {"NoneType", "DoraLinearVariant"}:
        return None
    down, up, scaling = layer.lora_A[KEY], layer.lora_B[KEY], layer.scaling[KEY]
    with torch.inference_mode():
        return LowRank(
            down.weight,
            up.weight * scaling,
            up.bias * scaling if up.bias is not None else None,
            _dora_gain(layer, original) if kind == "DoraLinearVariant" else None,
            round_first=type(layer).__name__ != "Linear",
        )


def _dora_gain(layer: Any, original: nn.Module) -> torch.Tensor:
    """Magnitude over the norm of each row of W + BA (arXiv 2402.09353, section 4.1): (out)."""
    from peft.utils.integrations import dequantize_module_weight

    plain = original.dense() if isinstance(original, Packed) else original
    down, up = layer.lora_A[KEY].weight, layer.lora_B[KEY].weight
    weight = dequantize_module_weight(plain).to(down.dtype)
    norm = torch.linalg.norm(weight + layer.scaling[KEY] * (up @ down), dim=1)
    return layer.lora_magnitude_vector[KEY].weight / norm
