"""The same texts however often sampling was interrupted, in whatever order shards were made, by however many workers."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from align.engines.holder import EngineHolder
from align.engines.shards import sample
from align.engines.task import SamplingTask, max_prompt_tokens_for
from align.errors import Interrupted, RecipeError, StageError
from align.models.folder import ModelFolder
from align.records import Candidate, Message, Prompt
from align.runtime.seed import derive_seed
from align.stages.generate import Config
from align.store.shard import read_seal, shard_path, write_shard

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(id=f"p{i}", prompt=[Message(role="user", content="x" * i)], reference=None) for i in range(7)]


def task(project: Path, **changes: object) -> SamplingTask:
    fields = {"model": "m", "prompts": "p", "engine": "transformers", "shard_prompts": 3, "max_completion_tokens": 4}
    config = Config.model_validate({**fields, "num_candidates": 2, **changes})
    tokens = [[5 + i, 6, 7][: 1 + i % 3] for i in range(7)]
    return SamplingTask(ModelFolder(project / "base"), PROMPTS, tokens, (2,), config, seed=4)


def run(sampling_task: SamplingTask, folder: Path, stop_after: int | None = None) -> list[Candidate]:
    done = [0]

    def report(finished: int, _: int) -> None:
        done[0] = finished

    stop = lambda: signal.SIGTERM if stop_after is not None and done[0] >= stop_after else None  # noqa: E731
    holder = EngineHolder(sampling_task.config)
    return list(sample(sampling_task, folder, holder=holder, stop_requested=stop, report=report).candidates())


@pytest.fixture(scope="module")
def expected(project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    return run(task(project_template), tmp_path_factory.mktemp("whole"))


def test_candidates_come_in_the_order_of_prompts_with_their_own_seeds(expected: list[Candidate]) -> None:
    assert [(row.prompt_id, row.candidate_index) for row in expected] == [(f"p{i}", k) for i in range(7) for k in range(2)]
    assert [row.seed for row in expected] == [derive_seed(4, "sample", f"p{i}") + k for i in range(7) for k in range(2)]
    assert all(row.completion_tokens == len(row.completion_token_ids) for row in expected)


def test_the_last_shard_holds_the_remainder(project_template: Path) -> None:
    assert task(project_template).num_shards == 3


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interruption_changes_no_text(
    project_template: Path, tmp_path: Path, expected: list[Candidate], stop_after: int
) -> None:
    with pytest.raises(Interrupted):
        run(task(project_template), tmp_path, stop_after=stop_after)
    assert len(list(tmp_path.glob("*.jsonl"))) == stop_after
    assert run(task(project_template), tmp_path) == expected


def test_a_shard_of_other_candidates_is_refused(project_template: Path, tmp_path: Path, expected: list[Candidate]) -> None:
    shard, seal = shard_path(tmp_path, 1), {"engine": "transformers", "version": "1", "tokens": 1, "seconds": 1.0}
    write_shard(shard, [expected[6], expected[8], expected[7], *expected[9:12]], **seal)
    with pytest.raises(StageError, match=r"6 candidates were sampled, but 6 are needed, or their ids differ\n→ Remove"):
        run(task(project_template), tmp_path)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.with_suffix(".json").unlink()])
def test_a_damaged_or_unsealed_shard_is_made_again(project_template: Path, tmp_path: Path, expected, damage) -> None:  # type: ignore[no-untyped-def]
    run(task(project_template), tmp_path)
    damage(shard_path(tmp_path, 1))
    assert read_seal(shard_path(tmp_path, 1)) is None
    assert run(task(project_template), tmp_path) == expected


def test_two_workers_give_the_texts_of_one(project_template: Path, tmp_path: Path, expected: list[Candidate]) -> None:
    assert run(task(project_template, num_workers=2), tmp_path) == expected


def test_a_stop_of_two_workers_keeps_their_shards_and_changes_no_text(project_template: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(task(project_template, shard_prompts=1, num_workers=2), tmp_path / "stopped", stop_after=1)
    whole = [index for index in range(7) if read_seal(shard_path(tmp_path / "stopped", index)) is not None]
    assert 1 <= len(whole) <= 3
    one_by_one = task(project_template, shard_prompts=1)
    assert run(one_by_one, tmp_path / "stopped") == run(one_by_one, tmp_path / "whole")


def test_a_prompt_must_have_room_beside_its_completion(project_template: Path) -> None:
    config = task(project_template, max_completion_tokens=500, max_prompt_tokens=400).config
    assert max_prompt_tokens_for(ModelFolder(project_template / "base"), config) == 12  # the model sees 512
    with pytest.raises(RecipeError, match="sees 512 tokens, max_completion_tokens is 512"):
        max_prompt_tokens_for(ModelFolder(project_template / "base"), task(project_template, max_completion_tokens=512).config)
