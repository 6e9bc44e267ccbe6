"""The key of kept answers has everything that decides a text, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.sections import Generation
from align.engines import kept_answers
from align.engines.kept_answers import answers_key
from align.engines.task import SamplingTask
from align.models.folder import ModelFolder
from align.records import Message, Prompt
from align.store.fingerprint import fingerprint
from align.testing import tiny_causal_lm

CHANGED: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "max_completion_tokens": 7,
    "max_prompt_tokens": 40,
    "engine": "auto",
    "dtype": "float32",
    "shard_prompts": 2,
    "num_workers": 2,
    "num_candidates": 2,
    "on_invalid": "drop",
}
"""Another value for every field that says how text is generated."""
NO_MATTER = {"num_workers", "on_invalid", "dtype", "engine"}
"""These change nothing: any number of processes gives the same texts, a dropped prompt is not among the task's, and the last two
name what is used anyway."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SamplingTask:
    folder = ModelFolder(tiny_causal_lm(tmp_path_factory.mktemp("model") / "base", texts=["hello"]))
    prompts = [Prompt(id=name, prompt=[Message(role="user", content="hello")], reference=None) for name in ("a", "b")]
    return SamplingTask(folder, prompts, [[5, 6], [7]], (2,), Generation(engine="transformers"), seed=1)


def key_of(task: SamplingTask, model: str = "m", **options: Any) -> str:
    return fingerprint(answers_key(task, model, **options))


def test_every_setting_that_decides_a_text_is_in_the_key(task: SamplingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_answers, "engine_for_model", lambda name, folder: "transformers")
    monkeypatch.setattr(kept_answers, "resolve_dtype", lambda name: "float32")
    assert CHANGED.keys() == Generation.model_fields.keys()
    assert all(getattr(task.config, name) != value for name, value in CHANGED.items())
    for name, value in CHANGED.items():
        changed = replace(task, config=task.config.model_copy(update={name: value}))
        assert (key_of(changed) == key_of(task)) == (name in NO_MATTER), name


def test_everything_else_that_decides_a_text_is_in_the_key(task: SamplingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = task.prompts
    renamed = [first.model_copy(update={"id": "c"}), second]
    others = [
        replace(task, seed=2),
        replace(task, stop_token_ids=(2, 3)),
        replace(task, first_candidate=1),
        replace(task, prompts=renamed),
        replace(task, prompt_token_ids=[[5, 6], [8]]),  # another template
        replace(task, prompts=[second, first], prompt_token_ids=[[7], [5, 6]]),  # other shards
    ]
    keys = [key_of(task), *map(key_of, others), key_of(task, "another model"), key_of(task, gpus_each=2)]
    found: dict[str, Any] = {"engine_for_model": "vllm", "resolve_dtype": "bfloat16", "device_kind": "a GPU"}
    for name, value in {**found, "versions_of": {"torch": "9"}}.items():
        with monkeypatch.context() as patch:
            patch.setattr(kept_answers, name, lambda *_, value=value: value)
            keys.append(key_of(task))
    assert len(set(keys)) == len(keys)


def test_where_the_model_lies_does_not_matter(task: SamplingTask, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(task.model_folder.path)
    assert key_of(replace(task, model_folder=ModelFolder(tmp_path / "moved"))) == key_of(task)
