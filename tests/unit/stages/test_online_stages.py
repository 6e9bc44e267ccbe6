"""The methods that compare the completions of a prompt: what their stages leave, their advantages, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.config.base import Problem
from align.records import Message, Prompt
from align.runtime.events import Metrics
from align.stages import grpo, rloo
from align.store.artifact import ROWS_NAME, write_rows
from align.testing import Recorder, input_artifact, stage_context
from align.training.online.advantage import RewardedBatch

RULES = {"rules": [{"type": "length", "name": "short", "max_characters": 8}]}
FIELDS: dict[str, Any] = {
    "model": "base", "prompts": "rows", "scorers": {"short": RULES}, "precision": "float32", "engine": "transformers",
    "num_episodes": 16, "rollout_batch_size": 8, "mini_batch_size": 4, "ppo_epochs": 2, "learning_rate": 1e-3, "group_size": 4,
    "truncated": "score", "max_completion_tokens": 6, "max_prompt_tokens": 96, "checkpoint_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize(("module", "has_kl"), [(grpo, False), (rloo, True)], ids=["grpo", "rloo"])
def test_what_a_stage_leaves(tmp_path: Path, project_template: Path, module: ModuleType, has_kl: bool) -> None:
    base = project_template / "base"
    prompts = [Prompt(id=f"p{n}", prompt=[Message(role="user", content=f"say {n}")]) for n in range(3)]
    write_rows(tmp_path / "rows" / ROWS_NAME, prompts)
    artifacts = [
        input_artifact("base", base, "model", fingerprint="base"),
        input_artifact("rows", tmp_path / "rows", "prompts", fingerprint="rows"),
    ]
    recorder, output = Recorder(), tmp_path / "output"
    inputs = {artifact.name: artifact for artifact in artifacts}
    context = stage_context(module.Config.model_validate(FIELDS), output, inputs, name=module.Config.method, emit=recorder.handle)
    outcome = module.run(context)
    assert len(Path(str(module.__file__)).read_text().splitlines()) <= 70
    assert (outcome.metrics["rollouts"], outcome.metrics["episodes"], outcome.rows_in) == (2, 16, 3)
    assert outcome.metrics["scored_completions"] == 16 and outcome.metrics["truncated_completions"] == 0
    rows: list[Any] = [event.values for event in recorder.of(Metrics)]
    assert len(rows) == 2 and all(row["policy/grad_norm"] > 0 and row["objective/scores_std"] > 0 for row in rows)
    assert all(("objective/kl" in row) is has_kl and "zero_variance_groups" in row for row in rows)
    assert not {"val/explained_var", "loss/value_avg", "value/grad_norm", "val/clipfrac_avg"} & set().union(*rows)
    checkpoint = context.work / "checkpoints" / "checkpoint-1"
    assert (checkpoint / "policy.safetensors").exists() and not (checkpoint / "value.safetensors").exists()
    before, after = load_file(base / "model.safetensors"), load_file(output / "model" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def advantages(module: ModuleType, **changes: Any) -> list[list[float]]:
    """Of rewards 1, 2, 6 for one prompt, and of a completion that is alone with its prompt."""
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]]).bool()
    rewards = torch.tensor([[0.5, 0.5], [2.0, 0.0], [-1.0, 7.0], [3.0, 0.0]])
    batch = RewardedBatch(rewards.sum(-1), rewards, mask, torch.tensor([7, 7, 7, 8]), values=None)
    estimate = module.Config.model_validate({**FIELDS, **changes}).estimate(batch)
    assert estimate.returns is None
    found: list[list[float]] = estimate.advantages.tolist()
    return found


def test_leave_one_out_by_hand() -> None:
    """Baselines 4, 3.5, 1.5."""
    assert advantages(rloo) == [[-3.0, -3.0], [-1.5, 0.0], [4.5, 4.5], [0.0, 0.0]]


def test_group_mean_by_hand() -> None:
    """Less 3, over the sample standard deviation of 1, 2, 6, which is the root of 7; that of 1, 2, 6, 3 is the root of 14 / 3."""
    for scale, divisor in (("none", 1.0), ("std", 7**0.5), ("batch", (14 / 3) ** 0.5)):
        expected = [[-2.0, -2.0], [-1.0, 0.0], [3.0, 3.0], [0.0, 0.0]]
        found = torch.tensor(advantages(grpo, advantage_scale=scale))
        torch.testing.assert_close(found * divisor, torch.tensor(expected), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vf_coef": 0.1}, "vf_coef"),
        ({"gamma": 0.9}, "gamma"),
        ({"center_scores": False}, "center_scores"),
        ({"group_size": 3}, r"rollout_batch_size must be a multiple of group_size \(3\), not 8; the next one is 9"),
        ({"kl_target": 6.0}, "adapts kl_coef, which is 0"),
        ({"group_size": 1}, "group_size"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grpo.Config.model_validate({**FIELDS, **changes})


def test_a_batch_of_the_usual_size_and_a_group_that_does_not_divide_it() -> None:
    assert list(grpo.Config.check_fields({"group_size": 12})) == [
        Problem(("group_size",), "rollout_batch_size must be a multiple of group_size (12), not 256; the next one is 264")
    ]


def test_only_what_is_needed_is_in_memory() -> None:
    copies = lambda module, **changes: module.Config.model_validate({**FIELDS, **changes}).training_needs().frozen_copies  # noqa: E731
    assert (copies(grpo), copies(grpo, kl_coef=0.1), copies(grpo, kl_limit=5.0), copies(rloo)) == (0, 1, 2, 1)
    assert grpo.Config.model_validate(FIELDS).training_needs().value_model is None
