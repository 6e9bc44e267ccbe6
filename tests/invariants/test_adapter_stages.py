"""Adapters in every stage that trains: the base is untouched, training resumes and repeats to the byte, and stages chain."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_workshop import KINDS, LORA, OF_STAGE, PREFIX, PROMPT, QLORA, READS, Workshop, watch_started
from safetensors.torch import load_file

from align.errors import Interrupted
from align.models.files import ADAPTER_WEIGHTS_NAME, BASE_NAME, WEIGHTS_NAME
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.lora import linear_layers
from align.models.trainable import TrainableModel, load_trainable
from align.records import Preference
from align.stages import dpo, orpo, ppo, reward_model, sft

pytestmark = pytest.mark.slow

CASES = [
    *((stage, peft) for stage in (sft, dpo, orpo) for peft in (LORA, QLORA, PREFIX, PROMPT)),
    *((stage, peft) for stage in (reward_model, ppo) for peft in (LORA, QLORA)),
]
IDS = [f"{stage.__name__.rpartition('.')[2]}-{peft['method']}" for stage, peft in CASES]
FILES = {"adapter_config.json", ADAPTER_WEIGHTS_NAME, BASE_NAME, "config.json", "generation_config.json", "tokenizer.json"}


def frozen(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What is not trained, by the name it has in the base model; of 4 bits, the bits."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            yield name.replace(".base_layer", ""), parameter.detach()


@dataclass(frozen=True)
class Case:
    """A training that nothing disturbed."""

    stage: Any
    peft: dict[str, Any]
    shop: Workshop
    models: list[Any]
    base_before: bytes


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def case(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    stage, peft = request.param
    before = (base / WEIGHTS_NAME).read_bytes()
    shop = Workshop(tmp_path_factory.mktemp("case"), base)
    with pytest.MonkeyPatch.context() as patch:
        models: list[Any] = []
        watch_started(patch, models.append)
        shop.run("once", stage, peft=peft)
    return Case(stage, peft, shop, models, before)


def test_the_adapter_is_trained_and_the_base_is_not(case: Case, base: Path) -> None:
    stage, peft, shop = case.stage, case.peft, case.shop
    files = {path.name for path in shop.model.iterdir()}
    assert files >= FILES and not any(name.startswith(("model.", "README")) for name in files)
    assert (shop.model / ADAPTER_WEIGHTS_NAME).stat().st_size < 0.5 * (base / WEIGHTS_NAME).stat().st_size
    assert (base / WEIGHTS_NAME).read_bytes() == case.base_before
    assert json.loads((shop.model / BASE_NAME).read_text())["place"].endswith("/base")
    assert str(base) not in "".join(path.read_text() for path in shop.model.glob("*.json"))
    plain = dict(load_causal_lm(base).named_parameters())
    assert len(case.models) == (2 if stage is ppo else 1)
    for model in case.models:
        rest = dict(frozen(model))
        assert {name for name in rest if name != "score.weight"} == plain.keys()
        if peft["method"] != "qlora":
            assert [name for name, value in rest.items() if not torch.equal(value, plain[name])] == []
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert all(".lora_" in name or name in ("score.weight", "virtual_tokens.prompt_embeddings") for name in names)
    # Not as it started: every tensor of it.
    torch.manual_seed(3)
    options: dict[str, Any] = {"task": "SEQ_CLS", "new_head": True} if stage is reward_model else {}
    config = stage.Config.model_validate({"model": "m", **_required(stage), **OF_STAGE[stage], "peft": peft})
    fresh = load_trainable(TrainableModel(ModelFolder(base), config.peft, shop.folder / "store", "fresh"), **options)
    fresh_values = {name.replace(".default", ""): value for name, value in fresh.named_parameters() if value.requires_grad}
    kept = {name.removeprefix("base_model.model."): value for name, value in load_file(shop.model / ADAPTER_WEIGHTS_NAME).items()}
    if "num_virtual_tokens" in peft:
        kept = {f"virtual_tokens.{name}": value for name, value in kept.items()}
    assert kept.keys() == fresh_values.keys()
    unmoved = [name for name, value in kept.items() if ".lora_A" not in name and torch.equal(value, fresh_values[name])]
    assert unmoved == []


@pytest.mark.parametrize("case", CASES[-2:], ids=IDS[-2:], indirect=True)
def test_ppo_samples_from_what_it_trains(case: Case) -> None:
    """With qlora that is not the model in the folder, not even before the first update."""
    rows = case.shop.curve()
    assert rows[0]["objective/kl"] == 0 and rows[-1]["objective/kl"] != 0
    assert max(row["rollout/sampler_gap_max"] for row in rows) < 1e-3


def _required(stage: Any) -> dict[str, str]:
    role, record = READS.get(stage, ("pairs", Preference))
    return {role: KINDS[record]}


def test_stopped_and_resumed_is_as_if_never_stopped(case: Case, tmp_path: Path) -> None:
    """So the same seed gives the same bytes, too, whatever was drawn before."""
    stage, peft = case.stage, case.peft
    shop = Workshop(tmp_path, case.shop.base)
    torch.manual_seed(98)
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
    assert shop.trained_bytes() == case.shop.trained_bytes()
    assert shop.curve() == case.shop.curve()


@pytest.mark.parametrize(
    ("stage", "peft"), [(sft, LORA), (dpo, QLORA), (orpo, LORA), (sft, PREFIX), (dpo, PROMPT), (orpo, PREFIX)]
)
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


def test_every_linear_layer_is_chosen_by_default(shop: Workshop, base: Path) -> None:
    shop.run("once", sft, peft=LORA)
    state = load_file(shop.model / ADAPTER_WEIGHTS_NAME)
    chosen = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in state}
    assert chosen == set(linear_layers(load_causal_lm(base)))
    assert not any("lm_head" in name or "embed" in name for name in chosen)
