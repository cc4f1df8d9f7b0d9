"""What the chat changes in a model that it has loaded, all of it: asked for here and nowhere else.

router = patched(model)
router.route(...)                afterwards the model is for `decoding.advance` alone
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phi3lora.chat.adapters import Router
from phi3lora.chat.decoding import use_rows
from phi3lora.chat.fused import fuse
from phi3lora.chat.packing import pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def patched(model: PreTrainedModel) -> Router:
    """Change a model for the chat; the router puts adapters beside it.

    1. `packing.pack`: on a CPU `nn.Linear` becomes `Packed`, its weight in oneDNN's order.
    2. `decoding.use_rows`: attention goes by rows, an implementation of transformers' own
       `AttentionInterface` named `phi3lora_rows`.
    3. `adapters.Router`: a forward hook on each module that some adapter changes. PEFT only ever
       wraps a twin of the modules (`packing.twin`), which shares their weights.
    4. `fused.fuse`: on a GPU the forwards of norms, attention and angles.
    """
    pack(model)
    use_rows(model)
    if model.device.type == "cuda":
        fuse(model)
    return Router(model)
