"""The words of TRL, axolotl, LLaMA-Factory and others, and what they are here, from other_tools.json.

Messages about unknown keys and docs/from-other-tools.md are made from that file. The words are those of TRL 0.9 to 1.9, axolotl
0.4 to 0.18, LLaMA-Factory 0.8 to 0.9.5, OpenRLHF 0.4 to 0.11, verl 0.3 to 0.7, torchtune 0.4 to 0.6: each is in the source of one
of these, and the keys that the examples of each have most often are all here. Of a dotted name, data.max_len, the last part is
looked up. The parts of the file, each a list of groups:

- `keys`: `here` has keys, of which the first that the section has is proposed; empty: there is none. One entry per tool has its
  words, with * for any beginning or ending; `people` has words of no tool that people write. For the rest see `Word`.
- `stages`: the same for types of stages.
- `values`: fields, and their words by the words of others.
- `commands`, `options`: words of the command line, with what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

EVERYBODY = "people"
"""In place of a tool: words that people write and no tool has."""
_OTHER_KEYS = ("here", "note", "note_for", "write", "values", "missing", "commands", "times")


@dataclass(frozen=True)
class Word:
    """A group of words that mean the same, and the name for it here."""

    here: tuple[str, ...]
    """Names here, the likeliest first; a nested one has a dot. Empty: there is none."""
    words: Mapping[str, tuple[str, ...]]
    """Words by tool."""
    note: str = ""
    """What else to know, or why there is none."""
    note_for: tuple[str, ...] = ()
    """Names here, or words, that the note is about; empty: all."""
    write: str = ""
    """What to write; $ stands for the value given."""
    values: Mapping[str, str] | None = None
    """The value to write, by `word=value`."""
    missing: bool = False
    """Whether `here` is only the nearest to something that does not exist here, or an answer in one section only."""
    times: str = ""
    """The value is multiplied by that of this key, or of a word for it."""
    commands: tuple[str, ...] = ()
    """For options: the commands that the note is for; empty: all."""

    def value_for(self, word: str, value: object) -> str | None:
        """The value to write here for the value that was given with a word."""
        return (self.values or {}).get(f"{word.rpartition('.')[2]}={str(value).lower()}")

    def note_on(self, word: str, target: str | None) -> str:
        """The note, if it is about this word or this name."""
        return self.note if not self.note_for or word in self.note_for or target in self.note_for else ""


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """A name without its style: `learningRate` and `learning-rate` are `learning_rate`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip()).lower().replace("-", "_").replace(" ", "_")


@cache
def _content() -> Mapping[str, Any]:
    # Not TOML: Python takes thirty times as long to read that, which every mistake would wait for.
    return json.loads(files("align.config").joinpath("other_tools.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@cache
def table() -> Mapping[str, tuple[Word, ...]]:
    """Groups of words by part of the file: keys, stages, commands, options."""
    return {part: tuple(map(_word, _content()[part])) for part in ("keys", "stages", "commands", "options")}


def _word(entry: Mapping[str, Any]) -> Word:
    here = entry.get("here", ())
    return Word(
        (here,) if isinstance(here, str) and here else tuple(here),
        {tool: tuple(words.split()) for tool, words in entry.items() if tool not in _OTHER_KEYS},
        entry.get("note", ""),
        tuple(entry.get("note_for", ())),
        entry.get("write", ""),
        entry.get("values"),
        entry.get("missing", False),
        entry.get("times", ""),
        tuple(entry.get("commands", "").split()),
    )


def words_for(part: str, name: str) -> list[Word]:
    """Every group that has a word, in the order of the file; groups that have only a part of it come last."""
    # verl and others write actor.optim.lr.
    asked = plain(name.rpartition(".")[2]) if part in ("keys", "stages") else name
    exact, begun = [], []
    for word in table()[part]:
        every = [known for words in word.words.values() for known in words]
        if asked in every:
            exact.append(word)
        elif any("*" in known and fnmatchcase(asked, known) for known in every):
            begun.append(word)
    return exact + begun


def all_words(part: str) -> set[str]:
    """Every word of a part of the file."""
    return {name for word in table()[part] for words in word.words.values() for name in words}


def value_here(field: str, value: object) -> str | None:
    """The value of a field here, for the word that another tool has for it."""
    asked = str(value).strip().lower()
    entries = _content()["values"]
    return next((entry["words"][asked] for entry in entries if field in entry["fields"] and asked in entry["words"]), None)
