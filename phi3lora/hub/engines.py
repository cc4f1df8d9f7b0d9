"""Lines that serve what was published, for the engines that people have.

serving_lines("microsoft/Phi-3.5-mini-instruct", "ann/pirate", adapter_settings)
cannot_serve(adapter_settings)         why an engine would refuse the adapter by itself

Limits of adapters in vLLM: https://docs.vllm.ai/en/latest/features/lora.html, its `PEFTHelper` and
`LoRAConfig.max_lora_rank`; in TGI: https://huggingface.co/docs/text-generation-inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM sets memory aside for
DEFAULT_RANK = 16  # of vLLM, where nothing is said


def serving_lines(base: str, repo: str, settings: Mapping[str, Any] | None) -> list[str]:
    """Commands, one for each engine.

    Args:
        settings: `adapter_config.json`; None for a whole model.
    """
    if settings is None:
        return [
            f"vllm serve {repo}",
            f"text-generation-launcher --model-id {repo}",
            f"transformers serve {repo}",
        ]
    own = f"phi3lora serve --adapter {repo}"
    if cannot_serve(settings):
        return [own]
    name, rank = repo.rpartition("/")[2], room(settings)
    flag = f" --max-lora-rank {rank}" if rank > DEFAULT_RANK else ""
    return [
        f"vllm serve {base} --enable-lora{flag} --lora-modules {name}={repo}",
        f"text-generation-launcher --model-id {base} --lora-adapters {repo}",
        own,
    ]


def cannot_serve(settings: Mapping[str, Any]) -> str:
    """Why vLLM and TGI would refuse this adapter, or read it wrongly; empty where they take it."""
    ranks = ranks_of(settings)
    reasons = {
        "DoRA": settings.get("use_dora"),
        "modules_to_save": settings.get("modules_to_save"),
        "trained biases": settings.get("bias", "none") != "none",
        f"a rank over {RANKS[-1]}": max(ranks) > RANKS[-1],
        # One factor serves all layers there: that of the plain `r` and `lora_alpha`.
        "layers with factors of their own": not _one_factor(settings),
    }
    return " and ".join(reason for reason, found in reasons.items() if found)


def ranks_of(settings: Mapping[str, Any]) -> set[int]:
    """Ranks of its layers; slices have one rank for all of them together."""
    return {int(settings.get("r") or 8), *map(int, (settings.get("rank_pattern") or {}).values())}


def room(settings: Mapping[str, Any]) -> int:
    """The smallest of vLLM's ranks that holds every layer."""
    return next(rank for rank in RANKS if rank >= max(ranks_of(settings)))


def _one_factor(settings: Mapping[str, Any]) -> bool:
    """Whether alpha / r (alpha / √r of rsLoRA) is the same in each layer."""
    power = 0.5 if settings.get("use_rslora") else 1.0
    rank, alpha = int(settings.get("r") or 8), float(settings.get("lora_alpha") or 8)
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    factors = {
        float(alphas.get(name, alpha)) / float(ranks.get(name, rank)) ** power
        for name in {*ranks, *alphas}
    }
    usual = alpha / rank**power
    return all(abs(factor - usual) < 1e-9 * usual for factor in factors)
