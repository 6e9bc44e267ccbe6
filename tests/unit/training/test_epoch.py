"""Which checkpoints a training writes, and that one that was done is not repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.save import save_model
from align.records import Message, Preference
from align.runtime.events import Metrics, Progress, Saving
from align.stage import StageOutcome
from align.stages import dpo
from align.store.artifact import METRICS_NAME, MODEL_FOLDER, ROWS_NAME, write_rows
from align.testing import Recorder, input_artifact, stage_context
from align.testing.damage import flip

pytestmark = pytest.mark.slow

STEPS = 4
ROWS = [
    Preference(
        id=f"r{n}", line=n + 1, prompt=[Message(role="user", content=f"I lost key {n}.")], chosen=f"Oh no {n}!", rejected="So?"
    )
    for n in range(8)
]


class Training(Recorder):
    """A DPO of four steps in two epochs, in a store of its own; it can be run again in the same work folder."""

    def __init__(self, folder: Path, base: Path) -> None:
        super().__init__()
        write_rows(folder / "data" / ROWS_NAME, ROWS)
        self.output = folder / "store" / "dpo"
        self.artifacts = {
            "base": input_artifact("base", base, "model"),
            "rows": input_artifact("rows", folder / "data", "preferences"),
        }

    def run(self, **fields: Any) -> StageOutcome:
        self.events.clear()
        settings = {"precision": "float32", "batch_size": 4, "num_epochs": 2, "learning_rate": 1e-3, "max_tokens": 128}
        config = dpo.Config.model_validate({"model": "base", "pairs": "rows", **settings, **fields})
        return dpo.run(stage_context(config, self.output, self.artifacts, emit=self.handle))

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.output / "work" / "checkpoints").glob("*"))

    def saved(self) -> list[bool]:
        """For every `Saving` event, whether it begins."""
        return [event.seconds is None for event in self.of(Saving)]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture
def training(tmp_path: Path, project_template: Path) -> Training:
    return Training(tmp_path, project_template / "base")


def test_a_short_training_writes_its_model_and_no_checkpoint(training: Training) -> None:
    training.run()
    assert training.checkpoints == []
    assert training.saved() == [True, False]
    assert (training.output / MODEL_FOLDER / "model.safetensors").stat().st_nlink == 2, "the last epoch's, by another name"


@pytest.mark.parametrize("fields", [{"checkpoint_minutes": 1e-9}, {"checkpoint_steps": 1}])
def test_checkpoints_by_time_or_by_steps_but_none_after_the_last(training: Training, fields: dict[str, Any]) -> None:
    training.run(**fields)
    # Three were written; the oldest is gone.
    assert training.checkpoints == ["checkpoint-2", "checkpoint-3"]
    assert training.saved() == [True, False] * STEPS


def test_a_training_that_was_done_before_a_kill_is_not_repeated(training: Training) -> None:
    first = training.run()
    weights = (training.output / MODEL_FOLDER / "model.safetensors").read_bytes()
    curve = (training.output / METRICS_NAME).read_bytes()
    # A stage that begins again removes its outputs and keeps its work.
    shutil.rmtree(training.output / MODEL_FOLDER)
    (training.output / METRICS_NAME).unlink()
    again = training.run()
    assert "training was done before, after 4 steps" in training.notes
    assert [event.task for event in training.of(Progress)].count("train") == 0
    assert again.metrics == first.metrics
    assert (training.output / MODEL_FOLDER / "model.safetensors").read_bytes() == weights
    assert (training.output / METRICS_NAME).read_bytes() == curve
    assert [event.step for event in training.of(Metrics)] == [json.loads(line)["step"] for line in curve.splitlines()]


def test_a_record_without_its_model_is_not_believed(training: Training) -> None:
    training.run()
    weights = (training.output / MODEL_FOLDER / "model.safetensors").read_bytes()
    shutil.rmtree(training.output / "work" / "epochs")
    shutil.rmtree(training.output / MODEL_FOLDER)
    training.run()
    assert [event.task for event in training.of(Progress)].count("train") == STEPS
    assert (training.output / MODEL_FOLDER / "model.safetensors").read_bytes() == weights


def test_a_damaged_record_is_named_and_the_last_steps_are_trained_again(training: Training) -> None:
    training.run(checkpoint_steps=3)
    weights = (training.output / MODEL_FOLDER / "model.safetensors").read_bytes()
    shutil.rmtree(training.output / MODEL_FOLDER)
    flip(training.output / "work" / "history.json")
    training.run(checkpoint_steps=3)
    assert any(note.startswith("history.json was changed after it was written") for note in training.notes)
    assert "resuming from step 3" in training.notes
    assert (training.output / MODEL_FOLDER / "model.safetensors").read_bytes() == weights


def test_a_model_that_was_damaged_while_the_stage_was_interrupted_is_trained_again(training: Training) -> None:
    training.run(checkpoint_steps=3)
    weights = (training.output / MODEL_FOLDER / "model.safetensors").read_bytes()
    shutil.rmtree(training.output / MODEL_FOLDER)
    (epoch,) = (training.output / "work" / "epochs").iterdir()
    flip(epoch / "model.safetensors")
    training.run(checkpoint_steps=3)
    (note,) = (note for note in training.notes if "training begins again" in note)
    assert note.startswith(f"{epoch.name} is not used (model.safetensors does not have the content")
    assert (training.output / MODEL_FOLDER / "model.safetensors").read_bytes() == weights


def test_a_kill_between_the_last_step_and_its_record_trains_from_the_last_checkpoint(training: Training) -> None:
    training.run(checkpoint_steps=3)
    weights = (training.output / MODEL_FOLDER / "model.safetensors").read_bytes()
    (training.output / "work" / "history.json").unlink()
    shutil.rmtree(training.output / MODEL_FOLDER)
    training.run(checkpoint_steps=3)
    assert "resuming from step 3" in training.notes
    assert (training.output / MODEL_FOLDER / "model.safetensors").read_bytes() == weights


def test_a_model_that_came_in_bfloat16_is_trained_in_float32_and_kept_in_bfloat16(tmp_path: Path, project_template: Path) -> None:
    import torch

    base = ModelFolder(project_template / "base")
    save_model(load_causal_lm(base), base.tokenizer, tmp_path / "base", dtype="bfloat16")
    kept = {}
    for dtype in ("float32", "auto"):
        training = Training(tmp_path / dtype, tmp_path / "base")
        training.run(save_dtype=dtype, checkpoint_steps=3)
        kept[dtype] = training.output / MODEL_FOLDER
        in_training = tensors(training.output / "work" / "checkpoints" / "checkpoint-3")
        assert {tensor.dtype for tensor in in_training.values()} == {torch.float32}, "an interruption loses no digit"
    exact, rounded = tensors(kept["float32"]), tensors(kept["auto"])
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.to(torch.bfloat16), rounded[name]), name
    assert [ModelFolder(folder).stored_dtype for folder in kept.values()] == ["float32", "bfloat16"]
    sizes = [(folder / "model.safetensors").stat().st_blocks for folder in kept.values()]
    assert sizes[1] < 0.6 * sizes[0]

    (tmp_path / "auto" / "store" / "dpo" / "work" / "history.json").unlink()
    shutil.rmtree(kept["auto"])
    training.run(save_dtype="auto")
    assert "resuming from step 3" in training.notes
    again = tensors(kept["auto"])
    assert all(torch.equal(again[name], tensor) for name, tensor in rounded.items())


@pytest.mark.parametrize(("choice", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_a_model_that_came_in_float32_is_rounded_only_where_a_recipe_says_so(
    training: Training, choice: str, expected: str
) -> None:
    training.run(save_dtype=choice)
    assert {str(tensor.dtype) for tensor in tensors(training.output / MODEL_FOLDER).values()} == {f"torch.{expected}"}
