"""TRL's trainers, made to fit: the one place that imports TRL.

What TRL would do by itself and we do not want: tokenise again (our tokens are checked and final), write model cards, report to
its makers, compute the reference a second time, and at every step the entropy of every position, prompts and padding included.
So the losses of SFT and DPO are computed here, from log-probabilities of the completion's tokens only; tests/numerics holds
them against TRL's.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from align.losses import dpo_loss
from align.models.head import IGNORED, add_label_logps
from align.training.loop import GuardedTraining
from align.training.packing import PackedCollator
from align.training.sampler import LengthGroupedSampler


class GuardedSFTTrainer(GuardedTraining, SFTTrainer):
    """TRL's SFTTrainer on rows that are packed already."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy, summed over labelled tokens and divided by their number in the whole optimizer step."""
        labels = inputs["labels"]
        rest = {key: value for key, value in inputs.items() if key != "labels"}
        logps = model(**rest, logps_of=labels)
        tokens = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != IGNORED).sum()
        loss = -logps.sum() / tokens
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients; the count is of all processes
        return (loss, logps) if return_outputs else loss


class PairSampling:
    """Mixed into a trainer of pairs: batches of similar length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args, dataset = self.args, self.train_dataset  # type: ignore[attr-defined]
        return LengthGroupedSampler(dataset["length"], batch_size=args.train_batch_size, seed=args.seed)


class GuardedRewardTrainer(PairSampling, GuardedTraining, RewardTrainer):
    """TRL's RewardTrainer (Bradley–Terry)."""


class GuardedDPOTrainer(PairSampling, GuardedTraining, DPOTrainer):
    """TRL's DPOTrainer on tokens and reference log-probabilities that are there already."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """`align.losses.dpo_loss`, mean over the pairs of the micro-batch; the batch holds all chosen, then all rejected."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        logps = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logps_of=labels).sum(-1)
        chosen, rejected = logps.chunk(2)
        loss = dpo_loss(
            chosen,
            rejected,
            inputs["ref_chosen_logps"],
            inputs["ref_rejected_logps"],
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )
        self._remember(
            {
                "rewards/chosen": loss.chosen_rewards,
                "rewards/rejected": loss.rejected_rewards,
                "rewards/accuracies": (loss.chosen_rewards > loss.rejected_rewards).float(),
                "rewards/margins": loss.chosen_rewards - loss.rejected_rewards,
                "logps/chosen": chosen.detach(),
                "logps/rejected": rejected.detach(),
            }
        )
        mean = loss.losses.mean()
        return (mean, logps) if return_outputs else mean

    def _remember(self, values: dict[str, torch.Tensor]) -> None:
        """Collect means for the next log line, as TRL does."""
        collected = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            collected[name].append(self.accelerator.gather_for_metrics(value).mean().item())


def sft_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, list[int]]], arguments: dict[str, Any]
) -> SFTTrainer:
    """Cross-entropy on labels, normalised by the number of labelled tokens of the whole batch."""
    config = SFTConfig(**arguments, packing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = GuardedSFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PackedCollator(int(tokenizer.pad_token_id)),
    )
    add_label_logps(trainer.model)
    return trainer


def reward_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    arguments: dict[str, Any],
    *,
    center_coef: float,
) -> RewardTrainer:
    """-log sigmoid(chosen - rejected) + center_coef (chosen + rejected)², mean over pairs."""
    config = RewardConfig(**arguments, max_length=None, center_rewards_coefficient=center_coef or None)
    return GuardedRewardTrainer(model=model, args=config, train_dataset=_with_lengths(rows), processing_class=tokenizer)


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
    config = DPOConfig(**arguments, max_length=None, beta=beta, label_smoothing=label_smoothing, precompute_ref_log_probs=True)
    trainer = GuardedDPOTrainer(model=model, args=config, train_dataset=_with_lengths(rows), processing_class=tokenizer)
    add_label_logps(trainer.model)
    return trainer


def _with_lengths(rows: list[dict[str, Any]]) -> Dataset:
    """The rows with the length of the longer side, by which they are batched."""
    return Dataset.from_list(
        [
            {**row, "length": max(len(row["chosen_ids"]), len(row["rejected_ids"])) + len(row.get("prompt_ids", []))}
            for row in rows
        ]
    )
