"""`align chat`: through a pipe in this process, and in a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.testing import fill_weights, tiny_causal_lm, tiny_reward_model

Align = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("model") / "mine", seed=3, max_position_embeddings=128)


@pytest.fixture
def piped(align: Align, monkeypatch: pytest.MonkeyPatch) -> Align:
    from align.pipeline.worker import ENVIRONMENT

    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)

    def talk(lines: str, *arguments: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return align("chat", *arguments)

    return talk


def test_a_line_is_a_message_and_stdout_has_the_answers_alone(piped: Align, model: Path) -> None:
    options = [str(model), "--seed", "4", "--max-tokens", "6", "--temperature", "0"]
    answer = piped("안녕\n\n/reset\n안녕\n/exit\nnever said\n", *options)
    assert answer.code == 0
    assert answer.err.endswith("(forgotten)\n")
    alone = piped("안녕\n", *options).out
    assert answer.out == alone * 2  # forgotten in between; the empty line asks nothing, /exit ends it
    assert piped("안녕\n", *options, "--system", "다르게").out != alone


def test_what_is_dropped_is_said(piped: Align, model: Path) -> None:
    answer = piped("a message of some length\n" * 4, str(model), "--max-tokens", "8", "--seed", "1")
    assert answer.code == 0
    assert "the oldest 1 turn was forgotten" in answer.err


def test_a_message_that_cannot_fit_ends_a_pipe_with_its_line(piped: Align, model: Path) -> None:
    answer = piped("hi\n" + "x" * 300 + "\n", str(model), "--max-tokens", "4")
    assert answer.code == 3
    assert "error: stdin:2: the message has" in answer.err


def test_what_cannot_talk_is_refused(piped: Align, model: Path, tmp_path: Path) -> None:
    answer = piped("hi\n", str(tiny_reward_model(tmp_path / "rm")))
    assert (answer.code, answer.out) == (2, "")
    assert piped("hi\n", str(model), "--temperature", "-1").code == 2
    (tmp_path / "plain").mkdir()
    for path in model.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / "plain" / path.name).write_bytes(path.read_bytes())
    answer = piped("hi\n", str(tmp_path / "plain"))
    assert (answer.code, "has no chat template" in answer.err) == (2, True)


def test_a_model_of_nan_is_refused_by_name(piped: Align, tmp_path: Path) -> None:
    answer = piped("hi\n", str(fill_weights(tiny_causal_lm(tmp_path / "broken"), float("nan"))))
    assert (answer.code, answer.out) == (2, "")
    assert f"{tmp_path / 'broken'}: the model has weights that are NaN or infinite: model.norm.weight" in answer.err


class Terminal:
    """A terminal with `align chat` in it."""

    def __init__(self, *arguments: str) -> None:
        self.screen, theirs = pty.openpty()
        command = [sys.executable, "-m", "align.cli.main", "chat", *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(theirs)
        self._unread = b""

    def read_until(self, wanted: str, *, seconds: float = 60) -> str:
        """What is shown up to and with the next `wanted`."""
        deadline = time.monotonic() + seconds
        while wanted.encode() not in self._unread:
            assert time.monotonic() < deadline, self._unread.decode(errors="replace")
            if select.select([self.screen], [], [], 0.5)[0]:
                self._unread += os.read(self.screen, 4096)
        shown, _, self._unread = self._unread.partition(wanted.encode())
        return shown.decode() + wanted

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def press_ctrl_c(self, wanted: str, *, after: str = "") -> None:
        """Until it is heard: readline misses one that comes just before it begins to wait. Each time after a line, if given."""
        for _ in range(20):
            if after:
                self.type(f"{after}\n")
                self.read_until(f"{after}\r\n")
                time.sleep(0.5)
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.read_until(wanted, seconds=2)
                return
        raise AssertionError(self._unread.decode(errors="replace"))


@pytest.mark.slow
def test_in_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C stops an answer and not the conversation, Ctrl-D leaves."""
    model = tiny_causal_lm(tmp_path / "endless", seed=3, max_position_embeddings=8192)
    terminal = Terminal(str(model), "--temperature", "0", "--max-tokens", "4000")
    try:
        terminal.read_until("Ctrl-C stops an answer.")
        terminal.read_until("> ")
        terminal.press_ctrl_c("(/exit or Ctrl-D leaves)")
        # On a busy machine a Ctrl-C from above may come only now and take the line with it: then it is typed again.
        terminal.press_ctrl_c("(stopped)", after="안녕")
        terminal.type("/reset\n")
        terminal.read_until("(forgotten)")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)


def test_settings_take_the_place_of_the_model_s(piped: Align, model: Path) -> None:
    options = [str(model), "--seed", "4", "--max-tokens", "6", "--temperature", "0"]
    answer = piped("hi\n", *options, "--chat", "{template: plain}")
    assert (answer.code, answer.out != piped("hi\n", *options).out) == (0, True)
    refused = piped("hi\n", *options, "--chat", "{template: plain, add_tokens: [<|new|>]}")
    assert (refused.code, "the vocabulary lacks <|new|>" in refused.err) == (2, True)
