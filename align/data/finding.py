"""What is worth knowing about rows that can be used: repetitions, contradictions, stray characters. Nothing is changed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

from align.records import Instruction, Preference, Prompt, Record, TextRow

SHOWN_LINES = 5
MAX_LABEL_VALUES = 20
"""A column with more different values is no label; that equal prompts differ in it says nothing."""

# The C0 controls other than tab, line feed and carriage return, and DEL.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_SENTENCES = {
    "repeated_prompts": "rows that repeat the prompt of an earlier row",
    "repeated_rows": "rows that repeat an earlier row entirely",
    "conflicting_completions": "prompts with several different completions",
    "conflicting_pairs": "pairs that occur both ways round",
    "trailing_white_space": "rows with a text that ends in white space",
    "not_nfc": "rows with a text that is not in Unicode's NFC form",
    "control_characters": "rows with a text with control characters",
    "chosen_longer": "pairs whose longer completion was chosen",
}


class Findings:
    """Counts findings over the rows that are kept, in file order."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lines: dict[str, list[int]] = {}
        self._rows = 0
        self._prompts: set[Hashable] = set()
        self._seen: set[Hashable] = set()
        self._completions: dict[Hashable, str | None] = {}
        self._pairs: set[Hashable] = set()
        self._labels: dict[str, _LabelColumn] = {}

    def add(self, record: Record, unused: Mapping[str, Any]) -> None:
        """Look at one record, and at the values of its row that no field took."""
        self._rows += 1
        line = record.line or 0
        texts, prompt = _texts(record)
        self._characters(texts, line)
        key = tuple(texts) if prompt is None else (prompt, tuple(texts[len(prompt) :]))
        self._note_if(key in self._seen, "repeated_rows", line)
        self._seen.add(key)
        if prompt is not None:
            self._note_if(prompt in self._prompts, "repeated_prompts", line)
            self._prompts.add(prompt)
        if isinstance(record, Instruction):
            self._completion(prompt, record.completion, line)
        if isinstance(record, Preference):
            self._note_if((prompt, record.rejected, record.chosen) in self._pairs, "conflicting_pairs", line)
            self._pairs.add((prompt, record.chosen, record.rejected))
            self._counts["chosen_longer"] += len(record.chosen) > len(record.rejected)
        for column, value in unused.items():
            self._labels.setdefault(column, _LabelColumn()).add(prompt, value)
            self._note_if(isinstance(value, str) and value != value.rstrip(), f"trailing_white_space:{column}", line)

    def counts(self) -> dict[str, int]:
        """How often each finding occurs, without those that do not occur."""
        conflicting = {f"conflicting:{column}": label.conflicts() for column, label in self._labels.items()}
        return {name: count for name, count in {**self._counts, **conflicting}.items() if count}

    def notes(self) -> list[str]:
        """One sentence per finding, with the first lines where it is."""
        return [self._sentence(name, count) for name, count in self.counts().items()]

    def _sentence(self, name: str, count: int) -> str:
        kind, _, column = name.partition(":")
        if kind == "conflicting":
            return f"prompts with different values in the unused column {column!r}: {count:,}"
        what = f"values of the unused column {column!r} that end in white space" if column else _SENTENCES[name]
        if name == "chosen_longer":
            return f"{what}: {count:,} of {self._rows:,} ({100 * count / self._rows:.0f} %)"
        lines = self._lines[name]
        more = ", …" if count > len(lines) else ""
        return f"{what}: {count:,} (line {', '.join(map(str, lines))}{more})"

    def _note_if(self, true: bool, name: str, line: int) -> None:
        if true:
            self._counts[name] += 1
            lines = self._lines.setdefault(name, [])
            if len(lines) < SHOWN_LINES:
                lines.append(line)

    def _characters(self, texts: list[str], line: int) -> None:
        self._note_if(any(text[-1:].isspace() for text in texts), "trailing_white_space", line)
        self._note_if(not all(text.isascii() or unicodedata.is_normalized("NFC", text) for text in texts), "not_nfc", line)
        self._note_if(any(_CONTROL.search(text) for text in texts), "control_characters", line)

    def _completion(self, prompt: Hashable, completion: str, line: int) -> None:
        """Count a prompt once, when its second different completion comes."""
        known = self._completions.setdefault(prompt, completion)
        if known is not None and known != completion:
            self._note_if(True, "conflicting_completions", line)
            self._completions[prompt] = None


class _LabelColumn:
    """An unused column as a label: how many equal prompts differ in it."""

    def __init__(self) -> None:
        self._values: set[Hashable] = set()
        self._of_prompt: dict[Hashable, Hashable] = {}
        self._conflicting: set[Hashable] = set()
        self._is_label = True

    def add(self, prompt: Hashable, value: Any) -> None:
        if not self._is_label or prompt is None:
            return
        self._values.add(value if isinstance(value, Hashable) else repr(value))
        if len(self._values) > MAX_LABEL_VALUES or not isinstance(value, (str, int, float, type(None))):
            self._is_label = False
            self._of_prompt.clear()
        elif self._of_prompt.setdefault(prompt, value) != value:
            self._conflicting.add(prompt)

    def conflicts(self) -> int:
        return len(self._conflicting) if self._is_label else 0


def _texts(record: Record) -> tuple[list[str], tuple[str, ...] | None]:
    """Every text of a record, prompt first, and the prompt as something that can be compared."""
    if isinstance(record, TextRow):
        return [record.text], None
    assert isinstance(record, (Instruction, Preference, Prompt))  # the four kinds of user data
    contents = [message.content for message in record.prompt]
    prompt = tuple(f"{message.role}:{message.content}" for message in record.prompt)
    if isinstance(record, Instruction):
        return [*contents, record.completion], prompt
    if isinstance(record, Preference):
        return [*contents, record.chosen, record.rejected], prompt
    return contents, prompt
