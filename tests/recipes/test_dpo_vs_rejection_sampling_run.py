"""recipes/dpo-vs-rejection-sampling at reduced size, to its table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from reduced import run_small

pytestmark = pytest.mark.slow


def test_dpo_against_rejection_sampling(tmp_path: Path) -> None:
    results = run_small(
        "dpo-vs-rejection-sampling",
        tmp_path,
        "stages.candidates.engine=transformers",
        "stages.candidates.max_completion_tokens=16",
        "stages.best_of_n.keep_truncated=true",
        "stages.pairs.keep_truncated=true",
        "stages.pairs.min_margin=0.0",
    )
    assert [row for row in results.models if "best of" not in row] == ["sft_best", "rejection_sampling", "dpo"]
    assert [row for row in results.models if "best of" in row] == [f"sft_best best of {n}" for n in (1, 2, 4, 8, 16)]
    assert list(results.models["rejection_sampling"].replicates or {}) == [f"rejection_sampling-s{seed}" for seed in (17, 18, 19)]
    assert results.models["sft_best best of 4"].kl_bound == pytest.approx(math.log(4) - 3 / 4)
