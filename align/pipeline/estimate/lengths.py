"""Lengths of a training's rows, in tokens, estimated from the first rows of its data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config.inputs import DataInput
from align.data.source import HubRows, read_file
from align.models.files import TOKENIZER_NAME
from align.pipeline.inputs import ResolvedInput
from align.rows import DataKind, data_kinds
from align.store.artifact import ROWS_NAME, Artifact, Store
from align.store.content_cache import ContentCache
from align.training.needs import SAMPLED_ROWS, RowLength

LENGTHS_NAME = "lengths.json"
LENGTHS_VERSION = 1
"""Raised whenever the same rows may get other lengths than before."""
MESSAGE_TOKENS = 5
"""Tokens that a chat template adds to a message: ChatML's marks, role and line ends."""


class MeasuredRows:
    """Lengths of a plan's rows, which plans of the same store measure once.

    Args:
        store: remembers them, and the hashes of tokenizers.
    """

    def __init__(self, store: Store) -> None:
        self._hashes = store.hashes
        self._cache = ContentCache(store.root / LENGTHS_NAME, LENGTHS_VERSION, lambda value: _lengths(value) is not None)

    def lengths(self, data: ResolvedInput | Artifact, model_folder: Path) -> list[RowLength] | None:
        """As `row_lengths`."""
        content = data.manifest.fingerprint if isinstance(data, Artifact) else data.fingerprint
        try:
            tokenizer = self._hashes.of(model_folder / TOKENIZER_NAME)
        except OSError:
            return None

        def measure() -> list[Any]:
            return [[row.prompt, list(row.completions)] for row in row_lengths(data, model_folder) or []]

        return _lengths(self._cache.value([content, tokenizer], measure)) or None

    def save(self) -> None:
        """Write what is new."""
        self._cache.save()


def _lengths(value: Any) -> list[RowLength] | None:
    """None for a value that is none of lengths."""
    try:
        return [RowLength(int(prompt), tuple(map(int, completions))) for prompt, completions in value]
    except (TypeError, ValueError):
        return None


def row_lengths(data: ResolvedInput | Artifact, model_folder: Path) -> list[RowLength] | None:
    """Approximate lengths of the first rows; None where they cannot be read or tokenized.

    Args:
        data: an input, or what a stage made.
        model_folder: has the tokenizer.
    """
    try:
        kind, records = _rows(data)
        return measured_lengths(kind, records, model_folder / TOKENIZER_NAME) if records else None
    except Exception:  # the stage reports what is wrong when it runs, and tokenizers raises bare Exceptions
        return None


def _rows(data: ResolvedInput | Artifact) -> tuple[DataKind[Any], list[Any]]:
    artifact = data if isinstance(data, Artifact) else data.artifact
    if artifact is not None:
        kind = data_kinds()[artifact.kind]
        with (artifact.path / ROWS_NAME).open("rb") as stream:
            return kind, [kind.record.model_validate_json(line) for line in itertools.islice(stream, SAMPLED_ROWS)]
    assert isinstance(data, ResolvedInput)
    spec, source = data.spec, data.source
    assert isinstance(spec, DataInput)  # only data inputs can be without an artifact
    assert source is not None  # every data input has one
    file = source.files[0]
    if isinstance(file.origin, HubRows):  # making a plan must not use the network
        return spec.row_kind, []
    from align.data.validation import valid_rows  # with NumPy: a plan that measured these rows before needs neither
    from align.data.validation.block import Block

    first = Block(0, list(itertools.islice(read_file(file), SAMPLED_ROWS)))
    return spec.row_kind, list(valid_rows(source, spec, blocks=[first]))


def measured_lengths(kind: DataKind[Any], records: Sequence[Any], tokenizer_file: Path) -> list[RowLength]:
    """Approximate lengths of records; raises what tokenizers raises where the file is no tokenizer."""
    # Not transformers' tokenizer, nor the real chat template: a plan must be fast, and an estimate needs no exact count.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))

    def count(texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    messages = [kind.messages(record) for record in records]
    prompts = count(
        ["\n".join(f"{message.role}{message.text}{message.tools or ''}" for message in prompt) for prompt in messages]
    )
    completions = [kind.completions_of(record).values() for record in records]
    # All texts in one call, which runs in parallel; the lengths are dealt out again below.
    lengths = iter(count([text for texts in completions for text in texts]))
    return [
        RowLength(
            prompt + MESSAGE_TOKENS * (len(of_prompt) + 1),  # the completion's message is begun in the prompt
            tuple(next(lengths) + 1 for _ in texts),  # and its end-of-sequence token
        )
        for of_prompt, prompt, texts in zip(messages, prompts, completions, strict=True)
    ]
