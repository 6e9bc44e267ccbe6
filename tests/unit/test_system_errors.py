"""What the operating system refuses becomes an error that says what to do, whichever library met it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from align.cli.main import main
from align.errors import EnvironmentProblem
from align.store.atomic import atomic_writer, write_bytes
from align.system_errors import LEAST_ADDRESSES, explained, no_more_memory, require_addresses, system_problem


def raised_while_handling(first: Exception, then: Exception) -> Exception:
    try:
        try:
            raise first
        except Exception:
            raise then  # noqa: B904
    except Exception as error:
        return error


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.EMFILE, "Too many open files"), "files open at a time"),
        (OSError(errno.ENFILE, "Too many open files in system"), "too many files"),
        (OSError(errno.EIO, "Input/output error"), "failed"),
        (OSError(errno.ESTALE, "Stale file handle"), "stale"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "too long"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links"), "in a circle"),
        (PermissionError(errno.EACCES, "Permission denied"), "may not read or write"),
        # safetensors 0.6 and 0.5, pyarrow, torch.
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (Exception('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'), "the disk is full"),
        (Exception("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "the disk is full"),
        (raised_while_handling(OSError(errno.ENOSPC, "full"), ValueError("closed")), "the disk is full"),
        (MemoryError(), "no more memory"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "temporary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_of_the_system_says_what_and_where(tmp_path: Path, error: Exception, words: str) -> None:
    problem = system_problem(error, tmp_path / "model.safetensors")
    assert problem is not None and problem.exit_code == 4 and problem.hint
    assert words in problem.message
    if "full" in words:
        assert str(tmp_path / "model.safetensors") in problem.message and "free" in problem.message


def limited_to(addresses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: (addresses, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[kind])


def test_a_limit_of_addresses_is_named_where_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ulimit" not in no_more_memory()
    limited_to(5 << 30, monkeypatch)
    problem = system_problem(MemoryError(), tmp_path)
    assert problem is not None
    assert problem.message.endswith("no more memory; a process may have 5,120 MiB of addresses here (ulimit -v)")


def test_too_few_addresses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for enough in (resource.RLIM_INFINITY, LEAST_ADDRESSES):
        limited_to(enough, monkeypatch)
        require_addresses()
    limited_to(2 << 30, monkeypatch)
    with pytest.raises(EnvironmentProblem, match=r"may have 2,048 MiB of addresses here \(ulimit -v\).*at least 4,096 MiB"):
        require_addresses()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("28"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        raised_while_handling(PermissionError(errno.EACCES, "no"), KeyError("a bug")),
        EnvironmentProblem("known"),
    ],
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    assert system_problem(error, Path("x")) is None


def test_the_file_that_an_error_names_is_shown() -> None:
    problem = system_problem(OSError(errno.ENOSPC, "full", "/nowhere/run.log"), Path("store"))
    assert problem is not None and problem.message.startswith("/nowhere/run.log: ")


def test_no_inodes_are_not_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs_result((4096, 4096, 1000, 900, 900, 500, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    problem = system_problem(OSError(errno.ENOSPC, "full"), tmp_path)
    assert problem is not None and "no inodes" in problem.message and "however small" in str(problem.hint)


def test_a_limit_of_the_file_size_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"before")
    with (
        file_limit(1000),
        pytest.raises(EnvironmentProblem, match=r"/a: a file .* at most 1,000 bytes.*more than 1,000") as caught,
    ):
        write_bytes(tmp_path / "a", b"x" * 5000)
    assert "ulimit -f" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"before"


def test_what_torch_and_safetensors_raise_is_understood(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(50_000)}
    refused = pytest.raises(EnvironmentProblem, match=r"/t: a file of this process")
    with file_limit(10_000), refused, atomic_writer(tmp_path / "t") as stream:
        torch.save(tensors, stream)
    with file_limit(10_000), refused, explained(tmp_path / "t"):
        torch.save(tensors, str(tmp_path / "t"))
    for write in (torch.save, save_file):
        with file_limit(10_000), pytest.raises(Exception) as caught:
            write(tensors, str(tmp_path / "u"))
        problem = system_problem(caught.value, tmp_path / "u")
        assert problem is not None and str(tmp_path / "u") in problem.message


def test_a_command_ends_with_4_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "recipe.yaml"))

    monkeypatch.setattr("align.pipeline.recipe.load_recipe", forbidden)
    assert main(["plan", str(tmp_path / "recipe.yaml")]) == 4
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and "recipe.yaml: the user" in shown and "chmod" in shown
