"""TRL's trainers, made to fit: the one place that imports TRL.

What TRL would do by itself and we do not want: tokenise again (our tokens are checked and final), write model cards, report to
its makers, and compute the reference a second time.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from align.training.loop import GuardedTraining
from align.training.packing import PackedCollator


class GuardedSFTTrainer(GuardedTraining, SFTTrainer):
    """TRL's SFTTrainer on rows that are packed already."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "position_ids"]


class GuardedRewardTrainer(GuardedTraining, RewardTrainer):
    """TRL's RewardTrainer (Bradley–Terry)."""


class GuardedDPOTrainer(GuardedTraining, DPOTrainer):
    """TRL's DPOTrainer on tokens and reference log-probabilities that are there already."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def sft_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, list[int]]], arguments: dict[str, Any]
) -> SFTTrainer:
    """Cross-entropy on labels, normalised by the number of labelled tokens of the whole batch."""
    config = SFTConfig(**arguments, packing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return GuardedSFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PackedCollator(int(tokenizer.pad_token_id)),
    )


def reward_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    arguments: dict[str, Any],
    *,
    center_coef: float,
) -> RewardTrainer:
    """-log sigmoid(chosen - rejected) + center_coef (chosen + rejected)², mean over pairs."""
    config = RewardConfig(**arguments, max_length=None, center_rewards_coefficient=center_coef or None)
    return GuardedRewardTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def dpo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    arguments: dict[str, Any],
    *,
    beta: float,
    label_smoothing: float,
) -> DPOTrainer:
    """DPO (sigmoid), mean over pairs; `rows` hold `ref_chosen_logps` and `ref_rejected_logps` (nats, summed)."""
    config = DPOConfig(
        **arguments,
        max_length=None,
        beta=beta,
        label_smoothing=label_smoothing,
        precompute_ref_log_probs=True,
        loss_type=["sigmoid"],
    )
    return GuardedDPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
