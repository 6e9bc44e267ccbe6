"""Tokens are encoded once, are those of encoding in memory, do not depend on who encodes, and are never trusted damaged."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from align.config.chat import ChatSettings
from align.config.sections import OnInvalid
from align.data import token_file
from align.data.encoding import Encoded, encode_instructions, encode_labelled, encode_preferences
from align.data.forms import COMPLETION, EVERY_TURN, LABEL, PAIR, SIDES, Form, sides_of
from align.data.stored_tokens import StoredTokens
from align.data.template import ChatFormat
from align.data.token_file import BatchWriter
from align.errors import AlignError, Interrupted
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.records import Instruction, Labelled, Message, Preference
from align.rows import kind_of
from align.stage import StageConfig
from align.store.artifact import ROWS_NAME, write_rows
from align.store.fingerprint import FileHashes, fingerprint
from align.testing import Recorder, input_artifact, stage_context, tiny_causal_lm
from align.testing.damage import flip, overwrite
from align.training import token_store
from align.training.token_store import decides, stored_tokens

END = "<|im_end|>"


def turns(count: int) -> list[Message]:
    said = [("user", f"question {number}") if number % 2 == 0 else ("assistant", "word " * number) for number in range(count)]
    return [Message(role=role, content=text) for role, text in said]  # type: ignore[arg-type]


def text_of(number: int) -> str:
    """Of many lengths; some cannot be rendered."""
    return "word " * (number % 11 + 1) + ("." if number % 9 else END)


RECORDS: Mapping[str, list[Any]] = {
    "instructions": [
        Instruction(id=f"i{n}", line=n + 1, prompt=turns(2 * (n % 3) + 1), completion=text_of(n)) for n in range(40)
    ],
    "preferences": [
        Preference(id=f"p{n}", line=n + 1, prompt=turns(1), chosen=text_of(n), rejected=text_of(n + 3), chosen_score=n)
        for n in range(40)
    ],
    "labelled": [
        Labelled(id=f"l{n}", line=n + 1, prompt=turns(1), completion=text_of(n), desirable=n % 2 == 0) for n in range(40)
    ],
}
IN_MEMORY: Mapping[str, Callable[..., Encoded[Any]]] = {
    COMPLETION.name: encode_instructions,
    EVERY_TURN.name: lambda *rows, **limits: encode_instructions(*rows, **limits, every_turn=True),
    PAIR.name: encode_preferences,
    LABEL.name: encode_labelled,
    SIDES.name: encode_labelled,
}


class Place(Recorder):
    """A store, a model, rows of every kind, and notes."""

    def __init__(self, root: Path, model: Path) -> None:
        super().__init__()
        self.folder = ModelFolder(model)
        self.context = stage_context(StageConfig(), root / "store" / "test-1", {}, emit=self.handle)
        self.rows = {}
        for kind, records in RECORDS.items():
            write_rows(root / kind / ROWS_NAME, records)
            self.rows[kind] = input_artifact(kind, root / kind, kind)
        self.chat_format = load_format(self.folder)

    def get(self, form: Form = COMPLETION) -> StoredTokens:
        return stored_tokens(self.context, self.rows[kind_of(form.record).name], self.folder, self.chat_format, form)

    @property
    def entries(self) -> list[Path]:
        return [path for path in self.context.store_root.glob("tokens-*") if path.is_dir()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(token_file, "PART_RECORDS", 7)
    return Place(tmp_path, model)


def outcome(read: Callable[[], tuple[Any, Any]]) -> Any:
    """Rows and drops, or the error."""
    try:
        rows, drops = read()
    except AlignError as error:
        return type(error), str(error), error.hint
    return list(rows), list(drops)


def in_memory(form: Form, chat_format: ChatFormat, **limits: Any) -> tuple[Any, Any]:
    records = RECORDS[kind_of(form.record).name]
    if form is SIDES:
        records = [side for pair in records for side in sides_of(pair)]
    found = IN_MEMORY[form.name](records, chat_format, **limits)
    return found.rows, found.drops


@pytest.mark.parametrize("form", [COMPLETION, EVERY_TURN, PAIR, LABEL, SIDES], ids=lambda form: form.name)
def test_rows_drops_and_errors_are_those_of_encoding_in_memory(place: Place, form: Form) -> None:
    tokens, artifact = place.get(form), place.rows[kind_of(form.record).name]
    seen = set()
    for max_tokens in (30, 75, 120, 9_999):
        for on_invalid in ("drop", "error"):
            limits: dict[str, Any] = {"max_tokens": max_tokens, "on_invalid": on_invalid, "where": artifact.where}
            expected = outcome(partial(in_memory, form, place.chat_format, **limits))
            assert outcome(partial(tokens.read, **limits)) == expected
            seen.add(len(expected[0]) if isinstance(expected[0], list) else "error")
    assert len(seen) >= 3  # limits at which rows are dropped, and others


def test_lengths_and_records_are_those_of_the_rows(place: Place) -> None:
    tokens = place.get(EVERY_TURN)
    rows, _ = tokens.read(max_tokens=100, on_invalid="drop", where=str)
    for number, row in enumerate(rows):
        parts = [*row.earlier, (row.prompt_token_ids, row.completion_token_ids)]
        assert tokens.total[rows.places[number]] == sum(len(prompt) + len(completion) for prompt, completion in parts)
        assert RECORDS["instructions"][tokens.records[rows.places[number]]].id == row.id
    assert [row.id for row in rows[3:5]] == [rows[3].id, rows[4].id]


def test_the_second_time_they_come_from_the_store(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.get()
    monkeypatch.setattr(token_store, "PartEncoder", None)
    assert place.get().num_records == 40
    assert len(place.entries) == 1


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    place: Place, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(place: Place) -> dict[str, bytes]:
        place.get(EVERY_TURN)
        (entry,) = place.entries
        return {path.name: path.read_bytes() for path in entry.glob("*.arrow")}

    alone = files(place)
    monkeypatch.setattr(token_store, "usable_cores", lambda: 2)
    monkeypatch.setattr(token_store, "ROWS_OF_A_WORKER", 10)
    assert files(Place(tmp_path / "two", model)) == alone
    assert alone.keys() == {"rows.arrow", "refused.arrow"}


def test_the_key_has_what_decides_the_tokens(place: Place) -> None:
    rows, hashes = place.rows["instructions"], FileHashes(None)

    def key(form: Form = COMPLETION, **settings: Any) -> str:
        folder = ModelFolder(place.folder.path, ChatSettings(**settings))
        return fingerprint(decides(rows, folder, load_format(folder), form, hashes))

    keys = [key(), key(EVERY_TURN), key(system="drop"), key(template=place.chat_format.tokenizer.chat_template + "\n")]
    assert len(set(keys)) == len(keys)
    assert key(pad_token="<|pad|>") == keys[0]
    write_rows(rows.path / ROWS_NAME, RECORDS["instructions"][1:])
    assert key() not in keys


def flip_a_byte(entry: Path) -> None:
    flip(entry / "rows.arrow")


def cut_a_file(entry: Path) -> None:
    overwrite(entry / "refused.arrow", (entry / "refused.arrow").read_bytes()[:-9])


def cut_the_manifest(entry: Path) -> None:
    overwrite(entry / "manifest.json", b'{"kind": "tokens')


@pytest.mark.parametrize("damage", [flip_a_byte, cut_a_file, cut_the_manifest])
def test_damage_is_set_aside_named_and_made_again(place: Place, damage: Callable[[Path], None]) -> None:
    whole = outcome(lambda: place.get().read(max_tokens=99, on_invalid="drop", where=str))
    (entry,) = place.entries
    damage(entry)
    assert outcome(lambda: place.get().read(max_tokens=99, on_invalid="drop", where=str)) == whole
    assert "tokens of instructions: damaged in the store" in place.notes[-1]
    assert len(list(entry.parent.glob("quarantine-tokens-*"))) == 1


def test_a_stop_between_parts_leaves_nothing_that_is_used(place: Place) -> None:
    asked = iter([None, None, signal.SIGTERM])
    stopping = dataclasses.replace(place.context, stop_requested=lambda: next(asked, signal.SIGTERM))
    with pytest.raises(Interrupted):
        stored_tokens(stopping, place.rows["instructions"], place.folder, place.chat_format, COMPLETION)
    assert not list(place.entries[0].glob("*.json"))
    assert place.get().num_records == 40


def test_a_kill_while_encoding_leaves_nothing_that_is_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed when the third part is done."""
    write, written = BatchWriter.add, []

    def add(writer: BatchWriter, content: bytes) -> None:
        write(writer, content)
        written.append(content)
        if len(written) == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(BatchWriter, "add", add)
        process = multiprocessing.get_context("fork").Process(target=place.get)
        process.start()
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [list(entry.glob("manifest.json")) for entry in place.entries] == [[]]
    rows, drops = place.get().read(max_tokens=9_999, on_invalid="drop", where=str)
    assert len(rows) + len(drops) == 40
    assert sorted(path.name for path in place.entries[0].iterdir()) == ["manifest.json", "refused.arrow", "rows.arrow"]


@pytest.mark.parametrize("on_invalid", ["drop", "error"])
def test_no_row_is_an_error(place: Place, on_invalid: OnInvalid) -> None:
    write_rows(place.rows["labelled"].path / ROWS_NAME, [])
    with pytest.raises(AlignError, match="there is no row in it"):
        place.get(LABEL).read(max_tokens=99, on_invalid=on_invalid, where=place.rows["labelled"].where)


def test_dates_that_a_template_prints_are_known_again(tmp_path: Path, model: Path) -> None:
    """What is saved with a model names them."""
    dated = "{% if messages|length > 4 %}{{ strftime_now('%d %b') }}{% endif %}"
    place = Place(tmp_path, model)
    settings = ChatSettings(template=dated + place.chat_format.tokenizer.chat_template, date="2026-01-02")
    place.folder = ModelFolder(model, settings)
    found = []
    for _ in range(2):
        place.chat_format = load_format(place.folder)
        place.chat_format.printed_dates.clear()  # the probe of the format has asked already
        place.get()
        found.append(dict(place.chat_format.printed_dates))
    assert found == [{"%d %b": "02 Jan"}] * 2
