"""ORPO: TRL's experimental trainer, for pairs that are rendered already.

Hong et al. 2024, https://arxiv.org/abs/2403.07691. It learns the better answer and that it is
better in one loss, without a reference, from whole rows: `kinds.kind_of("orpo")` names it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from datasets import Dataset

from phi3lora.training.fast.loss import IGNORED
from phi3lora.training.preferences import COLUMNS, Judged, PairCollator, Row

with warnings.catch_warnings():
    # What it warns of, that names may move, is what `fast/tested.py` is for.
    warnings.filterwarnings("ignore", category=UserWarning)
    from trl.experimental.orpo import ORPOConfig as ORPOConfig
    from trl.experimental.orpo import ORPOTrainer


class FastORPOTrainer(Judged, ORPOTrainer):
    """ORPOTrainer on pairs that are rendered already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        rows = kwargs.pop("train_dataset"), kwargs.pop("eval_dataset", None)
        pad = kwargs["processing_class"].pad_token_id
        self._total_train_tokens = 0
        # TRL maps rows of text, one by one; these are rendered, so it is shown a single one.
        few = Dataset.from_list([rows[0].select_columns(COLUMNS)[0]])
        super().__init__(
            *args,
            train_dataset=few,
            eval_dataset=few if rows[1] is not None else None,
            data_collator=PairCollator(pad, split=True),
            **kwargs,
        )
        self.train_dataset, self.eval_dataset = rows
        self.use_dpo_data_collator = True  # ours gives what that one does

    def tokenize_row(self, feature: Row, model: Any = None) -> Row:
        return feature

    @property
    def _sums(self) -> dict[str, list[float]]:
        sums: dict[str, list[float]] = self._stored_metrics["train"]
        return sums

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = sum(inputs[f"{side}_attention_mask"].sum() for side in ("chosen", "rejected"))
        self._total_train_tokens += int(self.accelerator.gather(tokens).sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """As TRL's, from log-probabilities instead of logits.

        What is learnt of a better answer is the whole row with its prompt, as in TRL.
        """
        if "answers" not in self._replaced:
            return super().concatenated_forward(model, batch)
        both = self.concatenated_inputs(batch, padding_value=self.padding_value)
        ids, mask = both["concatenated_input_ids"], both["concatenated_attention_mask"]
        answers, pairs = both["concatenated_labels"], len(batch["chosen_labels"])
        labels = torch.cat([ids[:pairs].masked_fill(mask[:pairs] == 0, IGNORED), answers[pairs:]])
        out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        own = answers[:, 1:] != IGNORED  # (2 · pairs, seq - 1)
        means = (out.log_probs * own).sum(1) / own.sum(1)
        learnt = out.label_mask[:pairs].sum()
        logits = [out.mean_logits[side][own[side]] for side in (slice(pairs), slice(pairs, None))]
        return means[:pairs], means[pairs:], *logits, -out.log_probs[:pairs].sum() / learnt
