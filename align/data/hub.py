"""Rows of a dataset on the Hugging Face hub: the one place that imports `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from align.data.kept_rows import keep_rows
from align.data.reader import RawRow
from align.errors import AlignError, DataError, EnvironmentProblem, RecipeError

KEPT_FOLDER = "align"
"""Where the first rows of datasets are kept, in the cache of `datasets`."""
MOST_RETRIES = 3
"""Reads without a connection, one after the other; `datasets` itself would go on for ten minutes without a word."""
_LOCAL_HINT = "Use a local file instead (path: data/rows.jsonl), or where the hub can be reached, run without HF_HUB_OFFLINE."
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST_ROWS = re.compile(r"([^\[\]+]+)\[:(\d+)\]")


def fetch_dataset_rows(
    dataset: str, split: str, revision: str | None = None, subset: str | None = None, max_rows: int | None = None
) -> tuple[str | None, Iterator[RawRow]]:
    """The rows of one split, numbered from 1, and their commit. Code that comes with a dataset is never run.

    All rows are downloaded into the cache of `datasets`. First rows (`max_rows`, or a split such as `train[:1000]`) are read
    without the rest of their files, and kept: see `keep_rows`. Where the hub cannot be reached, what these caches have is used,
    and the commit may be None.

    Raises:
        EnvironmentProblem: if the dataset can neither be fetched nor found in a cache, access to it was not granted, or
            `datasets` is not installed.
        RecipeError: if there is no such dataset, revision, subset or split; if there are several subsets, and none is named; if
            its rows come from a script.
        DataError: if `datasets` cannot read a row.
    """
    try:
        # Imported here, because local files do not need it.
        import datasets
    except ImportError as error:
        raise EnvironmentProblem(
            f"{dataset}: the library datasets cannot be imported ({error})", hint="pip install datasets, or use a local file."
        ) from error
    if first := _FIRST_ROWS.fullmatch(split):
        split, max_rows = first[1], int(first[2])
    with _in_our_words(dataset, split, revision, subset):
        # Resolved first: the rows and the recorded commit then agree, even if the branch moves in between.
        commit = _commit_of(dataset, revision)
        load = partial(datasets.load_dataset, dataset, subset, revision=commit or revision)
        if max_rows is None:
            return commit, _numbered(load(split=split))
        datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = MOST_RETRIES

        def read() -> Iterator[dict[str, Any]]:
            if datasets.config.HF_HUB_OFFLINE:  # nothing can be downloaded, but all rows may be in the cache
                return iter(load(split=f"{split}[:{max_rows}]"))
            # Not decoded: an image would need more libraries, and nothing here reads it.
            return _guarded(dataset, load(split=split, streaming=True).decode(False).take(max_rows))

        key = {"dataset": dataset, "subset": subset, "split": split, "revision": revision}
        return keep_rows(Path(datasets.config.HF_DATASETS_CACHE) / KEPT_FOLDER, key, commit, max_rows, read)


def _numbered(rows: Any) -> Iterator[RawRow]:
    for number, row in enumerate(rows, start=1):
        yield number, dict(row)


def _guarded(dataset: str, rows: Any) -> Iterator[dict[str, Any]]:
    """Rows as they come over the network, which may be lost at any of them."""
    import httpx

    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except (OSError, httpx.HTTPError) as error:
        text = f"dataset {dataset}: reading from the hub stopped after {count:,} rows: {first_line(error)}"
        raise EnvironmentProblem(text, hint="Run it again; these rows were not kept.") from error
    except Exception as error:  # whatever the parser of the dataset's format raises
        text = f"dataset {dataset}: row {count + 1:,} cannot be read: {type(error).__name__}: {first_line(error)}"
        raise DataError(text, hint="Name another revision, or a lower max_rows.") from error


@contextmanager
def _in_our_words(dataset: str, split: str, revision: str | None, subset: str | None) -> Iterator[None]:
    """What `datasets` and the hub's library raise, in the words of a recipe."""
    import httpx
    from datasets.exceptions import DatasetsError

    name = f"dataset {dataset}"
    try:
        yield
    except AlignError:
        raise
    # datasets has few types of its own: its sentences tell the cases apart, which the tests hold it to.
    except (ValueError, RuntimeError, NotImplementedError, DatasetsError, OSError, httpx.HTTPError) as error:
        told, there = str(error), "".join(re.findall(r"\[[^\[]*\]", str(error))[-1:])
        if "gated" in told:
            hint = "Accept its terms on its page, and log in with: hf auth login"
            raise EnvironmentProblem(f"{name}: access must be granted first", hint=hint) from error
        if "Revision" in told:
            raise RecipeError(f"{name}: has no revision {revision!r}", hint="Give a branch, tag or commit.") from error
        if "doesn't exist on the Hub" in told:
            hint = "Correct dataset:, or log in with: hf auth login"
            raise RecipeError(f"{name}: the hub has no such dataset, or it is private", hint=hint) from error
        if "scripts are no longer supported" in told:
            hint = "Use a copy of it in Parquet; the hub makes one of many datasets: revision: refs/convert/parquet"
            raise RecipeError(
                f"{name}: its rows come from a script ({told.split()[-1]}), which is never run", hint=hint
            ) from error
        if isinstance(error, ValueError) and "config" in told.lower():
            which = "has several subsets, and none is named" if subset is None else f"no subset {subset!r}"
            raise RecipeError(f"{name}: {which}; there are {there}", hint=_choose("subset", subset, there)) from error
        if isinstance(error, ValueError) and "split" in told:
            raise RecipeError(f"{name}: no split {split!r}; there are {there}", hint=_choose("split", split, there)) from error
        what = "cannot be fetched" if isinstance(error, (OSError, httpx.HTTPError)) else "cannot be loaded"
        raise EnvironmentProblem(f"{name}: {what}: {first_line(error)}", hint=_LOCAL_HINT) from error


def _choose(key: str, given: str | None, there: str) -> str:
    close = get_close_matches(given or "", re.findall(r"'([^']*)'", there), n=1)
    return f"Did you mean {key}: {close[0]}?" if close else f"Write {key}: with one of them."


def _commit_of(dataset: str, revision: str | None) -> str | None:
    """The commit that `revision` names now; None if the hub cannot be reached."""
    import httpx
    from huggingface_hub import HfApi, constants

    if revision and _COMMIT.fullmatch(revision):
        return revision
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        commit: str | None = HfApi().dataset_info(dataset, revision=revision, timeout=20).sha
    except (httpx.HTTPError, OSError):  # `load_dataset` says it better
        return None
    return commit


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
