"""Model FLOPs against a count by hand, and against the published size of each shape."""

from __future__ import annotations

import pytest

from align.testing.flops import training_flops
from align.testing.shapes import SHAPES

ONE_LAYER = {
    "hidden_size": 2, "intermediate_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
    "head_dim": 2, "vocab_size": 5,
}  # fmt: skip


def test_operations_of_a_row_by_hand() -> None:
    # Linear layers: 4 of 2·2, 3 of 2·3 = 34 weights. 5 tokens see 5²/2 tokens; 3 of them are predicted through 10 weights.
    assert training_flops(ONE_LAYER, [(2, [3])]) == 6 * (34 * 5 + 10 * 3) + 12 * 2 * 12.5
    assert training_flops(ONE_LAYER, [(2, [3])], has_head=False) == 6 * 34 * 5 + 12 * 2 * 12.5


def test_a_shared_prompt_is_computed_once() -> None:
    apart = training_flops(ONE_LAYER, [(4, [1, 2])])
    assert apart == training_flops(ONE_LAYER, [(4, [1]), (4, [2])])
    # 4 tokens of the prompt, and the 4²/2 that they see.
    assert apart - training_flops(ONE_LAYER, [(4, [1, 2])], shared_prompt=True) == 6 * 34 * 4 + 12 * 2 * 8


@pytest.mark.parametrize(
    ("shape", "millions"),
    [("smollm2-135m", 134.5), ("qwen3-0.6b", 596.0), ("llama-3.2-1b", 1235.8)],
    ids=lambda value: str(value),
)
def test_a_shape_has_the_published_number_of_weights(shape: str, millions: float) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape], tie_word_embeddings=True))
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)
