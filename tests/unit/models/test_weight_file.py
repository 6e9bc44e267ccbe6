"""Headers of safetensors files that lie about their tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from align.errors import EnvironmentProblem, RecipeError
from align.models.weight_file import MAX_HEADER_BYTES, check_weight_file, tensor_places

F32: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(folder: Path, header: Any, data: int = 8, length: int | None = None) -> Path:
    file, text = folder / "model.safetensors", json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return file


def test_places_count_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    second = {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]}
    file = written(tmp_path, {"__metadata__": {"format": "pt"}, "a": F32, "b": second}, data=12)
    check_weight_file(file)
    size = file.stat().st_size
    assert tensor_places(file) == {"a": ("F32", (2,), size - 12, 8), "b": ("BF16", (1, 2), size - 4, 4)}


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, "'b' begins at byte 4 of the data, where 8 is expected"),
        ({"a": F32, "b": F32}, "'b' begins at byte 0 of the data, where 8 is expected"),
        ({"a": {**F32, "data_offsets": [4, 12]}}, "'a' begins at byte 4 of the data, where 0 is expected"),
        ({"a": {**F32, "data_offsets": [8, 0]}}, "cannot be read"),
        ({"a": {**F32, "data_offsets": [-8, 0]}}, "cannot be read"),
        ({"a": {**F32, "data_offsets": [0, True]}}, "cannot be read"),
        ({"a": {**F32, "data_offsets": [0, 8, 8]}}, "cannot be read"),
        ({"a": {**F32, "shape": [3]}}, "'a' is [3] in F32, but has 8 bytes"),
        ({"a": {**F32, "shape": [1 << 62, 1 << 62]}}, "but has 8 bytes"),
        ({"a": {**F32, "shape": "2"}}, "cannot be read"),
        ({"a": {**F32, "dtype": 7}}, "cannot be read"),
        ({"a": None}, "cannot be read"),
        ({"a": {**F32, "dtype": "F33"}}, "'a' has the type 'F33', which the format does not have"),
        ({"\ud800": F32}, "cannot be read"),
        ({"a": {**F32, "shape": {}, "data_offsets": [0, 4]}}, "cannot be read"),
        ({"a": {**F32, "shape": [0, 1 << 64], "data_offsets": [0, 0]}}, "cannot be read"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, tensors: Any, told: str) -> None:
    ends = [row["data_offsets"][1] for row in tensors.values() if row]
    with pytest.raises(EnvironmentProblem) as caught:
        check_weight_file(written(tmp_path, tensors, data=max([int(end) for end in ends] or [0])))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__": []}',
        b'{"__metadata__": {"a": "b", "a": "b"}}',
        b'{"__metadata__": {"a": NaN}}',
        b'{"__metadata__": {"\xff": "b"}}',
        b'{"__metadata__": {"\\udfff": "b"}}',
        b'{"__metadata__": {"a": "b"}, "more": 1' + b"0" * 400 + b"}",
    ],
)
def test_metadata_of_another_form_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(EnvironmentProblem, match="its header cannot be read"):
        check_weight_file(file)


@pytest.mark.parametrize("length", [100 * 2**30, MAX_HEADER_BYTES + 1, 2**63 - 1, 0, 1])
def test_a_header_s_length_asks_for_no_memory(tmp_path: Path, length: int) -> None:
    with pytest.raises(EnvironmentProblem, match="is not a safetensors file, or was cut short"):
        check_weight_file(written(tmp_path, {"a": F32}, length=length))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4"])
def test_floating_numbers_of_few_bits_are_quantised_weights(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(RecipeError, match=rf"the weights are quantised \(a is {dtype}\)"):
        check_weight_file(written(tmp_path, {"a": {**F32, "dtype": dtype, "shape": [8]}}))
