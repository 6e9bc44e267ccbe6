"""A tiny base model, and a place to train adapters of it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adapter_workshop import ROWS, Workshop, watch_started

from align.models import trainable as trainable_module
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.testing import tiny_causal_lm
from align.training.online.learner import PolicyLearner
from align.training.pairwise import reference as reference_module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [message.content for rows in ROWS.values() for row in rows for message in row.prompt] + ["Oh no!", "So?"] * 4
    return tiny_causal_lm(tmp_path_factory.mktemp("adapters") / "base", texts=texts, seed=2)


@pytest.fixture
def shop(tmp_path: Path, base: Path) -> Workshop:
    return Workshop(tmp_path, base)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of language models that were loaded to be trained, or to be a reference."""
    folders: list[Path] = []

    def counting(model: ModelFolder | Path, **options: Any) -> Any:
        folders.append(model.path if isinstance(model, ModelFolder) else model)
        return load_causal_lm(model, **options)

    for module in (trainable_module, reference_module):
        monkeypatch.setattr(module, "load_causal_lm", counting)
    return folders


@pytest.fixture
def updates_made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for every update of an online training so far: whether the policy learned from it."""
    apply, made = PolicyLearner._apply, list[bool]()

    def counted(self: PolicyLearner, learn_policy: bool) -> dict[str, float]:
        made.append(learn_policy)
        return apply(self, learn_policy)

    monkeypatch.setattr(PolicyLearner, "_apply", counted)
    return made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    models: list[Any] = []
    watch_started(monkeypatch, models.append)
    return models
