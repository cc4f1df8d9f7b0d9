"""What we rely on in other people's private code, and the versions it was tested with.

    moved()        # [] or a sentence for each name that is no longer where it was

A private name may go with any minor version. So requirements.txt admits tested minor versions
only, and a test calls `moved` before anything subtle can go wrong.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass
from typing import Any

# Package → the versions that requirements.txt admits, as pip writes it.
TESTED = {
    "torch": ">=2.10,<2.14",
    "transformers": ">=5.23,<5.24",
    "trl": ">=1.16,<1.17",
    "peft": ">=0.21.2,<0.22",
    "accelerate": ">=1.15,<1.16",
    "datasets": ">=5.2,<5.3",
    "bitsandbytes": ">=0.50.2,<0.51",
    "gradio": ">=6.31,<6.32",
    "spaces": ">=0.51.3,<0.52",
}


@dataclass(frozen=True)
class Private:
    """A private name: where it is defined, what of it is needed, and who needs it.

    Attributes:
        path: `module:name.name`.
        parameters: of a function, by the names that we pass.
        source: words that its source must hold, such as attributes that a class sets.
        used: our module that would break.
    """

    path: str
    used: str
    parameters: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


_TRAINER, _SFT = "transformers.trainer:Trainer", "trl.trainer.sft_trainer:SFTTrainer"
_OURS, _LAYERS = "training/fast/trainer.py", "training/fast/layers.py"
_PREFERENCES, _GRPO = "training/preferences.py", "training/grpo.py"
_PHI3 = "transformers.models.phi3.modeling_phi3"
PRIVATE = (
    Private(f"{_TRAINER}._load_from_checkpoint", _OURS, ("resume_from_checkpoint", "model")),
    Private(f"{_TRAINER}._init_training_state", _OURS),
    Private(f"{_TRAINER}._run_epoch", _OURS, source=("self._tr_loss", "_globalstep_last_logged")),
    Private(f"{_TRAINER}._save_checkpoint", _OURS),
    Private(_TRAINER, _OURS, source=("self._tr_loss", "self._total_loss_scalar")),
    Private(
        f"{_SFT}._prepare_dataset",
        _OURS,
        ("dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"),
    ),
    Private(_SFT, _OURS, source=("self._metrics", "self._total_train_tokens", "self._tokenizer")),
    Private("trl.trainer.base_trainer:_BaseTrainer._send_telemetry", _OURS),
    *(
        Private(
            f"trl.trainer.{name}_trainer:{name.upper()}Trainer",
            _PREFERENCES,
            source=(
                "self._metrics",
                "self._total_train_tokens",
                'add_adapter("ref"',
                "fused_lm_head",
            ),
        )
        for name in ("dpo", "kto")
    ),
    Private(
        "trl.trainer.kto_trainer:KTOTrainer._prepare_dataset",
        _PREFERENCES,
        ("dataset", "processing_class", "args", "dataset_name"),
    ),
    Private(
        "trl.experimental.orpo.orpo_trainer:ORPOTrainer.concatenated_forward",
        "training/orpo.py",
        ("model", "batch"),
    ),
    Private(
        "trl.experimental.orpo.orpo_trainer:ORPOTrainer",
        "training/orpo.py",
        source=("self._stored_metrics", "use_dpo_data_collator", "self.tokenize_row"),
    ),
    Private("trl.trainer.grpo_trainer:GRPOTrainer._tokenize_prompts", _GRPO, ("prompts",)),
    Private(
        "trl.trainer.grpo_trainer:GRPOTrainer._generate_and_score_completions", _GRPO, ("inputs",)
    ),
    Private("trl.trainer.grpo_trainer:GRPOTrainer._get_train_sampler", _GRPO),
    Private(
        "trl.trainer.grpo_trainer:GRPOTrainer",
        _GRPO,
        source=("num_input_tokens_seen", 'add_adapter("ref"', "fused_lm_head", "RepeatSampler("),
    ),
    Private("trl.trainer.utils:RepeatSampler", _GRPO, source=("self.generator", "num_samples")),
    Private(
        "trl.trainer.utils:FusedCausalLMOutput",
        "training/fast/answers.py",
        source=("log_probs", "entropy", "mean_logits", "is_top1", "label_mask"),
    ),
    Private("trl.trainer.sft_trainer:DataCollatorForLanguageModeling", _OURS),
    Private("trl.data_utils:pack_dataset", _OURS, ("dataset", "seq_length", "strategy")),
    Private("transformers:AttentionMaskInterface.register", "training/fast/attention.py"),
    Private("transformers.masking_utils:sdpa_mask", "training/fast/attention.py"),
    Private("torch:ops.aten._flash_attention_forward", "training/fast/attention.py"),
    Private("torch:ops.aten._efficient_attention_forward", "training/fast/attention.py"),
    Private("torch:ops.aten._fused_rms_norm", _LAYERS),
    Private("torch:ops.aten._fused_rms_norm_backward", _LAYERS),
    Private("torch:ops.aten.native_dropout_backward", _LAYERS),
    Private(f"{_PHI3}:eager_attention_forward", _LAYERS),
    Private(
        f"{_PHI3}:Phi3Attention.forward",
        _LAYERS,
        ("hidden_states", "position_embeddings", "attention_mask", "past_key_values"),
        ("self.qkv_proj", "self.o_proj", "self.scaling", "sliding_window"),
    ),
    Private(f"{_PHI3}:Phi3MLP.forward", _LAYERS, source=("gate_up_proj", "down_proj", "chunk(2")),
    Private(f"{_PHI3}:Phi3RMSNorm", _LAYERS, source=("self.variance_epsilon", "self.weight")),
    Private(
        "peft.tuners.lora:LoraLayer",
        _LAYERS,
        source=("self.lora_A", "self.lora_B", "self.lora_variant", "self.lora_bias", "scaling"),
    ),
    Private(
        "bitsandbytes.nn:Linear4bit", "models/loading.py", source=("support_avx512bf16_for_cpu",)
    ),
    Private("peft.utils.other:AuxiliaryTrainingWrapper", "chat/adapters.py"),
    Private("peft.utils.other:get_pattern_key", "lora/slices.py"),
    Private("peft.utils.integrations:dequantize_module_weight", "chat/adapters.py"),
    Private("torch:ops.mkldnn._reorder_linear_weight", "chat/packing.py"),
    Private("torch:ops.mkldnn._linear_pointwise", "chat/packing.py"),
)


def moved() -> list[str]:
    """A sentence for each private name that is not as it was; none where all are."""
    return [sentence for private in PRIVATE if (sentence := _missing(private))]


def _missing(private: Private) -> str:
    package = private.path.partition(":")[0].partition(".")[0]
    try:
        found = _found(private.path)
        parameters = set(inspect.signature(found).parameters) if private.parameters else set()
        source = inspect.getsource(found) if private.source else ""
    except (ImportError, AttributeError) as error:
        return _sentence(package, private, f"is gone ({error})")
    lacking = [name for name in private.parameters if name not in parameters]
    lacking += [words for words in private.source if words not in source]
    return _sentence(package, private, f"lacks {', '.join(lacking)}") if lacking else ""


def _found(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _sentence(package: str, private: Private, what: str) -> str:
    version = importlib.metadata.version(package)
    return (
        f"{package} {version} has moved: {private.path} {what}, which phi3lora/{private.used} "
        f"needs. Tested are {package}{TESTED[package]}; install one of these, or mend the module "
        "and test it."
    )
