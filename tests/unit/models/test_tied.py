"""Whether head and embedding are one tensor, where config.json does not say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from align.models.facts import read_facts
from align.models.folder import ModelFolder
from align.models.shape import read_shape
from align.models.tied import TIED_BY_DEFAULT
from align.testing.tiny import tiny_causal_lm

NEED_ARGUMENTS = {"encoder-decoder", "musicgen", "musicgen_melody"}
"""Model types whose configuration has no defaults."""


def test_the_table_is_that_of_the_installed_transformers() -> None:
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES} - NEED_ARGUMENTS
    assert {name for name in known if getattr(CONFIG_MAPPING[name](), "tie_word_embeddings", False)} == TIED_BY_DEFAULT


@pytest.mark.parametrize(
    ("changes", "tied"),
    [
        ({}, False),  # Llama
        ({"model_type": "gemma3_text"}, True),
        ({"model_type": "gemma3_text", "tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": None}, False),
        ({"tie_word_embeddings": True}, True),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"model_type": None}, False),
    ],
)
def test_facts_and_estimate_agree(tmp_path: Path, changes: dict[str, Any], tied: bool) -> None:
    path = tiny_causal_lm(tmp_path / "m", tie_word_embeddings=False)
    config = json.loads((path / "config.json").read_text())
    del config["tie_word_embeddings"]
    if "text_config" in changes:
        changes = {**changes, "text_config": {**config, **changes["text_config"]}}
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    folder = ModelFolder(path)
    shape = read_shape(folder)
    assert shape is not None
    assert (folder.tied, read_facts(folder).tied, shape.head_parameters == 0) == (tied, tied, tied)
