"""A lock can be taken whatever stands in the place of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.store.lock import describe_holder, hold, is_held

LOST = Path("/nowhere/at/all")


@pytest.mark.parametrize("suffix", [".lock", ".holder"])
@pytest.mark.parametrize("target", [None, LOST, Path("/dev/zero")], ids=["folder", "lost link", "device"])
def test_a_folder_or_a_link_in_its_place_goes(tmp_path: Path, suffix: str, target: Path | None) -> None:
    lock = tmp_path / "run.lock"
    place = lock.with_suffix(suffix)
    if target is None:
        place.mkdir()
    else:
        place.symlink_to(target)
    assert describe_holder(lock) == "another process"
    with hold(lock, on_wait=pytest.fail) as held:
        assert held
        assert is_held(lock)
        assert describe_holder(lock).startswith("process ")
    assert not is_held(lock)
