"""Trainings that run in one process or in several, for tests that compare them."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

from align.config.peft import Lora
from align.config.sections import Optimization
from align.errors import Interrupted
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.models.later_weights import has_weights
from align.models.load import load_causal_lm, load_reward_model
from align.models.trainable import TrainableModel, load_trainable
from align.runtime.group import wait_for_all
from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import Spread
from align.stages import dpo, kto, orpo, reward_model, simpo
from align.testing import pairwise_config, random_pairs, run_context, tiny_causal_lm
from align.training.loop import train, training_arguments
from align.training.packing import TrainingSample, build_row
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.trainer import PairwiseTrainer, prepare_model
from align.training.sharding import shard, whole
from align.training.trl_trainers import sft_trainer
from align.training.weights_of_first import weights_of_first

# Sums in another order. Measured in float32: curves 6e-7 of a number, weights 6e-8.
CURVES, WEIGHTS = 1e-5, 1e-6
OPTIMIZERS = {"lora": "adamw_torch", "momentum": "adamw_torch"}
"""Of trainings that are resumed; the others use plain gradient descent, in which a wrong gradient shows."""
REFERENCE = {"reference_chosen_logps": -30.0, "reference_rejected_logps": -28.0}
# 13 rows in batches of 6: the last batch has one row, so that other processes than the first have none.
PAIRS = [
    TrainingPair(pair.tokens, {**REFERENCE, "desirable": float(number % 3 == 0)})
    for number, pair in enumerate(map(TrainingPair, random_pairs(13, seed=2, prompt_tokens=14, completion_tokens=9)))
]
OBJECTIVES = {
    "dpo": pairwise_config(dpo, beta=0.3),
    "orpo": pairwise_config(orpo, odds_ratio_weight=0.5),
    "simpo": pairwise_config(simpo, beta=2.0),
    "reward_model": pairwise_config(reward_model, center_coef=0.01),
    "kto": pairwise_config(kto, beta=0.05, desirable_weight=6.0, undesirable_weight=4.0),
}
SAMPLES = [TrainingSample(pair.tokens.prompt_token_ids, pair.tokens.chosen_token_ids) for pair in PAIRS]
# Every other row has two samples.
ROWS = [build_row(SAMPLES[number : number + 1 + number % 2]) for number in range(13)]


@dataclass(frozen=True)
class Trained:
    """What a training leaves."""

    curve: Sequence[Mapping[str, float]]
    """What was logged at each step, and what was measured before the first and after the last."""
    weights: dict[str, torch.Tensor]
    """Whole, and in rank 0 only."""
    is_sharded: bool
    """Whether a process had a part of the model only."""


def train_all(
    rank: Rank, *, bases: Mapping[str, Path], work: Path, spread: Spread, stop_at: int | None = None
) -> dict[str, Trained | None]:
    """Train by every kind, one after the other, each from its base model; None for a training that was stopped."""
    return {kind: train_one(rank, kind, base, work / kind, spread, stop_at) for kind, base in bases.items()}


def train_with_little_memory(rank: Rank, *, base: Path, work: Path, spread: Spread) -> Trained | None:
    """SFT in which a pass of more than one row does not fit into the memory of rank 1."""
    forward = LlamaModel.forward

    def forward_or_fail(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(options["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full. Of the")
        return forward(self, *arguments, **options)

    if rank.number == 1:
        LlamaModel.forward = forward_or_fail  # type: ignore[method-assign]
    return train_one(rank, "sft", base, work, spread)


def train_one(rank: Rank, kind: str, base: Path, work: Path, spread: Spread, stop_at: int | None = None) -> Trained | None:
    work.mkdir(parents=True, exist_ok=True)
    wait_for_all()
    steps = [0]

    def stop_requested() -> int | None:
        steps[0] += 1
        return signal.SIGTERM if steps[0] == stop_at else None

    context = run_context(work, rank=rank.number, spread=spread, stop_requested=stop_requested)
    torch.manual_seed(1)
    config = Optimization(precision="float32", batch_size=6, micro_batch_size=2, num_epochs=2, learning_rate=0.02)
    arguments = {
        **training_arguments(config, context, num_rows=len(PAIRS)),
        "optim": OPTIMIZERS.get(kind, "sgd"),
        "logging_steps": 1,
    }
    trainer: Any
    if kind in OBJECTIVES:
        with weights_of_first(spread):
            model = load_reward_model(base, new_head=True) if kind == "reward_model" else load_causal_lm(base)
        assert has_weights(model) == (rank.number == 0 or not spread.divides_model)
        collator = PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=40)
        trainer = PairwiseTrainer(prepare_model(model, spread=spread), PAIRS, OBJECTIVES[kind], collator, arguments)
    else:
        # Of rank 2, so that the parts of some processes are empty.
        peft = Lora(method="lora", rank=2) if kind == "lora" else None
        with weights_of_first(spread):
            model = load_trainable(TrainableModel(ModelFolder(base), peft, work, "test"))
        trainer = sft_trainer(shard(model, spread), load_format(ModelFolder(base)), ROWS, arguments)
    before = trainer.measure(PAIRS) if kind in OBJECTIVES else {}
    recompute = kind == "recompute"
    try:
        history = train(trainer, context, gradient_checkpointing=recompute)
    except Interrupted:
        return None
    is_sharded = all(hasattr(value, "full_tensor") or hasattr(value, "ds_id") for value in trainer.model.parameters())
    after = trainer.measure(PAIRS) if kind in OBJECTIVES else {}
    with whole(trainer.model, keep=rank.number == 0):
        weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()} if rank.number == 0 else {}
    return Trained([*history.rows, before, after], weights, is_sharded)


def train_with_infinite_gradient(rank: Rank, *, base: Path, work: Path, spread: Spread) -> Trained | None:
    """SFT in which the backward pass of rank 1 gives an infinite number; the loss is finite."""
    forward = LlamaModel.forward

    def forward_with_hook(self: Any, *arguments: Any, **options: Any) -> Any:
        result = forward(self, *arguments, **options)
        if result.last_hidden_state.requires_grad:
            result.last_hidden_state.register_hook(lambda gradient: gradient / 0)
        return result

    if rank.number == 1:
        LlamaModel.forward = forward_with_hook  # type: ignore[method-assign]
    return train_one(rank, "sft", base, work, spread)


def make_bases(folder: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """For each kind a model with a head of its own, or one whose head is its embedding."""
    for tied in (False, True):
        tiny_causal_lm(folder / str(tied), texts=["hello there", "안녕"] * 5, seed=1, tie_word_embeddings=tied)
    return {kind: folder / str(kind == "tied") for kind in kinds}


def run(bases: dict[str, Path], folder: Path, spread: Spread, stop_at: int | None = None) -> dict[str, Trained]:
    work: Any = partial(train_all, bases=bases, work=folder, spread=spread, stop_at=stop_at)
    if not spread.is_shared:
        return work(Rank(0, 1, lambda event: None, lambda: None))  # type: ignore[no-any-return]
    return run_ranks(work, spread, folder=folder / "ranks", emit=lambda event: None, stop_requested=lambda: None).value


def assert_same(found: Trained, expected: Trained, kind: str) -> None:
    assert len(found.curve) == len(expected.curve) == 6 + 2
    for row, expected_row in zip(found.curve, expected.curve, strict=True):
        assert row == pytest.approx(expected_row, rel=CURVES, abs=CURVES), kind
    assert found.weights.keys() == expected.weights.keys(), kind
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=WEIGHTS, msg=f"{kind}: {name}")
