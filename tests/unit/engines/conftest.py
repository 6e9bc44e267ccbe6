"""Prompts that both engines are tried on."""

from __future__ import annotations

import pytest

from align.engines.protocol import GenerationRequest, SamplingSettings


@pytest.fixture
def requests_() -> list[GenerationRequest]:
    return [GenerationRequest([10 + i, 20, 30 + i][: 1 + i % 3], seed=1000 * i) for i in range(6)]


@pytest.fixture
def settings() -> SamplingSettings:
    return SamplingSettings(
        temperature=1.0, top_p=1.0, top_k=None, max_completion_tokens=6, num_candidates=3, stop_token_ids=(2,)
    )
