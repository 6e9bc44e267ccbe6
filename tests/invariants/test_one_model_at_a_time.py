"""A model is gone before the next one is loaded, wherever a stage needs one after the other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.models import load
from align.pipeline.recipe import load_recipe
from align.pipeline.run import run_recipe
from align.runtime.events import Event, StageStarted

STAGES = """\
name: memory
seed: 5
inputs:
  base:         {kind: model, path: base}
  instructions: {kind: instructions, path: instructions.jsonl}
  comparisons:  {kind: preferences, path: preferences.jsonl}
  held_out:     {kind: prompts, path: held_out.jsonl}
  retention:    {kind: text, path: retention.txt}
stages:
  sft: {stage: sft, model: base, data: instructions, num_epochs: 2, batch_size: 8, max_tokens: 128}
  reward: {stage: reward_model, model: base, data: comparisons, batch_size: 8, max_tokens: 128, held_out_share: 0.3}
  other: {stage: reward_model, model: base, data: comparisons, batch_size: 8, max_tokens: 128, held_out_share: 0.3,
          peft: {method: lora, rank: 2}}
  dpo: {stage: dpo, model: sft, reference: base, pairs: comparisons, batch_size: 8, max_tokens: 128}
  best: {stage: select_checkpoint, model: sft, prompts: held_out, data: instructions, scorer: reward, max_completion_tokens: 4,
         max_prompt_tokens: 96, engine: transformers, bootstrap_resamples: 200}
  compare: {stage: compare, models: [sft, dpo], baseline: sft, prompts: held_out, retention: retention, best_of: [2],
            max_completion_tokens: 4, max_prompt_tokens: 96, engine: transformers, bootstrap_resamples: 200,
            scorers: {one: reward, two: other}}
"""


class Loads:
    """Counts models: for every one that is loaded in a stage, how many others of that stage are still in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beside: dict[str, list[int]] = {}
        self._models: list[weakref.ref[Any]] = []
        self._read = load._load
        monkeypatch.setattr(load, "_load", self._load)

    def handle(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            # In one process the models of an earlier stage may still wait for the collector; in a run each has its own.
            self._models.clear()
            self.beside[event.stage] = []

    def _load(self, *arguments: Any, **options: Any) -> Any:
        self.beside[list(self.beside)[-1]].append(sum(model() is not None for model in self._models))
        loaded = self._read(*arguments, **options)
        self._models.append(weakref.ref(loaded[0]))
        return loaded


@pytest.fixture
def without_collector() -> Iterator[None]:
    """The collector runs only where the code calls it, so that no model goes by chance."""
    gc.disable()
    yield
    gc.enable()


def test_no_model_is_loaded_beside_another(project: Path, monkeypatch: pytest.MonkeyPatch, without_collector: None) -> None:
    loads = Loads(monkeypatch)
    (project / "recipe.yaml").write_text(STAGES)
    run_recipe(load_recipe(project), project / "runs", sinks=[loads], in_process=True)
    assert loads.beside == {
        "sft": [0],
        "reward": [0, 0],  # trained, scores held-out pairs
        "other": [0, 0],
        "dpo": [0, 0],  # reference, policy
        "best": [0] * 5,  # answers of two epochs, scorer, losses of two epochs
        "compare": [0] * 6,  # answers, scorers and likelihoods of two
    }
