"""A method that exists only in the tests proves the seams of online training: groups, an estimator, no value model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rloo_method
import torch
from safetensors.torch import load_file

from align.records import Message, Prompt
from align.runtime.events import Metrics
from align.store.artifact import ROWS_NAME, write_rows
from align.testing import Recorder, input_artifact, stage_context
from align.training.online.advantage import RewardedBatch

RULES = {"rules": [{"type": "length", "name": "short", "max_characters": 8}]}
FIELDS: dict[str, Any] = {
    "model": "base", "prompts": "rows", "scorers": {"short": RULES}, "precision": "float32", "engine": "transformers",
    "num_episodes": 16, "rollout_batch_size": 8, "mini_batch_size": 4, "ppo_epochs": 2, "learning_rate": 1e-3,
    "max_completion_tokens": 6, "max_prompt_tokens": 96, "checkpoint_steps": 1,
}  # fmt: skip


def test_leave_one_out_trains_without_a_value_model(tmp_path: Path, project_template: Path) -> None:
    base = project_template / "base"
    prompts = [Prompt(id=f"p{n}", prompt=[Message(role="user", content=f"say {n}")]) for n in range(3)]
    write_rows(tmp_path / "rows" / ROWS_NAME, prompts)
    artifacts = [
        input_artifact("base", base, "model", fingerprint="base"),
        input_artifact("rows", tmp_path / "rows", "prompts", fingerprint="rows"),
    ]
    recorder, output = Recorder(), tmp_path / "output"
    inputs = {artifact.name: artifact for artifact in artifacts}
    context = stage_context(rloo_method.Config.model_validate(FIELDS), output, inputs, name="rloo", emit=recorder.handle)
    outcome = rloo_method.run(context)
    assert len(Path(rloo_method.__file__).read_text().splitlines()) <= 70
    assert (outcome.metrics["rollouts"], outcome.metrics["episodes"], outcome.rows_in) == (2, 16, 3)
    rows: list[Any] = [event.values for event in recorder.of(Metrics)]
    assert len(rows) == 2 and all(row["policy/grad_norm"] > 0 and row["objective/scores_std"] > 0 for row in rows)
    assert not {"val/explained_var", "loss/value_avg", "value/grad_norm", "val/clipfrac_avg"} & set().union(*rows)
    checkpoint = context.work / "checkpoints" / "checkpoint-1"
    assert (checkpoint / "policy.safetensors").exists() and not (checkpoint / "value.safetensors").exists()
    before, after = load_file(base / "model.safetensors"), load_file(output / "model" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_leave_one_out_by_hand() -> None:
    """Rewards 1, 2, 6 of one prompt: baselines 4, 3.5, 1.5. The fourth completion has a prompt of its own."""
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]]).bool()
    rewards = torch.tensor([[0.5, 0.5], [2.0, 0.0], [-1.0, 7.0], [3.0, 0.0]])
    batch = RewardedBatch(rewards.sum(-1), rewards, mask, torch.tensor([7, 7, 7, 8]), values=None)
    estimate = rloo_method.Config.model_validate(FIELDS).estimate(batch)
    assert estimate.returns is None
    assert estimate.advantages.tolist() == [[-3.0, -3.0], [-1.5, 0.0], [4.5, 4.5], [0.0, 0.0]]


@pytest.mark.parametrize(("changes", "said"), [({"vf_coef": 0.1}, "vf_coef"), ({"gamma": 0.9}, "gamma")])
def test_settings_of_a_value_model_belong_to_methods_that_have_one(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rloo_method.Config.model_validate({**FIELDS, **changes})
