"""`align serve` without a server: what is refused before, what is printed, how it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.engines import vllm_server
from align.errors import EnvironmentProblem, StageError
from align.testing import tiny_causal_lm, tiny_reward_model

Align = Callable[..., Any]
KEY = "k3y-of-this-start"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of vLLM: it remembers what it was to serve, and ends as it is told."""
    from align.cli import serve
    from align.pipeline.worker import ENVIRONMENT

    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    state = SimpleNamespace(folder=None, port=None, ends=KeyboardInterrupt(), problem=None, stopped=False)

    def check(port: int) -> None:
        if state.problem is not None:
            raise state.problem

    @contextlib.contextmanager
    def start(folder: Path, *, name: str, port: int) -> Iterator[Any]:
        state.folder, state.name, state.port = folder, name, port

        def wait() -> None:
            raise state.ends

        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{port}", key=KEY, wait=wait)
        finally:
            state.stopped = True

    monkeypatch.setattr(vllm_server, "check_can_serve", check)
    monkeypatch.setattr(vllm_server, "start_server", start)
    monkeypatch.setattr(serve.signal, "signal", lambda number, handler: None)
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("model") / "mine")


def test_stdout_has_the_url_and_stderr_the_key_once_and_an_example(align: Align, model: Path, server: Any) -> None:
    answer = align("serve", str(model), "--port", "8111")
    assert (answer.code, answer.out) == (130, "http://127.0.0.1:8111/v1\n")
    assert f"Key, shown this once: {KEY}" in answer.err
    assert f"-H 'Authorization: Bearer {KEY}'" in answer.err
    assert '"model": "mine"' in answer.err
    assert answer.err.endswith("stopped\n")
    assert (server.folder, server.name, server.stopped) == (model, "mine", True)


def test_a_server_that_ends_by_itself_is_an_error(align: Align, model: Path, server: Any) -> None:
    server.ends = StageError("vLLM's server ended with code 1 while it served")
    answer = align("serve", str(model))
    assert answer.code == 5
    assert "error: vLLM's server ended with code 1" in answer.err


def test_nothing_is_loaded_when_it_cannot_be_served(align: Align, model: Path, tmp_path: Path, server: Any) -> None:
    server.problem = EnvironmentProblem("--port 8000: cannot be opened", hint="Give another one.")
    assert align("serve", str(model)).code == 4
    answer = align("serve", str(tiny_reward_model(tmp_path / "rm")))
    assert answer.code == 2
    assert "a reward model; to serve, a language model is needed" in answer.err
    assert server.folder is None


@pytest.mark.parametrize("more", [["--host", "0.0.0.0"], ["--port", "0"], ["--port", "70000"]])
def test_there_is_no_other_host_and_no_impossible_port(align: Align, model: Path, server: Any, more: list[str]) -> None:
    assert align("serve", str(model), *more).code == 2
    assert server.folder is None
