"""Checksums of weights: what must not change them, and what must."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.engines.checksum import WeightChecksums, checksums_of, differing_parts, of_parts, sums_by_name
from align.engines.transformers_engine import TransformersEngine
from align.engines.vllm_weights import sums_in
from align.models.folder import ModelFolder
from align.models.stream import stored_weights

Q, K, UP = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
TABLE = torch.randn(8, 6, generator=torch.Generator().manual_seed(9))
POLICY = {"model.embed_tokens.weight": TABLE, "model.layers.0.q.weight": Q, "model.layers.0.k.weight": K, "h.1.up.weight": UP}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joined_transposed_and_padded_weights_have_the_same_checksums(dtype: str) -> None:
    laid_out = {
        "language_model.embed_tokens.weight": torch.cat([TABLE, torch.zeros(3, 6)]),
        "decoder.layers.0.qk.weight": torch.cat([K, Q]).T,
        "transformer.h.1.up.weight": UP.to(getattr(torch, dtype)),
    }
    assert checksums_of(laid_out.items(), dtype) == checksums_of(POLICY.items(), dtype)


def test_both_zeros_are_one() -> None:
    first, second = ({"a.0.weight": torch.tensor([zero, 1.5])} for zero in (0.0, -0.0))
    assert checksums_of(first.items(), "float32") == checksums_of(second.items(), "float32")


def test_a_number_that_differs_in_its_last_bit_is_found_in_its_part() -> None:
    changed = torch.nextafter(UP[0, 0], torch.tensor(9.0))
    engine = POLICY | {"h.1.up.weight": torch.cat([changed[None], UP.flatten()[1:]])}
    found = WeightChecksums(checksums_of(engine.items(), "float32"), "float32", has_tied_head=False)
    assert differing_parts(POLICY.items(), found) == ["layer 1"]
    # Sums alone would not notice numbers whose differences cancel.
    engine = POLICY | {"h.1.up.weight": UP + torch.tensor([1.0, -1.0] * 12).reshape(4, 6)}
    found = WeightChecksums(checksums_of(engine.items(), "float32"), "float32", has_tied_head=False)
    assert differing_parts(POLICY.items(), found) == ["layer 1"]


def test_layers_that_changed_places_and_missing_parts_are_found() -> None:
    names = list(POLICY)
    swapped = dict(POLICY) | {names[1]: UP, names[3]: Q}
    found = WeightChecksums(checksums_of(swapped.items(), "float32"), "float32", has_tied_head=False)
    assert differing_parts(POLICY.items(), found) == ["layer 0", "layer 1"]
    found = WeightChecksums(checksums_of(list(POLICY.items())[:3], "float32"), "float32", has_tied_head=True)
    assert differing_parts(POLICY.items(), found) == ["layer 1", "head"]


def test_a_model_that_devices_divide_has_the_checksums_of_the_whole() -> None:
    """As vLLM does: queries and their like by halves, the only head of keys on both, and norms whole."""

    class Attention(torch.nn.Module):
        def __init__(self, queries: torch.Tensor, values: torch.Tensor) -> None:
            super().__init__()
            self.num_heads, self.num_kv_heads, self.num_kv_head_replicas, self.head_size, self.v_head_size = 1, 1, 2, 2, 1
            self.weight = torch.nn.Parameter(torch.cat([queries, K[:2], values]))

    def device(number: int, norm: torch.Tensor) -> dict[str, int]:
        own = slice(2 * number, 2 * number + 2)
        attention = sums_in(torch.nn.ModuleDict({"0": Attention(Q[own], UP[:1])}), dtype="float32")
        rest = {"layers.1.up.weight": UP[:, 3 * number : 3 * number + 3], "layers.1.norm.weight": norm}
        return attention | sums_by_name(rest.items(), "float32")

    whole = {"0.q": Q, "0.k": K[:2], "0.v": UP[:1], "1.up": UP, "1.norm": TABLE[0]}
    expected = checksums_of(((f"layers.{name}.weight", value) for name, value in whole.items()), "float32")
    assert of_parts([device(0, TABLE[0]), device(1, TABLE[0])]) == expected
    one_is_old = of_parts([device(0, TABLE[0]), device(1, TABLE[1])])
    assert [part for part in expected if one_is_old[part] != expected[part]] == ["layer 1"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_transformers_engine_computes_with(project_template: Path, dtype: str) -> None:
    engine = TransformersEngine(ModelFolder(project_template / "base"), dtype=dtype, max_model_tokens=64)
    weights = {name: value + 0.01 for name, value in stored_weights(ModelFolder(project_template / "base"))}
    assert len(differing_parts(weights.items(), engine.weight_checksums())) > 2
    engine.update_weights(weights.items(), version=1)
    assert differing_parts(weights.items(), engine.weight_checksums()) == []
