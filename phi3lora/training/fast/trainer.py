"""FastTrainer: TRL's SFTTrainer for rows that are rendered already, with our loss and attention.

    trainer = FastTrainer(model=model, args=SFTConfig(...), train_dataset=rows, fast=True, ...)

Rows have `input_ids` and `labels` (-100 where a token carries no loss). Every option of SFTConfig
keeps its meaning; `fast=False` computes exactly what TRL computes. What is ours of any of TRL's
trainers, whatever it learns from, is in `Resumable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from phi3lora.training import processes
from phi3lora.training.callbacks import Progress
from phi3lora.training.checkpoints import seal
from phi3lora.training.fast.attention import PACKED
from phi3lora.training.fast.patches import base_of, patched, patches

COLUMNS = ["input_ids", "labels"]


class Resumable(Trainer):
    """Ours of any of TRL's trainers: its loss is checked, and it resumes with all it counted.

    It stands before TRL's trainer among the bases of a class, so that `super()` is that trainer.

    Args:
        progress: reports and stops; None to train silently.
        fast: our loss, attention and adapter layers instead of TRL's and PEFT's.
        loraplus_lr_ratio: learning rate of B over that of A (LoRA+), or None for the same.
        bad_loss: makes the exception for a loss that is not finite, from the loss and the
            step, counted from 1.
    """

    model: Any
    _total_train_tokens: Any

    def __init__(
        self,
        *args: Any,
        progress: Progress | None = None,
        fast: bool = True,
        loraplus_lr_ratio: float | None = None,
        bad_loss: Callable[[float, int], Exception] | None = None,
        **kwargs: Any,
    ) -> None:
        self.progress = progress
        self.fast = fast
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._bad_loss = bad_loss
        self._unchecked: torch.Tensor | None = None  # losses since the last update
        super().__init__(*args, **kwargs)
        self._replaced = {patch.name for patch in patches(self.model, self.args)} if fast else set()
        self._inside = False
        if self.args.fp16:
            # TRL has put a quantized base's adapter into bfloat16, which a GPU without it, and
            # the scaling of float16 gradients, cannot use.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        self._keep_precision()
        if progress is not None:
            self.add_callback(progress)

    def _keep_precision(self) -> None:
        """Spread weights are gathered in the precision they have, as one device would use them.

        accelerate would cast them all to autocast's, and the loss too. It does for weights that
        are all trained, which it keeps in float32; their gradients are summed in float32.
        """
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None or plugin.mixed_precision_policy is None:
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy

        frozen = any(not parameter.requires_grad for parameter in self.model.parameters())
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=None if frozen else plugin.mixed_precision_policy.param_dtype,
            reduce_dtype=torch.float32,
        )

    @property
    def _sums(self) -> dict[str, list[float]]:
        """What TRL averages at the next log, by name."""
        sums: dict[str, list[float]] = self._metrics["train"]  # type: ignore[attr-defined]
        return sums

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and evaluate in between, with our parts where `fast` is set."""
        with self._patched():
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with our parts where `fast` is set, within a training and after it."""
        with self._patched():
            return super().evaluate(*args, **kwargs)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """What `patches.py` lists, put in once: an evaluation lies inside a training."""
        if not self.fast or self._inside:
            yield
            return
        with patched(self.model, self.args):
            self._inside = True
            try:
                yield
            finally:
                self._inside = False

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The adapter goes on in the precision it had: PEFT loads a bfloat16 one as float32."""
        trained = {n: p.dtype for n, p in self.model.named_parameters() if p.requires_grad}
        super()._load_from_checkpoint(*args, **kwargs)
        for name, parameter in self.model.named_parameters():
            if name in trained:
                parameter.data = parameter.data.to(trained[name])

    @property
    def attention(self) -> str:
        """The attention that is computed, by its name."""
        if "attention" in self._replaced:
            return PACKED
        return str(base_of(self.model).config._attn_implementation)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As TRL does, or with a faster B where LoRA+ is asked for."""
        if self._loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        from peft.optimizers import create_loraplus_optimizer

        kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            model or self.model,
            kind,
            loraplus_lr_ratio=self._loraplus_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **arguments,
        )
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One pass forward and back; a loss that is not finite ends the training here.

        It is asked once an update, before the optimizer: each question waits for a GPU.
        """
        loss = super().training_step(*args, **kwargs)
        self._unchecked = loss if self._unchecked is None else self._unchecked + loss
        if self.accelerator.sync_gradients and self._bad_loss is not None:
            if not math.isfinite(value := float(self._unchecked)):
                raise self._bad_loss(value, self.state.global_step + 1)
            self._unchecked = None
        if self.progress is not None:
            self.progress.tokens = self._tokens_before + self._trained_tokens
        return loss

    @property
    def _trained_tokens(self) -> int:
        """Tokens that this slice has trained on."""
        return int(self._total_train_tokens)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Also give the callbacks back what the checkpoint kept of them (patience, tokens)."""
        begun = super()._init_training_state(*args, **kwargs)
        states: Any = self.state.stateful_callbacks
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                kept = states.get(type(callback).__name__, {})
                for name, value in kept.get("attributes", {}).items():
                    setattr(callback, name, value)
        self._tokens_before = self.progress.tokens if self.progress else 0
        return begun

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Go on adding up where the checkpoint stopped, in the middle of two logs."""
        if self.progress is not None and self.progress.kept:
            kept, self.progress.kept = self.progress.kept, {}
            self._tr_loss += kept["loss"]
            self._total_loss_scalar -= kept["loss"]  # the final mean is of this slice alone
            self._globalstep_last_logged = kept["last_logged"]
            for name, values in kept["metrics"].items():
                self._sums[name] = values
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Keep the sums between two logs too, so that a resumed run logs the same figures."""
        if self.progress is not None:
            self.progress.kept = {
                "loss": processes.mean(float(self._tr_loss)),
                "last_logged": self._globalstep_last_logged,
                "metrics": {k: list(v) for k, v in self._sums.items()},
            }
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        self._complete(f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.progress is not None:
            self.progress.kept = {}

    def _complete(self, name: str) -> None:
        """Seal a checkpoint, and only then remove older ones: by step, since a clock may be set.

        Each of several processes writes a part of it, so all parts must have been written.
        """
        folder = Path(str(self.args.output_dir))
        processes.wait()
        if self.args.should_save:
            seal(folder / name)
            rotate_checkpoints(
                str(folder), self.args.save_total_limit, self.state.best_model_checkpoint
            )
        processes.wait()  # or another process might leave, and be taken for lost, meanwhile

    def take_result(self, checkpoint: Path) -> bool:
        """Take the weights of a training that was over when `checkpoint` was saved.

        False, and nothing is done, where by these arguments there is more to train.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if max_steps > state.max_steps:  # the config asks for more than it did
            return False
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))
        return True

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints need no card; the one that is published is written elsewhere."""

    def _send_telemetry(self) -> None:
        """What people train is nobody else's business."""


class FastTrainer(Resumable, SFTTrainer):
    """SFTTrainer that trusts its rows, with our loss where `fast` is set."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "attention" in self._replaced:
            self._lay_end_to_end()

    def _lay_end_to_end(self) -> None:
        """Rows of a batch are laid end to end, without padding, and attend within themselves."""
        self.padding_free = True
        self.data_collator = DataCollatorForLanguageModeling(
            pad_token_id=self._tokenizer.pad_token_id, padding_free=True
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean loss over supervised tokens, as TRL's, from sums made by our head."""
        if "loss" not in self._replaced or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        sums = model(**inputs, use_cache=False, supervised_loss=True)
        count = sums.supervised if num_items_in_batch is None else num_items_in_batch
        # Clamped, so that a batch without a supervised token has loss 0 and not 0 / 0.
        loss = sums.loss / torch.as_tensor(count).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._count_metrics(sums, inputs)
        return loss

    def _count_metrics(self, sums: Any, inputs: dict[str, Any]) -> None:
        """Entropy, token accuracy and tokens, under the names that TRL logs."""
        tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else None
        if tokens is None:
            tokens = torch.tensor(inputs["position_ids"].numel(), device=sums.supervised.device)
        own = torch.stack([x.detach().float() for x in (*sums[1:], tokens)])
        entropy, correct, count, tokens = self.accelerator.gather(own).view(-1, 4).sum(0).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["entropy"].append(entropy / count if count else 0.0)
        metrics["mean_token_accuracy"].append(correct / count if count else 0.0)
        if self.model.training:
            self._total_train_tokens += int(tokens)
        metrics["num_tokens"] = [self._total_train_tokens]

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """Rows come rendered, cut and checked; only packing is left to do."""
        rows = dataset.select_columns(COLUMNS)
        return pack_dataset(rows, args.max_length, args.packing_strategy) if packing else rows
