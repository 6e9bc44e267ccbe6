"""The fuzz target of recipes and machine files: YAML of a user, which may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from align.config.machine_file import read_machine_settings
from align.config.recipe import parse_recipe
from align.config.source import parse_text
from align.errors import RecipeError
from align.stages.registry import STAGES
from align.testing.fuzz.mutate import as_json, changed_tree, mutated
from align.testing.fuzz.target import ACCEPTED, refusal
from align.testing.project import RECIPE

MACHINE = b"training: {processes: 2, strategy: fsdp2}\nsampling: {engines: 2, tensor_parallel: 1}\n"
INPUTS = b"""\
  base: {kind: model, path: base}
  data: {kind: instructions, path: instructions.jsonl, share: [0, 0.5], columns: {prompt: question}, on_invalid: drop}
  pairs: {kind: preferences, path: preferences.jsonl}
  prompts: {kind: prompts, path: prompts.jsonl}
"""
SFT = b"  sft: {stage: sft, model: base, data: data, learning_rate: 1e-5}\n"
STAGES_WRITTEN: tuple[bytes, ...] = (
    b"""\
  sft:
    stage: sft
    model: base
    data: data
    learning_rate: 1e-5   # a comment
    seeds: [1, 2, 3]
    peft: {method: lora, rank: 8, alpha: 16}
""",
    SFT + b"  dpo: {stage: dpo, model: sft, pairs: pairs, beta: 0.1}\n",
    SFT
    + b"""\
  online:
    rounds: 2
    model: sft
    generate: {prompts: prompts, num_candidates: 4, temperature: 1.0}
    score: {scorers: {length: {rules: [{type: length, name: short, max_characters: 12}]}}}
    pairs: {scorer: length}
    dpo: {beta: 0.1}
""",
    SFT
    + b"""\
  dpo: {stage: dpo, model: sft, pairs: pairs}
  compare: {stage: compare, models: [sft, dpo], prompts: prompts, scorers: {length: {rules: [{type: length, name: s}]}}}
sweep:
  dpo:
    fields: {dpo: {beta: [0.01, 0.1], learning_rate: [1e-6, 1e-5]}}
    prompts: prompts
    scorer: {rules: [{type: length, name: short, max_characters: 12}]}
    num_candidates: 2
""",
)
"""Short ones, because the YAML reader takes most of the time."""


class RecipeTarget:
    """Recipes with their forms, and machine files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
        row = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "question": "a"}
        for name in ("instructions", "preferences", "prompts", "held_out"):
            (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "retention.txt").write_text("a\n")
        head = b"name: x\nseed: 5\ninputs:\n" + INPUTS + b"stages:\n"
        self.corpus = [head + stages for stages in STAGES_WRITTEN]
        self.trees = [parse_text(text.decode(), label="x").value for text in self.corpus]
        self.long = [RECIPE.format(engine="transformers").encode()]
        self.machines = [MACHINE]
        self.machine_tree = parse_text(MACHINE.decode(), label="x").value
        self.names = sorted(
            {key for tree in self.trees for key in _keys(tree)} | {"rounds", "seeds", "trials", "stage", "kind", "hub"}
        )

    def make(self, random: Random) -> bytes:
        """Most of them recipes; half of those with values changed, which pass the YAML reader."""
        if random.randrange(8) == 0:
            changed = changed_tree(random, self.machine_tree, self.names)
            return b"machine.yaml\n" + (mutated(random, self.machines) if random.randrange(2) else as_json(random, changed))
        if random.randrange(2):
            return b"recipe.yaml\n" + as_json(random, changed_tree(random, random.choice(self.trees), self.names))
        return b"recipe.yaml\n" + mutated(random, self.corpus if random.randrange(20) else self.long)

    def read(self, data: bytes) -> str:
        """Only RecipeError is a refusal."""
        name, _, content = data.partition(b"\n")
        file = self.folder / name.decode()
        file.write_bytes(content)
        try:
            if name == b"machine.yaml":
                read_machine_settings(file, self.folder, {})
            else:
                parse_recipe(file, stage_types=STAGES).resolved()
        except RecipeError as error:
            return refusal(error)
        return ACCEPTED


def _keys(tree: object) -> set[str]:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    own = set(tree) if isinstance(tree, dict) else set()
    return own.union(*(_keys(value) for value in inner))
