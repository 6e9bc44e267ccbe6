"""Facts about a checked model folder, from its configuration and the headers of its weights. No weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.models.adapter import read_adapter
from align.models.folder import CONFIG_NAME, NO_BOUND, context_tokens, is_adapter, tensor_shapes

GENERATION_CONFIG_NAME = "generation_config.json"

# Architectures name the table differently: Llama, GPT-2, T5, Falcon, InternLM, GPT-NeoX and Mamba, in this order.
_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "shared.weight", "word_embeddings.weight", "tok_embeddings.weight"),
    *("embed_in.weight", "embeddings.weight"),
)
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


@dataclass(frozen=True)
class ModelFacts:
    """Sizes and settings of one model. Of an adapter: its base model's."""

    vocab_size: int | None
    """Tokens by config.json."""
    embedding: tuple[str, int] | None
    """Name and rows of the table of token embeddings; None where no tensor has a name that is known for it."""
    tied: bool
    """Whether the head is the embedding table, by config.json."""
    has_head: bool
    """Whether the weights have a language model's head of their own."""
    is_language_model: bool
    """Whether config.json names an architecture that writes text, or none."""
    end_token_ids: dict[str, list[int]]
    """Tokens that end a text, by the file that names them; a file that names none is absent."""
    context_tokens: int | None
    """Longest text the model can see, in tokens; None: no bound is set."""


def read_facts(folder: Path) -> ModelFacts:
    """The facts of a folder that `check_model_folder` let pass.

    Raises:
        RecipeError, EnvironmentProblem: if an adapter's base model is gone or refused.
    """
    weights = read_adapter(folder).base if is_adapter(folder) else folder
    config = _read(weights / CONFIG_NAME)
    text_config = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    # Models of several modalities nest the language model's settings; a null at the top does not override them.
    both = {**(text_config or {}), **{key: value for key, value in config.items() if value is not None}}
    rows = {name: shape[0] if shape else 0 for name, shape in tensor_shapes(weights).items()}
    embedding = next(((name, rows[name]) for end in _EMBEDDINGS for name in sorted(rows) if _is(name, end)), None)
    architectures = config.get("architectures") or []
    ends = {name: _ids(_read(folder / name).get("eos_token_id")) for name in (GENERATION_CONFIG_NAME, CONFIG_NAME)}
    bound = context_tokens(folder)
    return ModelFacts(
        vocab_size=both["vocab_size"] if isinstance(both.get("vocab_size"), int) else None,
        embedding=embedding,
        tied=both.get("tie_word_embeddings", True) is not False,
        has_head=any(_is(name, end) for name in rows for end in _HEADS),
        is_language_model=not architectures or not str(architectures[0]).endswith("ForSequenceClassification"),
        end_token_ids={name: ids for name, ids in ends.items() if ids},
        context_tokens=bound if bound < NO_BOUND else None,
    )


def _is(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _read(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_bytes()) if path.exists() else {}
    return value if isinstance(value, dict) else {}


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool)]
