"""A shared prompt and packed rows change no number: log-probabilities, scores and gradients are those of every side alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from align.data.encoding import EncodedPreference
from align.losses import sequence_logps
from align.models import attention
from align.models.head import extend_forward
from align.models.sizes import DENSE_MASK_TOKENS
from align.training.pairwise.collator import CHOSEN, NO_PAIR, PROMPT, REJECTED, PairCollator, TrainingPair
from align.training.pairwise.trainer import pair_outputs
from align.training.pairwise.visibility import attention_of_pairs

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "num_labels": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gemma": GemmaConfig(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, pad_token_id=0, num_labels=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
}  # fmt: skip
SLIDING = {
    "mistral": MistralConfig(**SMALL, sliding_window=4),
    "gemma2": Gemma2Config(**SMALL, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
}


def pair(name: str, prompt: int, chosen: int, rejected: int) -> TrainingPair:
    """A pair of the given lengths; each completion ends with token 2."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))

    def ids(count: int) -> list[int]:
        return torch.randint(3, 61, (count,), generator=generator).tolist()

    return TrainingPair(EncodedPreference(name, ids(prompt), [*ids(chosen - 1), 2], [*ids(rejected - 1), 2]))


# A prompt of one token, completions of the end alone, sides of very different length, and one that fills a row.
PAIRS = [
    pair("a", 5, 4, 3),
    pair("b", 1, 1, 6),
    pair("c", 7, 19, 1),
    pair("d", 1, 2, 1),
    pair("e", 12, 9, 11),
    pair("f", 3, 1, 2),
]


def model_of(kind: str, config: Any, *, reward: bool = False, attention: str = "sdpa") -> Any:
    torch.manual_seed(4)
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation=attention).eval()
    assert model.config.model_type == kind
    extend_forward(model, "layout", pair_outputs)
    return model


def collator(form: Any, row_tokens: int = 1, **more: Any) -> PairCollator:
    return PairCollator(form=form, pad_token_id=0, row_tokens=row_tokens, **more)


def with_gradients(model: Any, values: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The values, and the gradients of a sum in which every one of them counts differently."""
    model.zero_grad()
    weights = torch.linspace(-1.0, 2.0, len(values))
    (values * weights).sum().backward()
    return values.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive_logps(model: Any) -> torch.Tensor:
    """Every side alone, by the model's own logits."""
    sums = []
    for side in ("chosen_token_ids", "rejected_token_ids"):
        for pair in PAIRS:
            ids = torch.tensor([pair.tokens.prompt_token_ids + getattr(pair.tokens, side)])
            labels = ids.clone()
            labels[:, : len(pair.tokens.prompt_token_ids)] = -100
            sums.append(sequence_logps(model(input_ids=ids, use_cache=False).logits, labels)[0])
    return torch.stack(sums)


def naive_scores(model: Any) -> torch.Tensor:
    sides = [
        p.tokens.prompt_token_ids + getattr(p.tokens, side) for side in ("chosen_token_ids", "rejected_token_ids") for p in PAIRS
    ]
    return torch.stack([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 0] for ids in sides])


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = gradient.abs().max()
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * scale + 1e-7, name


LAYOUTS = [("shared_prompt", 1, 1), ("shared_prompt", 40, 8), ("shared_prompt", 1000, 1), ("padded", 1, 1)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_logps_and_gradients_are_those_of_every_side_alone(kind: str, attention: str) -> None:
    model = model_of(kind, CONFIGS[kind], attention=attention)
    expected = with_gradients(model, naive_logps(model))
    for form, row_tokens, multiple_of in LAYOUTS:
        batch = collator(form, row_tokens, multiple_of=multiple_of)(PAIRS)
        assert_same(with_gradients(model, model(layout=batch)), expected)


@pytest.mark.parametrize("limit", [0, 1000])
@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("kind", [*CONFIGS, *SLIDING])
def test_segments_and_a_shared_mask_give_the_numbers_of_every_side_alone(
    kind: str, reward: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped heads, sliding windows that cut every pair, soft caps; rows above `limit` tokens are computed by segments."""
    monkeypatch.setitem(DENSE_MASK_TOKENS, "cpu", limit)
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 3)
    model = model_of(kind, {**CONFIGS, **SLIDING}[kind], reward=reward, attention="eager")
    expected = with_gradients(model, (naive_scores if reward else naive_logps)(model))
    model.set_attn_implementation("sdpa")
    attention.use_segments(model)
    for form, row_tokens, multiple_of in LAYOUTS:
        batch = collator(form, row_tokens, multiple_of=multiple_of)(PAIRS)
        assert_same(with_gradients(model, model(layout=batch)), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_and_gradients_are_those_of_every_side_alone(kind: str) -> None:
    model = model_of(kind, CONFIGS[kind], reward=True)
    expected = with_gradients(model, naive_scores(model))
    for form, row_tokens, multiple_of in LAYOUTS:
        batch = collator(form, row_tokens, multiple_of=multiple_of)(PAIRS)
        assert_same(with_gradients(model, model(layout=batch)), expected)


@pytest.mark.parametrize("form", ["shared_prompt", "padded"])
def test_prompts_can_be_targets_too(form: Any) -> None:
    model = model_of("llama", CONFIGS["llama"])
    with torch.no_grad():
        sums = model(layout=collator(form, 30, with_prompts=True)(PAIRS))
        for index, pair in enumerate(PAIRS):
            ids = torch.tensor([pair.tokens.prompt_token_ids])
            expected = sequence_logps(model(input_ids=ids, use_cache=False).logits, ids)[0]
            torch.testing.assert_close(sums[2 * len(PAIRS) + index], expected, rtol=1e-5, atol=1e-5)
    assert model.training is False


def test_the_tensors_of_one_pair() -> None:
    one = TrainingPair(EncodedPreference("x", [5, 6], [7, 2], [8, 9, 2]), {"margin": 0.5})
    batch = collator("shared_prompt", multiple_of=4)([one])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 8, 9, 2, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4, 0]]
    assert batch["pair_ids"].tolist() == [[0] * 7 + [NO_PAIR]]
    assert batch["side_ids"].tolist() == [[PROMPT] * 2 + [CHOSEN] * 2 + [REJECTED] * 3 + [PROMPT]]
    # Both completions are predicted from the prompt's last token, at place 1.
    assert batch["hidden_index"].tolist() == [1, 2, 1, 4, 5]
    assert batch["target_ids"].tolist() == [7, 2, 8, 9, 2]
    assert batch["sequence_index"].tolist() == [0, 0, 1, 1, 1]
    assert batch["token_counts"].tolist() == [2, 3]
    assert batch["last_index"].tolist() == [3, 6]
    assert batch["margin"].tolist() == [0.5]


def test_who_sees_whom() -> None:
    one = TrainingPair(EncodedPreference("x", [5], [7], [8, 2]))
    batch = collator("shared_prompt", 7, multiple_of=7)([one, TrainingPair(EncodedPreference("y", [6], [2], []))])
    visible = attention_of_pairs(batch["pair_ids"], batch["side_ids"])[0, 0].int().tolist()
    assert visible == [
        [1, 0, 0, 0, 0, 0, 0],  # prompt of x
        [1, 1, 0, 0, 0, 0, 0],  # chosen of x
        [1, 0, 1, 0, 0, 0, 0],  # rejected of x: the prompt, not the chosen one
        [1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],  # prompt of y: nothing of x
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],  # padding sees padding
    ]


def break_sides(batch: dict[str, torch.Tensor]) -> None:
    batch["side_ids"] = torch.where(batch["side_ids"] == CHOSEN, PROMPT, batch["side_ids"])


def break_positions(batch: dict[str, torch.Tensor]) -> None:
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])


def break_pairs(batch: dict[str, torch.Tensor]) -> None:
    batch["pair_ids"] = torch.zeros_like(batch["pair_ids"])


def break_sources(batch: dict[str, torch.Tensor]) -> None:
    is_prompt, source = batch["sequence_index"] >= len(PAIRS), batch["hidden_index"]
    batch["hidden_index"] = torch.where(is_prompt, source - 1, source).clamp(min=0)


@pytest.mark.parametrize("fault", [break_sides, break_positions, break_pairs, break_sources])
def test_a_fault_in_the_layout_would_be_noticed(fault: Any) -> None:
    """The tests above can fail: each of these moves a log-probability by far more than they allow."""
    model = model_of("llama", CONFIGS["llama"])
    batch = collator("shared_prompt", 1000)(PAIRS)
    with torch.no_grad():
        right = model(layout=batch)
        fault(batch)
        assert (model(layout=batch) - right).abs().max() > 1e-2


@pytest.mark.parametrize("kind", SLIDING)
def test_a_mask_alone_cannot_share_the_prompt_of_a_sliding_window_and_the_padded_form_can(kind: str) -> None:
    model = model_of(kind, SLIDING[kind])
    with torch.no_grad():
        expected = naive_logps(model)
        torch.testing.assert_close(model(layout=collator("padded")(PAIRS)), expected, rtol=1e-5, atol=1e-5)
        assert (model(layout=collator("shared_prompt")(PAIRS)) - expected).abs().max() > 1e-2


def test_sums_are_float32_under_autocast() -> None:
    model = model_of("llama", CONFIGS["llama"])
    with torch.no_grad():
        exact = model(layout=collator("shared_prompt")(PAIRS))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(layout=collator("shared_prompt")(PAIRS))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
