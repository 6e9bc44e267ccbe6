"""Real vLLM, one engine for the whole file: it takes seconds to start."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.engines.checksum import differing_parts
from align.engines.protocol import BrokenLogits
from align.engines.transformers_engine import TransformersEngine
from align.engines.vllm_worker import broken_rows
from align.errors import RecipeError
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.stream import stored_weights
from align.testing import fill_weights, tiny_causal_lm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]


@pytest.fixture(scope="module")
def engine(project_template: Path):  # type: ignore[no-untyped-def]
    from align.engines.vllm_engine import VllmEngine

    engine = VllmEngine(ModelFolder(project_template / "base"), dtype="float32", max_model_tokens=64, memory_share=0.3)
    yield engine
    engine.close()


def test_the_same_requests_give_the_same_tokens_whatever_came_before(engine, requests_, settings) -> None:  # type: ignore[no-untyped-def]
    first = engine.generate(requests_, settings)
    engine.generate(requests_[::-1], replace(settings, num_candidates=1))
    assert engine.generate(requests_, settings) == first
    assert [len(candidates) for candidates in first] == [3] * 6
    assert len({tuple(candidate.token_ids) for candidate in first[0]}) > 1


def test_an_engine_that_cannot_sleep_keeps_its_weights(engine, requests_, settings) -> None:  # type: ignore[no-untyped-def]
    before = engine.generate(requests_, settings)
    engine.sleep()
    engine.wake_up()
    assert engine.generate(requests_, settings) == before


def test_completions_end_as_they_say(engine, requests_, settings) -> None:  # type: ignore[no-untyped-def]
    for candidates in engine.generate(requests_, settings):
        for candidate in candidates:
            stopped = candidate.token_ids[-1] == 2
            assert candidate.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(candidate.token_ids) == 6


def test_greedy_equals_transformers_so_no_token_was_added(engine, requests_, settings, project_template: Path) -> None:  # type: ignore[no-untyped-def]
    plain = TransformersEngine(ModelFolder(project_template / "base"), dtype="float32", max_model_tokens=64)
    greedy = replace(settings, temperature=0.0, num_candidates=1)
    assert engine.generate(requests_, greedy) == plain.generate(requests_, greedy)


def test_exchanged_weights_are_the_new_models_with_its_head(engine, requests_, settings, tmp_path, project_template) -> None:  # type: ignore[no-untyped-def]
    vocabulary = json.loads((project_template / "base" / "config.json").read_text())["vocab_size"]
    other = tiny_causal_lm(tmp_path / "other", seed=99, vocab_size=vocabulary)
    greedy = replace(settings, temperature=0.0, num_candidates=1)
    before = engine.generate(requests_, greedy)
    engine.load_weights(ModelFolder(other))
    exchanged = engine.generate(requests_, greedy)
    assert exchanged == TransformersEngine(ModelFolder(other), dtype="float32", max_model_tokens=64).generate(requests_, greedy)
    assert exchanged != before
    engine.load_weights(ModelFolder(project_template / "base"))
    assert engine.generate(requests_, greedy) == before


@pytest.mark.parametrize("candidates", [1, 3])
def test_nothing_is_drawn_from_logits_that_are_not_finite(engine, requests_, settings, project_template, candidates: int) -> None:  # type: ignore[no-untyped-def]
    """Finite weights whose products overflow; the engine samples again once it has others."""
    base = ModelFolder(project_template / "base")
    wanted = replace(settings, num_candidates=candidates)
    before = engine.generate(requests_, wanted)
    huge = ((name, tensor.fill_(3e38) if name == "model.norm.weight" else tensor) for name, tensor in stored_weights(base))
    engine.update_weights(huge, version=1)
    with pytest.raises(BrokenLogits, match="base: .*NaN or infinite after 0 tokens") as caught:
        engine.generate(requests_, wanted)
    assert 0 <= caught.value.request < len(requests_)
    engine.load_weights(base)
    assert engine.generate(requests_, wanted) == before


def test_an_infinity_alone_is_seen_and_excluded_tokens_are_not(engine, requests_, settings, project_template) -> None:  # type: ignore[no-untyped-def]
    """vLLM itself counts NaN only, and draws the token whose logit is infinite, for ever."""
    base = ModelFolder(project_template / "base")
    before = engine.generate(requests_, settings)

    def infinite() -> Iterator[tuple[str, torch.Tensor]]:
        """One number of the last state alone counts, and multiplies the rows of two tokens to +∞ and −∞."""
        for name, tensor in stored_weights(base):
            if name == "model.norm.weight":
                tensor = torch.zeros_like(tensor).index_fill(0, torch.tensor([0]), 1e6)
            if name in ("lm_head.weight", "model.embed_tokens.weight"):
                tensor = tensor.clone()
                tensor[-2:, 0] = torch.tensor([3e38, -3e38])
            yield name, tensor

    engine.update_weights(infinite(), version=1)
    with pytest.raises(BrokenLogits, match="base: .*NaN or infinite after"):
        engine.generate(requests_, settings)
    engine.load_weights(base)
    assert engine.generate(requests_, settings) == before


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        ([1.0, -math.inf, 3e38], 0),
        ([1.0, math.nan, 2.0], 1),
        ([1.0, math.inf, 2.0], 1),
        ([-math.inf, -math.inf, -math.inf], 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_token_can_be_drawn_from(row: list[float], broken: int, dtype: torch.dtype) -> None:
    found = broken_rows(torch.tensor([row, [0.0, 1.0, 2.0]], dtype=dtype))
    assert found.tolist() == [broken, 0]
    assert found.dtype == torch.int32


def test_a_model_whose_weights_are_not_finite_is_not_taken(engine, tmp_path: Path, project_template: Path) -> None:  # type: ignore[no-untyped-def]
    vocabulary = json.loads((project_template / "base" / "config.json").read_text())["vocab_size"]
    broken = fill_weights(tiny_causal_lm(tmp_path / "broken", vocab_size=vocabulary), float("inf"))
    with pytest.raises(RecipeError, match="NaN or infinite: model.norm.weight"):
        engine.load_weights(ModelFolder(broken))


def test_completions_carry_the_version_of_the_weights_that_drew_them(engine, requests_, settings, project_template) -> None:  # type: ignore[no-untyped-def]
    def versions() -> set[int]:
        return {candidate.weights_version for row in engine.generate(requests_, settings) for candidate in row}

    base = ModelFolder(project_template / "base")
    assert versions() == {0}
    engine.update_weights(stored_weights(base), version=7)
    assert versions() == {7}
    engine.load_weights(base)
    assert versions() == {0}


def test_checksums_are_those_of_the_weights_that_were_exchanged(engine, tmp_path, project_template, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """vLLM joins projections and packs them for the kernels of a CPU."""
    base = ModelFolder(project_template / "base")
    start = dict(stored_weights(base))
    assert differing_parts(start.items(), engine.weight_checksums()) == []
    other = ModelFolder(tiny_causal_lm(tmp_path / "other", seed=98, vocab_size=base.config["vocab_size"]))
    weights = dict(stored_weights(other))
    engine.update_weights(weights.items(), version=1)
    assert differing_parts(weights.items(), engine.weight_checksums()) == []
    # vLLM says nothing of a tensor that it did not get.
    incomplete = {name: value for name, value in start.items() if name != "model.layers.1.mlp.up_proj.weight"}
    engine.update_weights(incomplete.items(), version=2)
    assert differing_parts(start.items(), engine.weight_checksums()) == ["layer 1"]
    # Without its own copy of the new table, a tied head stays as it was.
    monkeypatch.setattr(engine, "_is_tied", False)
    engine.update_weights(weights.items(), version=3)
    assert differing_parts(weights.items(), engine.weight_checksums()) == ["head"]
    monkeypatch.undo()
    engine.load_weights(base)
    assert differing_parts(start.items(), engine.weight_checksums()) == []


def test_a_tied_model_with_other_names_is_exchanged_with_its_head(requests_, settings, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """GPT-2: its table is not called as Llama's, and its layers are stored the other way round."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from align.engines.vllm_engine import VllmEngine
    from align.testing.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.2}
        config = GPT2Config(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0, bos_token_id=None, **sizes)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / str(seed))
        tokenizer.save_pretrained(tmp_path / str(seed))
        folders.append(ModelFolder(tmp_path / str(seed)))
    greedy = replace(settings, temperature=0.0, num_candidates=1)
    expected = [TransformersEngine(f, dtype="float32", max_model_tokens=64).generate(requests_, greedy) for f in folders]
    assert expected[0] != expected[1]
    engine = VllmEngine(folders[0], dtype="float32", max_model_tokens=64)
    try:
        assert engine.generate(requests_, greedy) == expected[0]
        engine.load_weights(folders[1])
        assert engine.generate(requests_, greedy) == expected[1]
        weights = {name: value.detach() for name, value in load_causal_lm(folders[0]).named_parameters()}
        engine.update_weights(weights.items(), version=0)
        assert differing_parts(weights.items(), engine.weight_checksums()) == []
        assert engine.generate(requests_, greedy) == expected[0]
    finally:
        engine.close()
