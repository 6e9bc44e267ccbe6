"""recipes/reward-hacking at reduced size, to its table."""

from __future__ import annotations

from pathlib import Path

import pytest
from reduced import run_small

pytestmark = pytest.mark.slow


def test_reward_hacking(tmp_path: Path) -> None:
    small = ("num_episodes=8", "rollout_batch_size=4", "mini_batch_size=4", "max_completion_tokens=16", "engine=transformers")
    results = run_small("reward-hacking", tmp_path, *(f"stages.{stage}.{s}" for stage in ("ppo_kl", "ppo_no_kl") for s in small))
    assert [row for row in results.models if "best of" not in row] == ["sft_best", "ppo_kl", "ppo_no_kl"]
    assert "optimised and watched scores" in (tmp_path / "reward-hacking" / "report.html").read_text()
