"""Rows in tokens in the store, under a hash of all that decides them: sweeps, stages, attempts and ranks encode them once.

<store>/tokens-<key>/
    rows.arrow, refused.arrow    see `align.data.token_file`
    manifest.json                written last
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from align.config.chat import PINNED_DATE
from align.data.forms import Form
from align.data.stored_tokens import StoredTokens
from align.data.template import ChatFormat
from align.data.template_problems import seconds_for, too_slow
from align.data.token_file import (
    REFUSED,
    REFUSED_NAME,
    BatchWriter,
    EncodedPart,
    Part,
    PartEncoder,
    parts_of,
    schema_of,
)
from align.data.token_file import ROWS_NAME as TOKENS_NAME
from align.errors import AlignError
from align.models.chat_format import load_format
from align.models.files import ADDITIONAL_TEMPLATES_NAME
from align.models.folder import ModelFolder
from align.runtime.executor import executor_for
from align.runtime.group import from_first
from align.runtime.life import still_working
from align.runtime.profile import phase
from align.runtime.threads import usable_cores
from align.stage import StageContext
from align.store.artifact import ROWS_NAME, Artifact, Entry
from align.store.atomic import atomic_writer
from align.store.fingerprint import FileHashes

TOKENS_VERSION = 1
"""Raised whenever the same rows and model would give other tokens than before."""
ENTRY_TYPE = "tokens"
ROWS_OF_A_WORKER = 20_000
"""Fewest rows for which a further process is started: starting one takes as long as encoding about so many."""
# Files of a model's folder that a tokenizer is made from.
_TOKENIZER_SUFFIXES = (".model", ".tiktoken", ".jinja", ".spm", ".bpe")
_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json")
_LIBRARIES = ("transformers", "tokenizers", "jinja2")
_DATES = "printed_dates"


@dataclass(frozen=True)
class _Source:
    """What is encoded, and for which model."""

    rows: Artifact
    folder: ModelFolder
    chat_format: ChatFormat
    form: Form

    @property
    def path(self) -> Path:
        return self.rows.path / ROWS_NAME


@phase("tokenize")
def stored_tokens(
    context: StageContext[Any], rows: Artifact, folder: ModelFolder, chat_format: ChatFormat, form: Form
) -> StoredTokens:
    """The tokens of all rows of an artifact: from the store if it has them undamaged, else encoded and stored.

    Of several processes that train together, the first one encodes.

    Args:
        chat_format: of the model in `folder`.
        form: for the records of the artifact.
    Raises:
        FormatError: if the chat template takes too long.
        Interrupted: if a stop was requested; a later run does not use a half-written entry.
    """
    source = _Source(rows, folder, chat_format, form)
    entry: Entry | None = None
    problem: AlignError | None = None
    if context.is_first:
        try:
            entry = _made(context, source)
        except AlignError as error:
            # The others wait for the first one, and must end with it.
            problem = error
    entry, problem = from_first((entry, problem))
    if problem is not None or entry is None:
        raise problem or AssertionError("there is no entry")
    manifest = entry.read_manifest()
    assert manifest is not None
    assert manifest.rows_in is not None
    # What is saved with a model names the dates that its template has printed, also where another stage rendered the rows.
    for asked, day in manifest.metrics[_DATES]:
        chat_format.printed_dates.setdefault(asked, day)
    return StoredTokens(entry.path, form, manifest.rows_in)


def _made(context: StageContext[Any], source: _Source) -> Entry:
    rows = source.rows
    tokens = context.kept(
        ENTRY_TYPE,
        TOKENS_VERSION,
        decides(rows, source.folder, source.chat_format, source.form, context.known_hashes),
        f"tokens of {rows.name}",
        sources={"rows": rows.fingerprint},
        settings={"form": source.form.name},
    )
    # Another run may encode the same rows now; waiting for it is faster than doing it twice.
    with tokens.held(context):
        if tokens.find(context) is None:
            tokens.make(partial(_encode, context, source))
    return tokens.entry


def decides(rows: Artifact, folder: ModelFolder, chat_format: ChatFormat, form: Form, hashes: FileHashes) -> dict[str, Any]:
    """Everything that decides the tokens: rows, template, tokenizer and what is made of them. Limits on length do not.

    Args:
        hashes: of files that are not in a manifest.
    """
    known = rows.manifest.files.get(ROWS_NAME)
    settings = chat_format.settings
    # The template as it is used stands beside them, and padding is not rendered.
    said = settings.model_dump(mode="json", exclude={"template", "pad_token"})
    return {
        "rows": hashes.of(rows.path / ROWS_NAME) if known is None else known.sha256,
        "form": form.name,
        "template": chat_format.tokenizer.chat_template,
        "settings": {**said, "date": settings.date or PINNED_DATE},
        "stop_token_ids": list(chat_format.stop_token_ids),
        "tokenizer": {path.name: hashes.of(path) for path in _tokenizer_files(folder.path)},
        "model_type": folder.config.get("model_type"),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _tokenizer_files(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_file())
    chosen = [
        path
        for path in found
        if path.name.startswith("tokenizer") or path.name in _TOKENIZER_FILES or path.suffix in _TOKENIZER_SUFFIXES
    ]
    return sorted([*chosen, *(folder / ADDITIONAL_TEMPLATES_NAME).glob("*.jinja")])


def _encode(context: StageContext[Any], source: _Source, entry: Entry) -> dict[str, Any]:
    """Encode all rows into the entry; fields of its manifest."""
    form, chat_format = source.form, source.chat_format
    records = source.rows.row_file(form.record)
    conversations = len(records) * form.each
    workers = min(usable_cores(), len(records) // ROWS_OF_A_WORKER)
    load = partial(_load_alone, source.folder, chat_format.where) if workers > 1 else lambda: chat_format
    work = PartEncoder(source.path, form.name, conversations, load)
    dates, seconds = dict(chat_format.printed_dates), 0.0
    with ExitStack() as files:
        rows = _writer(files, entry.path / TOKENS_NAME, schema_of(form))
        refused = _writer(files, entry.path / REFUSED_NAME, REFUSED)

        def take(part: Part, encoded: EncodedPart) -> None:
            nonlocal seconds
            seconds += encoded.seconds
            if seconds > seconds_for(conversations):  # each part has this limit, and all of them together
                raise too_slow(chat_format.where, conversations)
            rows.add(encoded.rows)
            refused.add(encoded.refused)
            for asked, day in encoded.dates.items():
                dates.setdefault(asked, day)
            done = part.first + part.count
            still_working()
            if done < len(records) or part.first:  # of a single part nobody needs to know
                context.progress("tokenize", done, len(records), "rows")

        executor_for(workers, items_ahead=1).map(
            work, parts_of(records), on_done=take, check_stop=context.check_stop, in_order=True
        )
    return {"rows_in": conversations, "rows_out": rows.rows, "metrics": {_DATES: list(dates.items())}}


def _writer(files: ExitStack, path: Path, schema: Any) -> BatchWriter:
    """A writer of a file that is there only if all went well."""
    writer = BatchWriter(files.enter_context(atomic_writer(path)), schema)
    files.push(_closing(writer))
    return writer


def _closing(writer: BatchWriter) -> Callable[..., None]:
    def close(kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            writer.close()

    return close


def _load_alone(folder: ModelFolder, where: str) -> ChatFormat:
    """The chat format in a process of its own, beside others that need the other cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return load_format(folder, where)
