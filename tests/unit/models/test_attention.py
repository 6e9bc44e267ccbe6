"""Rows of several sequences have the numbers of each sequence alone, however their attention is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    T5GemmaConfig,
)

from align.models import attention
from align.models.attention import Scoring, packed_inputs, padded_mask, use_segments
from align.models.head import last_hidden_states
from align.models.segment import PADDING, Segment, mask_of, without_padding
from align.models.sizes import DENSE_MASK_TOKENS

SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gpt2": GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, pad_token_id=0),
    "mistral": MistralConfig(**SMALL, sliding_window=4),
    # So large weights that the cap of 2 changes every score.
    "gemma2": Gemma2Config(
        **SMALL, sliding_window=4, layer_types=["sliding_attention", "full_attention"], attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
    ),
}  # fmt: skip
LENGTHS = [[7, 1, 4], [3, 2, 6]]
ROW = 14


def model_of(kind: str, implementation: str = "sdpa") -> Any:
    torch.manual_seed(4)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), attn_implementation=implementation).eval()


@pytest.fixture(params=["mask", "segments", "blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How rows of several sequences are computed."""
    monkeypatch.setitem(DENSE_MASK_TOKENS, "cpu", ROW if request.param == "mask" else 0)
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 3 if request.param == "blocks" else 512)
    return str(request.param)


def rows_of(lengths: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and positions, [rows, ROW]; padding has position 0."""
    ids = torch.randint(3, 61, (len(lengths), ROW), generator=torch.Generator().manual_seed(1))
    positions = torch.zeros_like(ids)
    for row, row_lengths in zip(positions, lengths, strict=True):
        row[: sum(row_lengths)] = torch.cat([torch.arange(length) for length in row_lengths])
    return ids, positions


def weighted(states: Tensor) -> Tensor:
    """A sum in which every number counts differently."""
    return (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_rows_are_the_sequences_alone(kind: str, way: str) -> None:
    """Compared with eager attention, which computes everything that these models want."""
    eager, model = model_of(kind, "eager"), model_of(kind)
    use_segments(model)
    ids, positions = rows_of(LENGTHS)
    is_padding = (positions == 0) & (positions.roll(-1, 1) == 0)  # no sequence here begins at the end of a row
    is_padding[0, 7] = False  # the sequence of one token
    found = last_hidden_states(model, input_ids=ids, position_ids=positions)[~is_padding]
    alone = []
    for row, lengths in zip(ids, LENGTHS, strict=True):
        alone += [eager.base_model(part[None]).last_hidden_state[0] for part in row[: sum(lengths)].split(lengths)]
    expected = torch.cat(alone)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    of_found, of_expected = gradients(model, weighted(found)), gradients(eager, weighted(expected))
    for name, gradient in of_expected.items():
        assert (of_found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-6, name
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = last_hidden_states(model.train(), input_ids=ids, position_ids=positions)[~is_padding]
    if kind != "gpt2":  # it has dropout
        assert all(torch.equal(value, of_found[name]) for name, value in gradients(model, weighted(again)).items())


def test_sequences_that_saw_each_other_would_be_noticed() -> None:
    model = model_of("llama")
    use_segments(model)
    ids, _ = rows_of(LENGTHS)
    right, wrong = (model.base_model(ids, attention_mask=mask_of(parts)).last_hidden_state for parts in (
        [Segment(ROW), Segment(ROW)], [Segment(ROW), Segment(3), Segment(ROW - 3)]
    ))  # fmt: skip
    assert torch.equal(right[0], wrong[0])
    assert (right[1] - wrong[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_on_the_right_is_not_seen(kind: str, way: str) -> None:
    eager, model = model_of(kind, "eager"), model_of(kind)
    use_segments(model)
    ids, _ = rows_of(LENGTHS)
    mask = (torch.arange(ROW) < torch.tensor([[9], [ROW]])).long()
    with torch.no_grad():
        found = last_hidden_states(model, input_ids=ids, attention_mask=mask)
        expected = eager.base_model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5)


def test_a_soft_cap_is_computed_while_a_cache_grows() -> None:
    """As the transformers engine samples: rows padded on the left, one token at a time."""
    eager, model = model_of("gemma2", "eager"), model_of("gemma2")
    plain = model(rows_of(LENGTHS)[0]).logits
    use_segments(model)
    ids, _ = rows_of(LENGTHS)
    mask = (torch.arange(ROW) >= torch.tensor([[5], [0]])).long()
    logits = []
    for each in (eager, model):
        start = each(ids[:, :10], attention_mask=mask[:, :10], use_cache=True)
        step = each(ids[:, 10:11], attention_mask=mask[:, :11], past_key_values=start.past_key_values)
        logits.append(torch.cat([start.logits[:, 5:], step.logits], dim=1))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert (model(ids).logits - plain).abs().max() > 1e-2  # what torch's own kernel leaves out


def test_segments_of_positions() -> None:
    def segments(*positions: int) -> list[tuple[int, ...]]:
        model = model_of("llama")
        use_segments(model)
        mask = packed_inputs(model, torch.tensor([positions])).attention_mask
        assert mask is not None
        return [tuple(numbers) for numbers in mask[0, 0].tolist()]

    limit, DENSE_MASK_TOKENS["cpu"] = DENSE_MASK_TOKENS["cpu"], 0
    try:
        assert segments(0, 1, 2, 0, 1, 0) == [(3, 0, 0), (2, 0, 0), (1, 0, 0)]
        # Padding is one segment.
        assert segments(0, 1, 0, 0, 0) == [(2, 0, 0), (3, PADDING, 0)]
        assert segments(0, 0, 1, 2, 0) == [(1, 0, 0), (3, 0, 0), (1, 0, 0)]
    finally:
        DENSE_MASK_TOKENS["cpu"] = limit


def test_models_with_attention_of_their_own_get_what_they_know() -> None:
    model = model_of("llama", "eager")
    use_segments(model)
    assert not attention.takes_segments(model)
    assert attention.longest_shared_row(model) == 4096
    packed, single = torch.tensor([[0, 1, 2, 0, 1]]), torch.tensor([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]])
    assert packed_inputs(model, packed) == (None, packed)
    # Padding behind a single sequence needs no mask.
    assert packed_inputs(model, single) == (None, None)
    mask = torch.ones(2, 5000)
    assert padded_mask(model, mask) is mask


@pytest.mark.parametrize(
    "config", [MambaConfig(**SMALL, state_size=4), GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)]
)
def test_models_that_mix_the_sequences_of_a_row_are_found_out(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    use_segments(model)
    assert attention.longest_shared_row(model) == 1


def test_layers_that_say_by_a_mask_alone_what_they_see_keep_their_attention() -> None:
    model = model_of("qwen3")
    model.config.layer_types = ["full_attention", "chunked_attention"]
    use_segments(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_cap_that_would_be_left_out_is_computed_by_eager_attention() -> None:
    small = {name: value for name, value in SMALL.items() if name != "pad_token_id"}
    layers = {"layer_types": ["full_attention"] * 2, "attn_logit_softcapping": 2.0}
    parts = {"encoder": {**small, **layers}, "decoder": {**small, **layers}}
    for config in (T5GemmaConfig(**parts, vocab_size=61), CONFIGS["gemma2"]):
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_config(config, attn_implementation="sdpa")
        use_segments(model)
        assert model.config._attn_implementation == ("eager" if config.is_encoder_decoder else "align")


def test_nothing_that_grows_with_the_square_of_a_long_row_is_kept() -> None:
    model = model_of("llama")
    use_segments(model)
    seq = 512
    sizes: list[int] = []

    def remember(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        ids = torch.arange(seq)[None] % 61
        last_hidden_states(model, input_ids=ids, position_ids=torch.arange(seq)[None] % 50)
    assert max(sizes) <= seq * 48  # the feed-forward layer's width


def test_one_call_for_all_segments_is_given_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention runs on GPUs only: a stand-in that follows its documentation computes what the other way does."""

    def varlen(
        query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, longest_query: int, longest_key: int,
        *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        assert query_ends.dtype == key_ends.dtype == torch.int32
        assert longest_query == query_ends.diff().max()
        assert longest_key == key_ends.diff().max()
        assert (window_size[1], enable_gqa) == (0, True)
        results = []
        for number in range(len(query_ends) - 1):
            part = query[query_ends[number] : query_ends[number + 1]].transpose(0, 1)
            keys, values = (of[key_ends[number] : key_ends[number + 1]].transpose(0, 1) for of in (key, value))
            # Queries and keys end together.
            places = torch.arange(part.shape[1])[:, None] + keys.shape[1] - part.shape[1]
            seen = torch.arange(keys.shape[1])
            visible = seen <= places
            if window_size[0] >= 0:
                visible = visible & (seen >= places - window_size[0])
            results.append(
                torch.nn.functional.scaled_dot_product_attention(
                    part, keys, values, attn_mask=visible, scale=scale, enable_gqa=True
                ).transpose(0, 1)
            )
        return torch.cat(results)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen)
    segments = (Segment(9), Segment(4, 0, 5), Segment(3), Segment(2, 2, 3))
    torch.manual_seed(0)
    query, key, value = (torch.randn(18, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    for window in (None, 3):
        scoring = Scoring(window, None, 0.3, 0.0)
        one = attention.by_varlen(query, key, value, segments, scoring)
        by_heads = [states.transpose(0, 1)[None] for states in (query, key, value)]
        many = attention.one_by_one(by_heads[0], by_heads[1], by_heads[2], segments, scoring)
        torch.testing.assert_close(one, many)
        both = (torch.autograd.grad(weighted(found), (query, key, value)) for found in (one, many))
        for first, second in zip(*both, strict=True):
            torch.testing.assert_close(first, second)


def test_what_segments_cannot_say_is_an_error() -> None:
    states = torch.randn(1, 1, 4, 8)
    with pytest.raises(NotImplementedError, match="attention of Linear has s_aux, which segments do not know"):
        attention.attention_forward(torch.nn.Linear(1, 1), states, states, states, mask_of([Segment(4)]), s_aux=torch.zeros(1))


@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_does_not_go_through_the_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that behind packed samples nor that behind single ones; prefixes are found again."""
    monkeypatch.setitem(DENSE_MASK_TOKENS, "cpu", 0)
    model, seen = model_of(kind), []
    use_segments(model)
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    ids, positions = rows_of(LENGTHS)
    last_hidden_states(model, input_ids=ids, position_ids=positions)
    single = (torch.arange(ROW) < torch.tensor([[9], [4]])).long()
    found = last_hidden_states(model, input_ids=ids, attention_mask=single)
    assert seen == [(1, 12 + 11), (1, 9 + 4)]
    for row, length in enumerate((9, 4)):
        alone = last_hidden_states(model, input_ids=ids[row : row + 1, :length])[0]
        torch.testing.assert_close(found[row, :length], alone)
        assert not found[row, length:].any()


def test_prefixes_are_numbered_among_what_is_left() -> None:
    segments = [Segment(2), Segment(3, PADDING), Segment(4), Segment(1, 2, 3), Segment(2, PADDING)]
    real = without_padding(mask_of(segments))
    assert real is not None
    assert real.places.tolist() == [0, 1, 5, 6, 7, 8, 9]
    assert real.mask.tolist() == [[[[2, 0, 0], [4, 0, 0], [1, 1, 3]]]]
    assert without_padding(mask_of([Segment(2)])) is None
