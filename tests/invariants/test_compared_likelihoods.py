"""Likelihoods of a comparison are the same whoever computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.models.folder import ModelFolder
from align.records import Candidate, Message
from align.scoring import compared_likelihoods
from align.scoring.compared_likelihoods import Likelihoods, Reader, measure_likelihoods
from align.scoring.likelihood import LikelihoodModel
from align.testing import run_context, tiny_causal_lm

pytestmark = pytest.mark.slow

IDS = {f"p{number}": list(range(5, 8 + number)) for number in range(6)}
TEXTS = ["hello there", "a", "hello hello there", "there is more of it"]


def candidates(first_token: int) -> list[Candidate]:
    return [
        Candidate(
            prompt_id=name,
            candidate_index=number,
            reference=None,
            prompt=[Message(role="user", content="hello")],
            completion="there",
            completion_token_ids=[first_token + number] * (1 + 3 * number + len(ids) % 3),
            completion_tokens=1,
            finish_reason="stop",
            seed=0,
        )
        for name, ids in IDS.items()
        for number in range(2)
    ]


def test_any_number_of_workers_gives_the_numbers_of_one_model_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compared_likelihoods, "ROWS_AT_ONCE", 3)
    names = ("first", "second", "third")
    folders = {
        name: ModelFolder(tiny_causal_lm(tmp_path / name, texts=["hello there"] * 5, seed=seed))
        for seed, name in enumerate(names)
    }
    answers = {name: candidates(6 + place) for place, name in enumerate(names)}

    def measured(workers: int) -> Likelihoods:
        (work := tmp_path / str(workers)).mkdir()
        ids = dict.fromkeys(names, IDS)
        options: dict[str, Any] = {"baseline": "first", "texts": TEXTS, "batch_tokens": 64, "num_workers": workers}
        readers = {name: Reader(folder, name) for name, folder in folders.items()}
        return measure_likelihoods(run_context(work), readers, answers, ids, **options, store_root=work / "store")

    alone, shared = measured(1), measured(2)
    assert alone.kl.keys() == {"second", "third"}
    models = {name: LikelihoodModel(folder, batch_tokens=64) for name, folder in folders.items()}
    for name in names:
        assert alone.perplexity[name] == pytest.approx(models[name].perplexity(TEXTS), rel=1e-5)
        assert shared.perplexity[name] == pytest.approx(alone.perplexity[name], rel=1e-6)
    for name in ("second", "third"):
        rows = [(IDS[row.prompt_id], row.completion_token_ids) for row in answers[name]]
        own, theirs = (models[reader].completion_logps(rows) for reader in (name, "first"))
        for number, prompt_id in enumerate(IDS):
            both = slice(2 * number, 2 * number + 2)
            expected = sum(a - b for a, b in zip(own[both], theirs[both], strict=True)) / 2
            assert alone.kl[name][prompt_id] == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert shared.kl[name] == pytest.approx(alone.kl[name], rel=1e-6, abs=1e-6)
    assert any(alone.kl["second"].values())
