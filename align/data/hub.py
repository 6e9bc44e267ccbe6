"""Rows of a dataset on the Hugging Face hub: the one place that imports `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from align.data.reader import RawRow
from align.errors import EnvironmentProblem, RecipeError

_LOCAL_HINT = "Use a local file instead (path: data/rows.jsonl), or where the hub can be reached, run without HF_HUB_OFFLINE."


def fetch_dataset_rows(
    dataset: str, split: str, revision: str | None = None, subset: str | None = None
) -> tuple[str | None, Iterator[RawRow]]:
    """The rows of one split, numbered from 1, and their commit.

    Offline, the copy in the local cache is used; its commit is None.

    Raises:
        EnvironmentProblem: if the dataset can neither be fetched nor found in the cache, or `datasets` is not installed.
        RecipeError: if the dataset has no such split or subset, or has several subsets and none is named.
    """
    try:
        # Imported here, because local files need neither library.
        import datasets
        import httpx
    except ImportError as error:
        raise EnvironmentProblem(
            f"{dataset}: the library datasets cannot be imported ({error})", hint="pip install datasets, or use a local file."
        ) from error
    # Resolved first: the rows and the recorded commit then agree, even if the branch moves in between.
    commit = _commit_of(dataset, revision)
    try:
        loaded = datasets.load_dataset(dataset, subset, split=split, revision=commit or revision)
    except ValueError as error:
        # datasets raises a plain ValueError for an unknown split, and for a subset that is missing or unknown.
        if "config" in str(error).lower():
            which = "has several subsets, and none is named" if subset is None else f"no subset {subset!r}"
            there = "".join(re.findall(r"\[.*\]", str(error))[:1])
            raise RecipeError(f"dataset {dataset}: {which}; there are {there}", hint="Write subset: with one of them.") from error
        if "split" in str(error):
            raise RecipeError(f"dataset {dataset}: no split {split!r}: {first_line(error)}", hint="Correct split:.") from error
        raise EnvironmentProblem(f"dataset {dataset}: cannot be loaded: {first_line(error)}", hint=_LOCAL_HINT) from error
    # httpx's errors are not derived from OSError; that of a dataset which does not exist is.
    except (OSError, httpx.HTTPError) as error:
        raise EnvironmentProblem(f"dataset {dataset}: cannot be fetched: {first_line(error)}", hint=_LOCAL_HINT) from error
    return commit, _numbered(loaded)


def _numbered(rows: Any) -> Iterator[RawRow]:
    for number, row in enumerate(rows, start=1):
        yield number, dict(row)


def _commit_of(dataset: str, revision: str | None) -> str | None:
    """The commit that `revision` names now; None if the hub cannot be reached."""
    import httpx
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        commit: str | None = HfApi().dataset_info(dataset, revision=revision, timeout=20).sha
    except (httpx.HTTPError, OSError):
        return None
    return commit


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
