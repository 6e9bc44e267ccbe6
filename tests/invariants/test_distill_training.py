"""Learning from a teacher: the gradient, what must not change the result, and that the student comes nearer to the teacher."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.errors import Interrupted, RecipeError
from align.losses import generalized_jsd_loss
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.trainable import TrainableModel
from align.records import Message, Prompt
from align.runtime.events import Metrics
from align.stages import distill
from align.store.artifact import METRICS_NAME, ROWS_NAME, write_rows
from align.testing import Recorder, input_artifact, stage_context, tiny_causal_lm
from align.training.online import distill as distill_module
from align.training.online.distill import Distiller
from align.training.online.layout import Episode
from align.training.online.learner import Learner, Optimizers
from align.training.online.models import ForwardSettings, load_models
from align.training.pass_size import PassSize

pytestmark = pytest.mark.slow

TEXTS = [f"say {word}" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
HELD_OUT = ["say nine", "what is two", "six or seven", "why"]
FIELDS: dict[str, Any] = {
    "model": "student", "teacher": "teacher", "prompts": "rows", "precision": "float32", "engine": "transformers",
    "num_episodes": 160, "rollout_batch_size": 16, "mini_batch_size": 8, "learning_rate": 3e-3, "lr_scheduler": "constant",
    "max_completion_tokens": 8, "max_prompt_tokens": 96,
    "watch": {"short": {"rules": [{"type": "length", "name": "short", "max_characters": 8}]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and a wider teacher with the same tokenizer, whose vocabulary is padded to more rows."""
    folder = tmp_path_factory.mktemp("distill")
    tiny_causal_lm(folder / "student", texts=TEXTS, seed=1)
    tiny_causal_lm(folder / "teacher", texts=TEXTS, seed=2, hidden_size=48, vocab_size=320)
    write_rows(folder / "rows" / ROWS_NAME, [Prompt(id=text, prompt=[Message(role="user", content=text)]) for text in TEXTS])
    return folder


def run(models: Path, output: Path, **changes: Any) -> tuple[Any, Recorder]:
    """The outcome of the stage, and its events."""
    stop = changes.pop("stop", lambda: None)
    artifacts = [
        input_artifact("student", models / "student", "model"),
        input_artifact("teacher", changes.pop("folder", models / "teacher"), "model"),
        input_artifact("rows", models / "rows", "prompts"),
    ]
    recorder, config = Recorder(), distill.Config.model_validate({**FIELDS, **changes})
    inputs = {artifact.name: artifact for artifact in artifacts}
    context = stage_context(config, output, inputs, emit=recorder.handle, stop_requested=stop)
    return distill.run(context), recorder


@pytest.fixture(scope="module")
def undisturbed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Recorder]:
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    return output, *run(models, output)


def held_out_kl(models: Path, student: Path) -> float:
    """Nats per token, KL(student ‖ teacher) behind prompts that no training saw."""
    chat_format = load_format(ModelFolder(models / "student"))
    one, other = (load_causal_lm(folder) for folder in (student, models / "teacher"))
    found = []
    for text in HELD_OUT:
        prompt = chat_format.tokenizer([chat_format.prompt_text([Message(role="user", content=text)])], add_special_tokens=False)
        ids = torch.tensor([prompt["input_ids"][0] + [40, 50, 60]])
        with torch.no_grad():
            width = len(chat_format.tokenizer.get_vocab())
            logits = [model(input_ids=ids).logits[:, -4:, :width] for model in (one, other)]
        found.append(generalized_jsd_loss(logits[0], logits[1], beta=1.0).mean())
    return float(torch.stack(found).mean())


def test_the_student_comes_nearer_to_the_teacher(models: Path, undisturbed: tuple[Path, Any, Recorder]) -> None:
    """On held-out prompts, and in what the stage says of itself."""
    output, outcome, recorder = undisturbed
    before, after = held_out_kl(models, models / "student"), held_out_kl(models, output / "model")
    assert after < 0.6 * before
    rows: list[Any] = [event.values for event in recorder.of(Metrics)]
    assert len(rows) == 10 and all(row["loss/divergence_avg"] == row["teacher/kl"] > 0 for row in rows)
    assert rows[-1]["teacher/kl"] < 0.7 * rows[0]["teacher/kl"]
    assert all(
        {"teacher/agreement", "objective/entropy", "objective/scores/short", "rollout/eos_share"} <= row.keys() for row in rows
    )
    assert not {"objective/scores", "objective/kl", "policy/clipfrac_avg"} & set().union(*rows)
    metrics = outcome.metrics
    assert (metrics["rollouts"], metrics["episodes"], outcome.rows_in) == (10, 160, len(TEXTS))
    assert (metrics["teacher/kl_first"], metrics["teacher/kl"]) == (rows[0]["teacher/kl"], rows[-1]["teacher/kl"])
    assert metrics["trained_tokens"] == metrics["tokens"] > metrics["new_tokens"]
    assert not {"kl_coef", "stopped_by_kl_limit", "scores_first"} & metrics.keys()


def test_a_resumed_training_gives_the_same_bytes(
    models: Path, tmp_path: Path, undisturbed: tuple[Path, Any, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop between two updates of a rollout batch."""
    apply, made = Learner._apply, []

    def counted(self: Learner, learn_policy: bool) -> dict[str, float]:
        made.append(1)
        return apply(self, learn_policy)

    monkeypatch.setattr(Learner, "_apply", counted)
    with pytest.raises(Interrupted, match="Stopped after 1 of 10 rollout batches and 1 updates from the next"):
        run(models, tmp_path / "output", stop=lambda: signal.SIGINT if len(made) >= 3 else None)
    _, recorder = run(models, tmp_path / "output")
    assert recorder.notes == ["resuming after rollout batch 1 and 1 updates"] and len(made) == 20
    for name in ("model/model.safetensors", METRICS_NAME):
        assert (tmp_path / "output" / name).read_bytes() == (undisturbed[0] / name).read_bytes(), name


def test_an_adapter_learns_from_a_teacher(models: Path, tmp_path: Path) -> None:
    outcome, _ = run(models, tmp_path / "output", num_episodes=16, peft={"method": "lora", "rank": 2}, beta=0.5)
    before = load_file(models / "student" / "model.safetensors")
    assert outcome.metrics["trained_parameters"] < 0.3 * sum(weight.numel() for weight in before.values())
    assert not (tmp_path / "output" / "model" / "model.safetensors").exists()


EPISODES = [Episode([5, 30, 31], [40, 41, 2]), Episode([5, 32], [42]), Episode([5, 33, 34, 35], [43, 44, 45, 46, 2])]


@pytest.mark.filterwarnings("ignore::UserWarning")  # TRL says that the import is experimental
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_gradient_is_that_of_trl(models: Path, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a mini-batch is cut into passes, and the tokens of a pass into chunks."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher = (load_causal_lm(models / name) for name in ("student", "teacher"))
    rows = [episode.prompt_token_ids + episode.completion_token_ids for episode in EPISODES]
    ids = torch.tensor([row + [0] * (8 + 1 - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for number, episode in enumerate(EPISODES):
        labels[number, len(episode.prompt_token_ids) : len(episode)] = 1
    width = student.get_output_embeddings().weight.shape[0]
    logits = [model(input_ids=ids).logits[:, :-1, :width] for model in (student, teacher)]
    loss = GKDTrainer.generalized_jsd_loss(logits[0], logits[1].detach(), labels[:, 1:], beta=beta, temperature=0.7)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in student.named_parameters()}

    config = distill.Config.model_validate({**FIELDS, "beta": beta, "temperature": 0.7})
    for chunk, pass_tokens in ((2, 12), (100, 1000)):
        monkeypatch.setattr(distill_module, "teacher_chunk_tokens", lambda vocabulary, device, chunk=chunk: chunk)
        settings = ForwardSettings(torch.device("cpu"), "float32", 0.7, PassSize(pass_tokens, "tokens"), 0)
        start = TrainableModel(ModelFolder(models / "student"), None, models, "distill")
        loaded = load_models(start, None, settings, seed=0, with_reference=False, teacher=ModelFolder(models / "teacher"))
        assert not any(parameter.requires_grad for parameter in loaded.reference.parameters())
        learner = Distiller(Optimizers.of(loaded, config, num_rollouts=1), loaded.settings, config, 0, loaded.reference)
        numbers = learner._accumulate(loaded.settings.passes(EPISODES, range(3)))
        assert numbers["loss/divergence_avg"] == pytest.approx(loss.item(), rel=1e-4)
        for name, parameter in loaded.policy.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_a_teacher_with_other_tokens_is_refused(models: Path, tmp_path: Path) -> None:
    other = tiny_causal_lm(tmp_path / "other", texts=["entirely different words"], seed=3)
    with pytest.raises(RecipeError, match="the teacher of student needs the same tokenizer, but .* tokens differ"):
        run(models, tmp_path / "output", folder=other)


def test_a_model_is_not_its_own_teacher() -> None:
    with pytest.raises(ValueError, match="teacher: it is the model that learns"):
        distill.Config.model_validate({**FIELDS, "teacher": "student"})
    assert json.loads(distill.Config.model_validate(FIELDS).model_dump_json())["beta"] == 1.0
