"""The table of other tools' words: what it names exists here, and it knows the words of the tools that are installed."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from align.config.chat import ChatSettings
from align.config.form import Sweep
from align.config.inputs import DataInput, MixturePart, ModelInput, artifact_kind_names
from align.config.judge import Judge
from align.config.machine import MachineSettings, RayCluster, SamplingEngines, TrainingProcesses
from align.config.misplaced import TOP_KEYS
from align.config.other_tools import table, value_here, words_for
from align.config.peft import Lora, VirtualTokens
from align.config.rules import AvoidsRule, LengthRule, MatchesRule, RepetitionRule
from align.config.shape import members
from align.stages.registry import STAGES

SECTIONS: tuple[type[BaseModel], ...] = (
    Sweep,
    *(stage_type.config_type for stage_type in STAGES.values()),
    *(ChatSettings, DataInput, MixturePart, ModelInput, Judge, Lora, VirtualTokens),
    *(AvoidsRule, LengthRule, MatchesRule, RepetitionRule),
    *(MachineSettings, TrainingProcesses, SamplingEngines, RayCluster),
)
KEYS = {*TOP_KEYS, "stage", "seeds", "rounds", *(name for section in SECTIONS for name in section.model_fields)}
FILE = Path(__file__).resolve().parents[3] / "align" / "config" / "other_tools.json"
CONFIGURATIONS = {
    "transformers.training_args": ("TrainingArguments",),
    "trl.trainer.sft_config": ("SFTConfig",),
    "trl.trainer.dpo_config": ("DPOConfig",),
    "trl.trainer.reward_config": ("RewardConfig",),
    "trl.trainer.grpo_config": ("GRPOConfig",),
    "trl.trainer.model_config": ("ModelConfig",),
    "peft.tuners.lora.config": ("LoraConfig",),
}


def test_every_key_here_exists() -> None:
    for word in table()["keys"]:
        for target in word.here:
            assert set(target.split(".")) <= KEYS, target


def test_every_stage_here_exists() -> None:
    assert {target for word in table()["stages"] for target in word.here} <= set(STAGES)


def test_every_group_has_words_and_an_answer() -> None:
    for part, words in table().items():
        for word in words:
            assert any(word.words.values()), word
            assert word.here or word.note, (part, word)


def test_no_word_is_twice_in_a_group() -> None:
    for word in table()["keys"]:
        for tool, names in word.words.items():
            assert len(names) == len(set(names)), (tool, names)


def test_every_value_here_is_one_of_its_field() -> None:
    choices: dict[str, set[str]] = {
        "kind": set(artifact_kind_names()),
        "template": {"chatml", "gemma", "llama3", "plain", "tulu"},
    }
    choices["reference"] = {"first", "previous"}
    choices["type"] = {
        "matches",
        "avoids",
        "contains_reference",
        "length",
        "repetition",
        "numeric_answer",
        "choice_answer",
        "expression",
        "math_answer",
    }
    for section in SECTIONS:
        for name, info in section.model_fields.items():
            arguments = {str(value) for alternative in members(info.annotation) for value in get_args(alternative)}
            choices.setdefault(name, set()).update(arguments)
    for entry in json.loads(FILE.read_text(encoding="utf-8"))["values"]:
        for name in entry["fields"]:
            assert set(entry["words"].values()) <= choices[name], name


def test_a_word_of_a_value() -> None:
    assert value_here("precision", "BF16") == "bfloat16"
    assert value_here("optimizer", "adamw_torch") == "adamw"
    assert value_here("beta", "bf16") is None


@pytest.mark.parametrize("module", CONFIGURATIONS)
def test_every_argument_of_the_installed_tools_is_answered(module: str) -> None:
    package, _, rest = module.partition(".")
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent / f"{rest.replace('.', '/')}.py"
    classes = [node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    names = [
        node.target.id
        for described in classes
        if described.name in CONFIGURATIONS[module]
        for node in described.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert names
    assert [name for name in names if name not in KEYS and not words_for("keys", name)] == []
