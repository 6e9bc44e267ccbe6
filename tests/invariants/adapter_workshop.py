"""A place to run single stages with adapters in, for the tests of what must hold of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.models.files import ADAPTER_WEIGHTS_NAME
from align.models.trainable import TrainableModel, load_trainable
from align.records import Instruction, Message, Preference, Prompt
from align.runtime.events import Progress
from align.stage import StageOutcome
from align.stages import dpo, orpo, ppo, reward_model, sft
from align.store.artifact import ROWS_NAME, Artifact, write_rows
from align.testing import Recorder, input_artifact, stage_context

LORA = {"method": "lora", "rank": 2}
QLORA = {"method": "qlora", "rank": 2}
PREFIX = {"method": "prefix_tuning", "num_virtual_tokens": 3}
PROMPT = {"method": "prompt_tuning", "num_virtual_tokens": 3}
FAST: dict[str, Any] = {"precision": "float32", "learning_rate": 5e-3}
RULES = {"rules": {"rules": [{"type": "length", "name": "short", "max_characters": 6}]}}
OF_STAGE: dict[Any, dict[str, Any]] = {
    sft: {"batch_size": 4, "max_tokens": 64, "num_epochs": 2},
    dpo: {"batch_size": 4, "max_tokens": 128, "num_epochs": 2},
    orpo: {"batch_size": 4, "max_tokens": 128, "num_epochs": 2},
    reward_model: {"batch_size": 2, "max_tokens": 128, "held_out_share": 0.4, "num_epochs": 2},
    ppo: {"num_episodes": 24, "rollout_batch_size": 8, "mini_batch_size": 4, "ppo_epochs": 1, "max_completion_tokens": 5,
          "max_prompt_tokens": 96, "engine": "transformers", "scorers": {"short": RULES}, "checkpoint_steps": 1,
          "missing_eos_penalty": 0.0},
}  # fmt: skip


def asked(number: int) -> list[Message]:
    return [Message(role="user", content=f"I lost key {number}.")]


ROWS: dict[Any, list[Any]] = {
    Instruction: [Instruction(id=f"i{n}", line=n + 1, prompt=asked(n), completion=f"Oh no {n}!") for n in range(8)],
    Preference: [Preference(id=f"r{n}", line=n + 1, prompt=asked(n), chosen=f"Oh no {n}!", rejected="So?") for n in range(8)],
    Prompt: [Prompt(id=f"p{n}", line=n + 1, prompt=asked(n)) for n in range(8)],
}
KINDS = {Instruction: "instructions", Preference: "preferences", Prompt: "prompts"}
READS = {sft: ("data", Instruction), reward_model: ("data", Preference), ppo: ("prompts", Prompt)}


class Workshop(Recorder):
    """Runs stages in this process on a tiny model; each result can be the next one's model."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        super().__init__()
        self.artifacts: dict[str, Artifact] = {}
        self._add("base", base, "model")
        for record, kind in KINDS.items():
            write_rows(folder / kind / ROWS_NAME, ROWS[record])
            self._add(kind, folder / kind, kind)

    def _add(self, name: str, path: Path, kind: str) -> None:
        self.artifacts[name] = input_artifact(name, path, kind)

    def run(self, name: str, stage: Any, *, stop: Callable[[int], int | None] = lambda done: None, **fields: Any) -> StageOutcome:
        """The result is in `self.output` and `self.model`, and can be named by later stages."""
        output = self.output = self.folder / "store" / name
        self.model = output / "model"
        role, record = READS.get(stage, ("pairs", Preference))
        values = {"model": "base", role: KINDS[record], **FAST, **OF_STAGE[stage], **fields}
        seen = len(self.events)

        def stop_requested() -> int | None:
            new = (event for event in self.events[seen:] if isinstance(event, Progress) and event.task == "train")
            return stop(max((int(event.done) for event in new), default=0))

        changes: dict[str, Any] = {"name": name, "seed": 3, "emit": self.handle, "stop_requested": stop_requested}
        context = stage_context(stage.Config.model_validate(values), output, self.artifacts, **changes)
        outcome: StageOutcome = stage.run(context)
        self._add(name, self.model, "reward_model" if stage is reward_model else "model")
        return outcome

    def trained_bytes(self) -> bytes:
        return (self.model / ADAPTER_WEIGHTS_NAME).read_bytes()

    def curve(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]


def watch_started(patch: pytest.MonkeyPatch, on_start: Callable[[Any], None]) -> None:
    """Call `on_start` with every model that a stage begins to train from now on, before its first step."""

    def watching(start: TrainableModel, **options: Any) -> Any:
        model = load_trainable(start, **options)
        on_start(model)
        return model

    for name in ("sft", "pairwise.run", "online.models"):
        patch.setattr(f"align.training.{name}.load_trainable", watching)
