"""The fuzz target of tokenizers: the files of a model's folder that say how text becomes tokens, loaded and used."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from align.data.tokens import tokenize
from align.errors import DataError, EnvironmentProblem, RecipeError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.pipeline.checks.model import problems_of
from align.records import Message
from align.testing.fuzz.mutate import as_json, changed_tree, mutated
from align.testing.fuzz.target import ACCEPTED, Finding, changed_file, refusal
from align.testing.tiny import tiny_causal_lm

FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
TEXT = "hello 가 <|end|>"
NAMES = (
    "auto_map", "tokenizer_class", "added_tokens_decoder", "chat_template", "eos_token", "pad_token", "bos_token", "unk_token",
    "model", "vocab", "merges", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation",
    "padding", "type", "id", "content", "special", "model_max_length", "eos_token_id", "extra_special_tokens", "legacy",
)  # fmt: skip


class TokenizerTarget:
    """A model's folder of which one of the tokenizer's files was changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = tiny_causal_lm(folder / "model", texts=["hello there"])
        self.contents = {name: (self.folder / name).read_bytes() for name in FILES}
        self.trees = {name: json.loads(content) for name, content in self.contents.items()}

    def make(self, random: Random) -> bytes:
        """Values are changed two times of three, bytes otherwise."""
        name = random.choices(FILES, (3, 3, 1))[0]
        if random.randrange(3) == 0:
            return f"{name}\n".encode() + mutated(random, [self.contents[name]])
        return f"{name}\n".encode() + as_json(random, changed_tree(random, self.trees[name], NAMES))

    def read(self, data: bytes) -> str:
        """Load the tokenizer and tokenize; only documented errors are refusals."""
        with changed_file(self.folder, self.contents, data):
            try:
                tokens = _tokens_by(ModelFolder(self.folder))
            except (RecipeError, EnvironmentProblem, DataError) as error:
                return refusal(error)
        if not all(isinstance(token, int) and token >= 0 for token in tokens):
            raise Finding(f"tokens: {tokens}")
        return ACCEPTED


def _tokens_by(folder: ModelFolder) -> list[int]:
    """Of a text and of a prompt, after the checks of a plan."""
    folder.check()
    problems_of(folder)
    chat_format = load_format(folder)
    tokens, *_ = tokenize(chat_format.tokenizer, [TEXT])
    return [*tokens, *chat_format.encode_prompt([Message(role="user", content=TEXT)])]
