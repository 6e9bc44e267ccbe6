"""Caches the replies of judges in the store by the content of the question, so that no question is paid for twice.

One file per endpoint and model, JSON Lines, only ever appended to, each line on disk before the next request goes out. Each line
has a hash of its content: one that a killed process or a full disk left torn, or that was changed since, is skipped, and its
question is sent again.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.runtime.plain_file import open_plain
from align.store.atomic import make_way
from align.store.fingerprint import fingerprint
from align.store.seal import SEAL
from align.system_errors import explained, write_line, writing_to

FOLDER_NAME = "judge-answers"


@dataclass(frozen=True)
class JudgeAnswer:
    """One reply."""

    text: str
    finish_reason: str
    """Why the reply ended, in the endpoint's word: stop, length, …"""
    prompt_tokens: int
    """Tokens of the question, as the endpoint reports them; 0 where it does not."""
    completion_tokens: int
    """Tokens of the reply, likewise."""


class AnswerFile:
    """The replies known so far, by key. Threads may share it, and so may processes: a line is written in one piece."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, JudgeAnswer] = {}
        make_way(path)
        content = b""
        with writing_to(path, hint="Move it away."), suppress(FileNotFoundError), open_plain(path) as stream:
            content = stream.read()
        for line in content.splitlines():
            if entry := _read_line(line):
                self._known[entry[0]] = entry[1]
        # A torn last line must not swallow the next one.
        self._before_next = b"\n" if content and not content.endswith(b"\n") else b""

    def get(self, key: str) -> JudgeAnswer | None:
        return self._known.get(key)

    def add(self, key: str, answer: JudgeAnswer) -> None:
        """Keep a reply; it is on disk when this returns.

        Raises:
            EnvironmentProblem: if the operating system refuses to write; see `align.system_errors`.
        """
        fields = {"key": key, **asdict(answer)}
        line = json.dumps({**fields, SEAL: _seal(fields)}).encode() + b"\n"
        with self._lock:
            # Set before the write: if it fails in the middle, the next line must begin with a line break.
            content, self._before_next = self._before_next + line, b"\n"
            # In append mode, a write goes to the present end of the file, whatever other processes have written.
            with explained(self._path), self._path.open("ab", buffering=0) as stream:
                write_line(stream.fileno(), content)
                os.fsync(stream.fileno())
            self._before_next = b""
            self._known[key] = answer


def _read_line(line: bytes) -> tuple[str, JudgeAnswer] | None:
    """Key and reply of a line, or None for one that is not whole."""
    try:
        fields = json.loads(line)
        if fields.pop(SEAL) != _seal(fields):
            return None
        # A line with other fields, as another version may write, counts as unknown.
        return str(fields.pop("key")), JudgeAnswer(**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _seal(fields: dict[str, Any]) -> str:
    """Of a line's text in ASCII: a reply may have half characters, which have no bytes in UTF-8."""
    return fingerprint(json.dumps(fields))
