"""Twenty steps of TRL's trainers and of ours, on the same model, pairs, order and batches: the same loss curve."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler

from align.config.sections import Optimization
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm, load_reward_model
from align.runtime.context import RunContext
from align.stages import dpo, kto, orpo, reward_model, simpo
from align.testing import pairwise_config, random_pairs, run_context
from align.training.loop import train, training_arguments
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.trainer import PairwiseTrainer, prepare_model
from align.training.step import StepTrainer

pytestmark = pytest.mark.slow

STEPS, BATCH = 20, 4


PAIRS = random_pairs(STEPS * BATCH, seed=8, prompt_tokens=11, completion_tokens=8)
# Plausible and different from pair to pair: near the policy, where the sigmoid is steep.
REFERENCE = [
    (-5.9 * len(pair.chosen_token_ids) + 0.1 * (i % 5), -5.9 * len(pair.rejected_token_ids)) for i, pair in enumerate(PAIRS)
]
CONFIG = Optimization(precision="float32", batch_size=BATCH, learning_rate=2e-3, warmup_ratio=0.1)


def curves_of(trainer: Any, context: RunContext) -> list[dict[str, float]]:
    trainer._get_train_sampler = lambda *args: SequentialSampler(trainer.train_dataset)
    if isinstance(trainer, StepTrainer):
        history = train(trainer, context).rows
    else:
        trainer.train()
        history = trainer.state.log_history
    rows = [row for row in history if "loss" in row]
    assert len(rows) == STEPS
    return rows


def ours(folder: Path, model: Any, objective: Any, pairs: list[TrainingPair], **layout: Any) -> list[dict[str, float]]:
    model = prepare_model(model, tail_weight=objective.tail_weight)
    context = run_context(folder)
    collator = PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=40, **layout)
    arguments = training_arguments(CONFIG, context, num_rows=len(pairs))
    return curves_of(PairwiseTrainer(model, pairs, objective, collator, arguments), context)


def silent(trainer_type: Any) -> Any:
    """TRL's trainer without its report to its makers."""

    class Silent(trainer_type):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            pass

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Silent


def compare(mine: list[dict[str, float]], theirs: list[dict[str, float]], names: tuple[str, ...]) -> None:
    for step, (my_row, their_row) in enumerate(zip(mine, theirs, strict=True)):
        for name in names:
            assert my_row[name] == pytest.approx(their_row[name], rel=1e-4, abs=1e-4), f"{name} at step {step}"
    assert abs(mine[0]["loss"] - mine[-1]["loss"]) > 1e-2  # something was trained


DPO_METRICS = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
)  # fmt: skip


@pytest.mark.parametrize(("variant", "beta", "ld_alpha"), [
    ("sigmoid", 0.3, 1.0), ("hinge", 0.3, 1.0), ("ipo", 0.4, 1.0), ("sigmoid_norm", 2.0, 0.4), ("robust", 0.3, 1.0),
    ("apo_zero", 2.0, 1.0), ("apo_down", 0.3, 1.0), ("sppo_hard", 0.1, 1.0), ("sigmoid", 0.3, 0.4),
])  # fmt: skip
def test_dpo(project_template: Path, tmp_path: Path, variant: Any, beta: float, ld_alpha: float) -> None:
    from trl import DPOConfig, DPOTrainer

    base = project_template / "base"
    rows = [
        TrainingPair(pair, {"reference_chosen_logps": chosen, "reference_rejected_logps": rejected})
        for pair, (chosen, rejected) in zip(PAIRS, REFERENCE, strict=True)
    ]
    config = pairwise_config(dpo, beta=beta, variant=variant, ld_alpha=ld_alpha)
    mine = ours(tmp_path / "ours", load_causal_lm(base), config, rows)

    class ReadyDPOTrainer(silent(DPOTrainer)):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    context = run_context(tmp_path / "trl")
    arguments = DPOConfig(
        **training_arguments(CONFIG, context, num_rows=len(PAIRS)),
        max_length=None,
        beta=beta,
        label_smoothing=0.1 if variant == "robust" else 0.0,
        loss_type=variant,
        ld_alpha=ld_alpha,
        precompute_ref_log_probs=True,
    )
    dataset = [
        {
            "prompt_ids": pair.prompt_token_ids,
            "chosen_ids": pair.chosen_token_ids,
            "rejected_ids": pair.rejected_token_ids,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        for pair, (chosen, rejected) in zip(PAIRS, REFERENCE, strict=True)
    ]
    trainer = ReadyDPOTrainer(
        model=load_causal_lm(base),
        args=arguments,
        train_dataset=Dataset.from_list(dataset),
        processing_class=ModelFolder(base).tokenizer,
    )
    compare(mine, curves_of(trainer, context), DPO_METRICS)


@pytest.mark.parametrize(("center_coef", "with_margin"), [(0.0, False), (0.05, True)])
def test_reward_model(project_template: Path, tmp_path: Path, center_coef: float, with_margin: bool) -> None:
    from trl import RewardConfig, RewardTrainer

    base = project_template / "base"
    margins = [{"margin": 0.25 * (index % 4)} if with_margin else {} for index in range(len(PAIRS))]

    def model() -> Any:
        torch.manual_seed(6)
        return load_reward_model(base, new_head=True)

    rows = [TrainingPair(pair, margin) for pair, margin in zip(PAIRS, margins, strict=True)]
    mine = ours(tmp_path / "ours", model(), pairwise_config(reward_model, center_coef=center_coef), rows)
    context = run_context(tmp_path / "trl")
    arguments = training_arguments(CONFIG, context, num_rows=len(PAIRS))
    dataset = [
        {
            "chosen_ids": pair.prompt_token_ids + pair.chosen_token_ids,
            "rejected_ids": pair.prompt_token_ids + pair.rejected_token_ids,
            **margin,
        }
        for pair, margin in zip(PAIRS, margins, strict=True)
    ]
    trainer = silent(RewardTrainer)(
        model=model(),
        args=RewardConfig(**arguments, max_length=None, center_rewards_coefficient=center_coef or None),
        train_dataset=Dataset.from_list(dataset),
        processing_class=ModelFolder(base).tokenizer,
    )
    compare(mine, curves_of(trainer, context), ("loss", "accuracy", "margin", "mean_reward"))


NUMBERED = Dataset.from_list([{"prompt": str(i), "chosen": "x", "rejected": "y"} for i in range(len(PAIRS))])


def of_numbered_pairs(trainer_type: Any) -> Any:
    """TRL's ORPO or CPO trainer, on the tokens of the pair whose number the prompt is."""

    class Ready(silent(trainer_type)):  # type: ignore[misc]
        def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, list[int]]:
            pair = PAIRS[int(feature["prompt"])]
            batch = {"prompt_input_ids": pair.prompt_token_ids, "prompt_attention_mask": [1] * len(pair.prompt_token_ids)}
            for side, ids in (("chosen", pair.chosen_token_ids), ("rejected", pair.rejected_token_ids)):
                batch[f"{side}_input_ids"] = pair.prompt_token_ids + ids
                batch[f"{side}_attention_mask"] = [1] * len(pair.prompt_token_ids + ids)
                batch[f"{side}_labels"] = [-100] * len(pair.prompt_token_ids) + ids
            return batch

    return Ready


def test_simpo(project_template: Path, tmp_path: Path) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    base = project_template / "base"
    rows = [TrainingPair(pair) for pair in PAIRS]
    mine = ours(tmp_path / "ours", load_causal_lm(base), pairwise_config(simpo, beta=2.0, gamma=0.6), rows)
    context = run_context(tmp_path / "trl")
    arguments = training_arguments(CONFIG, context, num_rows=len(PAIRS))
    trainer = of_numbered_pairs(CPOTrainer)(
        model=load_causal_lm(base),
        args=CPOConfig(**arguments, max_length=64, loss_type="simpo", beta=2.0, simpo_gamma=0.6, cpo_alpha=0.0),
        train_dataset=NUMBERED,
        processing_class=ModelFolder(base).tokenizer,
    )
    compare(mine, curves_of(trainer, context), DPO_METRICS)


def test_orpo(project_template: Path, tmp_path: Path) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    base = project_template / "base"
    rows = [TrainingPair(pair) for pair in PAIRS]
    mine = ours(tmp_path / "ours", load_causal_lm(base), pairwise_config(orpo, odds_ratio_weight=0.4), rows, with_prompts=True)
    context = run_context(tmp_path / "trl")

    arguments = training_arguments(CONFIG, context, num_rows=len(PAIRS))
    trainer = of_numbered_pairs(ORPOTrainer)(
        model=load_causal_lm(base),
        args=ORPOConfig(**arguments, max_length=64, beta=0.4),
        train_dataset=NUMBERED,
        processing_class=ModelFolder(base).tokenizer,
    )
    names = ("nll_loss", "log_odds_ratio", "log_odds_chosen", *DPO_METRICS)
    compare(mine, curves_of(trainer, context), names)


def test_kto(project_template: Path, tmp_path: Path) -> None:
    """On the completions of other prompts that TRL takes: those of the row before, in turn within a batch."""
    from trl import KTOConfig, KTOTrainer

    base = project_template / "base"
    # So far away that the KL is above 0, where it is cut off.
    pairs = [
        replace(pair, rejected_token_ids=PAIRS[i - 1 if i % BATCH else i + BATCH - 1].chosen_token_ids)
        for i, pair in enumerate(PAIRS)
    ]
    reference = [(logps, -6.5 * len(pair.rejected_token_ids)) for (logps, _), pair in zip(REFERENCE, pairs, strict=True)]
    rows = [
        TrainingPair(pair, {"reference_chosen_logps": own, "reference_rejected_logps": other, "desirable": float(i % 3 != 1)})
        for i, (pair, (own, other)) in enumerate(zip(pairs, reference, strict=True))
    ]
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    mine = ours(tmp_path / "ours", load_causal_lm(base), pairwise_config(kto, beta=0.3, **weights), rows)

    class ReadyKTOTrainer(silent(KTOTrainer)):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    context = run_context(tmp_path / "trl")
    config = KTOConfig(
        **training_arguments(CONFIG, context, num_rows=len(PAIRS)),
        max_length=None,
        beta=0.3,
        **weights,
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=True,
    )
    dataset = [
        {
            "prompt_ids": pair.prompt_token_ids,
            "completion_ids": pair.chosen_token_ids,
            "KL_completion_ids": pair.rejected_token_ids,
            "label": i % 3 != 1,
            "ref_logps": own,
            "ref_KL_logps": other,
        }
        for i, (pair, (own, other)) in enumerate(zip(pairs, reference, strict=True))
    ]
    trainer = ReadyKTOTrainer(
        model=load_causal_lm(base),
        args=config,
        train_dataset=Dataset.from_list(dataset),
        processing_class=ModelFolder(base).tokenizer,
    )
    theirs = curves_of(trainer, context)
    names = {"chosen": "desirable", "rejected": "undesirable"}
    for row in theirs:
        for name, side in itertools.product(("rewards", "logps"), names):
            if f"{name}/{side}" in row:
                row[f"{name}/{names[side]}"] = row[f"{name}/{side}"]
    assert min(row["kl"] for row in mine) > 0
    names_of_both = ("loss", "kl", "rewards/desirable", "rewards/undesirable", "rewards/margins", "logps/desirable")
    compare(mine, theirs, (*names_of_both, "logps/undesirable"))
