"""Adapters in every stage that trains: the base is untouched, training resumes and repeats to the byte, and stages chain."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.attempt import Progress
from align.errors import Interrupted, RecipeError
from align.models import start as start_module
from align.models.folder import ADAPTER_WEIGHTS_NAME, BASE_NAME, WEIGHTS_NAME
from align.models.load import load_causal_lm, load_reward_model, load_tokenizer
from align.models.lora import linear_layers
from align.models.start import Start, load_start
from align.records import Instruction, Message, Preference, Prompt
from align.stages import dpo, orpo, ppo, reward_model, sft
from align.stages.protocol import StageContext, StageOutcome
from align.store.artifact import INPUT_STAGE, ROWS_NAME, Artifact, Manifest, write_rows
from align.testing import tiny_causal_lm
from align.training import dpo as dpo_training
from align.training.ppo.layout import Episode
from align.training.ppo.models import Arithmetic, Models, load_models, policy_logps

LORA = {"method": "lora", "rank": 2}
QLORA = {"method": "qlora", "rank": 2}
PREFIX = {"method": "prefix_tuning", "num_virtual_tokens": 3}
PROMPT = {"method": "prompt_tuning", "num_virtual_tokens": 3}
CASES = [
    *((stage, peft) for stage in (sft, dpo, orpo) for peft in (LORA, QLORA, PREFIX, PROMPT)),
    *((stage, peft) for stage in (reward_model, ppo) for peft in (LORA, QLORA)),
]
IDS = [f"{stage.__name__.rpartition('.')[2]}-{peft['method']}" for stage, peft in CASES]
every_case = pytest.mark.parametrize(("stage", "peft"), CASES, ids=IDS)
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
FILES = {"adapter_config.json", ADAPTER_WEIGHTS_NAME, BASE_NAME, "config.json", "generation_config.json", "tokenizer.json"}


def asked(number: int) -> list[Message]:
    return [Message(role="user", content=f"I lost key {number}.")]


ROWS: dict[Any, list[Any]] = {
    Instruction: [Instruction(id=f"i{n}", line=n + 1, prompt=asked(n), completion=f"Oh no {n}!") for n in range(8)],
    Preference: [
        Preference(id=f"r{n}", line=n + 1, prompt=asked(n), chosen=f"Oh no {n}!", rejected="So?") for n in range(8)
    ],
    Prompt: [Prompt(id=f"p{n}", line=n + 1, prompt=asked(n)) for n in range(8)],
}
KINDS = {Instruction: "instructions", Preference: "preferences", Prompt: "prompts"}
READS = {sft: ("data", Instruction), reward_model: ("data", Preference), ppo: ("prompts", Prompt)}


class Workshop:
    """Runs stages in this process on a tiny model; each result can be the next one's model."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        self.notes: list[str] = []
        self.artifacts: dict[str, Artifact] = {}
        self._add("base", base, "model")
        for record, kind in KINDS.items():
            write_rows(folder / kind / ROWS_NAME, ROWS[record])
            self._add(kind, folder / kind, kind)

    def _add(self, name: str, path: Path, kind: str) -> None:
        origin: dict[str, Any] = {"config": {}, "inputs": {}, "seed": None, "source": f"{name}.x"}
        manifest = Manifest(kind=kind, stage=INPUT_STAGE, stage_version=1, fingerprint=name, **origin)
        self.artifacts[name] = Artifact(name, path, manifest)

    def run(
        self, name: str, stage: Any, *, stop: Callable[[int], int | None] = lambda done: None, **fields: Any
    ) -> StageOutcome:
        """The result is in `self.output` and `self.model`, and can be named by later stages."""
        output = self.output = self.folder / "store" / name
        self.model = output / "model"
        role, record = READS.get(stage, ("pairs", Preference))
        values = {"model": "base", role: KINDS[record], **FAST, **OF_STAGE[stage], **fields}
        done = 0

        def send(event: dict[str, Any]) -> None:
            nonlocal done
            if event.get("phase", "train") == "train" and "done" in event:
                done = event["done"]
            self.notes.append(event.get("text", ""))

        context = StageContext(
            name=name,
            work=output / "work",
            seed=3,
            progress=Progress(send),
            stop_requested=lambda: stop(done),
            config=stage.Config.model_validate(values),
            artifacts=self.artifacts,
            output=output,
            store_root=self.folder / "store",
        )
        context.work.mkdir(parents=True, exist_ok=True)
        outcome: StageOutcome = stage.run(context)
        self._add(name, self.model, "reward_model" if stage is reward_model else "model")
        return outcome

    def trained_bytes(self) -> bytes:
        return (self.model / ADAPTER_WEIGHTS_NAME).read_bytes()

    def curve(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]


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

    def counting(path: Path, **options: Any) -> Any:
        folders.append(path)
        return load_causal_lm(path, **options)

    for module in (start_module, dpo_training):
        monkeypatch.setattr(module, "load_causal_lm", counting)
    return folders


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every model that a stage began to train."""
    models: list[Any] = []

    def remembering(start: Start, **options: Any) -> Any:
        models.append(load_start(start, **options))
        return models[-1]

    for name in ("sft", "dpo", "orpo", "reward_model", "ppo.models"):
        monkeypatch.setattr(f"align.training.{name}.load_start", remembering)
    return models


def frozen(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What is not trained, by the name it has in the base model; of 4 bits, the bits."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name.replace(".base_layer", ""), parameter.detach()


@every_case
def test_the_adapter_is_trained_and_the_base_is_not(
    shop: Workshop, base: Path, stage: Any, peft: dict[str, Any], started: list[Any]
) -> None:
    before = (base / WEIGHTS_NAME).read_bytes()
    shop.run("once", stage, peft=peft)
    files = {path.name for path in shop.model.iterdir()}
    assert files >= FILES and not any(name.startswith(("model.", "README")) for name in files)
    assert (shop.model / ADAPTER_WEIGHTS_NAME).stat().st_size < 0.5 * (base / WEIGHTS_NAME).stat().st_size
    assert (base / WEIGHTS_NAME).read_bytes() == before
    assert json.loads((shop.model / BASE_NAME).read_text())["place"].endswith("/base")
    assert str(base) not in "".join(path.read_text() for path in shop.model.glob("*.json"))
    plain = dict(load_causal_lm(base).named_parameters())
    for model in started:
        rest = dict(frozen(model))
        assert {name for name in rest if name != "score.weight"} == plain.keys()
        if peft["method"] != "qlora":
            assert [name for name, value in rest.items() if not torch.equal(value, plain[name])] == []
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert all(".lora_" in name or name in ("score.weight", "virtual_tokens.prompt_embeddings") for name in names)
    # Not as it started: every tensor of it.
    torch.manual_seed(3)
    options = {"task": "SEQ_CLS", "new_head": True} if stage is reward_model else {}
    config = stage.Config.model_validate({"model": "m", **_required(stage), **OF_STAGE[stage], "peft": peft})
    fresh = load_start(Start(base, config.peft, shop.folder / "store", "fresh"), **options)
    fresh_values = {name.replace(".default", ""): value for name, value in fresh.named_parameters() if value.requires_grad}
    kept = {name.removeprefix("base_model.model."): value for name, value in load_file(shop.model / ADAPTER_WEIGHTS_NAME).items()}
    if "num_virtual_tokens" in peft:
        kept = {f"virtual_tokens.{name}": value for name, value in kept.items()}
    assert kept.keys() == fresh_values.keys()
    unmoved = [name for name, value in kept.items() if ".lora_A" not in name and torch.equal(value, fresh_values[name])]
    assert unmoved == []


def _required(stage: Any) -> dict[str, str]:
    role, record = READS.get(stage, ("pairs", Preference))
    return {role: KINDS[record]}


@every_case
def test_the_same_seed_gives_the_same_bytes(shop: Workshop, stage: Any, peft: dict[str, Any]) -> None:
    shop.run("first", stage, peft=peft)
    first, rows = shop.trained_bytes(), shop.curve()
    torch.manual_seed(99)  # whatever was drawn before
    shop.run("second", stage, peft=peft)
    assert shop.trained_bytes() == first
    assert shop.curve() == rows


@every_case
def test_stopped_and_resumed_is_as_if_never_stopped(shop: Workshop, stage: Any, peft: dict[str, Any]) -> None:
    shop.run("undisturbed", stage, peft=peft)
    expected, rows = shop.trained_bytes(), shop.curve()
    with pytest.raises(Interrupted):
        shop.run("stopped", stage, peft=peft, stop=lambda done: signal.SIGTERM if done >= 1 else None)
    work = shop.output / "work" / "checkpoints"
    checkpoints = list(work.glob("checkpoint-*"))
    assert len(checkpoints) == 1
    # Of the model, a checkpoint holds what is trained and nothing else.
    for file in checkpoints[0].glob("*.safetensors"):
        if "optimizer" not in file.name:
            assert all(".lora_" in name or "score" in name or "virtual" in name for name in load_file(file)), file.name
    torch.manual_seed(99)
    shop.run("stopped", stage, peft=peft)
    assert any("resuming" in note for note in shop.notes)
    assert shop.trained_bytes() == expected
    assert shop.curve() == rows


@pytest.mark.parametrize("peft", [LORA, QLORA, PREFIX, PROMPT], ids=lambda peft: peft["method"])
@pytest.mark.parametrize("stage", [sft, dpo, orpo], ids=["sft", "dpo", "orpo"])
def test_micro_batches_do_not_matter(shop: Workshop, stage: Any, peft: dict[str, Any]) -> None:
    tensors = []
    for micro in (4, 1):
        shop.run(f"micro-{micro}", stage, peft=peft, micro_batch_size=micro, learning_rate=1e-3)
        tensors.append(load_file(shop.model / ADAPTER_WEIGHTS_NAME))
    for name, value in tensors[0].items():
        # AdamW divides by the gradient's size, so that rounding moves single numbers whose gradient is next to nothing.
        difference = (value - tensors[1][name]).abs()
        assert float(difference.max()) < 1e-3 and float(difference.mean()) < 1e-5, name


def test_micro_batches_do_not_matter_to_a_reward_model(shop: Workshop) -> None:
    scores = [shop.run(f"micro-{n}", reward_model, peft=LORA, micro_batch_size=n).metrics["score_mean"] for n in (2, 1)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_packing_does_not_change_what_lora_learns(shop: Workshop) -> None:
    losses = [
        shop.run(f"packing-{packing}", sft, peft=LORA, packing=packing, batch_size=8, num_epochs=1).metrics["train_loss"]
        for packing in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("peft", [LORA, QLORA, PREFIX, PROMPT], ids=lambda peft: peft["method"])
def test_dpo_goes_on_from_an_adapter_that_is_its_own_reference(
    shop: Workshop, base: Path, peft: dict[str, Any], loaded: list[Path]
) -> None:
    shop.run("taught", sft, peft=peft, learning_rate=2e-2)
    taught = shop.model
    loaded.clear()
    outcome = shop.run("liked", dpo, model="taught", peft=peft)
    assert loaded == [base.resolve()], "one model: the reference is the adapter as it came"
    assert outcome.metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-5)
    assert outcome.metrics["loss"] < math.log(2)
    record = json.loads((shop.model / BASE_NAME).read_text())
    assert record == json.loads((taught / BASE_NAME).read_text()), "of the same base, not an adapter on an adapter"
    # Were the reference the base instead, the first loss would be another.
    away = shop.run("away", dpo, model="taught", peft=peft, reference="base")
    assert abs(away.metrics["loss_at_step_0"] - math.log(2)) > 1e-4


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_a_new_lora_is_nothing_before_its_first_step(shop: Workshop, peft: dict[str, Any], loaded: list[Path]) -> None:
    outcome = shop.run("liked", dpo, peft=peft)
    assert len(loaded) == 1
    assert outcome.metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("peft", [PREFIX, PROMPT], ids=lambda peft: peft["method"])
def test_new_virtual_tokens_are_measured_against_the_model_without_them(
    shop: Workshop, peft: dict[str, Any], loaded: list[Path]
) -> None:
    first = shop.run("liked", dpo, peft=peft)
    assert len(loaded) == 1
    assert abs(first.metrics["loss_at_step_0"] - math.log(2)) > 1e-5
    # The reference is the base: the same numbers as where it is named, from another model that is loaded for it.
    rows = [load_reference(path) for path in sorted((shop.folder / "store").glob("reference_logps-*"))]
    shop.run("whole", dpo)
    more = [load_reference(path) for path in sorted((shop.folder / "store").glob("reference_logps-*"))]
    for one in rows + more:
        for key, value in one.items():
            assert value == pytest.approx(more[0][key], abs=1e-3)


def load_reference(folder: Path) -> dict[str, tuple[float, float]]:
    rows = [json.loads(line) for line in (folder / ROWS_NAME).read_text().splitlines()]
    return {row["id"]: (row["chosen_logps"], row["rejected_logps"]) for row in rows}


@pytest.mark.parametrize("peft", [LORA, QLORA, PREFIX, PROMPT], ids=lambda peft: peft["method"])
@pytest.mark.parametrize("stage", [sft, orpo], ids=["sft", "orpo"])
def test_a_second_stage_starts_from_the_first_ones_numbers(
    shop: Workshop, stage: Any, peft: dict[str, Any], started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run("first", sft, peft=peft)
    kept = sorted(float(value.double().square().sum()) for value in load_file(shop.model / ADAPTER_WEIGHTS_NAME).values())
    began: list[list[float]] = []

    def looking(start: Start, **options: Any) -> Any:
        model = load_start(start, **options)
        trained = [float(value.double().square().sum()) for value in model.parameters() if value.requires_grad]
        began.append(sorted(trained))
        return model

    monkeypatch.setattr(f"align.training.{stage.__name__.rpartition('.')[2]}.load_start", looking)
    shop.run("second", stage, model="first", peft=peft)
    assert began == [kept]


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_without_peft_training_starts_from_the_merged_model(shop: Workshop, peft: dict[str, Any], started: list[Any]) -> None:
    shop.run("first", sft, peft=peft)
    merged = load_causal_lm(shop.model)
    begun = load_start(Start(shop.model, None, shop.folder / "store", "whole"))
    assert all(torch.equal(value, dict(merged.named_parameters())[name]) for name, value in begun.named_parameters())
    assert all(value.requires_grad for value in begun.parameters())
    outcome = shop.run("second", dpo, model="first")
    assert outcome.metrics["loss_at_step_0"] == pytest.approx(math.log(2), abs=1e-5)
    assert (shop.model / WEIGHTS_NAME).exists() and not (shop.model / "adapter_config.json").exists()
    whole = load_causal_lm(shop.model)
    assert {name for name, value in whole.named_parameters() if not torch.equal(value, dict(merged.named_parameters())[name])}


def test_without_peft_virtual_tokens_are_refused(shop: Workshop) -> None:
    shop.run("first", sft, peft=PROMPT)
    with pytest.raises(RecipeError, match="the model is 3 virtual tokens in front of a base, which cannot become part"):
        shop.run("second", dpo, model="first")


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_a_reward_adapter_keeps_its_head_and_its_scores(
    shop: Workshop, base: Path, peft: dict[str, Any], started: list[Any]
) -> None:
    shop.run("taught", sft, peft=peft)
    shop.run("judge", reward_model, model="taught", peft=peft)
    model = started[-1]
    tokenizer = load_tokenizer(shop.model)
    batch = tokenizer(["Oh no 1!", "So?", "I lost key 5."], return_tensors="pt", padding=True, return_token_type_ids=False)
    again = load_reward_model(shop.model, new_head=False)
    with torch.no_grad():
        expected, found = model(**batch).logits, again(**batch).logits
    assert float((expected - found).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))
    assert float(expected.std()) > 1e-3
    head = load_file(shop.model / ADAPTER_WEIGHTS_NAME)["base_model.model.score.weight"]
    assert torch.equal(head, again.score.weight)
    torch.manual_seed(3)
    assert not torch.equal(head, load_reward_model(base, new_head=True).score.weight)


def test_a_reward_model_can_score_and_be_the_value_model(shop: Workshop, started: list[Any]) -> None:
    shop.run("judge", reward_model, peft={**LORA, "rank": 4})
    head = load_file(shop.model / ADAPTER_WEIGHTS_NAME)["base_model.model.score.weight"]
    started.clear()
    outcome = shop.run(
        "policy", ppo, peft=LORA, scorers={"rm": "judge"}, value_head="reward_model", value_learning_rate=1e-9, checkpoint_steps=9
    )
    assert math.isfinite(outcome.metrics["objective/scores"])
    value = next(model for model in started if hasattr(model, "score"))
    assert torch.allclose(value.score.weight, head, atol=1e-6)
    assert value.get_submodule("model.layers.0.self_attn.q_proj").lora_A["default"].weight.shape[0] == 4
    shop.run("whole", ppo, scorers={"rm": "judge"})
    assert (shop.model / WEIGHTS_NAME).exists()


def ppo_models(folder: Path, base: Path, peft: dict[str, Any]) -> tuple[Models, Callable[[Any], torch.Tensor]]:
    """Models of PPO, and the log-probabilities of some episodes under one of them."""
    settings = ppo.Config.model_validate({"model": "m", "prompts": "p", "scorers": {"short": RULES}, "peft": peft}).peft
    pad = int(load_tokenizer(base).pad_token_id)
    models = load_models(
        Start(base, settings, folder / "store", "ppo"), None, value_head="zero", device=torch.device("cpu"),
        pad_token_id=pad, seed=3,
    )  # fmt: skip
    arithmetic = Arithmetic(torch.device("cpu"), "float32", 1.0, 256, pad)
    episodes = [Episode([5, 6, 7 + n], [20 + n, 21, 2]) for n in range(4)]
    (batch,) = arithmetic.passes(episodes, range(4))

    def logps(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return policy_logps(model, batch, arithmetic)

    return models, logps


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_the_reference_of_ppo_is_the_policy_as_it_began(shop: Workshop, base: Path, peft: dict[str, Any]) -> None:
    models, logps = ppo_models(shop.folder, base, peft)
    assert models.reference is None
    began = logps(models.policy)
    with torch.no_grad():
        for parameter in models.policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    moved, weights = logps(models.policy), [parameter.detach().clone() for parameter in models.policy.parameters()]
    places = [parameter.data_ptr() for parameter in models.policy.parameters()]
    assert float((moved - began).abs().max()) > 1e-3
    with models.as_reference() as reference:
        assert torch.equal(logps(reference), began)
    with pytest.raises(RuntimeError, match="in the middle"), models.as_reference():
        raise RuntimeError("in the middle")
    assert torch.equal(logps(models.policy), moved)
    assert all(torch.equal(now, then) for now, then in zip(models.policy.parameters(), weights, strict=True))
    assert [parameter.data_ptr() for parameter in models.policy.parameters()] == places, "the optimizer's tensors"


@pytest.mark.parametrize("peft", [LORA, QLORA], ids=lambda peft: peft["method"])
def test_ppo_starts_at_its_reference_and_samples_from_what_it_trains(shop: Workshop, peft: dict[str, Any]) -> None:
    shop.run("taught", sft, peft=peft, learning_rate=2e-2)
    shop.run("policy", ppo, model="taught", peft=peft, kl_coef=0.0)
    rows = shop.curve()
    assert rows[0]["objective/kl"] == 0 and abs(rows[-1]["objective/kl"]) > 1e-4
    # The sampler's model and the one that learns agree, before the first update and after the last.
    assert max(abs(row["rollout/sampler_gap"]) for row in rows) < 1e-4


def test_every_linear_layer_is_chosen_by_default(shop: Workshop, base: Path, started: list[Any]) -> None:
    shop.run("once", sft, peft=LORA)
    state = load_file(shop.model / ADAPTER_WEIGHTS_NAME)
    chosen = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in state}
    assert chosen == set(linear_layers(load_causal_lm(base)))
    assert not any("lm_head" in name or "embed" in name for name in chosen)
