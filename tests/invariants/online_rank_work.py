"""Online stages that run in one process or in several, for tests that compare them."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from align.engines.transformers_engine import TransformersEngine
from align.errors import Interrupted
from align.models import head
from align.records import Message, Prompt
from align.runtime.events import Emit
from align.runtime.group import wait_for_all
from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import Spread
from align.stages import distill, grpo, ppo, rloo
from align.store.artifact import METRICS_NAME, ROWS_NAME, write_rows
from align.testing import input_artifact, stage_context, tiny_causal_lm
from align.training.online import distill as distill_module
from align.training.online.learner import PolicyLearner

# Sums in another order. Measured in float32: curves 5e-7 of a number, weights 2.4e-7.
CURVES, WEIGHTS = 1e-5, 2e-6
# A process asks three times for each rollout batch, and once for each update: here between two updates from the second batch.
STOP_AT = 12
TEXTS = ["tell me something", "what is it", "why", "말해 줘", "왜 그래", "go on then", "and you", "hello there"]
RULES = {"rules": {"rules": [{"type": "length", "name": "short", "max_characters": 6}]}}
# An epsilon as large as gradients: Adam would make a whole step of the rounding of a small one.
COMMON: dict[str, Any] = {
    "model": "base", "prompts": "prompts", "engine": "transformers", "precision": "float32", "max_prompt_tokens": 96,
    "num_episodes": 24, "rollout_batch_size": 12, "mini_batch_size": 5, "ppo_epochs": 2, "max_completion_tokens": 6,
    "learning_rate": 1e-2, "adam_epsilon": 1e-2, "weight_decay": 0.1, "micro_batch_tokens": 40,
}  # fmt: skip
SCORED: dict[str, Any] = {**COMMON, "scorers": {"short": RULES}}
GROUPS: dict[str, Any] = {**SCORED, "group_size": 4, "truncated": "score"}
LORA = {"method": "lora", "rank": 2}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "grpo": (grpo, GROUPS),
    # Groups are replaced, completions left out, so that some processes have no passes; one mini-batch of several passes.
    "everything": (grpo, {**GROUPS, "group_size": 2, "kl_coef": 0.05, "refill_limit": 1, "truncated": "mask", "ppo_epochs": 1,
                          "loss_aggregation": "sequences", "ratio_level": "sequence", "update_kl_limit": 10.0}),
    "tied": (grpo, {**GROUPS, "model": "tied", "loss_aggregation": "constant"}),
    "recompute": (grpo, {**GROUPS, "gradient_checkpointing": True}),
    "lora": (grpo, {**GROUPS, "peft": LORA, "kl_coef": 0.05, "kl_limit": 100.0}),
    "rloo": (rloo, {**GROUPS, "kl_coef": 0.05, "num_episodes": 36}),
    "ahead": (grpo, {**GROUPS, "num_episodes": 36, "rollouts_ahead": 1, "importance": "token_truncate", "check_weights": True}),
    "ppo": (ppo, {**SCORED, "value_learning_rate": 2e-2}),
    "ppo_lora": (ppo, {**SCORED, "peft": LORA, "whiten_rewards": True, "critic_warmup_batches": 1}),
    "distill": (distill, {**COMMON, "teacher": "teacher", "watch": {"short": RULES}}),
    "distill_lora": (distill, {**COMMON, "model": "tied", "teacher": "teacher", "beta": 0.5, "peft": LORA}),
}  # fmt: skip


def write_inputs(folder: Path) -> None:
    """A model with a head of its own, one whose head is its embedding, a wider teacher, and prompts."""
    tiny_causal_lm(folder / "base", texts=TEXTS, seed=2, tie_word_embeddings=False)
    tiny_causal_lm(folder / "tied", texts=TEXTS, seed=2, tie_word_embeddings=True)
    tiny_causal_lm(folder / "teacher", texts=TEXTS, seed=3, hidden_size=48)
    prompts = [Prompt(id=f"p{n}", prompt=[Message(role="user", content=text)]) for n, text in enumerate(TEXTS)]
    write_rows(folder / "prompts" / ROWS_NAME, prompts)


def run_kinds(
    inputs: Path,
    folder: Path,
    spread: Spread,
    kinds: Sequence[str],
    *,
    stop_at: int | None = None,
    broken: int | None = None,
    killed: bool = False,
    address: str = "",
    emit: Emit = lambda event: None,
    stop: Callable[[], int | None] = lambda: None,
    **changes: Any,
) -> dict[str, Any]:
    """The outcome of each kind of stage, whose files are in a folder of its name; None for one that was stopped.

    Args:
        stop_at: number of the question, of a process, whether to stop.
        broken: rank whose losses are no numbers.
        killed: see `run_all`.
        address: of the Ray cluster, if there are several nodes.
        emit, stop: of the caller of the ranks.
    """
    work: Any = partial(
        run_all,
        inputs=inputs,
        folder=folder,
        spread=spread,
        kinds=kinds,
        stop_at=stop_at,
        broken=broken,
        killed=killed,
        changes=changes,
    )
    if not spread.is_shared:
        return work(Rank(0, 1, lambda event: None, lambda: None))  # type: ignore[no-any-return]
    found = run_ranks(
        work, spread, folder=folder / "ranks", emit=emit, stop_requested=stop, address=address
    )  # fmt: skip
    return found.value  # type: ignore[no-any-return]


def run_all(
    rank: Rank,
    *,
    inputs: Path,
    folder: Path,
    spread: Spread,
    kinds: Sequence[str],
    stop_at: int | None = None,
    broken: int | None = None,
    killed: bool = False,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a rank does for `run_kinds`.

    Args:
        killed: whether the last rank is killed where the others would be asked to stop.
    """
    with patch.object(PolicyLearner, "_policy_loss", _no_number if rank.number == broken else _policy_loss):
        return {kind: _run(rank, kind, inputs, folder / kind / "output", spread, stop_at, killed, changes) for kind in kinds}


def _run(
    rank: Rank,
    kind: str,
    inputs: Path,
    output: Path,
    spread: Spread,
    stop_at: int | None,
    killed: bool,
    changes: Mapping[str, Any],
) -> Any:
    asked = [0]

    def stop_requested() -> int | None:
        asked[0] += 1
        if asked[0] == stop_at and killed and rank.number == rank.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return signal.SIGTERM if asked[0] == stop_at and not killed else rank.stop_requested()

    stage, fields = KINDS[kind]
    config = stage.Config.model_validate({**fields, **changes})
    kinds = {"base": "model", "tied": "model", "teacher": "model", "prompts": "prompts"}
    artifacts = {name: input_artifact(name, inputs / name, of) for name, of in kinds.items()}
    wait_for_all()
    context = stage_context(
        config, output, artifacts, emit=rank.emit, stop_requested=stop_requested, rank=rank.number, spread=spread
    )
    with ExitStack() as patched:
        for target, name, other in PATCHES.get(kind, ()):
            patched.enter_context(patch.object(target, name, other))
        try:
            return stage.run(context)
        except Interrupted:
            return None


def rows_of(folder: Path, kind: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / kind / "output" / METRICS_NAME).read_text().splitlines()]


def weights_of(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / kind / "output" / "model").glob("*.safetensors")
    return load_file(file)


def assert_same(folder: Path, expected: Path, kind: str) -> None:
    """Curves and weights are equal to rounding, and the model has the same files."""
    for row, other in zip(rows_of(folder, kind), rows_of(expected, kind), strict=True):
        assert row == pytest.approx(other, rel=CURVES, abs=CURVES), kind
    found, wanted = weights_of(folder, kind), weights_of(expected, kind)
    assert found.keys() == wanted.keys(), kind
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=WEIGHTS, msg=f"{kind}: {name}")
    model = Path(kind) / "output" / "model"
    assert {path.name for path in (folder / model).iterdir()} == {path.name for path in (expected / model).iterdir()}
    assert (folder / model / "config.json").read_bytes() == (expected / model / "config.json").read_bytes()


def assert_equal(folder: Path, expected: Path, kind: str) -> None:
    """Curves and weights have the same bytes."""
    assert rows_of(folder, kind) == rows_of(expected, kind), kind
    found, wanted = weights_of(folder, kind), weights_of(expected, kind)
    assert found.keys() == wanted.keys(), kind
    assert all(torch.equal(value, wanted[name]) for name, value in found.items()), kind


_generate = TransformersEngine.generate
_policy_loss = PolicyLearner._policy_loss


def _no_number(self: Any, batch: Any, old: Any, logps: Any) -> Any:
    loss = _policy_loss(self, batch, old, logps)
    return loss._replace(losses=loss.losses * math.nan)


def _half_end(self: Any, requests: Any, settings: Any) -> Any:
    """Says of every second completion that it ended by itself, as a random model's hardly ever does."""
    groups = _generate(self, requests, settings)
    for group in groups:
        for completion in group[::2]:
            object.__setattr__(completion, "finish_reason", "stop")
    return groups


# Chunks of few tokens, so that processes have different numbers of them.
PATCHES: dict[str, list[tuple[Any, str, Any]]] = {
    "everything": [(TransformersEngine, "generate", _half_end), (head, "logits_chunk_tokens", lambda *_: 4)],
    "distill": [(distill_module, "teacher_chunk_tokens", lambda *_: 3)],
}
