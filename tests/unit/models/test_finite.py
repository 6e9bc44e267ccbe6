"""No number of a model's weights is NaN or infinite; no torch computes here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.config.peft import Lora
from align.engines.transformers_engine import TransformersEngine
from align.errors import EnvironmentProblem, RecipeError
from align.models import finite, load_causal_lm, load_reward_model
from align.models.adapter import base_fingerprint
from align.models.finite import check_finite_files, check_finite_weights
from align.models.folder import ModelFolder
from align.models.load import load_seq2seq_lm
from align.models.trainable import TrainableModel, load_trainable, save_trained
from align.store.fingerprint import FileHashes
from align.testing import fill_weights, tiny_causal_lm, tiny_reward_model, tiny_seq2seq_lm

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_and_counted(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    broken = torch.ones(4, 5, dtype=dtype)
    broken[1, 2] = broken[3, 4] = value
    write(tmp_path, good=torch.ones(3, dtype=dtype), broken=broken)
    with pytest.raises(RecipeError, match=r"weights that are NaN or infinite: broken \(2 of 20\)\n") as caught:
        check_finite_files(tmp_path, ["model.safetensors"])
    assert str(caught.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_finite_number_passes(tmp_path: Path, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    numbers = torch.tensor([info.max, info.min, info.tiny, -info.tiny, 0.0, -0.0, info.smallest_normal / 2], dtype=dtype)
    others = {"ids": torch.full((3,), -1), "mask": torch.full((8,), 255, dtype=torch.uint8), "none": torch.empty(0)}
    write(tmp_path, extremes=numbers, **others)
    check_finite_files(tmp_path, ["model.safetensors"])


def test_the_last_number_of_a_large_tensor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "READ_BYTES", 64)
    monkeypatch.setattr(finite, "PIECE_BYTES", 256)
    table = torch.ones(1001)
    table[[0, 500, 1000]] = math.nan
    with pytest.raises(RecipeError, match=r"table \(3 of 1,001\)"):
        check_finite_files(write(tmp_path, table=table, other=torch.ones(7)), ["model.safetensors"])


def test_a_file_is_read_once_unless_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    count = finite._count
    monkeypatch.setattr(finite, "_count", lambda number, file, piece: reads.append(file) or count(number, file, piece))  # type: ignore[func-returns-value]
    write(tmp_path, table=torch.ones(8))
    for _ in range(2):
        check_finite_files(tmp_path, ["model.safetensors"])
    assert len(reads) == 1
    write(tmp_path, table=torch.full((8,), math.nan))
    for _ in range(2):
        with pytest.raises(RecipeError):
            check_finite_files(tmp_path, ["model.safetensors"])


def test_many_broken_tensors_are_counted(tmp_path: Path) -> None:
    write(tmp_path, **{f"w{number}": torch.full((2,), math.nan) for number in range(9)})
    with pytest.raises(RecipeError, match=r"w2 \(2 of 2\) and 6 more tensors\n"):
        check_finite_files(tmp_path, ["model.safetensors"])


def test_a_file_that_ends_too_soon_is_no_endless_read(tmp_path: Path) -> None:
    file = write(tmp_path, table=torch.ones(100)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(EnvironmentProblem, match="ended while it was read"):
        check_finite_files(tmp_path, ["model.safetensors"])


@pytest.mark.parametrize(
    ("make", "load", "tensor"),
    [
        (tiny_causal_lm, load_causal_lm, "model.norm.weight"),
        (tiny_causal_lm, lambda folder: check_finite_weights(ModelFolder(folder)), "model.layers.0.mlp.up_proj.weight"),
        (
            tiny_causal_lm,
            lambda folder: TransformersEngine(ModelFolder(folder), dtype="float32", max_model_tokens=16),
            "model.norm.weight",
        ),
        (tiny_reward_model, load_reward_model, "score.weight"),
        (tiny_seq2seq_lm, load_seq2seq_lm, "shared.weight"),
    ],
)
def test_no_way_of_loading_takes_such_a_model(tmp_path: Path, make: Any, load: Any, tensor: str) -> None:
    folder = fill_weights(make(tmp_path / "m"), math.nan, tensor)
    with pytest.raises(RecipeError, match=f"NaN or infinite: {tensor}"):
        load(folder)


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_of_an_adapter_both_parts_are_looked_at(tmp_path: Path, part: str) -> None:
    base, folder = tiny_causal_lm(tmp_path / "base"), tmp_path / "adapter"
    start = TrainableModel(ModelFolder(base), Lora(method="lora", rank=2), tmp_path, "test")
    model = load_trainable(start)
    save_trained(model, ModelFolder(base).tokenizer, folder, start)
    check_finite_weights(ModelFolder(folder))
    if part == "adapter":
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({name: tensor.fill_(math.nan) for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    else:
        fill_weights(base, math.nan)
        record = json.loads((folder / "base.json").read_text())
        fingerprint = base_fingerprint(base, FileHashes(None))
        (folder / "base.json").write_text(json.dumps({**record, "fingerprint": fingerprint}))
    with pytest.raises(RecipeError, match=f"^{tmp_path / part}: .* NaN or infinite"):
        load_causal_lm(folder)
