"""The score stage with several workers: the same bytes as with one, and one worker where a judge scores."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.errors import Interrupted
from align.runtime.events import Event, Progress
from align.scoring.reward_model import RewardModelScorer
from align.stage import StageOutcome
from align.stages import score
from align.store.artifact import MODEL_FOLDER, Artifact, Entry, Manifest, write_rows
from align.testing import candidate, stage_context, tiny_reward_model

SCORERS = {"rm": "rm", "words": {"rules": [{"type": "length", "name": "w", "max_words": 2}]}}
TWO_MODELS = SCORERS | {"other": "rm2", "again": "rm"}
NUM_PROMPTS, EACH = 5, 2


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("store")
    made: dict[str, Any] = {"stage_version": 1, "fingerprint": "f" * 16, "config": {}, "inputs": {}, "seed": 1}
    sampled, *reward_models = (Entry(folder / name) for name in ("sampled", "rm", "rm2"))
    sampled.begin()
    rows = [
        candidate("word " * (prompt + index + 1), index, prompt_id=f"p{prompt}", prompt=f"question {prompt}")
        for prompt in range(NUM_PROMPTS)
        for index in range(EACH)
    ]
    write_rows(sampled.path / "rows.jsonl", rows)
    for seed, entry in enumerate(reward_models):
        entry.begin()
        tiny_reward_model(entry.path / MODEL_FOLDER, seed=seed)
    manifests = [
        sampled.commit(Manifest(kind="candidates", stage="generate", **made)),
        *(entry.commit(Manifest(kind="reward_model", stage="reward_model", **made)) for entry in reward_models),
    ]
    entries = zip(("sampled", "rm", "rm2"), (sampled, *reward_models), manifests, strict=True)
    return {name: Artifact(name, entry.path, manifest) for name, entry, manifest in entries}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "SHARD_ROWS", 3)


def run(
    folder: Path,
    artifacts: dict[str, Artifact],
    num_workers: int,
    stop_after: int | None = None,
    scorers: dict[str, Any] = SCORERS,
) -> StageOutcome:
    reached = [0.0]

    def send(event: Event) -> None:
        assert isinstance(event, Progress)
        reached.append(event.done)

    context = stage_context(
        score.Config.model_validate({"candidates": "sampled", "scorers": scorers, "num_workers": num_workers}),
        folder / "output",
        artifacts,
        emit=send,
        stop_requested=lambda: signal.SIGTERM if stop_after is not None and reached[-1] >= stop_after else None,
    )
    outcome = score.run(context)
    assert reached == sorted(reached)
    assert reached[-1] == NUM_PROMPTS * EACH * len(scorers)
    return outcome


def test_neither_workers_nor_a_stop_change_a_byte(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    alone = run(tmp_path / "alone", artifacts, 1)
    together = run(tmp_path / "together", artifacts, 2)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", artifacts, 1, stop_after=7)
    assert len(list((tmp_path / "stopped" / "output" / "work" / "shards").rglob("*.jsonl"))) == 1
    resumed = run(tmp_path / "stopped", artifacts, 1)
    rows = [(tmp_path / name / "output" / "rows.jsonl").read_bytes() for name in ("alone", "together", "stopped")]
    assert rows[0] == rows[1] == rows[2]
    assert alone == together == resumed


def test_one_reward_model_is_in_memory_at_a_time(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    open_now: set[int] = set()
    loads = 0
    start, close = RewardModelScorer.__init__, RewardModelScorer.close

    def closed(scorer: RewardModelScorer) -> None:
        open_now.discard(id(scorer))
        close(scorer)

    def counted(scorer: RewardModelScorer, *args: Any, **kwargs: Any) -> None:
        nonlocal loads
        loads += 1
        open_now.add(id(scorer))
        assert len(open_now) == 1
        start(scorer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RewardModelScorer, "__init__", counted)
        patch.setattr(RewardModelScorer, "close", closed)
        with pytest.raises(Interrupted):
            run(tmp_path, artifacts, 1, stop_after=NUM_PROMPTS * EACH * 3 + 1, scorers=TWO_MODELS)
        assert loads == 2  # two scorers share the first model
        open_now.clear()  # the stop ended the stage
        outcome = run(tmp_path, artifacts, 1, scorers=TWO_MODELS)
    assert loads == 3  # the first model had scored everything
    assert not open_now
    assert list(outcome.metrics) == list(TWO_MODELS)
    row = json.loads((tmp_path / "output" / "rows.jsonl").read_text().splitlines()[0])
    assert list(row["scores"]) == list(TWO_MODELS)
    assert row["scores"]["rm"] == row["scores"]["again"] != row["scores"]["other"]


def test_a_judge_is_called_from_one_process() -> None:
    judge = {"judge": {"base_url": "http://127.0.0.1:8000/v1", "model": "m"}}
    with pytest.raises(ValidationError, match="the judge 'j' is called from one process"):
        score.Config.model_validate({"candidates": "c", "scorers": {"rm": "rm", "j": judge}, "num_workers": 2})
