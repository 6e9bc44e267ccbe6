"""The fuzz target of recipes and machine files: YAML of a user, which may come from anybody.

Reading YAML takes ten times as long as checking what was read. So most inputs are for one of the two: a few lines for the YAML
reader, or values for the checks, which JSON reads. One in eight goes through both, as in a command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from align.config.machine_file import read_machine_settings
from align.config.recipe import parse_document, parse_recipe
from align.config.source import Document, Position, parse_text, resolve_scalar
from align.errors import RecipeError
from align.stages.registry import STAGES
from align.testing.fuzz.mutate import HOSTILE_BYTES, as_json, changed_tree, mutated
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
SHARES = (6, 3, 1, 1)
"""How often values are of each of these: the later ones are checked as several stages."""
SHORT_BYTES = tuple(one for one in HOSTILE_BYTES if len(one) <= 100)
LONG_SELDOM = 50


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
        self.lines = [part for text in (*self.corpus, *self.long) for part in _parts(text)]
        for tree in self.trees:  # validators are built when they are first used
            self.read(b"values\n" + json.dumps(tree).encode())
        self.names = sorted(
            {key for tree in self.trees for key in _keys(tree)} | {"rounds", "seeds", "trials", "stage", "kind", "hub"}
        )

    def make(self, random: Random) -> bytes:
        """Of eight, one is a machine file, one a whole recipe, two are lines, and four are values."""
        kind = random.randrange(8)
        if kind == 0:
            changed = changed_tree(random, self.machine_tree, self.names)
            return b"machine.yaml\n" + (
                mutated(random, self.machines, _some(random)) if random.randrange(2) else as_json(random, changed)
            )
        if kind == 1:
            if random.randrange(2):
                return b"recipe.yaml\n" + as_json(random, changed_tree(random, random.choice(self.trees), self.names))
            return b"recipe.yaml\n" + mutated(random, self.corpus if random.randrange(20) else self.long, _some(random))
        if kind < 4:
            return b"lines\n" + mutated(random, self.lines, _some(random))
        [tree] = random.choices(self.trees, SHARES)
        return b"values\n" + as_json(random, changed_tree(random, tree, self.names))

    def read(self, data: bytes) -> str:
        """Only RecipeError is a refusal."""
        name, _, content = data.partition(b"\n")
        file = self.folder / name.decode()
        if name == b"values" and _has_half_characters(content):  # which the YAML reader refuses
            name, file = b"recipe.yaml", self.folder / "recipe.yaml"
        try:
            if name == b"lines":
                parse_text(content.decode("utf-8", "replace"), label="lines")
            elif name == b"values":
                parse_document(_document(content), path=file, folder=self.folder, stage_types=STAGES).resolved()
            else:
                file.write_bytes(content)
                if name == b"machine.yaml":
                    read_machine_settings(file, self.folder, {})
                else:
                    parse_recipe(file, stage_types=STAGES).resolved()
        except RecipeError as error:
            return refusal(error)
        return ACCEPTED


def _document(content: bytes) -> Document:
    """JSON as the YAML reader would give it; all of it is at one place."""
    tree = json.loads(content, parse_int=resolve_scalar, parse_float=resolve_scalar, parse_constant=str)
    return Document(tree, values={(): Position(0, 1, 1, "recipe.yaml")})


def _some(random: Random) -> Sequence[bytes]:
    """Hostile bytes; long ones seldom, because the YAML reader takes a second for a megabyte."""
    return SHORT_BYTES if random.randrange(LONG_SELDOM) else HOSTILE_BYTES


def _has_half_characters(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return True
    return b"\\ud" in content.lower()


def _parts(text: bytes) -> Iterator[bytes]:
    """Every three lines that follow each other, and every value in braces."""
    lines = text.splitlines(keepends=True)
    yield from (b"".join(lines[start : start + 3]) for start in range(len(lines)))
    yield from (line[line.index(b"{") :] for line in lines if b"{" in line)


def _keys(tree: object) -> set[str]:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    own = set(tree) if isinstance(tree, dict) else set()
    return own.union(*(_keys(value) for value in inner))
