"""Linear layers whose weights lie in the order in which a CPU multiplies best.

    pack(model)      # on a CPU: weights are reordered in place of the plain ones, not beside them

PyTorch multiplies one or two rows with a plain matrix slowly, and two rows at up to twice the cost
of one. oneDNN, which is part of PyTorch, reorders a weight once and then runs at the speed of
memory, two rows at the cost of one (docs/benchmarks.md has the figures).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 2  # that the order is chosen for; others work too


class Packed(nn.Module):
    """A linear layer without a plain weight."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        # No parameter and no buffer: what walks over those expects plain tensors.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` is (…, in); returns (…, out)."""
        return self._multiply(x, self._weight, self.bias, "none", [], "")

    def dense(self) -> nn.Linear:
        """The plain layer, in memory of its own."""
        return self._plain(self._weight.to_dense())

    def hollow(self) -> nn.Linear:
        """A plain layer of the same shape that holds nothing, for PEFT to build upon."""
        shape = (self.out_features, self.in_features)
        return self._plain(torch.zeros(1, dtype=self._weight.dtype).expand(shape))

    def _plain(self, weight: torch.Tensor) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = self.bias
        return layer.eval()


def pack(model: PreTrainedModel) -> None:
    """Reorder the weights of all plain linear layers of a model on a CPU; elsewhere do nothing.

    A head that shares its weight with the embedding stays as it is.
    """
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    embedding: Any = model.get_input_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer.weight is not embedding.weight:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Packed(layer))


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules that shares every plain weight: PEFT may wrap it as it likes.

    Packed layers are hollow there.
    """
    memory: dict[int, Any] = {
        id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]
    }
    memory |= {id(part): part.hollow() for part in model.modules() if isinstance(part, Packed)}
    copied = copy.deepcopy(model, memory)
    for part in copied.modules():
        part._forward_hooks.clear()  # of adapters that the model has already
    return copied
