"""Under fsdp2 rank 0 reads a model and sends it: every process has what it would have read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.config.peft import Lora
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.models.later_weights import has_weights
from align.models.load import load_causal_lm
from align.models.trainable import TrainableModel, load_trainable, save_trained
from align.runtime.group import all_of, from_first
from align.runtime.rank import Rank
from align.runtime.ranks import run_ranks
from align.runtime.spread import Spread
from align.testing import tiny_causal_lm
from align.training.sharding import shard, whole
from align.training.weights_of_first import weights_of_first

pytestmark = pytest.mark.slow

SPREAD = Spread(3, "fsdp2")
"""No number of rows is a multiple of it."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights in two types, a tied head, an adapter to merge, and a head that is tied by config.json and not by the files."""
    root = tmp_path_factory.mktemp("models")
    for name in ("plain", "half"):
        tiny_causal_lm(root / name, seed=1, tie_word_embeddings=False)
    for name in ("tied", "tied by config.json"):
        tiny_causal_lm(root / name, seed=1, tie_word_embeddings=True)
    half, odd = (root / name / "model.safetensors" for name in ("half", "tied by config.json"))
    save_file({name: value.bfloat16() for name, value in load_file(half).items()}, half, metadata={"format": "pt"})
    state = load_file(odd)
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1}, odd, metadata={"format": "pt"})
    base = ModelFolder(root / "plain")
    trained = TrainableModel(base, Lora(method="lora", rank=2), root, "it")
    model = load_trainable(trained)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    save_trained(model, load_format(base), root / "adapter", trained)
    return {name: root / name for name in ("plain", "half", "tied", "tied by config.json", "adapter")}


def states(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters, tied ones once, and buffers."""
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    return parameters, {name: value.clone() for name, value in model.named_buffers()}


def load_all(rank: Rank, *, folders: dict[str, Path]) -> dict[str, Any]:
    found = {}
    for name, folder in folders.items():
        with weights_of_first(SPREAD):
            model: Any = load_causal_lm(folder, dtype="bfloat16" if name == "half" else "float32")
        assert has_weights(model) == (rank.number == 0)
        divided = shard(model, SPREAD)
        buffers = all_of(states(divided)[1])
        ids = torch.arange(1, 12)[None]
        logits = all_of(divided(input_ids=ids, use_cache=False).logits.detach())
        with whole(divided, keep=rank.number == 0):
            parameters = from_first(states(divided)[0] if rank.number == 0 else None)
        found[name] = (parameters, buffers, logits)
    return found


def test_every_process_has_the_model_that_the_first_has_read(folders: dict[str, Path], tmp_path: Path) -> None:
    work: Any = partial(load_all, folders=folders)
    found = run_ranks(work, SPREAD, folder=tmp_path, emit=lambda event: None, stop_requested=lambda: None).value
    for name, folder in folders.items():
        parameters, buffers, logits = found[name]
        model: Any = load_causal_lm(folder, dtype="bfloat16" if name == "half" else "float32")
        expected = states(model)
        assert parameters.keys() == expected[0].keys(), name
        assert all(torch.equal(value, parameters[key]) for key, value in expected[0].items()), name
        for each in buffers:
            assert each.keys() == expected[1].keys(), name
            assert all(torch.equal(value, each[key]) for key, value in expected[1].items()), name
        for each in logits:
            torch.testing.assert_close(each, model(input_ids=torch.arange(1, 12)[None], use_cache=False).logits)
    tied = json.loads((folders["tied by config.json"] / "config.json").read_text())["tie_word_embeddings"]
    assert tied
    assert "lm_head.weight" not in found["tied"][0]
