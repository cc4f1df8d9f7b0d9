"""Initial weights that come from the base: PiSSA, OLoRA, LoftQ, and how they end up as plain LoRA.

PiSSA and OLoRA take the base's main directions B₀A₀ into the adapter and out of the base, which is
then another one. Saved as they are, they would fit that changed base only. Since

    (W − s·B₀A₀) + s·BA  =  W + s·(BA − B₀A₀)  =  W + s·[B, −B₀]·[A; A₀],

the result is saved as a plain adapter of twice the rank on the untouched base.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel

REPLACING = ("pissa", "olora")
SPARE, ROUNDS = 32, 16  # of subspace iteration: directions beyond the rank, and passes


def replaces_base(initial: bool | str) -> bool:
    """Whether these initial weights are taken out of the base."""
    return isinstance(initial, str) and initial.startswith(REPLACING)


def starts_apart(config: RunConfig) -> bool:
    """Whether what a preference is learnt against is the adapter at its start, and not the base.

    Initial weights that are taken out of the base make the base another one without them.
    """
    fresh = config.peft_config.init_lora_weights in (True, "gaussian")
    wants_base = config.method == "dpo" and config.dpo_config.reference == "base"
    return not fresh or (config.model.adapter is not None and not wants_base)


def remember_start(model: Any) -> None:
    """Keep A₀ and B₀ of a freshly attached adapter, on the CPU, to be taken off when it is saved.

    Raises AdapterError when the base is too narrow for the rank.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            a: Any = module.lora_A["default"]  # (rank, in)
            rank, rows = module.r["default"], a.weight.shape[0]
            if rows < rank:
                raise AdapterError(
                    f"peft_config.r: {rank} directions are asked for, {path} has {rows}. Lower "
                    "the rank, or set init_lora_weights to true."
                )
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    model.lora_start = {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in state.items()
        if ".lora_" in name
    }


def save_as_plain(model: Any, folder: Path) -> None:
    """Write an adapter whose start was taken out of the base as plain LoRA of twice the rank."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    start: dict[str, torch.Tensor] = model.lora_start
    plain = {
        name: _with_start(name, tensor.detach().cpu(), start.get(name)).contiguous()
        for name, tensor in state.items()
    }
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _doubled(model.peft_config["default"]).save_pretrained(str(folder))


def _with_start(name: str, tensor: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """[A; A₀] for A (rank, in), [B, −B₀] for B (out, rank); other tensors as they are."""
    import torch

    kind = name.partition(".lora_")[2].partition(".")[0]
    if start is None or kind not in {"A", "B", "embedding_A", "embedding_B"}:
        return tensor
    if kind.endswith("A"):
        return torch.cat([tensor, start.to(tensor.dtype)], dim=0)
    return torch.cat([tensor, -start.to(tensor.dtype)], dim=1)


def _doubled(config: LoraConfig) -> LoraConfig:
    """The settings of twice the rank at the same scale, with a start that changes no base."""
    plain: Any = copy.deepcopy(config)
    factor = math.sqrt(2) if config.use_rslora else 2  # scale: alpha / √rank, or alpha / rank
    plain.r, plain.lora_alpha = 2 * config.r, factor * config.lora_alpha
    plain.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    plain.alpha_pattern = {
        name: factor * alpha for name, alpha in (config.alpha_pattern or {}).items()
    }
    plain.init_lora_weights = True
    plain.inference_mode = True
    return plain


def start_from_quantization_error(model: PeftModel, folder: Path) -> None:
    """LoftQ on a base in 4 bits: A and B begin as the best rank-r repair of what was rounded off.

    Source: Li et al., LoftQ (arXiv 2310.08659), one iteration, since the base is already rounded.

    Args:
        model: with a plain adapter on `bitsandbytes` 4-bit layers.
        folder: of the base's unquantized weights, in safetensors.
    """
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        weight: Any = module.get_base_layer().weight
        if getattr(weight, "quant_state", None) is None:
            continue  # an embedding: it is not quantized
        exact = _tensor(folder, f"{path.removeprefix('base_model.model.')}.weight")
        rounded = dequantize_4bit(weight.data, weight.quant_state).float()  # (out, in)
        rank, scale = module.r["default"], module.scaling["default"]
        u, s, v = _directions(exact.to(rounded) - rounded, rank)
        root = (s / scale).sqrt()
        _set(module.lora_A["default"], root[:, None] * v)
        _set(module.lora_B["default"], u * root)


def _directions(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first singular directions: u (out, rank), s (rank), v (rank, in).

    All of them are computed on a CPU. On a GPU, where that takes tens of minutes for a whole model,
    these alone, by subspace iteration; docs/decisions.md says how near they come.
    """
    import torch

    if matrix.is_cuda:
        return _by_iteration(matrix, rank)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], v[:rank]


def _by_iteration(
    matrix: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same, nearly: Halko et al. 2011, algorithm 4.4 (arXiv 0909.4061)."""
    import torch

    u, s, v = torch.svd_lowrank(matrix, q=min(rank + SPARE, *matrix.shape), niter=ROUNDS)
    return u[:, :rank], s[:rank], v[:, :rank].t()


def _set(layer: Any, value: torch.Tensor) -> None:
    layer.weight.data = value.to(layer.weight).contiguous()


def _tensor(folder: Path, name: str) -> torch.Tensor:
    """One tensor of a checkpoint, found by name in its safetensors files."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  (it is no dict)
                return tensors.get_tensor(name)
    raise AdapterError(
        f"peft_config.init_lora_weights: 'loftq' needs the unquantized {name}, which the base's "
        "files do not have."
    )
