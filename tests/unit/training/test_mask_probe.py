"""The form of batches is what the model can take, found out on the data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, MistralConfig

from align.data.encoding import EncodedPreference
from align.models.attention import use_segments
from align.models.sizes import DENSE_MASK_TOKENS
from align.testing import Recorder, run_context
from align.training.pairwise.collator import TrainingPair
from align.training.pairwise.mask_probe import choose_collator
from align.training.pairwise.trainer import prepare_model

SIZE = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_labels": 1,
}
# Ten short pairs, and one whose rejected side alone is longer than a window of 24.
PAIRS = [TrainingPair(EncodedPreference(str(i), [5 + i, 6, 7], [8, 9 + i, 2], [10, 2])) for i in range(10)] + [
    TrainingPair(EncodedPreference("long", list(range(5, 20)), [8, 2], [*range(20, 40), 2]))
]


class Notes(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.context = run_context(emit=self.handle)


def model_of(config: Any, *, auto: Any = AutoModelForCausalLM) -> Any:
    torch.manual_seed(0)
    return prepare_model(auto.from_config(config))


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_model_that_takes_the_mask_shares_the_prompt(auto: Any) -> None:
    notes = Notes()
    assert choose_collator(model_of(LlamaConfig(**SIZE), auto=auto), PAIRS, notes.context, pad_token_id=0).form == "shared_prompt"
    assert notes.notes == []


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_window_that_cuts_only_the_longest_pair_is_found(auto: Any) -> None:
    notes, model = Notes(), model_of(MistralConfig(**SIZE, sliding_window=24), auto=auto)
    assert choose_collator(model, PAIRS, notes.context, pad_token_id=0).form == "padded"
    assert "repeat the prompt" in notes.notes[0]
    assert "outputs differ by" in notes.notes[0]
    notes = Notes()
    assert choose_collator(model, PAIRS[:10], notes.context, pad_token_id=0).form == "shared_prompt"
    assert notes.notes == []


def test_a_model_that_refuses_the_mask_gets_padded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    notes, model = Notes(), model_of(LlamaConfig(**SIZE))
    original = model.base_model.forward

    def refuse(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("a mask of four dimensions is new to me")
        return original(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", refuse)
    assert choose_collator(model, PAIRS, notes.context, pad_token_id=0).form == "padded"
    assert "ValueError: a mask of four dimensions is new to me" in notes.notes[0]


def test_out_of_memory_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(LlamaConfig(**SIZE))
    original = model.base_model.forward

    def fail(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim == 4:
            raise torch.OutOfMemoryError("no room")
        return original(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        choose_collator(model, PAIRS, Notes().context, pad_token_id=0)


def test_attention_that_knows_no_masks_is_not_tried() -> None:
    notes, model = Notes(), model_of(LlamaConfig(**SIZE))
    model.config._attn_implementation = "flash_attention_2"
    assert choose_collator(model, PAIRS, notes.context, pad_token_id=0).form == "padded"
    assert "flash_attention_2" in notes.notes[0]


def test_a_window_is_no_obstacle_where_attention_knows_segments() -> None:
    notes, model = Notes(), model_of(MistralConfig(**SIZE, sliding_window=24))
    use_segments(model)
    assert choose_collator(model, PAIRS, notes.context, pad_token_id=0).form == "shared_prompt"
    assert notes.notes == []


def test_no_mask_is_made_for_a_pair_that_is_too_long_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DENSE_MASK_TOKENS, "cuda", 30)
    notes, model = Notes(), model_of(LlamaConfig(**SIZE))
    assert choose_collator(model, PAIRS, notes.context, pad_token_id=0).form == "padded"
    assert "a pair has 38 tokens, and attention 'sdpa' needs a mask that grows with their square" in notes.notes[0]
    use_segments(model)
    assert choose_collator(model, PAIRS, notes.context, pad_token_id=0).form == "shared_prompt"


def test_dropout_is_off_and_stays_in_the_configuration() -> None:
    model = model_of(LlamaConfig(**SIZE, attention_dropout=0.3))
    model.train()
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.0}
    assert model.config.attention_dropout == 0.3
