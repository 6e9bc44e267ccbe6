"""Datasets with subsets. The dataset is a folder in the hub's form, which `datasets` reads in the same way."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config.inputs import DataInput
from align.data.hub import fetch_dataset_rows
from align.data.source import HubRows
from align.errors import RecipeError
from align.formats.raw import RawProblem

CARD = """\
---
configs:
- {config_name: main, data_files: [{split: train, path: main.jsonl}]}
- {config_name: socratic, data_files: [{split: train, path: socratic.jsonl}]}
---
"""


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "gsm"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    for name in ("main", "socratic"):
        (folder / f"{name}.jsonl").write_text("".join(f'{{"question": "{name} {number}"}}\n' for number in range(3)))
    return str(folder)


def test_the_named_subset_is_read_and_a_split_may_be_a_part(dataset: str) -> None:
    _, rows = fetch_dataset_rows(dataset, "train[1:]", subset="socratic")
    assert [dict(row)["question"] for _, row in rows if not isinstance(row, RawProblem)] == ["socratic 1", "socratic 2"]


@pytest.mark.parametrize(("subset", "problem"), [(None, "several subsets, and none is named"), ("mian", "no subset 'mian'")])
def test_a_subset_that_is_missing_or_unknown_names_those_there_are(dataset: str, subset: str | None, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem + r"; there are \['main', 'socratic'\]"):
        fetch_dataset_rows(dataset, "train", subset=subset)


def test_a_subset_is_in_the_name_and_in_what_is_hashed_only_where_there_is_one() -> None:
    with_one = DataInput.model_validate({"kind": "prompts", "dataset": "openai/gsm8k", "subset": "main", "split": "test"})
    without = DataInput.model_validate({"kind": "prompts", "dataset": "openai/gsm8k", "split": "test"})
    assert with_one.model_dump()["subset"] == "main"
    assert "subset" not in without.model_dump()
    assert HubRows("openai/gsm8k", "test", None, "main").shown("abc") == "openai/gsm8k/main@abc:test"
    assert HubRows("owner/rows", "train", None).shown("abc") == "owner/rows@abc:train"


def test_a_subset_needs_a_dataset() -> None:
    with pytest.raises(ValueError, match="subset goes with dataset"):
        DataInput.model_validate({"kind": "prompts", "path": "a.jsonl", "subset": "main"})
