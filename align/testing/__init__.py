"""Tiny models built in code, for the tests of `align` and of those who build on it. Nothing is downloaded."""

from align.testing.builders import (
    candidate,
    input_artifact,
    pairwise_config,
    random_pairs,
    run_context,
    scored_candidate,
    stage_context,
)
from align.testing.judge import FakeJudge, fake_judge
from align.testing.project import tiny_project
from align.testing.recorder import Recorder
from align.testing.tiny import CHAT_TEMPLATE, fill_weights, tiny_causal_lm, tiny_reward_model, tiny_seq2seq_lm, tiny_tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "FakeJudge",
    "Recorder",
    "candidate",
    "fake_judge",
    "fill_weights",
    "input_artifact",
    "pairwise_config",
    "random_pairs",
    "run_context",
    "scored_candidate",
    "stage_context",
    "tiny_causal_lm",
    "tiny_project",
    "tiny_reward_model",
    "tiny_seq2seq_lm",
    "tiny_tokenizer",
]
