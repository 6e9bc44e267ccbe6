"""recipes/preference-data at reduced size, to its table."""

from __future__ import annotations

from pathlib import Path

import pytest
from reduced import RECIPES, run_small

from align.pipeline.recipe import load_recipe

pytestmark = pytest.mark.slow


def test_every_way_of_pairing(tmp_path: Path) -> None:
    ways = [name for name in load_recipe(RECIPES / "preference-data").stages if name.endswith("-pairs-s17")]
    names = [way.removesuffix("-pairs-s17") for way in ways]
    results = run_small(
        "preference-data",
        tmp_path,
        "stages.candidates.seeds=[17]",
        "stages.candidates.engine=transformers",
        "stages.candidates.max_completion_tokens=16",
        "stages.margin-window-pairs.min_margin=0.0",
        "stages.margin-window-pairs.max_margin=100.0",
        "stages.length-matched-pairs.max_length_ratio=10.0",
        "stages.agreed-pairs.min_agreement=0.0",
        *(f"stages.{name}-pairs.keep_truncated=true" for name in names),
        *(f"stages.{name}.num_epochs=1" for name in names),
    )
    assert set(results.models) == {"sft_best", *names}
    assert len(names) == 11
