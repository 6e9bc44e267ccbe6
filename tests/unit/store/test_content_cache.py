"""Values that are kept by content, in a file that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.store.content_cache import MOST_ENTRIES, ContentCache


def opened(path: Path, version: int = 1) -> ContentCache:
    return ContentCache(path, version, lambda value: isinstance(value, int))


def test_a_value_is_found_once(tmp_path: Path) -> None:
    first = opened(tmp_path / "new" / "known.json")
    assert first.value(["a", 1], lambda: 7) == 7
    first.save()
    assert opened(tmp_path / "new" / "known.json").value(["a", 1], lambda: 8) == 7
    assert opened(tmp_path / "new" / "known.json").value(["a", 2], lambda: 8) == 8
    assert opened(tmp_path / "new" / "known.json", version=2).value(["a", 1], lambda: 8) == 8


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"values": {"x": 1}}', b"\xff", b"[" * 100_000])
def test_damage_is_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "known.json").write_bytes(content)
    cache = opened(tmp_path / "known.json")
    assert cache.value("key", lambda: 3) == 3
    cache.save()
    assert opened(tmp_path / "known.json").value("key", lambda: 4) == 3


def test_a_value_that_was_changed_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    cache = opened(path)
    cache.value("key", lambda: 3)
    cache.save()
    path.write_bytes(path.read_bytes().replace(b": 3", b": 7"))
    assert opened(path).value("key", lambda: 3) == 3


def test_half_a_character_is_not_kept(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "known.json", 1, lambda value: True)
    assert cache.value("key", lambda: "\ud800") == "\ud800"
    cache.save()
    assert not (tmp_path / "known.json").exists()


def test_the_oldest_entries_leave(tmp_path: Path) -> None:
    cache = opened(tmp_path / "known.json")
    for number in range(MOST_ENTRIES + 1):
        cache.value(number, lambda number=number: number)  # type: ignore[misc]
    cache.save()
    later = opened(tmp_path / "known.json")
    assert later.value(0, lambda: -1) == -1
    assert later.value(1, lambda: -1) == 1
