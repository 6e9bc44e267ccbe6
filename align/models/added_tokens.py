"""A model with more tokens: a copy of its folder in which a chat template's control tokens have rows.

New rows are the mean of the rows that the vocabulary uses, as transformers' `resize_token_embeddings` makes them (Hewitt 2021):
at first the new tokens are as likely as an average one, and the logits of the others do not change. Rows that the table has
beyond the vocabulary are used first; nothing trained them, and many are zero, which in a head is more than most logits are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.architecture import CONFIG_NAME
from align.errors import RecipeError
from align.models.facts import names_head, names_token_table
from align.models.files import GENERATION_CONFIG_NAME, INDEX_NAME, TOKENIZER_NAME, read_json_object, weight_files
from align.models.folder import ModelFolder
from align.models.tokenizer import add_special_tokens, load_tokenizer
from align.store.atomic import link_file, write_json

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ROWS = 8192
"""Rows that are summed at once, so that no second table is in memory."""


@dataclass(frozen=True)
class AddedTokens:
    """What was added."""

    tokens: tuple[str, ...]
    rows_before: int
    rows: int

    def __str__(self) -> str:
        grown = f"its embedding table grew from {self.rows_before:,} to {self.rows:,} rows"
        kept = f"its embedding table had room for them ({self.rows:,} rows)"
        return f"tokens were added: {', '.join(self.tokens)}; {kept if self.rows == self.rows_before else grown}"


def missing_tokens(folder: ModelFolder, wanted: Sequence[str]) -> list[str]:
    """The wanted tokens that tokenizer.json does not keep whole in every text. Loads neither transformers nor the tokenizer."""
    if not wanted or not (folder.path / TOKENIZER_NAME).exists():
        return []
    known = {str(token["content"]) for token in read_json_object(folder.path, TOKENIZER_NAME).get("added_tokens") or []}
    return [token for token in dict.fromkeys(wanted) if token not in known]


def refuse_added(folder: ModelFolder, where: str) -> None:
    """Refuse models whose tables align does not extend.

    Raises:
        RecipeError: naming the model.
    """
    reason = "is an adapter" if folder.is_adapter else "is an encoder–decoder model" if folder.encoder_decoder else None
    if reason is not None:
        raise RecipeError(
            f"{where}: {folder.path}: {reason}, to which no token can be added",
            hint="Take a template that needs no new token: `chat: {template: plain}`.",
        )


def write_with_tokens(folder: ModelFolder, tokens: Sequence[str], target: Path) -> AddedTokens:
    """Write the model into `target`, which exists, with these tokens as special tokens, each with a row in embeddings and head.

    Weight files that need no change are linked, not copied.

    Raises:
        RecipeError: if no tensor has a name that is known for a table of embeddings, or the table has too few rows already.
    """
    tokenizer = load_tokenizer(folder.check().path)
    before = tokenizer.get_vocab()
    tables = {name: shape[0] for name, shape in folder.tensor_shapes.items() if names_token_table(name)}
    if not tables:
        raise RecipeError(
            f"{folder.path}: no tensor has a name that is known for the table of token embeddings, so no token can be added",
            hint="Take a template that needs no new token: `chat: {template: plain}`.",
        )
    rows_before, used = min(tables.values()), max(before.values()) + 1
    if used > rows_before:
        raise RecipeError(
            f"{folder.path}: its tokenizer has {used:,} tokens, but the table of embeddings has {rows_before:,} rows",
            hint="The tokenizer is not that of the weights; get the model again.",
        )
    add_special_tokens(tokenizer, tokens)
    vocabulary = tokenizer.get_vocab()
    # A token of the learnt vocabulary becomes a special one and keeps its row.
    new = sorted(vocabulary[token] for token in tokens if token not in before)
    rows = max([rows_before, *(number + 1 for number in new)])
    _write_weights(folder, target, new, used=used, rows_before=rows_before, rows=rows)
    write_json(target / CONFIG_NAME, _resized(folder.config, rows_before, rows))
    if (folder.path / GENERATION_CONFIG_NAME).exists():
        shutil.copyfile(folder.path / GENERATION_CONFIG_NAME, target / GENERATION_CONFIG_NAME)
    tokenizer.save_pretrained(str(target), push_to_hub=False)
    ModelFolder(target).check()
    return AddedTokens(tuple(tokens), rows_before, rows)


def _write_weights(folder: ModelFolder, target: Path, new: Sequence[int], *, used: int, rows_before: int, rows: int) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    added_bytes = 0
    for file in weight_files(folder.path):
        with safe_open(folder.path / file, framework="pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (not a dict)
            changed = [name for name, shape in shapes.items() if shape and shape[0] == rows_before and _has_row_per_token(name)]
            if not changed or not new:
                link_file(folder.path / file, target / file)
                continue
            state = {name: tensors.get_tensor(name) for name in shapes}
        for name in changed:
            state[name] = with_mean_rows(state[name], new, used=used, rows=rows)
            added_bytes += (rows - rows_before) * state[name][0].numel() * state[name].element_size()
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        save_file(state, target / file, metadata={"format": "pt"})
    if (folder.path / INDEX_NAME).exists():
        index = read_json_object(folder.path, INDEX_NAME)
        if isinstance(size := (index.get("metadata") or {}).get("total_size"), int):
            index["metadata"]["total_size"] = size + added_bytes
        write_json(target / INDEX_NAME, index)


def _has_row_per_token(name: str) -> bool:
    """Embeddings, a head of its own, and the head's bias where it has one (Phi-2)."""
    return names_token_table(name) or names_head(name) or names_head(name.removesuffix("bias") + "weight")


def with_mean_rows(table: Tensor, new: Sequence[int], *, used: int, rows: int) -> Tensor:
    """[rows, …] copy of a table with one row per token; the `new` rows are the mean of its first `used` rows.

    Args:
        table: [rows before, …], of any type.
    """
    import torch

    # In float64: the mean of 150,000 rows of bfloat16 keeps the digits that they have.
    total = sum((chunk.double().sum(0) for chunk in table[:used].split(CHUNK_ROWS)), torch.zeros((), dtype=torch.float64))
    grown = torch.cat([table, table.new_zeros(rows - len(table), *table.shape[1:])])
    grown[list(new)] = (total / used).to(table.dtype)
    return grown


def _resized(config: dict[str, Any], rows_before: int, rows: int) -> dict[str, Any]:
    """A configuration, or that of the language model in it, with the new size of the vocabulary."""
    changed = {**config, "vocab_size": rows} if config.get("vocab_size") == rows_before else dict(config)
    if isinstance(text := config.get("text_config"), dict):
        changed["text_config"] = _resized(text, rows_before, rows)
    return json.loads(json.dumps(changed))  # type: ignore[no-any-return]
