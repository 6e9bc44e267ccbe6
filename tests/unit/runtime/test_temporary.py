"""Temporary files of a run: gone when it ends, and with the next run when it was killed."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.runtime.temporary import PREFIX, _remove_if_abandoned, temporary_environment

SCRIPT = """
import multiprocessing.connection, multiprocessing.util, sys, time
from align.runtime.temporary import temporary_environment, temporary_folder
folder = temporary_folder()
assert temporary_environment()["TMPDIR"] == str(folder) == str(temporary_folder())
assert multiprocessing.util.get_temp_dir().startswith(str(folder))
kept = multiprocessing.connection.Listener(family="AF_UNIX")  # a socket, as the fork server has
assert str(kept.address).startswith(str(folder))
print(folder, flush=True)
if sys.argv[1] == "stay":
    time.sleep(60)
"""
FORK_SERVER = """
import time
from align.runtime.launcher import Forked
Forked("this_takes_long", {})
time.sleep(60)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Near the root: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def started(place: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {"TMPDIR": str(place), "PYTHONPATH": ":".join([str(place), *sys.path])}
    command, pipe = [sys.executable, "-c", script, *arguments], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)


def left(place: Path) -> list[str]:
    return [path.name for path in place.iterdir()]


def test_the_folder_is_removed_at_the_end_or_by_the_next_run(place: Path) -> None:
    other = place / f"{PREFIX}without-a-lock"
    other.mkdir()
    with started(place, SCRIPT, "stay") as killed:
        assert killed.stdout is not None
        folder = Path(killed.stdout.readline().strip())
        with started(place, SCRIPT, "end") as beside:
            assert beside.wait() == 0
        assert sorted(left(place)) == sorted([folder.name, other.name])  # the one that is in use stays
        killed.kill()
    with started(place, SCRIPT, "end") as after:
        assert after.stdout is not None and len(after.stdout.read().splitlines()) == 1  # the folder, and no traceback
        assert after.wait() == 0
    assert left(place) == [other.name]


def test_a_link_is_not_followed(place: Path) -> None:
    folder, link = place / "mine", place / f"{PREFIX}x"
    folder.mkdir()
    (folder / "lock").touch()
    link.symlink_to(folder)
    _remove_if_abandoned(link)
    assert (folder / "lock").exists()


def test_the_fork_server_ends_with_its_runner_while_it_imports(place: Path) -> None:
    (place / "this_takes_long.py").write_text(
        "import os, pathlib, time\npathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    with started(place, FORK_SERVER) as runner:
        deadline = time.monotonic() + 30
        while not (place / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1)
        server = Path("/proc", (place / "pid").read_text())
        assert server.exists()
        runner.kill()
    deadline = time.monotonic() + 2
    while is_alive(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(server)


def is_alive(process: Path) -> bool:
    try:
        return " Z " not in (process / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_user_may_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert temporary_environment()["TORCHINDUCTOR_CACHE_DIR"].endswith(f"torchinductor_{os.geteuid()}")
