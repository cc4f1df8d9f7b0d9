"""Every place where a library is made to do something else, by name.

    with patched(model, args) as names:       # ["attention", "loss", "layers"]
        super().train()

`PATCHES` are what a training changes in its own model, and only while it runs. `CHANGES` lists
what the rest of the package changes in a model or a library, so that nobody has to search for it.
What all of them rely on, with the versions that were tested, stands in `tested.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate.utils import is_peft_model

from phi3lora.training.fast.answers import answer_head
from phi3lora.training.fast.attention import packed_attention
from phi3lora.training.fast.layers import fast_layers
from phi3lora.training.fast.loss import supervised_head

# Who asks for another implementation gets it, and padded batches with it.
REPLACED_ATTENTION = {"sdpa"}
# Arguments of trainers that ask for log-probabilities of answers, by name: importing ORPO's warns.
JUDGING = {"DPOConfig", "KTOConfig", "ORPOConfig", "GRPOConfig"}


@dataclass(frozen=True)
class Patch:
    """One change to a model, for as long as a training runs.

    Attributes:
        what: one sentence that says what is computed instead of what.
        applies: given the base and TRL's arguments, whether it can stand in.
        applied: given the base and TRL's arguments, a context in which it stands in.
    """

    name: str
    what: str
    applies: Callable[[Any, Any], bool]
    applied: Callable[[Any, Any], AbstractContextManager[Any]]


PATCHES = (
    Patch(
        "attention",
        "transformers' `sdpa` gives way to attention document by document, without a mask.",
        lambda base, args: base.config._attn_implementation in REPLACED_ATTENTION,
        lambda base, args: packed_attention(base),
    ),
    Patch(
        "loss",
        "`model(..., supervised_loss=True)` returns sums over supervised tokens, not logits.",
        # Label smoothing needs whole logits, so its loss stays TRL's.
        lambda base, args: args.label_smoothing_factor == 0 and not _judges(args),
        lambda base, args: supervised_head(base),
    ),
    Patch(
        "answers",
        "`model(..., fused_lm_head=True)` reads rows end to end, and the head for answers alone.",
        # A head that is trained gets its gradient from TRL's own.
        lambda base, args: _judges(args) and not _is_trained(base),
        lambda base, args: answer_head(base, getattr(args, "temperature", 1.0)),
    ),
    Patch(
        "layers",
        "PEFT's linear layers, Phi-3's attention, gate and norms run as one function each.",
        # A compiled model sees through PEFT's layers better than through ours.
        lambda base, args: not args.torch_compile,
        lambda base, args: fast_layers(base),
    ),
)


@dataclass(frozen=True)
class Change:
    """A change to a model or a library elsewhere in the package: made by `by`, for good."""

    by: str
    what: str


CHANGES = (
    Change(
        "phi3lora.training.fast.trainer:FastTrainer",
        "Overrides private methods of TRL's and transformers' trainers: rows come rendered, and a "
        "checkpoint keeps what they would forget.",
    ),
    Change(
        "phi3lora.models.loading:_keep_packing_off",
        "bitsandbytes' 4-bit layers are kept from repacking their weights on a CPU.",
    ),
    Change(
        "phi3lora.lora.adapters:attach_adapter",
        "`save_pretrained` of an adapter leaves the base's embedding out, and loralib's writes "
        "its entries alone.",
    ),
    Change(
        "phi3lora.lora.slices:keep_slices_apart",
        "A hook keeps the gradient of each B inside its slices.",
    ),
    Change(
        "phi3lora.hub.xet:watched",
        "huggingface_hub's progress of uploads through Xet is counted by us as well.",
    ),
    Change(
        "phi3lora.ui.app:serve",
        "Gradio looks into its empty queue less often, serves no hot reload on a Space, and finds "
        "the signatures of its components ready.",
    ),
    Change(
        "phi3lora.ui.quick_start:without_stubs",
        "While Gradio is imported it writes no `.pyi` beside its components.",
    ),
    Change(
        "phi3lora.ui.quick_start:one_server",
        "Gradio makes no server after each page that is built, but one when it is launched.",
    ),
    Change(
        "phi3lora.ui.endpoints:fit_mcp",
        "Gradio's MCP tools answer in JSON, and send the app's key to themselves.",
    ),
    Change(
        "phi3lora.chat.patches:patched",
        "All that the chat changes: linear layers in oneDNN's order on a CPU, attention by rows, "
        "and a hook on each layer that an adapter changes.",
    ),
)


def patches(model: Any, args: Any) -> list[Patch]:
    """What `patched` would change."""
    return [patch for patch in PATCHES if patch.applies(base_of(model), args)]


@contextmanager
def patched(model: Any, args: Any) -> Iterator[list[str]]:
    """Change a model for its training; yields the names of the patches that stand in.

    Args:
        model: a Phi-3, or PEFT's model around one; as it was, when the block is left.
        args: of TRL's trainer, which decide what can be replaced.
    """
    chosen = patches(model, args)
    with ExitStack() as stack:
        for patch in chosen:
            stack.enter_context(patch.applied(base_of(model), args))
        yield [patch.name for patch in chosen]


def _judges(args: Any) -> bool:
    """Whether a trainer asks for log-probabilities of answers."""
    return type(args).__name__ in JUDGING


def _is_trained(base: Any) -> bool:
    """Whether the head gets a gradient."""
    return any(parameter.requires_grad for parameter in base.get_output_embeddings().parameters())


def base_of(model: Any) -> Any:
    """The Phi-3 below an adapter."""
    return model.get_base_model() if is_peft_model(model) else model
