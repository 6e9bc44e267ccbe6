"""What is no file is named at once: a pipe would be waited for, and a device has no end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from align.runtime.plain_file import open_plain, other_kind, read_small_file


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # a whole path may be too long for a socket


OTHERS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": bind,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    OTHERS[kind](path := tmp_path / "x")
    assert other_kind(path) == kind
    for read in (open_plain, read_small_file):
        with pytest.raises(OSError, match=f"is {kind}, not a file"):
            read(path)


def test_a_file_is_read_from_its_start(tmp_path: Path) -> None:
    (path := tmp_path / "x").write_bytes(b"one\ntwo\n")
    (link := tmp_path / "link").symlink_to(path)
    assert other_kind(link) is other_kind(tmp_path / "gone") is None
    with open_plain(link) as stream:
        assert list(stream) == [b"one\n", b"two\n"]
    assert read_small_file(link, most_bytes=8) == b"one\ntwo\n"
    with pytest.raises(OSError, match="has 8 bytes, more than 7"):
        read_small_file(link, most_bytes=7)
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "gone")
