"""The shape of a small model that the tests of estimates share."""

from __future__ import annotations

from align.models.shape import ModelShape

# One layer of Llama: width 4, two heads of 2 with one key, feed-forward 6, 10 tokens; see test_model_shape.py.
SHAPE = ModelShape(
    hidden_size=4,
    intermediate_size=6,
    num_layers=1,
    num_heads=2,
    num_key_value_heads=1,
    head_size=2,
    vocabulary=10,
    context=32,
    is_gated=True,
    activation="silu",
    quantizable=True,
    linear_layers=(),
    backbone_parameters=172,
    head_parameters=0,
    largest_tensor=40,
)
